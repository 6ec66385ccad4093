//! The key file is read again when it changes. A thread of its own looks at it once a second and
//! hands new keys to the control thread; what cannot be used is said, and the keys stay.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tracing::{info, warn};

use super::control::Order;
use crate::auth::{KeyError, Keys};
use crate::config::AuthConfig;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
type Seen = (u64, u64, i64, i64);

fn seen(path: &PathBuf) -> Option<Seen> {
    let of = |file: Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
    std::fs::metadata(path).ok().map(of)
}

/// The keys that are in force, and the file they are from.
pub(super) struct KeyFile {
    auth: AuthConfig,
    seen: Option<Seen>,
    /// The keys.
    pub keys: Arc<Keys>,
}

impl KeyFile {
    /// Reads the file for the first time.
    pub fn load(auth: &AuthConfig) -> Result<Self, KeyError> {
        // Looked at before, so that a change meanwhile is seen later.
        let seen = seen(&auth.keys);
        let keys = Arc::new(Keys::load(&auth.keys, &auth.expected)?);
        Ok(Self { auth: auth.clone(), seen, keys })
    }

    /// Watches the file for as long as there is a control thread.
    pub fn watch(self, orders: Sender<Order>) -> std::io::Result<()> {
        let Self { auth, seen: mut in_force, keys } = self;
        let mut count = keys.count();
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            let mut before = in_force;
            loop {
                std::thread::sleep(LOOK);
                let now = seen(&auth.keys);
                // Only what rests is read: a file that is being written may look whole.
                if now == std::mem::replace(&mut before, now) && now != in_force && now.is_some() {
                    in_force = now;
                    let path = auth.keys.display();
                    match Keys::load(&auth.keys, &auth.expected) {
                        Ok(keys) => {
                            info!(%path, keys = keys.count(), before = count, "the key file was read again");
                            count = keys.count();
                            if orders.send(Order::Keys(Arc::new(keys))).is_err() {
                                return;
                            }
                        }
                        Err(error) => warn!(%error, "the keys from before stay in force"),
                    }
                }
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::auth::Expected;

    #[test]
    fn a_change_between_reading_and_watching_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "a secret of thirty-two characters").unwrap();
        let auth = AuthConfig { keys: path.clone(), expected: Expected::default() };
        let file = KeyFile::load(&auth).unwrap();
        let keys = file.keys.clone();
        std::fs::write(&path, "another one that is not as long as that").unwrap();
        let (orders, from) = channel();
        file.watch(orders).unwrap();
        let order = from.recv_timeout(10 * LOOK);
        assert!(matches!(order, Ok(Order::Keys(newer)) if !Arc::ptr_eq(&keys, &newer)));
    }
}
