//! A simulated client: a state machine over the wire codec. It decides what to do and checks
//! what it is told; the world moves its bytes.

use std::collections::{BTreeMap, VecDeque};

use super::oracle::{Name, Oracle, Violation, member_name};
use super::rng::Rng;
use super::trace::{Fault, Note};
use crate::position::{Epoch, Handle, Level, Nanos, ProducerId, Seq, Stamp};
use crate::wire::{self, Ack, Acks, ClientFrame, Hello, Join, JoinEntry, Leave, Publish, Start};

/// What a client is like.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    /// Publishes that may wait for their answer; 0 never publishes.
    pub window: usize,
    /// Chance to publish at a tick, in a million.
    pub publish_ppm: u32,
    /// Share of publishes that ask for level memory, in a million.
    pub memory_ppm: u32,
    /// Chance at a tick to leave or join a group, in a million.
    pub churn_ppm: u32,
    /// Reads slowly.
    pub slow: bool,
    /// Reads every group from its first message and keeps what it gets.
    pub reader: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Down,
    Greeting,
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    Joining,
    In,
    Leaving,
}

/// What a client knows of one group.
#[derive(Debug)]
pub(super) struct View {
    pub wanted: bool,
    place: Place,
    handle: Handle,
    /// Next message that may come.
    expect: Seq,
    /// Epoch told on this connection; 0 before the first EPOCH.
    epoch: Epoch,
    stamp: Stamp,
    /// Last message it has, over all connections, and its epoch.
    pub last: Seq,
    pub last_epoch: Epoch,
    unacked: u32,
    start: Start,
    /// Where JOINED said the group ends; 0 outside of it.
    pub head: Seq,
}

/// A publish that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Pending {
    group: usize,
    id: u64,
}

/// One client, over all its connections.
#[derive(Debug)]
pub(super) struct Client {
    pub index: usize,
    pub profile: Profile,
    pub state: State,
    pub link: Option<u32>,
    /// Not to connect before.
    pub retry_at: Nanos,
    /// Bytes that the socket has not taken.
    pub out: Vec<u8>,
    /// It does not read before.
    pub sleeps_until: Nanos,
    partial: Vec<u8>,
    next_request: u32,
    publishes: BTreeMap<u32, Pending>,
    joins: Vec<(u32, usize)>,
    leaves: Vec<(u32, usize)>,
    pings: VecDeque<u64>,
    /// Sent without an answer on an earlier connection.
    unanswered: VecDeque<Pending>,
    pub views: Vec<View>,
    producer_seqs: Vec<u64>,
    /// Last PUBLISHED per group on this connection.
    answered: BTreeMap<usize, (u32, Seq)>,
    heartbeat_ms: u64,
    said_at: Nanos,
    pub found: BTreeMap<Name, u64>,
    garbage_sent: bool,
    /// It does nothing any more.
    pub retired: bool,
}

impl Client {
    pub fn new(index: usize, profile: Profile, groups: usize) -> Self {
        let view = |_| View {
            wanted: profile.reader,
            place: Place::Out,
            handle: Handle(0),
            expect: Seq(0),
            epoch: Epoch(0),
            stamp: Stamp(0),
            last: Seq(0),
            last_epoch: Epoch(0),
            unacked: 0,
            start: Start::Tail,
            head: Seq(0),
        };
        Self {
            index,
            state: State::Down,
            link: None,
            retry_at: Nanos(0),
            out: Vec::new(),
            sleeps_until: Nanos(0),
            partial: Vec::new(),
            next_request: 1,
            publishes: BTreeMap::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            pings: VecDeque::new(),
            unanswered: VecDeque::new(),
            views: (0..groups).map(view).collect(),
            producer_seqs: vec![0; groups],
            answered: BTreeMap::new(),
            heartbeat_ms: 1_000,
            said_at: Nanos(0),
            found: BTreeMap::new(),
            garbage_sent: false,
            retired: false,
            profile,
        }
    }

