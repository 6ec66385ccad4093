//! The control thread: signals, figures, questions of the admin socket. It shares no lock with a
//! shard, and sleeps unless a signal comes or figures are asked for.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::ask::{Asked, Asker};
use super::handover::Successor;
use super::reload::{ReloadError, Reloader};
use super::tls::TlsWatch;
use super::{ServeError, Shards};
use crate::auth::Keys;
use crate::position::ShardId;
use crate::shard::counters::Figures;
use crate::shard::look::Look;

/// Exit code after a second signal: 128 and its number, as shells report a process that a
/// signal ended.
pub(crate) const SIGNALLED: i32 = 128;

/// SIGTERM, SIGINT and SIGHUP, from a thread that waits for them.
pub(super) struct Signals {
    orders: Receiver<Order>,
    to: Sender<Order>,
}

/// What the control thread is asked for.
pub(super) enum Order {
    /// To stop in good order.
    Stop,
    /// To go on with these keys.
    Keys(Arc<Keys>),
    /// To read the configuration again, and say what came of it.
    Reload(Option<oneshot::Sender<Result<Value, ReloadError>>>),
    /// To ask all shards, or one.
    Look(Look, Option<ShardId>, oneshot::Sender<Asked>),
    /// The sockets that the shards accept from.
    Sockets(Sender<io::Result<Vec<TcpListener>>>),
    /// To stop in good order for whoever takes over.
    HandOver(Successor),
}

/// Why the shards are to stop.
pub(super) enum Stop {
    /// A signal came.
    Signal,
    /// Somebody takes over.
    HandOver(Successor),
}

impl Signals {
    /// Watches from now on. The first of SIGTERM and SIGINT is reported, the second ends the
    /// process at once.
    pub fn watch() -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (to, orders) = channel();
        let stop = to.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut stops = false;
            for signal in signals.forever() {
                if signal == SIGHUP {
                    let _ = stop.send(Order::Reload(None));
                    continue;
                }
                if std::mem::replace(&mut stops, true) {
                    // Nothing that was acknowledged is lost by this: it is on disk.
                    std::process::exit(SIGNALLED + signal);
                }
                let _ = stop.send(Order::Stop);
            }
        })?;
        Ok(Self { orders, to })
    }

    /// For those who ask and give orders.
    pub fn asker(&self) -> Asker {
        Asker(self.to.clone())
    }

    /// Where others give orders.
    pub fn orders(&self) -> Sender<Order> {
        self.to.clone()
    }

    /// Takes no more orders: whoever asks learns that nobody answers.
    pub fn close(&mut self) {
        self.orders = channel().1;
    }

    /// Whether a signal came while no shard runs. New keys are kept in `keys`, for shards that
    /// may start again; nothing is there that could follow other orders, so they are dropped.
    pub fn say_stop(&self, keys: &RefCell<Option<Arc<Keys>>>) -> bool {
        let mut stops = false;
        for order in self.orders.try_iter() {
            match order {
                Order::Stop => stops = true,
                Order::Keys(new) => {
                    keys.replace(Some(new));
                }
                _ => {}
            }
        }
        stops
    }
}

/// Watches over running shards until they are to stop.
pub(super) fn watch(
    shards: &mut Shards,
    signals: &Signals,
    reloader: &Reloader,
    mut tls: Option<&mut TlsWatch>,
) -> Stop {
    let mut last = (Instant::now(), Figures::default());
    loop {
        let stats_interval = reloader.in_force.get().config.stats_interval;
        let left = stats_interval.map(|interval| interval.saturating_sub(last.0.elapsed()));
        let look = tls.as_deref().map(TlsWatch::wait);
        let order = match left.into_iter().chain(look).min() {
            None => signals.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => signals.orders.recv_timeout(wait),
        };
        match order {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return Stop::Signal,
            Ok(Order::HandOver(successor)) => return Stop::HandOver(successor),
            Ok(Order::Reload(to)) => {
                let done = reloader.reload(shards);
                if let Some(tls) = &mut tls {
                    tls.reload(shards);
                }
                if let Some(to) = to {
                    let _ = to.send(done);
                }
            }
            Ok(Order::Keys(keys)) => {
                shards.give_keys(&keys);
                reloader.keys.replace(Some(keys));
            }
            Ok(Order::Look(look, only, to)) => {
                // Whoever asked may be gone.
                let _ = to.send(shards.ask(&look, only));
            }
            Ok(Order::Sockets(to)) => {
                let _ = to.send(shards.sockets());
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(tls) = &mut tls {
                    tls.look(shards);
                }
                if stats_interval.is_none_or(|interval| last.0.elapsed() < interval) {
                    continue;
                }
                let now = (Instant::now(), shards.figures());
                log_figures(&last, &now);
                last = now;
            }
        }
    }
}

/// Stops running shards and gives the data directory back. Returns whether that was clean.
pub(super) fn stop(mut shards: Shards) -> Result<bool, ServeError> {
    let (begun, before) = (Instant::now(), shards.figures());
    info!(
        connections = before.connections,
        members = before.members,
        "stopping: no new connections and messages, finishing what was accepted; a second signal stops at once"
    );
    shards.drain();
    let (figures, clean) = shards.join()?;
    let summary: Vec<_> = figures.named().map(|(name, value)| format!("{name}={value}")).collect();
    if clean {
        info!(took = ?begun.elapsed(), "stopped; {}", summary.join(" "));
    } else {
        warn!(took = ?begun.elapsed(), "stopped, but not clean; {}", summary.join(" "));
    }
    Ok(clean)
}

/// One line: rates since the last one, and what is held now.
fn log_figures(before: &(Instant, Figures), now: &(Instant, Figures)) {
    let seconds = now.0.duration_since(before.0).as_secs_f64().max(1e-3);
    let per_s = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
    let (a, b) = (&before.1, &now.1);
    info!(
        messages_per_s = per_s(b.messages, a.messages),
        deliveries_per_s = per_s(b.deliveries, a.deliveries),
        writes_per_s = per_s(b.writes, a.writes),
        commits_per_s = per_s(b.commits, a.commits),
        turns_per_s = per_s(b.turns, a.turns),
        connections = b.connections,
        members = b.members,
        groups = b.groups,
        tail_bytes = b.tail_bytes,
        pinned_bytes = b.pinned_bytes,
        inbox_bytes = b.inbox_bytes,
        catch_up_members = b.catch_up_members,
        gaps_retention = b.gaps_retention,
        gaps_unreadable = b.gaps_unreadable,
        lagging = b.members_lagging,
        tripped = b.members_tripped,
        stalled = b.stalled,
        silent = b.silent,
        throttled = b.throttled,
        refused = b.refused,
        "figures"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use crate::auth::Expected;

    #[test]
    fn keys_that_come_while_no_shard_runs_are_kept_for_the_next_start() {
        let secret = "0123456789abcdef0123456789abcdef".as_bytes();
        let new = Arc::new(Keys::parse(secret, &Expected::default()).unwrap());
        let (to, orders) = channel();
        let (signals, keys) = (Signals { orders, to: to.clone() }, RefCell::new(None));
        to.send(Order::Keys(new.clone())).unwrap();
        assert!(!signals.say_stop(&keys));
        assert!(Arc::ptr_eq(keys.borrow().as_ref().unwrap(), &new));
        to.send(Order::Stop).unwrap();
        assert!(signals.say_stop(&keys));
    }
}
