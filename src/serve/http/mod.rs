//! The HTTP interface: figures for Prometheus, health, a JSON interface for operators, and the
//! console page. It has a thread of its own and asks the shards like the admin socket does.
//!
//! ```text
//!  accept.rs   connections: how many, how long, how much they may send
//!  guard.rs    who may ask: the token, and pages of other sites that a browser shows
//!  api.rs      /api/v1    metrics.rs  /metrics    ready.rs  /readyz    console.rs  /
//! ```

mod accept;
mod api;
mod console;
mod guard;
mod metrics;
mod process;
mod ready;
mod text;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use socket2::{Domain, Socket, Type};

use super::ask::Asker;
use crate::shard::counters::Counters;

pub use guard::{Token, TokenCell, TokenError};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// What the interface is made of.
pub(super) struct Parts {
    /// Who answers.
    pub asker: Asker,
    /// Figures that the shards publish, by shard.
    pub counters: Vec<Arc<Counters>>,
    /// What requests must bring.
    pub token: TokenCell,
    /// Where members connect.
    pub listen: SocketAddr,
    /// What places groups on shards.
    pub hash_seed: u64,
    /// The configuration in force.
    pub config: Arc<super::reload::InForce>,
}

/// What all handlers share.
struct State {
    asker: Asker,
    counters: Vec<Arc<Counters>>,
    guard: guard::Guard,
    prober: ready::Prober,
    seen: accept::Seen,
    config: Arc<super::reload::InForce>,
}

type Shared = axum::extract::State<Arc<State>>;

/// Why there is no HTTP interface.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be had.
    #[error("cannot listen on http = {address}: {source}; take another address with --http")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The token cannot be used.
    #[error("http_token_file = {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
    /// No thread.
    #[error("cannot start the threads of the HTTP interface: {0}")]
    Thread(#[source] io::Error),
}

/// Takes the address, so that a start that cannot have it fails before anything else. `shared`:
/// with a predecessor, who has it until it ends.
pub(super) fn bind(address: SocketAddr, shared: bool) -> Result<Socket, HttpError> {
    let bind = || {
        if !shared {
            // Whoever has it would share it silently.
            drop(TcpListener::bind(address)?);
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|source| HttpError::Listen { address, source })
}

/// Answers on `socket` until the process ends.
pub(super) fn start(socket: Socket, parts: Parts) -> Result<(), HttpError> {
    socket.listen(BACKLOG).map_err(HttpError::Thread)?;
    let listener = TcpListener::from(socket);
    let prober = ready::Prober::start(parts.listen, parts.hash_seed, parts.counters.len() as u16)
        .map_err(HttpError::Thread)?;
    let state = Arc::new(State {
        asker: parts.asker,
        counters: parts.counters,
        guard: guard::Guard::new(parts.token),
        prober,
        seen: accept::Seen::default(),
        config: parts.config,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HttpError::Thread)?;
    std::thread::Builder::new()
        .name("http".into())
        .spawn(move || runtime.block_on(accept::run(listener, state)))
        .map_err(HttpError::Thread)?;
    Ok(())
}

fn router(state: Arc<State>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics::answer))
        .nest("/api/v1", api::routes())
        .layer(axum::middleware::from_fn_with_state(state.clone(), guard::check));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready::answer))
        .merge(console::routes())
        .merge(guarded)
        .layer(axum::extract::DefaultBodyLimit::max(accept::BODY_MAX))
        .with_state(state)
}
