#!/usr/bin/env bash
# What a broadcast with a receipt costs with 1,000 and with 100,000 durable members, 1,000 of them
# online each time: CPU per broadcast, and a profile of the server.
# Usage: benches/receipts-profile.sh [out-dir]; needs perf, python3, two cores and
# `cargo build --release --workspace`.
set -eu
cd "$(dirname "$0")/.."
out=${1:-benches/runs/latest/receipts-profile}
bin=${BIN:-target/release}
port=${PORT:-7494}
rate=50
seconds=10
members=1000
dir=$(mktemp -d)
server=
trap 'kill -9 $server 2>/dev/null || true; rm -rf "$dir"' EXIT
mkdir -p "$out"

# Every message is acknowledged by itself: 1,000 acknowledgements a broadcast.
export FANFARE_ACK_EVERY=1 FANFARE_RECEIPTS_MAX=65536

start() { # data directory
    : >"$dir/log"
    taskset -c 0 "$bin/fanfare" serve --listen "127.0.0.1:$port" --data-dir "$1" --shards 1 \
        --cores 0 2>"$dir/log" &
    server=$!
    until grep -q ready "$dir/log"; do
        kill -0 "$server" || { cat "$dir/log"; exit 1; }
        sleep 0.1
    done
}

stop() {
    kill -TERM "$server"
    wait "$server" || true
}

# Durable members that join once and are gone: HELLO, JOIN, JOINED by PROTOCOL.md.
enroll() { # how many
    python3 - "$port" "$1" <<'PY'
import socket, struct, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
group = b"receipts-0"
frame = lambda kind, body: struct.pack("<IBBH", 4 + len(body), kind, 0, 0) + body
join = struct.pack("<IHH", 1, 1, 0) + struct.pack("<BBBBIQ", 1, 2, len(group), 0, 0, 0) + group
for first in range(0, count, 500):
    batch = []
    for n in range(first, min(first + 500, count)):
        name = b"away-%d" % n
        hello = struct.pack("<HHBBH", 1, 1, 0, len(name), 0) + struct.pack("<QQ", n, 1) + name
        s = socket.create_connection(("127.0.0.1", port))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.sendall(b"FNFR" + frame(1, hello) + frame(2, join))
        batch.append(s)
    for s in batch:
        got = b""
        while True:
            if len(got) >= 8:
                size = 4 + struct.unpack_from("<I", got)[0]
                if len(got) >= size:
                    if got[4] == 0x82:
                        break
                    assert got[4] == 0x81, got
                    got = got[size:]
                    continue
            more = s.recv(4096)
            assert more, "the server closed a connection"
            got += more
        s.close()
PY
}

# One run: its name, and the share of the members at which receipts come.
run() {
    perf record -q -F 999 -g -o "$dir/perf.data" -p "$server" -- sleep $((seconds + 2)) &
    perf=$!
    taskset -c 1 "$bin/loadgen" fanout --addr "127.0.0.1:$port" --server-pid "$server" --cores 1 \
        --members $members --durable --receipts "$2" --rate $rate --duration ${seconds}s \
        --group-prefix receipts --drain-timeout 3s >"$out/$1.loadgen.txt" 2>&1 || true
    wait $perf
    {
        echo "# perf record -F 999 -g -p SERVER; perf report, without children, then callers of the receipts"
        perf report -i "$dir/perf.data" --stdio --no-children -g none --percent-limit 0.3 \
            --sort symbol 2>/dev/null | grep -v '^$'
        echo "# the same, by caller, of what the server does about rosters, acknowledgements and receipts"
        perf report -i "$dir/perf.data" --stdio --children -g none --percent-limit 0 \
            --sort symbol 2>/dev/null |
            grep -iE 'receipt|roster|cursor|::ack|settle|note_sender|progressed' || true
    } >"$out/$1.profile.txt"
}

start "$dir/many"
enroll $((100000 - members))
stop
{
    echo "commit $(git rev-parse --short HEAD), kernel $(uname -r), $(date -u +%FT%TZ)"
    echo "cpu: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), load $(cut -d' ' -f1-3 /proc/loadavg)"
    echo "$members members online, $rate broadcasts/s with a receipt for ${seconds} s, ack_every 1, 1 shard"
} >"$out/README.txt"
go() { # data directory, name, share
    start "$1"
    run "$2" "$3"
    stop
    echo "$2, receipts at $3 %:"
    grep -E 'server CPU|server_waiting|DISTURBED|receipts|broadcasts/s|deliveries verified' "$out/$2.loadgen.txt" |
        sed 's/^/    /'
}
measured() {
    for round in 1 2; do
        go "$dir/few-$round" "1000-members-$round" 100
    done
    # Receipts wait for those who are away, so loadgen calls this one failed.
    go "$dir/many" "100000-members" 100
}
measured | tee -a "$out/README.txt"
