//! What it costs to check a token, by algorithm: `cargo bench --bench tokens`.
#![allow(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "../tests/common/tokens.rs"]
mod tokens;

use divan::{Bencher, black_box};
use fanfare::auth::{CachedRights, Expected, Keys, Rights};
use serde_json::json;
use tokens::{Issuer, now_s};

fn main() {
    divan::main();
}

fn check(bencher: Bencher<'_, '_>, issuer: &Issuer) {
    let keys = Keys::parse(issuer.key_file().as_bytes(), &Expected::default()).unwrap();
    let rights = json!({"join": ["room.*", "news"], "publish": ["room.*"]});
    let token = issuer.token("ann", 3600, rights);
    let now_ms = now_s() * 1000;
    bencher.bench(|| keys.check(black_box(token.as_bytes()), b"ann", now_ms).unwrap());
}

#[divan::bench]
fn hs256(bencher: Bencher<'_, '_>) {
    check(bencher, &Issuer::hs256("0123456789abcdef0123456789abcdef"));
}

#[divan::bench]
fn eddsa(bencher: Bencher<'_, '_>) {
    check(bencher, &Issuer::eddsa("a"));
}

#[divan::bench]
fn rs256(bencher: Bencher<'_, '_>) {
    check(bencher, &Issuer::rs256());
}

/// What a publish pays: the rights in a group that the connection used before.
#[divan::bench]
fn right_in_a_known_group(bencher: Bencher<'_, '_>) {
    let claim = json!({"join": ["room.*", "news"], "publish": ["room.*"]});
    let mut rights = CachedRights::new(Rights::read(Some(&claim)).unwrap());
    bencher.bench_local(|| rights.of(black_box(b"room.17")));
}
