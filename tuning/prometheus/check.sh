#!/usr/bin/env bash
# Has a real Prometheus scrape a server under load, and asks it every query of the dashboard: each
# must return data. Needs prometheus, promtool, jq and curl (Debian: prometheus jq curl).
#
#   tuning/prometheus/check.sh [FOLDER with fanfare and loadgen, default target/debug]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(cd "${1:-$root/target/debug}" && pwd)
work=$(mktemp -d)
pids=()
end() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$work"
}
trap end EXIT

port=${PORT:-17400}
http=127.0.0.1:$((port + 1))
prometheus=127.0.0.1:$((port + 2))

"$bin/fanfare" serve --listen "127.0.0.1:$port" --http "$http" --shards 2 --cores 0 \
    --data-dir "$work/data" --set segment_bytes=8388608 --set retention_bytes=33554432 \
    2>"$work/server.log" &
pids+=($!)
ready() { curl --silent --fail --max-time 5 "http://$http/readyz" >/dev/null; }
for _ in $(seq 100); do ready && break || sleep 0.2; done
ready || { cat "$work/server.log"; exit 1; }

# Durable members, receipts, and something that is refused, so that those figures move.
"$bin/loadgen" groups --addr "127.0.0.1:$port" --groups 10 --members 20 --rate 100 \
    --duration "${SECONDS_OF_LOAD:-25}s" --durable --receipts 100 >"$work/load.log" 2>&1 &
load=$!

sed -e "s/127.0.0.1:7411/$http/" -e 's/scrape_interval: 15s/scrape_interval: 1s/' \
    "$root/tuning/prometheus/prometheus.yml" >"$work/prometheus.yml"
cp "$root/tuning/prometheus/fanfare.rules.yml" "$work/"
promtool check config "$work/prometheus.yml"
prometheus --config.file "$work/prometheus.yml" --storage.tsdb.path "$work/tsdb" \
    --web.listen-address "$prometheus" --log.level error 2>"$work/prometheus.log" &
pids+=($!)

sleep 3
# An ERROR, and a connection that the server closes.
printf 'nonsense' | timeout 2 curl --silent "telnet://127.0.0.1:$port" >/dev/null || true
wait "$load" || { tail -n 20 "$work/load.log"; exit 1; }

echo "== promtool check metrics"
curl --silent --fail "http://$http/metrics" >"$work/metrics"
promtool check metrics <"$work/metrics"
echo "$(wc -c <"$work/metrics") bytes, $(grep -vc '^#' "$work/metrics") samples"

echo "== every query of the dashboard"
bad=0
total=0
while IFS= read -r query; do
    total=$((total + 1))
    asked=${query//\$__rate_interval/30s}
    asked=${asked//\$job/fanfare}
    asked=${asked//\$shard/.*}
    answer=$(curl --silent --get "http://$prometheus/api/v1/query" --data-urlencode "query=$asked")
    series=$(jq '.data.result | length' <<<"$answer")
    if [[ $(jq -r .status <<<"$answer") != success || $series == 0 ]]; then
        echo "NO DATA  $asked  $(jq -c '.error // empty' <<<"$answer")"
        bad=$((bad + 1))
    elif jq -e 'all(.data.result[]; .value[1] == "NaN")' <<<"$answer" >/dev/null; then
        echo "NaN only  $asked"
        bad=$((bad + 1))
    fi
done < <(
    dashboard=$root/tuning/grafana/fanfare.json
    jq -r '.panels[].targets[]?.expr' "$dashboard"
    # Of a variable, label_values(METRIC, LABEL), the metric must be there with the label.
    jq -r '.templating.list[] | select(.type == "query") | .query | if type == "object" then .query else . end' \
        "$dashboard" | sed -E 's/^label_values\((.*), *([a-z_]+)\)$/count by (\2) (\1)/'
)
echo "$total queries, $bad without data"

echo "== scrapes"
for query in 'count_over_time(up{job="fanfare"}[5m])' 'min_over_time(up{job="fanfare"}[5m])' \
    'quantile_over_time(0.5, scrape_duration_seconds{job="fanfare"}[5m])' \
    'max_over_time(scrape_duration_seconds{job="fanfare"}[5m])' 'sum(fanfare_messages_total)'; do
    answer=$(curl --silent --get "http://$prometheus/api/v1/query" --data-urlencode "query=$query")
    echo "$query = $(jq -r '.data.result[0].value[1]' <<<"$answer")"
done
((bad == 0))
