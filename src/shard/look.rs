//! What an operator may ask a shard beside its figures: its state, its groups, its members; and
//! to close connections. One question at a time, collected over some turns, so that nobody waits
//! for it; answers are bounded.

use super::conn::{Conn, ConnState};
use super::replies::Refusal;
use super::status::{ShardStatus, SlowMember};
use super::{ConnId, Io, Shard};
use crate::config::Priority;
use crate::group::{Group, Lag, Role};
use crate::position::{Epoch, Seq, ShardId};
use crate::wire::ErrorCode;

/// Most entries in one answer.
pub const ENTRIES_MAX: u32 = 1_000;
/// Places looked at in one turn.
const VISITS_PER_TURN: u32 = 4096;

/// A question.
#[derive(Clone, Debug)]
pub enum Look {
    /// How the shard is.
    Status {
        /// With its slowest members, for which it looks at every connection.
        slowest: bool,
    },
    /// The groups from this place on.
    Groups(Range),
    /// One group.
    Group(Box<[u8]>),
    /// The connections from this place on; of a group, if one is named.
    Members(Option<Box<[u8]>>, Range),
    /// The durable members of a group that this shard owns, from this place on.
    Roster(Box<[u8]>, Range),
    /// Closes one connection, or all of a member. It may come back; durable members stay what
    /// they are.
    Disconnect(Who),
}

/// Part of a list.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first place to look at.
    pub from: u32,
    /// Most entries, up to [`ENTRIES_MAX`].
    pub limit: u32,
}

/// Whose connections.
#[derive(Clone, Debug)]
pub enum Who {
    /// This one.
    Conn(ConnId),
    /// Those of the member with this id.
    Member(Box<[u8]>),
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Seen {
    /// To [`Look::Status`].
    Status(Box<ShardStatus>),
    /// To [`Look::Groups`] and [`Look::Group`].
    Groups(Page<GroupSeen>),
    /// To [`Look::Members`].
    Members(Page<MemberSeen>),
    /// To [`Look::Roster`].
    Roster(Page<DurableSeen>),
    /// To [`Look::Disconnect`]: how many connections.
    Disconnected(u64),
}

/// Part of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next part begins; `None` if this was the last.
    pub next: Option<u32>,
}

/// A group, as one shard has it.
#[derive(Clone, Debug)]
pub struct GroupSeen {
    /// Its name.
    pub name: Box<[u8]>,
    /// The shard that owns it.
    pub owner: ShardId,
    /// Name of its class.
    pub class: String,
    /// Its priority.
    pub priority: Priority,
    /// Its epoch.
    pub epoch: Epoch,
    /// Last message that members on this shard may see.
    pub published: Seq,
    /// Members on this shard.
    pub local_members: u64,
    /// Bytes of its tail in memory.
    pub tail_bytes: u64,
    /// What only the owner knows.
    pub owned: Option<OwnedSeen>,
}

/// A group, as its owner has it.
#[derive(Clone, Debug)]
pub struct OwnedSeen {
    /// Members on all shards.
    pub members: u64,
    /// Oldest message that is kept.
    pub first_kept: Seq,
    /// Last message that has its place.
    pub sequenced: Seq,
    /// Last message that is on disk.
    pub synced: Seq,
    /// Durable members.
    pub durable: u64,
    /// Those of them who are online.
    pub durable_online: u64,
    /// Producers that are remembered.
    pub producers: u64,
    /// Receipts that wait for acknowledgements.
    pub receipts_waiting: u64,
    /// Keys of its state.
    pub state_keys: u64,
}

/// A connection and its member.
#[derive(Clone, Debug)]
pub struct MemberSeen {
    /// The connection.
    pub conn: ConnId,
    /// The member's id; empty before HELLO.
    pub member: Box<[u8]>,
    /// How it came: `native` or `websocket`.
    pub transport: &'static str,
    /// How it keeps up; nothing before HELLO.
    pub health: &'static str,
    /// Whether it is served last until it has recovered.
    pub tripped: bool,
    /// Bytes per second that it takes; `None` if no write of it has ended.
    pub rate: Option<u64>,
    /// Groups it is in.
    pub groups: u64,
    /// Bytes of answers that wait for it.
    pub control_bytes: u64,
    /// Since when nothing was heard of it, in milliseconds.
    pub silent_ms: u64,
    /// In the group that was asked for.
    pub cursor: Option<CursorSeen>,
}

