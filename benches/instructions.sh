#!/usr/bin/env bash
# Instructions of the engine's own code per write, by callgrind: counts that come out the same on
# every machine. Two runs that differ only in their broadcasts are subtracted, so start-up, joins
# and the end do not count. Usage: benches/instructions.sh [out-dir]; needs valgrind.
set -eu
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
mkdir -p "$out"
binary=${BINARY:-$(cargo bench --bench instructions --no-run --message-format=json 2>/dev/null |
    grep -o '"executable":"[^"]*instructions-[^"]*"' | cut -d'"' -f4)}

# instructions WHAT MEMBERS MESSAGES ROUNDS [MORE ...]
instructions() {
    local data="$out/callgrind-$1-$2-$3-$4.out"
    valgrind --tool=callgrind --callgrind-out-file="$data" "$binary" \
        "$1" --members "$2" --messages "$3" --rounds "$4" "${@:5}" >"$out/last.log" 2>&1 ||
        { cat "$out/last.log" >&2; exit 1; }
    sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$data" | tail -1
}

{
    echo "# Instructions of our own code per write"
    echo
    echo "- command: \`benches/instructions.sh\`"
    echo "- commit: $(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD || echo ' (changed)'), \
$(rustc --version), $(valgrind --version), $(date -u +%F)"
    echo "- one write is one member in one turn; the shard's part holds the whole path of the"
    echo "  messages, by the share of a write; the driver's part is queueing, completion, and the"
    echo "  calls into the kernel"
    echo
    echo "| members | messages a write | shard | driver | together |"
    echo "| --- | --- | --- | --- | --- |"
    for load in "10000 1" "1000 1" "1000 64" "1000 512" "1000 1024"; do
        read -r members messages <<<"$load"
        for what in shard driver; do
            # The sockets of a process are bounded by its open files.
            count=$members
            [ "$what" = driver ] && [ "$count" -gt 1000 ] && count=1000
            few=$(instructions $what "$count" "$messages" 10)
            many=$(instructions $what "$count" "$messages" 30)
            declare $what=$(((many - few) / (20 * count)))
        done
        echo "| $members | $messages | $shard | $driver | $((shard + driver)) |"
    done
    echo
    echo "Two shards, 1,000 members, instructions of both per write, by the share of the members that"
    echo "are not on the group's own shard; what the driver takes for a wake-up is not in it:"
    echo
    echo "| messages a write | 0 % | 50 % | 100 % |"
    echo "| --- | --- | --- | --- |"
    for messages in 1 64; do
        row="| $messages |"
        for share in 0 50 100; do
            few=$(instructions shard 1000 $messages 10 --foreign $share)
            many=$(instructions shard 1000 $messages 30 --foreign $share)
            row="$row $(((many - few) / (20 * 1000))) |"
        done
        echo "$row"
    done
} | tee "$out/instructions.md"
rm -f "$out/last.log" "$out"/callgrind-*
