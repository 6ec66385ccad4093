//! TLS of a connection to a Fanfare server: what its frames or messages are carried by.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::error::LoadError;

/// By whom and how the server is known.
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// A server of this name with a certificate of an authority in this PEM file.
    pub fn new(ca: &Path, name: &str) -> Result<Self, LoadError> {
        let usage = |why: &dyn std::fmt::Display| LoadError::Usage(format!("--tls-name: {why}"));
        let name = ServerName::try_from(name.to_owned()).map_err(|e| usage(&e))?;
        let config = trusting(ca)
            .map_err(|e| LoadError::Usage(format!("--tls-ca {}: {e}", ca.display())))?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// A new connection; it has something to send.
    pub fn begin(&self) -> Result<Session, LoadError> {
        let conn = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut conn = conn.map_err(|e| LoadError::Usage(format!("TLS: {e}")))?;
        // What is published before it could be sent is bounded by the publishers.
        conn.set_buffer_limit(None);
        Ok(Session { conn })
    }
}

fn trusting(ca: &Path) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(io::Error::other)? {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it holds no certificate in PEM form"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// TLS of one connection.
pub struct Session {
    conn: ClientConnection,
}

impl Session {
    /// Takes what is to be sent, and gives what goes to the socket. Before the end of the handshake
    /// that is the handshake, and the rest is kept.
    pub fn seal(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        self.conn.writer().write_all(plain)?;
        let mut out = Vec::new();
        while self.conn.wants_write() {
            self.conn.write_tls(&mut out)?;
        }
        Ok(out)
    }

    /// Whether [`Session::seal`] gives something that nobody asked for.
    pub fn wants_to_send(&self) -> bool {
        self.conn.wants_write()
    }

    /// Puts what these bytes of the socket carry at the end of `plain`.
    pub fn open(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            self.conn.read_tls(&mut bytes)?;
            let state = self.conn.process_new_packets().map_err(io::Error::other)?;
            let at = plain.len();
            plain.resize(at + state.plaintext_bytes_to_read(), 0);
            self.conn.reader().read_exact(&mut plain[at..])?;
        }
        Ok(())
    }
}
