//! What the server's own clients show. Its readiness probe is a client like others, so where there are
//! keys it shows a token too, of a key that this process drew and nobody else has. Where TLS is required
//! it begins with bytes that only this process knows, and is served in plain: it speaks to itself.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::digest::SHA256_OUTPUT_LEN;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::issue::signed;

/// `kid` of the server's own key. A key of this name in a key file is never asked.
pub(super) const OWN_KEY: &str = "fanfare-own";
/// First byte of what an own client begins with; no protocol begins so.
pub const OWN_MARK: u8 = 0xFA;
/// Length of what an own client begins with.
pub const OWN_OPENING_LEN: usize = 1 + SHA256_OUTPUT_LEN;
/// What is signed for it.
const OPENING: &[u8] = b"fanfare opening";
/// How long a token holds, in seconds.
const VALID_S: u64 = 3_600;

/// The secret of this process; `None` if the system has no random numbers.
pub(super) fn secret() -> Option<&'static [u8; 32]> {
    static SECRET: OnceLock<Option<[u8; 32]>> = OnceLock::new();
    let draw = || {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).ok().map(|()| secret)
    };
    SECRET.get_or_init(draw).as_ref()
}

fn key() -> Option<hmac::Key> {
    Some(hmac::Key::new(hmac::HMAC_SHA256, secret()?))
}

/// What an own client begins with: [`OWN_MARK`], and what only the holder of the secret can sign.
/// `None` if there is no secret.
#[must_use]
pub fn own_opening() -> Option<[u8; OWN_OPENING_LEN]> {
    let mut opening = [OWN_MARK; OWN_OPENING_LEN];
    opening[1..].copy_from_slice(hmac::sign(&key()?, OPENING).as_ref());
    Some(opening)
}

/// Whether these bytes are [`own_opening`]; compared in constant time.
#[must_use]
pub fn is_own_opening(bytes: &[u8]) -> bool {
    let Some(key) = key() else { return false };
    matches!(bytes, [OWN_MARK, tag @ ..] if hmac::verify(&key, OPENING, tag).is_ok())
}

/// A token for the server itself: `member` may join and publish where the name of a group begins
/// with `prefix`. Empty if there is no secret.
#[must_use]
pub fn own_token(member: &str, prefix: &str) -> String {
    let Some(key) = key() else { return String::new() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let groups = [format!("{prefix}*")];
    let header = json!({ "alg": "HS256", "typ": "JWT", "kid": OWN_KEY });
    let rights = json!({ "join": groups, "publish": groups });
    signed(&key, &header, &json!({ "sub": member, "exp": now + VALID_S, "fanfare": rights }))
}
