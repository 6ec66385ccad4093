//! Takes what is durable of the groups of a shard into a snapshot, some of it a turn.

use super::Shard;
use crate::group::{Group, Role};
use crate::position::Seq;
use crate::wal::{SnapshotGroup, SnapshotPiece};

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Key of the group.
    group: usize,
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
        for _ in 0..groups {
            if place.group >= self.groups.capacity() {
                return true;
            }
            if piece.len() >= enough {
                return false;
            }
            if let Some(group) = self.groups.get(place.group) {
                capture_group(group, piece);
            }
            place.group += 1;
        }
        place.group >= self.groups.capacity()
    }
}

/// A group of which nothing is kept is left out: it begins anew when someone comes back.
fn capture_group(group: &Group, piece: &mut SnapshotPiece) {
    let Role::Owner(sequencer) = &group.role else { return };
    let head = sequencer.synced;
    if head == Seq(0) || sequencer.index.is_empty() {
        return;
    }
    let captured = SnapshotGroup {
        name: group.name.clone(),
        handle: group.handle,
        epoch: group.epoch,
        head,
        first_kept: sequencer.first_kept,
        used_memory: sequencer.used_memory,
    };
    piece.group(&captured, 0, 0);
}
