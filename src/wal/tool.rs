//! `fanfare wal`: shows and checks a data directory. Takes no lock and changes nothing, so it
//! works beside a running server.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::commit::{Commit, Run};
use super::index::LogPos;
use super::manifest::{Manifest, ManifestError};
use super::recovery::{Recovered, RecoveryError, recover, recover_with};
use super::source::DirSource;
use super::{Damage, paths};
use crate::position::{Level, ShardId};
use crate::wire::{self, ServerFrame};

/// A running server writes while this reads, which can look like damage. Real damage is still
/// there when one looks again.
const LOOKS: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const EXIT_DAMAGE: u8 = 1;
const EXIT_FAILED: u8 = 2;

/// Arguments of `fanfare wal`.
#[derive(Debug, Args)]
pub struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    /// Show what the logs of a data directory hold
    Inspect {
        /// The data directory
        dir: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Print the messages of this group instead, one JSON object a line
        #[arg(long, value_name = "GROUP", conflicts_with = "json")]
        messages: Option<String>,
    },
    /// Check every byte of the logs; exit code 1 if there is damage
    Verify {
        /// The data directory
        dir: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// Why the tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no manifest.
    #[error("{} has no manifest.toml; give the data directory of a server", .0.display())]
    NoManifest(PathBuf),
    /// A log could not be read.
    #[error("shard {shard}: {source}")]
    Recovery {
        /// The shard.
        shard: ShardId,
        /// What stopped it.
        source: RecoveryError,
    },
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the tool on standard output. Exit code 1 means damage, 2 that it could not look.
#[must_use]
pub fn run(args: &WalArgs) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match &args.command {
        WalCommand::Inspect { dir, messages: Some(group), .. } => {
            messages(dir, group.as_bytes(), &mut out).map(|()| true)
        }
        WalCommand::Inspect { dir, json, .. } => inspect(dir, *json, &mut out).map(|()| true),
        WalCommand::Verify { dir, json } => verify(dir, *json, &mut out),
    };
    match done.and_then(|sound| Ok(out.flush().map(|()| sound)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGE),
        // Whoever read the output has seen enough.
        Err(ToolError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanfare wal: {error}");
            let damaged = matches!(
                error,
                ToolError::Manifest(ManifestError::Damaged { .. } | ManifestError::Lost { .. })
            );
            ExitCode::from(if damaged { EXIT_DAMAGE } else { EXIT_FAILED })
        }
    }
}

/// Writes what the directory holds to `out`.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn inspect(dir: &Path, json: bool, out: &mut impl Write) -> Result<(), ToolError> {
    let report = Report::of(dir, true)?;
    if json { report.write_json(out) } else { report.write_text(out) }
}

/// Checks the directory, writes the findings to `out` and returns whether it is sound. A torn
/// tail is.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn verify(dir: &Path, json: bool, out: &mut impl Write) -> Result<bool, ToolError> {
    let report = Report::of(dir, false)?;
    if json {
        report.write_json(out)?
    } else {
        report.write_text(out)?
    }
    Ok(report.sound)
}

/// Writes every message of `group` to `out`, one JSON object a line, oldest first.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn messages(dir: &Path, group: &[u8], out: &mut impl Write) -> Result<(), ToolError> {
    let manifest = manifest(dir)?;
    let mut written = Ok(());
    for shard in (0..manifest.shards).map(ShardId) {
        let mut source = DirSource::new(&paths::shard_dir(dir, shard));
        let mut show = |_: LogPos, _: &Commit<'_>, run: &Run<'_>| {
            if run.group == group && written.is_ok() {
                written = write_messages(run, out);
            }
        };
        recover_with(&mut source, manifest.node, shard, &mut show)
            .map_err(|source| ToolError::Recovery { shard, source })?;
    }
    Ok(written?)
}

fn manifest(dir: &Path) -> Result<Manifest, ToolError> {
    Manifest::read(dir)?.ok_or_else(|| ToolError::NoManifest(dir.to_owned()))
}

