//! One group of a client: where the application is in it, where the server's stream is, and
//! what is to be acknowledged.
//!
//! The two places differ after a reconnect and in a redelivery: then the server sends what the
//! application has, and it is dropped here.

use super::event::GroupName;
use super::options::{From, Membership};
use super::producer::Producer;
use crate::position::{Epoch, Handle, Nanos, Seq};
use crate::wire::{Ack, EpochStart, Gap, JoinEntry, Joined, Mode, Start};

/// How far back a live member looks first for the place where a new epoch began. Each further
/// step is this much longer.
const REWIND: u64 = 64;

/// Where the server is with this client in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Out,
    Joining,
    In,
    Leaving,
}

/// A message by epoch and place; in this order.
pub(super) type Place = (Epoch, Seq);

/// What a DELIVER is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The application has it.
    Known,
    /// It does not want it, or gets it later.
    Dropped,
    /// It is new, and so is what is missing before it.
    New { epoch: Epoch, missing: Option<(Seq, Seq)> },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Group {
    pub name: GroupName,
    pub handle: Option<Handle>,
    /// How the application wants to be in it; `None` if it does not.
    pub wanted: Option<Membership>,
    pub phase: Phase,
    /// How the server knows the member, when the application has left since.
    pub leaving: Option<Membership>,
    /// It is on the list of groups to join or leave.
    pub listed: bool,
    pub joined_before: bool,
    /// It may not read history, so it comes back to what is live.
    no_history: bool,

    /// Last message that the application has; epoch 0 if that is not known yet.
    place: Place,
    /// Whether `place` means anything.
    placed: bool,
    /// The place in a life of the group that is over.
    former: Option<Place>,
    /// Epoch of the messages that the server sends; `None` before the first EPOCH.
    stream: Option<Epoch>,
    /// Next message that it sends.
    next: Seq,
    /// It sent messages again on this connection. When that ends, it goes on after what it had
    /// sent before, which may leave out some that the application has.
    again: bool,
    /// Looking for the start of an epoch: where from, and how far back the next look goes.
    rewind: Option<(Seq, u64)>,
    /// The stream of that look has not shown its first epoch.
    probing: bool,
    /// The member has to leave and join again to look.
    pub rejoin: bool,

    handled: Place,
    acked: Place,
    /// Messages handled, or sent again although they were, since the last ACK.
    pub unacked: u32,
    /// An ACK is on the clock.
    pub timed: bool,
    /// It is on the list of groups to acknowledge.
    pub ack_listed: bool,

    pub producer: Producer,
    /// It is on the list of groups with publishes to send.
    pub send_listed: bool,
    /// Hold of its publishes that the application was told of.
    pub held_told: bool,
}

impl Group {
    pub fn new(name: GroupName) -> Self {
        Self {
            name,
            handle: None,
            wanted: None,
            phase: Phase::Out,
            leaving: None,
            listed: false,
            joined_before: false,
            no_history: false,
            place: Place::default(),
            placed: false,
            former: None,
            stream: None,
            next: Seq(1),
            again: false,
            rewind: None,
            probing: false,
            rejoin: false,
            handled: Place::default(),
            acked: Place::default(),
            unacked: 0,
            timed: false,
            ack_listed: false,
            producer: Producer::new(1, 1),
            send_listed: false,
            held_told: false,
        }
    }

    /// A group of which a former process of this client kept its place.
    pub fn resumed(
        name: GroupName,
        handle: Handle,
        place: Option<Place>,
        numbers: Producer,
    ) -> Self {
        Self {
            handle: Some(handle).filter(|handle| handle.0 != 0),
            place: place.unwrap_or_default(),
            placed: place.is_some(),
            handled: place.unwrap_or_default(),
            producer: numbers,
            ..Self::new(name)
        }
    }

    /// The last message that was handled, for [`super::Resume`].
    pub fn resume(&self) -> Option<Place> {
        self.placed.then_some(self.handled)
    }

    /// A JOIN behind the live messages was refused: it comes back to those alone, if that is not what
    /// the application asked for. What it missed is a gap.
    pub fn goes_without_history(&mut self) -> bool {
        let live = self.wanted.or(self.leaving).is_some_and(|how| how.mode == Mode::Live);
        live && self.placed && !std::mem::replace(&mut self.no_history, true)
    }

