//! Publishing: a closed loop that keeps a number of broadcasts in flight, or an open loop on
//! a fixed schedule. All publishers are on the first thread.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use fanfare::position::Level;
use fanfare::ring::ClientRing;
use fanfare::wire::Publish;

use crate::clock::SECOND;
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
    /// Index of the channel plus one, as it was sent.
    pub request: u32,
    /// PUBLISHED, or the text of an ERROR.
    pub outcome: Result<Accepted, String>,
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

#[derive(Default)]
struct Channel {
    /// All up to this are answered.
    answered: u64,
    /// Whether the ones after that are.
    later: VecDeque<bool>,
}

struct Connection {
    slot: u32,
    out: Vec<u8>,
}

/// All publishers.
pub struct Publishers {
    pace: Pace,
    connections: Vec<Connection>,
    channels: Vec<Channel>,
    /// Next channel of each group.
    turns: Vec<usize>,
    payload: Vec<u8>,
    /// Times that something due had to wait for room.
    pub held_back: u64,
}

impl Publishers {
    /// Publishers on these ring slots, by number.
    pub fn new(plan: &Plan, pace: Pace, slots: Vec<u32>) -> Self {
        Self {
            pace,
            connections: slots
                .into_iter()
                .map(|slot| Connection { slot, out: Vec::new() })
                .collect(),
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
        ring: &mut ClientRing,
        now: u64,
        until: u64,
    ) -> bool {
        let held_back = self.held_back;
        let mut more = false;
        match std::mem::replace(&mut self.pace, Pace::Window(VecDeque::new())) {
            Pace::Window(mut ready) => {
                for _ in 0..ready.len().min(PUBLISH_PER_TURN) {
                    let Some((group, since)) = ready.pop_front() else { break };
                    if now < until && !self.publish_one(plan, shared, ring, group, since, now) {
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
                        || !self.publish_one(plan, shared, ring, group, at, now)
                    {
                        break;
                    }
                    next += 1;
                }
                self.pace = Pace::Rate { start, interval, next };
            }
        }
        for connection in &mut self.connections {
            if !connection.out.is_empty() {
                ring.send(connection.slot, Bytes::from(std::mem::take(&mut connection.out)));
            }
        }
        more && self.held_back == held_back
    }

    fn publish_one(
        &mut self,
        plan: &Plan,
        shared: &Shared,
        ring: &ClientRing,
        group: u32,
        intended: u64,
        now: u64,
    ) -> bool {
        let to = &plan.groups[group as usize];
        let turn = &mut self.turns[group as usize];
        let id = to.channels[*turn];
        let channel = &plan.channels[id as usize];
        let own = &mut self.channels[id as usize];
        let connection = &mut self.connections[channel.publisher as usize];

        let before = channel.published.load(Ordering::Relaxed);
        let done = own.answered.min(channel.completed.load(Ordering::Acquire));
        let queued = connection.out.len() + ring.queued(connection.slot);
        if before - done >= channel.capacity() || queued > QUEUED_BYTES_MAX {
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
        channel.published.store(producer_seq, Ordering::Release);
        shared.published.fetch_add(1, Ordering::Relaxed);
        own.later.push_back(false);

        self.payload.clear();
        plan.payloads.put(plan.key(id, producer_seq), &mut self.payload);
        Publish {
            request: id + 1,
            level: plan.level,
            receipt: 0,
            producer_seq,
            group: to.name.as_bytes(),
            payload: &self.payload,
        }
        .encode(&mut connection.out);
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
        let id = answer.request.wrapping_sub(1);
        let Some(channel) = plan.channels.get(id as usize) else {
            violations.add(Kind::WrongAnswer, 1, || {
                format!("an answer names request {}, which nobody made", answer.request)
            });
            return;
        };
        let who = || {
            let group = &plan.groups[channel.group as usize].name;
            format!("{} in {group}", Plan::publisher_name(channel.publisher))
        };
        let accepted = match answer.outcome {
            Ok(accepted) => accepted,
            Err(text) => {
                violations
                    .add(Kind::Unanswered, 1, || format!("a publish of {} failed: {text}", who()));
                return;
            }
        };
        let n = accepted.producer_seq;
        let own = &mut self.channels[id as usize];
        let index = n.wrapping_sub(own.answered + 1) as usize;
        match own.later.get_mut(index) {
            Some(answered) if !*answered => *answered = true,
            _ => {
                violations.add(Kind::WrongAnswer, 1, || {
                    format!("PUBLISHED for message {n} of {}, which has no open answer", who())
                });
                return;
            }
        }
        let slot = channel.slot(n);
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
        let (sent, intended) =
            (slot.sent.load(Ordering::Relaxed), slot.intended.load(Ordering::Relaxed));
        if measured.covers(intended) {
            histograms.ack.record(sent, intended, now, 1);
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        while own.later.front() == Some(&true) {
            own.later.pop_front();
            own.answered += 1;
        }
        channel.answered.store(own.answered, Ordering::Release);
    }

    /// Counts publishes that were never answered, when the run is over.
    pub fn finish(&self, plan: &Plan, violations: &mut Violations) {
        for (own, channel) in self.channels.iter().zip(&plan.channels) {
            let open = own.later.iter().filter(|answered| !**answered).count() as u64;
            if open > 0 {
                let who = Plan::publisher_name(channel.publisher);
                violations.add(Kind::Unanswered, open, || {
                    format!(
                        "{who} has {open} publishes without an answer, from {} on",
                        own.answered + 1
                    )
                });
            }
        }
    }
}

fn due(start: u64, interval: f64, n: u64) -> u64 {
    start + (n as f64 * interval) as u64
}
