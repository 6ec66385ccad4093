//! A group on one shard: its tail, its local members and their cursors, and on the owner
//! shard the sequencer.

mod mail;
mod member;
mod producers;
pub mod rates;
pub mod receipts;
mod roster;
pub mod roster_log;
mod sequencer;
pub mod state;

use crate::config::{ClassId, Priority};
use crate::fanout::Tail;
use crate::position::{Epoch, Handle, Seq, ShardId};
use crate::shard::OwnedState;
use crate::slots::Slots;

pub use mail::{Handed, Mail, Place};
pub use member::{Again, Chunk, DurableMember, Lag, Member, Proof, ToldGap};
pub use producers::{Attempt, ProducerLimits, Producers, Slot, Unacceptable, Verdict};
pub use roster::{Acked, Durable, Incoming, Roster, RosterKey};
pub use sequencer::{Message, PeerCursor, Sequencer, Staged};

/// What this shard is for the group.
#[derive(Debug)]
pub enum Role {
    /// It assigns sequence numbers and logs.
    Owner(Box<Sequencer>),
    /// It has members of a group that another shard owns.
    Replica {
        /// The owner.
        owner: ShardId,
    },
}

/// Where the fan-out of a group to its local members stands.
#[derive(Debug, Default)]
pub struct Scan {
    /// The group is in the run queue.
    pub queued: bool,
    /// The tail moved after the scan had passed some members.
    pub again: bool,
    /// Key of the next member to visit.
    pub next: u32,
}

/// Members that wait for the same chunk of history.
#[derive(Debug)]
pub struct ChunkWait {
    /// First message of the chunk.
    pub from: Seq,
    /// Keys of the members.
    pub members: Vec<u32>,
}

/// One group on one shard.
#[derive(Debug)]
pub struct Group {
    /// Name.
    pub name: Box<[u8]>,
    /// What the configuration says of it, by its name.
    pub class: ClassId,
    /// The class's priority.
    pub priority: Priority,
    /// Number; 0 on a replica until the owner answered the first join.
    pub handle: Handle,
    /// Epoch of live messages.
    pub epoch: Epoch,
    /// Newest published segments.
    pub tail: Tail,
    /// Last message that members may see.
    pub published: Seq,
    /// Local members.
    pub members: Slots<Member>,
    /// Fan-out to them.
    pub scan: Scan,
    /// Chunks of history that were asked for.
    pub reads: Vec<ChunkWait>,
    /// Local members that want announcements of the roster.
    pub watchers: u32,
    /// Announcements on their way to them.
    pub walks: u8,
    /// Joins of local connections that the owner has not answered.
    pub pending_joins: u32,
    /// Owner or replica.
    pub role: Role,
}

impl Group {
    /// A group without messages and members.
    #[must_use]
    pub fn new(name: Box<[u8]>, handle: Handle, epoch: Epoch, role: Role) -> Self {
        Self {
            name,
            class: ClassId::default(),
            priority: Priority::default(),
            handle,
            epoch,
            tail: Tail::default(),
            published: Seq(0),
            members: Slots::default(),
            scan: Scan::default(),
            reads: Vec::new(),
            watchers: 0,
            walks: 0,
            pending_joins: 0,
            role,
        }
    }

    /// The sequencer, on the owner.
    pub fn sequencer(&mut self) -> Option<&mut Sequencer> {
        match &mut self.role {
            Role::Owner(sequencer) => Some(sequencer),
            Role::Replica { .. } => None,
        }
    }

    /// Whether a member on any shard wants announcements of the roster.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watchers > 0
            || match &self.role {
                Role::Owner(sequencer) => sequencer.peers.iter().any(|peer| peer.watches),
                Role::Replica { .. } => false,
            }
    }

    /// The group's state, on the owner and if it has some.
    #[must_use]
    pub fn owned_state(&self) -> Option<&OwnedState> {
        match &self.role {
            Role::Owner(sequencer) => sequencer.state.as_deref(),
            Role::Replica { .. } => None,
        }
    }

    /// The durable members, on the owner and if there were any.
    #[must_use]
    pub fn roster(&self) -> Option<&Roster> {
        match &self.role {
            Role::Owner(sequencer) => sequencer.roster.as_deref(),
            Role::Replica { .. } => None,
        }
    }

    /// Puts a member that has everything up to `sent` where its next message is: on the
    /// tail, or behind it.
    #[must_use]
    pub fn attach(&self, sent: Seq) -> Option<u64> {
        if sent == self.published {
            Some(self.tail.end())
        } else {
            self.tail.ordinal_of(sent.next())
        }
    }

    /// Checks the order of positions that [`crate::position`] states.
    pub fn invariants(&self) {
        if let Role::Owner(sequencer) = &self.role {
            debug_assert!(self.published <= sequencer.sequenced);
        }
        for member in self.members.iter() {
            debug_assert!(member.acked <= member.sent);
            debug_assert!(
                member.sent <= self.published || self.published == Seq(0),
                "published up to {}, {member:?}",
                self.published
            );
        }
    }
}
