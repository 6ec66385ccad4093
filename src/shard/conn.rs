//! A connection: what is known of the peer, its unfinished frame, its control queue and the
//! groups that have something for it.

use smallvec::SmallVec;

use super::ConnId;
use super::heartbeats::Moment;
use super::isolate::Drainage;
use super::probe::Watch;
use super::queries::Asked;
use super::queues::Dirty;
use super::websocket::WebSocket;
use crate::config::Priority;
use crate::position::{MemberId, Nanos, ProducerId};
use crate::tls::Tls;

/// Bit of [`Conn::throttled`]: an AUTH or a compressed message waits for its turn. Those of priorities
/// are below it.
pub(super) const WAITS: u8 = 1 << 7;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// The magic has not come.
    Opening,
    /// The start of an HTTP request came in place of the magic.
    Upgrading,
    /// The magic came, or a WebSocket was agreed on, HELLO did not.
    Greeting,
    /// HELLO was accepted; the token that is asked for did not come.
    Proving,
    /// HELLO was accepted, and the token if one is asked for.
    Open,
    /// A last frame is on its way out; what the peer sends is dropped.
    Closing,
}

/// A membership of a connection: keys of the group and of the member in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Key of the group on this shard.
    pub group: u32,
    /// Key of the member in the group.
    pub member: u32,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Its name to the driver.
    pub id: ConnId,
    /// Where it stands.
    pub state: ConnState,
    /// A write is in flight.
    pub in_flight: bool,
    /// The run queues it is in, one bit for each lane.
    pub queued: u8,
    /// It keeps falling behind, so it is served last until it has recovered.
    pub tripped: bool,
    /// Reading was asked to stop.
    pub paused: bool,
    /// Reading has stopped.
    pub recv_off: bool,
    /// Its publishes found these shares of the inbox full, one bit for each priority; another one
    /// is [`WAITS`].
    pub throttled: u8,
    /// Lane of its control frames: that of the most urgent group it published to.
    pub answers: Priority,
    /// Identity of the member; empty before HELLO.
    pub member: MemberId,
    /// Identity under which it publishes.
    pub producer: ProducerId,
    /// Start of a frame whose end has not come.
    pub partial: Vec<u8>,
    /// Control frames that wait for the next write.
    pub control: Vec<u8>,
    /// The groups it is in.
    pub memberships: SmallVec<[Membership; 1]>,
    /// Questions under way, those that are parked included.
    pub asking: u8,
    /// Questions that wait until the control queue has room for their answers; never empty.
    #[allow(clippy::box_collection, reason = "nearly always none, and there is one in each")]
    pub parked: Option<Box<Vec<Asked>>>,
    /// Memberships that have something to send, served in turn.
    pub dirty: Dirty,
    /// What it keeps beside when it has durable members or receipts.
    pub watch: Option<Box<Watch>>,
    /// What it keeps beside when it speaks WebSocket.
    pub ws: Option<Box<WebSocket>>,
    /// What it keeps beside when it is encrypted.
    pub tls: Option<Box<Tls>>,
    /// JOINs that other shards have not answered; they count against the groups it may be in.
    pub joining: u32,
    /// When it is to send PING, from HELLO on.
    pub moment: Option<Moment>,
    /// When the last byte came; before HELLO, when it was accepted.
    pub heard_at: Nanos,
    /// When the write in flight last made progress.
    pub progress_at: Nanos,
    /// How it drains.
    pub drainage: Drainage,
}

impl Conn {
    /// Whether what it sent waits for another turn.
    pub fn waits(&self) -> bool {
        self.throttled & WAITS != 0
    }

    /// A connection that was just accepted.
    #[must_use]
    pub fn new(id: ConnId, now: Nanos) -> Self {
        Self {
            id,
            state: ConnState::Opening,
            in_flight: false,
            queued: 0,
            tripped: false,
            paused: false,
            recv_off: false,
            throttled: 0,
            answers: Priority::Normal,
            member: MemberId::default(),
            producer: ProducerId::default(),
            partial: Vec::new(),
            control: Vec::new(),
            memberships: SmallVec::new(),
            asking: 0,
            parked: None,
            dirty: Dirty::default(),
            watch: None,
            ws: None,
            tls: None,
            joining: 0,
            moment: None,
            heard_at: now,
            progress_at: now,
            drainage: Drainage::default(),
        }
    }

    /// Whether nothing of it is under way or waits, and it gets shared bytes as they are.
    #[inline]
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        !self.in_flight
            && self.queued == 0
            && !self.tripped
            && self.control.is_empty()
            && self.dirty.is_empty()
            && self.tls.is_none()
    }

    /// A write of so many bytes is started.
    #[inline]
    pub fn begin_write(&mut self, now: Nanos, bytes: u64) {
        self.in_flight = true;
        self.progress_at = now;
        self.drainage.started(now, bytes);
        if let Some(watch) = &mut self.watch {
            watch.hand(bytes);
        }
    }

    /// Whether a write could be started that carries something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.dirty.is_empty() || self.has_tls_output()
    }

    /// Whether TLS itself has something to say.
    #[must_use]
    pub fn has_tls_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_output())
    }

    /// Bytes kept of frames and records that are not whole.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.partial.len() + self.tls.as_ref().map_or(0, |tls| tls.kept())
    }

    /// Whether it is encrypted and its handshake is not finished.
    #[must_use]
    pub fn is_in_tls_handshake(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshake())
    }
}

// There is one of each for every member, and memory per member is promised (see README).
const _: () = assert!(size_of::<Conn>() <= 224);
const _: () = assert!(size_of::<crate::group::Member>() <= 64);
