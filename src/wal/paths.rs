//! Names in a data directory: `manifest.toml`, `LOCK`, `shard-000/seg-0000000001.wal`.

use std::path::{Path, PathBuf};

use crate::position::{SegmentNumber, ShardId};

/// The manifest.
pub const MANIFEST: &str = "manifest.toml";
/// The file whose lock says that a server uses the directory.
pub const LOCK: &str = "LOCK";
/// The folder of a shard that keeps damaged segments for the operator.
pub const QUARANTINE: &str = "quarantine";

/// The folder of a shard's log.
#[must_use]
pub fn shard_dir(data: &Path, shard: ShardId) -> PathBuf {
    data.join(format!("shard-{:03}", shard.0))
}

/// The file name of a segment.
#[must_use]
pub fn segment_name(number: SegmentNumber) -> String {
    format!("seg-{:010}.wal", number.0)
}

/// The file of a segment in a shard's folder.
#[must_use]
pub fn segment_path(shard_dir: &Path, number: SegmentNumber) -> PathBuf {
    shard_dir.join(segment_name(number))
}

/// The number in a segment's file name; `None` for any other name.
#[must_use]
pub fn segment_number(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".wal")?;
    let number = SegmentNumber(digits.parse().ok()?);
    (segment_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_of_a_segment_is_one() {
        assert_eq!(segment_number("seg-0000000007.wal"), Some(SegmentNumber(7)));
        assert_eq!(
            segment_number(&segment_name(SegmentNumber(u64::MAX))),
            Some(SegmentNumber(u64::MAX))
        );
        for other in ["seg-7.wal", "seg-0000000007.wal.tmp", "seg-+000000007.wal", "seg-.wal", "x"]
        {
            assert_eq!(segment_number(other), None, "{other}");
        }
    }
}
