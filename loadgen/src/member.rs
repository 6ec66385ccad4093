//! One member's connection: from received bytes to verified messages.

use std::collections::BTreeSet;

use fanfare::client::{Core, Publishing};
use fanfare::limits::FRAME_MAX;
use fanfare::position::{Handle, Nanos, Seq};
use fanfare::wire::{Deliver, FRAME_HEADER, ServerFrame, kind, split};

use crate::encoding::Messages;
use crate::herd::Return;
use crate::plan::Plan;
use crate::stream::{Cursor, Stream};
use crate::target::peer::{Peer, Who};
use crate::tls;
use crate::violation::{Kind, Violations};

/// Longest frame that is accepted from a server, after the length field.
const SERVER_FRAME_MAX: usize = FRAME_MAX + 4096;
/// Missing messages that are remembered per member to tell late from lost.
const MISSING_MAX: usize = 100_000;
/// A buffer for a cut frame that is larger than this is not kept.
const CARRY_KEEP_MAX: usize = 4096;

/// A member's place in one group.
pub struct Subscription {
    /// Number by which frames name the group.
    pub handle: u64,
    /// Index of the thread's stream of it.
    pub stream: u32,
    /// Where the member is.
    pub cursor: Cursor,
    /// Last message that the client was told of.
    told: u64,
    /// Set once something was wrong; from then on the bytes are only explained.
    astray: Option<Box<Astray>>,
}

struct Astray {
    next: u64,
    missing: BTreeSet<u64>,
}

impl Subscription {
    /// A member that has just joined the group of `stream`, which is the thread's `index`-th.
    pub fn new(stream: &Stream, index: u32) -> Self {
        let cursor = stream.start();
        Self { handle: stream.handle, stream: index, cursor, told: stream.head, astray: None }
    }

    /// Whether the member has left the path of the others.
    pub fn is_astray(&self) -> bool {
        self.astray.is_some()
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads and is verified.
    Reader,
    /// Joins, then reads slowly or not at all.
    Stalled,
    /// Publishes, in no group.
    Publisher,
}

/// The protocol of a connection.
#[expect(clippy::large_enum_variant, reason = "members are boxed; those of a run are alike")]
pub enum Link {
    /// Fanfare's, but for the messages themselves.
    Fanfare(Core),
    /// Another one.
    Peer(Peer),
}

impl Link {
    /// Fanfare's client, if that is what is spoken.
    pub fn core(&mut self) -> Option<&mut Core> {
        match self {
            Self::Fanfare(core) => Some(core),
            Self::Peer(_) => None,
        }
    }

    /// Lets the client do what is due.
    pub fn advance(&mut self, now: Nanos) {
        if let Self::Fanfare(core) = self {
            core.advance(now);
        }
    }

    /// When the client has something to do.
    pub fn deadline(&self) -> Option<Nanos> {
        match self {
            Self::Fanfare(core) => core.deadline(),
            Self::Peer(_) => None,
        }
    }

    /// What it wants to send.
    pub fn output(&self) -> &[u8] {
        match self {
            Self::Fanfare(core) => core.output(),
            Self::Peer(peer) => &peer.out,
        }
    }

    /// Takes what it wants to send.
    pub fn take_output(&mut self) -> Vec<u8> {
        match self {
            Self::Fanfare(core) => core.take_output(),
            Self::Peer(peer) => std::mem::take(&mut peer.out),
        }
    }

