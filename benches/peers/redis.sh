#!/bin/bash
# Redis pub/sub: Debian's redis-server.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { debian redis-server; }

about() {
    redis-server --version
    echo "defaults (client-output-buffer-limit pubsub 32mb 8mb 60), but: no snapshots, maxclients 19000, no protected mode"
}

serve() {
    # Many members come from more addresses than 127.0.0.1, which protected mode does not take for this machine.
    pinned redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --maxclients 19000 \
        --protected-mode no
}

main "$@"