    fn producer(&self) -> ProducerId {
        let mut id = [0xC1; 16];
        id[..8].copy_from_slice(&(self.index as u64 + 1).to_le_bytes());
        id
    }

    /// The connection is there: says hello.
    pub fn connected(&mut self, now: Nanos) {
        self.state = State::Greeting;
        self.said_at = now;
        self.out.clear();
        self.out.extend_from_slice(&wire::MAGIC);
        let (producer, member) = (self.producer(), member_name(self.index));
        Hello { version_min: 1, version_max: 1, encoding: 0, flags: 0, producer, member: &member }
            .encode(&mut self.out);
    }

    /// The connection is gone; what had no answer never gets one.
    pub fn disconnected(&mut self, retry_at: Nanos) {
        self.state = State::Down;
        self.link = None;
        self.retry_at = retry_at;
        self.out.clear();
        self.partial.clear();
        self.unanswered.extend(std::mem::take(&mut self.publishes).into_values());
        self.joins.clear();
        self.leaves.clear();
        self.pings.clear();
        self.answered.clear();
        self.garbage_sent = false;
        for view in &mut self.views {
            view.place = Place::Out;
            view.head = Seq(0);
        }
    }

    /// Whether it waits for no answer and is where it wants to be.
    pub fn is_settled(&self) -> bool {
        self.retired
            || self.state == State::Open
                && self.out.is_empty()
                && self.publishes.is_empty()
                && self.joins.is_empty()
                && self.leaves.is_empty()
                && self.pings.is_empty()
                && self.views.iter().all(|view| view.wanted == (view.place == Place::In))
    }

    /// The groups that it is in, and the last message it was told of in each.
    pub fn heads(&self) -> impl Iterator<Item = (usize, Seq)> {
        let views = self.views.iter().enumerate();
        views.filter(|(_, v)| v.place == Place::In).map(|(g, v)| (g, Seq(v.expect.0 - 1)))
    }

    /// What it waits for, for a message about a world that stopped moving.
    pub fn waits_for(&self) -> String {
        format!(
            "client {} is {:?}, waits for publishes {:?}, joins {:?}, leaves {:?}, pings {:?}",
            self.index, self.state, self.publishes, self.joins, self.leaves, self.pings
        )
    }

    fn request(&mut self) -> u32 {
        self.next_request += 1;
        self.next_request
    }

    /// Does something, or not. With `calm` it only finishes what it has begun.
    pub fn act(&mut self, now: Nanos, calm: bool, rng: &mut Rng, oracle: &mut Oracle) {
        if self.state != State::Open || self.out.len() > 4096 {
            return;
        }
        let before = self.out.len();
        let profile = &self.profile;
        let publishes = !calm && profile.window > 0 && rng.chance(profile.publish_ppm);
        if !calm && rng.chance(profile.churn_ppm) {
            let group = rng.index(self.views.len());
            self.views[group].wanted ^= true;
        }
        self.join_and_leave(rng, oracle);
        if publishes {
            let burst = if rng.chance(50_000) { self.profile.window } else { 1 };
            for _ in 0..burst {
                if self.publishes.len() < self.profile.window {
                    self.publish(rng, oracle);
                }
            }
        }
        if !calm && rng.chance(20_000) {
            self.ping(rng);
        }
        self.ack(rng);
        if self.out.len() > before {
            self.said_at = now;
        } else if now >= self.said_at.plus_ms(self.heartbeat_ms * 3 / 4) {
            self.ping(rng);
            self.said_at = now;
        }
    }

    fn ping(&mut self, rng: &mut Rng) {
        let token = rng.next();
        self.pings.push_back(token);
        ClientFrame::encode_ping(&mut self.out, token);
    }