    /// Publishes message `producer_seq` of `channel` to `group`; false if it has to wait.
    pub fn publish(
        &mut self,
        group: &str,
        (channel, producer_seq): (u32, u64),
        payload: &[u8],
        how: Publishing,
    ) -> bool {
        match self {
            // The client gives it the number of the channel, since nobody else uses either.
            Self::Fanfare(core) => core.publish(group.as_bytes(), payload, how).is_ok(),
            Self::Peer(peer) => peer.publish(group, channel, producer_seq, payload),
        }
    }
}

/// One member, or a publisher, which is a member of no group.
pub struct Member {
    /// What it is for.
    pub role: Role,
    /// Its number among members or among publishers.
    pub number: u32,
    /// Slot in the ring.
    pub slot: u32,
    /// It has its WELCOME and all JOINED.
    pub ready: bool,
    /// Groups it asked for.
    pub wanted: usize,
    /// When it connected, and when it should have.
    pub started: u64,
    /// See `started`.
    pub intended: u64,
    /// The groups it is in.
    pub groups: Vec<Subscription>,
    /// The protocol of this connection.
    pub link: Link,
    /// What its frames are carried by, if not as they are.
    pub messages: Option<Box<Messages>>,
    /// What all of it is encrypted by, if it is.
    pub tls: Option<Box<tls::Session>>,
    /// It has messages that the client was not told of.
    pub moved: bool,
    /// When its client has something to do, as far as that is on the thread's list.
    pub due: u64,
    /// It dropped and is on its way back.
    pub back: Option<Box<Return>>,
    /// Its client has found a fault of the server, which was reported.
    pub broken: bool,
    /// The start of a frame whose end has not come yet.
    carry: Vec<u8>,
}

/// What members of a thread are verified against, and what was found.
pub struct Verifier<'a> {
    /// The run.
    pub plan: &'a Plan,
    /// The groups of this thread.
    pub streams: Vec<Stream>,
    /// Streams with arrivals that were not taken yet.
    pub touched: Vec<u32>,
    /// Findings.
    pub violations: Violations,
}

/// Bytes that are no frames: the connection cannot go on.
pub struct FramingLost;

impl Member {
    /// A connection on `slot` that has sent HELLO and a JOIN of `wanted` groups.
    pub fn new(role: Role, number: u32, slot: u32, wanted: usize, link: Link) -> Self {
        Self {
            role,
            number,
            slot,
            ready: false,
            wanted,
            started: 0,
            intended: 0,
            groups: Vec::new(),
            link,
            messages: None,
            tls: None,
            moved: false,
            due: u64::MAX,
            back: None,
            broken: false,
            carry: Vec::new(),
        }
    }

    /// It has another connection, on `slot`; its places in its groups are what they were.
    pub fn returned(&mut self, slot: u32, core: Core) {
        (self.slot, self.link) = (slot, Link::Fanfare(core));
        (self.ready, self.broken, self.due) = (false, false, u64::MAX);
        self.carry.clear();
    }

    /// Its name, as the server knows it.
    pub fn name(&self) -> String {
        self.who().name()
    }

    /// What its name is made of.
    pub fn who(&self) -> Who {
        Who { role: self.role, number: self.number }
    }

    /// Where it is in the stream, if it is on the way of the others.
    pub fn cursor(&self, index: u32) -> Option<Cursor> {
        match &self.link {
            Link::Fanfare(_) => self.groups.iter().find(|g| g.stream == index).map(|g| g.cursor),
            Link::Peer(peer) => peer.cursor(index),
        }
    }

    /// Takes what it wants to send, as it goes to its socket.
    pub fn take_output(&mut self) -> Vec<u8> {
        let mut out = self.link.take_output();
        if let Some(messages) = &mut self.messages
            && !out.is_empty()
        {
            out = messages.wrap(&out);
        }
        match &mut self.tls {
            // It fails only after the connection has failed, which is found when bytes come.
            Some(tls) => tls.seal(&out).unwrap_or_default(),
            None => out,
        }
    }

