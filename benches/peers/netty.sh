#!/bin/bash
# WebSocket: a Java server on Netty's ChannelGroup, Debian's libnetty-java.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
jars=$(printf '/usr/share/java/netty-%s.jar:' buffer codec codec-http common handler resolver transport)

install() {
    debian libnetty-java default-jdk-headless
    [ "$home/Broadcast.class" -nt "$here/Broadcast.java" ] ||
        javac -cp "$jars" -d "$home" "$here/Broadcast.java"
}

about() {
    package_version libnetty-java
    java -version 2>&1 | head -1
    echo "benches/peers/Broadcast.java: NIO, a ChannelGroup per room, writeAndFlush; JVM defaults"
}

serve() { pinned java -cp "$jars$home" Broadcast "$port"; }

main "$@"
