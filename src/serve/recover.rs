//! What happens to a shard's log before the shard starts: recover it, clear up, open the next
//! segment.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::ServeError;
use super::reshard::{read_sealed, reshard};
use crate::config::ShardConfig;
use crate::limits::SEGMENT_BYTES_MIN;
use crate::position::{Epoch, NodeId, SegmentNumber, ShardId};
use crate::shard::{Active, Job};
use crate::wal::{self, DataDir, DirSource, Files, Manifest, Recovered, SegmentHeader, Step};

/// Reads a shard's log and removes what cannot hold anything.
fn recover(
    files: &mut impl Files,
    log_dir: &Path,
    manifest: &Manifest,
    id: ShardId,
) -> Result<Recovered, ServeError> {
    let log = |source| ServeError::Log { shard: id, path: log_dir.to_owned(), source };
    files.create_dir(log_dir).map_err(log)?;
    let finished = wal::create::finish_repair(files, log_dir).map_err(log)?;
    if !finished.is_empty() {
        warn!(shard = id.0, ?finished, "a repair was interrupted; these segments have their names");
    }
    wal::create::remove_temporaries(files, log_dir).map_err(log)?;
    let recovered = wal::recover(&mut DirSource::on(files.clone(), log_dir), manifest.node, id)
        .map_err(|source| ServeError::Recovery { shard: id, source })?;
    if let Some(torn) = &recovered.torn {
        info!(
            shard = id.0,
            ?torn,
            "the last write was cut off by the crash; nothing of it was acknowledged"
        );
    }
    for damage in &recovered.damage {
        warn!(
            shard = id.0,
            ?damage,
            "the log is damaged here; its messages are announced as missing"
        );
    }
    if !recovered.damage.is_empty() {
        let kept = wal::quarantine(files, log_dir, &recovered.damage).map_err(log)?;
        warn!(shard = id.0, ?kept, "damaged segments were kept for you");
    }
    for (covered, fault) in &recovered.bad_snapshots {
        let kept = wal::quarantine_snapshot(files, log_dir, *covered).map_err(log)?;
        warn!(
            shard = id.0,
            covered = covered.0,
            %fault,
            kept = %kept.display(),
            used = recovered.snapshot.unwrap_or_default().0,
            "a snapshot is damaged; the one before it and the log are used"
        );
    }
    wal::create::remove_unused(files, log_dir, &recovered.unused).map_err(log)?;
    // Files that cannot be used go when retention has passed them; quarantine keeps a link.
    let oldest = recovered.segments.first().map_or(recovered.next_segment, |s| s.number);
    let passed: Vec<_> = recovered.unusable.iter().copied().filter(|n| *n < oldest).collect();
    wal::create::remove_segments(files, log_dir, &passed).map_err(log)?;
    for segment in &recovered.segments {
        wal::create::truncate_sealed(files, log_dir, segment.number, segment.bytes_used)
            .map_err(log)?;
    }
    wal::create::write_indices(files, log_dir, manifest.node, id, &recovered).map_err(log)?;
    Ok(recovered)
}

/// Reads all logs of a data directory and raises epochs where something may be lost.
pub(crate) fn recover_all<F: Files>(
    files: &mut F,
    data: &mut DataDir<F>,
    manifest: Manifest,
) -> Result<(Manifest, Vec<Recovered>), ServeError> {
    let (manifest, recovered) = recover_generation(files, data, manifest)?;
    if data.asked() == manifest.shards {
        return Ok((manifest, recovered));
    }
    let manifest = reshard(files, data, manifest, recovered)?;
    recover_generation(files, data, manifest)
}

fn recover_generation<F: Files>(
    files: &mut F,
    data: &mut DataDir<F>,
    mut manifest: Manifest,
) -> Result<(Manifest, Vec<Recovered>), ServeError> {
    let sealed = read_sealed(files, data, &mut manifest)?;
    let mut recovered = Vec::new();
    for id in (0..manifest.shards).map(ShardId) {
        let mut log = recover(files, &data.shard_dir(id), &manifest, id)?;
        if !sealed.segments.is_empty() {
            log.follow(manifest.generation, &sealed.segments, &sealed.places);
        }
        recovered.push(log);
    }
    Ok((raise_epochs(data, manifest, &recovered, sealed.damaged)?, recovered))
}

/// New epochs for whoever may have lost messages, durable before anyone is told.
fn raise_epochs<F: Files>(
    data: &mut DataDir<F>,
    mut manifest: Manifest,
    recovered: &[Recovered],
    sealed_damaged: bool,
) -> Result<Manifest, ServeError> {
    let damaged = sealed_damaged || recovered.iter().any(|log| !log.damage.is_empty());
    let highest = recovered.iter().map(|log| log.max_epoch).max().unwrap_or_default();
    let epoch = manifest.starts.max(Epoch(highest.0 + u32::from(highest >= manifest.starts)));
    let all = if damaged { epoch } else { manifest.epoch_floor };
    let memory = if manifest.clean { manifest.memory_epoch_floor } else { epoch };
    if all != manifest.epoch_floor || memory != manifest.memory_epoch_floor {
        data.raise_epoch_floors(all, memory)?;
    }
    manifest.epoch_floor = all;
    manifest.memory_epoch_floor = memory;
    Ok(manifest)
}

/// Creates the segment that this start writes to.
pub(crate) fn first_segment(
    files: &mut impl Files,
    log_dir: &Path,
    manifest: &Manifest,
    shard: ShardId,
    recovered: &Recovered,
    made: Made,
) -> io::Result<Active> {
    let number = SegmentNumber(recovered.next_segment.0.max(1));
    let Made { salt, bytes, created_ms } = made;
    let header = SegmentHeader { node: manifest.node, shard, number, salt, bytes, created_ms };
    wal::create::create_segment_blocking(files, log_dir, &header, bytes)?;
    Ok(Active { number, salt })
}

/// What a new segment is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub salt: u64,
    pub bytes: u64,
    pub created_ms: u64,
}

impl Made {
    /// A new salt, now.
    pub fn now(config: &ShardConfig) -> Self {
        let random = std::hash::RandomState::new();
        Self {
            salt: std::hash::BuildHasher::hash_one(&random, config.segment_bytes),
            bytes: config.segment_bytes.max(SEGMENT_BYTES_MIN),
            created_ms: unix_ms(),
        }
    }
}

/// The steps of a job of a shard.
pub(crate) fn steps(
    job: &Job,
    log_dir: &Path,
    node: NodeId,
    shard: ShardId,
    created_ms: u64,
) -> Vec<Step> {
    match job {
        Job::CreateSegment { number, salt, bytes } => {
            let (number, salt, bytes) = (*number, *salt, *bytes);
            let header = SegmentHeader { node, shard, number, salt, bytes, created_ms };
            wal::create::steps_to_create(log_dir, number, &header.encode(), bytes)
        }
        Job::WriteIndex { number, bytes } => wal::files::steps_to_replace(
            &wal::paths::index_path(log_dir, *number),
            bytes.to_vec(),
            0,
        ),
        Job::WriteSnapshot { at, bytes } => wal::create::steps_to_snapshot(log_dir, *at, bytes),
        Job::EndSnapshot { covered, at, bytes, obsolete } => {
            wal::create::steps_to_end_snapshot(log_dir, *covered, (*at, bytes), obsolete)
        }
        Job::RemoveSegments { numbers } => wal::create::steps_to_remove(log_dir, numbers),
    }
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
