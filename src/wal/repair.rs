//! `fanfare wal repair`: puts misplaced files where they belong, moves aside what cannot be
//! used, and notes the damage that is left, so that it is loud only once. Nothing is ever
//! dropped, and nothing that can be read is touched.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::create;
use super::files::{Files, RealFiles, TEMPORARY, steps_to_replace};
use super::manifest::{DataDir, Manifest};
use super::recovered::Recovered;
use super::recovery::{recover_places, recover_with};
use super::segment::SegmentHeader;
use super::segment_index::decode_index;
use super::source::{DirSource, LogSource};
use super::tool::ToolError;
use super::{RecoveryError, paths};
use crate::limits::LOG_BLOCK;
use crate::position::{Epoch, LogId, NodeId, SegmentNumber};

/// What is done about something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// The file has the name of another segment.
    Rename(SegmentNumber, SegmentNumber),
    /// A repair was interrupted before the file got its name.
    Finish(SegmentNumber),
    /// The file cannot be used; it goes to the quarantine folder.
    Aside(PathBuf, String),
    /// The index is made again.
    Index(SegmentNumber),
    /// The damage is noted as known.
    Note(String),
}

/// Looks for what can be repaired in `dir` and writes it to `out`; with `apply` it is done.
/// Returns whether there was nothing to do.
///
/// # Errors
/// A [`ToolError`]; a server runs on the directory, or the system refused.
pub fn repair(dir: &Path, apply: bool, out: &mut impl Write) -> Result<bool, ToolError> {
    let manifest = Manifest::read(dir)?.ok_or_else(|| ToolError::NoManifest(dir.to_owned()))?;
    // The lock keeps servers out meanwhile; a look needs none.
    let mut data = if apply { Some(DataDir::lock(dir)?) } else { None };
    let (mut found, mut lost) = (0, false);
    for log in manifest.logs() {
        let log_dir = paths::log_dir(dir, log);
        let mut files = RealFiles::default();
        let read = |source| ToolError::Recovery { shard: log.shard, source };
        let failed = |source| read(RecoveryError::List(source));
        // Files first: what they really are decides what damage is left.
        let mut moves = misplaced(&mut files, &log_dir, manifest.node, log).map_err(failed)?;
        if apply {
            tell(out, log, &moves, "")?;
            carry_out(&mut files, &log_dir, &moves).map_err(failed)?;
            found += moves.len();
            moves.clear();
        }
        // After that, since one that has no name may wait for one that is taken.
        moves.extend(interrupted(&mut files, &log_dir, &moves).map_err(failed)?);
        if apply {
            tell(out, log, &moves, "")?;
            carry_out(&mut files, &log_dir, &moves).map_err(failed)?;
            found += moves.len();
            moves.clear();
        }
        let recovered = look(&log_dir, &manifest, log).map_err(read)?;
        let misplaced_now: Vec<_> = moves.iter().filter_map(Action::segment).collect();
        let mut actions = moves;
        let unusable = recovered.unusable.iter().filter(|n| !misplaced_now.contains(n));
        for number in unusable {
            let why = recovered.damage.iter().find(|damage| damage.segment == *number);
            let why = why.map_or_else(String::new, |damage| damage.kind.to_string());
            actions.push(Action::Aside(paths::segment_path(&log_dir, *number), why));
        }
        for (covered, fault) in &recovered.bad_snapshots {
            let path = paths::snapshot_path(&log_dir, *covered);
            actions.push(Action::Aside(path, format!("the snapshot cannot be used: {fault}")));
        }
        leftovers(&mut files, &log_dir, &recovered, &mut actions).map_err(failed)?;
        if apply {
            carry_out(&mut files, &log_dir, &actions).map_err(failed)?;
            let after = look(&log_dir, &manifest, log).map_err(read)?;
            create::write_indices(&mut files, &log_dir, manifest.node, log.shard, &after)
                .map_err(failed)?;
            lost |= !after.damage.is_empty();
            let notes: Vec<_> = after.damage.iter().map(|d| Action::Note(d.to_string())).collect();
            note(&mut files, &log_dir, &after).map_err(failed)?;
            actions.extend(notes);
        } else {
            let noted = recovered.damage.iter().filter(|damage| {
                !misplaced_now.contains(&damage.segment)
                    && !recovered.unusable.contains(&damage.segment)
            });
            actions.extend(noted.map(|damage| Action::Note(damage.to_string())));
        }
        found += actions.len();
        tell(out, log, &actions, if apply { "" } else { "would: " })?;
    }
    if lost && let Some(data) = &mut data {
        let next = Epoch(manifest.starts.0 + 1);
        data.raise_epoch_floors(next, next)?;
        writeln!(out, "all groups begin epoch {next} or a later one with the next start")?;
    }
    let end = match (found, apply) {
        (0, _) => "nothing to repair".to_owned(),
        (n, true) => format!("{n} repairs done"),
        (n, false) => format!("{n} repairs to do; nothing was changed, run again with --apply"),
    };
    writeln!(out, "{end}")?;
    Ok(found == 0)
}

