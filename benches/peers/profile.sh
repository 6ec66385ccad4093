#!/usr/bin/env bash
# Where the CPU time of a server goes under a load: samples of its clock by function, beside what the
# load generator says. Needs perf.
# Usage: benches/peers/profile.sh fanfare|PEER LOAD..., as in
#   benches/peers/profile.sh uwebsockets fanout --members 1000 --window 16
# Takes BIN, else target/release, and SECONDS_MEASURED, else 6.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1
shift
bin=${BIN:-target/release}
seconds=${SECONDS_MEASURED:-6}
port=7501
dir=$(mktemp -d -p target)
if [ "$name" = fanfare ]; then
    taskset -c 0 "$bin/fanfare" serve --listen "127.0.0.1:$port" --shards 1 --cores 0 \
        --connections-max 19000 --data-dir "$dir/data" 2>"$dir/log" &
else
    "benches/peers/$name.sh" serve "$port" >"$dir/log" 2>&1 &
fi
server=$!
trap 'kill "$server" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
case $name in
    fanfare) target=fanfare ;;
    redis | nats) target=$name ;;
    mosquitto | rabbitmq) target=mqtt ;;
    *) target=ws ;;
esac
# One second to join, one to warm up; the load goes on for as long as perf looks.
(sleep 2.5; exec perf record -F 997 -e cpu-clock -g -p "$server" -o "$dir/perf.data" \
    -- sleep "$((seconds - 2))" >/dev/null 2>&1) &
perf=$!
echo "# $name: loadgen $*"
echo "# $(git rev-parse --short=12 HEAD), $(uname -r), $(date -u '+%F %H:%M UTC')"
"$bin/loadgen" "$@" --target "$target" --addr "127.0.0.1:$port" --cores 1 --server-pid "$server" \
    --duration "${seconds}s" 2>/dev/null |
    grep -E '^(deliveries/s|loadgen CPU|server CPU|saturated|delivery )'
wait "$perf"
perf report -i "$dir/perf.data" --no-children --percent-limit 0.7 --stdio -g none 2>/dev/null |
    sed '/^#/d; /^$/d; s/ *$//'
perf report -i "$dir/perf.data" --no-children --sort dso --stdio -g none 2>/dev/null |
    sed '/^#/d; /^$/d; s/ *$//' | head -n 4
