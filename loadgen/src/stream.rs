//! What one group looks like on one thread: the bytes every member of it must get.
//!
//! The first member that reaches a position checks the message there in full against what was
//! published; the others only have to have the same bytes, which one comparison per receive
//! shows for hundreds of messages. Deliveries are counted as ranges and turned into latencies
//! once per round, so the cost per delivery does not grow with the number of members.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use fanfare::wire::Deliver;

use crate::plan::Plan;
use crate::target::order::Apart;
use crate::violation::Kind;

struct Frame {
    /// Offset of the byte after it.
    end: u64,
    channel: u32,
    producer_seq: u64,
}

/// Where a member is in the stream: always between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The next message.
    pub seq: u64,
    /// Where its frame starts.
    pub byte: u64,
}

/// A message that some members got since the last call of [`Stream::take_arrivals`].
pub struct Arrival {
    /// The pair of publisher and group.
    pub channel: u32,
    /// The producer's number.
    pub producer_seq: u64,
    /// How many members got it.
    pub members: u32,
}

/// The canonical stream of a group.
pub struct Stream {
    /// Index of the group in the plan.
    pub group: u32,
    /// Number by which frames name it.
    pub handle: u64,
    /// Its last message before the run.
    pub head: u64,
    /// Slots of the members that are verified against it.
    pub readers: Vec<u32>,
    /// Fingerprint of every message in order, to compare threads.
    pub digest: u64,
    /// What members got that are not on the way of the others, where that is allowed.
    pub apart: Apart,
    /// Next producer sequence, per channel of the group.
    next: Vec<u64>,
    last_stamp: u64,
    bytes: Vec<u8>,
    /// Offset of `bytes[0]`.
    base: u64,
    frames: VecDeque<Frame>,
    /// Sequence number of `frames[0]`.
    first: u64,
    /// Differences: summed up from the front they give how many members got a frame.
    /// Always one longer than `frames`.
    arrivals: VecDeque<i32>,
    touched: Option<(u64, u64)>,
    trim_at: usize,
}

impl Stream {
    /// A stream after message `head`.
    pub fn new(plan: &Plan, group: u32, handle: u64, head: u64) -> Self {
        Self {
            group,
            handle,
            head,
            readers: Vec::new(),
            digest: 0,
            apart: Apart::default(),
            next: vec![1; plan.groups[group as usize].channels.len()],
            last_stamp: 0,
            bytes: Vec::new(),
            base: 0,
            frames: VecDeque::new(),
            first: head + 1,
            arrivals: VecDeque::from([0]),
            touched: None,
            trim_at: 0,
        }
    }

    /// Where a member starts that joined at the head.
    pub fn start(&self) -> Cursor {
        Cursor { seq: self.head + 1, byte: 0 }
    }

    /// Where a member is that has everything.
    pub fn end(&self) -> Cursor {
        Cursor {
            seq: self.first + self.frames.len() as u64,
            byte: self.base + self.bytes.len() as u64,
        }
    }

    /// Messages of channel number `i` of the group that were seen.
    pub fn seen(&self, i: usize) -> u64 {
        self.next[i] - 1
    }

    /// Moves `cursor` over all whole frames at the start of `bytes` that are as they should
    /// be, and returns how many bytes that were.
    pub fn follow(&mut self, cursor: &mut Cursor, bytes: &[u8]) -> usize {
        let known = &self.bytes[(cursor.byte - self.base) as usize..];
        let n = known.len().min(bytes.len());
        if n == 0 {
            return 0;
        }
        let at = (cursor.seq - self.first) as usize;
        let end = if bytes[..n] == known[..n] {
            if n == known.len() {
                self.frames.len()
            } else {
                let reach = cursor.byte + n as u64;
                self.frames.partition_point(|f| f.end <= reach)
            }
        } else {
            self.first_difference(at, cursor.byte, &bytes[..n])
        };
        if end == at {
            return 0;
        }
        let next = Cursor { seq: self.first + end as u64, byte: self.frames[end - 1].end };
        self.arrived(cursor.seq, next.seq);
        let taken = next.byte - cursor.byte;
        *cursor = next;
        taken as usize
    }

    /// Index of the first frame from `at` on that is not as in `bytes`.
    fn first_difference(&self, at: usize, start: u64, bytes: &[u8]) -> usize {
        let mut from = start;
        let mut index = at;
        while let Some(frame) = self.frames.get(index) {
            let theirs = bytes.get((from - start) as usize..(frame.end - start) as usize);
            let ours = &self.bytes[(from - self.base) as usize..(frame.end - self.base) as usize];
            if theirs != Some(ours) {
                break;
            }
            from = frame.end;
            index += 1;
        }
        index
    }

