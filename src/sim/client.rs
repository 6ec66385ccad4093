//! A simulated client: a state machine over the wire codec. It decides what to do and checks
//! what it is told; the world moves its bytes.

use std::collections::{BTreeMap, VecDeque};

use super::durable::{Belongs, Durable};
use super::lines::Line;
use super::oracle::{Name, Oracle, member_name};
use super::presence::Presences;
use super::queries::Questions;
use super::rng::Rng;
use super::trace::{Fault, Note};
use crate::position::{Epoch, Handle, Level, Nanos, ProducerId, Seq, Stamp};
use crate::wire::{self, ClientFrame, Hello, Join, JoinEntry, Leave, Mode, Start};

/// Publishes in front of which a client sends one that is longer than any may be, in a million.
const TOO_LONG_PPM: u32 = 10_000;

/// What a client is like.
#[derive(Clone, Debug)]
pub(super) struct Habits {
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
    /// Is a durable member wherever it is one.
    pub durable: bool,
    /// Share of publishes that ask for a receipt, in a million.
    pub receipt_ppm: u32,
    /// Chance to ask something at a tick, in a million.
    pub query_ppm: u32,
    /// Wants to be told of changes of rosters.
    pub watches: bool,
    /// Reads every group from its first message and keeps what it gets.
    pub reader: bool,
    /// Publishes one message to every group, which must be accepted.
    pub probe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Down,
    Greeting,
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Out,
    Joining,
    In,
    Leaving,
}

/// What a client knows of one group.
#[derive(Debug)]
pub(super) struct View {
    pub wanted: bool,
    pub place: Place,
    pub handle: Handle,
    /// Next message that may come.
    pub expect: Seq,
    /// Epoch told on this connection; 0 before the first EPOCH.
    pub epoch: Epoch,
    pub stamp: Stamp,
    /// Last message it has, over all connections, and its epoch.
    pub last: Seq,
    pub last_epoch: Epoch,
    pub unacked: u32,
    pub start: Start,
    /// Where JOINED said the group ends; 0 outside of it.
    pub head: Seq,
    pub joined_at: Nanos,
    pub durable: Durable,
}

/// A publish that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub group: usize,
    pub id: u64,
}

/// One client, over all its connections.
#[derive(Debug)]
pub(super) struct Client {
    pub index: usize,
    pub profile: Habits,
    pub state: State,
    pub link: Option<u32>,
    /// Not to connect before.
    pub retry_at: Nanos,
    /// Bytes that the socket has not taken.
    pub out: Vec<u8>,
    /// It does not read before.
    pub sleeps_until: Nanos,
    pub partial: Vec<u8>,
    next_request: u32,
    pub publishes: BTreeMap<u32, Pending>,
    pub joins: Vec<(u32, usize)>,
    pub leaves: Vec<(u32, usize)>,
    pub pings: VecDeque<u64>,
    pub questions: Questions,
    pub presences: Presences,
    /// Probes that it answered on this connection.
    pub probed: u32,
    /// It acknowledges nothing before.
    pub lazy_until: Nanos,
    /// Publishes that it sent for a second time at once, and their numbers.
    pub second: BTreeMap<u32, (Pending, u64)>,
    /// What it publishes, per group.
    pub lines: Vec<Line>,
    /// It has time to send everything that was not accepted again.
    pub finishing: bool,
    /// How many producer ids it had before.
    producer_life: u32,
    /// A group has forgotten its producer: it needs another id as soon as the old one has settled
    /// everything.
    pub renewing: bool,
    pub views: Vec<View>,
    /// Last PUBLISHED per group on this connection.
    pub answered: BTreeMap<usize, (u32, Seq)>,
    pub heartbeat_ms: u64,
    /// The longest payload that the server takes.
    pub payload_max: usize,
    said_at: Nanos,
    pub found: BTreeMap<Name, u64>,
    pub garbage_sent: bool,
    /// It does nothing any more.
    pub retired: bool,
}

impl Client {
    pub fn new(index: usize, profile: Habits, groups: usize) -> Self {
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
            joined_at: Nanos(0),
            durable: Durable::default(),
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
            questions: Questions::default(),
            presences: Presences::default(),
            probed: 0,
            lazy_until: Nanos(0),
            second: BTreeMap::new(),
            lines: vec![Line::default(); groups],
            finishing: false,
            producer_life: 0,
            renewing: false,
            views: (0..groups).map(view).collect(),
            answered: BTreeMap::new(),
            heartbeat_ms: 1_000,
            payload_max: 0,
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
        id[8..12].copy_from_slice(&self.producer_life.to_le_bytes());
        id
    }

