#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use super::super::create::create_segment_blocking;
use super::super::testing::{commit, run};
use super::super::tool::verify;
use super::*;
use crate::position::ShardId;

/// A stopped server's directory: one shard, three segments of two commits each.
fn stopped() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (mut data, manifest) = Manifest::open(dir.path(), Some(1)).unwrap();
    let shard_dir = data.shard_dir(ShardId(0));
    for number in 1..=3 {
        let header = SegmentHeader {
            node: manifest.node,
            shard: ShardId(0),
            number: SegmentNumber(number),
            salt: super::super::testing::SALT,
            bytes: 1 << 16,
            created_ms: 1,
        };
        create_segment_blocking(&mut RealFiles::default(), &shard_dir, &header, 1 << 16).unwrap();
        let path = paths::segment_path(&shard_dir, SegmentNumber(number));
        let mut file = fs::read(&path).unwrap();
        let mut at = LOG_BLOCK;
        for n in [2 * number - 1, 2 * number] {
            let bytes = commit(n, &[run(1, n, 1, 300)]);
            file[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        fs::write(path, file).unwrap();
    }
    data.mark_clean().unwrap();
    (dir, shard_dir)
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    paths::segment_path(dir, SegmentNumber(number))
}

fn is_sound(dir: &Path) -> (bool, String) {
    let mut out = Vec::new();
    let sound = verify(dir, false, &mut out).unwrap();
    (sound, String::from_utf8(out).unwrap())
}

fn run_repair(dir: &Path, apply: bool) -> String {
    let mut out = Vec::new();
    repair(dir, apply, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// All files below `dir` with their bytes, apart from the lock.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            all.extend(content(&entry.path()));
        } else if entry.file_name() != "LOCK" {
            all.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    all.sort();
    all
}

fn messages(dir: &Path) -> usize {
    let mut out = Vec::new();
    super::super::tool::messages(dir, b"group-1", &mut out).unwrap();
    out.iter().filter(|byte| **byte == b'\n').count()
}

/// Damages the log, looks, repairs, and checks what holds after every repair. Returns what the
/// repair said.
fn damage(break_it: impl Fn(&Path), messages_left: usize) -> (tempfile::TempDir, String) {
    let (dir, log) = stopped();
    assert!(is_sound(dir.path()).0);
    run_repair(dir.path(), true);
    break_it(&log);
    let before = content(dir.path());
    assert!(!is_sound(dir.path()).0, "{}", is_sound(dir.path()).1);
    let plan = run_repair(dir.path(), false);
    assert!(plan.contains("would: "), "{plan}");
    assert!(content(dir.path()) == before, "a dry run changes nothing");
    let said = run_repair(dir.path(), true);
    let (sound, text) = is_sound(dir.path());
    assert!(sound, "{said}\n{text}");
    assert_eq!(messages(dir.path()), messages_left, "{said}");
    let after = content(dir.path());
    for (path, bytes) in before {
        let derived = path.extension().is_some_and(|e| e == "idx");
        let kept = after.iter().any(|(_, there)| *there == bytes);
        assert!(kept || derived || path.ends_with(paths::MANIFEST), "{}", path.display());
    }
    assert!(run_repair(dir.path(), true).contains("nothing to repair"));
    (dir, said)
}

#[test]
fn a_rotten_commit_is_noted_and_everything_else_stays_readable() {
    let (dir, said) = damage(
        |log| {
            let mut file = fs::read(segment(log, 2)).unwrap();
            file[LOG_BLOCK + 700] ^= 1;
            fs::write(segment(log, 2), file).unwrap();
        },
        5,
    );
    assert!(said.contains("note as known") && said.contains("commit 3 is lost"), "{said}");
    let manifest = Manifest::read(dir.path()).unwrap().unwrap();
    assert_eq!(manifest.epoch_floor, Epoch(manifest.starts.0 + 1));
}

#[test]
fn a_missing_segment_is_noted() {
    let (_dir, said) = damage(|log| fs::remove_file(segment(log, 2)).unwrap(), 4);
    assert!(said.contains("the file is missing"), "{said}");
}

#[test]
fn swapped_segments_get_their_names_back_and_nothing_is_lost() {
    let (dir, said) = damage(
        |log| {
            fs::rename(segment(log, 1), log.join("x")).unwrap();
            fs::rename(segment(log, 2), segment(log, 1)).unwrap();
            fs::rename(log.join("x"), segment(log, 2)).unwrap();
        },
        6,
    );
    assert!(said.contains("rename segment 1, whose header says 2"), "{said}");
    assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().epoch_floor, Epoch(0));
}

#[test]
fn a_repair_that_is_interrupted_is_finished_by_the_next_one_and_as_far_as_it_goes_by_a_start() {
    for steps in 1..=3 {
        // A repair of two segments with each other's names, cut off after so many renames.
        let interrupted = |log: &Path| {
            fs::rename(segment(log, 1), log.join("x")).unwrap();
            fs::rename(segment(log, 2), segment(log, 1)).unwrap();
            fs::rename(log.join("x"), segment(log, 2)).unwrap();
            let moved = |number| paths::moved_path(log, SegmentNumber(number));
            let renames = [
                (segment(log, 1), moved(2)),
                (segment(log, 2), moved(1)),
                (moved(2), segment(log, 2)),
            ];
            for (from, to) in &renames[..steps] {
                fs::rename(from, to).unwrap();
            }
        };
        let (dir, said) = damage(interrupted, 6);
        assert!(said.contains("which an interrupted repair left without a name"), "{said}");
        assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().epoch_floor, Epoch(0));

        let (dir, log) = stopped();
        interrupted(&log);
        let finished = create::finish_repair(&mut RealFiles::default(), &log).unwrap();
        assert_eq!(finished.len(), [0, 2, 1][steps - 1], "{finished:?}");
        assert_eq!(is_sound(dir.path()).0, steps > 1);
    }
}

#[test]
fn a_copy_of_a_segment_is_moved_aside() {
    let (dir, said) = damage(|log| drop(fs::copy(segment(log, 1), segment(log, 4))), 6);
    assert!(said.contains("it is a copy of segment 1"), "{said}");
    assert!(dir.path().join("shard-000/quarantine/seg-0000000004.wal").exists());
    assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().epoch_floor, Epoch(0));
}

#[test]
fn a_file_that_is_no_segment_and_a_rotten_snapshot_are_moved_aside() {
    let (dir, said) = damage(
        |log| {
            fs::write(segment(log, 3), vec![0xEE; 9000]).unwrap();
            fs::write(log.join("snap-00000000000000000004.snap"), b"rotten").unwrap();
            fs::write(log.join("seg-0000000009.wal.tmp"), b"half").unwrap();
            fs::write(log.join("notes.txt"), b"the operator's own").unwrap();
        },
        4,
    );
    assert!(said.contains("snap-00000000000000000004.snap"), "{said}");
    let quarantine = dir.path().join("shard-000/quarantine");
    for name in ["seg-0000000003.wal", "snap-00000000000000000004.snap", "seg-0000000009.wal.tmp"] {
        assert!(quarantine.join(name).exists(), "{name}");
    }
    assert!(dir.path().join("shard-000/notes.txt").exists(), "what it does not know it leaves");
}

#[test]
fn a_directory_in_use_is_not_repaired() {
    let (dir, _) = stopped();
    let _data = Manifest::open(dir.path(), None).unwrap();
    assert!(repair(dir.path(), true, &mut Vec::new()).is_err());
    repair(dir.path(), false, &mut Vec::new()).unwrap();
}
