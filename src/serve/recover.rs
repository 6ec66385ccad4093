//! What happens to a shard's log before the shard starts: recover it, clear up, open the next
//! segment.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::ServeError;
use crate::config::ShardConfig;
use crate::limits::{LOG_BLOCK, SEGMENT_BYTES_MIN};
use crate::position::{Epoch, NodeId, SegmentNumber, ShardId};
use crate::shard::{Active, Job};
use crate::wal::{self, DataDir, DirSource, Manifest, Recovered, SegmentHeader};

/// Reads a shard's log and removes what cannot hold anything.
pub(super) fn recover(
    log_dir: &Path,
    manifest: &Manifest,
    id: ShardId,
) -> Result<Recovered, ServeError> {
    let log = |source| ServeError::Log { shard: id, path: log_dir.to_owned(), source };
    std::fs::create_dir_all(log_dir).map_err(log)?;
    wal::create::remove_temporaries(log_dir).map_err(log)?;
    let recovered = wal::recover(&mut DirSource::new(log_dir), manifest.node, id)
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
        let kept = wal::quarantine(log_dir, &recovered.damage).map_err(log)?;
        warn!(shard = id.0, ?kept, "damaged segments were kept for you");
    }
    wal::create::remove_segments(log_dir, &recovered.unused).map_err(log)?;
    // Files that cannot be used go when retention has passed them; quarantine keeps a link.
    let oldest = recovered.segments.first().map_or(recovered.next_segment, |s| s.number);
    let passed: Vec<_> = recovered.unusable.iter().copied().filter(|n| *n < oldest).collect();
    wal::create::remove_segments(log_dir, &passed).map_err(log)?;
    for segment in &recovered.segments {
        wal::create::truncate_sealed(log_dir, segment.number, segment.bytes_used).map_err(log)?;
    }
    Ok(recovered)
}

/// New epochs for whoever may have lost messages, durable before anyone is told.
pub(super) fn raise_epochs(
    data: &mut DataDir,
    mut manifest: Manifest,
    recovered: &[Recovered],
) -> Result<Manifest, ServeError> {
    let damaged = recovered.iter().any(|log| !log.damage.is_empty());
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
pub(super) fn first_segment(
    log_dir: &Path,
    manifest: &Manifest,
    shard: ShardId,
    recovered: &Recovered,
    config: &ShardConfig,
) -> io::Result<Active> {
    let number = SegmentNumber(recovered.next_segment.0.max(1));
    let salt = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), number);
    let bytes = config.segment_bytes.max(SEGMENT_BYTES_MIN);
    let created_ms = unix_ms();
    let header = SegmentHeader { node: manifest.node, shard, number, salt, bytes, created_ms };
    wal::create::create_segment_blocking(log_dir, &header, bytes)?;
    Ok(Active { number, salt })
}

/// The first block of a segment that the cold executor creates.
pub(super) fn segment_header(node: NodeId, shard: ShardId, job: &Job) -> [u8; LOG_BLOCK] {
    match job {
        Job::CreateSegment { number, salt, bytes } => SegmentHeader {
            node,
            shard,
            number: *number,
            salt: *salt,
            bytes: *bytes,
            created_ms: unix_ms(),
        }
        .encode(),
        Job::RemoveSegments { .. } => [0; LOG_BLOCK],
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
