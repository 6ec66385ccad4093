//! The server that a bridge is a member of: where it is, and what it is shown.

use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::BridgeError;
use crate::client::{AckMode, Options, Tls};
use crate::limits::TOKEN_MAX;

/// Flags about the server.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("by_tls").args(["tls", "tls_ca"]).multiple(true))]
pub(super) struct UpstreamArgs {
    /// Address of the server
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    pub server: String,
    /// Member id of the bridge; its place in the groups is kept under it
    #[arg(long, value_name = "ID")]
    pub member: String,
    /// File with the token that the server is shown, for this member id. It is read whenever one is
    /// wanted, so whatever keeps it fresh need not tell the bridge
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Connect by TLS, to a server with a certificate of an authority that browsers trust
    #[arg(long)]
    tls: bool,
    /// Connect by TLS, to a server with a certificate of an authority in this PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Name that is in the certificate of the server, if not the host of --server
    #[arg(long, value_name = "NAME", requires = "by_tls")]
    tls_name: Option<String>,
    /// PEM file with a certificate that the server is shown, and those up to its authority
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl UpstreamArgs {
    /// Who the bridge is, and how it connects.
    pub fn options(&self) -> Result<Options, BridgeError> {
        let mut options = Options::new(&self.member).acks(AckMode::Explicit);
        if let Some(tls) = self.tls().map_err(BridgeError::Tls)? {
            options = options.tls(tls);
        }
        let Some(path) = self.token_file.clone() else { return Ok(options) };
        // A wrong name is said at once. Later the file may be away for a moment, while it is renewed.
        let first = read_token(&path)
            .map_err(|source| BridgeError::Token { path: path.clone(), source })?;
        if !(1..=TOKEN_MAX).contains(&first.len()) {
            return Err(BridgeError::NoToken { path });
        }
        Ok(options.token_from(move || {
            read_token(&path).unwrap_or_else(|error| {
                warn!(file = %path.display(), %error, "cannot read the token");
                String::new()
            })
        }))
    }

    fn tls(&self) -> io::Result<Option<Tls>> {
        let host = self.server.rsplit_once(':').map_or(&*self.server, |(host, _)| host);
        let name = self.tls_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        let tls = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(cert), Some(key)) => Tls::with_certificate(name, ca, cert, key),
            (Some(ca), ..) => Tls::with_ca_file(name, ca),
            (None, ..) if self.tls => Tls::new(name),
            _ => return Ok(None),
        };
        tls.map(Some)
    }
}

fn read_token(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned())
}
