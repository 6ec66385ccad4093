//! Whoever issues tokens, for tests. The keys are for nothing else.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use ring::{digest, hmac};
use serde_json::{Value, json};

pub const RSA_PRIVATE: &str = include_str!("../keys/rsa-of-tests.pem");
pub const RSA_PUBLIC: &str = include_str!("../keys/rsa-of-tests.pub.pem");

/// A key that signs.
pub enum Issuer {
    Hs256(Vec<u8>),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Issuer {
    pub fn hs256(secret: &str) -> Self {
        Self::Hs256(secret.as_bytes().to_vec())
    }

    /// The same key for the same name.
    pub fn eddsa(name: &str) -> Self {
        let seed = digest::digest(&digest::SHA256, name.as_bytes());
        Self::EdDsa(Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).unwrap())
    }

    pub fn rs256() -> Self {
        let base64: String = RSA_PRIVATE.lines().filter(|line| !line.starts_with('-')).collect();
        Self::Rs256(RsaKeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap())
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rs256(_) => "RS256",
        }
    }

    /// What the server's key file holds for this key alone: a secret, or PEM.
    pub fn key_file(&self) -> String {
        match self {
            Self::Hs256(secret) => String::from_utf8(secret.clone()).unwrap(),
            Self::Rs256(_) => RSA_PUBLIC.to_owned(),
            Self::EdDsa(key) => {
                let prefix = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
                let der = [&prefix[..], key.public_key().as_ref()].concat();
                let base64 = STANDARD.encode(der);
                format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
            }
        }
    }

    /// The key in a JWKS.
    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Hs256(secret) => json!({"kty": "oct", "kid": kid, "k": base64url(secret)}),
            Self::EdDsa(key) => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid,
                "x": base64url(key.public_key())}),
            Self::Rs256(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256",
                    "n": base64url(public.n), "e": base64url(public.e)})
            }
        }
    }

    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Hs256(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::EdDsa(key) => key.sign(message).as_ref().to_vec(),
            Self::Rs256(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut out).unwrap();
                out
            }
        }
    }

    /// A token with these parts, well signed whatever they are.
    pub fn sign_raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(header), base64url(claims));
        format!("{message}.{}", base64url(self.signature(message.as_bytes())))
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": self.algorithm()});
        self.sign_raw(&header.to_string(), &claims.to_string())
    }

    pub fn sign_named(&self, kid: &str, claims: &Value) -> String {
        let header = json!({"kid": kid, "alg": self.algorithm()});
        self.sign_raw(&header.to_string(), &claims.to_string())
    }

    /// A token for `member` that ends in `seconds`.
    pub fn token(&self, member: &str, seconds: i64, fanfare: Value) -> String {
        self.sign(&claims(member, seconds, fanfare))
    }
}

pub fn claims(member: &str, seconds: i64, fanfare: Value) -> Value {
    json!({"sub": member, "exp": now_s() as i64 + seconds, "fanfare": fanfare})
}

/// Everything in every group.
pub fn everything() -> Value {
    json!({"join": ["*"], "publish": ["*"], "history": ["*"], "state": ["*"]})
}
