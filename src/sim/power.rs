//! What is on the simulated disk when the power comes back, and log writes, which go around
//! the cache.

use std::path::Path;

use super::files::{Entry, Inner, Inode, LogWrite, NameChange, SimFiles};
use super::rng::Rng;
use super::trace::Fault;
use crate::limits::{LOG_BLOCK, LOG_SECTOR};
use crate::ring::LogBuf;

/// What is left of a log write that did not complete.
pub(super) struct Torn {
    pub buf: LogBuf,
    /// Sectors that are on disk.
    pub there: usize,
    /// Sectors that it had.
    pub sectors: usize,
    /// One is there and an earlier one is not.
    pub reordered: bool,
}

impl SimFiles {
    /// Starts a log write of a shard.
    pub fn begin_write(&self, shard: usize, path: &Path, offset: u64, buf: LogBuf) {
        let mut inner = self.inner_mut();
        let (len, written) =
            inner.file(path).map_or((0, 0), |file| (file.len, file.data.len() as u64));
        let bytes = buf.len() as u64;
        assert!(offset + bytes <= len, "write of {bytes} bytes at {offset} of {}", path.display());
        assert!(offset.is_multiple_of(LOG_BLOCK as u64) && buf.len().is_multiple_of(LOG_BLOCK));
        assert!(offset >= written, "an acknowledged block of {} is written again", path.display());
        let write = LogWrite { path: path.to_owned(), offset, buf };
        assert!(inner.writing.insert(shard, write).is_none(), "two log writes in flight");
    }

    /// The log write of a shard is on disk as a whole.
    pub fn finish_write(&self, shard: usize) -> Option<LogBuf> {
        let mut inner = self.inner_mut();
        let write = inner.writing.remove(&shard)?;
        if let Ok(file) = inner.file_mut(&write.path) {
            file.put(write.offset, write.buf.as_slice());
        }
        Some(write.buf)
    }

    /// The log write failed or the machine died: each sector is there or not.
    pub fn tear_write(&self, shard: usize, rng: &mut Rng) -> Option<Torn> {
        let mut inner = self.inner_mut();
        let write = inner.writing.remove(&shard)?;
        let sectors = write.buf.len() / LOG_SECTOR;
        // All, none, the first, the last, and any subset are all worth having.
        let shape = rng.below(8);
        let cut = rng.index(sectors + 1);
        let (mut there, mut lost, mut reordered) = (0, false, false);
        for (index, sector) in write.buf.as_slice().chunks_exact(LOG_SECTOR).enumerate() {
            let keep = match shape {
                0 => true,
                1 => false,
                2 | 3 => index < cut,
                4 => index >= cut,
                _ => rng.flip(),
            };
            if keep && let Ok(file) = inner.file_mut(&write.path) {
                there += 1;
                reordered |= lost;
                file.put(write.offset + (index * LOG_SECTOR) as u64, sector);
            } else {
                lost = true;
            }
        }
        Some(Torn { buf: write.buf, there, sectors, reordered })
    }

    /// What a log read returns; `None` if the file is not there. Of a write in flight it may
    /// see nothing, all, or any sectors.
    pub fn read_log(
        &self,
        shard: usize,
        path: &Path,
        offset: u64,
        len: usize,
        rng: &mut Rng,
    ) -> Option<LogBuf> {
        let inner = self.inner();
        let file = inner.file(path).ok()?;
        let len = len.min(file.len.saturating_sub(offset) as usize);
        let mut buf = LogBuf::with_capacity(len);
        buf.set_len(len);
        Inner::copy(file, offset, buf.as_mut_slice());
        if let Some(write) = inner.writing.get(&shard).filter(|write| write.path == path) {
            let share = [0, 500_000, 1_000_000][rng.index(3)];
            for (index, sector) in write.buf.as_slice().chunks_exact(LOG_SECTOR).enumerate() {
                let at = write.offset + (index * LOG_SECTOR) as u64;
                if at >= offset && at < offset + len as u64 && rng.chance(share) {
                    let at = (at - offset) as usize;
                    buf.as_mut_slice()[at..at + LOG_SECTOR].copy_from_slice(sector);
                }
            }
        }
        Some(buf)
    }

