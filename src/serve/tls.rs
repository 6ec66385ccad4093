//! Certificates that are renewed while the server runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tracing::{error, info};

use super::Shards;
use crate::tls::files::{Stamp, TlsFileError, TlsFiles};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Looks after the files that TLS is configured by.
pub(super) struct TlsWatch {
    files: TlsFiles,
    /// What they looked like when they were last read.
    stamp: Stamp,
    config: Arc<ServerConfig>,
    looked_at: Instant,
}

impl TlsWatch {
    /// Reads the files for the first time.
    pub fn begin(files: TlsFiles) -> Result<Self, TlsFileError> {
        // Taken before, so that a change meanwhile is seen later.
        let stamp = files.stamp();
        let config = files.load()?;
        Ok(Self { files, stamp, config, looked_at: Instant::now() })
    }

    /// What was read last.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Until when nothing has to be looked at.
    pub fn wait(&self) -> Duration {
        LOOK.saturating_sub(self.looked_at.elapsed())
    }

    /// Reads the files again if it is time and they have changed.
    pub fn look(&mut self, shards: &mut Shards) {
        if self.wait().is_zero() {
            self.looked_at = Instant::now();
            if self.files.stamp() != self.stamp {
                self.reload(shards);
            }
        }
    }

    /// Reads the files again. If they are of no use, connections get what they got before: a
    /// certificate and its key are often written one after the other.
    pub fn reload(&mut self, shards: &mut Shards) {
        let stamp = self.files.stamp();
        match self.files.load() {
            Ok(config) if shards.serve_by(&config) => {
                self.config = config;
                info!(cert = %self.files.cert.display(), "TLS certificates were read again");
            }
            // The files still differ from what was read, so the next look tries again.
            Ok(_) => return,
            Err(error) => error!(%error, "TLS goes on with the certificates it has"),
        }
        self.stamp = stamp;
    }
}
