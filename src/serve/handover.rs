//! How a server gives its place to a successor on the same data directory, with nobody refused.
//!
//! ```text
//!  successor                                     predecessor
//!    handover 1 ───── admin.sock ──────────────►  serves on
//!               ◄──── who it is, and its listening sockets (SCM_RIGHTS)
//!    ready ────────────────────────────────────►  DRAIN to everyone, syncs, last snapshot,
//!               ◄──── released ─────────────────  gives the lock back
//!    recovers, accepts
//!    serving ──────────────────────────────────►  ends
//! ```
//!
//! Who connects meanwhile waits in the queue of a listening socket. Both have the sockets, so
//! that queue outlives either of them: if the successor ends before it serves, the predecessor
//! starts again on them; if the predecessor ends, the successor has the lock.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::admin::ADMIN_SOCKET;
use super::ask::NotRunning;
use super::control::Order;
use crate::limits::SHARDS_MAX;

/// What a successor asks the admin socket; the number is the version of this conversation.
pub(super) const QUESTION: &str = "handover 1";
const READY: &str = "ready";
const RELEASED: &str = "released";
const SERVING: &str = "serving";

/// How long the other side may take for what needs no work.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How often somebody who waits for the other side looks up.
const LOOK: Duration = Duration::from_millis(100);
/// How often it says that it still waits.
const REMIND: Duration = Duration::from_secs(10);
/// After the end of the predecessor its lock is free within this time.
pub(super) const LOCK_TIME: Duration = Duration::from_secs(30);
const LINE_MAX: usize = 1024;

/// A server cannot take over from the one that runs.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The conversation failed.
    #[error(
        "the server that runs on this data directory does not hand over: {0}; it goes on serving. \
         Try again, or stop it and start this one"
    )]
    Ask(#[source] io::Error),
    /// It said why not.
    #[error(
        "the server that runs on this data directory does not hand over: it says {0:?}. Stop it \
         and start this one"
    )]
    Refused(String),
    /// The configurations do not fit together.
    #[error(
        "the server that runs on this data directory listens on {theirs}, this one is to listen on \
         {ours}; take over with the same --listen, or stop it and start this one"
    )]
    Address {
        /// Of the predecessor.
        theirs: SocketAddr,
        /// As configured.
        ours: SocketAddr,
    },
}

/// The first line of the predecessor; its sockets come with it.
#[derive(Serialize, Deserialize)]
struct Offer {
    /// Its process.
    pid: u32,
    /// Its version.
    version: String,
}

// ---- the successor ----

/// The server that runs, which this one takes over from.
pub(super) struct Predecessor {
    line: UnixStream,
    pid: u32,
    sockets: Vec<TcpListener>,
}

impl Predecessor {
    /// Asks the server on `data_dir` for its sockets; `None` if there is none.
    pub fn ask(data_dir: &Path, listen: SocketAddr) -> Result<Option<Self>, HandoverError> {
        let line = match UnixStream::connect(data_dir.join(ADMIN_SOCKET)) {
            Ok(line) => line,
            Err(e) if is_nobody(&e) => return Ok(None),
            Err(e) => return Err(HandoverError::Ask(e)),
        };
        let (offer, sockets) = (|| {
            line.set_read_timeout(Some(ANSWER_TIME))?;
            (&line).write_all(format!("{QUESTION}\n").as_bytes())?;
            receive_sockets(&line)
        })()
        .map_err(HandoverError::Ask)?;
        // A server that knows nothing of this answers with what it does not know.
        let Ok(Offer { pid, version }) = serde_json::from_str(&offer) else {
            return Err(HandoverError::Refused(offer));
        };
        let theirs = match sockets.first().map(TcpListener::local_addr) {
            Some(Ok(address)) => address,
            Some(Err(e)) => return Err(HandoverError::Ask(e)),
            None => return Err(HandoverError::Ask(io::ErrorKind::UnexpectedEof.into())),
        };
        if listen.port() != 0 && theirs != listen {
            return Err(HandoverError::Address { theirs, ours: listen });
        }
        info!(pid, version, sockets = sockets.len(), "taking over from the server that runs");
        Ok(Some(Self { line, pid, sockets }))
    }

    /// Asks it to drain, and waits until it has given the data directory back, or has ended.
    /// Clients that connect meanwhile wait. Returns whether that was `wanted` to the end.
    pub fn drain(&self, mut wanted: impl FnMut() -> bool) -> Result<bool, HandoverError> {
        let begun = Instant::now();
        (&self.line).write_all(format!("{READY}\n").as_bytes()).map_err(HandoverError::Ask)?;
        let mut goes_on = true;
        let wanted = || {
            goes_on = wanted();
            goes_on
        };
        let said = wait_for_line(&self.line, wanted, |waited| {
            warn!(pid = self.pid, ?waited, "the predecessor has not stopped yet");
        });
        match said.as_deref() {
            Some(RELEASED) => {
                info!(pid = self.pid, took = ?begun.elapsed(), "the predecessor has stopped");
            }
            _ if goes_on => warn!(
                pid = self.pid,
                "the predecessor ended before it had stopped; recovering as after a crash"
            ),
            _ => info!(pid = self.pid, "told to stop; the predecessor goes on"),
        }
        Ok(goes_on)
    }

