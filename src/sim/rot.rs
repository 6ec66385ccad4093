//! Bits that flip on the simulated disks, and what may be missing because of that.

use std::path::PathBuf;

use super::files::Entry;
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::limits::LOG_BLOCK;
use crate::wal::paths;

impl World {
    pub(super) fn plan_rot(&mut self) {
        let mean = self.config.trouble.rot_every_ms * 1_000_000;
        if mean > 0 && !self.calm {
            let after = self.rng.below(2 * mean);
            self.after(after, Due::Rot);
        }
    }

    /// A bit flips in some file of some shard. The oracle learns which messages lie there.
    pub(super) fn rot(&mut self) {
        self.plan_rot();
        let files: Vec<PathBuf> = {
            let inner = self.node.files.inner();
            let names = inner.names.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
            let parts = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.ends_with(".wal") || name.ends_with(".snap") || name.ends_with(".idx")
            };
            names.map(|(path, _)| path.clone()).filter(parts).collect()
        };
        if files.is_empty() {
            return;
        }
        let path = files[self.rng.index(files.len())].clone();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if paths::segment_number(name).is_none() {
            let fault =
                if name.ends_with(".idx") { Fault::RottenIndex } else { Fault::RottenSnapshot };
            let len = self.node.files.inner().file(&path).map_or(0, |file| file.data.len());
            if len > 0 {
                let at = self.rng.index(len);
                self.flip(&path, at, fault);
            }
            return;
        }
        let mut runs = Vec::new();
        self.node.files.runs(&path, |at, handle, first, last| runs.push((at, handle, first, last)));
        // What is written after its header was hit would be lost too: not the active segment,
        // and not the next one.
        let newer = files.iter().filter(|other| other.parent() == path.parent() && **other > path);
        let sealed = newer.filter(|other| other.extension() == path.extension()).count() >= 2;
        if runs.is_empty() && !sealed {
            return;
        }
        let header = runs.is_empty() || sealed && self.rng.chance(400_000);
        if header {
            for (_, handle, first, last) in &runs {
                self.oracle.damages(*handle, *first, *last);
            }
            let at = self.rng.index(LOG_BLOCK);
            return self.flip(&path, at, Fault::RottenHeader);
        }
        let tail = self.rng.chance(300_000);
        let index = if tail { runs.len() - 1 } else { self.rng.index(runs.len()) };
        let start = runs[index].0;
        let end = self.node.files.commit_end(&path, start);
        for (at, handle, first, last) in &runs {
            if *at == start {
                self.oracle.damages(*handle, *first, *last);
            }
        }
        let at = start as usize + self.rng.index((end - start).max(1) as usize);
        self.flip(&path, at, if tail { Fault::RottenTail } else { Fault::RottenCommit });
    }

    fn flip(&mut self, path: &std::path::Path, at: usize, fault: Fault) {
        let bit = 1 << self.rng.below(8);
        let mut inner = self.node.files.inner_mut();
        if let Ok(file) = inner.file_mut(path) {
            for data in [Some(&mut file.data), file.base.as_mut().map(|base| &mut base.0)] {
                if let Some(byte) = data.and_then(|data| data.get_mut(at)) {
                    *byte ^= bit;
                }
            }
        }
        drop(inner);
        self.oracle.rotten = true;
        self.oracle.fault(fault);
        self.note(Note::Fault(fault));
    }
}
