#!/usr/bin/env bash
# Breaks the engine on purpose, one mistake at a time, and shows that the simulator sees each.
#
#   tests/mutants/run.sh [NAME...]        all, or those named; prints a table
#
# Each *.patch here begins with what it breaks, the kinds of worlds that should show it, and how
# many seeds each may need. It is applied to a copy of the tree, which has a target directory of
# its own (MUTANTS_DIR, else a new one in TMPDIR), so the tree is never touched. The build is a
# quick one without debug assertions: an assertion inside the engine would hide whether clients
# can see the mistake. The exit code is 1 if a mutant survived, 2 if one could not be built.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${MUTANTS_DIR:-$(mktemp -d)}
mkdir -p "$work/tree"
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR="$work/target"
export CARGO_PROFILE_SIM_OPT_LEVEL=1 CARGO_PROFILE_SIM_DEBUG_ASSERTIONS=false

# copy: brings the copy of the tree to the state of the tree, without touching files that are the
# same, so that little is built again.
copy() {
    local file
    (cd "$root" && git ls-files --cached --others --exclude-standard) | while read -r file; do
        [[ -f $root/$file ]] || continue
        cmp -s "$root/$file" "$work/tree/$file" && continue
        mkdir -p "$(dirname "$work/tree/$file")"
        cp "$root/$file" "$work/tree/$file"
    done
}

build() {
    (cd "$work/tree" && cargo build --quiet --profile sim --example sim) 2>"$work/build.log"
}

field() { sed -n "s/^$2: //p" "$1" | head -n 1; }

if (($# > 0)); then
    patches=("${@/#/$here/}")
    patches=("${patches[@]/%/.patch}")
else
    patches=("$here"/*.patch)
fi

# What fails without any mistake says nothing about one.
copy
if ! build; then
    echo "the tree does not build: $work/build.log" >&2
    exit 2
fi
cp "$work/target/sim/examples/sim" "$work/sound"

survivors=0 broken=0
echo '| mutant | what is broken | seen by | seeds run | allowed |'
echo '|---|---|---|---|---|'
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    what=$(field "$patch" what) seeds=$(field "$patch" seeds) seen='' count=0
    copy
    if ! patch --quiet --forward -d "$work/tree" -p1 <"$patch" >"$work/patch.log" 2>&1; then
        echo "| $name | $what | DOES NOT APPLY | | |"
        broken=$((broken + 1))
        continue
    fi
    if ! build; then
        echo "| $name | $what | DOES NOT BUILD | | |"
        broken=$((broken + 1))
        continue
    fi
    for profile in $(field "$patch" profiles); do
        from=1
        while [[ -z $seen ]] && ((from <= seeds)); do
            out=$(timeout 600 "$work/target/sim/examples/sim" --first-only --profile "$profile" \
                --from "$from" --seeds $((seeds - from + 1)) 2>/dev/null) || true
            n=$(sed -n 's/^killed by .* seed \([0-9]*\) after .*$/\1/p' <<<"$out")
            [[ -n $n ]] || break
            count=$((count + n - from + 1)) from=$((n + 1))
            if "$work/sound" --first-only --profile "$profile" --from "$n" --seeds 1 \
                >/dev/null 2>&1; then
                seen="$profile seed $n"
            fi
        done
        [[ -z $seen ]] || break
        count=$((count + seeds - from + 1))
    done
    if [[ -z $seen ]]; then
        seen='**survived**'
        survivors=$((survivors + 1))
    fi
    echo "| $name | $what | $seen | $count | $seeds |"
done
((broken == 0)) || exit 2
((survivors == 0))
