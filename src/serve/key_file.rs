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
use crate::auth::Keys;
use crate::config::AuthConfig;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
type Seen = (u64, u64, i64, i64);

fn seen(path: &PathBuf) -> Option<Seen> {
    let of = |file: Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
    std::fs::metadata(path).ok().map(of)
}

/// Watches the key file for as long as there is a control thread. `keys` are those in force.
pub(super) fn watch(auth: AuthConfig, keys: &Keys, orders: Sender<Order>) -> std::io::Result<()> {
    let mut in_force = seen(&auth.keys);
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
