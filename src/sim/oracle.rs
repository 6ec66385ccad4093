//! What must be true, seen from the clients' side only.

use std::collections::{BTreeMap, BTreeSet};

use super::queries::States;
use super::rng::{Rng, mix};
use super::rosters::Rosters;
use super::trace::{Fault, Faults, Note, Trace};
use crate::position::{Handle, Level, Nanos, Seq, Stamp};
use crate::wire::{Gap, GapReason};

/// Names a message: group, epoch, sequence number.
pub(super) type Name = (usize, u32, u64);

/// What is wrong, in words.
pub(super) type Violation = String;

/// A message that some client sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub client: usize,
    pub group: usize,
    pub level: Level,
    pub payload: Vec<u8>,
    /// When it was sent last.
    pub sent_at: Nanos,
    /// Share of members that a receipt is asked for; 0 asks for none.
    pub receipt: u8,
    pub first_sent: Nanos,
    /// Its publisher was told its place.
    pub answered: bool,
    /// It was refused for certain and not sent again.
    given_up: bool,
    /// Under what name it was seen.
    name: Option<Name>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub id: u64,
    pub handle: Handle,
    /// A publisher was told that it is durable, or it was sent as durable and someone saw it.
    pub durable: bool,
    stamp: Option<Stamp>,
}

/// All that clients sent and saw.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub now: Nanos,
    /// Nothing may take longer than this from sending to delivery; 0 allows any time.
    pub late_ms: u64,
    /// No payload is longer than this, but for the number of its message; 0 allows any.
    pub payload_bytes: usize,
    pub trace: Trace,
    pub faults: Faults,
    pub rosters: Rosters,
    pub states: States,
    sent: Vec<Sent>,
    pub known: BTreeMap<Name, Known>,
    /// Last message of each group that retention took.
    removed: BTreeMap<Handle, Seq>,
    /// Highest epoch of each group.
    epochs: BTreeMap<Handle, u32>,
    /// Groups to which someone published at level memory.
    memory_groups: BTreeSet<usize>,
    /// What lies where a bit flipped.
    damaged: Vec<(Handle, Seq, Seq)>,
    /// What lies where a log read failed again and again. It is there, and later reads may succeed.
    unreadable: Vec<(Handle, Seq, Seq)>,
    /// A bit flipped: what the log says of members, producers and state may be missing too.
    pub rotten: bool,
    pub deliveries: u64,
    pub acknowledged: u64,
    /// Changes with everything that clients see.
    pub digest: u64,
}

impl Oracle {
    pub fn note(&mut self, note: Note) {
        self.trace.note(self.now, note);
    }

    pub fn fault(&mut self, fault: Fault) {
        self.faults.count(fault);
    }

    pub fn fault_if(&mut self, happened: bool, fault: Fault) {
        if happened {
            self.fault(fault);
        }
    }

    /// A new message; its payload follows from the number returned.
    pub fn new_message(&mut self, client: usize, group: usize, level: Level) -> u64 {
        let id = self.sent.len() as u64;
        if level == Level::Memory {
            self.memory_groups.insert(group);
        }
        let mut payload = payload_of(id);
        if self.payload_bytes > 0 {
            payload.truncate(ID_BYTES + self.payload_bytes);
        }
        self.sent.push(Sent {
            client,
            group,
            level,
            payload,
            sent_at: Nanos(0),
            receipt: 0,
            first_sent: Nanos(0),
            answered: false,
            given_up: false,
            name: None,
        });
        id
    }

    /// The payload of a message that was not sent yet gets this length.
    pub fn lengthen(&mut self, id: u64, len: usize) {
        self.sent[id as usize].payload.resize(len, 0);
    }

    pub fn message(&self, id: u64) -> &Sent {
        &self.sent[id as usize]
    }

    /// The message goes to the server, perhaps again.
    pub fn sending(&mut self, id: u64) {
        let sent = &mut self.sent[id as usize];
        sent.sent_at = self.now;
        if sent.first_sent == Nanos(0) {
            sent.first_sent = self.now;
        }
    }

    /// A message came, or the answer to it: not later than it may.
    pub fn in_time(&self, id: u64) -> Result<(), Violation> {
        let took_ms = self.now.since(self.message(id).sent_at) / 1_000_000;
        if self.late_ms > 0 && took_ms > self.late_ms {
            return Err(format!("message {id} took {took_ms} ms"));
        }
        Ok(())
    }

    /// The server said for certain that it did not take the message, each time.
    pub fn given_up(&mut self, id: u64) {
        self.sent[id as usize].given_up = true;
    }

    /// Its publisher wants to know when so many percent of the members have it.
    pub fn wants_receipt(&mut self, id: u64, percent: u8) {
        self.sent[id as usize].receipt = percent;
    }

