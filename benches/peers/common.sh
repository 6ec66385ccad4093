# Sourced by each peer's script. A script is called as
#
#   NAME.sh install      fetch and build what is missing (Debian's packages need root)
#   NAME.sh about        version and configuration
#   NAME.sh serve PORT   become the server, on 127.0.0.1:PORT and the core that CORE names (0)
#   NAME.sh clean        remove what was fetched, built and written here; packages stay
#
# and defines about, install and serve. Everything fetched or written is under target/peers.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "$0" .sh)
home=$(cd "$here/../.." && pwd)/target/peers/$name
core=${CORE:-0}

# Installs Debian's packages that are not there.
debian() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] || apt-get install -y --no-install-recommends "${missing[@]}" >&2
}

package_version() {
    dpkg-query -W -f '${Package} ${Version}\n' "$@"
}

# A fresh folder for what the server on this port writes.
data() {
    rm -rf "$home/data-$port"
    mkdir -p "$home/data-$port"
    cd "$home/data-$port"
}

# Becomes the server, so that its process is the one that was started.
pinned() {
    ulimit -n "$(ulimit -Hn)"
    exec taskset -c "$core" "$@"
}

main() {
    mkdir -p "$home"
    case "${1:-}" in
        install) install ;;
        about) about ;;
        serve)
            port=${2:?"a port, e.g. $name.sh serve 7471"}
            data
            serve
            ;;
        clean) rm -rf "$home" ;;
        *)
            sed -n '3,6s/^# *//p' "$here/common.sh" >&2
            exit 2
            ;;
    esac
}
