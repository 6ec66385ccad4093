//! What recovery hands to the shard.

use std::collections::HashMap;

use super::damage::{Damage, Torn};
use super::group_state::GroupState;
use super::index::{GroupIndex, IndexEntry, LogPos};
use super::log::SegmentInfo;
use super::snapshot::SnapshotFault;
use crate::position::{CommitNumber, Epoch, Handle, SegmentNumber, Seq, Stamp};

/// What a shard's log holds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The groups, in the order of their last messages.
    pub groups: Vec<RecoveredGroup>,
    /// The segments that can be read, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// Number for the next commit.
    pub next_commit: CommitNumber,
    /// Number for the next segment, once the [`Recovered::unused`] ones are removed.
    pub next_segment: SegmentNumber,
    /// The largest stamp in the log.
    pub max_stamp: Stamp,
    /// The largest epoch in the log.
    pub max_epoch: Epoch,
    /// The last write, if it was interrupted.
    pub torn: Option<Torn>,
    /// What an interrupted write cannot explain. Unless it is empty, every group of this log
    /// must get a new epoch.
    pub damage: Vec<Damage>,
    /// Damage that a repair has noted: it was told of, and new epochs began then.
    pub known_damage: Vec<Damage>,
    /// Segments at the end of the log that hold no commit: written ahead, or torn in their
    /// first commit. The caller removes them before it creates [`Recovered::next_segment`].
    pub unused: Vec<SegmentNumber>,
    /// Segments of which nothing is used; `damage` says why. They stay until retention has
    /// removed everything before them.
    pub unusable: Vec<SegmentNumber>,
    /// Messages in the log.
    pub messages: u64,
    /// Commits in the log.
    pub commits: u64,
    /// Segments that were read whole and hold nothing but commits that are used: their index
    /// can be written. Their messages are in the groups' indices.
    pub to_index: Vec<SegmentNumber>,
    /// The snapshot that was used covers the log up to this commit.
    pub snapshot: Option<CommitNumber>,
    /// What that one and those before it cover, oldest first.
    pub snapshots: Vec<CommitNumber>,
    /// Segments of earlier generations of logs that groups have messages in.
    pub sealed: Vec<SealedSegment>,
    /// Snapshots that are damaged.
    pub bad_snapshots: Vec<(CommitNumber, SnapshotFault)>,
    /// Messages whose producer seq has an earlier place in their group. The first one counts.
    pub repeated_publishes: u64,
}

/// A group that has messages or records in the log.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    /// Its handle.
    pub handle: Handle,
    /// Its name.
    pub name: Box<[u8]>,
    /// Its epoch as of the last run.
    pub epoch: Epoch,
    /// Its oldest message that is kept, or the one after its head if none is.
    pub first: Seq,
    /// Its last message, kept or not.
    pub head: Seq,
    /// Retention has passed what is before this one.
    pub(super) first_kept: Seq,
    /// Whether a message of level `memory` is in the log.
    pub used_memory: bool,
    /// Where its messages are.
    pub index: GroupIndex,
    /// What is durable of it beside its messages.
    pub state: GroupState,
    /// Whether `head` comes from a message or a snapshot and not only from positions of members.
    pub(super) head_known: bool,
    /// Its last message that was seen in the log.
    pub(super) log_last: Seq,
    /// The last commit with something of it.
    pub(super) last_commit: CommitNumber,
}

impl RecoveredGroup {
    /// Whether nothing is left of it: it never had a message, and all who were in it have left.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        let state = &self.state;
        self.head == Seq(0)
            && state.members.is_empty()
            && (state.state_version, state.entries.len()) == (0, 0)
            && state.producers.is_empty()
            && state.receipts.is_empty()
    }
}

/// A segment that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Its number.
    pub number: SegmentNumber,
    /// Its salt.
    pub salt: u64,
    /// End of its last valid commit.
    pub bytes_used: u64,
    /// Unix time of its newest message, or of its creation.
    pub newest_ms: u64,
    /// Its first commit that is used; 0 if there is none.
    pub first_commit: CommitNumber,
    /// Its last commit that is used; 0 if there is none.
    pub last_commit: CommitNumber,
}

/// A segment of an earlier generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its number, with its log.
    pub number: SegmentNumber,
    /// What is known of it.
    pub info: SegmentInfo,
}

impl Recovered {
    /// Gives all numbers of segments their place after those of `sealed` ones, of which each
    /// group gets its entries.
    pub fn follow(
        &mut self,
        generation: u16,
        sealed: &[SealedSegment],
        places: &HashMap<Handle, Vec<IndexEntry>>,
    ) {
        let own = |number: SegmentNumber| number.current(generation);
        self.segments.iter_mut().for_each(|segment| segment.number = own(segment.number));
        self.next_segment = own(SegmentNumber(self.next_segment.0.max(1)));
        self.sealed = sealed.to_vec();
        for group in &mut self.groups {
            let mut index = GroupIndex::default();
            let earlier = places.get(&group.handle).into_iter().flatten();
            earlier.for_each(|entry| index.add(*entry));
            for entry in group.index.entries() {
                let segment = own(entry.pos.segment);
                index.add(IndexEntry { pos: LogPos { segment, ..entry.pos }, ..*entry });
            }
            group.index = index;
            group.settle_first();
        }
    }
}

impl RecoveredGroup {
    /// The oldest message is the first in the log, unless retention has passed that one.
    pub(super) fn settle_first(&mut self) {
        let first = self.index.first().unwrap_or(self.head.next());
        self.first = self.first_kept.max(first).min(self.head.next());
    }
}

impl RecoveredSegment {
    pub(super) fn of(number: SegmentNumber, info: &SegmentInfo) -> Self {
        let SegmentInfo { salt, used, newest_ms, first_commit, last_commit } = *info;
        Self { number, salt, bytes_used: used, newest_ms, first_commit, last_commit }
    }

    /// What the live log keeps of it.
    #[must_use]
    pub fn info(&self) -> SegmentInfo {
        SegmentInfo {
            salt: self.salt,
            used: self.bytes_used,
            newest_ms: self.newest_ms,
            first_commit: self.first_commit,
            last_commit: self.last_commit,
        }
    }
}
