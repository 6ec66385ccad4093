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

# instructions MEMBERS MESSAGES ROUNDS [MORE ...]: all of them, and those that are spent in the
# harness's sockets, disk and clock and what these call.
instructions() {
    local data="$out/callgrind.out"
    valgrind --tool=callgrind --callgrind-out-file="$data" "$binary" \
        --members "$1" --messages "$2" --rounds "$3" "${@:4}" >"$out/last.log" 2>&1 ||
        { cat "$out/last.log" >&2; exit 1; }
    local all world
    all=$(sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$data" | tail -1)
    world=$(callgrind_annotate --auto=no --inclusive=yes --threshold=100 "$data" 2>/dev/null |
        awk '/World as .*Io>::/ {
            # A function is there once for each file that was inlined into it; the largest entry
            # is the one with all that it calls.
            gsub(",", "", $1); name = $0; sub(/.*Io>::/, "", name); sub(/ .*/, "", name)
            if ($1 + 0 > most[name]) most[name] = $1 + 0
        } END { for (name in most) sum += most[name]; print sum + 0 }')
    echo "$all $world"
}

# per_write MEMBERS MESSAGES [MORE ...]: instructions of the engine and of the harness per write.
per_write() {
    local few many
    few=($(instructions "$1" "$2" 10 "${@:3}"))
    many=($(instructions "$1" "$2" 30 "${@:3}"))
    local all=$((many[0] - few[0])) world=$((many[1] - few[1])) writes=$((20 * $1))
    echo "$(((all - world) / writes)) $((world / writes))"
}

{
    echo "# Instructions of our own code per write"
    echo
    echo "- command: \`benches/instructions.sh\`"
    echo "- commit: $(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD || echo ' (changed)'), \
$(rustc --version), $(valgrind --version), $(date -u +%F)"
    echo "- one write is one member in one turn; the whole path of the messages is in it by its share;"
    echo "  the driver is not. What the harness does in the driver's place, its functions and what"
    echo "  they call by callgrind's attribution, is told apart"
    echo
    echo "| members | messages a write | instructions a write | of the harness beside |"
    echo "| --- | --- | --- | --- |"
    for load in "10000 1" "1000 1" "1000 64" "1000 512" "1000 1024"; do
        read -r members messages <<<"$load"
        read -r engine harness <<<"$(per_write "$members" "$messages")"
        echo "| $members | $messages | $engine | $harness |"
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
            read -r engine harness <<<"$(per_write 1000 $messages --foreign $share)"
            row="$row $engine |"
        done
        echo "$row"
    done
} | tee "$out/instructions.md"
rm -f "$out/last.log" "$out/callgrind.out"
