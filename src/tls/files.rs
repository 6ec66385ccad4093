//! The files that TLS is configured by, and what is made of them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::limits::TLS_FILE_BYTES_MAX;

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; name a PEM file that this user may read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} holds no {what} in PEM form{hint}")]
    Holds {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What may be the reason.
        hint: &'static str,
    },
    /// A certificate of an authority is of no use.
    #[error("{path} holds a certificate that is no authority's: {source}")]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities for clients are of no use.
    #[error("cannot verify clients by {path}: {source}")]
    Clients {
        /// Which.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// The certificate and the key do not go together, or the key is of a kind that is not served.
    #[error("{cert} and {key} cannot be used together: {source}")]
    Pair {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system has no randomness.
    #[error("cannot make keys for session tickets: {0}")]
    Tickets(#[source] rustls::Error),
}

/// What tells one version of the files from another. Changes of a file that a link leads to count
/// as well.
pub type Stamp = Vec<Option<(u64, i64, i64, u64)>>;

/// Files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those up to its authority.
    pub cert: PathBuf,
    /// The private key of the first one.
    pub key: PathBuf,
    /// Authorities of clients. With it, a client without a certificate of one of them is refused.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// What the files look like now.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let files = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |path: &PathBuf| {
            let file = fs::metadata(path).ok()?;
            Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
        };
        files.into_iter().flatten().map(stamp).collect()
    }

    /// Reads the files: TLS 1.3 and 1.2, session tickets, no early data.
    ///
    /// The keys of the tickets are new each time, so that no session outlives the authorities that
    /// its client was verified by.
    ///
    /// # Errors
    /// [`TlsFileError`]; it names the file.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|_| {
            let hint = "; one that is encrypted must be decrypted first";
            TlsFileError::Holds { path: self.key.clone(), what: "private key", hint }
        })?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsFileError::Tickets)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = verifier
                    .build()
                    .map_err(|source| TlsFileError::Clients { path: path.clone(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| {
            TlsFileError::Pair { cert: self.cert.clone(), key: self.key.clone(), source }
        })?;
        // Tickets rather than memory: any shard takes up a session that another one began.
        config.ticketer = ring::Ticketer::new().map_err(TlsFileError::Tickets)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

/// The authorities in a PEM file.
///
/// # Errors
/// [`TlsFileError`]; it names the file.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsFileError::Authority { path: path.into(), source })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let none = |_| TlsFileError::Holds { path: path.into(), what: "certificate", hint: "" };
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(none(())),
        Ok(found) => Ok(found),
        Err(_) => Err(none(())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(TLS_FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| TlsFileError::Read { path: path.into(), source })?;
    Ok(bytes)
}
