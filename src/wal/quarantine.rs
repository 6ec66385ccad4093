//! Keeps damaged segment files for the operator.

use std::io;
use std::path::{Path, PathBuf};

use super::damage::Damage;
use super::files::Files;
use super::paths;
use crate::position::{CommitNumber, SegmentNumber};

/// Gives every segment in `damage` a second name in the shard's `quarantine` folder, so that
/// retention cannot take it from the operator, and returns those names. The log is as before.
/// Segments that are there already, and those that are missing, are passed over.
///
/// # Errors
/// The system refused.
pub fn quarantine(
    files: &mut impl Files,
    shard_dir: &Path,
    damage: &[Damage],
) -> io::Result<Vec<PathBuf>> {
    let mut numbers: Vec<SegmentNumber> = damage.iter().map(|d| d.segment).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let folder = shard_dir.join(paths::QUARANTINE);
    let mut linked = Vec::new();
    for number in numbers {
        let file = paths::segment_path(shard_dir, number);
        match files.len(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        files.create_dir(&folder)?;
        linked.extend(link(files, &file, &folder, number)?);
    }
    if !linked.is_empty() {
        files.sync_dir(&folder)?;
        files.sync_dir(shard_dir)?;
    }
    Ok(linked)
}

/// Moves a damaged snapshot to the shard's `quarantine` folder and returns its name there.
///
/// # Errors
/// The system refused; the snapshot is there or in its place.
pub fn quarantine_snapshot(
    files: &mut impl Files,
    shard_dir: &Path,
    covered: CommitNumber,
) -> io::Result<PathBuf> {
    let folder = shard_dir.join(paths::QUARANTINE);
    let file = paths::snapshot_path(shard_dir, covered);
    let target = folder.join(file.file_name().unwrap_or_default());
    files.create_dir(&folder)?;
    // The same commit is never covered twice with different bytes, so nothing is lost by it.
    files.rename(&file, &target)?;
    files.sync_dir(&folder)?;
    files.sync_dir(shard_dir)?;
    Ok(target)
}

/// Links under the segment's name, or with a counter behind it where another file has that.
fn link(
    files: &mut impl Files,
    file: &Path,
    folder: &Path,
    number: SegmentNumber,
) -> io::Result<Option<PathBuf>> {
    let mut name = paths::segment_name(number);
    for copy in 2.. {
        let target = folder.join(&name);
        match files.link(file, &target) {
            Ok(()) => return Ok(Some(target)),
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) if files.same(file, &target)? => return Ok(None),
            Err(_) => name = format!("{}.{copy}", paths::segment_name(number)),
        }
    }
    Ok(None)
}
