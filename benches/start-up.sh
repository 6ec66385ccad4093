#!/usr/bin/env bash
# How long a server takes to start on 1 GiB of history in 1,000 groups, after a clean stop and
# after kill -9. Usage: benches/start-up.sh [out-dir]; needs `cargo build --release --workspace`.
set -eu
cd "$(dirname "$0")/.."
out=${1:-/dev/stdout}
bin=${BIN:-target/release}
data=$(mktemp -d)
address=127.0.0.1:${PORT:-7493}
trap 'rm -rf "$data"' EXIT

start() {
    : >"$data/log"
    begin=$(date +%s%N)
    "$bin/fanfare" serve --listen "$address" --data-dir "$data/d" --shards 1 2>"$data/log" &
    server=$!
    until grep -q ready "$data/log"; do
        kill -0 "$server" || { cat "$data/log"; exit 1; }
        sleep 0.01
    done
    took_ms=$((($(date +%s%N) - begin) / 1000000))
}

{
    server=
    trap 'kill -9 $server 2>/dev/null || true' EXIT
    echo "commit $(git rev-parse --short HEAD), kernel $(uname -r), $(date -u +%FT%TZ)"
    echo "cpu: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), load $(cut -d' ' -f1-3 /proc/loadavg)"
    start
    "$bin/loadgen" fill --addr "$address" --groups 1000 --members 1 --publishers 4 --payload 4096 \
        --bytes $((1 << 30)) >/dev/null
    kill -TERM "$server"
    wait "$server" || true
    echo "history: $(du -sm "$data/d" | cut -f1) MiB, $("$bin/fanfare" wal inspect "$data/d" | grep -c '  group ') groups"
    for round in 1 2 3 4 5; do
        start
        echo "start $round after a clean stop: $took_ms ms"
        kill -TERM "$server"
        wait "$server" || true
    done
    for round in 1 2 3 4 5; do
        start
        "$bin/loadgen" fill --addr "$address" --groups 1000 --members 1 --publishers 4 --payload 4096 \
            --bytes $((60 << 20)) >/dev/null
        kill -9 "$server"
        wait "$server" 2>/dev/null || true
        start
        echo "start $round after kill -9 with 60 MiB since the last stop: $took_ms ms"
        kill -TERM "$server"
        wait "$server" || true
    done
} | tee "$out"
