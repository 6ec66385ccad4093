#!/bin/bash
# MQTT 3.1.1: Debian's rabbitmq-server with its plugin rabbitmq_mqtt.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { debian rabbitmq-server; }

about() {
    package_version rabbitmq-server
    echo "defaults, MQTT by the plugin rabbitmq_mqtt, anonymous clients are guest"
}

serve() {
    cat > rabbitmq.conf <<CONF
listeners.tcp = none
mqtt.listeners.tcp.1 = 127.0.0.1:$port
mqtt.allow_anonymous = true
mqtt.default_user = guest
mqtt.default_pass = guest
CONF
    echo '[rabbitmq_mqtt].' > enabled_plugins
    export HOME=$PWD RABBITMQ_NODENAME=peer$port@localhost
    export RABBITMQ_CONFIG_FILE=$PWD/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$PWD/enabled_plugins
    export RABBITMQ_MNESIA_BASE=$PWD/mnesia RABBITMQ_LOG_BASE=$PWD/log RABBITMQ_PID_FILE=$PWD/pid
    # Node names are found by epmd, which would outlive the server: one of our own that does not.
    export ERL_EPMD_PORT=$((port + 100)) RABBITMQ_DIST_PORT=$((port + 200)) ERL_EPMD_ADDRESS=127.0.0.1
    local server=$$
    (
        epmd -port "$ERL_EPMD_PORT" &
        epmd=$!
        while kill -0 "$server" 2>/dev/null; do sleep 0.5; done
        kill "$epmd"
    ) &
    # Otherwise the script stays as the parent of the server.
    export RUNNING_UNDER_SYSTEMD=1
    pinned /usr/lib/rabbitmq/bin/rabbitmq-server
}

main "$@"
