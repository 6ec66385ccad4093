//! Publishing: a closed loop that keeps a number of broadcasts in flight, or an open loop on
//! a fixed schedule. All publishers are on the first thread.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use fanfare::client::Publishing;
use fanfare::position::{Level, Nanos};
use fanfare::ring::ClientRing;

use crate::clock::SECOND;
use crate::member::Member;
use crate::plan::Plan;
use crate::record::{Histograms, Measured};
use crate::shared::Shared;
use crate::violation::{Kind, Violations};

/// Bytes waiting on one publisher's connection before it gets no more.
const QUEUED_BYTES_MAX: usize = 256 * 1024;
/// Broadcasts of one turn, so that publishing never keeps a thread from reading for long.
const PUBLISH_PER_TURN: usize = 4096;

/// When to publish.
pub enum Pace {
    /// Broadcasts that may start, each with its group and the time since when it may.
    Window(VecDeque<(u32, u64)>),
    /// A schedule without end.
    Rate {
        /// Time of the first broadcast.
        start: u64,
        /// Nanoseconds between two.
        interval: f64,
        /// Number of the next, from 0.
        next: u64,
    },
}

impl Pace {
    /// Keeps `window` broadcasts in flight in each of `groups` groups from `start` on.
    pub fn window(window: u32, groups: u32, start: u64) -> Self {
        Self::Window((0..window).flat_map(|_| (0..groups).map(move |g| (g, start))).collect())
    }

    /// `rate` broadcasts per second from `start` on.
    pub fn rate(rate: f64, start: u64) -> Self {
        Self::Rate { start, interval: SECOND as f64 / rate, next: 0 }
    }
}

/// What a publisher was told.
pub struct Answer {
    /// Index of the channel.
    pub channel: u32,
    /// What.
    pub outcome: Outcome,
}

/// What was said about a publish.
pub enum Outcome {
    /// PUBLISHED.
    Accepted(Accepted),
    /// Another system's answer.
    Taken {
        /// The producer's number.
        producer_seq: u64,
        /// How many members it was given to, if the answer says so.
        receivers: Option<u64>,
    },
    /// The words of an ERROR.
    Failed(String),
    /// RECEIPT.
    Received(Received),
}

/// The fields of a PUBLISHED that are checked.
pub struct Accepted {
    /// The producer's number.
    pub producer_seq: u64,
    /// Place in the group.
    pub seq: u64,
    /// Level reached.
    pub level: Level,
}

/// The fields of a RECEIPT that are checked.
pub struct Received {
    /// The producer's number.
    pub producer_seq: u64,
    /// Place in the group.
    pub seq: u64,
    /// Members that acknowledged.
    pub acked: u32,
    /// Members that were counted.
    pub members: u32,
    /// Share that was asked for.
    pub percent: u8,
}

/// Numbers of a channel that were ticked off, in any order.
#[derive(Default)]
struct Ticks {
    /// All up to this are.
    upto: u64,
    /// Whether the ones after that are.
    later: VecDeque<bool>,
}

impl Ticks {
    /// Ticks `n` off; false if it is not open.
    fn tick(&mut self, n: u64) -> bool {
        let index = n.wrapping_sub(self.upto + 1) as usize;
        match self.later.get_mut(index) {
            Some(ticked) if !*ticked => *ticked = true,
            _ => return false,
        }
        while self.later.front() == Some(&true) {
            self.later.pop_front();
            self.upto += 1;
        }
        true
    }

    fn open(&self) -> u64 {
        self.later.iter().filter(|ticked| !**ticked).count() as u64
    }
}

#[derive(Default)]
struct Channel {
    answered: Ticks,
    received: Ticks,
}

/// All publishers.
pub struct Publishers {
    pace: Pace,
    /// Ring slots by number.
    slots: Vec<u32>,
    channels: Vec<Channel>,
    /// Next channel of each group.
    turns: Vec<usize>,
    payload: Vec<u8>,
    /// Broadcasts of a channel in flight, beside what its slots allow.
    in_flight_max: u64,
    /// Times that something due had to wait for room.
    pub held_back: u64,
}

impl Publishers {
    /// Publishers on these ring slots, by number.
    pub fn new(plan: &Plan, pace: Pace, slots: Vec<u32>, in_flight_max: Option<u32>) -> Self {
        Self {
            pace,
            in_flight_max: in_flight_max.map_or(u64::MAX, u64::from),
            slots,
            channels: plan.channels.iter().map(|_| Channel::default()).collect(),
            turns: vec![0; plan.groups.len()],
            payload: Vec::new(),
            held_back: 0,
        }
    }