/// Reads the log of a shard; only damage that every look finds is reported.
fn look(dir: &Path, manifest: &Manifest, shard: ShardId) -> Result<Recovered, ToolError> {
    let mut source = DirSource::new(&paths::shard_dir(dir, shard));
    let mut found = recover(&mut source, manifest.node, shard);
    for _ in 1..LOOKS {
        let before: Vec<Damage> = match &found {
            Ok(recovered) if recovered.damage.is_empty() => break,
            Ok(recovered) => recovered.damage.clone(),
            // Retention removed a segment between listing and reading.
            Err(RecoveryError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(_) => break,
        };
        thread::sleep(LOOK_AGAIN);
        let mut source = DirSource::new(&paths::shard_dir(dir, shard));
        let first_look = found.is_err();
        found = recover(&mut source, manifest.node, shard);
        if let Ok(recovered) = &mut found
            && !first_look
        {
            recovered.damage.retain(|damage| before.contains(damage));
        }
    }
    found.map_err(|source| ToolError::Recovery { shard, source })
}

#[derive(Serialize)]
struct Report {
    dir: String,
    format_version: u16,
    node_id: u16,
    starts: u32,
    /// False while a server runs.
    clean: bool,
    sound: bool,
    shards: Vec<ShardReport>,
}

#[derive(Serialize)]
struct ShardReport {
    shard: u16,
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
    damage: Vec<DamageReport>,
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
    fn of(dir: &Path, with_groups: bool) -> Result<Self, ToolError> {
        let manifest = manifest(dir)?;
        let shards = (0..manifest.shards)
            .map(|shard| {
                let recovered = look(dir, &manifest, ShardId(shard))?;
                Ok(ShardReport::of(shard, &recovered, with_groups))
            })
            .collect::<Result<Vec<_>, ToolError>>()?;
        Ok(Self {
            dir: dir.display().to_string(),
            format_version: manifest.format_version,
            node_id: manifest.node.0,
            starts: manifest.starts.0,
            clean: manifest.clean,
            sound: shards.iter().all(|shard| shard.damage.is_empty()),
            shards,
        })
    }

    fn write_json(&self, out: &mut impl Write) -> Result<(), ToolError> {
        serde_json::to_writer_pretty(&mut *out, self).map_err(io::Error::from)?;
        Ok(writeln!(out)?)
    }

    fn write_text(&self, out: &mut impl Write) -> Result<(), ToolError> {
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
        Ok(writeln!(out, "{verdict}")?)
    }
}

impl ShardReport {
    fn of(shard: u16, r: &Recovered, with_groups: bool) -> Self {
        let group = |g: &super::RecoveredGroup| GroupReport {
            handle: g.handle.to_string(),
            group: text_or_hex(&g.name),
            epoch: g.epoch.0,
            first: g.first.0,
            head: g.head.0,
        };
        let segment = |s: &super::RecoveredSegment| SegmentReport {
            segment: s.number.0,
            bytes_used: s.bytes_used,
            newest_ms: s.newest_ms,
        };
        Self {
            shard,
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
            damage: r.damage.iter().map(DamageReport::of).collect(),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "shard {}: {} commits, {} messages, next commit {}",
            self.shard, self.commits, self.messages, self.next_commit
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
                "  group {} handle {} epoch {} messages {} to {}",
                g.group, g.handle, g.epoch, g.first, g.head
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

#[derive(Serialize)]
struct MessageLine {
    seq: u64,
    epoch: u32,
    stamp: u64,
    sender: String,
    producer: String,
    producer_seq: u64,
    level: Level,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
}

fn write_messages(run: &Run<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut rest = run.frames;
    for meta in run.metas() {
        let Ok(Some((frame, len))) = wire::split(rest, rest.len()) else { break };
        let Ok(ServerFrame::Deliver(message)) = ServerFrame::decode(frame) else { break };
        let text = str::from_utf8(message.payload).ok().map(str::to_owned);
        let line = MessageLine {
            seq: message.seq.0,
            epoch: run.epoch.0,
            stamp: message.stamp.0,
            sender: text_or_hex(message.sender),
            producer: hex(&meta.producer),
            producer_seq: meta.producer_seq,
            level: meta.level,
            payload_hex: text.is_none().then(|| hex(message.payload)),
            payload: text,
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
        rest = &rest[len..];
    }
    Ok(())
}

/// Names are any bytes; those that are no plain text are shown as `0x` and hex digits.
fn text_or_hex(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[path = "tool_tests.rs"]
mod tests;
