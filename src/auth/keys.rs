//! The keys of a server, from a file: a JWKS, public keys in PEM, or a secret.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::errors::Error as JwtError;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use twox_hash::XxHash3_64;

use super::crypto;
use super::own::{self, OWN_KEY};

/// Longest key file, in bytes.
pub const KEY_FILE_MAX: usize = 256 * 1024;
/// Most keys of a server.
pub const KEYS_MAX: usize = 64;
/// Shortest secret of HS256, in bytes (RFC 7518, 3.2).
const SECRET_MIN: usize = 32;
/// Bytes of a public key of Ed25519.
const ED25519_LEN: usize = 32;
/// Lengths of a modulus of RSA in bytes: 2048 to 8192 bits.
const RSA_LEN: std::ops::RangeInclusive<usize> = 256..=1024;

/// What tokens must say beside who they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// `aud` must name it; without one a token must have no `aud`.
    pub audience: Option<String>,
    /// `iss` must be it; without one it is not looked at.
    pub issuer: Option<String>,
    /// Allowance for clocks that differ, in seconds, for `exp` and `nbf`.
    pub leeway_s: u64,
}

/// Why a key file cannot be used. Says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not hold what it must.
    #[error("the key file {} cannot be used: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// Tells keys apart, also over a reload: the same key has the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId(u64);