    /// The power went and comes back: of what was not synced, anything may be there. Log
    /// writes in flight must have been torn before.
    pub fn power_cut(&self) {
        let mut inner = self.inner_mut();
        let inner = &mut *inner;
        inner.dead = false;
        inner.lose_names();
        let names = inner.durable.clone();
        inner.names = names;
        let mut lost = 0;
        for inode in inner.inodes.values_mut() {
            lost += u64::from(inode.lose_bytes(&mut inner.rng));
        }
        inner.happened.extend((0..lost).map(|_| Fault::UnsyncedLost));
        let used: Vec<u64> = inner
            .names
            .values()
            .filter_map(|entry| if let Entry::File(id) = entry { Some(*id) } else { None })
            .collect();
        inner.inodes.retain(|id, _| used.contains(id));
    }
}

impl Inner {
    /// In each directory, changes survive up to some point in their order. Removals may have
    /// another point than the rest: a file system need not keep the order of names that have
    /// nothing to do with each other.
    fn lose_names(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let apart = self.rng.flip();
        let order_of = |change: &NameChange| {
            let removes = apart && matches!(change, NameChange::Remove(_));
            (change.dir().map(Path::to_owned), removes)
        };
        let mut orders: Vec<_> = pending.iter().map(order_of).collect();
        orders.sort();
        orders.dedup();
        let mut left: Vec<_> = orders
            .iter()
            .map(|order| {
                let count = pending.iter().filter(|change| order_of(change) == *order).count();
                match self.rng.below(3) {
                    0 => 0,
                    1 => count,
                    _ => self.rng.index(count + 1),
                }
            })
            .collect();
        let mut lost = Vec::new();
        for change in pending {
            let order = order_of(&change);
            let Some(at) = orders.iter().position(|other| *other == order) else { continue };
            // Of one name, the first change comes first.
            let follows = change.paths().any(|path| lost.contains(&path.to_owned()));
            if left[at] > 0 && !follows {
                left[at] -= 1;
                change.apply(&mut self.durable);
            } else {
                lost.extend(change.paths().map(Path::to_owned));
                let renames = matches!(change, NameChange::Rename(..));
                self.happened.push(if renames { Fault::RenameLost } else { Fault::NameLost });
            }
        }
        // What is in a directory that is gone is gone; a directory comes before what it holds.
        let mut kept = std::collections::BTreeMap::new();
        for (path, entry) in std::mem::take(&mut self.durable) {
            if path.parent().is_none_or(|dir| kept.get(dir) == Some(&Entry::Dir)) {
                kept.insert(path, entry);
            }
        }
        self.durable = kept;
    }
}

impl Inode {
    /// Each sector that was not synced is the old one or the new one; whether any was.
    fn lose_bytes(&mut self, rng: &mut Rng) -> bool {
        let Some((base, base_len)) = self.base.take() else { return false };
        self.forgotten = false;
        let len = match rng.below(4) {
            0 => base_len,
            1 => self.len,
            _ => {
                let (low, high) = (base_len.min(self.len), base_len.max(self.len));
                (rng.between(low, high) / LOG_SECTOR as u64 * LOG_SECTOR as u64).max(low)
            }
        };
        let shape = rng.below(4);
        let count = self.data.len().max(base.len());
        let mut data = vec![0; count];
        for at in (0..count).step_by(LOG_SECTOR) {
            let keep = match shape {
                0 => false,
                1 => true,
                _ => rng.flip(),
            };
            let from = if keep { &self.data } else { &base };
            let end = (at + LOG_SECTOR).min(from.len());
            if at < end {
                data[at..end].copy_from_slice(&from[at..end]);
            }
        }
        data.truncate(len as usize);
        self.data = data;
        self.len = len;
        true
    }
}
