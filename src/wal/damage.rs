//! What recovery finds beside valid commits.

use std::fmt;

use super::commit::CommitFault;
use super::segment::SegmentHeaderFault;
use crate::position::{CommitNumber, Handle, NodeId, SegmentNumber, ShardId};

/// A last commit that was written in part when the server or the machine stopped. Nobody was
/// told that it is on disk; the log ends before it. Normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub segment: SegmentNumber,
    /// Where the commit starts.
    pub offset: u64,
    /// End of the last block that holds something.
    pub end: u64,
    /// Number it has or would have had.
    pub number: CommitNumber,
}

/// Something in the log that an interrupted write cannot explain: data may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentNumber,
    /// Where the damage starts in its file.
    pub start: u64,
    /// Where the next usable commit starts, or the end of what is damaged.
    pub end: u64,
    /// First and last commit that are lost, if that is known.
    pub commits: Option<(CommitNumber, CommitNumber)>,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong at a damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The file's header block is not usable, so nothing in the file is.
    Header(SegmentHeaderFault),
    /// The header is that of another segment, shard or node; nothing in the file is used.
    Foreign {
        /// The node in the header.
        node: NodeId,
        /// The shard in the header.
        shard: ShardId,
        /// The number in the header.
        number: SegmentNumber,
    },
    /// The file is missing though later ones are there.
    Missing,
    /// The file holds no commit though later ones hold something.
    Empty,
    /// Bytes that are neither valid nor what an interrupted write leaves.
    Rot(CommitFault),
    /// Commit numbers jump from one commit to the next.
    Hole,
    /// The log ends before the commit that a snapshot covers.
    Short,
    /// A snapshot knows a later message of this group than the log.
    Behind(Handle),
    /// What came before the first segment is needed, and no snapshot of it can be used.
    NoSnapshot,
    /// A valid commit whose number came before; it is not used.
    Repeated,
    /// A run of this group contradicts what came before it: its numbers overlap or leave a
    /// hole, or its name differs.
    Contradiction(Handle),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}, bytes {} to {}: {}", self.segment, self.start, self.end, self.kind)?;
        match self.commits {
            Some((first, last)) if first == last => write!(f, "; commit {first} is lost"),
            Some((first, last)) => write!(f, "; commits {first} to {last} are lost"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(fault) => write!(f, "{fault}; nothing in the file is used"),
            Self::Foreign { node, shard, number } => write!(
                f,
                "this file is segment {number} of shard {shard} of node {node}; nothing in it \
                 is used"
            ),
            Self::Missing => write!(f, "the file is missing though later ones are there"),
            Self::Empty => write!(f, "the file holds no commit though later ones do"),
            Self::Rot(fault) => write!(f, "{fault}, and an interrupted write cannot explain it"),
            Self::Hole => write!(f, "commit numbers jump"),
            Self::Short => write!(f, "the log ends before what a snapshot covers"),
            Self::Behind(handle) => {
                write!(f, "a snapshot knows a later message of group {handle} than the log has")
            }
            Self::NoSnapshot => write!(
                f,
                "older segments are gone and there is no snapshot of what they held: durable \
                 members, state and publish windows may be missing"
            ),
            Self::Repeated => write!(f, "a commit number came twice; the second is not used"),
            Self::Contradiction(handle) => {
                write!(f, "a run of group {handle} contradicts what came before it")
            }
        }
    }
}
