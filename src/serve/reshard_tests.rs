//! A change of the number of shards, interrupted after each step that changes a file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use super::super::recover::recover_all;
use super::*;
use crate::position::{Epoch, Level, SegmentNumber, Seq, Stamp};
use crate::ring::LogBuf;
use crate::wal::{
    GroupState, Meta, RealFiles, Record, Run, RunKind, SegmentHeader, commit_len, encode_commit,
};
use crate::wire::Deliver;

/// Real files; after so many changes nothing can be changed any more.
#[derive(Clone)]
struct Failing {
    files: RealFiles,
    left: Rc<Cell<usize>>,
}

impl Failing {
    fn after(changes: usize) -> Self {
        Self { files: RealFiles::default(), left: Rc::new(Cell::new(changes)) }
    }

    fn change(&mut self) -> io::Result<&mut RealFiles> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.left.set(left - 1);
        Ok(&mut self.files)
    }
}

impl Files for Failing {
    fn list(&mut self, dir: &Path) -> io::Result<Vec<String>> {
        self.files.list(dir)
    }
    fn len(&mut self, path: &Path) -> io::Result<u64> {
        self.files.len(path)
    }
    fn read(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.files.read(path, offset, buf)
    }
    fn create(&mut self, path: &Path, head: &[u8], bytes: u64) -> io::Result<()> {
        self.change()?.create(path, head, bytes)
    }
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.change()?.append(path, bytes)
    }
    fn truncate(&mut self, path: &Path, len: u64) -> io::Result<()> {
        self.change()?.truncate(path, len)
    }
    fn sync(&mut self, path: &Path) -> io::Result<()> {
        self.change()?.sync(path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?.rename(from, to)
    }
    fn rename_new(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?.rename_new(from, to)
    }
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.change()?.remove(path)
    }
    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?.link(from, to)
    }
    fn same(&mut self, a: &Path, b: &Path) -> io::Result<bool> {
        self.files.same(a, b)
    }
    fn create_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.change()?.create_dir(dir)
    }
    fn is_dir(&mut self, dir: &Path) -> bool {
        self.files.is_dir(dir)
    }
    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.change()?.sync_dir(dir)
    }
}

/// A folder whose syncs cost nothing, where there is one: there are thousands of them here.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

const RANDOM: [u64; 2] = [7, 0x1234_5678];

fn name(group: u64) -> Vec<u8> {
    format!("group-{group}").into_bytes()
}

/// One commit with two messages and a join for each of the groups that the shard owns.
fn commit(number: u64, shard: ShardId, shards: u16, salt: u64, first: u64) -> Vec<u8> {
    let owned = |group: &u64| owner_of(&name(*group), RANDOM[1], shards) == shard;
    let stamp = Stamp((1_000 + number) << 16);
    let groups: Vec<_> = (1..=12).filter(owned).collect();
    let mut parts = Vec::new();
    for group in &groups {
        let (mut metas, mut frames, mut records) = (Vec::new(), Vec::new(), Vec::new());
        for seq in first..first + 2 {
            let (producer, level) = ([9; 16], Level::Durable);
            Meta { producer, producer_seq: seq, level, receipt: 0 }.encode(&mut metas);
            let (handle, sender) = (Handle(*group), &b"ann"[..]);
            let (node, payload) = (crate::position::NodeId(7), &b"hello"[..]);
            Deliver { handle, seq: Seq(seq), stamp, node, shard, sender, payload }
                .encode(&mut frames);
        }
        Record::MemberJoined {
            member: &number.to_le_bytes(),
            joined_at: Seq(first),
            roster: number,
        }
        .encode(&mut records);
        parts.push((name(*group), metas, frames, records));
    }
    let mut runs = Vec::new();
    for (group, (name, metas, frames, records)) in groups.iter().zip(&parts) {
        let (handle, epoch) = (Handle(*group), Epoch(1));
        let (kind, first, count) = (RunKind::Messages, Seq(first), 2);
        let has_memory = false;
        runs.push(Run {
            kind,
            handle,
            epoch,
            group: name,
            first,
            count,
            has_memory,
            metas,
            frames,
        });
        runs.push(Run::of_records(handle, epoch, name, 1, records));
    }
    let mut buf = LogBuf::with_capacity(commit_len(runs.iter()));
    encode_commit(&mut buf, CommitNumber(number), salt, stamp, &runs);
    buf.as_slice().to_vec()
}

/// Adds a segment with one commit to each log.
fn write(dir: &Path, manifest: &Manifest, segment: u64, number: u64, first: u64) {
    for shard in (0..manifest.shards).map(ShardId) {
        let header = SegmentHeader {
            node: manifest.node,
            shard,
            number: SegmentNumber(segment),
            salt: segment * 31,
            bytes: 1 << 16,
            created_ms: 5,
        };
        let mut file = header.encode().to_vec();
        file.extend(commit(number, shard, manifest.shards, segment * 31, first));
        file.resize(1 << 16, 0);
        let log = paths::log_dir(dir, manifest.log(shard));
        std::fs::write(paths::segment_path(&log, SegmentNumber(segment)), file).unwrap();
    }
}

type Found = BTreeMap<Vec<u8>, (u64, u64, GroupState, Vec<(u64, PathBuf)>)>;

