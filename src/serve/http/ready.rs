//! `/readyz`: whether messages get through. For each shard a message is published by a client on
//! it, in a group that it owns, and must come to a member on the next shard: through socket, log,
//! ring and socket again, as a user's message does. Not more often than once a second, however
//! often it is asked; the clients go when nobody has asked for a while.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::oneshot;

use super::State;
use crate::auth::own_token;
use crate::client::blocking::Client;
use crate::client::{Event, Membership, Options, Publishing};
use crate::position::{Level, ShardId};
use crate::serve::ask::NotRunning;
use crate::shard::look::Look;
use crate::shard::owner_of;

/// Who the probe is.
const MEMBER: &str = "fanfare/probe";
/// How the names of its groups begin.
const GROUPS: &str = "fanfare/probe/";
/// An answer holds for so long.
const FRESH: Duration = Duration::from_secs(1);
/// A round takes no longer, however many shards do not answer.
const ROUND_MAX: Duration = Duration::from_secs(3);
/// A connection must be open by then.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// The clients go after so long without a question.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Questions that wait for a round; there are no more connections.
const WAITING_MAX: usize = 64;
/// Connections that are opened to find one on each shard: the kernel spreads them by chance, so
/// this many times the shards' number misses one of 64 with a chance below 1 in 10,000.
const TRIES_PER_SHARD: usize = 20;

/// What became of one round.
#[derive(Clone, Debug)]
struct Round {
    at: Instant,
    /// By shard: how long the message took, or why it did not come.
    shards: Vec<Result<Duration, String>>,
}

/// The thread that probes, seen from those who ask.
#[derive(Debug)]
pub(super) struct Prober {
    to: SyncSender<oneshot::Sender<Round>>,
}

impl Prober {
    /// Starts the thread; it opens nothing before it is asked.
    pub fn start(listen: SocketAddr, hash_seed: u64, shards: u16) -> std::io::Result<Self> {
        let (to, asked) = sync_channel(WAITING_MAX);
        let groups = (0..shards).map(|shard| group_of(ShardId(shard), hash_seed, shards)).collect();
        let probe = Probe { address: reachable(listen), groups, clients: BTreeMap::new(), sent: 0 };
        std::thread::Builder::new().name("probe".into()).spawn(move || run(probe, &asked))?;
        Ok(Self { to })
    }

