//! What keeps a run from taking place. What a run finds wrong is in [`crate::violation`].

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A run that could not be made: wrong usage, or an environment that does not allow it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The flags do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The server is not there.
    #[error("cannot connect to {addr}: {source}; start a server there, or use --spawn")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The server said no while members joined.
    #[error("the server refused {who}: {text}")]
    Refused {
        /// Member or publisher.
        who: String,
        /// The text of its ERROR frame.
        text: String,
    },
    /// Joining made no progress.
    #[error(
        "{joined} of {wanted} connections joined, then nothing came for {seconds} s; does {addr} speak what --target names?"
    )]
    JoinTimeout {
        /// How many did.
        joined: usize,
        /// How many should.
        wanted: usize,
        /// How long nothing came.
        seconds: u64,
        /// The server.
        addr: SocketAddr,
    },
    /// RLIMIT_NOFILE bounds the ring's table.
    #[error(
        "one thread would hold {wanted} connections but RLIMIT_NOFILE is {limit}; raise it (ulimit -n {wanted}) or use more --threads"
    )]
    TooFewFiles {
        /// Needed.
        wanted: u64,
        /// There.
        limit: u64,
    },
    /// The client library.
    #[error("{0}")]
    Client(fanfare::client::ClientError),
    /// The ring of a thread.
    #[error(
        "io_uring: {0}; loadgen needs Linux 6.1 or newer with io_uring enabled (sysctl kernel.io_uring_disabled=0)"
    )]
    Ring(io::Error),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server binary is not there.
    #[error(
        "there is no server at {0}; build it with `cargo build --release --bin fanfare` or name it with --server-bin"
    )]
    NoServer(PathBuf),
    /// The server did not come up, or did not go down as it should.
    #[error("the server {what}\n{stderr}")]
    Server {
        /// What happened.
        what: String,
        /// What it printed.
        stderr: String,
    },
    /// A thread ended by a panic.
    #[error("a worker thread panicked")]
    Panicked,
    /// A signal came before the members had joined.
    #[error("stopped by a signal before all members had joined")]
    Interrupted,
}

impl LoadError {
    /// Names the file of an I/O error.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
