//! Changes to segment files outside the live log: creating, removing, cutting off zeros.
//! Each can be interrupted at any point and leaves the log readable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::bytes_at::is_zero;
use super::paths;
use super::segment::SegmentHeader;
use crate::limits::LOG_BLOCK;
use crate::position::SegmentNumber;

const PIECE: usize = 1024 * 1024;
const TEMPORARY: &str = ".tmp";

/// Creates a segment file of `bytes` bytes: header block, then zeros, all on disk when this
/// returns. The file gets its name only when it is complete; an existing one is never
/// replaced.
///
/// # Errors
/// The disk is full, the file exists, or the system refused; the temporary file is removed.
pub fn create_segment_blocking(
    shard_dir: &Path,
    header: &SegmentHeader,
    bytes: u64,
) -> io::Result<()> {
    let path = paths::segment_path(shard_dir, header.number);
    let mut temporary = path.clone().into_os_string();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let created = write_zeroed(&temporary, header, bytes)
        .and_then(|()| rename_new(&temporary, &path))
        .and_then(|()| sync_dir(shard_dir));
    if created.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    created
}

fn write_zeroed(path: &Path, header: &SegmentHeader, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let block = header.encode();
    file.write_all(&block)?;
    let zeros = vec![0; PIECE];
    let mut left = bytes.saturating_sub(block.len() as u64);
    while left > 0 {
        let piece = left.min(PIECE as u64);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    file.sync_all()
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems know no such flag; only one process writes here.
        Err(rustix::io::Errno::INVAL) if !to.try_exists()? => fs::rename(from, to),
        other => Ok(other?),
    }
}

/// Removes segment files, oldest first, then syncs the directory. Files that are gone
/// already are no error.
///
/// # Errors
/// The system refused.
pub fn remove_segments(shard_dir: &Path, numbers: &[SegmentNumber]) -> io::Result<()> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    for number in numbers {
        match fs::remove_file(paths::segment_path(shard_dir, number)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    sync_dir(shard_dir)
}

/// Removes what an interrupted [`create_segment_blocking`] left.
///
/// # Errors
/// The system refused.
pub fn remove_temporaries(shard_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(shard_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let segment = name.to_str().and_then(|name| name.strip_suffix(TEMPORARY));
        if segment.and_then(paths::segment_number).is_some() {
            fs::remove_file(entry.path())?;
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
    shard_dir: &Path,
    number: SegmentNumber,
    bytes_used: u64,
) -> io::Result<u64> {
    let path = paths::segment_path(shard_dir, number);
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut keep = bytes_used.max(LOG_BLOCK as u64).next_multiple_of(LOG_BLOCK as u64);
    let mut at = keep;
    let mut buf = vec![0; PIECE];
    while at < len {
        let piece = (len - at).min(PIECE as u64) as usize;
        file.read_exact_at(&mut buf[..piece], at)?;
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
    file.set_len(keep)?;
    file.sync_all()?;
    Ok(keep)
}

/// Makes names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