    /// Checks the message that comes next, all of it, and appends it. `raw` is its frame.
    pub fn lead(
        &mut self,
        plan: &Plan,
        cursor: &mut Cursor,
        raw: &[u8],
        deliver: &Deliver<'_>,
    ) -> Result<(), (Kind, String)> {
        let seq = deliver.seq.0;
        let name = &plan.groups[self.group as usize].name;
        let Some(channel) = plan.channel_of_sender(self.group, deliver.sender) else {
            let sender = String::from_utf8_lossy(deliver.sender);
            return Err((
                Kind::Corrupt,
                format!("{name} seq {seq}: sender {sender:?} is no publisher here"),
            ));
        };
        let channels = &plan.groups[self.group as usize].channels;
        let nth = channels.iter().position(|c| *c == channel).unwrap_or(0);
        let expected = self.next[nth];
        let of = &plan.channels[channel as usize];
        let key = plan.key(channel, expected);
        if expected > of.published.load(Ordering::Acquire)
            || !plan.payloads.is(key, deliver.payload)
        {
            return Err(self.explain(plan, channel, expected, deliver));
        }
        if deliver.stamp.0 <= self.last_stamp {
            let (now, before) = (deliver.stamp.0, self.last_stamp);
            return Err((
                Kind::Corrupt,
                format!("{name} seq {seq}: stamp {now:#x} is not above {before:#x} before it"),
            ));
        }
        // Whoever is second, this or the publisher's answer, compares.
        let told = of.slot(expected).seq.swap(seq, Ordering::AcqRel);
        if told != 0 && told != seq {
            return Err((
                Kind::WrongAnswer,
                format!(
                    "{name}: producer seq {expected} was delivered as seq {seq}, but elsewhere it is {told}"
                ),
            ));
        }
        self.last_stamp = deliver.stamp.0;
        let place = u64::from(deliver.node.0) << 16 | u64::from(deliver.shard.0);
        for part in [deliver.stamp.0, u64::from(channel), expected, place] {
            self.digest = (self.digest ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        }
        self.append(cursor, raw, nth, channel);
        Ok(())
    }

    /// Appends the next message of the group's `nth` channel, which a member got at `cursor`, the
    /// end. `raw` is its frame.
    pub fn append(&mut self, cursor: &mut Cursor, raw: &[u8], nth: usize, channel: u32) {
        let producer_seq = self.next[nth];
        self.next[nth] += 1;
        self.bytes.extend_from_slice(raw);
        let end = self.base + self.bytes.len() as u64;
        self.frames.push_back(Frame { end, channel, producer_seq });
        self.arrivals.push_back(0);
        self.arrived(cursor.seq, cursor.seq + 1);
        *cursor = Cursor { seq: cursor.seq + 1, byte: end };
    }

    /// The next message of each channel of the group for a member that is at `cursor`.
    pub fn next_at(&self, plan: &Plan, cursor: Cursor) -> Vec<u64> {
        let mut next = self.next.clone();
        let channels = &plan.groups[self.group as usize].channels;
        let after = (cursor.seq - self.first) as usize;
        // From the end, so that what comes first after the cursor stays.
        for frame in self.frames.range(after..).rev() {
            if let Ok(nth) = channels.binary_search(&frame.channel) {
                next[nth] = frame.producer_seq;
            }
        }
        next
    }

    /// What went wrong when a message is not the one its publisher sent next.
    fn explain(&self, plan: &Plan, channel: u32, expected: u64, d: &Deliver<'_>) -> (Kind, String) {
        let name = &plan.groups[self.group as usize].name;
        let sender = String::from_utf8_lossy(d.sender);
        let (seq, sent) =
            (d.seq, plan.channels[channel as usize].published.load(Ordering::Acquire));
        match plan.payloads.producer_seq_of(channel, d.payload).map(u64::from) {
            Some(got) if got > expected && got <= sent => (
                Kind::Lost,
                format!(
                    "{name} seq {seq} is message {got} of {sender}, but {expected} did not come before"
                ),
            ),
            Some(got) if got < expected => {
                (Kind::Duplicate, format!("{name} seq {seq} is message {got} of {sender} again"))
            }
            _ => (
                Kind::Corrupt,
                format!(
                    "{name} seq {seq}: payload of {} bytes is not message {expected} of {sender}",
                    d.payload.len()
                ),
            ),
        }
    }

    /// The frame of message `seq`, if it is still kept.
    pub fn frame(&self, seq: u64) -> Option<&[u8]> {
        let index = seq.checked_sub(self.first)? as usize;
        let end = self.frames.get(index)?.end;
        let start = index.checked_sub(1).map_or(self.base, |before| self.frames[before].end);
        self.bytes.get((start - self.base) as usize..(end - self.base) as usize)
    }

    fn arrived(&mut self, from: u64, to: u64) {
        self.arrivals[(from - self.first) as usize] += 1;
        self.arrivals[(to - self.first) as usize] -= 1;
        let (low, high) = self.touched.unwrap_or((from, to));
        self.touched = Some((low.min(from), high.max(to)));
    }

    /// Whether there are arrivals to take.
    pub fn is_touched(&self) -> bool {
        self.touched.is_some() || self.apart.is_touched()
    }

    /// Calls `on` for each message that members got since the last call.
    pub fn take_arrivals(&mut self, plan: &Plan, mut on: impl FnMut(Arrival)) {
        self.apart.take(&plan.groups[self.group as usize].channels, &mut on);
        let Some((low, high)) = self.touched.take() else { return };
        let (low, high) = ((low - self.first) as usize, (high - self.first) as usize);
        let mut members = 0;
        for (arrived, frame) in self.arrivals.range_mut(low..high).zip(self.frames.range(low..high))
        {
            members += std::mem::take(arrived);
            if members > 0 {
                on(Arrival {
                    channel: frame.channel,
                    producer_seq: frame.producer_seq,
                    members: members as u32,
                });
            }
        }
        self.arrivals[high] = 0;
    }

    /// Whether it is worth to look for bytes that no member needs any more.
    pub fn is_long(&self, bytes_max: usize) -> bool {
        self.bytes.len() > self.trim_at.max(bytes_max)
    }

    /// Drops what is before `slowest`, where the slowest member is. Arrivals must have been
    /// taken.
    pub fn trim(&mut self, slowest: Cursor) {
        let count = (slowest.seq - self.first) as usize;
        self.frames.drain(..count);
        self.arrivals.drain(..count);
        self.bytes.drain(..(slowest.byte - self.base) as usize);
        self.first = slowest.seq;
        self.base = slowest.byte;
        self.trim_at = 2 * self.bytes.len();
    }
}
