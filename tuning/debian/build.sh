#!/usr/bin/env bash
# Builds the Debian package with cargo-deb (`cargo install cargo-deb`): the program, man pages,
# completions, the service, and a configuration to begin with. PROFILE=sim builds it sooner.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-release}
cargo build --locked --profile "$profile" --bin fanfare
fanfare=target/$profile/fanfare
made=target/package
rm -rf "$made"
mkdir -p "$made/man"
"$fanfare" man "$made/man"
gzip -9n "$made"/man/*.1
"$fanfare" completions bash >"$made/fanfare.bash"
"$fanfare" completions zsh >"$made/_fanfare"
"$fanfare" completions fish >"$made/fanfare.fish"
cargo deb --no-build --locked --profile "$profile" "$@"
