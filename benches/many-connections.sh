#!/usr/bin/env bash
# 100,000 joined members on one machine: memory of each, and one broadcast to all of them, verified,
# again and again, against what the floor takes for as many sockets. Six shards share core 0, since
# a shard's table of descriptors is bounded by the limit of open files; seven floors do the same, a
# seventh of the members each (a floor's table has 16,384). The load is on core 1.
# Usage: benches/many-connections.sh [out-dir]; needs `cargo build --release --workspace`.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
mkdir -p "$out"
bin=${BIN:-target/release}
port=${PORT:-7500}
members=${MEMBERS:-100000}
shards=6
floors=7
each=$(((members + floors - 1) / floors))
data=$(mktemp -d)
floor=${FLOOR:-$(cargo bench --bench floor --no-run --message-format=json 2>/dev/null |
    grep -o '"executable":"[^"]*floor-[^"]*"' | cut -d'"' -f4)}
pids=
trap 'kill $pids 2>/dev/null || true; rm -rf "$data"' EXIT

# Value of a key of a JSON report, wherever it is.
value() { grep -o "\"$2\": *[0-9.]*" "$1" | head -1 | sed 's/.*: *//'; }

engine() {
    "$bin/fanfare" serve --listen "127.0.0.1:$port" --data-dir "$data/$1" --shards $shards --cores 0 \
        --connections-max 19900 --handshake-timeout-ms 300000 --heartbeat-ms 120000 2>"$data/log" &
    pids=$!
    sleep 1.5
    "$bin/loadgen" fanout --addr "127.0.0.1:$port" --members "$members" --window 1 --threads $shards \
        --cores 1 --server-pid $pids --warmup 2s --duration 8s --json "$out/many-engine-$1.json" >"$out/many-engine-$1.txt"
    kill $pids
    wait $pids || true
}

floors() {
    local loads=
    pids=
    for n in $(seq $floors); do
        "$floor" --listen "127.0.0.1:$((port + n))" --core 0 >/dev/null 2>&1 &
        pids="$pids $!"
    done
    sleep 1
    local n=0
    for pid in $pids; do
        n=$((n + 1))
        # All of them are measured at the same time: each waits until the last one has connected.
        "$bin/loadgen" fanout --addr "127.0.0.1:$((port + n))" --members "$each" --window 1 --cores 1 \
            --server-pid "$pid" --warmup "${WARM:-20s}" --duration 8s \
            --json "$out/many-floor-$1-$n.json" >/dev/null &
        loads="$loads $!"
    done
    for load in $loads; do
        wait "$load"
    done
    kill $pids
    wait $pids || true
}

# No pipe: in a subshell the trap would not know what to end.
exec > >(tee "$out/many-connections.md")
echo "# $members joined members"
echo
echo "- command: \`benches/many-connections.sh\`"
echo "- commit: $(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD || echo ' (changed)')"
echo "- kernel: $(uname -r), CPU: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-) x $(nproc)"
echo "- date: $(date -u '+%F %H:%M UTC')"
echo
echo "| run | members | deliveries/s, million | a broadcast to all, ms | server CPU per delivery, ns | user memory per member |"
echo "| --- | --- | --- | --- | --- | --- |"
for run in $(seq "${RUNS:-3}"); do
    engine $run
    json="$out/many-engine-$run.json"
    rate=$(value "$json" deliveries_per_s)
    printf '| engine %d | %d | %.2f | %.1f | %.1f | %.0f |\n' $run "$members" \
        "$(echo "$rate / 1000000" | bc -l)" "$(echo "$members * 1000 / $rate" | bc -l)" \
        "$(value "$json" server_cpu_ns_per_delivery)" "$(value "$json" bytes_per_member)"
    floors $run
    rate=0 cpu=0
    for n in $(seq $floors); do
        rate=$(echo "$rate + $(value "$out/many-floor-$run-$n.json" deliveries_per_s)" | bc -l)
        cpu=$(echo "$cpu + $(value "$out/many-floor-$run-$n.json" server_cpu_ns_per_delivery) / $floors" | bc -l)
    done
    printf '| floors %d | %d | %.2f | %.1f | %.1f | |\n' $run $((each * floors)) \
        "$(echo "$rate / 1000000" | bc -l)" "$(echo "$each * $floors * 1000 / $rate" | bc -l)" "$cpu"
done