    fn join_and_leave(&mut self, rng: &mut Rng, oracle: &mut Oracle) {
        let wants = |v: &View| v.wanted && v.place == Place::Out;
        let groups: Vec<_> = (0..self.views.len()).filter(|&g| wants(&self.views[g])).collect();
        if !groups.is_empty() {
            let request = self.request();
            let names: Vec<_> = groups.iter().map(|&g| group_name(g)).collect();
            let mut entries = Vec::new();
            for (&group, name) in groups.iter().zip(&names) {
                let view = &mut self.views[group];
                let start = if view.last > Seq(0) {
                    Start::Seq(view.last.next())
                } else if self.profile.reader || rng.flip() {
                    Start::Seq(Seq(1))
                } else {
                    Start::Tail
                };
                view.place = Place::Joining;
                view.start = start;
                self.joins.push((request, group));
                entries.push(JoinEntry { group: name, start });
                let from = if let Start::Seq(seq) = start { seq.0 } else { 0 };
                oracle.note(Note::Joining { client: self.index, group, from });
            }
            Join::encode(&mut self.out, request, &entries);
        }
        for group in 0..self.views.len() {
            let view = &mut self.views[group];
            if !view.wanted && view.place == Place::In {
                view.place = Place::Leaving;
                let request = self.request();
                self.leaves.push((request, group));
                Leave::encode(&mut self.out, request, &[&group_name(group)]);
            }
        }
    }

    fn publish(&mut self, rng: &mut Rng, oracle: &mut Oracle) {
        let again = self.unanswered.pop_front().filter(|_| rng.flip());
        let pending = if let Some(again) = again {
            oracle.fault(Fault::Republished);
            again
        } else {
            let group = rng.index(self.views.len());
            self.producer_seqs[group] += 1;
            let memory = rng.chance(self.profile.memory_ppm);
            let level = if memory { Level::Memory } else { Level::Durable };
            let seq = self.producer_seqs[group];
            Pending { group, id: oracle.new_message(self.index, group, level, seq) }
        };
        oracle.published_again(pending.id);
        let request = self.request();
        let sent = oracle.message(pending.id);
        Publish {
            request,
            level: Some(sent.level),
            producer_seq: sent.producer_seq,
            group: &group_name(pending.group),
            payload: &sent.payload,
        }
        .encode(&mut self.out);
        self.publishes.insert(request, pending);
        let Pending { group, id } = pending;
        oracle.note(Note::Publish { client: self.index, group, request, id });
    }

    fn ack(&mut self, rng: &mut Rng) {
        let acks: Vec<_> = self
            .views
            .iter_mut()
            .filter(|view| view.place == Place::In && view.unacked > 0)
            .filter(|view| view.unacked > 16 || rng.chance(30_000))
            .map(|view| {
                view.unacked = 0;
                Ack { handle: view.handle, seq: Seq(view.expect.0 - 1), epoch: view.epoch }
            })
            .collect();
        if !acks.is_empty() {
            Acks::encode(&mut self.out, &acks);
        }
    }

