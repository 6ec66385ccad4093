#!/usr/bin/env bash
# The console page and the JavaScript client in a real browser, with the server and loadgen of a build
# that is there. CHROMIUM names the browser. Without one it says so and that is all, unless
# BROWSER_REQUIRED is set: a browser takes longer to install than to test with. What it needs from npm
# goes to target/browser.
#
#   tests/browser/run.sh [FOLDER with fanfare and loadgen]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=${1:-target/debug}
chromium=${CHROMIUM:-$(command -v chromium chromium-browser google-chrome | head -n 1 || true)}
if [[ -z $chromium ]]; then
    echo "SKIPPED: there is no Chromium here (apt-get install chromium), so nothing was tried in a browser"
    [[ -z ${BROWSER_REQUIRED:-} ]]
    exit
fi
for needed in "$bin/fanfare" "$bin/loadgen"; do
    [[ -x $needed ]] || { echo "there is no $needed; build it: cargo build --workspace" >&2; exit 1; }
done
echo "browser: $("$chromium" --version 2>/dev/null)"

npm install --no-audit --no-fund --prefer-offline --no-save --prefix target/browser \
    playwright-core@1.65.1 axe-core@4.14.1
(
    cd clients/js
    [[ -d node_modules ]] || npm ci --no-audit --no-fund --prefer-offline
    npm run build
)
tests/conversations/certificates.sh target/clients/tls

export CHROMIUM=$chromium NODE_MODULES_IN=$PWD/target/browser
# Below the ports that the kernel gives to clients; each takes two.
export PORT=$((20000 + RANDOM % 5000 * 2))
node tests/browser/client.mjs "$bin" target/clients/tls
node tests/browser/console.mjs "$bin" target/screenshots