    /// Whether someone has the message.
    pub fn is_known(&self, id: u64) -> bool {
        self.sent[id as usize].name.is_some()
    }

    /// The server says that the message has this name.
    pub fn answered(
        &mut self,
        name: Name,
        handle: Handle,
        id: u64,
        level: Level,
    ) -> Result<(), Violation> {
        self.acknowledged += 1;
        self.sent[id as usize].answered = true;
        if level == Level::Memory {
            self.fault(Fault::AnsweredEarly);
            if self.message(id).level == Level::Durable {
                return Err(format!("message {id} asked for durable and got memory"));
            }
        }
        self.learn(name, handle, id, level == Level::Durable, None)
    }

    /// A member got a message. Returns its number.
    pub fn delivered(
        &mut self,
        name: Name,
        handle: Handle,
        stamp: Stamp,
        sender: &[u8],
        payload: &[u8],
    ) -> Result<u64, Violation> {
        self.deliveries += 1;
        let id = payload.first_chunk().map_or(u64::MAX, |id| u64::from_le_bytes(*id));
        let Some(sent) = self.sent.get(id as usize) else {
            return Err(format!("{name:?} has a payload that nobody sent"));
        };
        if payload != sent.payload {
            return Err(format!("the payload of message {id} at {name:?} is changed"));
        }
        if sender != member_name(sent.client).as_slice() || sent.group != name.0 {
            return Err(format!("message {id} at {name:?} has another sender or group"));
        }
        let durable = sent.level == Level::Durable;
        self.learn(name, handle, id, durable, Some(stamp))?;
        self.digest = mix(self.digest ^ mix(id ^ name.2 << 32) ^ self.now.0);
        Ok(id)
    }

    fn learn(
        &mut self,
        name: Name,
        handle: Handle,
        id: u64,
        durable: bool,
        stamp: Option<Stamp>,
    ) -> Result<(), Violation> {
        if let Some(known) = self.known.get_mut(&name) {
            if known.id != id {
                return Err(format!("{name:?} is message {} and message {id}", known.id));
            }
            if known.handle != handle {
                return Err(format!("{name:?} has handles {} and {handle}", known.handle));
            }
            if let (Some(a), Some(b)) = (known.stamp, stamp)
                && a != b
            {
                return Err(format!("{name:?} has two stamps"));
            }
            known.stamp = known.stamp.or(stamp);
            known.durable |= durable;
            return Ok(());
        }
        let sent = &mut self.sent[id as usize];
        if sent.given_up {
            return Err(format!("message {id} at {name:?} was refused"));
        }
        // A message has one place, unless a crash took it at level memory and it was sent
        // again.
        if let Some(other) = sent.name.replace(name) {
            let older = other.min(name);
            let lost = older == other && !self.known[&other].durable || older == name && !durable;
            if !self.rotten && (other.1 == name.1 || !lost) {
                return Err(format!("message {id} is {other:?} and {name:?}"));
            }
        }
        self.known.insert(name, Known { id, handle, durable, stamp });
        self.rosters.group_has(handle, name.0);
        Ok(())
    }

    /// Retention takes everything of the group up to `last`.
    pub fn removes(&mut self, handle: Handle, last: Seq) {
        let before = self.removed.entry(handle).or_default();
        *before = last.max(*before);
    }

    /// A group is in this epoch now. It begins a new one only if something may be lost.
    pub fn group_is_in(
        &mut self,
        group: usize,
        handle: Handle,
        epoch: u32,
    ) -> Result<(), Violation> {
        let before = self.epochs.entry(handle).or_insert(epoch);
        let rises = epoch > *before;
        *before = epoch.max(*before);
        let cause = self.rotten || self.memory_groups.contains(&group);
        if rises && !cause {
            return Err("a new epoch, but nothing can be lost".to_owned());
        }
        Ok(())
    }

    /// A disk may have lost these.
    pub fn damages(&mut self, handle: Handle, first: Seq, last: Seq) {
        self.damaged.push((handle, first, last));
    }

    fn is_damaged(&self, handle: Handle, seq: Seq) -> bool {
        has(&self.damaged, handle, seq)
    }

    /// These could not be read as often as a server must try.
    pub fn cannot_read(&mut self, handle: Handle, first: Seq, last: Seq) {
        self.unreadable.push((handle, first, last));
    }

