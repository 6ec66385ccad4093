//! One connection to another system: what it says first, what it reads, what waits for an answer.

use std::collections::VecDeque;

use super::codec::{Answered, Event, Found, Malformed};
use super::order::{self, Own};
use super::{Target, mqtt, nats, resp, ws};
use crate::member::{FramingLost, Role, Verifier};
use crate::plan::Plan;
use crate::publisher::{Answer, Outcome};
use crate::stream::Cursor;
use crate::violation::Kind;

/// A buffer for a cut frame that is larger than this is not kept.
const CARRY_KEEP_MAX: usize = 4096;

/// A member's place in one group.
struct Place {
    group: u32,
    /// Index of the thread's stream of it.
    stream: u32,
    cursor: Cursor,
    /// Set once its bytes were not those of the others.
    own: Option<Own>,
}

/// A publish without an answer.
struct Waiting {
    channel: u32,
    producer_seq: u64,
    id: u16,
}

/// Who reads.
#[derive(Clone, Copy)]
pub struct Who {
    /// Member or publisher.
    pub role: Role,
    /// Its number.
    pub number: u32,
}

impl Who {
    /// Its name.
    pub fn name(self) -> String {
        match self.role {
            Role::Publisher => Plan::publisher_name(self.number),
            Role::Reader | Role::Stalled => Plan::member_name(self.number),
        }
    }
}

/// The protocol of one connection.
pub struct Peer {
    target: Target,
    qos: u8,
    places: Vec<Place>,
    /// Every member of a group gets the same bytes, and this one is in one group.
    follows: bool,
    /// Confirmations that have to come before it is joined.
    unconfirmed: usize,
    /// All that was asked for is in force.
    pub ready: bool,
    /// The server's last words, if it said no.
    pub refused: Option<String>,
    waiting: VecDeque<Waiting>,
    last_id: u16,
    /// The start of a frame whose end has not come yet.
    carry: Vec<u8>,
    /// To be sent.
    pub out: Vec<u8>,
}

impl Peer {
    /// A connection to `host` for the groups at `places`, each given with the thread's stream of
    /// it. A publisher to rooms of WebSockets is in the room it publishes to.
    pub fn new(plan: &Plan, host: &str, who: Who, places: &[(u32, u32)]) -> Self {
        let target = plan.target;
        // At QoS 1 each member has numbers of its own in its bytes.
        let follows = plan.qos == 0 && places.len() == 1;
        let mut peer = Self {
            target,
            qos: plan.qos,
            places: Vec::new(),
            follows,
            unconfirmed: match target {
                Target::Redis => places.len(),
                Target::Mqtt => places.len().min(1),
                Target::Fanfare | Target::Nats | Target::Ws => 0,
            },
            ready: false,
            refused: None,
            waiting: VecDeque::new(),
            last_id: 0,
            carry: Vec::new(),
            out: Vec::new(),
        };
        let place = |(group, stream): &(u32, u32)| Place {
            group: *group,
            stream: *stream,
            cursor: Cursor { seq: 1, byte: 0 },
            own: (!follows).then(|| Own::new(plan.groups[*group as usize].channels.len())),
        };
        peer.places = places.iter().map(place).collect();
        let groups = places.iter().map(|(group, _)| plan.groups[*group as usize].name.as_str());
        let out = &mut peer.out;
        match target {
            // Never made for it.
            Target::Fanfare => {}
            Target::Redis => resp::greet(groups, out),
            Target::Nats => nats::greet(groups, out),
            Target::Mqtt => {
                let client = format!("{}-{}", plan.groups[0].name, who.name());
                mqtt::greet(&client, groups, plan.qos, out);
            }
            Target::Ws => {
                let own = plan.channels.iter().find(|c| c.publisher == who.number);
                let room = match (who.role, own) {
                    (Role::Publisher, Some(own)) => own.group,
                    _ => places.first().map_or(0, |(group, _)| *group),
                };
                ws::greet(host, &plan.groups[room as usize].name, "", out);
            }
        }
        peer
    }