/// Where a member stands in a group.
#[derive(Clone, Debug)]
pub struct CursorSeen {
    /// Last message handed to its socket.
    pub sent: Seq,
    /// Last message it acknowledged.
    pub acked: Seq,
    /// Messages that it has not been handed.
    pub lag: u64,
    /// Whether it is served from the tail.
    pub on_tail: bool,
    /// Whether it is a durable member.
    pub durable: bool,
}

/// A durable member, as the owner of its group has it.
#[derive(Clone, Debug)]
pub struct DurableSeen {
    /// Its id.
    pub member: Box<[u8]>,
    /// Whether it is online.
    pub online: bool,
    /// Last message that it acknowledged.
    pub acked: Seq,
    /// Messages that were published since.
    pub behind: u64,
}

/// Where whoever asked waits.
pub type LookReply = rtrb::Producer<Seen>;

/// A question that is being answered.
#[derive(Debug)]
pub struct Looking {
    look: Look,
    to: LookReply,
    next: u32,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Slowest(Vec<SlowMember>),
    Groups(Vec<GroupSeen>),
    Members(Vec<MemberSeen>),
    Roster(Vec<DurableSeen>),
    Closed(u64),
}

impl Found {
    fn len(&self) -> usize {
        match self {
            Self::Slowest(_) | Self::Closed(_) => 0,
            Self::Groups(list) => list.len(),
            Self::Members(list) => list.len(),
            Self::Roster(list) => list.len(),
        }
    }
}

impl Look {
    fn range(&self) -> Range {
        match self {
            Self::Groups(range) | Self::Members(_, range) | Self::Roster(_, range) => *range,
            _ => Range { from: 0, limit: ENTRIES_MAX },
        }
    }

    fn found(&self) -> Found {
        match self {
            Self::Status { .. } => Found::Slowest(Vec::new()),
            Self::Groups(_) | Self::Group(_) => Found::Groups(Vec::new()),
            Self::Members(..) => Found::Members(Vec::new()),
            Self::Roster(..) => Found::Roster(Vec::new()),
            Self::Disconnect(_) => Found::Closed(0),
        }
    }
}

impl Shard {
    pub(super) fn begin_look(&mut self, look: Look, to: LookReply) {
        let (next, found) = (look.range().from, look.found());
        self.looking = Some(Looking { look, to, next, found });
    }

    /// Looks at some places; answers when all have been seen or the answer is full.
    pub(super) fn go_on_looking(&mut self, io: &mut impl Io) {
        let Some(mut looking) = self.looking.take() else { return };
        let limit = looking.look.range().limit.min(ENTRIES_MAX) as usize;
        let end = self.places(&looking.look);
        let stop = end.min(looking.next.saturating_add(VISITS_PER_TURN));
        while looking.next < stop && looking.found.len() < limit.max(1) {
            self.look_at(&mut looking, io);
            looking.next += 1;
        }
        let is_full = looking.found.len() >= limit.max(1);
        if looking.next < end && !is_full {
            self.looking = Some(looking);
            return;
        }
        let next = (looking.next < end).then_some(looking.next);
        let seen = match looking.found {
            Found::Slowest(slowest) => Seen::Status(Box::new(self.status(slowest))),
            Found::Groups(entries) => Seen::Groups(Page { entries, next }),
            Found::Members(entries) => Seen::Members(Page { entries, next }),
            Found::Roster(entries) => Seen::Roster(Page { entries, next }),
            Found::Closed(count) => Seen::Disconnected(count),
        };
        // Whoever asked may have given up.
        let _ = looking.to.push(seen);
    }

    /// How many places there are to look at.
    fn places(&self, look: &Look) -> u32 {
        let group = |name: &[u8]| Some(&self.groups[*self.by_name.get(name)? as usize]);
        match look {
            Look::Status { slowest: false } => 0,
            Look::Status { slowest: true } | Look::Members(None, _) => self.conns.end(),
            Look::Groups(_) => self.groups.capacity() as u32,
            Look::Group(_) => 1,
            Look::Members(Some(name), _) => group(name).map_or(0, |group| group.members.end()),
            Look::Roster(name, _) => {
                group(name).and_then(Group::roster).map_or(0, |roster| roster.places())
            }
            Look::Disconnect(Who::Conn(_)) => 1,
            Look::Disconnect(Who::Member(_)) => self.conns.end(),
        }
    }

