//! `fanfare wal`: shows and checks a data directory. Takes no lock and changes nothing, so it
//! works beside a running server.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::commit::Commit;
use super::index::LogPos;
use super::manifest::{Manifest, ManifestError};
use super::recovered::Recovered;
use super::recovery::{RecoveryError, recover_places, recover_with};
use super::repair::repair;
use super::report::{Report, ShardReport, hex, text_or_hex};
use super::run::Run;
use super::segment_index::decode_index;
use super::source::{DirSource, LogSource};
use super::{Damage, paths};
use crate::position::{Level, LogId, SegmentNumber, ShardId};
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
    /// Put misplaced files in their place, move unusable ones to quarantine, note damage
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Repair {
        /// The data directory; no server may run on it with --apply
        dir: PathBuf,
        /// Say what would be done, and change nothing
        #[arg(long, group = "what")]
        dry_run: bool,
        /// Do it; nothing is ever deleted
        #[arg(long, group = "what")]
        apply: bool,
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
        WalCommand::Repair { dir, apply, .. } => {
            repair(dir, *apply, &mut out).map(|nothing| nothing || *apply)
        }
    };
    match done.and_then(|sound| Ok(out.flush().map(|()| sound)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGE),
        // Whoever read the output has seen enough.
        Err(ToolError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanfare wal: {error}");
            let damaged = matches!(error, ToolError::Manifest(ManifestError::Damaged { .. }));
            ExitCode::from(if damaged { EXIT_DAMAGE } else { EXIT_FAILED })
        }
    }
}

/// Writes what the directory holds to `out`.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn inspect(dir: &Path, json: bool, out: &mut impl Write) -> Result<(), ToolError> {
    Ok(report(dir, true)?.write(json, out)?)
}

/// Checks the directory, writes the findings to `out` and returns whether it is sound. A torn
/// tail is.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn verify(dir: &Path, json: bool, out: &mut impl Write) -> Result<bool, ToolError> {
    let report = report(dir, false)?;
    report.write(json, out)?;
    Ok(report.sound)
}

/// Writes every message of `group` to `out`, one JSON object a line, oldest first.
///
/// # Errors
/// A [`ToolError`]; damage in a log is none.
pub fn messages(dir: &Path, group: &[u8], out: &mut impl Write) -> Result<(), ToolError> {
    let manifest = manifest(dir)?;
    let mut written = Ok(());
    for log in manifest.logs() {
        let shard = log.shard;
        let mut source = DirSource::new(&paths::log_dir(dir, log));
        let mut show = |_: LogPos, _: &Commit<'_>, run: &Run<'_>| {
            if run.has_messages() && run.group == group && written.is_ok() {
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

fn report(dir: &Path, with_groups: bool) -> Result<Report, ToolError> {
    let manifest = manifest(dir)?;
    let shards = manifest
        .logs()
        .map(|log| {
            let recovered = look(dir, &manifest, log)?;
            let mut source = DirSource::new(&paths::log_dir(dir, log));
            let without_index = recovered.segments.iter().map(|segment| segment.number);
            let without_index: Vec<_> =
                without_index.filter(|number| !has_index(&mut source, *number)).collect();
            Ok(ShardReport::of(log, &recovered, &without_index, with_groups))
        })
        .collect::<Result<Vec<_>, ToolError>>()?;
    Ok(Report::new(dir, &manifest, shards))
}

fn has_index(source: &mut DirSource, number: SegmentNumber) -> bool {
    let index = source.index(number).ok().flatten();
    index.and_then(|bytes| decode_index(&bytes)).is_some_and(|(header, _)| header.number == number)
}

/// Reads every byte of the log of a shard; only damage that every look finds is reported.
fn look(dir: &Path, manifest: &Manifest, log: LogId) -> Result<Recovered, ToolError> {
    let shard = log.shard;
    let read = || {
        let mut source = DirSource::new(&paths::log_dir(dir, log));
        if log.generation == manifest.generation {
            recover_with(&mut source, manifest.node, shard, &mut |_, _, _| {})
        } else {
            recover_places(&mut source, manifest.node, shard, false)
        }
    };
    let mut found = read();
    for _ in 1..LOOKS {
        let before: Vec<Damage> = match &found {
            Ok(recovered) if recovered.damage.is_empty() => break,
            Ok(recovered) => recovered.damage.clone(),
            // Retention removed a segment between listing and reading.
            Err(
                RecoveryError::Read { source, .. } | RecoveryError::ReadSnapshot { source, .. },
            ) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => break,
        };
        thread::sleep(LOOK_AGAIN);
        let first_look = found.is_err();
        found = read();
        if let Ok(recovered) = &mut found
            && !first_look
        {
            recovered.damage.retain(|damage| before.contains(damage));
        }
    }
    found.map_err(|source| ToolError::Recovery { shard, source })
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
    #[serde(skip_serializing_if = "is_zero")]
    receipt: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(receipt: &u8) -> bool {
    *receipt == 0
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
            receipt: meta.receipt,
            payload_hex: text.is_none().then(|| hex(message.payload)),
            payload: text,
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
        rest = &rest[len..];
    }
    Ok(())
}

#[cfg(test)]
#[path = "tool_tests.rs"]
mod tests;
