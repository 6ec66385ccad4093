#!/bin/bash
# WebSocket: a Go server on gorilla/websocket with a hub and a writer goroutine per client, as in
# the chat example of that library.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
mode=${MODE:-hub}

install() {
    debian golang-go golang-github-gorilla-websocket-dev
    [ "$home/server" -nt "$here/gorilla.go" ] ||
        GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$home/cache \
            go build -o "$home/server" "$here/gorilla.go"
}

about() {
    package_version golang-github-gorilla-websocket-dev
    go version
    echo "benches/peers/gorilla.go -mode $mode, prepared messages, no compression"
}

serve() { pinned "$home/server" -addr "127.0.0.1:$port" -mode "$mode"; }

main "$@"
