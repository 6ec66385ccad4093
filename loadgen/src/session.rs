//! Frames other than DELIVER, and what is due on connections. The client library speaks the
//! protocol; here its events are checked.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use bytes::Bytes;
use fanfare::client::{Event, JoinedGroup, PublishError, Reason};
use fanfare::position::{Handle, Nanos};
use fanfare::ring::ClientRing;
use fanfare::wire::{ErrorCode, ServerFrame};

use crate::error::LoadError;
use crate::member::{FramingLost, Link, Member, Role, Subscription, Verifier};
use crate::plan::Plan;
use crate::publisher::{Accepted, Answer, Outcome, Received};
use crate::record::Histograms;
use crate::stream::Stream;
use crate::violation::Kind;

/// Everything a thread knows of its connections beside the streams.
pub struct Session<'a> {
    plan: &'a Plan,
    group_of_name: HashMap<&'a [u8], u32>,
    /// Index of the thread's stream of each group.
    stream_of_group: Vec<Option<u32>>,
    /// When the client of a slot has something to do.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    /// Slots whose clients have something to send.
    pub to_send: Vec<u32>,
    /// Time of the events being taken; 0 before the first of a round.
    pub now: u64,
    /// Connections that are ready.
    pub joined: usize,
    /// Join latencies.
    pub histograms: Histograms,
    /// Latencies of members that came back, taken once a round.
    pub herd_histograms: Histograms,
    /// How many are in their groups again, and how many have what they missed.
    pub herd_back: u64,
    /// See `herd_back`.
    pub herd_caught_up: u64,
    /// Answers to publishes, to be taken by the publishers.
    pub answers: Vec<Answer>,
    /// The server said no while joining.
    pub refused: Option<LoadError>,
    /// The server said that it stops, or why it closes a connection.
    pub last_words: Option<String>,
    /// What was decrypted, for the room.
    plain: Vec<u8>,
}

