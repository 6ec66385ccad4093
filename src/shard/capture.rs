//! Takes what is durable of the groups of a shard into a snapshot, some of it a turn.

use super::Shard;
use crate::group::{Group, Role, Sequencer};
use crate::position::{Handle, Seq, Stamp};
use crate::wal::{SnapshotGroup, SnapshotPiece};

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Key of the group.
    group: usize,
    /// The group there, if some of it is in.
    handle: Handle,
    part: Part,
}

/// What of a group comes next. A group may be larger than a slice, so each part is taken from
/// where the slice before it ended; what changes meanwhile is in the log after the snapshot.
#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Head,
    /// Producers from this slot on.
    Producers(usize),
    /// Members from this index on.
    Members(u32),
    Receipts,
    /// Keys whose version is above this one.
    Entries(u64),
}

impl Shard {
    /// Goes on from `place` until the piece has `enough` bytes or `groups` were looked at.
    /// Returns whether all groups are in.
    pub(super) fn capture(
        &self,
        place: &mut Place,
        piece: &mut SnapshotPiece,
        enough: usize,
        groups: usize,
    ) -> bool {
        let end = self.groups.capacity();
        for _ in 0..groups {
            let group = self.groups.get(place.group);
            if group.is_none_or(|group| group.handle != place.handle) {
                // Another group may have got the key since the last slice.
                place.part = Part::Head;
                place.handle = group.map_or(Handle(0), |group| group.handle);
            }
            let done =
                group.is_none_or(|group| capture_group(group, &mut place.part, piece, enough));
            if !done {
                return false;
            }
            *place = Place { group: place.group + 1, ..Place::default() };
            if place.group >= end {
                return true;
            }
        }
        false
    }
}

/// Takes a group in from `part` on; whether all of it is in.
fn capture_group(group: &Group, part: &mut Part, piece: &mut SnapshotPiece, enough: usize) -> bool {
    let Role::Owner(sequencer) = &group.role else { return true };
    if is_forgotten(sequencer) {
        return true;
    }
    loop {
        if piece.len() >= enough {
            return false;
        }
        *part = match *part {
            Part::Head => {
                capture_head(group, sequencer, piece);
                Part::Producers(0)
            }
            Part::Producers(mut slot) => {
                while slot < sequencer.producers.len() && piece.len() < enough {
                    if let Some((id, p)) = sequencer.producers.saved(slot, sequencer.synced) {
                        piece.producer(&id, &p.member, p.last, p.window.iter().copied());
                    }
                    slot += 1;
                }
                match slot < sequencer.producers.len() {
                    true => Part::Producers(slot),
                    false => Part::Members(0),
                }
            }
            Part::Members(after) => capture_members(sequencer, after, piece, enough),
            Part::Receipts => {
                let roster = sequencer.roster.iter();
                roster
                    .flat_map(|roster| roster.saved_receipts(sequencer.synced))
                    .for_each(|(seq, receipt)| piece.receipt(seq, &receipt));
                Part::Entries(0)
            }
            Part::Entries(mut known) => {
                let Some(owned) = &sequencer.state else { return true };
                for entry in owned.state.after(known) {
                    if piece.len() >= enough {
                        break;
                    }
                    piece.entry(entry.key, entry.version, entry.stamp, entry.data);
                    known = entry.version;
                }
                if owned.state.after(known).next().is_none() {
                    // How far deletions are forgotten is an entry without a key.
                    piece.entry(&[], owned.state.horizon(), Stamp(0), None);
                    return true;
                }
                Part::Entries(known)
            }
        };
    }
}

fn capture_members(
    sequencer: &Sequencer,
    after: u32,
    piece: &mut SnapshotPiece,
    enough: usize,
) -> Part {
    let Some(roster) = &sequencer.roster else { return Part::Receipts };
    for index in after..roster.places() {
        if piece.len() >= enough {
            return Part::Members(index);
        }
        if let Some(member) = roster.at(index) {
            piece.member(&member.id, &member.saved(sequencer.synced));
        }
    }
    Part::Receipts
}

fn is_forgotten(sequencer: &Sequencer) -> bool {
    sequencer.synced == Seq(0) && sequencer.roster.is_none() && sequencer.state.is_none()
}

fn capture_head(group: &Group, sequencer: &Sequencer, piece: &mut SnapshotPiece) {
    let captured = SnapshotGroup {
        name: group.name.clone(),
        handle: group.handle,
        epoch: group.epoch,
        head: sequencer.synced,
        first_kept: sequencer.first_kept.max(Seq(1)),
        used_memory: sequencer.used_memory,
    };
    let state_version = sequencer.state.as_ref().map_or(0, |owned| owned.state.version());
    let roster_version = sequencer.roster.as_ref().map_or(0, |roster| roster.applied_version);
    piece.group(&captured, roster_version, state_version);
}
