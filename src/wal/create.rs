//! Changes to segment files outside the live log: creating, removing, cutting off zeros.
//! Each can be interrupted at any point and leaves the log readable.

use std::io;
use std::path::Path;

use super::bytes_at::is_zero;
use super::files::{Files, Step, TEMPORARY, steps_to_replace, temporary_of};
use super::paths;
use super::segment::SegmentHeader;
use crate::limits::LOG_BLOCK;
use crate::position::SegmentNumber;

const PIECE: usize = 1024 * 1024;

/// Creates a segment file of `bytes` bytes: header block, then zeros, all on disk when this
/// returns. The file gets its name only when it is complete; an existing one is never
/// replaced.
///
/// # Errors
/// The disk is full, the file exists, or the system refused; the temporary file is removed.
pub fn create_segment_blocking(
    files: &mut impl Files,
    shard_dir: &Path,
    header: &SegmentHeader,
    bytes: u64,
) -> io::Result<()> {
    let path = paths::segment_path(shard_dir, header.number);
    let temporary = temporary_of(&path);
    let created = files
        .create(&temporary, &header.encode(), bytes)
        .and_then(|()| files.sync(&temporary))
        .and_then(|()| files.rename_new(&temporary, &path))
        .and_then(|()| files.sync_dir(shard_dir));
    if created.is_err() {
        let _ = files.remove(&temporary);
    }
    created
}

/// The steps that create a segment file: header block, then zeros up to `bytes`.
#[must_use]
pub fn steps_to_create(
    shard_dir: &Path,
    number: SegmentNumber,
    header: &[u8; LOG_BLOCK],
    bytes: u64,
) -> Vec<Step> {
    steps_to_replace(&paths::segment_path(shard_dir, number), header.to_vec(), bytes)
}

/// The steps that remove segment files, oldest first.
#[must_use]
pub fn steps_to_remove(shard_dir: &Path, numbers: &[SegmentNumber]) -> Vec<Step> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    let path = |number: &SegmentNumber| paths::segment_path(shard_dir, *number);
    let mut steps: Vec<_> =
        numbers.iter().map(|number| Step::Remove { path: path(number) }).collect();
    steps.push(Step::SyncDir { dir: shard_dir.to_owned() });
    steps
}

/// Removes segment files, oldest first, then syncs the directory. Files that are gone
/// already are no error.
///
/// # Errors
/// The system refused.
pub fn remove_segments(
    files: &mut impl Files,
    shard_dir: &Path,
    numbers: &[SegmentNumber],
) -> io::Result<()> {
    steps_to_remove(shard_dir, numbers).iter().try_for_each(|step| step.run(files))
}

/// Removes what an interrupted creation of a segment left.
///
/// # Errors
/// The system refused.
pub fn remove_temporaries(files: &mut impl Files, shard_dir: &Path) -> io::Result<()> {
    for name in files.list(shard_dir)? {
        let segment = name.strip_suffix(TEMPORARY);
        if segment.and_then(paths::segment_number).is_some() {
            files.remove(&shard_dir.join(&name))?;
        }
    }
    Ok(())
}

/// Shrinks a segment to which nothing is written any more to `bytes_used`, or to its last
/// block that is not zero if that is later: only zeros are ever cut off. Returns the size it
/// has now.
///
/// # Errors
/// The system refused; the file is as it was or shorter by zeros.
pub fn truncate_sealed(
    files: &mut impl Files,
    shard_dir: &Path,
    number: SegmentNumber,
    bytes_used: u64,
) -> io::Result<u64> {
    let path = paths::segment_path(shard_dir, number);
    let len = files.len(&path)?;
    let mut keep = bytes_used.max(LOG_BLOCK as u64).next_multiple_of(LOG_BLOCK as u64);
    if keep >= len {
        return Ok(len);
    }
    let mut at = keep;
    let mut buf = vec![0; PIECE.min((len - at) as usize)];
    while at < len {
        let piece = (len - at).min(PIECE as u64) as usize;
        let filled = files.read(&path, at, &mut buf[..piece])?;
        buf[filled..piece].fill(0);
        for (index, block) in buf[..piece].chunks(LOG_BLOCK).enumerate() {
            if !is_zero(block) {
                keep = at + ((index + 1) * LOG_BLOCK) as u64;
            }
        }
        at += piece as u64;
    }
    if keep >= len {
        return Ok(len);
    }
    files.truncate(&path, keep)?;
    files.sync(&path)?;
    Ok(keep)
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
