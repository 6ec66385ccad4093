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

for client in $clients; do
    echo "== conversations: $client"
    case $client in
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
        echo "$client is none of rust, js, python" >&2
        exit 2
        ;;
    esac
done
