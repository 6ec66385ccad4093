//! What only the owner of a group has: the next sequence number, what is staged for the next
//! commit, and how far each other shard has been told.

use bytes::BytesMut;

use super::rates::PublishCount;
use super::{Producers, Roster};
use crate::fanout::Ordinal;
use crate::position::Handle;
use crate::position::{Level, NodeId, ProducerId, SegmentNumber, Seq, ShardId, Stamp};
use crate::shard::OwnedState;
use crate::wal::{GroupIndex, Meta};
use crate::wire::Deliver;

/// Another shard that has members of the group: a cursor into the tail like a member's.
#[derive(Debug)]
pub struct PeerCursor {
    /// The shard.
    pub shard: ShardId,
    /// Next segment to announce to it.
    pub next: Ordinal,
    /// Members of the group on that shard.
    pub members: u32,
    /// It is in the list of groups to announce to that shard.
    pub dirty: bool,
    /// One of them wants announcements of the roster.
    pub watches: bool,
}

/// The owner's state of a group.
#[derive(Debug, Default)]
pub struct Sequencer {
    /// Last sequence number given out.
    pub sequenced: Seq,
    /// Last message handed to the disk.
    pub handed: Seq,
    /// Last message that is on disk.
    pub synced: Seq,
    /// Oldest message that retention has left, or the next one if there is none.
    pub first_kept: Seq,
    /// Where messages are in the log.
    pub index: GroupIndex,
    /// What was published of late, if that is bounded.
    pub published: PublishCount,
    /// Members on all shards.
    pub members: u32,
    /// Other shards with members.
    pub peers: Vec<PeerCursor>,
    /// Commits not yet on disk that hold durable messages of this group.
    pub unsynced_durable: u32,
    /// Segment whose log already says that this group uses level memory. In every segment
    /// the first such message waits for its commit, so that recovery always knows which
    /// groups may have shown messages that a crash took.
    pub memory_marked: SegmentNumber,
    /// This group used level memory at some time.
    pub used_memory: bool,
    /// Who has published, and where.
    pub producers: Producers,
    /// Keys with versions, if there are any.
    pub state: Option<Box<OwnedState>>,
    /// What is staged for the next commit.
    pub staged: Staged,
    /// The durable members, once there was one or a receipt was asked for.
    pub roster: Option<Box<Roster>>,
    /// Joins and leaves of durable members that are not on disk yet.
    pub roster_waits: u32,
    /// Publishes in the inbox: they hold the key of the group.
    pub inbox: u32,
    /// Versions of the roster go on after this one: a group of this name was forgotten.
    pub roster_base: u64,
}

/// Messages that have their place but are not in a commit yet: frames as members will get
/// them, beside what the log keeps of each.
#[derive(Debug, Default)]
pub struct Staged {
    /// Encoded DELIVER frames.
    pub frames: BytesMut,
    /// Encoded metas.
    pub metas: Vec<u8>,
    /// Bytes of frames that were staged for the last commit: as much is reserved at once for
    /// the next one, so that the buffer does not grow message by message.
    pub usual: usize,
    /// First message.
    pub first: Seq,
    /// Count of messages.
    pub count: u32,
    /// One of them waits for the disk.
    pub waits: bool,
    /// One of them was published with level memory.
    pub has_memory: bool,
}

impl Staged {
    /// The first message of a commit is about to come.
    pub fn begin(&mut self, metas: Vec<u8>) {
        debug_assert!(self.count == 0 && metas.is_empty());
        self.metas = metas;
        self.frames.reserve(self.usual);
    }

    /// Bytes that the messages will take in a commit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frames.len() + self.metas.len()
    }
}

impl Sequencer {
    /// A sequencer that goes on after `head`.
    #[must_use]
    pub fn after(head: Seq, first_kept: Seq, index: GroupIndex) -> Self {
        Self { sequenced: head, handed: head, synced: head, first_kept, index, ..Self::default() }
    }

    /// Whether a message waits for the disk before it is shown.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.unsynced_durable > 0 || self.staged.waits
    }

    /// The durable members; the roster is made if there is none yet.
    pub fn roster(&mut self) -> &mut Roster {
        let base = self.roster_base;
        self.roster.get_or_insert_with(|| {
            let mut roster = Box::<Roster>::default();
            roster.log.go_on_after(base);
            roster
        })
    }

    /// Gives the message its place and stages it: the one place where sequence numbers are
    /// assigned. `shown_early` says that it may be published before it is on disk.
    pub fn stage(&mut self, message: &Message<'_>, shown_early: bool) -> Seq {
        let seq = self.sequenced.next();
        self.sequenced = seq;
        let staged = &mut self.staged;
        if staged.count == 0 {
            staged.first = seq;
        }
        let deliver = Deliver {
            handle: message.handle,
            seq,
            stamp: message.stamp,
            node: message.node,
            shard: message.shard,
            sender: message.sender,
            payload: message.payload,
        };
        staged.frames.reserve(deliver.encoded_len());
        deliver.encode(&mut staged.frames);
        Meta {
            producer: message.producer,
            producer_seq: message.producer_seq,
            level: message.level,
            receipt: message.receipt,
        }
        .encode(&mut staged.metas);
        staged.count += 1;
        staged.waits |= !shown_early;
        staged.has_memory |= message.level == Level::Memory;
        seq
    }
}

/// A message about to get its place.
#[derive(Debug)]
pub struct Message<'a> {
    /// The group.
    pub handle: Handle,
    /// Its stamp.
    pub stamp: Stamp,
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardId,
    /// Level asked for.
    pub level: Level,
    /// Identity of the publisher.
    pub producer: ProducerId,
    /// The publisher's own number.
    pub producer_seq: u64,
    /// Share of the members for which the publisher wants a receipt; 0 for none.
    pub receipt: u8,
    /// Member id of the publisher.
    pub sender: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}
