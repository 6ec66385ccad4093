//! Rosters as clients see them: ROSTER_QUERY, and the announcements of what changed.
//!
//! The owner of a group announces its changes at most once per interval: one frame, encoded
//! once, for the members of all shards that asked for it in their JOIN. Where nobody did, a
//! change costs a look at two counters, and no timer runs. A huge group is walked in slices.

use std::collections::VecDeque;

use bytes::Bytes;

use super::inbox::Origin;
use super::{Io, Shard};
use crate::group::roster_log::Change;
use crate::group::{Group, Role, Roster as Members};
use crate::limits::{
    ANNOUNCED_BYTES_PER_TURN, ANNOUNCED_GROUPS_PER_TURN, ROSTER_CHANGES_ANNOUNCED_MAX,
    ROSTER_SAMPLE_MAX, ROSTER_VISITS_MAX,
};
use crate::mesh::Message;
use crate::position::{Epoch, Handle, Nanos, ShardId};
use crate::wire::{
    Presence, ROSTER_ENTRY_FIXED, ROSTER_FIXED, Roster, RosterEntry, RosterForm, RosterHead,
};

/// Announcements of one group that are on their way to its members on a shard. One more is
/// dropped; clients see that in the versions.
const WALKS_PER_GROUP_MAX: u8 = 2;

/// A frame on its way to the members of a group on this shard.
#[derive(Debug)]
struct Walk {
    group: u32,
    handle: Handle,
    frame: Bytes,
    next: u32,
}

/// What is to be announced.
#[derive(Debug, Default)]
pub struct Announcements {
    /// Keys of owned groups that changed in this interval.
    changed: Vec<u32>,
    /// Those of the last interval that were not announced yet.
    due: Vec<u32>,
    /// When the interval ends.
    at: Option<Nanos>,
    walks: VecDeque<Walk>,
}

impl Announcements {
    /// When the shard must have a turn.
    pub fn deadline(&self) -> Option<Nanos> {
        self.at
    }

    /// Whether there is something to do in the next turn.
    pub fn has_work(&self) -> bool {
        !self.walks.is_empty()
            || !self.due.is_empty()
            || (self.at.is_none() && !self.changed.is_empty())
    }
}

impl Shard {
    /// The roster of an owned group changed: whoever wants to know is told in time.
    pub(super) fn roster_changed(&mut self, key: u32) {
        let group = &mut self.groups[key as usize];
        let watched = group.is_watched();
        let Some(sequencer) = group.sequencer() else { return };
        let log = &mut sequencer.roster().log;
        if !watched {
            log.set_announced();
        } else if !log.queued && log.unannounced() > 0 {
            log.queued = true;
            self.announcements.changed.push(key);
        }
    }

    /// A local member of a group wants announcements from now on, or none any more.
    pub(super) fn watch_roster(&mut self, key: u32, wants: bool) {
        let Some(group) = self.groups.get_mut(key as usize) else { return };
        let before = group.watchers;
        group.watchers = if wants { before + 1 } else { before - 1 };
        let turned = before == 0 || group.watchers == 0;
        let handle = group.handle;
        if turned && let Role::Replica { owner } = group.role {
            self.tell(owner, Message::Watch { handle, wants });
        }
    }

    /// Members of an owned group on another shard want announcements, or none any more.
    pub(super) fn peer_watches(&mut self, from: ShardId, handle: Handle, wants: bool) {
        let Some(&key) = self.by_handle.get(&handle) else { return };
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        if let Some(peer) = sequencer.peers.iter_mut().find(|peer| peer.shard == from) {
            peer.watches = wants;
        }
    }

    /// Ends an interval: what changed in it is announced, a slice of the groups per turn.
    pub(super) fn announce_rosters(&mut self, io: &mut impl Io) {
        let now = io.now();
        let announcements = &mut self.announcements;
        if announcements.due.is_empty() {
            match announcements.at {
                None if announcements.changed.is_empty() => return,
                None => {
                    let interval_ms = u64::from(self.config.roster_interval_ms);
                    announcements.at = Some(now.plus_ms(interval_ms));
                    return;
                }
                Some(at) if at > now => return,
                Some(_) => {
                    announcements.at = None;
                    std::mem::swap(&mut announcements.due, &mut announcements.changed);
                }
            }
        }
        for _ in 0..ANNOUNCED_GROUPS_PER_TURN {
            let Some(key) = self.announcements.due.pop() else { return };
            self.announce_roster(key);
        }
    }

