//! Frames other than DELIVER, and what is due on connections: heartbeats, acknowledgements.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use bytes::Bytes;
use fanfare::position::{Epoch, Handle, Seq};
use fanfare::ring::ClientRing;
use fanfare::wire::{Ack, Acks, ClientFrame, ErrorCode, Joined, ServerFrame};

use crate::clock::MILLI;
use crate::error::LoadError;
use crate::member::{Member, Role, Subscription, Verifier};
use crate::plan::Plan;
use crate::publisher::{Accepted, Answer};
use crate::record::Histograms;
use crate::stream::Stream;
use crate::violation::Kind;

/// Everything a thread knows of its connections beside the streams.
pub struct Session<'a> {
    plan: &'a Plan,
    group_of_name: HashMap<&'a [u8], u32>,
    /// Index of the thread's stream of each group.
    stream_of_group: Vec<Option<u32>>,
    heartbeat_ns: u64,
    /// When a slot sends its next PING.
    pings: BinaryHeap<Reverse<(u64, u32)>>,
    /// Time of the events being taken; 0 before the first of a round.
    pub now: u64,
    /// Connections that are ready.
    pub joined: usize,
    /// Join latencies.
    pub histograms: Histograms,
    /// Answers to publishes, to be taken by the publishers.
    pub answers: Vec<Answer>,
    /// The server said no while joining.
    pub refused: Option<LoadError>,
    /// The server said that it stops, or why it closes a connection.
    pub last_words: Option<String>,
}

impl<'a> Session<'a> {
    /// A thread without connections.
    pub fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            group_of_name: (0..).zip(&plan.groups).map(|(i, g)| (g.name.as_bytes(), i)).collect(),
            stream_of_group: vec![None; plan.groups.len()],
            heartbeat_ns: 0,
            pings: BinaryHeap::new(),
            now: 0,
            joined: 0,
            histograms: Histograms::new(),
            answers: Vec::new(),
            refused: None,
            last_words: None,
        }
    }

    /// Takes one frame of `member`.
    pub fn frame(&mut self, member: &mut Member, cx: &mut Verifier<'_>, frame: ServerFrame<'_>) {
        match frame {
            ServerFrame::Welcome(w) => {
                self.heartbeat_ns = u64::from(w.heartbeat_ms) * MILLI;
                if self.heartbeat_ns > 0 {
                    let first = self.now + u64::from(w.heartbeat_slot_ms) * MILLI;
                    self.pings.push(Reverse((first, member.slot)));
                }
                if member.wanted == 0 {
                    self.ready(member);
                }
            }
            ServerFrame::Joined(j) => self.joined(member, cx, &j),
            ServerFrame::Epoch(e) => {
                let name = member.name();
                if let Some(group) = member.groups.iter_mut().find(|g| g.handle == e.handle.0) {
                    group.epoch = e.epoch.0;
                    let next = group.cursor.seq;
                    if e.first.0 != next && !group.is_astray() {
                        cx.violations.add(Kind::Lost, e.first.0.saturating_sub(next), || {
                            format!(
                                "{name}: epoch {} starts at seq {}, {next} should be next",
                                e.epoch, e.first
                            )
                        });
                    }
                }
            }
            ServerFrame::Published(p) => {
                let accepted =
                    Accepted { producer_seq: p.producer_seq, seq: p.seq.0, level: p.level };
                self.answers.push(Answer { request: p.request, outcome: Ok(accepted) });
            }
            ServerFrame::Error(e) => {
                let code = ErrorCode::from_number(e.code)
                    .map_or_else(|| e.code.to_string(), |code| format!("{code:?}"));
                let text = format!("{code}: {}", String::from_utf8_lossy(e.text));
                if !member.ready {
                    self.refused = Some(LoadError::Refused { who: member.name(), text });
                } else if member.role == Role::Publisher && e.request != 0 {
                    self.answers.push(Answer { request: e.request, outcome: Err(text) });
                } else {
                    self.last_words = Some(format!("ERROR {text} to {}", member.name()));
                }
            }
            ServerFrame::Drain(d) => {
                self.last_words = Some(format!("DRAIN with {} ms of grace", d.grace_ms));
            }
            // The member itself takes DELIVER and GAP; the rest is not asked for.
            _ => {}
        }
    }

    fn joined(&mut self, member: &mut Member, cx: &mut Verifier<'_>, j: &Joined<'_>) {
        let name = member.name();
        let Some(group) = self.group_of_name.get(j.group).copied() else {
            let group = String::from_utf8_lossy(j.group).into_owned();
            cx.violations
                .add(Kind::WrongAnswer, 1, || format!("{name} joined {group:?} without asking"));
            return;
        };
        let index = *self.stream_of_group[group as usize].get_or_insert_with(|| {
            cx.streams.push(Stream::new(self.plan, group, j.handle.0, j.head.0));
            (cx.streams.len() - 1) as u32
        });
        let stream = &mut cx.streams[index as usize];
        if (stream.handle, stream.head) != (j.handle.0, j.head.0) {
            let (handle, head) = (Handle(stream.handle), stream.head);
            let group = &self.plan.groups[group as usize].name;
            cx.violations.add(Kind::WrongAnswer, 1, || {
                format!(
                    "{name} joined {group} as {} at {}, others as {handle} at {head}; does anybody else publish to it?",
                    j.handle, j.head
                )
            });
            return;
        }
        member.groups.push(Subscription::new(stream, index, j.epoch.0));
        if member.role == Role::Reader {
            stream.readers.push(member.slot);
        }
        if member.groups.len() == member.wanted {
            self.ready(member);
        }
    }

    fn ready(&mut self, member: &mut Member) {
        member.ready = true;
        self.joined += 1;
        if member.role != Role::Publisher {
            self.histograms.join.record(member.started, member.intended, self.now, 1);
        }
    }

    /// When the next PING is due.
    pub fn next_ping(&self) -> Option<u64> {
        self.pings.peek().map(|Reverse((at, _))| *at)
    }

    /// Sends the PINGs that are due at `now`, but not of members that have just sent an ACK.
    pub fn ping(&mut self, now: u64, members: &[Option<Box<Member>>], ring: &mut ClientRing) {
        while let Some(Reverse((at, slot))) = self.pings.peek().copied()
            && at <= now
        {
            self.pings.pop();
            // By the intended time, so that a late PING does not move the next one.
            let next = at + ((now - at) / self.heartbeat_ns + 1) * self.heartbeat_ns;
            self.pings.push(Reverse((next, slot)));
            let Some(member) = &members[slot as usize] else { continue };
            if member.acked_at + self.heartbeat_ns / 2 >= at && member.acked_at > 0 {
                continue;
            }
            let mut out = Vec::new();
            ClientFrame::encode_ping(&mut out, now);
            ring.send(slot, Bytes::from(out));
        }
    }
}

/// Acknowledges everything `member` has.
pub fn acknowledge(member: &mut Member, now: u64, ring: &mut ClientRing) {
    let mut acks = Vec::new();
    for group in &mut member.groups {
        let last = group.cursor.seq - 1;
        if last > group.acked {
            group.acked = last;
            acks.push(Ack {
                handle: Handle(group.handle),
                seq: Seq(last),
                epoch: Epoch(group.epoch),
            });
        }
    }
    member.unacked = 0;
    if !acks.is_empty() {
        member.acked_at = now;
    }
    for some in acks.chunks(fanfare::limits::FRAME_ENTRIES_MAX) {
        let mut out = Vec::new();
        Acks::encode(&mut out, some);
        ring.send(member.slot, Bytes::from(out));
    }
}
