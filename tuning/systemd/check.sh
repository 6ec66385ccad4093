#!/usr/bin/env bash
# Runs the units of this folder under a systemd of its own, in namespaces: nothing of the host's
# systemd, users or files is touched. Start, load, reload, crash, stop, and fanfare@b taking over from
# fanfare@a. Needs root, systemd, and cgroups that may be written. Takes BIN, else target/release.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$(realpath "${BIN:-target/release}")
dir=$(mktemp -d)
port=17495
name=fanfare-check-$$
hierarchy=/sys/fs/cgroup/systemd
[ -d "$hierarchy" ] || hierarchy=/sys/fs/cgroup
mkdir "$hierarchy/$name"

cat >"$dir/init" <<INIT
#!/bin/bash
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir/over"
for of in usr/bin etc var/lib; do
    mkdir -p "$dir/over/\$of/up" "$dir/over/\$of/work"
    mount -t overlay overlay \
        -o "lowerdir=/\$of,upperdir=$dir/over/\$of/up,workdir=$dir/over/\$of/work" "/\$of"
done
mount -t proc proc /proc
# The group of this script is the root of what systemd sees.
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    # No place for the other hierarchies, whose roots are the host's.
    mount -o remount,ro /sys/fs/cgroup
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t tmpfs tmpfs /run
groupadd --system fanfare
useradd --system --gid fanfare --no-create-home fanfare
cp "$bin/fanfare" /usr/bin/fanfare
mkdir -p /etc/fanfare /run/lock
printf 'listen = "127.0.0.1:$port"\nshards = 2\n' >/etc/fanfare/fanfare.toml
rm -rf /etc/systemd/system
mkdir /etc/systemd/system
cp "$PWD"/tuning/systemd/*.service /etc/systemd/system/
# Nothing else of the host is to start.
for unit in fanfare fanfare@; do
    mkdir "/etc/systemd/system/\$unit.service.d"
    printf '[Unit]\nDefaultDependencies=no\nWants=\n' >"/etc/systemd/system/\$unit.service.d/alone.conf"
done
printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/check.target
export container=check
exec /lib/systemd/systemd --system --unit=check.target --log-target=null --show-status=0
INIT
chmod +x "$dir/init"
mkdir "$dir/over"
sh -c "echo \$\$ >$hierarchy/$name/cgroup.procs &&
    exec unshare --mount --pid --fork --uts --ipc --cgroup $dir/init" 2>/dev/null &
unshare=$!
init=
in_it() { timeout 60 nsenter -t "$init" -m -p -u -i -C "$@"; }
# What is in its pid namespace ends with its first process.
cleanup() {
    [ -z "$init" ] || kill -9 "$init" 2>/dev/null || true
    wait "$unshare" 2>/dev/null || true
    sleep 0.2
    find "$hierarchy/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
for _ in $(seq 100); do
    init=$(pgrep -P "$unshare" || true)
    [ -n "$init" ] && in_it systemctl is-active --quiet check.target 2>/dev/null && break
    sleep 0.1
done

main() { in_it systemctl show --value -p MainPID "$1"; }
load() {
    for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
    "$bin/loadgen" fanout --members 300 --duration 1s --addr "127.0.0.1:$port" 2>/dev/null | tail -n 1
}
until_active() {
    for _ in $(seq 100); do in_it systemctl is-active --quiet "$1" && return; sleep 0.1; done
    echo "$1 is not active"
    exit 1
}
show() { in_it systemctl show "$1" -p ActiveState,Result,ExecMainStatus,NRestarts | paste -sd ' '; }

/lib/systemd/systemd --version | head -n 1
in_it systemctl start fanfare
echo "start:            $(show fanfare)"
in_it grep -E '^(Seccomp|NoNewPrivs|CapEff)' "/proc/$(main fanfare)/status" | paste -sd ' '
verified=$(load)
echo "load:             $verified"
in_it systemctl reload fanfare
echo "reload:           $(show fanfare)"
in_it kill -9 "$(main fanfare)"
sleep 2
until_active fanfare
echo "kill -9:          $(show fanfare)"
verified=$(load)
echo "load:             $verified"
in_it systemctl stop fanfare
echo "stop:             $(show fanfare)"
in_it systemctl start fanfare@a
echo "fanfare@a:        $(show fanfare@a)"
in_it systemctl start fanfare@b
for _ in $(seq 100); do in_it systemctl is-active --quiet fanfare@a || break; sleep 0.1; done
until_active fanfare@b
echo "it handed over:   $(show fanfare@a)"
echo "fanfare@b:        $(show fanfare@b)"
verified=$(load)
echo "load:             $verified"
in_it systemctl stop fanfare@b
echo "stop:             $(show fanfare@b)"
in_it systemd-analyze security fanfare --no-pager | tail -n 1