fn look(log_dir: &Path, manifest: &Manifest, log: LogId) -> Result<Recovered, RecoveryError> {
    let mut source = DirSource::new(log_dir);
    if log.generation == manifest.generation {
        recover_with(&mut source, manifest.node, log.shard, &mut |_, _, _| {})
    } else {
        recover_places(&mut source, manifest.node, log.shard, false)
    }
}

/// Segment files that an interrupted repair left between two names.
fn interrupted(files: &mut RealFiles, dir: &Path, moves: &[Action]) -> io::Result<Vec<Action>> {
    let names = files.list(dir)?;
    let number = |name: &String| paths::moved_segment(name);
    let leaves = |number| moves.iter().any(|action| action.segment() == Some(number));
    let taken =
        |number: &SegmentNumber| names.contains(&paths::segment_name(*number)) && !leaves(*number);
    let action = |number: SegmentNumber| match taken(&number) {
        false => Action::Finish(number),
        true => {
            let why = format!("a repair was interrupted, and segment {number} is there meanwhile");
            Action::Aside(paths::moved_path(dir, number), why)
        }
    };
    Ok(names.iter().filter_map(number).map(action).collect())
}

/// Segment files whose header says that they are another segment of the same log.
fn misplaced(
    files: &mut RealFiles,
    dir: &Path,
    node: NodeId,
    log: LogId,
) -> io::Result<Vec<Action>> {
    let mut actions = Vec::new();
    let mut numbers = DirSource::new(dir).segments()?;
    numbers.sort_unstable();
    let header = |files: &mut RealFiles, number: SegmentNumber| {
        let mut block = vec![0; LOG_BLOCK];
        let filled = files.read(&paths::segment_path(dir, number), 0, &mut block)?;
        Ok::<_, io::Error>(SegmentHeader::decode(&block[..filled]).ok())
    };
    let mut wanted = Vec::new();
    for number in numbers.iter().copied() {
        let Some(found) = header(files, number)? else { continue };
        let ours = (found.node, found.shard) == (node, log.shard);
        if !ours || found.number == number {
            continue;
        }
        let occupied = numbers.contains(&found.number)
            && header(files, found.number)?.is_none_or(|there| there.number == found.number);
        if occupied || wanted.contains(&found.number) {
            let why = format!("it is a copy of segment {}, which is there", found.number);
            actions.push(Action::Aside(paths::segment_path(dir, number), why));
        } else {
            wanted.push(found.number);
            actions.push(Action::Rename(number, found.number));
        }
    }
    Ok(actions)
}

