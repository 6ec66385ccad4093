//! From a token to what it grants, or to why it is not accepted.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::{Error, ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::{KeyId, Keys};
use super::rights::Rights;
use crate::limits::MEMBER_ID_MAX;
use crate::wire::ErrorCode;

/// What an accepted token says.
#[derive(Debug)]
pub struct Grant {
    /// When it ends, with the allowance for clocks, in ms of Unix time.
    pub ends_ms: u64,
    /// Its `exp`, in seconds of Unix time.
    pub exp_s: u64,
    /// The key that signed it.
    pub key: KeyId,
    /// What it allows.
    pub rights: Rights,
}

/// Why a token is not accepted; as in the ERROR that says so. Holds nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `TokenRefused` or `TokenExpired`.
    pub code: ErrorCode,
    /// What of the token.
    pub field: &'static str,
    /// `exp` of an expired one.
    pub limit: u64,
    /// What to do.
    pub text: &'static str,
}

impl Refused {
    /// A token that is wrong in `field`.
    #[must_use]
    pub fn of(field: &'static str) -> Self {
        Self { code: ErrorCode::TokenRefused, field, limit: 0, text: what_to_do(field) }
    }

    /// A token that was good until `exp_s`.
    #[must_use]
    pub fn expired(exp_s: u64) -> Self {
        let text = "the token has expired; get a new one and connect with it";
        Self { code: ErrorCode::TokenExpired, field: "exp", limit: exp_s, text }
    }
}

fn what_to_do(field: &str) -> &'static str {
    match field {
        "alg" => {
            "the algorithm of the token is not served; sign it for a key of this server, with HS256, EdDSA or RS256"
        }
        "kid" => {
            "the server has no such key, or several and the token names none; name its key in the header by kid"
        }
        "signature" => {
            "the signature of the token is not that of the server's key; get one from whoever issues them here"
        }
        "sub" => {
            "the claim sub must be the member id of HELLO; connect as the member that the token is for"
        }
        "exp" => "the token needs the claim exp, in seconds of Unix time",
        "nbf" => "the token is not valid yet; use it later, or set the clocks right",
        "aud" => "the token is not meant for this server; get one for its audience",
        "iss" => "the token is not from the issuer that this server trusts",
        "fanfare" => {
            "the claim fanfare is not an object with lists of group names as PROTOCOL.md says"
        }
        "key" => "the key of the token was taken away; get a new token and connect with it",
        _ => "the token is not a JWT in compact form; give it as it was issued",
    }
}

/// What of the header says which key to use.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

impl Keys {
    /// Checks a token of `member` at `wall_ms`, Unix time in ms. Takes as long as
    /// a signature, which is long for a shard.
    ///
    /// # Errors
    /// [`Refused`], which says what is wrong first: the signature comes before any claim.
    pub fn check(&self, token: &[u8], member: &[u8], wall_ms: u64) -> Result<Grant, Refused> {
        let header = token.split(|byte| *byte == b'.').next().unwrap_or_default();
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Refused::of("token"))?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| Refused::of("token"))?;
        let key = self.select(&header.alg, header.kid.as_deref()).map_err(Refused::of)?;
        let claims = key.open(token).map_err(|error| Refused::of(field_of(&error)))?;
        let leeway_ms = self.leeway_ms();

        if claims.get("sub").and_then(Value::as_str).map(str::as_bytes) != Some(member)
            || !(1..=MEMBER_ID_MAX).contains(&member.len())
        {
            return Err(Refused::of("sub"));
        }
        let exp_s = seconds(&claims, "exp")?.ok_or(Refused::of("exp"))?;
        let ends_ms = exp_s.saturating_mul(1000).saturating_add(leeway_ms);
        if ends_ms <= wall_ms {
            return Err(Refused::expired(exp_s));
        }
        if let Some(from_s) = seconds(&claims, "nbf")?
            && from_s.saturating_mul(1000) > wall_ms.saturating_add(leeway_ms)
        {
            return Err(Refused::of("nbf"));
        }
        let rights = Rights::read(claims.get("fanfare")).ok_or(Refused::of("fanfare"))?;
        Ok(Grant { ends_ms, exp_s, key: key.id, rights })
    }
}

/// A time of the claims, which may have a fraction of a second.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, Refused> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let whole = value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64));
    whole.map(Some).ok_or(Refused::of(name))
}

fn field_of(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::InvalidAudience => "aud",
        ErrorKind::InvalidIssuer => "iss",
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => "aud",
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => "iss",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => "alg",
        _ => "token",
    }
}
