#!/bin/bash
# Redis pub/sub: Debian's redis-server.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { debian redis-server; }

about() {
    redis-server --version
    echo "defaults (client-output-buffer-limit pubsub 32mb 8mb 60), but: no snapshots, maxclients 19000"
}

serve() {
    pinned redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --maxclients 19000
}

main "$@"