    fn look_at(&mut self, looking: &mut Looking, io: &mut impl Io) {
        let place = looking.next;
        match (&looking.look, &mut looking.found) {
            (Look::Status { .. }, Found::Slowest(slowest)) => self.rank_slow(place, slowest, io),
            (Look::Groups(_), Found::Groups(list)) => {
                list.extend(self.groups.get(place as usize).map(|group| self.group_seen(group)));
            }
            (Look::Group(name), Found::Groups(list)) => {
                let key = self.by_name.get(name);
                list.extend(key.map(|key| self.group_seen(&self.groups[*key as usize])));
            }
            (Look::Members(None, _), Found::Members(list)) => {
                list.extend(self.conns.get(place).map(|conn| self.member_seen(conn)));
            }
            (Look::Members(Some(name), _), Found::Members(list)) => {
                list.extend(self.member_of(name, place));
            }
            (Look::Roster(name, _), Found::Roster(list)) => list.extend(self.durable(name, place)),
            (Look::Disconnect(who), Found::Closed(count)) => {
                let conn = match who {
                    Who::Conn(id) => self.conns.get(id.slot).filter(|conn| conn.id == *id),
                    Who::Member(member) => {
                        self.conns.get(place).filter(|conn| conn.member == *member)
                    }
                };
                if let Some(id) = conn.filter(|c| c.state != ConnState::Closing).map(|c| c.id) {
                    self.disconnect(id);
                    *count += 1;
                }
            }
            _ => {}
        }
    }

    fn disconnect(&mut self, id: ConnId) {
        self.figures.disconnected += 1;
        let text = "an operator closed this connection; wait before you come back";
        self.refuse_last(id, 0, Refusal::new(ErrorCode::Disconnected, text));
    }

    fn group_seen(&self, group: &Group) -> GroupSeen {
        let owned = match &group.role {
            Role::Replica { .. } => None,
            Role::Owner(sequencer) => Some(OwnedSeen {
                members: u64::from(sequencer.members),
                first_kept: sequencer.first_kept,
                sequenced: sequencer.sequenced,
                synced: sequencer.synced,
                durable: group.roster().map_or(0, |roster| u64::from(roster.len())),
                durable_online: group.roster().map_or(0, |roster| u64::from(roster.online())),
                producers: sequencer.producers.len() as u64,
                receipts_waiting: group.roster().map_or(0, |r| r.receipts.len() as u64),
                state_keys: group.owned_state().map_or(0, |owned| owned.state.keys() as u64),
            }),
        };
        GroupSeen {
            name: group.name.clone(),
            owner: match group.role {
                Role::Owner(_) => self.id,
                Role::Replica { owner } => owner,
            },
            class: self.config.classes.get(group.class).name.clone(),
            priority: group.priority,
            epoch: group.epoch,
            published: group.published,
            local_members: group.members.len() as u64,
            tail_bytes: group.tail.bytes(),
            owned,
        }
    }

    fn member_seen(&self, conn: &Conn) -> MemberSeen {
        MemberSeen {
            conn: conn.id,
            member: conn.member.clone(),
            transport: if conn.ws.is_some() { "websocket" } else { "native" },
            health: match (conn.state, conn.drainage.health()) {
                (ConnState::Closing, _) => "closing",
                (_, Some(health)) => health.name(),
                (_, None) => "opening",
            },
            tripped: conn.tripped,
            rate: conn.drainage.rate(),
            groups: conn.memberships.len() as u64,
            control_bytes: conn.control.len() as u64,
            silent_ms: self.now.since(conn.heard_at) / 1_000_000,
            cursor: None,
        }
    }

    fn member_of(&self, group: &[u8], place: u32) -> Option<MemberSeen> {
        let group = &self.groups[*self.by_name.get(group)? as usize];
        let member = group.members.get(place)?;
        let seen = self.member_seen(self.conns.get(member.conn)?);
        let cursor = CursorSeen {
            sent: member.sent,
            acked: member.acked,
            lag: group.published.0.saturating_sub(member.sent.0),
            on_tail: matches!(member.lag, Lag::Live),
            durable: member.durable.is_some(),
        };
        Some(MemberSeen { cursor: Some(cursor), ..seen })
    }

    fn durable(&self, group: &[u8], place: u32) -> Option<DurableSeen> {
        let group = &self.groups[*self.by_name.get(group)? as usize];
        let member = group.roster()?.at(place)?;
        Some(DurableSeen {
            member: (*member.id).into(),
            online: !member.online.is_empty(),
            acked: member.acked,
            behind: group.published.0.saturating_sub(member.acked.0),
        })
    }
}