    /// A broadcast to `group` came to every reader at `now`.
    pub fn completed(&mut self, group: u32, now: u64) {
        if let Pace::Window(ready) = &mut self.pace {
            ready.push_back((group, now));
        }
    }

    /// Broadcasts that were due before `until` and never sent.
    pub fn unsent(&self, until: u64) -> u64 {
        let Pace::Rate { start, interval, next } = &self.pace else { return 0 };
        let all = (until.saturating_sub(*start) as f64 / interval).ceil() as u64;
        all.saturating_sub(*next)
    }

    /// When to call [`Publishers::publish`] next, if it depends on the clock.
    pub fn next_due(&self) -> Option<u64> {
        match &self.pace {
            Pace::Window(_) => None,
            Pace::Rate { start, interval, next } => Some(due(*start, *interval, *next)),
        }
    }

    /// Publishes what is due at `now` and was due before `until`. Returns whether there is
    /// more that may be published at once.
    pub fn publish(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        (members, ring): (&mut [Option<Box<Member>>], &mut ClientRing),
        now: u64,
        until: u64,
    ) -> bool {
        let held_back = self.held_back;
        let mut more = false;
        match std::mem::replace(&mut self.pace, Pace::Window(VecDeque::new())) {
            Pace::Window(mut ready) => {
                for _ in 0..ready.len().min(PUBLISH_PER_TURN) {
                    let Some((group, since)) = ready.pop_front() else { break };
                    if now < until
                        && !self.publish_one(plan, shared, (members, ring), group, since, now)
                    {
                        ready.push_back((group, since));
                    }
                }
                more = now < until && !ready.is_empty();
                self.pace = Pace::Window(ready);
            }
            Pace::Rate { start, interval, mut next } => {
                for _ in 0..PUBLISH_PER_TURN {
                    let at = due(start, interval, next);
                    let group = (next % plan.groups.len() as u64) as u32;
                    if at > now
                        || at >= until
                        || !self.publish_one(plan, shared, (members, ring), group, at, now)
                    {
                        break;
                    }
                    next += 1;
                }
                self.pace = Pace::Rate { start, interval, next };
            }
        }
        for slot in &self.slots {
            let Some(member) = &mut members[*slot as usize] else { continue };
            loop {
                member.link.advance(Nanos(now));
                let out = member.take_output();
                if out.is_empty() {
                    break;
                }
                ring.send(*slot, Bytes::from(out));
            }
        }
        more && self.held_back == held_back
    }

    fn publish_one(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        (members, ring): (&mut [Option<Box<Member>>], &ClientRing),
        group: u32,
        intended: u64,
        now: u64,
    ) -> bool {
        let to = &plan.groups[group as usize];
        let turn = &mut self.turns[group as usize];
        let id = to.channels[*turn];
        let channel = &plan.channels[id as usize];
        let own = &mut self.channels[id as usize];
        let connection = self.slots[channel.publisher as usize];
        // One that is gone fails the run.
        let Some(member) = &mut members[connection as usize] else { return false };

        let before = channel.published.load(Ordering::Relaxed);
        let mut done = own.answered.upto.min(channel.completed.load(Ordering::Acquire));
        if plan.receipts.is_some() {
            done = done.min(own.received.upto);
        }
        let queued = member.link.output().len() + ring.queued(connection);
        if before - done >= channel.capacity().min(self.in_flight_max) || queued > QUEUED_BYTES_MAX
        {
            self.held_back += 1;
            return false;
        }
        *turn = (*turn + 1) % to.channels.len();

        let producer_seq = before + 1;
        let slot = channel.slot(producer_seq);
        slot.intended.store(intended, Ordering::Relaxed);
        slot.sent.store(now, Ordering::Relaxed);
        slot.seq.store(0, Ordering::Relaxed);
        slot.remaining.store(to.readers, Ordering::Relaxed);
        self.payload.clear();
        plan.payloads.put(plan.key(id, producer_seq), &mut self.payload);
        let how =
            Publishing { level: plan.level, receipt_percent: plan.receipts.unwrap_or_default() };
        if !member.link.publish(&to.name, (id, producer_seq), &self.payload, how) {
            self.held_back += 1;
            return false;
        }
        channel.published.store(producer_seq, Ordering::Release);
        shared.published.fetch_add(1, Ordering::Relaxed);
        own.answered.later.push_back(false);
        if plan.target.answer(plan.qos).is_none() {
            // Nothing will come that says so, so nothing waits for it.
            own.answered.tick(producer_seq);
            shared.answered.fetch_add(1, Ordering::Relaxed);
        }
        if plan.receipts.is_some() {
            own.received.later.push_back(false);
        }
        true
    }