    fn announce_roster(&mut self, key: u32) {
        let (start, room) = (self.start, self.roster_room());
        let Some(group) = self.groups.get_mut(key as usize) else { return };
        let handle = group.handle;
        let watched = group.is_watched();
        let Some(roster) = group.sequencer().and_then(|s| s.roster.as_deref_mut()) else { return };
        roster.log.queued = false;
        let count = roster.log.unannounced() as usize;
        if count == 0 || !watched {
            return roster.log.set_announced();
        }
        let frame = announcement(roster, handle, start, room);
        roster.log.set_announced();
        let frame = Bytes::from(frame);
        self.figures.rosters += 1;
        let peers: smallvec::SmallVec<[ShardId; 8]> = match self.groups[key as usize].sequencer() {
            Some(sequencer) => {
                sequencer.peers.iter().filter(|peer| peer.watches).map(|peer| peer.shard).collect()
            }
            None => return,
        };
        for shard in peers {
            self.tell(shard, Message::Roster { handle, frame: frame.clone() });
        }
        self.begin_walk(key, frame);
    }

    /// The owner of a group announces changes of its roster.
    pub(super) fn roster_announced(&mut self, handle: Handle, frame: Bytes) {
        if let Some(&key) = self.by_handle.get(&handle) {
            self.begin_walk(key, frame);
        }
    }

    fn begin_walk(&mut self, key: u32, frame: Bytes) {
        let group = &mut self.groups[key as usize];
        if group.watchers == 0 || group.walks >= WALKS_PER_GROUP_MAX {
            return;
        }
        group.walks += 1;
        let (handle, next) = (group.handle, 0);
        self.announcements.walks.push_back(Walk { group: key, handle, frame, next });
    }

    /// Hands announcements to a slice of the members that wait for them. One whose control
    /// queue is full gets none: it sees that in the versions.
    pub(super) fn walk_announcements(&mut self) {
        let (mut visits, mut bytes) = (ROSTER_VISITS_MAX, ANNOUNCED_BYTES_PER_TURN);
        let control_max = self.config.control_bytes_max as usize;
        while visits > 0
            && bytes > 0
            && let Some(walk) = self.announcements.walks.front_mut()
        {
            let group = self.groups.get_mut(walk.group as usize);
            let Some(group) = group.filter(|group| group.handle == walk.handle) else {
                self.announcements.walks.pop_front();
                continue;
            };
            if walk.next >= group.members.end() {
                group.walks -= 1;
                self.announcements.walks.pop_front();
                continue;
            }
            let member = group.members.get(walk.next);
            walk.next += 1;
            visits -= 1;
            let Some(member) = member.filter(|member| member.wants_roster) else { continue };
            let Some(conn) = self.conns.get(member.conn) else { continue };
            let (id, frame) = (conn.id, walk.frame.clone());
            if conn.control.len() <= control_max {
                bytes = bytes.saturating_sub(frame.len());
                self.control(id, |out| out.extend_from_slice(&frame));
            }
        }
    }

    /// Bytes of entries that fit into one ROSTER.
    fn roster_room(&self) -> usize {
        // The length field does not count itself.
        self.config.frame_max() + 4 - ROSTER_FIXED
    }

    /// Answers a ROSTER_QUERY.
    pub(super) fn query_roster(
        &mut self,
        origin: Origin,
        name: &[u8],
        known: u64,
        after: u32,
        limit: u32,
    ) -> usize {
        let group = self.by_name.get(name).copied().map(|key| &self.groups[key as usize]);
        let query = Query { request: origin.request, known, after, limit: limit as usize };
        let frames = query.answer(group, self.start, self.roster_room());
        let len = frames.len();
        self.answered(origin, frames, None);
        len
    }
}