    /// Takes another producer id if it needs one and the old one has settled everything. It holds
    /// from the next connection on.
    pub fn renew_if_settled(&mut self, oracle: &mut Oracle) -> bool {
        if !self.renewing || !self.lines_are_settled() {
            return false;
        }
        oracle.fault(Fault::ProducerRenewed);
        self.renewing = false;
        self.producer_life += 1;
        self.lines.iter_mut().for_each(Line::begin_again);
        true
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
        self.lines_cut();
        for (_, group) in self.joins.drain(..) {
            self.views[group].durable.stale_join = true;
        }
        self.leaves.clear();
        self.pings.clear();
        self.questions.clear();
        self.presences.clear();
        self.probed = 0;
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
                && (!self.finishing || self.lines.iter().all(Line::is_empty) && !self.renewing)
                && self.joins.is_empty()
                && self.leaves.is_empty()
                && self.pings.is_empty()
                && self.questions.is_empty()
                && self.presences.is_empty()
                && self.views.iter().all(|view| view.wanted == (view.place == Place::In))
    }

    /// The groups that it is in, and the last message it was told of in each.
    pub fn heads(&self) -> impl Iterator<Item = (usize, Seq)> {
        let views = self.views.iter().enumerate();
        views.filter(|(_, v)| v.place == Place::In).map(|(g, v)| (g, v.has()))
    }

    /// What it waits for, for a message about a world that stopped moving.
    pub fn waits_for(&self) -> String {
        format!(
            "client {} is {:?}, waits for publishes {:?}, joins {:?}, leaves {:?}, pings {:?}, {:?}, {:?}",
            self.index,
            self.state,
            self.publishes,
            self.joins,
            self.leaves,
            self.pings,
            self.questions,
            self.presences
        )
    }

    pub(super) fn request(&mut self) -> u32 {
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
        if std::mem::take(&mut self.profile.probe) {
            for group in 0..self.views.len() {
                self.new_publish(group, Level::Durable, rng, oracle);
                self.send_line(group, rng, oracle);
            }
        }
        if publishes {
            let burst = if rng.chance(50_000) { self.profile.window } else { 1 };
            for _ in 0..burst {
                if self.publishes.len() < self.profile.window {
                    let group = rng.index(self.views.len());
                    let memory = rng.chance(self.profile.memory_ppm);
                    let level = if memory { Level::Memory } else { Level::Durable };
                    if rng.chance(TOO_LONG_PPM) {
                        self.new_too_long(group, level, oracle);
                    }
                    self.new_publish(group, level, rng, oracle);
                    self.send_line(group, rng, oracle);
                }
            }
        }
        if self.finishing {
            (0..self.views.len()).for_each(|group| self.send_line(group, rng, oracle));
        } else if !calm && self.profile.window > 0 && rng.flip() {
            let group = rng.index(self.views.len());
            self.send_line(group, rng, oracle);
        }
        if !calm && rng.chance(20_000) {
            self.ping(rng);
        }
        if !calm && self.profile.query_ppm > 0 && rng.chance(self.profile.query_ppm) {
            match rng.below(5) {
                0 => self.ask_roster(rng, oracle),
                _ => self.ask(rng, oracle),
            }
        }
        self.ack(now, calm, rng, oracle);
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
                let start = if self.profile.durable {
                    match view.durable.belongs {
                        Belongs::No if rng.flip() => Start::Seq(Seq(1)),
                        Belongs::No if rng.flip() => Start::Tail,
                        _ => Start::Cursor,
                    }
                } else if view.last > Seq(0) {
                    Start::Seq(view.last.next())
                } else if self.profile.reader || rng.flip() {
                    Start::Seq(Seq(1))
                } else {
                    Start::Tail
                };
                if self.profile.durable && view.durable.belongs == Belongs::No {
                    view.durable.belongs = Belongs::Perhaps;
                    oracle.rosters.unsure(group, self.index);
                }
                view.place = Place::Joining;
                view.start = start;
                self.joins.push((request, group));
                let mode = if self.profile.durable { Mode::Durable } else { Mode::Live };
                let roster = self.profile.watches;
                entries.push(JoinEntry { mode, roster, ..JoinEntry::live(name, start) });
                let from = if let Start::Seq(seq) = start { seq.0 } else { 0 };
                oracle.note(Note::Joining { client: self.index, group, from });
            }
            Join::encode(&mut self.out, request, &entries);
        }
        for group in 0..self.views.len() {
            let view = &mut self.views[group];
            if !view.wanted && view.place == Place::In {
                view.place = Place::Leaving;
                self.presences.left(group);
                if self.profile.durable {
                    view.durable.belongs = Belongs::Perhaps;
                    oracle.rosters.unsure(group, self.index);
                }
                let request = self.request();
                self.leaves.push((request, group));
                Leave::encode(&mut self.out, request, &[&group_name(group)]);
            }
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
}

pub(super) fn group_name(group: usize) -> Vec<u8> {
    format!("group-{group}").into_bytes()
}
