//! The signatures that tokens may have, by the ring crate. jsonwebtoken takes them as a provider:
//! its own two would bring either a C library of their own or 33 more crates.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use ring::{hmac, signature as ring_signature};
use signature::Verifier;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has jsonwebtoken use these. A process that embeds a server and chose a provider before keeps it.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// The server issues no tokens.
fn signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(new_error(ErrorKind::UnsupportedAlgorithm))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    Ok(match (algorithm, key.kind()) {
        (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
            Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret)))
        }
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(public)) => Box::new(EdDsa(public.clone())),
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Box::new(Rs256(RsaPublicKeyComponents { n: n.clone(), e: e.clone() }))
        }
        _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    })
}

/// Compared in constant time by ring.
struct Hs256(hmac::Key);
struct EdDsa(Vec<u8>);
struct Rs256(RsaPublicKeyComponents<Vec<u8>>);

fn judged<E>(result: std::result::Result<(), E>) -> std::result::Result<(), signature::Error> {
    result.map_err(|_| signature::Error::new())
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        judged(hmac::verify(&self.0, message, tag))
    }
}

impl Verifier<Vec<u8>> for EdDsa {
    fn verify(
        &self,
        message: &[u8],
        signed: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        judged(ring_signature::UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signed))
    }
}

impl Verifier<Vec<u8>> for Rs256 {
    fn verify(
        &self,
        message: &[u8],
        signed: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        judged(self.0.verify(&RSA_PKCS1_2048_8192_SHA256, message, signed))
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for EdDsa {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

impl JwtVerifier for Rs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}
