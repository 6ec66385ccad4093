#!/bin/bash
# WebSocket: the same Go server with one goroutine per send; the next message waits for them all,
# since otherwise they would not keep the order.
MODE=spawn source "$(dirname "${BASH_SOURCE[0]}")/gorilla.sh"