impl<'a> Session<'a> {
    /// A thread without connections.
    pub fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            group_of_name: (0..).zip(&plan.groups).map(|(i, g)| (g.name.as_bytes(), i)).collect(),
            stream_of_group: vec![None; plan.groups.len()],
            due: BinaryHeap::new(),
            to_send: Vec::new(),
            now: 0,
            joined: 0,
            histograms: Histograms::new(),
            herd_histograms: Histograms::new(),
            herd_back: 0,
            herd_caught_up: 0,
            answers: Vec::new(),
            refused: None,
            last_words: None,
            plain: Vec::new(),
        }
    }

    /// Takes one frame of `member`.
    pub fn frame(&mut self, member: &mut Member, cx: &mut Verifier<'_>, frame: ServerFrame<'_>) {
        match &frame {
            ServerFrame::Epoch(e) => {
                let name = member.name();
                if let Some(group) = member.groups.iter_mut().find(|g| g.handle == e.handle.0) {
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
            ServerFrame::Error(e) => {
                let code = ErrorCode::from_number(e.code)
                    .map_or_else(|| e.code.to_string(), |code| format!("{code:?}"));
                let text = format!("{code}: {}", String::from_utf8_lossy(e.text));
                let name = member.name();
                if !member.ready {
                    self.refused = Some(LoadError::Refused { who: name, text });
                } else if member.role != Role::Publisher || e.request == 0 {
                    self.last_words = Some(format!("ERROR {text} to {name}"));
                }
            }
            ServerFrame::Drain(d) => {
                self.last_words = Some(format!("DRAIN with {} ms of grace", d.grace_ms));
            }
            _ => {}
        }
        let now = Nanos(self.now);
        let mut event = member.link.core().and_then(|core| core.take(&frame, now));
        let next = |member: &mut Member| member.link.core().and_then(|core| core.next_event(now));
        while let Some(this) = event.or_else(|| next(member)) {
            self.event(member, cx, this);
            event = None;
        }
        if let Link::Fanfare(core) = &member.link
            && let Some(Reason::Protocol(what)) = core.closing()
            && !std::mem::replace(&mut member.broken, true)
        {
            let name = member.name();
            cx.violations.add(Kind::WrongAnswer, 1, || format!("{name} got {what}"));
        }
        self.went_on(member);
    }

    /// Takes bytes of a connection to a Fanfare server.
    pub fn fanfare(
        &mut self,
        member: &mut Member,
        cx: &mut Verifier<'_>,
        bytes: &[u8],
    ) -> Result<(), FramingLost> {
        let Some(tls) = &mut member.tls else {
            return member.receive(bytes, cx, &mut |member, cx, frame| {
                self.frame(member, cx, frame);
            });
        };
        let mut plain = std::mem::take(&mut self.plain);
        let opened = tls.open(bytes, &mut plain);
        if tls.wants_to_send() {
            self.to_send.push(member.slot);
        }
        let taken = member.receive(&plain, cx, &mut |member, cx, frame| {
            self.frame(member, cx, frame);
        });
        plain.clear();
        self.plain = plain;
        let Err(error) = opened else { return taken };
        let (who, text) = (member.name(), format!("TLS: {error}"));
        if member.ready {
            cx.violations.add(Kind::Corrupt, 1, || format!("{who}: {text}"));
        } else {
            self.refused.get_or_insert(LoadError::Refused { who, text });
        }
        Err(FramingLost)
    }

    /// Takes bytes of a connection to another system.
    pub fn peer(
        &mut self,
        member: &mut Member,
        cx: &mut Verifier<'_>,
        bytes: &[u8],
    ) -> Result<(), FramingLost> {
        let who = member.who();
        let Link::Peer(peer) = &mut member.link else { return Ok(()) };
        let taken = peer.receive(bytes, who, cx, &mut self.answers);
        if !peer.out.is_empty() {
            self.to_send.push(member.slot);
        }
        let ready = peer.ready;
        if let Some(text) = peer.refused.take() {
            if ready {
                self.last_words = Some(format!("{text:?} to {}", who.name()));
            } else {
                self.refused = Some(LoadError::Refused { who: who.name(), text });
            }
        }
        if ready && !member.ready {
            self.ready(member);
        }
        taken
    }

    fn event(&mut self, member: &mut Member, cx: &mut Verifier<'_>, event: Event) {
        match event {
            Event::Connected(_) if member.wanted == 0 => self.ready(member),
            Event::Joined(j) if member.back.is_some() => self.joined_again(member, cx, &j),
            Event::Joined(j) => self.joined(member, cx, &j),
            Event::Published(p) => self.answer(
                member,
                &p.group,
                Outcome::Accepted(Accepted {
                    producer_seq: p.producer_seq,
                    seq: p.seq.0,
                    level: p.level,
                }),
            ),
            Event::PublishFailed { group, error, .. } => {
                let text = match error {
                    PublishError::Refused(refusal) => refusal.to_string(),
                    other => other.to_string(),
                };
                self.answer(member, &group, Outcome::Failed(text));
            }
            // It is sent again, but a server under test has no business to say so.
            Event::PublishHeld { group, error, .. } => {
                self.answer(member, &group, Outcome::Failed(error.to_string()));
            }
            Event::Receipt(r) => {
                let Some(group) = &r.group else { return };
                let received = Received {
                    producer_seq: r.producer_seq,
                    seq: r.seq.0,
                    acked: r.acked,
                    members: r.members,
                    percent: r.percent,
                };
                self.answer(member, group, Outcome::Received(received));
            }
            _ => {}
        }
    }

    fn answer(&mut self, member: &Member, group: &[u8], outcome: Outcome) {
        let group = self.group_of_name.get(group);
        if let Some(channel) = group.and_then(|g| self.plan.channel_of(*g, member.number)) {
            self.answers.push(Answer { channel, outcome });
        }
    }

    /// The client of `member` was told something: send what it wants, and know when it is due.
    pub fn went_on(&mut self, member: &mut Member) {
        member.link.advance(Nanos(self.now));
        if !member.link.output().is_empty() {
            self.to_send.push(member.slot);
        }
        self.watch(member);
    }

    fn watch(&mut self, member: &mut Member) {
        if let Some(at) = member.link.deadline()
            && at.0 < member.due
        {
            member.due = at.0;
            self.due.push(Reverse((at.0, member.slot)));
        }
    }

    fn joined(&mut self, member: &mut Member, cx: &mut Verifier<'_>, j: &JoinedGroup) {
        let name = member.name();
        let Some(group) = self.group_of_name.get(&j.group[..]).copied() else {
            let group = String::from_utf8_lossy(&j.group).into_owned();
            cx.violations
                .add(Kind::WrongAnswer, 1, || format!("{name} joined {group:?} without asking"));
            return;
        };
        let index = self.stream(cx, group, j.handle.0, j.head.0);
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
        member.groups.push(Subscription::new(stream, index));
        if member.role == Role::Reader {
            stream.readers.push(member.slot);
        }
        if member.groups.len() == member.wanted {
            self.ready(member);
        }
    }

    /// The thread's stream of a group, made anew if there is none.
    pub fn stream(&mut self, cx: &mut Verifier<'_>, group: u32, handle: u64, head: u64) -> u32 {
        *self.stream_of_group[group as usize].get_or_insert_with(|| {
            cx.streams.push(Stream::new(self.plan, group, handle, head));
            (cx.streams.len() - 1) as u32
        })
    }

    fn ready(&mut self, member: &mut Member) {
        member.ready = true;
        self.joined += 1;
        if member.role != Role::Publisher {
            self.histograms.join.record(member.started, member.intended, self.now, 1);
        }
    }

    /// When the next client has something to do.
    pub fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Lets clients do what is due at `now`, and sends what they want to.
    pub fn send(&mut self, now: u64, members: &mut [Option<Box<Member>>], ring: &mut ClientRing) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            if let Some(member) = &mut members[slot as usize]
                && member.due == at
            {
                member.due = u64::MAX;
                member.link.advance(Nanos(now));
                self.to_send.push(slot);
                self.watch(member);
            }
        }
        for slot in self.to_send.drain(..) {
            if let Some(member) = &mut members[slot as usize] {
                let out = member.take_output();
                ring.send(slot, Bytes::from(out));
            }
        }
    }
}