    /// Publishes message `producer_seq` of a channel to `group`; false if it has to wait.
    pub fn publish(
        &mut self,
        group: &str,
        channel: u32,
        producer_seq: u64,
        payload: &[u8],
    ) -> bool {
        let out = &mut self.out;
        let mut id = 0;
        match self.target {
            Target::Fanfare => return false,
            Target::Redis => resp::publish(group, payload, out),
            Target::Nats => nats::publish(group, payload, out),
            Target::Mqtt if self.qos == 0 => mqtt::publish(group, payload, None, out),
            Target::Mqtt => {
                // A number in use may not be given out again.
                if self.waiting.len() >= usize::from(u16::MAX) / 2 {
                    return false;
                }
                self.last_id = self.last_id.checked_add(1).unwrap_or(1);
                id = self.last_id;
                mqtt::publish(group, payload, Some(id), out);
            }
            Target::Ws => ws::publish(payload, out),
        }
        if self.target.answer(self.qos).is_some() {
            self.waiting.push_back(Waiting { channel, producer_seq, id });
        }
        true
    }

    /// Takes bytes as they came.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        who: Who,
        cx: &mut Verifier<'_>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), FramingLost> {
        let mut run = || {
            if !self.carry.is_empty() {
                let Some(rest) = self.complete_carried(bytes)? else { return Ok(()) };
                bytes = rest;
                let mut frame = std::mem::take(&mut self.carry);
                self.frames(&frame, who, cx, answers)?;
                if frame.capacity() <= CARRY_KEEP_MAX {
                    frame.clear();
                    self.carry = frame;
                }
            }
            let taken = self.frames(bytes, who, cx, answers)?;
            self.carry.extend_from_slice(&bytes[taken..]);
            Ok(())
        };
        run().map_err(|e: Malformed| {
            cx.violations.add(Kind::Corrupt, 1, || format!("{} got {e}", who.name()));
            FramingLost
        })
    }

    /// Moves the end of the cut frame from `bytes` to it. Returns what is left of `bytes` when
    /// the frame is whole.
    fn complete_carried<'b>(&mut self, mut bytes: &'b [u8]) -> Result<Option<&'b [u8]>, Malformed> {
        while let Found::Need(n) = next(self.target, &self.carry)? {
            let missing = n.saturating_sub(self.carry.len()).min(bytes.len());
            if missing == 0 {
                return Ok(None);
            }
            let (head, rest) = bytes.split_at(missing);
            self.carry.extend_from_slice(head);
            bytes = rest;
        }
        Ok(Some(bytes))
    }

    /// Takes all whole frames at the start of `bytes` and returns their length.
    fn frames(
        &mut self,
        bytes: &[u8],
        who: Who,
        cx: &mut Verifier<'_>,
        answers: &mut Vec<Answer>,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let followed = self.follow(rest, cx);
            if followed > 0 {
                at += followed;
                continue;
            }
            match next(self.target, rest)? {
                Found::Frame(event, len) => {
                    self.event(event, &rest[..len], who, cx, answers);
                    at += len;
                }
                Found::Need(_) => break,
            }
        }
        Ok(at)
    }

    /// The usual case: the bytes are those that others got before.
    fn follow(&mut self, bytes: &[u8], cx: &mut Verifier<'_>) -> usize {
        let [Place { stream: index, cursor, own: None, .. }] = &mut self.places[..] else {
            return 0;
        };
        if !self.follows {
            return 0;
        }
        let stream = &mut cx.streams[*index as usize];
        let was_touched = stream.is_touched();
        let taken = stream.follow(cursor, bytes);
        if taken > 0 && !was_touched {
            cx.touched.push(*index);
        }
        taken
    }

    fn event(
        &mut self,
        event: Event<'_>,
        raw: &[u8],
        who: Who,
        cx: &mut Verifier<'_>,
        answers: &mut Vec<Answer>,
    ) {
        match event {
            Event::Message { topic, payload, ack } => {
                if self.qos == 1 && ack == 0 {
                    let text = || format!("{} got a message at QoS 0, not 1", who.name());
                    cx.violations.add(Kind::WrongAnswer, 1, text);
                }
                if ack > 0 {
                    mqtt::acknowledge(ack, &mut self.out);
                }
                self.message(topic, payload, raw, who, cx);
            }
            Event::Answered(answered) => self.answered(answered, who, cx, answers),
            Event::Subscribed => self.unconfirmed = self.unconfirmed.saturating_sub(1),
            Event::Ready if self.unconfirmed > 0 => {
                let n = self.unconfirmed;
                self.refused.get_or_insert(format!("{n} subscriptions were not confirmed"));
            }
            Event::Ready => self.ready = true,
            Event::Ping(what) => match self.target {
                Target::Nats => nats::pong(&mut self.out),
                _ => ws::pong(what, &mut self.out),
            },
            Event::Refused(text) => {
                let text = String::from_utf8_lossy(text).into_owned();
                if self.ready {
                    let said = || format!("{} was told {text:?}", who.name());
                    cx.violations.add(Kind::WrongAnswer, 1, said);
                }
                self.refused.get_or_insert(text);
            }
            Event::Other => {}
        }
    }

    fn message(
        &mut self,
        topic: Option<&[u8]>,
        payload: &[u8],
        raw: &[u8],
        who: Who,
        cx: &mut Verifier<'_>,
    ) {
        if who.role == Role::Publisher && self.target == Target::Ws {
            // Most of them repeat a message to its sender too.
            return;
        }
        let plan = cx.plan;
        let is = |p: &&mut Place| {
            topic.is_none_or(|topic| topic == plan.groups[p.group as usize].name.as_bytes())
        };
        let Some(place) = self.places.iter_mut().find(is) else {
            let topic = String::from_utf8_lossy(topic.unwrap_or_default()).into_owned();
            cx.violations.add(Kind::Corrupt, 1, || {
                format!("{} got a message of {topic:?} and is not in it", who.name())
            });
            return;
        };
        let stream = &mut cx.streams[place.stream as usize];
        let was_touched = stream.is_touched();
        let led = self.follows
            && place.own.is_none()
            && place.cursor == stream.end()
            && order::lead(plan, stream, &mut place.cursor, raw, payload);
        if !led {
            let own = place.own.get_or_insert_with(|| Own::at(plan, stream, place.cursor));
            let name = || who.name();
            if let Some((nth, seq)) = own.take(plan, place.group, payload, name, &mut cx.violations)
            {
                stream.apart.count(plan, place.group, nth, seq);
            }
        }
        if !was_touched && stream.is_touched() {
            cx.touched.push(place.stream);
        }
    }

    fn answered(
        &mut self,
        answered: Answered,
        who: Who,
        cx: &mut Verifier<'_>,
        answers: &mut Vec<Answer>,
    ) {
        let (at, receivers) = match answered {
            Answered::Receivers(n) => ((!self.waiting.is_empty()).then_some(0), Some(n)),
            // In order as a rule, so this does not look far.
            Answered::Id(id) => (self.waiting.iter().position(|w| w.id == id), None),
        };
        let Some(waiting) = at.and_then(|at| self.waiting.remove(at)) else {
            let text = || format!("{} got {answered:?} to no publish of its own", who.name());
            cx.violations.add(Kind::WrongAnswer, 1, text);
            return;
        };
        answers.push(Answer {
            channel: waiting.channel,
            outcome: Outcome::Taken { producer_seq: waiting.producer_seq, receivers },
        });
    }

    /// Where the member is in the thread's stream number `index`, if it is on the way of the others.
    pub fn cursor(&self, index: u32) -> Option<Cursor> {
        let place = self.places.iter().find(|p| p.stream == index)?;
        (self.follows && place.own.is_none()).then_some(place.cursor)
    }

    /// Counts what never came, when the run is over.
    pub fn finish(&self, who: Who, cx: &mut Verifier<'_>) {
        for place in &self.places {
            let stream = &cx.streams[place.stream as usize];
            let at = (place.cursor, place.own.as_ref());
            order::finish(cx.plan, stream, at, || who.name(), &mut cx.violations);
        }
    }
}

fn next(target: Target, bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    match target {
        Target::Redis => resp::next(bytes),
        Target::Nats => nats::next(bytes),
        Target::Mqtt => mqtt::next(bytes),
        Target::Ws => ws::next(bytes),
        Target::Fanfare => Err(Malformed("Fanfare has a codec of its own")),
    }
}