    /// Nobody may be told that messages are gone, or have its cursor moved over them, unless
    /// retention took them, a bit flipped, or reads failed again and again. Messages at level memory
    /// that nobody was told to be durable do not count: a crash may have taken them.
    pub fn may_be_missing(&self, handle: Handle, from: Seq, to: Seq) -> Result<(), Violation> {
        let sound = self.known.iter().find(|((.., seq), known)| {
            let seq = Seq(*seq);
            known.handle == handle
                && known.durable
                && (from..=to).contains(&seq)
                && seq > self.removed(handle)
                && !self.is_damaged(handle, seq)
                && !has(&self.unreadable, handle, seq)
        });
        sound.map_or(Ok(()), |(name, _)| Err(format!("{name:?} is sound on disk")))
    }

    /// Whether one of these messages could not be read.
    pub fn is_unreadable(&self, handle: Handle, from: Seq, to: Seq) -> bool {
        self.unreadable.iter().any(|u| u.0 == handle && u.1 <= to && from <= u.2)
    }

    pub fn removed(&self, handle: Handle) -> Seq {
        self.removed.get(&handle).copied().unwrap_or_default()
    }

    /// A member is told that messages will not come.
    pub fn gap(&mut self, gap: &Gap) -> Result<(), Violation> {
        self.fault(Fault::Gap);
        match gap.reason {
            GapReason::Retention if gap.to <= self.removed(gap.handle) => Ok(()),
            GapReason::Damaged if self.is_unreadable(gap.handle, gap.from, gap.to) => {
                self.may_be_missing(gap.handle, gap.from, gap.to)
            }
            // What is gone from the start of a group looks like retention.
            _ if self.rotten => {
                self.fault(Fault::DamageTold);
                self.may_be_missing(gap.handle, gap.from, gap.to)
            }
            _ => Err(format!("retention went up to {}", self.removed(gap.handle))),
        }
    }

    /// The last message of each group that anyone was shown in its present epoch.
    pub fn shown(&self) -> BTreeMap<Handle, Seq> {
        let mut shown = BTreeMap::<Handle, Seq>::new();
        for ((_, epoch, seq), known) in &self.known {
            if self.epochs.get(&known.handle) == Some(epoch) {
                let last = shown.entry(known.handle).or_default();
                *last = Seq(*seq).max(*last);
            }
        }
        shown
    }

    /// Compares what clients know with all that is there at the end; `crashed` says whether
    /// memory may be lost.
    pub fn read_back(
        &mut self,
        found: &BTreeMap<Name, u64>,
        crashed: bool,
    ) -> Result<(), Violation> {
        let mut ids: Vec<_> = found.iter().map(|(name, id)| (id, name)).collect();
        ids.sort_unstable();
        if !self.rotten
            && let Some(copy) = ids.windows(2).find(|pair| pair[0].0 == pair[1].0)
        {
            return Err(format!("a message is in the group twice: {copy:?}"));
        }
        let mut lost = 0;
        for (name, known) in &self.known {
            if found.get(name) == Some(&known.id) || Seq(name.2) <= self.removed(known.handle) {
                continue;
            }
            if self.is_damaged(known.handle, Seq(name.2)) {
                continue;
            }
            if known.durable || !crashed {
                return Err(format!(
                    "message {} was known as {name:?} (durable: {}) and is not there any more",
                    known.id, known.durable
                ));
            }
            lost += 1;
        }
        self.faults.count_many(Fault::MemoryLost, lost);
        Ok(())
    }
}

/// Whether one of these stretches has a message.
fn has(stretches: &[(Handle, Seq, Seq)], handle: Handle, seq: Seq) -> bool {
    stretches.iter().any(|s| s.0 == handle && (s.1..=s.2).contains(&seq))
}

/// The member id of a client.
pub(super) fn member_name(client: usize) -> Vec<u8> {
    format!("member-{client}").into_bytes()
}

/// The client with this member id.
pub(super) fn client_of(member: &[u8]) -> Option<usize> {
    std::str::from_utf8(member).ok()?.strip_prefix("member-")?.parse().ok()
}

/// Every payload begins with the number of its message.
const ID_BYTES: usize = 8;

/// The payload of a message: its number, then bytes that follow from it. Most are small, a
/// few span many sectors, and some of those are zeros, which a torn write leaves too.
fn payload_of(id: u64) -> Vec<u8> {
    let mut rng = Rng::new(mix(id));
    let len = match rng.below(100) {
        0..70 => rng.below(120),
        70..90 => rng.below(1_000),
        90..99 => rng.below(5_000),
        _ => rng.below(14_000),
    };
    let mut payload = id.to_le_bytes().to_vec();
    if rng.below(8) == 0 {
        payload.resize(ID_BYTES + len as usize, 0);
    }
    while payload.len() < ID_BYTES + len as usize {
        payload.extend_from_slice(&rng.next().to_le_bytes());
    }
    payload.truncate(ID_BYTES + len as usize);
    payload
}
