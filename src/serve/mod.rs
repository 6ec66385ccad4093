//! A running server: configuration, start-up in order, the control thread, stop in order.

mod admin;
mod ask;
mod control;
mod error;
mod handover;
mod http;
mod json;
mod key_file;
mod nofile;
pub(crate) mod recover;
mod reload;
mod reshard;
mod server;
mod shards;
mod tls;
pub mod top;

use std::cell::RefCell;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::auth::KeyError;
use crate::config::{ConfigError, ServeArgs, ServeConfig};
use crate::ring::{KernelFeatures, ProbeError};
use crate::tls::files::{TlsFileError, TlsFiles};
use crate::wal::Manifest;

pub use admin::ADMIN_SOCKET;
pub(crate) use control::SIGNALLED;
pub use error::ServeError;
pub use handover::HandoverError;
use handover::Predecessor;
pub use http::{HttpError, Token, TokenCell, TokenError};
use key_file::KeyFile;
use reload::{InForce, Reloader};
use server::Server;
pub use shards::{Shards, ShardsConfig, start};

/// Why a server ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "log = {filter:?} is no filter: {source}; use a level such as info, or info,fanfare::shard=debug"
    )]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("core {core} does not exist here; there are {cores:?}, name some of them with --cores")]
    Core { core: usize, cores: Vec<usize> },
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    HandOver(#[from] HandoverError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("no TLS: {0}")]
    Tls(#[from] TlsFileError),
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("cannot keep the listening sockets for a successor: {0}")]
    Sockets(#[source] std::io::Error),
    #[error(
        "the stop was not clean: a log failed or the grace period ended first; the next start recovers from the logs"
    )]
    Unclean,
}

impl RunError {
    /// 2 if the command line or the configuration is at fault, else 1.
    fn code(&self) -> u8 {
        let asked_wrongly = matches!(
            self,
            Self::Config(_)
                | Self::Keys(_)
                | Self::Tls(_)
                | Self::Filter { .. }
                | Self::Core { .. }
                | Self::Http(HttpError::Token { .. })
        );
        if asked_wrongly { 2 } else { 1 }
    }
}

/// Runs `fanfare serve` until it is told to stop.
#[must_use]
pub fn run(args: &ServeArgs) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn serve(args: &ServeArgs) -> Result<(), RunError> {
    let loaded = args.load(std::env::vars().collect())?;
    if args.print_config {
        print!("{}", loaded.to_toml());
        return Ok(());
    }
    let in_force = Arc::new(InForce::new(loaded));
    let loaded = in_force.get();
    let config = &loaded.config;
    let filter = filter(config)?;
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_filter_reloading();
    let filters = log.reload_handle();
    log.init();
    for variable in &loaded.unknown_env {
        warn!(variable, "this environment variable names no key and is ignored");
    }
    let key_file = config.auth.as_ref().map(KeyFile::load).transpose()?;
    nofile::raise();
    let features = KernelFeatures::probe()?;
    let cores = cores(config)?;
    let token = TokenCell::new(token(config)?);
    let tls = config.tls.clone().map(tls::TlsWatch::begin).transpose()?;
    let signals = control::Signals::watch().map_err(RunError::Signals)?;
    let predecessor = if args.takeover { predecessor(config, &cores)? } else { None };
    let http = config.http.map(|at| http::bind(at, predecessor.is_some())).transpose()?;
    let set_filter = Box::new(move |filter| filters.reload(filter).is_ok());
    let in_force = in_force.clone();
    let keys = RefCell::new(key_file.as_ref().map(|file| file.keys.clone()));
    if let Some(Err(error)) = key_file.map(|file| file.watch(signals.orders())) {
        warn!(%error, "the key file is not watched; restart the server to change keys");
    }
    let reloader = Reloader { args: args.clone(), in_force, token, keys, set_filter };
    Server { reloader, cores, features, signals, http, tls }.run(predecessor)
}

/// The server that this one takes over from, if there is one. What may be in the way is looked for
/// before it stops anything.
fn predecessor(config: &ServeConfig, cores: &[usize]) -> Result<Option<Predecessor>, RunError> {
    Manifest::read(&config.data_dir).map_err(ServeError::Manifest)?;
    nofile::check(cores.len() as u16)?;
    let predecessor = Predecessor::ask(&config.data_dir, config.listen)?;
    if predecessor.is_none() {
        info!("no server runs on this data directory; starting without taking over");
    }
    Ok(predecessor)
}

/// The keys in the file that the configuration names, if it names one.
/// Checks what `fanfare serve` with these flags would start from, and starts nothing.
#[must_use]
pub fn check(args: &ServeArgs) -> ExitCode {
    let checked =
        args.load(std::env::vars().collect()).map_err(RunError::from).and_then(|loaded| {
            filter(&loaded.config)?;
            token(&loaded.config)?;
            loaded.config.auth.as_ref().map(KeyFile::load).transpose()?;
            cores(&loaded.config)?;
            loaded.config.tls.as_ref().map(TlsFiles::load).transpose()?;
            Ok(loaded)
        });
    match checked {
        Ok(loaded) => {
            for variable in &loaded.unknown_env {
                eprintln!("warning: {variable} names no key and is ignored");
            }
            println!("the configuration can be used");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn filter(config: &ServeConfig) -> Result<EnvFilter, RunError> {
    EnvFilter::try_new(&config.log)
        .map_err(|source| RunError::Filter { filter: config.log.clone(), source })
}

fn token(config: &ServeConfig) -> Result<Option<Token>, HttpError> {
    reload::read_token(config.http_token_file.as_ref())
        .map_err(|(path, source)| HttpError::Token { path, source })
}

/// A core for each shard: as configured, or all there are; again from the start if there are
/// more shards than cores.
fn cores(config: &ServeConfig) -> Result<Vec<usize>, RunError> {
    let present = core_affinity::get_core_ids().unwrap_or_default();
    let present: Vec<usize> = present.into_iter().map(|core| core.id).collect();
    let wanted = config.cores.clone().unwrap_or_else(|| present.clone());
    if let Some(&core) = wanted.iter().find(|core| !present.contains(core)) {
        return Err(RunError::Core { core, cores: present });
    }
    // What is wrong with a manifest is said when it is opened.
    let kept = Manifest::read(&config.data_dir).ok().flatten().map(|manifest| manifest.shards);
    let shards = config.shards.or(kept).map_or(wanted.len(), usize::from);
    Ok(wanted.into_iter().cycle().take(shards.min(crate::limits::SHARDS_MAX)).collect())
}
