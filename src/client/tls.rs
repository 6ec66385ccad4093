//! TLS of a client.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::core::Core;

/// Plaintext that is encrypted at once: a record of TLS.
const PIECE: usize = 16 * 1024;

/// By whom and how a server is known; see [`super::Options::tls`]. TLS 1.3 and 1.2.
#[derive(Clone, Debug)]
pub struct Tls {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Tls {
    /// A server of this name, or IP address, with a certificate of an authority that browsers
    /// trust (webpki-roots).
    ///
    /// # Errors
    /// It is no name.
    pub fn new(name: &str) -> io::Result<Self> {
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        Self::trusting(name, roots, None)
    }

    /// The same with a certificate of an authority in this PEM file.
    ///
    /// # Errors
    /// It is no name, or the file cannot be read or holds no authority.
    pub fn with_ca_file(name: &str, path: impl AsRef<Path>) -> io::Result<Self> {
        Self::trusting(name, roots(path.as_ref())?, None)
    }

    /// The same, and the client shows a certificate of its own: a PEM file with it and those up to
    /// its authority, and one with its key.
    ///
    /// # Errors
    /// As [`Tls::with_ca_file`], and the files cannot be used together.
    pub fn with_certificate(
        name: &str,
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> io::Result<Self> {
        let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
        Self::trusting(name, roots(ca.as_ref())?, Some((certificates(cert.as_ref())?, key)))
    }

    fn trusting(
        name: &str,
        roots: RootCertStore,
        own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                builder.with_client_auth_cert(cert, key).map_err(io::Error::other)?
            }
        };
        Ok(Self { name, config: Arc::new(config) })
    }
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(io::Error::other)?.collect();
    match found.map_err(io::Error::other)? {
        found if found.is_empty() => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("{} holds no certificate in PEM form", path.display()),
        )),
        found => Ok(found),
    }
}

/// TLS of one connection.
#[derive(Debug)]
pub(super) struct Session {
    conn: ClientConnection,
    /// Ciphertext, and how much of it went.
    output: Vec<u8>,
    sent: usize,
}

impl Session {
    pub fn begin(tls: &Tls) -> io::Result<Self> {
        let conn = ClientConnection::new(tls.config.clone(), tls.name.clone());
        let conn = conn.map_err(io::Error::other)?;
        Ok(Self { conn, output: Vec::new(), sent: 0 })
    }

    pub fn is_opening(&self) -> bool {
        self.conn.is_handshaking()
    }

    pub fn output(&mut self, core: &mut Core) -> &[u8] {
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            if !self.conn.is_handshaking() {
                let plain = core.output();
                let piece = plain.get(..plain.len().min(PIECE)).unwrap_or_default();
                // A vector of bytes takes everything, and nothing else is kept in the session.
                let taken = self.conn.writer().write(piece).unwrap_or(0);
                core.sent(taken);
            }
            while self.conn.wants_write() {
                if self.conn.write_tls(&mut self.output).is_err() {
                    break;
                }
            }
        }
        self.output.get(self.sent..).unwrap_or_default()
    }

    pub fn sent(&mut self, len: usize) {
        self.sent += len;
    }

    pub fn receive(&mut self, core: &mut Core, mut bytes: &[u8]) -> io::Result<()> {
        let mut plain = [0; PIECE];
        while !bytes.is_empty() {
            self.conn.read_tls(&mut bytes)?;
            let state = self.conn.process_new_packets().map_err(io::Error::other)?;
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let len = self.conn.reader().read(&mut plain)?;
                core.receive(plain.get(..len).unwrap_or_default());
                left -= len.clamp(1, left);
            }
            if state.peer_has_closed() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }

    pub fn end(&mut self) {
        self.conn.send_close_notify();
    }
}
