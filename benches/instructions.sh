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

# instructions MEMBERS MESSAGES ROUNDS [MORE ...]
instructions() {
    local data="$out/callgrind.out"
    valgrind --tool=callgrind --callgrind-out-file="$data" "$binary" \
        --members "$1" --messages "$2" --rounds "$3" "${@:4}" >"$out/last.log" 2>&1 ||
        { cat "$out/last.log" >&2; exit 1; }
    sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$data" | tail -1
}

{
    echo "# Instructions of our own code per write"
    echo
    echo "- command: \`benches/instructions.sh\`"
    echo "- commit: $(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD || echo ' (changed)'), \
$(rustc --version), $(valgrind --version), $(date -u +%F)"
    echo "- one write is one member in one turn; the whole path of the messages is in it by its share,"
    echo "  and so is what the world of the harness does for a write; the driver is not"
    echo
    echo "| members | messages a write | instructions a write |"
    echo "| --- | --- | --- |"
    for load in "10000 1" "1000 1" "1000 64" "1000 512" "1000 1024"; do
        read -r members messages <<<"$load"
        few=$(instructions "$members" "$messages" 10)
        many=$(instructions "$members" "$messages" 30)
        echo "| $members | $messages | $(((many - few) / (20 * members))) |"
    done
    echo
    echo "Two shards, 1,000 members, instructions of both per write, by the share of the members that"
    echo "are not on the group's own shard:"
    echo
    echo "| messages a write | 0 % | 50 % | 100 % |"
    echo "| --- | --- | --- | --- |"
    for messages in 1 64; do
        row="| $messages |"
        for share in 0 50 100; do
            few=$(instructions 1000 $messages 10 --foreign $share)
            many=$(instructions 1000 $messages 30 --foreign $share)
            row="$row $(((many - few) / (20 * 1000))) |"
        done
        echo "$row"
    done
} | tee "$out/instructions.md"
rm -f "$out/last.log" "$out/callgrind.out"
