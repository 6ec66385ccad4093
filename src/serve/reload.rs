//! SIGHUP: the configuration is read again, and what can change while the server runs does. What
//! cannot is named, and stays as it was.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::Shards;
use super::http::{Token, TokenCell, TokenError};
use crate::auth::Keys;
use crate::config::{ConfigError, Loaded, Reloaded, ServeArgs};

/// The configuration in force. Shared by the control thread and the HTTP interface; no shard
/// ever takes the lock.
pub(super) struct InForce(Mutex<Arc<Loaded>>);

impl InForce {
    pub fn new(loaded: Loaded) -> Self {
        Self(Mutex::new(Arc::new(loaded)))
    }

    pub fn get(&self) -> Arc<Loaded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, loaded: Loaded) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
    }
}

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("log = {filter:?} is no filter: {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("http_token_file = {}: {source}", path.display())]
    Token { path: PathBuf, source: TokenError },
}

/// Changes the filter of the log.
pub(super) type SetFilter = Box<dyn Fn(EnvFilter) -> bool>;

/// What a reload needs.
pub(super) struct Reloader {
    /// The command line: it wins over the file also the second time.
    pub args: ServeArgs,
    pub in_force: Arc<InForce>,
    pub token: TokenCell,
    /// The keys of tokens in force, for another start.
    pub keys: RefCell<Option<Arc<Keys>>>,
    pub set_filter: SetFilter,
}

impl Reloader {
    /// Reads the configuration again and takes over what can be: all of it, or nothing if
    /// something is wrong.
    pub fn reload(&self, shards: &mut Shards) -> Result<Value, ReloadError> {
        let result = self.try_reload(shards);
        match &result {
            Ok(done) => info!(
                changed = %done["changed"],
                needs_restart = %done["needs_restart"],
                "the configuration was read again"
            ),
            Err(error) => {
                warn!(%error, "the configuration was read again and is wrong; nothing changed")
            }
        }
        result
    }

    fn try_reload(&self, shards: &mut Shards) -> Result<Value, ReloadError> {
        let new = self.args.load(std::env::vars().collect())?;
        let Reloaded { loaded, changed, needs_restart } = self.in_force.get().reload(new)?;
        let config = &loaded.config;
        let filter = EnvFilter::try_new(&config.log)
            .map_err(|source| ReloadError::Filter { filter: config.log.clone(), source })?;
        // The file may hold another token than before under the same name.
        let token = read_token(config.http_token_file.as_ref())
            .map_err(|(path, source)| ReloadError::Token { path, source })?;
        (self.set_filter)(filter);
        self.token.set(token);
        let deaf = shards.reconfigure(&config.shard);
        self.in_force.set(loaded);
        Ok(json!({ "changed": changed, "needs_restart": needs_restart, "silent_shards": deaf }))
    }
}

/// The token in the file that the configuration names, if it names one.
pub(super) fn read_token(path: Option<&PathBuf>) -> Result<Option<Token>, (PathBuf, TokenError)> {
    path.map(|path| Token::read(path).map_err(|source| (path.clone(), source))).transpose()
}
