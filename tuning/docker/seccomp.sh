#!/usr/bin/env bash
# Writes seccomp.json beside this script: the default profile of Docker (from the file given, or
# downloaded from moby's repository) with the three calls of io_uring allowed.
set -euo pipefail
here=$(dirname "$0")
url=https://raw.githubusercontent.com/moby/profiles/main/seccomp/default.json
profile=$(if (($# > 0)); then cat "$1"; else curl --fail --silent --show-error --location "$url"; fi)
jq '.syscalls += [{
    "names": ["io_uring_enter", "io_uring_register", "io_uring_setup"],
    "action": "SCMP_ACT_ALLOW"
}]' <<<"$profile" >"$here/seccomp.json"
echo "$here/seccomp.json"