    /// The entry of a JOIN for it, if it is to be joined, be it only to leave.
    pub fn join_entry(&self) -> Option<JoinEntry<'_>> {
        let how = self.wanted.or(self.leaving)?;
        let start = match (self.rewind, how.mode, how.from) {
            (_, Mode::Live, _) if self.placed && self.no_history => Start::Tail,
            (Some((from, _)), Mode::Live, _) => Start::Seq(from),
            (_, Mode::Live, _) if self.placed => Start::Seq(next(self.place.1)),
            (_, Mode::Durable, From::Seq(seq)) if !self.placed => Start::Seq(seq),
            (_, Mode::Durable, From::Tail) if !self.placed => Start::Tail,
            (_, Mode::Durable, _) => Start::Cursor,
            (_, Mode::Live, From::Seq(seq)) => Start::Seq(seq),
            (_, Mode::Live, From::Tail | From::Cursor) => Start::Tail,
        };
        Some(JoinEntry { group: &self.name, mode: how.mode, start, roster: how.roster })
    }

    /// The server says that the member is in the group. Returns messages that do not come since
    /// they were acknowledged, although this client has no note of them.
    pub fn joined(&mut self, j: &Joined<'_>) -> Option<(Seq, Seq)> {
        let live = self.wanted.or(self.leaving).is_none_or(|how| how.mode == Mode::Live);
        let other = self.handle.is_some_and(|handle| handle != j.handle);
        self.phase = Phase::In;
        self.handle = Some(j.handle);
        self.stream = None;
        self.next = j.first;
        self.again = false;
        self.acked = Place::default();
        let (epoch, last) = self.place;
        if !self.placed {
            // Above the head there is nothing of an older epoch.
            let epoch = if j.first > j.head { j.epoch } else { Epoch(0) };
            self.place = (epoch, before(j.first));
            self.handled = self.place;
            self.placed = true;
        } else if self.rewind.is_some() && !other {
            self.probing = true;
        } else if other || j.epoch < epoch {
            // Not the data directory that it was: nothing of it is known here.
            self.former = Some((epoch, last));
            self.place = Place::default();
            self.handled = Place::default();
            self.rewind = None;
            if live && j.first > Seq(1) {
                self.look_back(Seq(1), u64::MAX);
            }
        } else if live && epoch.0 > 0 && j.epoch > epoch && last.0 > 0 {
            self.look_back(next(last.min(j.head)), REWIND);
        } else if !live && j.epoch == epoch && j.first > next(last) {
            // It had acknowledged more than it kept for itself, or another connection did.
            let skipped = (next(last), before(j.first));
            self.place.1 = skipped.1;
            self.handled = self.place;
            return Some(skipped);
        }
        None
    }

    /// Leaves and joins again `by` messages before `from`.
    fn look_back(&mut self, from: Seq, by: u64) {
        let from = Seq(from.0.saturating_sub(by).max(1));
        self.rewind = Some((from, by.saturating_mul(REWIND)));
        self.probing = false;
        self.rejoin = true;
    }

    /// Whether it joins again only to find the start of an epoch.
    pub fn is_looking_back(&self) -> bool {
        self.rewind.is_some()
    }

    /// Whether what comes now is of no use.
    fn drops(&self) -> bool {
        self.rejoin || self.wanted.is_none() || self.phase == Phase::Leaving
    }

    /// An epoch begins in the stream. Returns the place before it if the application must know.
    pub fn epoch(&mut self, e: &EpochStart) -> Option<Place> {
        self.stream = Some(e.epoch);
        self.leave_out_known(e.first);
        if self.drops() {
            return None;
        }
        if std::mem::take(&mut self.probing)
            && let Some((from, by)) = self.rewind.take()
            && e.epoch > self.place.0
            && from > Seq(1)
            && self.next == from
        {
            self.look_back(from, by);
            return None;
        }
        if e.epoch <= self.place.0 {
            return None;
        }
        let was = self.former.take().unwrap_or(self.place);
        self.place = (e.epoch, before(self.next));
        (was.0.0 > 0).then_some(was)
    }

    /// Messages are missing. Returns those that the application does not have.
    pub fn gap(&mut self, gap: &Gap) -> Result<Option<(Seq, Seq)>, &'static str> {
        if gap.to < gap.from || gap.to < before(self.next) {
            return Err("a GAP behind the messages");
        }
        self.next = next(gap.to);
        let news = gap.to > self.place.1 || gap.epoch > self.place.0 && self.place.0.0 > 0;
        if self.drops() || !news {
            return Ok(None);
        }
        let from = gap.from.max(next(self.place.1)).min(gap.to);
        self.place.1 = self.place.1.max(gap.to);
        Ok(Some((from, gap.to)))
    }

    /// A message came.
    pub fn deliver(&mut self, seq: Seq) -> Result<Delivered, &'static str> {
        if !matches!(self.phase, Phase::In | Phase::Leaving) {
            return Err("a DELIVER of a group that is not joined");
        }
        let Some(epoch) = self.stream else { return Err("a DELIVER before EPOCH") };
        self.leave_out_known(seq);
        if seq != self.next {
            return Err("a DELIVER out of order");
        }
        self.next = next(seq);
        if self.drops() {
            return Ok(Delivered::Dropped);
        }
        if (epoch, seq) <= self.place {
            return Ok(Delivered::Known);
        }
        let expected = next(self.place.1);
        let missing = (seq > expected).then(|| (expected, before(seq)));
        self.place = (epoch, seq);
        Ok(Delivered::New { epoch, missing })
    }

    /// The application took messages up to `seq` past this client.
    pub fn passed(&mut self, seq: Seq) {
        if let Some(epoch) = self.stream
            && seq >= self.next
        {
            self.next = next(seq);
            self.place = self.place.max((epoch, seq));
        }
    }

    /// The end of a redelivery leaves out what the application has.
    fn leave_out_known(&mut self, first: Seq) {
        if self.again && first > self.next && first <= next(self.place.1) {
            self.next = first;
        }
    }

    /// The server begins again at `from`.
    pub fn redelivers(&mut self, from: Seq, epoch: Epoch) {
        self.next = from;
        self.again = true;
        if epoch <= self.place.0 {
            self.stream = Some(epoch);
        }
        // If the last ACK was lost it is sent again.
        self.acked = Place::default();
    }

    /// The last message that the application has.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The application is through with everything up to `upto`. Returns whether that is news.
    pub fn handle(&mut self, upto: Place) -> bool {
        let upto = upto.min(self.place);
        if upto <= self.handled {
            return false;
        }
        let count = if upto.0 == self.handled.0 { upto.1.0 - self.handled.1.0 } else { 1 };
        self.unacked = self.unacked.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.handled = upto;
        true
    }

    /// A message came again. Returns whether the application had handled it.
    pub fn handled_before(&mut self, seq: Seq) -> bool {
        let handled = self.stream.is_some_and(|epoch| (epoch, seq) <= self.handled);
        self.unacked = self.unacked.saturating_add(u32::from(handled));
        handled
    }

    /// What to acknowledge now, if there is anything: what was handled, as far as this connection
    /// has sent it.
    pub fn ack(&mut self) -> Option<Ack> {
        self.unacked = 0;
        if self.phase != Phase::In || self.rejoin {
            return None;
        }
        let sent = self.stream.map_or((Epoch(0), Seq(0)), |epoch| (epoch, before(self.next)));
        let place = self.handled.min(sent);
        if place <= self.acked || place.0.0 == 0 || place.1.0 == 0 {
            return None;
        }
        self.acked = place;
        Some(Ack { handle: self.handle?, seq: place.1, epoch: place.0 })
    }

    /// The server says that the member is out. Returns whether that is the end of it.
    pub fn left(&mut self) -> bool {
        self.phase = Phase::Out;
        self.stream = None;
        if std::mem::take(&mut self.rejoin) && self.wanted.is_some() {
            return false;
        }
        self.leaving = None;
        self.forget();
        self.wanted.is_none()
    }

    /// The server ended the membership by itself. The client does not join again by itself.
    pub fn put_out(&mut self) {
        self.wanted = None;
        self.left();
    }

    /// Forgets the place, so that the next join begins as the application says.
    pub fn forget(&mut self) {
        self.placed = false;
        (self.place, self.handled) = Default::default();
        (self.rewind, self.probing, self.rejoin) = (None, false, false);
        self.joined_before = false;
    }

    /// The connection is gone. Returns whether a live member is out by that, as it wanted.
    pub fn disconnected(&mut self) -> bool {
        let was_in = self.phase != Phase::Out;
        self.phase = Phase::Out;
        self.stream = None;
        (self.probing, self.rejoin) = (false, false);
        (self.unacked, self.timed, self.ack_listed) = (0, false, false);
        (self.listed, self.send_listed) = (false, false);
        self.producer.disconnected();
        if self.wanted.is_none() && self.leaving.is_some_and(|how| how.mode == Mode::Live) {
            self.leaving = None;
            self.forget();
            return was_in;
        }
        false
    }

    /// Whether it has to be joined or left now.
    pub fn has_to_move(&self) -> bool {
        match self.phase {
            Phase::Out => self.wanted.is_some() || self.leaving.is_some(),
            Phase::In => self.wanted.is_none() || self.rejoin,
            Phase::Joining | Phase::Leaving => false,
        }
    }

    /// When its publishes may be sent again, if that depends on the clock.
    pub fn held_until(&self) -> Option<Nanos> {
        match self.producer.hold {
            super::producer::Hold::Until(at) => Some(at),
            _ => None,
        }
    }
}

fn next(seq: Seq) -> Seq {
    Seq(seq.0.saturating_add(1))
}

fn before(seq: Seq) -> Seq {
    Seq(seq.0.saturating_sub(1))
}
