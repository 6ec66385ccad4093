//! What a client tells the application.

use std::fmt;
use std::sync::Arc;

use crate::position::{Epoch, Handle, Level, NodeId, ProducerId, Seq, ShardId, Stamp};
use crate::wire::{
    Deliver, ErrorCode, ErrorFrame, GapReason, Presence, RosterForm, StateForm, Welcome,
};

/// Name of a group, shared by all that refers to it.
pub type GroupName = Arc<[u8]>;

/// Number of a publish, unique in one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub u64);

/// Number of a question (FETCH, SYNC, SET_STATE, ROSTER_QUERY), unique in one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The server has taken this client; what has to be said again is on its way.
    Connected(Welcome),
    /// The client is in a group, for the first time or again after a reconnect.
    Joined(JoinedGroup),
    /// A group could not be joined. The client does not try again by itself.
    JoinFailed {
        /// The group.
        group: GroupName,
        /// What the server said.
        error: Refusal,
    },
    /// The client is out of a group.
    Left {
        /// The group.
        group: GroupName,
    },
    /// A message. Each comes once, in order; see [`super::AckMode`] for when it counts as
    /// handled.
    Message(Message),
    /// The server may have lost messages that this client has: what it held of epoch `before`
    /// need not be in the group any more, and `first` may be a place that was taken before.
    EpochChanged {
        /// The group.
        group: GroupName,
        /// The epoch so far.
        before: Epoch,
        /// Last message that this client had in it.
        last: Seq,
        /// The epoch from now on.
        epoch: Epoch,
        /// Place of the next message.
        first: Seq,
    },
    /// A group had forgotten this producer, so the client goes on under a new id, on a new
    /// connection. An application that keeps a [`super::Resume`] keeps it anew before it
    /// publishes more: the numbers of the old one say nothing any more.
    ProducerRenewed {
        /// The new id.
        producer: ProducerId,
    },
    /// Messages that will not come.
    Gap {
        /// The group.
        group: GroupName,
        /// First of them.
        from: Seq,
        /// Last of them.
        to: Seq,
        /// Epoch of the group.
        epoch: Epoch,
        /// Why.
        reason: GapReason,
    },
    /// The server sends again what was not acknowledged in time. The client drops what the
    /// application has; a message that it took and did not acknowledge is still its to
    /// acknowledge.
    Redelivery {
        /// The group.
        group: GroupName,
        /// First message that comes again.
        from: Seq,
        /// How often the server has tried.
        attempt: u32,
    },
    /// A publish is in the group.
    Published(Published),
    /// A publish is over without its place being known.
    PublishFailed {
        /// The publish.
        id: PublishId,
        /// The group.
        group: GroupName,
        /// Whether it is in the group.
        error: PublishError,
    },
    /// The server takes no publishes of this group for now. They are kept, in order, and sent
    /// again.
    PublishHeld {
        /// The group.
        group: GroupName,
        /// What the server said.
        error: Refusal,
        /// When they are sent again, in ms; after the next connect if there is none.
        retry_in_ms: Option<u64>,
    },
    /// The share of members that was asked for has acknowledged a message. It may come twice, after
    /// a reconnect or a restart of the server.
    Receipt(Receipt),
    /// A page of history.
    Fetched(Page),
    /// What changed in a group's state, or all of it.
    State(StatePage),
    /// A key was set or deleted.
    StateSet {
        /// The question.
        id: QueryId,
        /// The group.
        group: GroupName,
        /// Version of the key, and of the group's state, from now on.
        version: u64,
        /// When.
        stamp: Stamp,
    },
    /// A key was not as expected and is as it was.
    Conflict {
        /// The question.
        id: QueryId,
        /// The group.
        group: GroupName,
        /// Version of the key, 0 if there is none.
        version: u64,
        /// When it was set.
        stamp: Stamp,
        /// Its value; `None` if there is no such key.
        data: Option<Box<[u8]>>,
    },
    /// Who is on a roster, or what changed in it.
    Roster(RosterPage),
    /// A question got no answer.
    QueryFailed {
        /// The question.
        id: QueryId,
        /// The group.
        group: GroupName,
        /// Why; `None` if the connection ended first. A SET_STATE may have been done then.
        error: Option<Refusal>,
    },
    /// The server said no to something that is not a request.
    ServerError(Refusal),
    /// The server stops. The client finishes what is under way, and reconnects.
    Draining {
        /// The connection ends after this time.
        grace_ms: u32,
        /// When the client reconnects.
        reconnect_after_ms: u32,
    },
    /// The connection ended, or could not be made.
    Disconnected {
        /// Why.
        reason: Reason,
        /// When the client tries again; `None` if it does not.
        retry_in_ms: Option<u64>,
    },
}

/// A message of a group.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The group.
    pub group: GroupName,
    /// The server's number of it.
    pub handle: Handle,
    /// Epoch; with the group and `seq` it names the message.
    pub epoch: Epoch,
    /// Place in the group.
    pub seq: Seq,
    /// When it got that place.
    pub stamp: Stamp,
    /// Node that gave the place.
    pub node: NodeId,
    /// Shard that gave the place.
    pub shard: ShardId,
    sender_len: u8,
    /// Sender and payload in one, so that a message is one allocation.
    body: Box<[u8]>,
}

impl Message {
    pub(super) fn new(group: &GroupName, epoch: Epoch, d: &Deliver<'_>) -> Self {
        Self {
            group: Arc::clone(group),
            handle: d.handle,
            epoch,
            seq: d.seq,
            stamp: d.stamp,
            node: d.node,
            shard: d.shard,
            sender_len: d.sender.len() as u8,
            body: [d.sender, d.payload].concat().into_boxed_slice(),
        }
    }

