#!/bin/bash
# MQTT 3.1.1: Debian's mosquitto.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { debian mosquitto; }

about() {
    package_version mosquitto
    echo "defaults (max_inflight_messages 20, max_queued_messages 1000, no persistence), anonymous clients"
    echo "set_tcp_nodelay ${NODELAY:-false}"
}

serve() {
    cat > mosquitto.conf <<CONF
listener $port 127.0.0.1
allow_anonymous true
set_tcp_nodelay ${NODELAY:-false}
CONF
    [ "$(id -u)" != 0 ] || echo "user root" >> mosquitto.conf
    pinned mosquitto -c mosquitto.conf
}

main "$@"