/// Files that are not complete, and indices that cannot be used.
fn leftovers(
    files: &mut RealFiles,
    dir: &Path,
    recovered: &Recovered,
    actions: &mut Vec<Action>,
) -> io::Result<()> {
    for name in files.list(dir)? {
        if name.ends_with(TEMPORARY) || name == paths::SNAPSHOT_TEMPORARY {
            actions.push(Action::Aside(dir.join(&name), "it was never completed".to_owned()));
        }
    }
    let mut source = DirSource::new(dir);
    for segment in &recovered.segments {
        let number = segment.number;
        let index = source.index(number)?;
        let valid = index
            .as_deref()
            .and_then(decode_index)
            .is_some_and(|(header, _)| header.number == number && header.info.salt == segment.salt);
        if !valid && index.is_some() {
            let why = "the index cannot be used and is made again".to_owned();
            actions.push(Action::Aside(paths::index_path(dir, number), why));
        } else if !valid && recovered.to_index.contains(&number) {
            actions.push(Action::Index(number));
        }
    }
    Ok(())
}

impl Action {
    fn segment(&self) -> Option<SegmentNumber> {
        match self {
            Self::Rename(from, _) => Some(*from),
            Self::Finish(number) => Some(*number),
            Self::Aside(path, _) => path.file_name()?.to_str().and_then(paths::segment_number),
            Self::Index(_) | Self::Note(_) => None,
        }
    }
}

fn carry_out(files: &mut RealFiles, dir: &Path, actions: &[Action]) -> io::Result<()> {
    let folder = dir.join(paths::QUARANTINE);
    for action in actions {
        if let Action::Aside(path, _) = action {
            files.create_dir(&folder)?;
            aside(files, path, &folder)?;
        }
    }
    for action in actions {
        if let Action::Finish(number) = action {
            let (from, to) = (paths::moved_path(dir, *number), paths::segment_path(dir, *number));
            files.rename_new(&from, &to)?;
        }
    }
    // Two that have each other's name first get names of their own.
    let between = |number: &SegmentNumber| paths::moved_path(dir, *number);
    let renames = actions.iter().filter_map(|action| match action {
        Action::Rename(from, to) => Some((from, to)),
        _ => None,
    });
    for (from, to) in renames.clone() {
        files.rename_new(&paths::segment_path(dir, *from), &between(to))?;
        // The index under that name is of whatever should be there, not of this file.
        let index = paths::index_path(dir, *from);
        if files.len(&index).is_ok() {
            files.create_dir(&folder)?;
            aside(files, &index, &folder)?;
        }
    }
    for (_, to) in renames {
        files.rename_new(&between(to), &paths::segment_path(dir, *to))?;
    }
    if files.is_dir(&folder) {
        files.sync_dir(&folder)?;
    }
    files.sync_dir(dir)
}

/// Moves a file to the quarantine folder, under a name that nothing has there.
fn aside(files: &mut RealFiles, path: &Path, folder: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for copy in 1.. {
        let target = match copy {
            1 => folder.join(&name),
            copy => folder.join(format!("{name}.{copy}")),
        };
        match files.rename_new(path, &target) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
    }
    Ok(())
}

/// Notes the damage that is left: from now on it is known.
fn note(files: &mut RealFiles, dir: &Path, after: &Recovered) -> io::Result<()> {
    if after.damage.is_empty() {
        return Ok(());
    }
    let all = after.known_damage.iter().chain(&after.damage);
    let text: String = all.map(|damage| format!("{damage}\n")).collect();
    let path = dir.join(paths::KNOWN_DAMAGE);
    steps_to_replace(&path, text.into_bytes(), 0).iter().try_for_each(|step| step.run(files))
}

fn tell(out: &mut impl Write, log: LogId, actions: &[Action], would: &str) -> io::Result<()> {
    for action in actions {
        let place = format!("generation {}, shard {}", log.generation, log.shard);
        match action {
            Action::Rename(from, to) => {
                writeln!(out, "{place}: {would}rename segment {from}, whose header says {to}")?;
            }
            Action::Finish(number) => {
                let what = "which an interrupted repair left without a name";
                writeln!(out, "{place}: {would}give segment {number} its name back, {what}")?;
            }
            Action::Aside(path, why) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                writeln!(out, "{place}: {would}move {name} to quarantine: {why}")?;
            }
            Action::Index(number) => {
                writeln!(out, "{place}: {would}write the index of segment {number}")?;
            }
            Action::Note(damage) => {
                writeln!(out, "{place}: {would}note as known, what is readable stays: {damage}")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