    /// Its listening sockets.
    pub fn take_sockets(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.sockets)
    }

    /// Tells it that it is no longer needed.
    pub fn release(self) {
        // If it is gone, it does not need to know.
        let _ = (&self.line).write_all(format!("{SERVING}\n").as_bytes());
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

// ---- the predecessor ----

/// Whoever takes over from this server.
pub(super) struct Successor {
    line: UnixStream,
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The successor serves.
    Served,
    /// It ended before.
    Gone,
}

impl Successor {
    /// Talks to a process that wants to take over, up to when it is ready. It has a thread, since
    /// the admin socket must answer others meanwhile.
    pub fn meet(line: UnixStream, orders: Sender<Order>) -> io::Result<()> {
        std::thread::Builder::new().name("handover".into()).spawn(move || {
            match Self::get_ready(line, &orders) {
                Ok(successor) => drop(orders.send(Order::HandOver(successor))),
                Err(error) => {
                    warn!(%error, "somebody wanted to take over, but did not get ready; serving on");
                }
            }
        })?;
        Ok(())
    }

    fn get_ready(line: UnixStream, orders: &Sender<Order>) -> io::Result<Self> {
        let (to, from) = channel();
        let asked = orders.send(Order::Sockets(to)).is_ok();
        let sockets = from.recv_timeout(ANSWER_TIME).ok().filter(|_| asked);
        let sockets = sockets.ok_or_else(|| io::Error::other(NotRunning))??;
        let offer =
            Offer { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() };
        send_sockets(&line, &serde_json::to_string(&offer)?, &sockets)?;
        line.set_read_timeout(Some(ANSWER_TIME))?;
        match read_line(&line)?.as_str() {
            READY => Ok(Self { line }),
            other => Err(io::Error::other(format!("it said {other:?}"))),
        }
    }

    /// Tells it that the data directory is free.
    pub fn released(&self) {
        let _ = (&self.line).write_all(format!("{RELEASED}\n").as_bytes());
    }

    /// Waits until it serves or has ended, or as long as `wanted` says.
    pub fn wait(&self, wanted: impl FnMut() -> bool) -> Ended {
        let said = wait_for_line(&self.line, wanted, |waited| {
            warn!(?waited, "the successor does not serve yet; if it ends, this server goes on");
        });
        if said.as_deref() == Some(SERVING) { Ended::Served } else { Ended::Gone }
    }
}

// ---- both ----

/// The next line, or `None` if the other side has ended or nobody wants it any more.
fn wait_for_line(
    line: &UnixStream,
    mut wanted: impl FnMut() -> bool,
    mut remind: impl FnMut(Duration),
) -> Option<String> {
    let (begun, mut reminded) = (Instant::now(), Instant::now());
    line.set_read_timeout(Some(LOOK)).ok()?;
    while wanted() {
        match read_line(line) {
            Ok(said) => return Some(said),
            // Lines are shorter than what a socket takes at once, so none is cut by this.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        if reminded.elapsed() >= REMIND {
            reminded = Instant::now();
            remind(begun.elapsed());
        }
    }
    None
}

/// Byte by byte: what comes after the line stays in the socket.
fn read_line(mut line: &UnixStream) -> io::Result<String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while text.len() < LINE_MAX {
        line.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(text).map_err(io::Error::other);
        }
        text.push(byte[0]);
    }
    Err(io::Error::other("its line is too long"))
}

/// Sends a line, and with its first byte the sockets.
fn send_sockets(mut line: &UnixStream, text: &str, sockets: &[TcpListener]) -> io::Result<()> {
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SHARDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("there are too many sockets"));
    }
    let text = format!("{text}\n");
    let (first, rest) = text.as_bytes().split_at(1);
    let first = [IoSlice::new(first)];
    retry_on_intr(|| sendmsg(line, &first, &mut ancillary, SendFlags::NOSIGNAL))?;
    line.write_all(rest)
}

fn receive_sockets(line: &UnixStream) -> io::Result<(String, Vec<TcpListener>)> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SHARDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut into = [IoSliceMut::new(&mut first)];
    if retry_on_intr(|| recvmsg(line, &mut into, &mut ancillary, flags))?.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let messages = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let sockets = messages.flatten().map(|fd: OwnedFd| TcpListener::from(fd)).collect();
    Ok((format!("{}{}", char::from(first[0]), read_line(line)?), sockets))
}
