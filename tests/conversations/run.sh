#!/usr/bin/env bash
# Speaks all conversations with all clients, and runs the other tests of the clients in other languages.
# FANFARE_BIN is the server, else it is built. What it needs from npm and PyPI goes to target/clients.
#
#   tests/conversations/run.sh [rust] [js] [python]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

clients=${*:-rust js python}
if [[ -z ${FANFARE_BIN:-} ]]; then
    cargo build --bin fanfare
    FANFARE_BIN=$PWD/target/debug/fanfare
fi
export FANFARE_BIN

# speak CLIENT
speak() {
    case $1 in
    rust)
        cargo test --test conversations --test conversations_live
        ;;
    js)
        (
            cd clients/js
            npm ci --no-audit --no-fund --prefer-offline
            npm test
        )
        ;;
    python)
        venv=target/clients/python
        [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --editable 'clients/python[dev]'
        (
            cd clients/python
            "../../$venv/bin/mypy"
            "../../$venv/bin/python" -m unittest
        )
        ;;
    *)
        echo "$1 is none of rust, js, python" >&2
        return 2
        ;;
    esac
}

# Each makes it if it is not there, and two at once would disturb each other.
tests/conversations/certificates.sh target/clients/tls
# Most of the time they wait, so they speak side by side, and what one says is shown when it is done.
running=()
said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
for client in $clients; do
    (speak "$client") >"$said/$client" 2>&1 </dev/null &
    running+=("$!")
done
status=0 at=0
for client in $clients; do
    wait "${running[at]}" || status=$?
    at=$((at + 1))
    echo "== conversations: $client"
    cat "$said/$client"
done
exit "$status"
