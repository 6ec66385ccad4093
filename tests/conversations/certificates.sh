#!/bin/sh
# An authority, and a certificate of it for a server on this machine: ca.pem, cert.pem and key.pem in
# the folder. They are made anew when they are more than a day old. For tests: whoever reads the
# folder can be that server.
#
#   tests/conversations/certificates.sh FOLDER
set -eu
mkdir -p "$1"
cd "$1"
[ -z "$(find . -name cert.pem -mtime -1)" ] || exit 0
new="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30"
# shellcheck disable=SC2086
openssl req -x509 $new -subj "/CN=an authority" -addext "keyUsage=critical,keyCertSign" \
    -keyout ca-key.pem -out ca.pem 2>log || { cat log >&2; exit 1; }
# shellcheck disable=SC2086
openssl req -x509 $new -subj "/CN=a server" -CA ca.pem -CAkey ca-key.pem \
    -addext "basicConstraints=critical,CA:FALSE" -addext "extendedKeyUsage=serverAuth" \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" \
    -keyout key.pem -out cert.pem 2>log || { cat log >&2; exit 1; }
