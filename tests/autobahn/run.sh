#!/usr/bin/env bash
# The Autobahn cases against the echo of a server, run by kosoku, which carries them. Installs it
# into target/autobahn and writes SUMMARY.md beside this script, or to the file given.
# Usage: tests/autobahn/run.sh [SUMMARY]; takes BINARY, else target/debug/fanfare.
set -eu
cd "$(dirname "$0")/../.."
summary=${1:-tests/autobahn/SUMMARY.md}
binary=${BINARY:-target/debug/fanfare}
port=${PORT:-17492}
dir=target/autobahn
mkdir -p "$dir"
[ -x "$dir/venv/bin/kosoku" ] || {
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet kosoku==0.1.0
    # It gives its own cases text for what came uncompressed, binary messages as Latin-1
    # (kosoku/_report.py), and its cases of compression, 12 and 13, take bytes. So they fail by
    # themselves where a message got no shorter by compression and the server sent it as it was.
    sed -i 's/^def onMessage(self, msg, binary):$/&\n   if isinstance(msg, str): msg = msg.encode("latin-1" if binary else "utf-8")/' \
        "$dir"/venv/lib/python3*/site-packages/kosoku/cases/case12_x_x.py
}
data=$(mktemp -d)
printf 'websocket_echo = true\nwebsocket_deflate = true\n' >"$data/fanfare.toml"
"$binary" serve --config "$data/fanfare.toml" --data-dir "$data/data" --shards 1 \
    --listen "127.0.0.1:$port" 2>"$data/log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true; rm -rf "$data"' EXIT
for _ in $(seq 100); do
    grep -q ready "$data/log" && break
    sleep 0.1
done
rm -rf "$dir/reports"
# It ends with 1 if a case failed, which the summary says.
timeout "${TIME:-5400}" "$dir/venv/bin/kosoku" "127.0.0.1:$port/echo" --outdir "$dir/reports" >"$dir/log" 2>&1 || true
cp "$data/log" "$dir/server.log"
python3 tests/autobahn/summary.py "$dir/reports" "$(git rev-parse --short=12 HEAD)" >"$summary"
tail -n +1 "$summary"
# No report at all is no success either.
grep -q "^- Cases: [1-9].*Failed: 0$" "$summary"