/// Starts with `shards` shards, and says what is there of each group: first, head, state, and
/// in which files its messages are.
fn start<F: Files>(files: F, dir: &Path, shards: u16) -> Result<(Manifest, Found), ServeError> {
    let mut own = files.clone();
    let (mut data, manifest) = Manifest::open_on(files, dir, Some(shards), RANDOM, None)?;
    let (manifest, recovered) = recover_all(&mut own, &mut data, manifest)?;
    assert_eq!(manifest.shards, shards);
    let mut found = Found::new();
    for (shard, log) in (0..).map(ShardId).zip(recovered) {
        assert!(log.damage.is_empty(), "{:?}", log.damage);
        for group in log.groups {
            assert_eq!(owner_of(&group.name, RANDOM[1], shards), shard);
            let place = |e: &IndexEntry| {
                let path = paths::segment_path(&data.shard_dir(shard), e.pos.segment);
                assert!(path.exists(), "{}", path.display());
                (e.first.0, path.strip_prefix(dir).unwrap().to_owned())
            };
            let places = group.index.entries().iter().map(place).collect();
            let of = (group.first.0, group.head.0, group.state, places);
            assert!(found.insert(group.name.to_vec(), of).is_none(), "one owner each");
        }
    }
    Ok((manifest, found))
}

#[test]
fn groups_keep_all_they_have_through_any_number_of_shards() {
    let dir = memory_dir();
    let files = RealFiles::default();
    let (manifest, _) = start(files.clone(), dir.path(), 2).unwrap();
    write(dir.path(), &manifest, 1, 1, 1);
    let (mut first, mut members) = (1, 1);
    for shards in [3, 1, 1, 4, 2] {
        let (manifest, found) = start(files.clone(), dir.path(), shards).unwrap();
        assert_eq!(found.len(), 12);
        for (name, (oldest, head, state, places)) in &found {
            let what = format!("{shards} shards, {}", String::from_utf8_lossy(name));
            assert_eq!((*oldest, *head), (1, first + 1), "{what}");
            assert_eq!(state.members.len(), members, "{what}");
            assert_eq!(state.producers[&[9; 16]].last, first + 1, "{what}");
            assert!(places.is_sorted(), "{what}: {places:?}");
            assert_eq!(places.len() as u64, first.div_ceil(2), "{what}");
        }
        first += 2;
        members += 1;
        // The log goes on where it is now: after a start without a change in its next segment.
        let logs = paths::log_dir(dir.path(), manifest.log(ShardId(0)));
        let segments = std::fs::read_dir(logs).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".wal")
        });
        let next = segments.count() as u64 + 1;
        // Rosters go on from the version they had.
        write_next(dir.path(), &manifest, next, first, members as u64);
    }
}

#[test]
fn a_rotten_snapshot_that_a_log_begins_with_costs_nothing_and_two_are_damage() {
    let dir = memory_dir();
    let files = RealFiles::default();
    let (manifest, _) = start(files.clone(), dir.path(), 2).unwrap();
    write(dir.path(), &manifest, 1, 1, 1);
    let (manifest, found) = start(files.clone(), dir.path(), 1).unwrap();
    let log = paths::log_dir(dir.path(), manifest.log(ShardId(0)));
    let rot = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    rot(paths::snapshot_path(&log, CommitNumber(0)));
    // The rotten one goes to quarantine at the first start.
    for _ in 0..2 {
        let (_, again) = start(files.clone(), dir.path(), 1).unwrap();
        assert_eq!(format!("{again:?}"), format!("{found:?}"));
    }
    rot(log.join(paths::BASE_COPY));
    let (mut data, manifest) =
        Manifest::open_on(files.clone(), dir.path(), Some(1), RANDOM, None).unwrap();
    let before = manifest.epoch_floor;
    let (manifest, recovered) = recover_all(&mut files.clone(), &mut data, manifest).unwrap();
    assert_eq!(recovered[0].damage.len(), 1, "{:?}", recovered[0].damage);
    assert!(manifest.epoch_floor > before, "numbers are given again, in a new epoch");
}

fn write_next(dir: &Path, manifest: &Manifest, segment: u64, first: u64, roster: u64) {
    // Commit numbers begin anew in each generation; versions of rosters do not.
    for shard in (0..manifest.shards).map(ShardId) {
        let log = paths::log_dir(dir, manifest.log(shard));
        let salt = segment * 31;
        let header = SegmentHeader {
            node: manifest.node,
            shard,
            number: SegmentNumber(segment),
            salt,
            bytes: 1 << 16,
            created_ms: 5,
        };
        let mut bytes = commit(roster, shard, manifest.shards, salt, first);
        renumber(&mut bytes, segment);
        let mut file = header.encode().to_vec();
        file.extend(bytes);
        file.resize(1 << 16, 0);
        std::fs::write(paths::segment_path(&log, SegmentNumber(segment)), file).unwrap();
    }
}

/// Gives a commit of one header sector another number.
fn renumber(commit: &mut [u8], number: u64) {
    commit[8..16].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&commit[..508]);
    commit[508..512].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_change_that_stops_after_any_step_is_undone_or_done_by_the_next_start() {
    for (before, after) in [(2, 3), (3, 1)] {
        let mut done_in = 0;
        for steps in 0.. {
            let dir = memory_dir();
            let (manifest, _) = start(RealFiles::default(), dir.path(), before).unwrap();
            write(dir.path(), &manifest, 1, 1, 1);
            write(dir.path(), &manifest, 2, 2, 3);
            let stopped = start(Failing::after(steps), dir.path(), after);
            let whole = stopped.is_ok();
            // Whichever number comes next, nothing is lost.
            for shards in if steps % 2 == 0 { [after, before] } else { [before, after] } {
                let (_, found) = start(RealFiles::default(), dir.path(), shards).unwrap();
                assert_eq!(found.len(), 12, "after {steps} steps");
                for (oldest, head, state, places) in found.values() {
                    assert_eq!((*oldest, *head, places.len()), (1, 4, 2), "after {steps} steps");
                    assert_eq!(state.members.len(), 2);
                }
            }
            if whole {
                done_in = steps;
                break;
            }
        }
        assert!(done_in > 10, "{done_in}");
    }
}
