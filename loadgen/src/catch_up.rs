//! Members that read history from its start, again and again, beside the members that are
//! measured. They have a thread of their own that gives way to the others on its core.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fanfare::client::{AckMode, Core, Event, Membership, Options};
use fanfare::limits::FRAME_MAX;
use fanfare::position::{Nanos, Seq};
use fanfare::ring::{ClientEvent, ClientRing};
use fanfare::wire::{Deliver, ServerFrame, split};

use crate::clock::now_ns;
use crate::connect;
use crate::error::LoadError;
use crate::history::{self, History};
use crate::shared::{Phase, Shared};
use crate::violation::{Kind, Violations};

const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Longest frame that is accepted.
const SERVER_FRAME_MAX: usize = FRAME_MAX + 4096;
const RECV_BUFFERS: u16 = 64;
const RECV_BUFFER_BYTES: u32 = 64 * 1024;
/// The lowest priority: members that are measured have the core when they want it.
const NICE: i32 = 19;

/// What they have read, while the others were measured.
#[derive(Default)]
pub struct Read {
    /// Messages.
    pub messages: AtomicU64,
    /// Bytes of them, as frames.
    pub bytes: AtomicU64,
    /// Times that a member came to the end.
    pub rounds: AtomicU64,
}

struct Reader {
    core: Core,
    number: u32,
    group: u32,
    name: String,
    head: u64,
    last: u64,
    /// The start of a frame whose end has not come yet.
    carry: Vec<u8>,
}

/// Reads until the run is over. `nth` is the number of the first connection.
pub fn run(
    history: &History,
    members: u32,
    nth: u32,
    shared: &Shared,
    read: &Read,
) -> Result<Violations, LoadError> {
    // Of this thread alone; if it is not allowed the run is only less fair.
    let _ = rustix::process::setpriority_process(None, NICE);
    let mut violations = Violations::default();
    while shared.phase() == Phase::Join {
        std::thread::sleep(SLEEP_MAX);
    }
    let mut ring =
        ClientRing::new(members + 1, RECV_BUFFERS, RECV_BUFFER_BYTES).map_err(LoadError::Ring)?;
    let mut readers: Vec<Option<Reader>> = Vec::new();
    readers.resize_with(members as usize + 1, || None);
    for number in 0..members {
        let mut reader = Reader::new(history, number)?;
        let socket = connect::connect(shared.addr, nth + number)?;
        let slot = ring.attach(socket).map_err(LoadError::Ring)?;
        let now = Nanos(now_ns());
        reader.core.connected(now);
        reader.core.advance(now);
        ring.send(slot, Bytes::from(reader.core.take_output()));
        readers[slot as usize] = Some(reader);
    }
    let mut to_send = Vec::new();
    let mut wake = 0;
    while matches!(shared.phase(), Phase::Run | Phase::Drain) {
        ring.wait(Some(SLEEP_MAX), &mut |event| match event {
            ClientEvent::Received { slot, bytes } => {
                let Some(reader) = &mut readers[slot as usize] else { return };
                reader.receive(bytes, read, &mut violations);
                if !reader.core.output().is_empty() {
                    to_send.push(slot);
                }
            }
            ClientEvent::Sent { .. } => {}
            ClientEvent::Closed { slot, .. } => {
                if let Some(reader) = readers[slot as usize].take() {
                    violations.add(Kind::Closed, 1, || {
                        format!("{}: connection closed while it read history", reader.member())
                    });
                }
            }
        })
        .map_err(LoadError::Ring)?;
        for slot in to_send.drain(..) {
            if let Some(reader) = &mut readers[slot as usize] {
                ring.send(slot, Bytes::from(reader.core.take_output()));
            }
        }
        // Heartbeats: looked for once in a while, since they are far apart.
        let now = now_ns();
        if now > wake {
            wake = now + 500_000_000;
            for (slot, reader) in readers.iter_mut().enumerate() {
                let Some(reader) = reader else { continue };
                reader.core.advance(Nanos(now));
                if !reader.core.output().is_empty() {
                    ring.send(slot as u32, Bytes::from(reader.core.take_output()));
                }
            }
        }
        if violations.total() > 0 {
            shared.failed.store(true, Ordering::Relaxed);
        }
    }
    Ok(violations)
}

