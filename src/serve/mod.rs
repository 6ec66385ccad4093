//! A running server: configuration, start-up in order, the control thread, stop in order.

mod admin;
mod control;
mod error;
mod nofile;
pub(crate) mod recover;
mod reshard;
mod shards;
pub mod top;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, ServeArgs, ServeConfig};
use crate::ring::{KernelFeatures, ProbeError};
use crate::wal::Manifest;

pub use admin::ADMIN_SOCKET;
pub use error::ServeError;
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
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error(
        "the stop was not clean: a log failed or the grace period ended first; the next start recovers from the logs"
    )]
    Unclean,
}

impl RunError {
    /// 2 if the command line or the configuration is at fault, else 1.
    fn code(&self) -> u8 {
        if matches!(self, Self::Config(_) | Self::Filter { .. } | Self::Core { .. }) {
            2
        } else {
            1
        }
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
    let config = &loaded.config;
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|source| RunError::Filter { filter: config.log.clone(), source })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    for variable in &loaded.unknown_env {
        warn!(variable, "this environment variable names no key and is ignored");
    }
    nofile::raise();
    let features = KernelFeatures::probe()?;
    let cores = cores(config)?;
    let signals = control::Signals::watch().map_err(RunError::Signals)?;
    let shards = start(&ShardsConfig {
        listen: config.listen,
        data_dir: config.data_dir.clone(),
        cores: cores.clone(),
        shard: config.shard.clone(),
    })?;
    info!(
        shards = cores.len(),
        ?cores,
        address = %config.listen,
        data = %config.data_dir.display(),
        level = ?config.shard.level,
        kernel = %features,
        "ready"
    );
    let admin = admin::AdminSocket::open(&config.data_dir, signals.orders());
    if let Err(error) = &admin {
        let path = config.data_dir.join(admin::ADMIN_SOCKET);
        warn!(path = %path.display(), %error, "no admin socket; `fanfare top` cannot ask");
    }
    if control::run(shards, signals, config.stats_interval)? {
        Ok(())
    } else {
        Err(RunError::Unclean)
    }
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
