//! Changes to segment files outside the live log: creating, removing, cutting off zeros.
//! Each can be interrupted at any point and leaves the log readable.

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::bytes_at::is_zero;
use super::files::{Files, Step, TEMPORARY, steps_to_replace, temporary_of};
use super::paths;
use super::recovered::Recovered;
use super::segment::SegmentHeader;
use super::segment_index::{IndexHeader, SegmentIndexBuilder};
use crate::limits::LOG_BLOCK;
use crate::position::{CommitNumber, NodeId, SegmentNumber, ShardId};

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
    let path_of = |number: &SegmentNumber| paths::segment_path(shard_dir, *number);
    let mut steps = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        let path = path_of(number);
        let dir = path.parent().map(Path::to_owned);
        steps.push(Step::Remove { path: paths::index_path(shard_dir, *number) });
        steps.push(Step::Remove { path });
        // What is in another directory may be newer, and must not be gone before these.
        let next = numbers.get(at + 1).map(path_of);
        if let Some(dir) = dir
            && next.is_none_or(|next| next.parent() != Some(&dir))
        {
            steps.push(Step::SyncDir { dir });
        }
    }
    steps
}

/// The steps that add a piece to the snapshot that is being written.
#[must_use]
pub fn steps_to_snapshot(shard_dir: &Path, at: u64, bytes: &Bytes) -> Vec<Step> {
    let path = shard_dir.join(paths::SNAPSHOT_TEMPORARY);
    // Each piece is synced, so that the end does not have to sync all of them at once.
    vec![snapshot_piece(&path, at, bytes), Step::Sync { path }]
}

fn snapshot_piece(path: &Path, at: u64, bytes: &Bytes) -> Step {
    let path = path.to_owned();
    match at {
        0 => Step::Create { path, head: bytes.to_vec(), bytes: 0 },
        _ => Step::Append { path, at, bytes: bytes.clone() },
    }
}

/// The steps that add the last piece to a snapshot and put it in force.
#[must_use]
pub fn steps_to_end_snapshot(
    shard_dir: &Path,
    covered: CommitNumber,
    (at, bytes): (u64, &Bytes),
    obsolete: &[CommitNumber],
) -> Vec<Step> {
    let path = shard_dir.join(paths::SNAPSHOT_TEMPORARY);
    let sync_dir = Step::SyncDir { dir: shard_dir.to_owned() };
    let mut steps = vec![
        snapshot_piece(&path, at, bytes),
        Step::Sync { path: path.clone() },
        Step::Rename { from: path, to: paths::snapshot_path(shard_dir, covered) },
        sync_dir.clone(),
    ];
    if !obsolete.is_empty() {
        let path = |covered: &CommitNumber| paths::snapshot_path(shard_dir, *covered);
        steps.extend(obsolete.iter().map(|covered| Step::Remove { path: path(covered) }));
        steps.push(sync_dir);
    }
    steps
}

/// Writes the index of every segment that recovery has read whole, and removes that of a damaged
/// one: it was made before the damage and names messages that are lost. Their sequence numbers and
/// commit numbers are given again, so a later start that took it would find that what was written
/// since contradicts it.
///
/// # Errors
/// The system refused. What was written is complete, and what was not is written later.
pub fn write_indices(
    files: &mut impl Files,
    shard_dir: &Path,
    node: NodeId,
    shard: ShardId,
    recovered: &Recovered,
) -> io::Result<()> {
    let damaged = recovered.damage.iter().chain(&recovered.known_damage);
    let stale: Vec<_> = damaged.map(|d| paths::index_path(shard_dir, d.segment)).collect();
    for path in &stale {
        Step::Remove { path: path.clone() }.run(files)?;
    }
    if let Some(dir) = stale.first().and_then(|path| path.parent()) {
        files.sync_dir(dir)?;
    }
    for segment in &recovered.segments {
        let number = segment.number;
        if !recovered.to_index.contains(&number) {
            continue;
        }
        let header = IndexHeader { node, shard, number, info: segment.info() };
        let mut index = SegmentIndexBuilder::new(&header);
        for group in &recovered.groups {
            let (entries, last) = group.index.in_segment(number, group.head);
            index.group(group.handle, last, entries);
        }
        let path = paths::index_path(shard_dir, number);
        steps_to_replace(&path, index.finish(), 0).iter().try_for_each(|step| step.run(files))?;
    }
    Ok(())
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

/// Removes segments at the end of a log that hold nothing, newest first: if it is interrupted, no
/// hole stays behind that looks as if a segment were missing.
///
/// # Errors
/// The system refused.
pub fn remove_unused(
    files: &mut impl Files,
    shard_dir: &Path,
    numbers: &[SegmentNumber],
) -> io::Result<()> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    for number in numbers.iter().rev() {
        remove_segments(files, shard_dir, &[*number])?;
    }
    Ok(())
}

/// Removes what an interrupted creation of a file or removal of a segment left.
///
/// # Errors
/// The system refused.
pub fn remove_temporaries(files: &mut impl Files, shard_dir: &Path) -> io::Result<()> {
    let names = files.list(shard_dir)?;
    let segments: Vec<_> = names.iter().filter_map(|name| paths::segment_number(name)).collect();
    for name in &names {
        let interrupted = name.strip_suffix(TEMPORARY).is_some_and(|name| {
            paths::segment_number(name).or(paths::indexed_segment(name)).is_some()
        });
        let orphan = paths::indexed_segment(name).is_some_and(|n| !segments.contains(&n));
        if interrupted || orphan || name == paths::SNAPSHOT_TEMPORARY {
            files.remove(&shard_dir.join(name))?;
        }
    }
    Ok(())
}

/// Gives segment files their names that an interrupted repair left without one, and returns
/// them. One whose name is taken meanwhile stays for the next repair.
///
/// # Errors
/// The system refused; what was not renamed is as it was.
pub fn finish_repair(files: &mut impl Files, shard_dir: &Path) -> io::Result<Vec<SegmentNumber>> {
    let names = files.list(shard_dir)?;
    let mut moved: Vec<_> = names.iter().filter_map(|name| paths::moved_segment(name)).collect();
    moved.retain(|number| !names.contains(&paths::segment_name(*number)));
    for number in &moved {
        let to = paths::segment_path(shard_dir, *number);
        files.rename_new(&paths::moved_path(shard_dir, *number), &to)?;
    }
    if !moved.is_empty() {
        files.sync_dir(shard_dir)?;
    }
    Ok(moved)
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