/// One frame with everything that was not announced, or with the counts if that is too much.
fn announcement(roster: &Members, handle: Handle, start: Epoch, room: usize) -> Vec<u8> {
    let count = roster.log.unannounced() as usize;
    let newest = roster.log.newest(count);
    let all = newest.len() == count
        && count <= ROSTER_CHANGES_ANNOUNCED_MAX
        && fitting(newest.clone(), room) == count;
    let (form, entries) = if all {
        (RosterForm::Changes, newest)
    } else {
        let sample = roster.log.newest(ROSTER_SAMPLE_MAX);
        (RosterForm::Counts, roster.log.newest(fitting(sample.rev(), room)))
    };
    let mut frame = Vec::new();
    Roster::encode(&mut frame, &head(0, form, handle, start, roster), entries.map(entry));
    frame
}

/// A ROSTER_QUERY.
struct Query {
    request: u32,
    known: u64,
    after: u32,
    limit: usize,
}

impl Query {
    fn answer(&self, group: Option<&Group>, start: Epoch, room: usize) -> Vec<u8> {
        let nobody = Members::default();
        let roster = group.and_then(Group::roster).unwrap_or(&nobody);
        let handle = group.map_or(Handle(0), |group| group.handle);
        let head = |form| {
            let mut head = head(self.request, form, handle, start, roster);
            head.version = if group.is_some() { head.version } else { 0 };
            head
        };
        let asks_changes = self.after == 0 && self.known > 0 && group.is_some();
        let changes = asks_changes.then(|| roster.log.since(start, self.known)).flatten();
        let mut frames = Vec::new();
        match changes {
            _ if self.limit == 0 => {
                Roster::encode(&mut frames, &head(RosterForm::Counts), std::iter::empty());
            }
            Some(changes) if changes.len() == 0 => {
                Roster::encode(&mut frames, &head(RosterForm::UpToDate), std::iter::empty());
            }
            Some(changes)
                if changes.len() <= self.limit
                    && fitting(changes.clone(), room) == changes.len() =>
            {
                let entries = changes.map(entry);
                Roster::encode(&mut frames, &head(RosterForm::Changes), entries);
            }
            _ => {
                let (entries, next) = page(roster, self.after, self.limit, room);
                let head = RosterHead { next, ..head(RosterForm::Page) };
                Roster::encode(&mut frames, &head, entries.iter().copied());
            }
        }
        frames
    }
}

fn head(
    request: u32,
    form: RosterForm,
    handle: Handle,
    start: Epoch,
    roster: &Members,
) -> RosterHead {
    let (members, online) = (roster.len(), roster.online());
    let version = roster.log.version(start);
    RosterHead { request, form, handle, version, members, online, next: 0 }
}

fn entry(change: &Change) -> RosterEntry<'_> {
    RosterEntry { what: change.what, member: &change.member }
}

/// How many of the changes fit into `room` bytes.
fn fitting<'a>(changes: impl Iterator<Item = &'a Change>, mut room: usize) -> usize {
    let mut count = 0;
    for change in changes {
        let Some(rest) = room.checked_sub(ROSTER_ENTRY_FIXED + change.member.len()) else { break };
        room = rest;
        count += 1;
    }
    count
}

/// The members from index `after` on, as many as fit, and where the next page begins: 0 if
/// there is none. Looks at a bounded number of places, so a page may have less than it could.
fn page(roster: &Members, after: u32, limit: usize, room: usize) -> (Vec<RosterEntry<'_>>, u32) {
    let (mut entries, mut room) = (Vec::new(), room);
    let places = roster.places();
    let mut at = after;
    while at < places {
        if (at - after) as usize >= ROSTER_VISITS_MAX || entries.len() >= limit.min(u16::MAX.into())
        {
            return (entries, at);
        }
        if let Some(member) = roster.at(at) {
            let Some(rest) = room.checked_sub(ROSTER_ENTRY_FIXED + member.id.len()) else {
                return (entries, at);
            };
            room = rest;
            let online = !member.online.is_empty();
            let what = if online { Presence::Online } else { Presence::Offline };
            entries.push(RosterEntry { what, member: &member.id });
        }
        at += 1;
    }
    (entries, 0)
}
