#!/bin/bash
# WebSocket: uWebSockets for Node.js, from the npm package uwebsockets.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
version=3.0.6

install() {
    [ -d "$home/node_modules/uwebsockets" ] ||
        npm install --silent --no-save --prefix "$home" "uwebsockets@$version" >&2
}

about() {
    echo "uwebsockets $version (npm), Node.js $(node --version)"
    echo "benches/peers/uwebsockets.js: subscribe and publish by room, defaults (maxBackpressure 64 KiB)"
}

serve() { NODE_PATH=$home/node_modules pinned node "$here/uwebsockets.js" "$port"; }

main "$@"
