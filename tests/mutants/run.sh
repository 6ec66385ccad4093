#!/usr/bin/env bash
# Breaks the engine on purpose, one mistake at a time, and shows that the simulator sees each.
#
#   tests/mutants/run.sh [NAME...]        all, or those named; prints a table
#
# Each *.patch here begins with what it breaks, the kinds of worlds that should show it, and how
# many seeds each may need. It is applied to a copy of the tree, which has a target directory of
# its own (in MUTANTS_DIR, else in a new one in TMPDIR), so the tree is never touched. MUTANTS_JOBS
# copies are worked on side by side (1 unless set). The build is a quick one without debug
# assertions: an assertion inside the engine would hide whether clients can see the mistake. The
# exit code is 1 if a mutant survived, 2 if one could not be built.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${MUTANTS_DIR:-$(mktemp -d)}
jobs=${MUTANTS_JOBS:-1}
export CARGO_TERM_COLOR=never
export CARGO_PROFILE_SIM_OPT_LEVEL=1 CARGO_PROFILE_SIM_DEBUG_ASSERTIONS=false

# copy DIR: brings the copy of the tree in DIR to the state of the tree, without touching files that
# are the same, so that little is built again.
copy() {
    local file
    (cd "$root" && git ls-files --cached --others --exclude-standard) | while read -r file; do
        [[ -f $root/$file ]] || continue
        cmp -s "$root/$file" "$1/tree/$file" && continue
        mkdir -p "$(dirname "$1/tree/$file")"
        cp "$root/$file" "$1/tree/$file"
    done
}

# build DIR: with many small units of code, so that little of it is compiled again.
build() {
    (cd "$1/tree" && CARGO_TARGET_DIR="$1/target" cargo build --quiet --profile sim --example sim \
        --config profile.sim.package.fanfare.codegen-units=256) 2>"$1/build.log"
}

field() { sed -n "s/^$2: //p" "$1" | head -n 1; }

# row DIR PATCH: works in DIR; prints the row of the mutant.
row() {
    local dir=$1 patch=$2 seen='' count=0 most='' name what seeds profile from out n rc
    name=$(basename "$patch" .patch) what=$(field "$patch" what) seeds=$(field "$patch" seeds)
    copy "$dir"
    if ! patch --quiet --forward -d "$dir/tree" -p1 <"$patch" >"$dir/patch.log" 2>&1; then
        echo "| $name | $what | DOES NOT APPLY | | |"
        return
    fi
    if ! build "$dir"; then
        echo "| $name | $what | DOES NOT BUILD | | |"
        return
    fi
    for profile in $(field "$patch" profiles); do
        from=1
        while [[ -z $seen ]] && ((from <= seeds)); do
            out=$(timeout 300 "$dir/target/sim/examples/sim" --first-only --profile "$profile" \
                --from "$from" --seeds $((seeds - from + 1)) 2>/dev/null) && rc=0 || rc=$?
            # The time was up before all seeds were run.
            ((rc != 124)) || most='at most '
            n=$(sed -n 's/^killed by .* seed \([0-9]*\) after .*$/\1/p' <<<"$out")
            [[ -n $n ]] || break
            count=$((count + n - from + 1)) from=$((n + 1))
            # What fails without any mistake says nothing about one.
            if "$work/sound" --first-only --profile "$profile" --from "$n" --seeds 1 \
                >/dev/null 2>&1; then
                seen="$profile seed $n"
            fi
        done
        [[ -z $seen ]] || break
        count=$((count + seeds - from + 1))
    done
    echo "| $name | $what | ${seen:-**survived**} | $most$count | $seeds |"
}

if (($# > 0)); then
    patches=("${@/#/$here/}")
    patches=("${patches[@]/%/.patch}")
else
    patches=("$here"/*.patch)
fi

mkdir -p "$work/1/tree"
copy "$work/1"
if ! build "$work/1"; then
    echo "the tree does not build: $work/1/build.log" >&2
    exit 2
fi
cp "$work/1/target/sim/examples/sim" "$work/sound"

rm -f "$work"/rows.*
for job in $(seq "$jobs"); do
    (
        dir=$work/$job
        if [[ ! -d $dir/tree ]]; then
            mkdir -p "$dir/tree"
            # What the crate depends on need not be built once more.
            cp -a "$work/1/target" "$dir/target"
        fi
        for ((at = job - 1; at < ${#patches[@]}; at += jobs)); do
            row "$dir" "${patches[at]}" | tee -a "$work/rows.$job" >&2
        done
    ) &
done
wait
echo "At commit $(git -C "$root" describe --always --dirty):"
echo
echo '| mutant | what is broken | seen by | seeds run | allowed |'
echo '|---|---|---|---|---|'
cat "$work"/rows.* | LC_ALL=C sort
if grep -q 'DOES NOT' "$work"/rows.*; then
    exit 2
fi
! grep -q 'survived' "$work"/rows.*