    /// Says something wrong; whether the server should end the connection for it.
    pub fn misbehave(&mut self, rng: &mut Rng, oracle: &mut Oracle) {
        if self.state != State::Open {
            return;
        }
        oracle.fault(Fault::Garbage);
        match rng.below(4) {
            // A kind that nobody knows, and a PING without its token.
            0 => self.out.extend_from_slice(&[6, 0, 0, 0, 0x7F, 0, 0, 0, 1, 2]),
            1 => self.out.extend_from_slice(&[6, 0, 0, 0, 0x06, 0, 0, 0, 1, 2]),
            // Lengths that cannot be.
            2 => self.out.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0x7F]),
            _ => self.out.extend_from_slice(&[1, 0, 0, 0, 0]),
        }
        self.garbage_sent = true;
    }

    /// Takes what came from the server.
    pub fn receive(&mut self, bytes: &[u8], oracle: &mut Oracle) -> Result<(), Violation> {
        self.partial.extend_from_slice(bytes);
        let buf = std::mem::take(&mut self.partial);
        let mut used = 0;
        while let Some((frame, len)) =
            wire::split(&buf[used..], usize::MAX).map_err(|e| e.to_string())?
        {
            let frame = wire::ServerFrame::decode(frame).map_err(|e| e.to_string())?;
            self.frame(frame, oracle)
                .map_err(|why| format!("client {}: {why}, frame {frame:?}", self.index))?;
            used += len;
        }
        self.partial.extend_from_slice(&buf[used..]);
        Ok(())
    }

    fn frame(
        &mut self,
        frame: wire::ServerFrame<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        use wire::ServerFrame as F;
        if self.state == State::Greeting {
            return match frame {
                F::Welcome(welcome) => {
                    self.state = State::Open;
                    self.heartbeat_ms = u64::from(welcome.heartbeat_ms);
                    Ok(())
                }
                F::Error(error) if error.code < 100 => Ok(()),
                _ => Err("WELCOME must come first".to_owned()),
            };
        }
        match frame {
            F::Welcome(_) => Err("a second WELCOME".to_owned()),
            F::Joined(joined) => self.joined(&joined, oracle),
            F::Left(left) => self.left(&left, oracle),
            F::Epoch(epoch) => self.epoch(&epoch, oracle),
            F::Deliver(deliver) => self.deliver(&deliver, oracle),
            F::Published(published) => self.published(&published, oracle),
            F::Pong { token } => {
                let asked = self.pings.pop_front();
                if asked == Some(token) { Ok(()) } else { Err(format!("expected {asked:?}")) }
            }
            F::Error(error) => self.error(&error, oracle),
            F::Gap(gap) => self.gap(&gap, oracle),
            F::Drain(_) => Ok(()),
            F::Unknown { .. } => Err("an unknown frame".to_owned()),
        }
    }

    fn joined(&mut self, joined: &wire::Joined<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = group_of(joined.group).ok_or("JOINED for an unknown group")?;
        take_request(&mut self.joins, joined.request, group)?;
        let view = &mut self.views[group];
        view.place = Place::In;
        view.head = joined.head;
        view.handle = joined.handle;
        view.epoch = Epoch(0);
        view.stamp = Stamp(0);
        view.unacked = 0;
        view.expect = match view.start {
            Start::Tail => joined.head.next(),
            Start::Seq(seq) => seq.min(joined.head.next()),
        };
        if joined.head < view.last && joined.epoch <= view.last_epoch {
            return Err(format!(
                "the group ends at {} in epoch {}, the member has {} of epoch {}",
                joined.head, joined.epoch, view.last, view.last_epoch
            ));
        }
        let (epoch, head) = (joined.epoch.0, joined.head.0);
        oracle.note(Note::Joined { client: self.index, group, epoch, head });
        Ok(())
    }

    fn left(&mut self, left: &wire::Left, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(left.handle)?;
        take_request(&mut self.leaves, left.request, group)?;
        self.views[group].place = Place::Out;
        self.views[group].head = Seq(0);
        oracle.note(Note::Left { client: self.index, group });
        Ok(())
    }

    /// The group with this handle, if frames about it may come now.
    fn member_of(&self, handle: Handle) -> Result<usize, Violation> {
        let inside = |v: &View| matches!(v.place, Place::In | Place::Leaving);
        let found = self.views.iter().position(|v| inside(v) && v.handle == handle);
        found.ok_or_else(|| "the client is not in this group".to_owned())
    }

    fn epoch(&mut self, epoch: &wire::EpochStart, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(epoch.handle)?;
        let view = &mut self.views[group];
        if epoch.first != view.expect {
            return Err(format!("message {} is next", view.expect));
        }
        if epoch.epoch <= view.epoch {
            return Err(format!("epoch {} has begun before", view.epoch));
        }
        if view.last_epoch != Epoch(0) && view.last_epoch != epoch.epoch {
            oracle.fault(Fault::EpochChanged);
        }
        view.epoch = epoch.epoch;
        let (epoch, first) = (epoch.epoch.0, epoch.first.0);
        oracle.note(Note::Epoch { client: self.index, group, epoch, first });
        Ok(())
    }

    fn deliver(&mut self, d: &wire::Deliver<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(d.handle)?;
        let view = &mut self.views[group];
        if view.epoch == Epoch(0) {
            return Err("no EPOCH came before".to_owned());
        }
        if d.seq != view.expect {
            return Err(format!("message {} is next", view.expect));
        }
        if d.stamp <= view.stamp {
            return Err(format!("its stamp is not above {:?}", view.stamp));
        }
        view.expect = d.seq.next();
        view.stamp = d.stamp;
        view.last = d.seq;
        view.last_epoch = view.epoch;
        view.unacked += 1;
        let name = (group, view.epoch.0, d.seq.0);
        let id = oracle.delivered(name, d.handle, d.stamp, d.sender, d.payload)?;
        if self.profile.reader {
            self.found.insert(name, id);
        }
        oracle.note(Note::Deliver { client: self.index, group, seq: d.seq.0, id });
        Ok(())
    }

    fn gap(&mut self, gap: &wire::Gap, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(gap.handle)?;
        let view = &mut self.views[group];
        if gap.from != view.expect || gap.to < gap.from {
            return Err(format!("message {} is next", view.expect));
        }
        oracle.gap(gap)?;
        view.expect = gap.to.next();
        view.last = gap.to;
        let (from, to) = (gap.from.0, gap.to.0);
        oracle.note(Note::Gap { client: self.index, group, from, to });
        Ok(())
    }

    fn published(&mut self, p: &wire::Published, oracle: &mut Oracle) -> Result<(), Violation> {
        let Some(Pending { group, id }) = self.publishes.remove(&p.request) else {
            return Err("nobody waits for this answer".to_owned());
        };
        if p.producer_seq != oracle.message(id).producer_seq {
            return Err("another producer seq was asked for".to_owned());
        }
        let before = self.answered.insert(group, (p.request, p.seq));
        if let Some((request, seq)) = before
            && ((request < p.request) != (seq < p.seq))
        {
            return Err(format!("request {request} got {seq}: not in the order of sending"));
        }
        oracle.answered((group, p.epoch.0, p.seq.0), p.handle, id, p.level)?;
        let (request, seq) = (p.request, p.seq.0);
        oracle.note(Note::Published { client: self.index, group, request, seq, id });
        Ok(())
    }

    fn error(&mut self, e: &wire::ErrorFrame<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        use wire::ErrorCode as E;
        oracle.note(Note::Refused { client: self.index, request: e.request, code: e.code });
        let code = E::from_number(e.code).ok_or("an unknown code")?;
        if let Some(pending) = self.publishes.remove(&e.request) {
            match code {
                E::StorageFull => oracle.fault(Fault::RefusedFull),
                E::StorageFailed => oracle.fault(Fault::RefusedFailed),
                E::Draining => {}
                E::Indeterminate => {
                    oracle.fault(Fault::Indeterminate);
                    self.unanswered.push_back(pending);
                    return Ok(());
                }
                _ => return Err(format!("a publish was refused with {code:?}")),
            }
            return oracle.refused(pending.id);
        }
        match code {
            E::UnknownFrame | E::Malformed | E::FrameTooLong | E::FrameTooShort
                if self.garbage_sent =>
            {
                Ok(())
            }
            E::HeartbeatTimeout | E::HandshakeTimeout | E::ShuttingDown if e.request == 0 => Ok(()),
            _ => Err(format!("an unexpected refusal with {code:?}")),
        }
    }
}

fn take_request(
    pending: &mut Vec<(u32, usize)>,
    request: u32,
    group: usize,
) -> Result<(), Violation> {
    let found = pending.iter().position(|entry| *entry == (request, group));
    pending.swap_remove(found.ok_or("nobody waits for this answer")?);
    Ok(())
}

pub(super) fn group_name(group: usize) -> Vec<u8> {
    format!("group-{group}").into_bytes()
}

fn group_of(name: &[u8]) -> Option<usize> {
    std::str::from_utf8(name).ok()?.strip_prefix("group-")?.parse().ok()
}