    /// Takes what the server answered at `now`.
    pub fn answered(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        answer: Answer,
        now: u64,
        (measured, histograms): (Measured, &mut Histograms),
        violations: &mut Violations,
    ) {
        let id = answer.channel;
        let channel = &plan.channels[id as usize];
        let who = || {
            let group = &plan.groups[channel.group as usize].name;
            format!("{} in {group}", Plan::publisher_name(channel.publisher))
        };
        let (n, accepted) = match answer.outcome {
            Outcome::Accepted(accepted) => (accepted.producer_seq, Some(accepted)),
            Outcome::Taken { producer_seq, receivers } => {
                let wanted = u64::from(plan.groups[channel.group as usize].readers + plan.stalled);
                if let Some(n) = receivers.filter(|n| *n != wanted) {
                    violations.add(Kind::WrongAnswer, 1, || {
                        format!("message {producer_seq} of {} went to {n} of {wanted}", who())
                    });
                }
                (producer_seq, None)
            }
            Outcome::Failed(text) => {
                violations
                    .add(Kind::Unanswered, 1, || format!("a publish of {} failed: {text}", who()));
                return;
            }
            Outcome::Received(received) => {
                let record = (measured, histograms);
                return self.received(plan, shared, (id, &received), now, record, violations);
            }
        };
        let own = &mut self.channels[id as usize];
        if !own.answered.tick(n) {
            violations.add(Kind::WrongAnswer, 1, || {
                format!("PUBLISHED for message {n} of {}, which has no open answer", who())
            });
            return;
        }
        let slot = channel.slot(n);
        if let Some(accepted) = accepted {
            let told = slot.seq.swap(accepted.seq, Ordering::AcqRel);
            if told != 0 && told != accepted.seq {
                violations.add(Kind::WrongAnswer, 1, || {
                    format!(
                        "message {n} of {} was delivered as seq {told}, PUBLISHED says {}",
                        who(),
                        accepted.seq
                    )
                });
            }
            if plan.level == Some(Level::Durable) && accepted.level != Level::Durable {
                violations.add(Kind::WrongAnswer, 1, || {
                    format!("message {n} of {} should be durable and is not", who())
                });
            }
        }
        let (sent, intended) =
            (slot.sent.load(Ordering::Relaxed), slot.intended.load(Ordering::Relaxed));
        if measured.covers(intended) {
            histograms.ack.record(sent, intended, now, 1);
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        channel.answered.store(own.answered.upto, Ordering::Release);
    }

    /// A RECEIPT came. The same one may come twice, but not on one connection without a break.
    fn received(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        (id, r): (u32, &Received),
        now: u64,
        (measured, histograms): (Measured, &mut Histograms),
        violations: &mut Violations,
    ) {
        let channel = &plan.channels[id as usize];
        let (n, own) = (r.producer_seq, &mut self.channels[id as usize]);
        let slot = channel.slot(n);
        let open = own.received.tick(n);
        let told = slot.seq.load(Ordering::Acquire);
        let enough = u64::from(r.acked) * 100 >= u64::from(r.members) * u64::from(r.percent);
        let readers = plan.groups[channel.group as usize].readers + plan.stalled;
        if !open || told != r.seq || !enough || r.members != readers {
            violations.add(Kind::WrongAnswer, 1, || {
                format!(
                    "RECEIPT of {}% for message {n} of {}: seq {} (delivered as {told}), {} of {} members ({readers} joined){}",
                    r.percent,
                    Plan::publisher_name(channel.publisher),
                    r.seq,
                    r.acked,
                    r.members,
                    if open { "" } else { ", which has no open receipt" }
                )
            });
            return;
        }
        let (sent, intended) =
            (slot.sent.load(Ordering::Relaxed), slot.intended.load(Ordering::Relaxed));
        if measured.covers(intended) {
            histograms.receipt.record(sent, intended, now, 1);
        }
        shared.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts publishes that were never answered, when the run is over.
    pub fn finish(&self, plan: &Plan, violations: &mut Violations) {
        for (own, channel) in self.channels.iter().zip(&plan.channels) {
            let (open, receipts) = (own.answered.open(), own.received.open());
            if receipts > 0 {
                let who = Plan::publisher_name(channel.publisher);
                violations.add(Kind::Unanswered, receipts, || {
                    format!(
                        "{who} has {receipts} messages without a receipt, from {} on",
                        own.received.upto + 1
                    )
                });
            }
            if open > 0 {
                let who = Plan::publisher_name(channel.publisher);
                violations.add(Kind::Unanswered, open, || {
                    format!(
                        "{who} has {open} publishes without an answer, from {} on",
                        own.answered.upto + 1
                    )
                });
            }
        }
    }
}

fn due(start: u64, interval: f64, n: u64) -> u64 {
    start + (n as f64 * interval) as u64
}
