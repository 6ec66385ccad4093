//! The admin socket: a Unix socket in the data directory that says how the server is, as JSON.
//! One thread answers one question after the other. It asks the control thread, which asks the
//! shards over their rings; a shard is never waited for by another, and holds no lock.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::control::Order;
use crate::shard::counters::Figures;
use crate::shard::status::{ShardStatus, SlowMember};

/// Name of the socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Longest question.
const QUESTION_MAX: u64 = 64;
/// How long whoever asks may take to ask, and to read the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// How long the control thread may take; a little more than it gives the shards.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// What the shards said; `None` for one that did not answer in time.
pub(super) type Statuses = Vec<Option<Box<ShardStatus>>>;

/// The socket; its file goes when this is dropped.
pub(super) struct AdminSocket {
    path: PathBuf,
}

impl AdminSocket {
    /// Listens in `dir`, for the owner of the server alone.
    pub fn open(dir: &Path, orders: Sender<Order>) -> io::Result<Self> {
        let path = dir.join(ADMIN_SOCKET);
        // Under its own name it never has other rights than these. The lock of the data
        // directory says that nobody else uses what is there.
        let unnamed = dir.join("admin.sock.new");
        let _ = std::fs::remove_file(&unnamed);
        let listener = UnixListener::bind(&unnamed)?;
        std::fs::set_permissions(&unnamed, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&unnamed, &path)?;
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that went away or is silent is its own affair.
                let _ = answer(client, &orders);
            }
        })?;
        Ok(Self { path })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer(mut client: UnixStream, orders: &Sender<Order>) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let mut question = String::new();
    BufReader::new((&client).take(QUESTION_MAX)).read_line(&mut question)?;
    let answer = match question.trim() {
        "status" => status(orders),
        other => json!({ "error": format!("unknown question {other:?}; ask for status") }),
    };
    client.write_all(format!("{answer}\n").as_bytes())
}

fn status(orders: &Sender<Order>) -> Value {
    let (to, from) = channel();
    let asked = orders.send(Order::Status(to)).is_ok();
    match from.recv_timeout(ANSWER_TIME) {
        Ok(statuses) if asked => status_json(&statuses),
        _ => json!({ "error": "the server is starting or stopping" }),
    }
}

fn status_json(statuses: &Statuses) -> Value {
    let total =
        statuses.iter().flatten().fold(Figures::default(), |sum, status| sum.plus(&status.figures));
    let shards: Vec<_> = statuses.iter().flatten().map(|status| shard_json(status)).collect();
    let silent: Vec<_> = (0..statuses.len()).filter(|shard| statuses[*shard].is_none()).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "unix_ms": std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64,
        "total": figures_json(&total),
        "shards": shards,
        "silent_shards": silent,
    })
}

fn shard_json(status: &ShardStatus) -> Value {
    json!({
        "shard": status.shard.0,
        "median_write_us": status.median_write_ns / 1_000,
        "median_drain_bytes_per_s": status.median_rate,
        "slowest": status.slowest.iter().map(member_json).collect::<Vec<_>>(),
        "figures": figures_json(&status.figures),
    })
}

fn member_json(member: &SlowMember) -> Value {
    json!({
        "member": String::from_utf8_lossy(&member.member),
        "state": member.health.name(),
        "tripped": member.tripped,
        "drain_bytes_per_s": member.rate,
        "lag_messages": member.lag,
        "groups": member.groups,
    })
}

fn figures_json(figures: &Figures) -> Value {
    Value::Object(
        figures.named().map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>(),
    )
}
