//! What a member of another system must get: of each publisher in its groups every message once,
//! in the order they were published. Between publishers any order is right.

use std::collections::BTreeSet;

use crate::plan::Plan;
use crate::stream::{Arrival, Cursor, Stream};
use crate::violation::{Kind, Violations};

/// Missing messages that are remembered per member and channel to tell late from lost.
const MISSING_MAX: usize = 100_000;

/// Which of its group's channels a message is of, and its number there. Without a stamp it can only
/// be the next one of the one channel.
fn identify(plan: &Plan, group: u32, next: u64, payload: &[u8]) -> Option<(usize, u64)> {
    let channels = &plan.groups[group as usize].channels;
    if !plan.payloads.is_stamped() {
        return (channels.len() == 1).then_some((0, next));
    }
    let (channel, seq) = plan.payloads.stamp_of(payload)?;
    Some((channels.binary_search(&channel).ok()?, u64::from(seq)))
}

/// Whether `payload` is message `seq` of a channel, byte by byte, and was published.
fn is(plan: &Plan, channel: u32, seq: u64, payload: &[u8]) -> bool {
    use std::sync::atomic::Ordering::Acquire;
    seq <= plan.channels[channel as usize].published.load(Acquire)
        && plan.payloads.is(plan.key(channel, seq), payload)
}

/// The message after all that members of `stream` got so far, if it is right: it becomes what the
/// others are compared with. `raw` is its frame.
pub fn lead(
    plan: &Plan,
    stream: &mut Stream,
    cursor: &mut Cursor,
    raw: &[u8],
    payload: &[u8],
) -> bool {
    let first = stream.seen(0) + 1;
    let Some((nth, seq)) = identify(plan, stream.group, first, payload) else { return false };
    let channel = plan.groups[stream.group as usize].channels[nth];
    if seq != stream.seen(nth) + 1 || !is(plan, channel, seq, payload) {
        return false;
    }
    stream.append(cursor, raw, nth, channel);
    true
}

/// What one member has of each channel of a group, once its bytes are not those of the others.
pub struct Own {
    channels: Vec<Expected>,
}

struct Expected {
    next: u64,
    missing: BTreeSet<u64>,
}

impl Own {
    /// A member of a group with this many channels that has nothing yet.
    pub fn new(channels: usize) -> Self {
        Self::of(vec![1; channels])
    }

    /// A member that was at `cursor` of `stream`.
    pub fn at(plan: &Plan, stream: &Stream, cursor: Cursor) -> Self {
        Self::of(stream.next_at(plan, cursor))
    }

    fn of(next: Vec<u64>) -> Self {
        let expected = |next| Expected { next, missing: BTreeSet::new() };
        Self { channels: next.into_iter().map(expected).collect() }
    }

    /// Takes a message. Returns its place if it is the one that should come.
    pub fn take(
        &mut self,
        plan: &Plan,
        group: u32,
        payload: &[u8],
        member: impl Fn() -> String,
        violations: &mut Violations,
    ) -> Option<(usize, u64)> {
        let next = self.channels.first().map_or(1, |c| c.next);
        let to = &plan.groups[group as usize];
        let damaged = |violations: &mut Violations, what: String| {
            violations.add(Kind::Corrupt, 1, || format!("{} got {what} in {}", member(), to.name));
        };
        let Some((nth, seq)) = identify(plan, group, next, payload) else {
            damaged(violations, format!("{} bytes that nobody published", payload.len()));
            return None;
        };
        let (id, expected) = (to.channels[nth], &mut self.channels[nth]);
        if seq == expected.next && is(plan, id, seq, payload) {
            expected.next += 1;
            return Some((nth, seq));
        }
        let sender = Plan::publisher_name(plan.channels[id as usize].publisher);
        let what = format!("message {seq} of {sender}");
        if seq < expected.next {
            let (kind, how) = if expected.missing.remove(&seq) {
                (Kind::Reordered, "late, after")
            } else {
                (Kind::Duplicate, "again, after")
            };
            let last = expected.next - 1;
            violations
                .add(kind, 1, || format!("{} got {what} in {} {how} {last}", member(), to.name));
        } else if !is(plan, id, seq, payload) {
            damaged(violations, format!("{what} with other bytes than were published"));
            expected.next += u64::from(seq == expected.next);
        } else {
            expected.skip_to(seq, || format!("{} got {what} in {}", member(), to.name), violations);
        }
        None
    }
}

impl Expected {
    fn skip_to(&mut self, seq: u64, what: impl Fn() -> String, violations: &mut Violations) {
        let room = MISSING_MAX.saturating_sub(self.missing.len()) as u64;
        let skipped = seq - self.next;
        self.missing.extend(self.next..self.next + skipped.min(room));
        if skipped > room {
            let next = self.next;
            let text = || format!("{} where {next} should be", what());
            violations.add(Kind::Lost, skipped - room, text);
        }
        self.next = seq + 1;
    }
}

/// Counts what never came to a member, when the run is over.
pub fn finish(
    plan: &Plan,
    stream: &Stream,
    (cursor, own): (Cursor, Option<&Own>),
    member: impl Fn() -> String,
    violations: &mut Violations,
) {
    let group = &plan.groups[stream.group as usize];
    let next = match own {
        Some(own) => own.channels.iter().map(|c| c.next).collect(),
        None => stream.next_at(plan, cursor),
    };
    for (nth, (id, next)) in group.channels.iter().zip(next).enumerate() {
        let channel = &plan.channels[*id as usize];
        let sender = || Plan::publisher_name(channel.publisher);
        let published = channel.published.load(std::sync::atomic::Ordering::Acquire);
        if next <= published {
            violations.add(Kind::Lost, published + 1 - next, || {
                let (have, name) = (next - 1, &group.name);
                format!("{} got {} in {name} up to {have} of {published}", member(), sender())
            });
        }
        let missing = own.map(|own| &own.channels[nth].missing);
        if let Some(missing) = missing
            && let Some(first) = missing.first()
        {
            violations.add(Kind::Lost, missing.len() as u64, || {
                let (n, name) = (missing.len(), &group.name);
                format!("{} never got {first} of {} in {name}, {n} in all", member(), sender())
            });
        }
    }
}

/// How many members on their own got each message, between two looks.
#[derive(Default)]
pub struct Apart {
    /// Per channel of the group, by number modulo what may be in flight.
    counts: Vec<Box<[u32]>>,
    touched: Vec<(u32, u64)>,
}

impl Apart {
    /// One member got message `seq` of the group's `nth` channel.
    pub fn count(&mut self, plan: &Plan, group: u32, nth: usize, seq: u64) {
        if self.counts.is_empty() {
            let size = |id: &u32| plan.channels[*id as usize].capacity() as usize;
            let channels = plan.groups[group as usize].channels.iter();
            self.counts = channels.map(|id| vec![0; size(id)].into_boxed_slice()).collect();
        }
        let counts = &mut self.counts[nth];
        let count = &mut counts[seq as usize & (counts.len() - 1)];
        if *count == 0 {
            self.touched.push((nth as u32, seq));
        }
        *count += 1;
    }

    /// Whether there is something to take.
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Calls `on` for each message that was counted; `channels` are those of the group.
    pub fn take(&mut self, channels: &[u32], mut on: impl FnMut(Arrival)) {
        for (nth, seq) in self.touched.drain(..) {
            let counts = &mut self.counts[nth as usize];
            let members = std::mem::take(&mut counts[seq as usize & (counts.len() - 1)]);
            on(Arrival { channel: channels[nth as usize], producer_seq: seq, members });
        }
    }
}
