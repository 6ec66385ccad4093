//! Names in a data directory: `manifest.toml`, `LOCK`, `shard-000/seg-0000000001.wal`, its index
//! `seg-0000000001.idx`, and snapshots `snap-00000000000000000042.snap`.

use std::path::{Path, PathBuf};

use crate::position::{CommitNumber, LogId, SegmentNumber, ShardId};

/// The manifest.
pub const MANIFEST: &str = "manifest.toml";
/// The file whose lock says that a server uses the directory.
pub const LOCK: &str = "LOCK";
/// Damage of a log that `fanfare wal repair` has noted: one line each, as `verify` says it.
pub const KNOWN_DAMAGE: &str = "known-damage.txt";
/// A second copy of the snapshot that a log begins with after the number of shards changed: the
/// log itself does not hold what came before.
pub const BASE_COPY: &str = "base.snap";
/// A snapshot of a shard that is being written.
pub const SNAPSHOT_TEMPORARY: &str = "snapshot.tmp";
/// The folder of a shard that keeps damaged segments for the operator.
pub const QUARANTINE: &str = "quarantine";

/// The folder of a shard's log in the first generation.
#[must_use]
pub fn shard_dir(data: &Path, shard: ShardId) -> PathBuf {
    log_dir(data, LogId { generation: 0, shard })
}

/// The folder of a log of any generation.
#[must_use]
pub fn log_dir(data: &Path, log: LogId) -> PathBuf {
    let shard = format!("shard-{:03}", log.shard.0);
    match log.generation {
        0 => data.join(shard),
        generation => data.join(generation_name(generation)).join(shard),
    }
}

fn generation_name(generation: u16) -> String {
    format!("gen-{generation:03}")
}

/// The file name of a segment.
#[must_use]
pub fn segment_name(number: SegmentNumber) -> String {
    format!("seg-{:010}.wal", number.0)
}

/// The file of a segment: in a shard's folder, or of a sealed log if the number says so.
#[must_use]
pub fn segment_path(shard_dir: &Path, number: SegmentNumber) -> PathBuf {
    let name = segment_name(number.on_disk());
    let Some(log) = number.log() else { return shard_dir.join(name) };
    let generation = generation_name(log.generation);
    match shard_dir.parent() {
        // A number of another log: its folder is beside this one's, in its own generation.
        Some(parent) if parent.file_name().is_none_or(|name| name != generation.as_str()) => {
            log_dir(parent.parent().unwrap_or(parent), log).join(name)
        }
        _ => shard_dir.join(name),
    }
}

/// The number in a segment's file name; `None` for any other name, and for a number so large
/// that it would name another log.
#[must_use]
pub fn segment_number(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".wal")?;
    let number = SegmentNumber(digits.parse().ok()?);
    (segment_name(number) == name && number.on_disk() == number).then_some(number)
}

/// The name of a segment file while repair gives several of them each other's names.
#[must_use]
pub fn moved_path(shard_dir: &Path, number: SegmentNumber) -> PathBuf {
    segment_path(shard_dir, number).with_extension("moved")
}

/// The segment that a file was about to become; `None` for any other name.
#[must_use]
pub fn moved_segment(name: &str) -> Option<SegmentNumber> {
    segment_number(&format!("{}.wal", name.strip_suffix(".moved")?))
}

/// The index of a segment in a shard's folder.
#[must_use]
pub fn index_path(shard_dir: &Path, number: SegmentNumber) -> PathBuf {
    segment_path(shard_dir, number).with_extension("idx")
}

/// The segment of an index with this file name; `None` for any other name.
#[must_use]
pub fn indexed_segment(name: &str) -> Option<SegmentNumber> {
    segment_number(&format!("{}.wal", name.strip_suffix(".idx")?))
}

/// The snapshot in a shard's folder that covers the log up to `covered`.
#[must_use]
pub fn snapshot_path(shard_dir: &Path, covered: CommitNumber) -> PathBuf {
    shard_dir.join(snapshot_name(covered))
}

fn snapshot_name(covered: CommitNumber) -> String {
    format!("snap-{:020}.snap", covered.0)
}

/// The commit that the snapshot with this file name covers; `None` for any other name.
#[must_use]
pub fn snapshot_commit(name: &str) -> Option<CommitNumber> {
    let digits = name.strip_prefix("snap-")?.strip_suffix(".snap")?;
    let covered = CommitNumber(digits.parse().ok()?);
    (snapshot_name(covered) == name).then_some(covered)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The largest number that a file of a segment can have.
    const LARGEST: u64 = (1 << 48) - 1;

    #[test]
    fn only_the_exact_name_of_a_segment_is_one() {
        assert_eq!(segment_number("seg-0000000007.wal"), Some(SegmentNumber(7)));
        assert_eq!(segment_number(&segment_name(SegmentNumber(LARGEST + 1))), None);
        assert_eq!(
            segment_number(&segment_name(SegmentNumber(LARGEST))),
            Some(SegmentNumber(LARGEST))
        );
        for other in ["seg-7.wal", "seg-0000000007.wal.tmp", "seg-+000000007.wal", "seg-.wal", "x"]
        {
            assert_eq!(segment_number(other), None, "{other}");
        }
    }

    #[test]
    fn a_number_of_another_log_is_a_file_in_that_logs_folder() {
        let data = Path::new("/d");
        let log = |generation, shard| LogId { generation, shard: ShardId(shard) };
        let here = log_dir(data, log(3, 1));
        let name = "seg-0000000007.wal";
        let number = SegmentNumber(7);
        assert_eq!(segment_path(&here, number), here.join(name));
        assert_eq!(segment_path(&here, number.current(3)), here.join(name));
        for other in [log(0, 0), log(0, 5), log(1, 0), log(2, 63)] {
            let sealed = number.sealed(other);
            assert_eq!((sealed.log(), sealed.on_disk()), (Some(other), number));
            assert_eq!(segment_path(&here, sealed), log_dir(data, other).join(name));
            assert!(sealed < SegmentNumber(1).current(3), "older logs come first");
        }
        assert_eq!(number.current(0), number);
    }

    #[test]
    fn only_the_exact_names_of_indices_and_snapshots_are_some() {
        let dir = Path::new("/d");
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        for number in [0, 7, LARGEST] {
            let index = name(index_path(dir, SegmentNumber(number)));
            assert_eq!(indexed_segment(&index), Some(SegmentNumber(number)));
            assert_eq!(segment_number(&index), None);
            let snapshot = name(snapshot_path(dir, CommitNumber(number)));
            assert_eq!(snapshot_commit(&snapshot), Some(CommitNumber(number)));
        }
        for other in ["seg-7.idx", "seg-0000000007.wal.idx", "snap-7.snap", "snap-.snap", "x"] {
            assert_eq!((indexed_segment(other), snapshot_commit(other)), (None, None), "{other}");
        }
    }
}