impl Reader {
    fn new(history: &History, number: u32) -> Result<Self, LoadError> {
        let group = number % history.groups;
        let mut options = Options::new(format!("r{number:06}")).acks(AckMode::Explicit);
        options.eager = true;
        options.answer_timeout_ms = u64::MAX;
        let mut reader = Self {
            core: Core::new(options).map_err(LoadError::Client)?,
            number,
            group,
            name: history.name(group),
            head: u64::MAX,
            last: 0,
            carry: Vec::new(),
        };
        reader.join().map_err(LoadError::Client)?;
        Ok(reader)
    }

    fn member(&self) -> String {
        format!("r{:06}", self.number)
    }

    fn join(&mut self) -> Result<(), fanfare::client::ClientError> {
        (self.head, self.last) = (u64::MAX, 0);
        self.core.join(self.name.as_bytes(), Membership::live().from(Seq(1)))
    }

    fn receive(&mut self, bytes: &[u8], read: &Read, violations: &mut Violations) {
        let mut carry = std::mem::take(&mut self.carry);
        if carry.is_empty() {
            let taken = self.frames(bytes, read, violations);
            carry.extend_from_slice(&bytes[taken..]);
        } else {
            carry.extend_from_slice(bytes);
            let taken = self.frames(&carry, read, violations);
            carry.drain(..taken);
        }
        self.carry = carry;
    }

    fn frames(&mut self, bytes: &[u8], read: &Read, violations: &mut Violations) -> usize {
        let (mut at, mut messages, mut sizes) = (0, 0, 0);
        while let Some((frame, len)) = split(&bytes[at..], SERVER_FRAME_MAX).unwrap_or_default() {
            at += len;
            match ServerFrame::decode(frame) {
                Ok(ServerFrame::Deliver(d)) => {
                    messages += 1;
                    sizes += len as u64;
                    self.deliver(&d, violations);
                }
                Ok(other) => self.control(&other, violations),
                Err(e) => violations.add(Kind::Corrupt, 1, || format!("{}: {e}", self.member())),
            }
            if self.last >= self.head {
                self.head = u64::MAX;
                read.rounds.fetch_add(1, Ordering::Relaxed);
                // The end: once more from the start, when LEFT has come.
                let _ = self.core.leave(self.name.as_bytes());
                self.core.advance(Nanos(now_ns()));
            }
        }
        read.messages.fetch_add(messages, Ordering::Relaxed);
        read.bytes.fetch_add(sizes, Ordering::Relaxed);
        at
    }

    fn deliver(&mut self, d: &Deliver<'_>, violations: &mut Violations) {
        let expected = self.last + 1;
        self.last = d.seq.0;
        if d.seq.0 != expected {
            let kind = if d.seq.0 > expected { Kind::Lost } else { Kind::Duplicate };
            violations.add(kind, 1, || {
                let (member, name) = (self.member(), &self.name);
                format!("{member} got seq {} of {name} where {expected} should be", d.seq)
            });
        } else if !history::is(self.group, d.seq.0, d.payload) {
            violations.add(Kind::Corrupt, 1, || {
                let (member, name) = (self.member(), &self.name);
                format!("{member} got other bytes for seq {} of {name} than were published", d.seq)
            });
        }
    }

    fn control(&mut self, frame: &ServerFrame<'_>, violations: &mut Violations) {
        let now = Nanos(now_ns());
        let mut event = self.core.take(frame, now);
        while let Some(this) = event.or_else(|| self.core.next_event(now)) {
            event = None;
            match this {
                Event::Joined(j) => self.head = j.head.0,
                Event::Left { .. } => {
                    let _ = self.join();
                }
                Event::Gap { from, to, .. } => {
                    self.last = to.0;
                    violations.add(Kind::Lost, to.0 - from.0 + 1, || {
                        let (member, name) = (self.member(), &self.name);
                        format!(
                            "{member}: the server announced a gap in {name}, seq {from} to {to}; is its retention large enough for the history?"
                        )
                    });
                }
                Event::JoinFailed { error, .. } => {
                    violations.add(Kind::Closed, 1, || format!("{}: {error}", self.member()));
                }
                _ => {}
            }
        }
        self.core.advance(now);
    }
}
