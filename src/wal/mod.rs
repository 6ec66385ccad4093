//! The write-ahead log of a shard. WAL_FORMAT.md is the specification of the bytes.
//!
//! The pure part ([`commit`], [`record`], [`segment`], [`index`], [`read`], [`group_state`])
//! does no I/O. The start-up
//! part ([`manifest`], [`source`], [`recovery`], [`create`], [`quarantine`]) runs before a
//! shard serves, and [`tool`] reads a data directory for an operator.

mod bad_place;
mod bytes_at;
pub mod commit;
pub mod create;
mod damage;
pub mod files;
mod fold;
pub mod group_state;
pub mod index;
mod log;
pub mod manifest;
pub mod paths;
mod quarantine;
pub mod read;
pub mod record;
mod recovered;
pub mod recovery;
pub mod repair;
mod report;
mod run;
mod scan;
pub mod segment;
pub mod segment_index;
pub mod snapshot;
pub mod source;
#[cfg(test)]
mod testing;
pub mod tool;

pub use commit::{Commit, CommitFault, commit_len, decode_commit, encode_commit};
pub use damage::{Damage, DamageKind, Torn};
pub use files::{Files, RealFiles, Step};
pub use group_state::{GroupState, MemberState, ProducerState, ReceiptState, StateEntry};
pub use index::{GroupIndex, IndexEntry, LogPos};
pub use log::{Log, Room, SegmentInfo};
pub use manifest::{DataDir, Manifest, ManifestError};
pub use quarantine::{quarantine, quarantine_snapshot};
pub use read::{Collected, Resume, collect};
pub use record::Record;
pub use recovered::{Recovered, RecoveredGroup, RecoveredSegment, SealedSegment};
pub use recovery::{RecoveryError, recover, recover_places};
pub use run::{META_BYTES, Meta, Run, RunKind};
pub use segment::{SegmentHeader, SegmentHeaderFault};
pub use segment_index::{IndexHeader, SegmentIndexBuilder};
pub use snapshot::{Snapshot, SnapshotFault, SnapshotGroup, SnapshotHeader, SnapshotPiece};
pub use source::{DirSource, LogSource};

/// Version of the format of manifest, segments and commits.
pub const FORMAT_VERSION: u16 = 2;
