//! What the tool says about a data directory, as text and as JSON.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::damage::Damage;
use super::manifest::Manifest;
use super::recovered::{Recovered, RecoveredGroup, RecoveredSegment};
use crate::position::{LogId, SegmentNumber};

#[derive(Serialize)]
pub(super) struct Report {
    dir: String,
    format_version: u16,
    node_id: u16,
    starts: u32,
    /// False while a server runs.
    clean: bool,
    pub(super) sound: bool,
    shards: Vec<ShardReport>,
}

#[derive(Serialize)]
pub(super) struct ShardReport {
    shard: u16,
    /// The generation of logs; the highest is written to, the others are sealed.
    generation: u16,
    commits: u64,
    messages: u64,
    next_commit: u64,
    max_stamp: u64,
    segments: Vec<SegmentReport>,
    unused_segments: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<GroupReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    torn: Option<TornReport>,
    /// What the snapshot that is used covers; 0 without one.
    snapshot: u64,
    damaged_snapshots: Vec<SnapshotReport>,
    /// Segments without a valid index: the next start reads them.
    without_index: Vec<u64>,
    known_damage: Vec<DamageReport>,
    damage: Vec<DamageReport>,
}

#[derive(Serialize)]
struct SnapshotReport {
    covered: u64,
    text: String,
}

#[derive(Serialize)]
struct SegmentReport {
    segment: u64,
    bytes_used: u64,
    newest_ms: u64,
}

#[derive(Serialize)]
struct GroupReport {
    handle: String,
    group: String,
    epoch: u32,
    first: u64,
    head: u64,
    members: usize,
    keys: usize,
    producers: usize,
    receipts: usize,
}

#[derive(Serialize)]
struct TornReport {
    segment: u64,
    start: u64,
    end: u64,
    commit: u64,
}

#[derive(Serialize)]
struct DamageReport {
    segment: u64,
    start: u64,
    end: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_commits: Option<(u64, u64)>,
    text: String,
}

impl Report {
    pub(super) fn new(dir: &Path, manifest: &Manifest, shards: Vec<ShardReport>) -> Self {
        Self {
            dir: dir.display().to_string(),
            format_version: manifest.format_version,
            node_id: manifest.node.0,
            starts: manifest.starts.0,
            clean: manifest.clean,
            sound: shards.iter().all(ShardReport::is_sound),
            shards,
        }
    }

    pub(super) fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if !json {
            return self.write_text(out);
        }
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let stop =
            if self.clean { "stopped in good order" } else { "running, or stopped by a crash" };
        writeln!(
            out,
            "{}: format version {}, node {}, {} shards, {} starts, {stop}",
            self.dir,
            self.format_version,
            self.node_id,
            self.shards.len(),
            self.starts
        )?;
        for shard in &self.shards {
            shard.write_text(out)?;
        }
        let verdict = if self.sound { "no damage" } else { "DAMAGED" };
        writeln!(out, "{verdict}")
    }
}

impl ShardReport {
    pub(super) fn of(
        log: LogId,
        r: &Recovered,
        without_index: &[SegmentNumber],
        with_groups: bool,
    ) -> Self {
        let group = |g: &RecoveredGroup| GroupReport {
            handle: g.handle.to_string(),
            group: text_or_hex(&g.name),
            epoch: g.epoch.0,
            first: g.first.0,
            head: g.head.0,
            members: g.state.members.len(),
            keys: g.state.entries.values().filter(|entry| !entry.deleted).count(),
            producers: g.state.producers.len(),
            receipts: g.state.receipts.len(),
        };
        let segment = |s: &RecoveredSegment| SegmentReport {
            segment: s.number.0,
            bytes_used: s.bytes_used,
            newest_ms: s.newest_ms,
        };
        Self {
            shard: log.shard.0,
            generation: log.generation,
            commits: r.commits,
            messages: r.messages,
            next_commit: r.next_commit.0,
            max_stamp: r.max_stamp.0,
            segments: r.segments.iter().map(segment).collect(),
            unused_segments: r.unused.iter().map(|n| n.0).collect(),
            groups: with_groups.then(|| r.groups.iter().map(group).collect()),
            torn: r.torn.map(|t| TornReport {
                segment: t.segment.0,
                start: t.offset,
                end: t.end,
                commit: t.number.0,
            }),
            snapshot: r.snapshot.unwrap_or_default().0,
            damaged_snapshots: r
                .bad_snapshots
                .iter()
                .map(|(covered, fault)| SnapshotReport {
                    covered: covered.0,
                    text: fault.to_string(),
                })
                .collect(),
            without_index: without_index.iter().map(|n| n.0).collect(),
            known_damage: r.known_damage.iter().map(DamageReport::of).collect(),
            damage: r.damage.iter().map(DamageReport::of).collect(),
        }
    }

    fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.damaged_snapshots.is_empty()
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let generation = match self.generation {
            0 => String::new(),
            generation => format!("generation {generation}, "),
        };
        writeln!(
            out,
            "{}shard {}: {} commits, {} messages, next commit {}",
            generation, self.shard, self.commits, self.messages, self.next_commit
        )?;
        for s in &self.segments {
            writeln!(
                out,
                "  segment {}: {} bytes used, newest message at {} ms",
                s.segment, s.bytes_used, s.newest_ms
            )?;
        }
        for number in &self.unused_segments {
            writeln!(out, "  segment {number}: holds no commit yet")?;
        }
        for g in self.groups.iter().flatten() {
            writeln!(
                out,
                "  group {} handle {} epoch {} messages {} to {}; {} durable members, {} keys, \
                 {} producers, {} receipts",
                g.group,
                g.handle,
                g.epoch,
                g.first,
                g.head,
                g.members,
                g.keys,
                g.producers,
                g.receipts
            )?;
        }
        if let Some(t) = &self.torn {
            writeln!(
                out,
                "  torn tail (normal after a crash, or a write under way): segment {}, bytes {} \
                 to {}, commit {}",
                t.segment, t.start, t.end, t.commit
            )?;
        }
        if self.snapshot > 0 {
            writeln!(out, "  snapshot: covers commit {}", self.snapshot)?;
        }
        for snapshot in &self.damaged_snapshots {
            writeln!(
                out,
                "  DAMAGE: the snapshot that covers commit {}: {}; it is not used",
                snapshot.covered, snapshot.text
            )?;
        }
        for number in &self.without_index {
            writeln!(out, "  segment {number}: no valid index, the next start reads it")?;
        }
        for damage in &self.known_damage {
            writeln!(out, "  known damage, noted by a repair: {}", damage.text)?;
        }
        for damage in &self.damage {
            writeln!(out, "  DAMAGE: {}", damage.text)?;
        }
        Ok(())
    }
}

impl DamageReport {
    fn of(damage: &Damage) -> Self {
        Self {
            segment: damage.segment.0,
            start: damage.start,
            end: damage.end,
            lost_commits: damage.commits.map(|(first, last)| (first.0, last.0)),
            text: damage.to_string(),
        }
    }
}

/// Names are any bytes; those that are no plain text are shown as `0x` and hex digits.
pub(super) fn text_or_hex(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