    async fn ask(&self) -> Option<Round> {
        let (to, from) = oneshot::channel();
        match self.to.try_send(to) {
            Ok(()) => from.await.ok(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }
}

pub(super) async fn answer(Shared(state): Shared<Arc<State>>) -> Response {
    let running = state.asker.ask(Look::Status { slowest: false }, None).await;
    let round = match running {
        Err(NotRunning) => None,
        Ok(_) => state.prober.ask().await,
    };
    let Some(round) = round else {
        let why = json!({ "ready": false, "error": NotRunning.to_string() });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(why)).into_response();
    };
    let ready = round.shards.iter().all(Result::is_ok);
    let shards = round.shards.iter().enumerate().map(|(shard, result)| match result {
        Ok(latency) => json!({ "shard": shard, "latency_us": latency.as_micros() as u64 }),
        Err(error) => json!({ "shard": shard, "error": error }),
    });
    let shards: Vec<_> = shards.collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let age_ms = round.at.elapsed().as_millis() as u64;
    (status, Json(json!({ "ready": ready, "age_ms": age_ms, "shards": shards }))).into_response()
}

/// Where a client of this host reaches the server.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// A group for probes that this shard owns.
fn group_of(shard: ShardId, hash_seed: u64, shards: u16) -> String {
    let names = (0..).map(|n: u32| format!("{GROUPS}{n}"));
    let mut owned = names.filter(|name| owner_of(name.as_bytes(), hash_seed, shards) == shard);
    owned.next().unwrap_or_default()
}

fn run(mut probe: Probe, asked: &Receiver<oneshot::Sender<Round>>) {
    let mut last: Option<Round> = None;
    let mut asked_at = Instant::now();
    loop {
        let question = if probe.clients.is_empty() {
            asked.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            asked.recv_timeout(FRESH)
        };
        match question {
            Ok(to) => {
                asked_at = Instant::now();
                let round = match last.take() {
                    Some(round) if round.at.elapsed() < FRESH => round,
                    _ => probe.round(),
                };
                // Whoever asked may be gone.
                let _ = to.send(round.clone());
                last = Some(round);
            }
            Err(RecvTimeoutError::Timeout) if asked_at.elapsed() > IDLE_MAX => {
                probe.clients.clear()
            }
            Err(RecvTimeoutError::Timeout) => probe.keep_alive(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A client on each shard, and what it publishes and gets.
struct Probe {
    address: SocketAddr,
    /// By the shard that owns it.
    groups: Vec<String>,
    /// By the shard that they are on.
    clients: BTreeMap<u16, Client>,
    /// Messages published so far; the last number is in the newest.
    sent: u64,
}

impl Probe {
    fn round(&mut self) -> Round {
        let deadline = Instant::now() + ROUND_MAX;
        self.keep_alive();
        self.connect(deadline);
        let shards = self.groups.len() as u16;
        let shards = (0..shards).map(|shard| {
            let result = self.through(shard, deadline);
            if result.is_err() {
                // Whatever is the matter with them, the next round begins anew.
                self.clients.remove(&shard);
                self.clients.remove(&self.member_for(shard));
            }
            result
        });
        let shards = shards.collect();
        Round { at: Instant::now(), shards }
    }

    /// The shard whose client is the member of the group that `shard` owns.
    fn member_for(&self, shard: u16) -> u16 {
        (shard + 1) % self.groups.len() as u16
    }

    /// Opens a client on each shard that has none.
    fn connect(&mut self, deadline: Instant) {
        let shards = self.groups.len();
        for _ in 0..TRIES_PER_SHARD * shards {
            if self.clients.len() == shards || Instant::now() >= deadline {
                return;
            }
            // One that was refused says nothing of the next: that may come to another shard.
            if let Some((shard, client)) = self.open() {
                self.clients.entry(shard).or_insert(client);
            }
        }
    }

    /// A new client on some shard, a member of the group of the shard before that.
    fn open(&self) -> Option<(u16, Client)> {
        // Where there are no keys nobody looks at it.
        let token = || own_token(MEMBER, GROUPS);
        let mut options = Options::new(MEMBER).token_from(token);
        options.answer_timeout_ms = CONNECT_MAX.as_millis() as u64;
        options.own = true;
        let mut client = Client::connect(self.address, options).ok()?;
        let shard = match client.next(CONNECT_MAX).ok()? {
            Some(Event::Connected(welcome)) => welcome.shard.0,
            _ => return None,
        };
        if self.clients.contains_key(&shard) {
            return Some((shard, client));
        }
        let shards = self.groups.len();
        let group = self.groups.get((usize::from(shard) + shards - 1) % shards)?;
        client.join(group, Membership::live()).ok()?;
        match client.next(CONNECT_MAX).ok()? {
            Some(Event::Joined(_)) => Some((shard, client)),
            _ => None,
        }
    }

    /// One message through this shard.
    fn through(&mut self, shard: u16, deadline: Instant) -> Result<Duration, String> {
        self.sent += 1;
        let payload = self.sent.to_le_bytes();
        let group = &self.groups[usize::from(shard)];
        let missing = |shard| format!("no connection came to shard {shard}");
        let how = Publishing { level: Some(Level::Durable), ..Publishing::default() };
        let start = Instant::now();
        let publisher = self.clients.get_mut(&shard).ok_or_else(|| missing(shard))?;
        publisher.publish_with(group, payload, how).map_err(|error| error.to_string())?;
        let member = self.member_for(shard);
        let client = self.clients.get_mut(&member).ok_or_else(|| missing(member))?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match client.next(left) {
                Ok(Some(Event::Message(message))) if message.payload() == payload => {
                    return Ok(start.elapsed());
                }
                Ok(Some(Event::PublishFailed { error, .. })) => return Err(error.to_string()),
                Ok(Some(Event::PublishHeld { error, .. })) => return Err(error.text),
                Ok(Some(Event::Disconnected { .. })) => return Err("the connection ended".into()),
                // Answers to publishes, and messages of rounds that were given up.
                Ok(Some(_)) => {}
                Ok(None) => return Err("the message did not come in time".into()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Takes what came meanwhile and answers heartbeats. A client whose connection ended goes: it
    /// would come back on another shard.
    fn keep_alive(&mut self) {
        self.clients.retain(|_, client| {
            loop {
                match client.next(Duration::ZERO) {
                    Ok(None) => return true,
                    Ok(Some(Event::Disconnected { .. })) | Err(_) => return false,
                    Ok(Some(_)) => {}
                }
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_group_for_each_shard() {
        for shards in [1, 2, 64] {
            for shard in (0..shards).map(ShardId) {
                let group = group_of(shard, 42, shards);
                assert_eq!(owner_of(group.as_bytes(), 42, shards), shard);
            }
        }
    }

    #[test]
    fn a_server_on_all_addresses_is_reached_over_loopback() {
        let of = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(of("0.0.0.0:7400"), "127.0.0.1:7400");
        assert_eq!(of("[::]:7400"), "[::1]:7400");
        assert_eq!(of("10.1.2.3:7400"), "10.1.2.3:7400");
    }
}
