#!/usr/bin/env bash
# Checks the settings of this machine that matter to a Fanfare server or its load generator and,
# with --apply, changes them. README.md beside this file says why, for each.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: tune.sh [--check | --apply] [--connections N] [--cores LIST]

  --check          Compare with the recommendations; change nothing. This is the default.
                   Exit code: 1 if something is below the recommendation, 0 otherwise.
  --apply          Also change what is below (needs root), and print each change with the
                   command that undoes it. Exit code: 1 if something stays below.
  --connections N  Connections to make room for [default: 10000].
  --cores LIST     Cores of the shards, such as 2-7 or 0,2,4: checked for interrupts and
                   placement; with --apply, interrupts move away from them.

Kernel settings that --apply changes last until the next start of the machine. Values that
cannot be read, as in some containers, are reported and count neither way.
USAGE
}

apply=0
connections=10000
cores=
while (($# > 0)); do
    case $1 in
    --check) apply=0 ;;
    --apply) apply=1 ;;
    --connections | --cores)
        if (($# < 2)); then
            echo "tune.sh: $1 needs a value" >&2
            exit 2
        fi
        if [[ $1 == --cores ]]; then cores=$2; else connections=$2; fi
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "tune.sh: unknown argument $1; see tune.sh --help" >&2
        exit 2
        ;;
    esac
    shift
done
if [[ ! $connections =~ ^[1-9][0-9]{0,7}$ ]]; then
    echo "tune.sh: --connections takes a number from 1 to 99999999, not '$connections'" >&2
    exit 2
fi
if [[ -n $cores && ! $cores =~ ^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$ ]]; then
    echo "tune.sh: --cores takes a list such as 0,1 or 2-7, not '$cores'" >&2
    exit 2
fi
if ((apply)) && ((EUID != 0)); then
    echo "tune.sh: --apply needs root; run it with sudo" >&2
    exit 2
fi

readonly LIMITS_FILE=/etc/security/limits.d/90-fanfare.conf
below=0
unknown=0
undo=()
persist=()

# line STATE NAME TEXT
line() { printf '%-8s %-30s %s\n' "$1" "$2" "$3"; }
good() { line ok "$1" "$2"; }
note() { line note "$1" "$2"; }
low() {
    line LOW "$1" "$2"
    below=$((below + 1))
}
unreadable() {
    line unknown "$1" "cannot be read here: ${2:-a container may hide it; ask the host}"
    unknown=$((unknown + 1))
}
# changed NAME TEXT UNDO
changed() {
    line CHANGED "$1" "$2"
    line '' '' "undo: $3"
    undo+=("$3")
}

# write FILE VALUE: false if the kernel or the container refuses it.
write() { { printf '%s\n' "$2" >"$1"; } 2>/dev/null; }

# The numbers of a kernel setting with single spaces between them; false if it has none.
read_numbers() {
    local value
    value=$(cat "$1" 2>/dev/null) || return 1
    value=$(tr -s '[:space:]' ' ' <<<"$value")
    value=${value% }
    [[ $value =~ ^-?[0-9]+( -?[0-9]+)*$ ]] || return 1
    echo "$value"
}

# sysctl_key NAME COMPARE WANT...: NAME in dots; COMPARE has one sign for each number of it: `+`
# wants at least that much, `-` at most, `.` any. A number that is too low or too high is
# replaced, the others are kept.
sysctl_key() {
    local name=$1 compare=$2 file now value i short=0
    shift 2
    local -a want=("$@") have
    file=/proc/sys/${name//.//}
    if ! now=$(read_numbers "$file"); then
        unreadable "$name" ''
        return
    fi
    read -ra have <<<"$now"
    if ((${#have[@]} != ${#want[@]})); then
        unreadable "$name" "it has ${#have[@]} numbers, not ${#want[@]}"
        return
    fi
    for i in "${!want[@]}"; do
        case ${compare:i:1} in
        +) if ((have[i] < want[i])); then have[i]=${want[i]} short=1; fi ;;
        -) if ((have[i] > want[i])); then have[i]=${want[i]} short=1; fi ;;
        *) ;;
        esac
    done
    value=${have[*]}
    if ((short == 0)); then
        good "$name" "$now"
    elif ((apply == 0)); then
        low "$name" "$now; recommended $value: sysctl -w $name='$value'"
    elif write "$file" "$value" && [[ $(read_numbers "$file") == "$value" ]]; then
        changed "$name" "$now -> $value" "sysctl -w $name='$now'"
        persist+=("$name = $value")
    else
        low "$name" "$now; could not be set to $value: is this a container?"
    fi
}

# The cores of a list such as 0,2-4, one a line.
expand() {
    local part
    for part in ${1//,/ }; do
        seq "${part%-*}" "${part#*-}"
    done
}

# Those of the first list that are not in the second, with commas.
without() {
    comm -23 <(expand "$1" | sort -u) <(expand "$2" | sort -u) | sort -n | paste -sd, -
}

# Those that are in both.
common() {
    comm -12 <(expand "$1" | sort -u) <(expand "$2" | sort -u) | sort -n | paste -sd, -
}

# enough VALUE WANT
enough() { [[ $1 == unlimited ]] || (($1 >= $2)); }

# process_limits: a script cannot raise the limits of its caller, so --apply sets those of the
# next login.
process_limits() {
    local nofile memlock want_nofile want_memlock short=0 shards
    nofile=$(ulimit -Sn)
    memlock=$(ulimit -Sl)
    want_nofile=$((connections + 1024))
    shards=$(nproc)
    if [[ -n $cores ]]; then shards=$(expand "$cores" | sort -u | wc -l); fi
    want_memlock=$((shards > 8 ? shards * 1024 : 8192))
    if enough "$nofile" "$want_nofile"; then
        good "open files (nofile)" "$nofile"
    else
        low "open files (nofile)" "$nofile; recommended $want_nofile: ulimit -n $want_nofile"
        short=1
    fi
    if enough "$memlock" "$want_memlock"; then
        good "locked memory (memlock)" "$memlock KiB"
    else
        low "locked memory (memlock)" "$memlock KiB; recommended $want_memlock KiB: ulimit -l $want_memlock"
        short=1
    fi
    sysctl_key fs.nr_open + "$want_nofile"
    if ((short == 0)); then
        return
    fi
    line '' '' "for a systemd unit: LimitNOFILE=$want_nofile LimitMEMLOCK=${want_memlock}K"
    if ((apply == 0)); then
        return
    fi
    if [[ -e $LIMITS_FILE ]]; then
        note "limits of logins" "$LIMITS_FILE is there and stays as it is; log in again to get it"
    elif [[ ! -d ${LIMITS_FILE%/*} ]]; then
        note "limits of logins" "no ${LIMITS_FILE%/*} here: set the limits where the server is started"
    elif write "$LIMITS_FILE" "$(
        # PAM leaves root out of `*`.
        for who in '*' root; do
            printf '%s - nofile %s\n%s - memlock %s\n' \
                "$who" "$want_nofile" "$who" "$want_memlock"
        done
    )"; then
        changed "limits of logins" "wrote $LIMITS_FILE; log in again, then check" "rm $LIMITS_FILE"
    else
        note "limits of logins" "$LIMITS_FILE cannot be written"
    fi
}

listening() {
    sysctl_key net.core.somaxconn + 4096
    sysctl_key net.ipv4.tcp_max_syn_backlog + 4096
    # Only load generators and other clients take their ports from it.
    sysctl_key net.ipv4.ip_local_port_range -+ 10240 65535
}

tcp_buffers() {
    local page pages_total high limit
    sysctl_key net.core.wmem_max + 262144
    sysctl_key net.ipv4.tcp_wmem ..+ 4096 16384 4194304
    sysctl_key net.ipv4.tcp_rmem ..+ 4096 131072 4194304
    # Room for 64 KiB on the way to each connection, and never more than a quarter of memory.
    page=$(getconf PAGESIZE)
    pages_total=$(awk -v page="$page" '/^MemTotal:/ { printf "%d", $2 * 1024 / page }' \
        /proc/meminfo 2>/dev/null) || pages_total=
    if [[ -z $pages_total ]]; then
        unreadable net.ipv4.tcp_mem "/proc/meminfo is not there"
        return
    fi
    high=$((connections * 65536 / page))
    limit=$((pages_total / 4))
    if ((high > limit)); then
        note net.ipv4.tcp_mem "64 KiB for each of $connections connections are more than a quarter of memory"
        high=$limit
    fi
    sysctl_key net.ipv4.tcp_mem +++ $((high / 2)) $((high * 2 / 3)) "$high"
}

io_uring() {
    local value group
    if ! value=$(read_numbers /proc/sys/kernel/io_uring_disabled); then
        # The setting came with Linux 6.6.
        note kernel.io_uring_disabled "not there, or hidden: before 6.6 io_uring is on if the kernel was built with it"
        return
    fi
    group=$(read_numbers /proc/sys/kernel/io_uring_group) || group=-1
    case $value in
    0) good kernel.io_uring_disabled 0 ;;
    1) low kernel.io_uring_disabled "1: only root and the group $group; sysctl -w kernel.io_uring_group=GID, or kernel.io_uring_disabled=0" ;;
    *) low kernel.io_uring_disabled "$value: nobody may use io_uring; if your policy allows it, sysctl -w kernel.io_uring_disabled=0" ;;
    esac
}

# Interrupts that fired often enough since the start of the machine to matter.
busy_interrupts() {
    awk '$1 ~ /^[0-9]+:$/ {
        sum = 0
        for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i
        if (sum >= 1000) { sub(":", "", $1); print $1, $NF }
    }' /proc/interrupts
}

interrupts() {
    local online=$1 rest irq device file now actual moved=0 on=0 stuck=0
    if [[ ! -r /proc/interrupts ]]; then
        unreadable interrupts ''
        return
    fi
    if [[ -z $cores ]]; then
        note interrupts "not checked; give the cores of the shards by --cores"
        return
    fi
    rest=$(without "$online" "$cores")
    if [[ -z $rest ]]; then
        note interrupts "the shards have all cores, so there is none to move interrupts to"
        return
    fi
    while read -r irq device; do
        file=/proc/irq/$irq/smp_affinity_list
        if ! now=$(cat "$file" 2>/dev/null); then
            unreadable "interrupt $irq ($device)" ''
            stuck=$((stuck + 1))
            continue
        fi
        # Where it is delivered, which is often one core of those it is allowed on.
        actual=$(cat "/proc/irq/$irq/effective_affinity_list" 2>/dev/null) || actual=$now
        actual=${actual:-$now}
        if [[ -z $(common "$actual" "$cores") ]]; then
            continue
        fi
        if [[ $device =~ (^nvme|-req\.[0-9]+$) ]]; then
            # A commit ends sooner where the shard itself takes the interrupt; see README.md.
            note "interrupt $irq ($device)" "on core $actual of a shard; a disk's may stay there"
            stuck=$((stuck + 1))
        elif ((apply)) && write "$file" "$rest"; then
            changed "interrupt $irq ($device)" "$now -> $rest" "echo $now > $file"
            moved=$((moved + 1))
        elif ((apply)); then
            # Block devices and many network cards with a queue per core fix theirs.
            note "interrupt $irq ($device)" "on $actual; the kernel does not let it be moved"
            stuck=$((stuck + 1))
        else
            low "interrupt $irq ($device)" "on core $actual of a shard: echo $rest > $file"
            on=$((on + 1))
        fi
    done < <(busy_interrupts)
    if ((moved + on + stuck == 0)); then
        good interrupts "none that matters on the cores $cores"
    fi
    # By name of the process, read from /proc, so that no tool has to be installed.
    if grep -qsx irqbalance /proc/[0-9]*/comm; then
        note irqbalance "runs and may move interrupts back: ban the cores $cores in its configuration (IRQBALANCE_BANNED_CPULIST=$cores)"
    fi
}

placement() {
    local online=$1 missing core sibling siblings allowed shared=
    allowed=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status 2>/dev/null) || allowed=
    if [[ -n $allowed && $allowed != "$online" ]]; then
        note "cores of this process" "$allowed of $online: a container or taskset leaves out the others"
    fi
    if [[ -z $cores ]]; then
        return
    fi
    missing=$(without "$cores" "${allowed:-$online}")
    if [[ -n $missing ]]; then
        low "core placement" "the cores $missing are not there or not allowed; choose from ${allowed:-$online}"
        return
    fi
    for core in $(expand "$cores" | sort -un); do
        siblings=$(cat "/sys/devices/system/cpu/cpu$core/topology/thread_siblings_list" 2>/dev/null) || continue
        for sibling in $(expand "$(common "$siblings" "$cores")"); do
            if ((sibling > core)); then shared+=" $core+$sibling"; fi
        done
    done
    if [[ -n $shared ]]; then
        low "core placement" "two shards would share a physical core:$shared; give one thread of each"
    else
        good "core placement" "$cores, each a physical core of its own"
    fi
    if [[ -n $(without "$online" "$cores") ]]; then
        return
    fi
    note "core placement" "no core is left for interrupts and other processes"
}

governor() {
    local file core value found=0 slow=
    for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
        value=$(cat "$file" 2>/dev/null) || continue
        found=1
        core=${file#*/cpu/cpu}
        if [[ $value != performance ]]; then slow+=" ${core%%/*}=$value"; fi
    done
    if ((found == 0)); then
        note "CPU frequency governor" "none here: a virtual machine leaves it to its host"
    elif [[ -n $slow ]]; then
        low "CPU frequency governor" "core${slow}; recommended: cpupower frequency-set -g performance"
    else
        good "CPU frequency governor" performance
    fi
}

online=$(cat /sys/devices/system/cpu/online 2>/dev/null) || online=0-$(($(nproc) - 1))

process_limits
listening
tcp_buffers
io_uring
interrupts "$online"
placement "$online"
governor

echo
if ((${#persist[@]} > 0)); then
    echo "To keep the kernel settings over a restart, put these into /etc/sysctl.d/90-fanfare.conf:"
    printf '  %s\n' "${persist[@]}"
fi
if ((${#undo[@]} > 0)); then
    echo "To undo all of it:"
    printf '  %s\n' "${undo[@]}"
fi
if ((unknown > 0)); then
    echo "$unknown values could not be read."
fi
if ((below > 0)); then
    echo "$below below the recommendation."
    exit 1
fi
if ((unknown > 0)); then
    echo "Nothing that could be read is below the recommendation."
else
    echo "Nothing is below the recommendation."
fi
