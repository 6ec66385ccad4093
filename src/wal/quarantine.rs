//! Keeps damaged segment files for the operator.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::create::sync_dir;
use super::damage::Damage;
use super::paths;
use crate::position::SegmentNumber;

/// Gives every segment in `damage` a second name in the shard's `quarantine` folder, so that
/// retention cannot take it from the operator, and returns those names. The log is as before.
/// Segments that are there already, and those that are missing, are passed over.
///
/// # Errors
/// The system refused.
pub fn quarantine(shard_dir: &Path, damage: &[Damage]) -> io::Result<Vec<PathBuf>> {
    let mut numbers: Vec<SegmentNumber> = damage.iter().map(|d| d.segment).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let folder = shard_dir.join(paths::QUARANTINE);
    let mut linked = Vec::new();
    for number in numbers {
        let file = paths::segment_path(shard_dir, number);
        let inode = match fs::metadata(&file) {
            Ok(metadata) => metadata.ino(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        fs::create_dir_all(&folder)?;
        linked.extend(link(&file, inode, &folder, number)?);
    }
    if !linked.is_empty() {
        sync_dir(&folder)?;
        sync_dir(shard_dir)?;
    }
    Ok(linked)
}

/// Links under the segment's name, or with a counter behind it where another file has that.
fn link(
    file: &Path,
    inode: u64,
    folder: &Path,
    number: SegmentNumber,
) -> io::Result<Option<PathBuf>> {
    let mut name = paths::segment_name(number);
    for copy in 2.. {
        let target = folder.join(&name);
        match fs::hard_link(file, &target) {
            Ok(()) => return Ok(Some(target)),
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) if fs::metadata(&target)?.ino() == inode => return Ok(None),
            Err(_) => name = format!("{}.{copy}", paths::segment_name(number)),
        }
    }
    Ok(None)
}
