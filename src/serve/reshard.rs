//! Another number of shards than before. No history is rewritten: the logs so far become a
//! sealed generation, which is read in place until retention has removed it. What else there
//! is of each group goes into a snapshot in the log of its new owner.
//!
//! Each step can be interrupted. Until the manifest names the new generation, the next start
//! finds the old one as it was; from then on it finds all it needs in the new one.

use std::collections::HashMap;
use std::path::Path;

use tracing::{info, warn};

use super::ServeError;
use crate::position::{CommitNumber, Handle, LogId, ShardId};
use crate::shard::owner_of;
use crate::wal::files::steps_to_replace;
use crate::wal::snapshot::encode_snapshot;
use crate::wal::{
    self, DataDir, DirSource, Files, IndexEntry, LogPos, Manifest, Recovered, RecoveredGroup,
    SealedSegment, Snapshot, SnapshotGroup, SnapshotHeader, paths,
};

/// What sealed generations hold.
#[derive(Debug, Default)]
pub(super) struct Sealed {
    /// Their segments, oldest first.
    pub segments: Vec<SealedSegment>,
    /// Where each group's messages are in them.
    pub places: HashMap<Handle, Vec<IndexEntry>>,
    /// Something of them is damaged.
    pub damaged: bool,
}

/// Reads where messages are in sealed generations, and forgets those that are used up.
pub(super) fn read_sealed<F: Files>(
    files: &mut F,
    data: &mut DataDir<F>,
    manifest: &mut Manifest,
) -> Result<Sealed, ServeError> {
    let mut sealed = Sealed::default();
    let mut used: Vec<u16> = Vec::new();
    for log in manifest.sealed_logs() {
        let dir = paths::log_dir(data.path(), log);
        let failed = |source| ServeError::Log { shard: log.shard, path: dir.clone(), source };
        wal::create::remove_temporaries(files, &dir).map_err(failed)?;
        let mut source = DirSource::on(files.clone(), &dir);
        let recovered = wal::recover_places(&mut source, manifest.node, log.shard, true)
            .map_err(|source| ServeError::Recovery { shard: log.shard, source })?;
        for damage in &recovered.damage {
            let generation = log.generation;
            warn!(
                generation,
                shard = log.shard.0,
                ?damage,
                "a sealed log is damaged here; its messages are announced as missing"
            );
        }
        if !recovered.damage.is_empty() {
            sealed.damaged = true;
            let kept = wal::quarantine(files, &dir, &recovered.damage).map_err(failed)?;
            warn!(
                generation = log.generation,
                shard = log.shard.0,
                ?kept,
                "damaged segments were kept for you"
            );
        }
        wal::create::write_indices(files, &dir, manifest.node, log.shard, &recovered)
            .map_err(failed)?;
        if !recovered.segments.is_empty() {
            used.push(log.generation);
        }
        take(&mut sealed, log, &recovered);
    }
    let gone: Vec<u16> = manifest.sealed.iter().map(|(generation, _)| *generation).collect();
    let gone: Vec<u16> = gone.into_iter().filter(|g| !used.contains(g)).collect();
    for log in manifest.sealed_logs().filter(|log| gone.contains(&log.generation)) {
        clear(files, &paths::log_dir(data.path(), log)).map_err(|source| ServeError::Log {
            shard: log.shard,
            path: data.path().into(),
            source,
        })?;
        info!(generation = log.generation, shard = log.shard.0, "nothing is left of a sealed log");
    }
    data.forget_generations(&gone)?;
    manifest.sealed.retain(|(generation, _)| !gone.contains(generation));
    Ok(sealed)
}

fn take(sealed: &mut Sealed, log: LogId, recovered: &Recovered) {
    for segment in &recovered.segments {
        let number = segment.number.sealed(log);
        sealed.segments.push(SealedSegment { number, info: segment.info() });
    }
    for group in &recovered.groups {
        let places = sealed.places.entry(group.handle).or_default();
        for entry in group.index.entries() {
            let segment = entry.pos.segment.sealed(log);
            places.push(IndexEntry { pos: LogPos { segment, ..entry.pos }, ..*entry });
        }
    }
}

/// Removes snapshots and indices that a log without segments has left.
fn clear(files: &mut impl Files, dir: &Path) -> std::io::Result<()> {
    for name in files.list(dir)? {
        let snapshot = paths::snapshot_commit(&name).is_some() || name == paths::BASE_COPY;
        if snapshot || paths::indexed_segment(&name).is_some() {
            files.remove(&dir.join(name))?;
        }
    }
    files.sync_dir(dir)
}

/// Seals the logs that were written to so far and puts what their groups are into new ones.
pub(super) fn reshard<F: Files>(
    files: &mut F,
    data: &mut DataDir<F>,
    manifest: Manifest,
    recovered: Vec<Recovered>,
) -> Result<Manifest, ServeError> {
    let (before, shards) = (manifest.shards, data.asked());
    let generation = manifest.generation + 1;
    info!(
        before,
        now = shards,
        generation,
        "the number of shards changes: the logs so far are sealed and read in place until \
         retention removes them"
    );
    let max_stamp = recovered.iter().map(|log| log.max_stamp).max().unwrap_or_default();
    let max_epoch = recovered.iter().map(|log| log.max_epoch).max().unwrap_or_default();
    let mut snapshots: Vec<Snapshot> = (0..shards)
        .map(|shard| {
            let (node, shard) = (manifest.node, ShardId(shard));
            let covered = CommitNumber(0);
            let header = SnapshotHeader { node, shard, covered, max_stamp, max_epoch };
            Snapshot { header, groups: Vec::new() }
        })
        .collect();
    for group in recovered.into_iter().flat_map(|log| log.groups) {
        if group.is_unused() {
            continue;
        }
        let owner = owner_of(&group.name, manifest.hash_seed, shards);
        let RecoveredGroup { handle, name, epoch, first, head, used_memory, state, .. } = group;
        let first_kept = first;
        let group = SnapshotGroup { name, handle, epoch, head, first_kept, used_memory };
        snapshots[usize::from(owner.0)].groups.push((group, state));
    }
    for snapshot in snapshots {
        let shard = snapshot.header.shard;
        let dir = paths::log_dir(data.path(), LogId { generation, shard });
        let failed = |source| ServeError::Log { shard, path: dir.clone(), source };
        data.create_dir(&dir)?;
        let path = paths::snapshot_path(&dir, snapshot.header.covered);
        let groups = snapshot.groups.len();
        let bytes = encode_snapshot(&snapshot);
        // Twice: nothing else in the new log says what its groups had before.
        for (path, bytes) in [(dir.join(paths::BASE_COPY), bytes.clone()), (path, bytes)] {
            steps_to_replace(&path, bytes, 0)
                .iter()
                .try_for_each(|step| step.run(files))
                .map_err(failed)?;
        }
        info!(shard = shard.0, generation, groups, "wrote what a shard starts from");
    }
    data.begin_generation(shards)?;
    info!(generation, shards, "the new logs are in force");
    let mut sealed = manifest.sealed;
    sealed.push((manifest.generation, before));
    Ok(Manifest { shards, generation, sealed, ..manifest })
}

#[cfg(test)]
#[path = "reshard_tests.rs"]
mod tests;