/// A key; it serves one algorithm.
pub(super) struct Key {
    pub id: KeyId,
    name: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl Key {
    fn new(algorithm: Algorithm, name: Option<String>, key: DecodingKey, material: &[u8]) -> Self {
        let id = KeyId(XxHash3_64::oneshot_with_seed(algorithm as u64, material));
        Self { id, name, algorithm, key, validation: Validation::new(algorithm) }
    }

    fn secret(name: Option<String>, secret: &[u8]) -> Result<Self, String> {
        if secret.len() < SECRET_MIN {
            let len = secret.len();
            return Err(format!(
                "a secret of {len} bytes is too short; HS256 takes {SECRET_MIN} or more, such as of `openssl rand -hex 32`"
            ));
        }
        let key = DecodingKey::from_secret(secret).map_err(|error| error.to_string())?;
        Ok(Self::new(Algorithm::HS256, name, key, secret))
    }

    fn ed25519(name: Option<String>, public: &[u8]) -> Result<Self, String> {
        if public.len() != ED25519_LEN {
            return Err(format!(
                "a public key of Ed25519 has {ED25519_LEN} bytes, not {}",
                public.len()
            ));
        }
        Ok(Self::new(Algorithm::EdDSA, name, DecodingKey::from_ed_der(public), public))
    }

    fn rsa(name: Option<String>, n: &[u8], e: &[u8]) -> Result<Self, String> {
        let zeros = |number: &[u8]| number.iter().take_while(|byte| **byte == 0).count();
        let (n, e) = (&n[zeros(n)..], &e[zeros(e)..]);
        if !RSA_LEN.contains(&n.len()) {
            return Err(format!("an RSA key of {} bits; it must have 2048 to 8192", 8 * n.len()));
        }
        let key = DecodingKey::from_rsa_raw_components(n, e);
        Ok(Self::new(Algorithm::RS256, name, key, &[n, e].concat()))
    }

    /// Checks signature, audience and issuer. Times are left to the caller, who has the clock.
    pub fn open(&self, token: &[u8]) -> Result<Map<String, Value>, JwtError> {
        jsonwebtoken::decode(token, &self.key, &self.validation).map(|data| data.claims)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The keys of a server, and what its tokens must say.
#[derive(Debug)]
pub struct Keys {
    list: Vec<Key>,
    /// For tokens of the server itself.
    own: Option<Key>,
    leeway_ms: u64,
}

impl Keys {
    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError`]: it cannot be read, or holds no key that can be used.
    pub fn load(path: &Path, expected: &Expected) -> Result<Self, KeyError> {
        let content = |what| KeyError::Content { path: path.into(), what };
        let read = |source| KeyError::Read { path: path.into(), source };
        let len = std::fs::metadata(path).map_err(read)?.len();
        if len > KEY_FILE_MAX as u64 {
            return Err(content(format!("it has {len} bytes; at most {KEY_FILE_MAX} are read")));
        }
        let bytes = std::fs::read(path).map_err(read)?;
        Self::parse(&bytes, expected).map_err(content)
    }

    /// Reads the content of a key file.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(bytes: &[u8], expected: &Expected) -> Result<Self, String> {
        crypto::install();
        let text = bytes.trim_ascii();
        let mut list = if text.is_empty() {
            return Err("it is empty".into());
        } else if text.starts_with(b"{") {
            jwks(text)?
        } else if text.windows(PEM.len()).any(|at| at == PEM) {
            pem(text)?
        } else {
            vec![Key::secret(None, secret_of(bytes).unwrap_or_default())?]
        };
        if list.len() > KEYS_MAX {
            return Err(format!("it holds {} keys; at most {KEYS_MAX} are allowed", list.len()));
        }
        for key in &mut list {
            let validation = &mut key.validation;
            let mut required = Vec::new();
            // The caller has the clock.
            validation.validate_exp = false;
            if let Some(audience) = &expected.audience {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            if let Some(issuer) = &expected.issuer {
                validation.set_issuer(&[issuer]);
                required.push("iss");
            }
            validation.set_required_spec_claims(&required);
        }
        let mut own = own::secret().and_then(|secret| Key::secret(None, secret).ok());
        if let Some(own) = &mut own {
            own.validation.validate_exp = false;
        }
        Ok(Self { list, own, leeway_ms: expected.leeway_s.saturating_mul(1000) })
    }

    /// Whether this key is among them.
    #[must_use]
    pub fn has(&self, id: KeyId) -> bool {
        self.list.iter().chain(&self.own).any(|key| key.id == id)
    }

    /// Count of keys.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn leeway_ms(&self) -> u64 {
        self.leeway_ms
    }

    /// The one key for a token: that of its name, or the only one that can be meant. At most one
    /// signature is checked per token.
    pub(super) fn select(&self, algorithm: &str, name: Option<&str>) -> Result<&Key, &'static str> {
        if name == Some(OWN_KEY) {
            return self.own.as_ref().filter(|_| algorithm == "HS256").ok_or("kid");
        }
        let named = |key: &&Key| format!("{:?}", key.algorithm) == algorithm;
        let mut fitting = self.list.iter().filter(named).peekable();
        if fitting.peek().is_none() {
            return Err("alg");
        }
        let keys: Vec<_> = fitting
            .filter(|key| name.is_none() || key.name.is_none() || key.name.as_deref() == name)
            .collect();
        let exact: Vec<_> = keys
            .iter()
            .copied()
            .filter(|key| name.is_some() && key.name.as_deref() == name)
            .collect();
        match (&exact[..], &keys[..]) {
            ([key], _) | ([], [key]) => Ok(key),
            _ => Err("kid"),
        }
    }
}

/// The secret of a key file that is neither a JWKS nor PEM: its bytes without line ends behind.
pub(super) fn secret_of(bytes: &[u8]) -> Option<&[u8]> {
    let text = bytes.trim_ascii();
    let other = text.starts_with(b"{") || text.windows(PEM.len()).any(|at| at == PEM);
    let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte))? + 1;
    (!other).then(|| &bytes[..end])
}

/// What every block of PEM begins with.
const PEM: &[u8] = b"-----BEGIN ";

/// Public keys in PEM (SubjectPublicKeyInfo), of RSA or Ed25519.
fn pem(bytes: &[u8]) -> Result<Vec<Key>, String> {
    const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
    const END: &str = "-----END PUBLIC KEY-----";
    let text = std::str::from_utf8(bytes).map_err(|_| "its PEM is not text")?;
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        rest = &rest[at..];
        let Some(body) = rest.strip_prefix(BEGIN) else {
            return Err("it holds PEM that is no PUBLIC KEY; a private key stays with whoever issues tokens: put what `openssl pkey -pubout` makes of it".into());
        };
        let end = body.find(END).ok_or("a PUBLIC KEY in it does not end")?;
        let base64: String = body[..end].split_ascii_whitespace().collect();
        let der = STANDARD.decode(base64).map_err(|_| "a PUBLIC KEY in it is not base64")?;
        keys.push(public_key(&der)?);
        rest = &body[end + END.len()..];
    }
    Ok(keys)
}

/// A SubjectPublicKeyInfo (RFC 5280; algorithms of RFC 8410 and RFC 3279).
fn public_key(der: &[u8]) -> Result<Key, String> {
    const ED25519: &[u8] = &[0x06, 0x03, 0x2B, 0x65, 0x70];
    const RSA: &[u8] = &[0x06, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1, 0x05, 0];
    const SEQUENCE: u8 = 0x30;
    const BITS: u8 = 0x03;
    const INTEGER: u8 = 0x02;
    let parts = || {
        let (info, _) = der_value(der, SEQUENCE)?;
        let (algorithm, rest) = der_value(info, SEQUENCE)?;
        let (bits, _) = der_value(rest, BITS)?;
        // The count of unused bits in the last byte.
        Some((algorithm, bits.strip_prefix(&[0])?))
    };
    let (algorithm, key) = parts().ok_or("a PUBLIC KEY in it is not one")?;
    if algorithm == ED25519 {
        return Key::ed25519(None, key);
    }
    if algorithm != RSA {
        return Err("a PUBLIC KEY in it is neither of RSA nor of Ed25519".into());
    }
    let numbers = || {
        let (numbers, _) = der_value(key, SEQUENCE)?;
        let (n, rest) = der_value(numbers, INTEGER)?;
        Some((n, der_value(rest, INTEGER)?.0))
    };
    let (n, e) = numbers().ok_or("a PUBLIC KEY of RSA in it is not one")?;
    Key::rsa(None, n, e)
}

/// Takes a value with this tag off DER: what is in it, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&len, rest) = rest.split_first()?;
    let (len, rest) = match len {
        ..=0x7F => (usize::from(len), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => {
            let (bytes, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*bytes)), rest)
        }
        _ => return None,
    };
    (first == tag).then(|| rest.split_at_checked(len)).flatten()
}

/// A JWKS (RFC 7517). Keys for other uses or algorithms are passed over: they are there for others.
fn jwks(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        format!("it is no JSON (line {}); a JWKS is {{\"keys\": [...]}}", error.line())
    })?;
    let list = value.get("keys").and_then(Value::as_array);
    let list = list.ok_or("it is JSON without a list `keys`, so no JWKS")?;
    let mut keys = Vec::new();
    for (at, jwk) in list.iter().enumerate() {
        if let Some(key) = one_jwk(jwk).map_err(|what| format!("key number {}: {what}", at + 1))? {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err("it holds no key for HS256, EdDSA or RS256".into());
    }
    Ok(keys)
}

fn one_jwk(jwk: &Value) -> Result<Option<Key>, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.ok_or_else(|| format!("`{name}` is missing or not base64url"))
    };
    let serves = |algorithm: &str| {
        text("use").is_none_or(|to| to == "sig") && text("alg").is_none_or(|a| a == algorithm)
    };
    let name = text("kid").map(str::to_owned);
    Ok(match text("kty") {
        Some("oct") if serves("HS256") => Some(Key::secret(name, &bytes("k")?)?),
        Some("OKP") if serves("EdDSA") && text("crv") == Some("Ed25519") => {
            Some(Key::ed25519(name, &bytes("x")?)?)
        }
        Some("RSA") if serves("RS256") => Some(Key::rsa(name, &bytes("n")?, &bytes("e")?)?),
        _ => None,
    })
}
