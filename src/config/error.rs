//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

use super::load::Origin;

/// Why a configuration cannot be used. Each names the key, the value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not a configuration file: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that does not exist.
    #[error(
        "unknown key `{key}` in {origin}{}; `fanfare serve --print-config` lists all keys",
        did_you_mean(*near)
    )]
    Unknown {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// The key that may have been meant.
        near: Option<&'static str>,
    },
    /// A value out of range, or of the wrong kind.
    #[error("{key} = {value} (set by {origin}) is not allowed: it must be {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// Where it was set.
        origin: Origin,
        /// What is allowed.
        allowed: String,
    },
    /// A class of groups that cannot be.
    #[error("{class} in the file {}: {what}", path.display())]
    Class {
        /// The file.
        path: PathBuf,
        /// Which class.
        class: String,
        /// What is wrong with it and what is allowed.
        what: String,
    },
    /// A `--set` that is not `key=value`.
    #[error("`--set {0}` is not of the form key=value")]
    Set(String),
    /// A key that was given by two flags.
    #[error("{0} is given twice on the command line")]
    Twice(String),
    /// Not all files that TLS needs.
    #[error(
        "TLS needs both tls_cert and tls_key, each the name of a PEM file; without them \
         tls_client_ca and tls_required cannot be set"
    )]
    TlsFiles,
    /// An address that others can reach.
    #[error(
        "refusing to listen on {0}: there are no keys, so anyone who can reach this address could \
         read and publish; name a file with the keys of tokens by --auth-keys, keep to a loopback \
         address such as 127.0.0.1:7400, or pass --insecure-no-auth if the network is trusted"
    )]
    NotLoopback(std::net::SocketAddr),
    /// An HTTP interface that others can reach and that asks for no token.
    #[error(
        "refusing to serve HTTP on {0}: anyone who can reach this address could disconnect members \
         and stop the server; keep to a loopback address such as 127.0.0.1:7411, or name a file \
         with a token by http_token_file"
    )]
    HttpNeedsToken(std::net::SocketAddr),
}

fn did_you_mean(near: Option<&'static str>) -> String {
    near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"))
}
