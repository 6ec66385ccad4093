//! A server over all its starts: it takes over from another one, serves, hands over, and starts again
//! if whoever was to take over did not.

use std::time::{Duration, Instant};

use socket2::Socket;
use tracing::{info, warn};

use super::control::{self, Signals, Stop};
use super::handover::{Ended, LOCK_TIME, Predecessor, Successor};
use super::reload::Reloader;
use super::shards::{self, Kept};
use super::tls::TlsWatch;
use super::{RunError, ServeError, Shards, ShardsConfig, admin, http};
use crate::config::ShardConfig;
use crate::ring::KernelFeatures;
use crate::wal::ManifestError;

/// What is the same in all starts.
pub(super) struct Server {
    pub reloader: Reloader,
    pub cores: Vec<usize>,
    pub features: KernelFeatures,
    pub signals: Signals,
    /// Socket of the HTTP interface, until that is started.
    pub http: Option<Socket>,
    /// The certificates, if there is TLS.
    pub tls: Option<TlsWatch>,
}

impl Server {
    /// Runs until it is told to stop or somebody has taken over.
    pub fn run(mut self, predecessor: Option<Predecessor>) -> Result<(), RunError> {
        let mut shards = match predecessor {
            None => shards::start(&self.shards_config())?,
            Some(predecessor) => match self.take_over(predecessor)? {
                Some(shards) => shards,
                None => return Ok(()),
            },
        };
        while let Some(kept) = self.serve(shards)? {
            shards = self.start_after_another(&kept)?;
        }
        Ok(())
    }

    fn shards_config(&self) -> ShardsConfig {
        let loaded = self.reloader.in_force.get();
        let config = &loaded.config;
        ShardsConfig {
            listen: config.listen,
            data_dir: config.data_dir.clone(),
            cores: self.cores.clone(),
            shard: ShardConfig {
                keys: self.reloader.keys.borrow().clone(),
                tls: self.tls.as_ref().map(TlsWatch::config),
                ..config.shard.clone()
            },
        }
    }

    /// `None` if a signal came before the predecessor had stopped.
    fn take_over(&self, mut predecessor: Predecessor) -> Result<Option<Shards>, RunError> {
        if !predecessor.drain(|| !self.signals.say_stop(&self.reloader.keys))? {
            return Ok(None);
        }
        let begun = Instant::now();
        let kept = Kept { sockets: predecessor.take_sockets(), counters: Vec::new() };
        let shards = self.start_after_another(&kept)?;
        info!(took = ?begun.elapsed(), "recovered; serving in place of the predecessor");
        predecessor.release();
        Ok(Some(shards))
    }

    /// Starts when another process has let go of the data directory, or is about to: the kernel
    /// closes the files of a process that ends one after the other.
    fn start_after_another(&self, kept: &Kept) -> Result<Shards, ServeError> {
        let begun = Instant::now();
        loop {
            match shards::start_from(&self.shards_config(), kept) {
                Err(ServeError::Manifest(ManifestError::InUse { .. }))
                    if begun.elapsed() < LOCK_TIME =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                started => return started,
            }
        }
    }

    /// Serves until it is told to stop. Returns what it kept if it has to start again.
    fn serve(&mut self, mut shards: Shards) -> Result<Option<Kept>, RunError> {
        let loaded = self.reloader.in_force.get();
        let config = &loaded.config;
        info!(
            shards = self.cores.len(),
            cores = ?self.cores,
            address = %config.listen,
            data = %config.data_dir.display(),
            level = ?config.shard.level,
            keys = self.reloader.keys.borrow().as_ref().map_or(0, |keys| keys.count()),
            tls = self.tls.is_some(),
            kernel = %self.features,
            "ready"
        );
        let admin = admin::AdminSocket::open(&config.data_dir, self.signals.asker());
        if let Err(error) = &admin {
            let path = config.data_dir.join(admin::ADMIN_SOCKET);
            warn!(path = %path.display(), %error, "no admin socket; `fanfare top` cannot ask, nobody can take over");
        }
        if let Some(socket) = self.http.take() {
            http::start(
                socket,
                http::Parts {
                    asker: self.signals.asker(),
                    counters: shards.counters(),
                    token: self.reloader.token.clone(),
                    listen: config.listen,
                    hash_seed: shards.hash_seed(),
                    config: self.reloader.in_force.clone(),
                },
            )?;
        }
        let stop = control::watch(&mut shards, &self.signals, &self.reloader, self.tls.as_mut());
        // Before the lock goes: from then on the name is that of another server.
        drop(admin);
        match stop {
            Stop::Signal => {
                self.signals.close();
                if control::stop(shards)? { Ok(None) } else { Err(RunError::Unclean) }
            }
            Stop::HandOver(successor) => self.hand_over(shards, &successor),
        }
    }

    fn hand_over(&self, shards: Shards, successor: &Successor) -> Result<Option<Kept>, RunError> {
        let kept = shards.keep().map_err(RunError::Sockets)?;
        // If it is not clean the successor recovers, as this server would.
        control::stop(shards)?;
        successor.released();
        let (begun, mut stopped) = (Instant::now(), false);
        let ended = successor.wait(|| {
            stopped |= self.signals.say_stop(&self.reloader.keys);
            !stopped
        });
        match ended {
            Ended::Served => info!(after = ?begun.elapsed(), "the successor serves; ending"),
            Ended::Gone if stopped => info!("told to stop; the successor goes on"),
            Ended::Gone => {
                warn!("the successor ended before it served; starting again in its place");
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }
}
