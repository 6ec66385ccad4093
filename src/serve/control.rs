//! The control thread: signals and figures. It shares no lock with a shard, and sleeps unless
//! a signal comes or figures are asked for.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{info, warn};

use super::{ServeError, Shards};
use crate::shard::counters::Figures;

/// Exit code after a second signal: 128 and its number, as shells report a process that a
/// signal ended.
const SIGNALLED: i32 = 128;

/// SIGTERM and SIGINT, from a thread that waits for them.
pub(super) struct Signals {
    stops: Receiver<()>,
    ended: Sender<()>,
}

impl Signals {
    /// Watches from now on. The first signal is reported, the second ends the process at once.
    pub fn watch() -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
        let (stop, stops) = channel();
        let ended = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for (count, signal) in signals.forever().enumerate() {
                if count > 0 {
                    // Nothing that was acknowledged is lost by this: it is on disk.
                    std::process::exit(SIGNALLED + signal);
                }
                let _ = stop.send(());
            }
        })?;
        Ok(Self { stops, ended })
    }
}

/// Watches over running shards until they have stopped. Returns whether that was clean.
pub(super) fn run(
    mut shards: Shards,
    signals: Signals,
    stats_interval: Option<Duration>,
) -> Result<bool, ServeError> {
    let mut last = (Instant::now(), Figures::default());
    loop {
        let stop = match stats_interval {
            None => signals.stops.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(interval) => signals.stops.recv_timeout(interval),
        };
        if stop != Err(RecvTimeoutError::Timeout) {
            break;
        }
        let now = (Instant::now(), shards.figures());
        log_figures(&last, &now);
        last = now;
    }
    drop(signals.ended);
    info!(
        "stopping: no new connections and messages, finishing what was accepted; a second signal stops at once"
    );
    shards.drain();
    let (figures, clean) = shards.join()?;
    let summary: Vec<_> = figures.named().map(|(name, value)| format!("{name}={value}")).collect();
    if clean {
        info!("stopped; {}", summary.join(" "));
    } else {
        warn!("stopped, but not clean; {}", summary.join(" "));
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
        gaps = b.gaps,
        stalled = b.stalled,
        silent = b.silent,
        throttled = b.throttled,
        refused = b.refused,
        "figures"
    );
}