    /// Member id of the publisher.
    #[must_use]
    pub fn sender(&self) -> &[u8] {
        self.body.get(..usize::from(self.sender_len)).unwrap_or_default()
    }

    /// What was published.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.body.get(usize::from(self.sender_len)..).unwrap_or_default()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("group", &String::from_utf8_lossy(&self.group))
            .field("epoch", &self.epoch.0)
            .field("seq", &self.seq.0)
            .field("sender", &String::from_utf8_lossy(self.sender()))
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// See [`Event::Joined`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedGroup {
    /// The group.
    pub group: GroupName,
    /// The server's number of it.
    pub handle: Handle,
    /// Its epoch now.
    pub epoch: Epoch,
    /// Its last message.
    pub head: Seq,
    /// First message that the server sends on this connection.
    pub first: Seq,
    /// What a durable member has acknowledged; 0 otherwise.
    pub cursor: Seq,
    /// Whether it was in the group before.
    pub again: bool,
    /// Messages that this client did not get and will not, since they are acknowledged: by an
    /// earlier process that did not keep its last [`super::Resume`], or on another connection.
    pub skipped: Option<(Seq, Seq)>,
}

/// See [`Event::Published`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The publish.
    pub id: PublishId,
    /// The group.
    pub group: GroupName,
    /// The producer's number of it.
    pub producer_seq: u64,
    /// Epoch of the message.
    pub epoch: Epoch,
    /// Place in the group.
    pub seq: Seq,
    /// Level that was reached.
    pub level: Level,
}

/// See [`Event::Receipt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The group, if this client has used it.
    pub group: Option<GroupName>,
    /// The server's number of it.
    pub handle: Handle,
    /// The message.
    pub seq: Seq,
    /// Its epoch.
    pub epoch: Epoch,
    /// The producer's number of it.
    pub producer_seq: u64,
    /// Members that have acknowledged it.
    pub acked: u32,
    /// Members of which that share was asked for.
    pub members: u32,
    /// The share, in percent.
    pub percent: u8,
}

/// See [`Event::Fetched`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The question.
    pub id: QueryId,
    /// The group.
    pub group: GroupName,
    /// Epoch of all messages of the page.
    pub epoch: Epoch,
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// Last message of the group.
    pub head: Seq,
    /// Messages before the page that are gone.
    pub gap: Option<(Seq, Seq, GapReason)>,
    /// Where the next page begins, if there is more of what was asked for.
    pub next: Option<Seq>,
}

/// See [`Event::State`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePage {
    /// The question.
    pub id: QueryId,
    /// The group.
    pub group: GroupName,
    /// What `entries` are.
    pub form: StateForm,
    /// Version of the state with these entries; what the next SYNC says it knows.
    pub version: u64,
    /// Whether another page of this answer follows.
    pub more: bool,
    /// The keys.
    pub entries: Vec<StateItem>,
}

/// A key in a [`StatePage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateItem {
    /// The key.
    pub key: Box<[u8]>,
    /// Version at which it was set.
    pub version: u64,
    /// When.
    pub stamp: Stamp,
    /// Its value; `None` if it was deleted.
    pub data: Option<Box<[u8]>>,
}

/// See [`Event::Roster`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterPage {
    /// The question; `None` for an announcement.
    pub id: Option<QueryId>,
    /// The group.
    pub group: GroupName,
    /// What `entries` are.
    pub form: RosterForm,
    /// Version of the roster.
    pub version: u64,
    /// Durable members.
    pub members: u32,
    /// Those that are connected.
    pub online: u32,
    /// Where the next page begins, if there is one.
    pub next: Option<u32>,
    /// Member ids and what is said of them.
    pub entries: Vec<(Presence, Box<[u8]>)>,
}

/// An ERROR of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its code, see [`ErrorCode`].
    pub code: u16,
    /// The limit concerned, or 0.
    pub limit: u64,
    /// Name of the field or group concerned.
    pub field: Box<[u8]>,
    /// The server's words.
    pub text: String,
}

impl Refusal {
    pub(super) fn of(e: &ErrorFrame<'_>) -> Self {
        Self {
            code: e.code,
            limit: e.limit,
            field: e.field.into(),
            text: String::from_utf8_lossy(e.text).into_owned(),
        }
    }

    /// The code, if this build knows it.
    #[must_use]
    pub fn known(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(code) => write!(f, "{code:?}")?,
            None => write!(f, "error {}", self.code)?,
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

/// Why a publish is over without a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The server did not take it: it is not in the group.
    #[error("not taken: {0}")]
    Refused(Refusal),
    /// It is in the group, but it was taken so long ago that the server does not know its place.
    #[error("in the group already; its place is not known any more")]
    PlaceUnknown,
    /// It was sent without an answer, and now the server has forgotten this producer or refuses
    /// the publish: it may be in the group or not.
    #[error("sent once without an answer and now not taken; it may be in the group or not")]
    InDoubt,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The server said so.
    #[error("{0}")]
    Server(Refusal),
    /// Another connection of this member took over. The client does not reconnect.
    #[error("another connection of this member took over")]
    Replaced,
    /// The server stops.
    #[error("the server stops")]
    Drained,
    /// It could not be made, or ended without a word.
    #[error("the connection ended")]
    Lost,
    /// No answer came in time.
    #[error("the server did not answer for {ms} ms")]
    Silent {
        /// The time.
        ms: u64,
    },
    /// The server sent what the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The application closed it.
    #[error("closed")]
    Closed,
    /// The client goes on under a new producer id; see [`Event::ProducerRenewed`].
    #[error("the client goes on under a new producer id")]
    Renewed,
}