    /// Takes bytes as they came; calls `control` for each frame that is not a DELIVER.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        cx: &mut Verifier<'_>,
        control: &mut dyn FnMut(&mut Self, &mut Verifier<'_>, ServerFrame<'_>),
    ) -> Result<(), FramingLost> {
        let Some(mut messages) = self.messages.take() else {
            return self.receive_native(bytes, cx, control);
        };
        let taken = messages.unwrap(bytes, &mut |native| {
            self.receive_native(native, cx, control).map_err(|FramingLost| "")
        });
        self.messages = Some(messages);
        taken.map_err(|what: &'static str| {
            let name = self.name();
            cx.violations.add(Kind::Corrupt, 1, || format!("{name} got no message: {what}"));
            FramingLost
        })
    }

    fn receive_native(
        &mut self,
        mut bytes: &[u8],
        cx: &mut Verifier<'_>,
        control: &mut dyn FnMut(&mut Self, &mut Verifier<'_>, ServerFrame<'_>),
    ) -> Result<(), FramingLost> {
        if !self.carry.is_empty() {
            let Some(rest) = self.complete_carried(bytes) else { return Ok(()) };
            bytes = rest;
            let mut frame = std::mem::take(&mut self.carry);
            self.frames(&frame, cx, control)?;
            if frame.capacity() <= CARRY_KEEP_MAX {
                frame.clear();
                self.carry = frame;
            }
        }
        let taken = self.frames(bytes, cx, control)?;
        self.carry.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Moves the end of the cut frame from `bytes` to it. Returns what is left of `bytes`
    /// when the frame is whole, or known to be none.
    fn complete_carried<'b>(&mut self, mut bytes: &'b [u8]) -> Option<&'b [u8]> {
        self.carry_up_to(4, &mut bytes)?;
        let len = self.carry.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        if len <= SERVER_FRAME_MAX {
            self.carry_up_to(4 + len, &mut bytes)?;
        }
        Some(bytes)
    }

    fn carry_up_to(&mut self, wanted: usize, bytes: &mut &[u8]) -> Option<()> {
        let missing = wanted.saturating_sub(self.carry.len());
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        self.carry.extend_from_slice(head);
        *bytes = rest;
        (head.len() == missing).then_some(())
    }

    /// Takes all whole frames at the start of `bytes` and returns their length.
    fn frames(
        &mut self,
        bytes: &[u8],
        cx: &mut Verifier<'_>,
        control: &mut dyn FnMut(&mut Self, &mut Verifier<'_>, ServerFrame<'_>),
    ) -> Result<usize, FramingLost> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let followed = self.follow(rest, cx);
            if followed > 0 {
                at += followed;
                continue;
            }
            let (frame, len) = match split(rest, SERVER_FRAME_MAX) {
                Ok(Some(whole)) => whole,
                Ok(None) => return Ok(at),
                Err(e) => {
                    let name = self.name();
                    cx.violations.add(Kind::Corrupt, 1, || format!("{name} got no frame: {e}"));
                    return Err(FramingLost);
                }
            };
            match ServerFrame::decode(frame) {
                Ok(ServerFrame::Deliver(d)) => self.deliver(&rest[..len], &d, cx),
                Ok(ServerFrame::Gap(gap)) => self.gap(gap.handle.0, gap.from.0, gap.to.0, cx),
                Ok(other) => control(self, cx, other),
                Err(e) => {
                    let name = self.name();
                    cx.violations.add(Kind::Corrupt, 1, || format!("{name}: {e}"));
                }
            }
            at += len;
        }
    }

    /// The usual case: the bytes are those that others got before.
    fn follow(&mut self, bytes: &[u8], cx: &mut Verifier<'_>) -> usize {
        let Some(index) = self.subscription_of(bytes) else { return 0 };
        let group = &mut self.groups[index];
        if group.astray.is_some() {
            return 0;
        }
        let stream = &mut cx.streams[group.stream as usize];
        let was_touched = stream.is_touched();
        let taken = stream.follow(&mut group.cursor, bytes);
        if taken > 0 {
            self.moved = true;
            if !was_touched {
                cx.touched.push(group.stream);
            }
        }
        taken
    }

    /// Which group the frame at the start of `bytes` is for, if it is a DELIVER.
    fn subscription_of(&self, bytes: &[u8]) -> Option<usize> {
        let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER>()?;
        let handle = u64::from_le_bytes(*rest.first_chunk::<8>()?);
        if header[4] != kind::DELIVER {
            return None;
        }
        self.groups.iter().position(|g| g.handle == handle)
    }

    /// A DELIVER that is new to this thread, or not what others got.
    fn deliver(&mut self, raw: &[u8], d: &Deliver<'_>, cx: &mut Verifier<'_>) {
        let name = self.name();
        let Some(group) = self.groups.iter_mut().find(|g| g.handle == d.handle.0) else {
            cx.violations.add(Kind::Corrupt, 1, || {
                format!("{name} got seq {} of group {} and is not in it", d.seq, d.handle)
            });
            return;
        };
        let stream = &mut cx.streams[group.stream as usize];
        let expected = group.cursor.seq;
        if group.astray.is_none() && d.seq.0 == expected && group.cursor == stream.end() {
            let was_touched = stream.is_touched();
            match stream.lead(cx.plan, &mut group.cursor, raw, d) {
                Ok(()) => {
                    self.moved = true;
                    if !was_touched {
                        cx.touched.push(group.stream);
                    }
                }
                Err((kind, text)) => {
                    cx.violations.add(kind, 1, || format!("{name}: {text}"));
                    group.astray =
                        Some(Box::new(Astray { next: expected + 1, missing: BTreeSet::new() }));
                }
            }
            return;
        }
        let astray = group
            .astray
            .get_or_insert_with(|| Box::new(Astray { next: expected, missing: BTreeSet::new() }));
        let group_name = &cx.plan.groups[stream.group as usize].name;
        astray.explain(&name, group_name, raw, d.seq.0, stream, &mut cx.violations);
    }

    fn gap(&mut self, handle: u64, from: u64, to: u64, cx: &mut Verifier<'_>) {
        let name = self.name();
        let n = to.saturating_sub(from).saturating_add(1);
        cx.violations.add(Kind::Lost, n, || {
            format!("{name}: the server announced a gap in group {handle:016x}, seq {from} to {to}")
        });
        if let Some(group) = self.groups.iter_mut().find(|g| g.handle == handle) {
            group.astray =
                Some(Box::new(Astray { next: to.saturating_add(1), missing: BTreeSet::new() }));
        }
    }

    /// Tells the client how far the member is, so that it acknowledges.
    pub fn acknowledge(&mut self, now: Nanos) {
        self.moved = false;
        for group in &mut self.groups {
            let last = group.cursor.seq - 1;
            if last > group.told {
                group.told = last;
                if let Some(core) = self.link.core() {
                    core.passed(Handle(group.handle), Seq(last), now);
                }
            }
        }
    }

    /// Counts what never came, when the run is over.
    pub fn finish(&self, cx: &mut Verifier<'_>) {
        if let Link::Peer(peer) = &self.link {
            return peer.finish(self.who(), cx);
        }
        let name = self.name();
        for group in &self.groups {
            let stream = &cx.streams[group.stream as usize];
            let end = stream.end().seq;
            let group_name = &cx.plan.groups[stream.group as usize].name;
            let (next, missing) = match &group.astray {
                Some(astray) => (
                    astray.next,
                    astray.missing.first().copied().zip(Some(astray.missing.len() as u64)),
                ),
                None => (group.cursor.seq, None),
            };
            if let Some((first, n)) = missing {
                cx.violations.add(Kind::Lost, n, || {
                    format!("{name} never got seq {first} of {group_name}, {n} in all")
                });
            }
            if next < end {
                cx.violations.add(Kind::Lost, end - next, || {
                    format!("{name} got {group_name} up to seq {} of {}", next - 1, end - 1)
                });
            }
        }
    }
}

impl Astray {
    /// Says how message `seq` differs from what should have come.
    fn explain(
        &mut self,
        member: &str,
        group: &str,
        raw: &[u8],
        seq: u64,
        stream: &Stream,
        violations: &mut Violations,
    ) {
        if seq < self.next {
            let (kind, what) = if self.missing.remove(&seq) {
                (Kind::Reordered, "late, after")
            } else {
                (Kind::Duplicate, "again, after")
            };
            let last = self.next - 1;
            violations
                .add(kind, 1, || format!("{member} got seq {seq} of {group} {what} seq {last}"));
            return;
        }
        let room = MISSING_MAX.saturating_sub(self.missing.len()) as u64;
        let skipped = seq - self.next;
        self.missing.extend(self.next..self.next + skipped.min(room));
        if skipped > room {
            violations.add(Kind::Lost, skipped - room, || {
                format!("{member} got seq {seq} of {group} where {} should be", self.next)
            });
        }
        self.next = seq + 1;
        if stream.frame(seq).is_some_and(|others| others != raw) {
            violations.add(Kind::Corrupt, 1, || {
                format!("{member} got other bytes for seq {seq} of {group} than another member")
            });
        }
    }
}
