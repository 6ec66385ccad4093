#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::files::RealFiles;
use super::super::testing::{SALT, commit, run};
use super::super::{Damage, DamageKind, DirSource, LogSource, quarantine, recover};
use super::*;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use std::path::PathBuf;

use crate::position::{LogId, NodeId, ShardId};

const BYTES: u64 = 3 * 1024 * 1024 + 4096;

fn header(number: u64) -> SegmentHeader {
    SegmentHeader {
        node: NodeId(1),
        shard: ShardId(0),
        number: SegmentNumber(number),
        salt: SALT,
        bytes: BYTES,
        created_ms: 5,
    }
}

fn write_at(dir: &Path, number: u64, offset: u64, bytes: &[u8]) {
    let path = paths::segment_path(dir, SegmentNumber(number));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_created_segment_is_a_header_and_zeros_and_reads_as_unused() {
    let dir = tempfile::tempdir().unwrap();
    create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(1), BYTES).unwrap();
    let file = fs::read(paths::segment_path(dir.path(), SegmentNumber(1))).unwrap();
    assert_eq!(file.len() as u64, BYTES);
    assert_eq!(SegmentHeader::decode(&file), Ok(header(1)));
    assert!(is_zero(&file[LOG_BLOCK..]));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    let mut source = DirSource::new(dir.path());
    let recovered = recover(&mut source, NodeId(1), ShardId(0)).unwrap();
    assert_eq!(recovered.unused, [SegmentNumber(1)]);
}

#[test]
fn a_segment_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(1), BYTES).unwrap();
    write_at(dir.path(), 1, 4096, b"kept");
    let error = create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(1), BYTES)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let file = fs::read(paths::segment_path(dir.path(), SegmentNumber(1))).unwrap();
    assert_eq!(&file[4096..4100], b"kept");
}

#[test]
fn what_an_interrupted_creation_left_is_no_segment_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("seg-0000000001.wal.tmp");
    fs::write(&left, b"half").unwrap();
    fs::write(dir.path().join("notes.tmp"), b"not ours").unwrap();
    assert_eq!(DirSource::new(dir.path()).segments().unwrap(), []);
    remove_temporaries(&mut RealFiles::default(), dir.path()).unwrap();
    assert!(!left.exists());
    assert!(dir.path().join("notes.tmp").exists());
}

#[test]
fn removing_passes_over_files_that_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    for number in [1, 3] {
        create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(number), 8192)
            .unwrap();
    }
    let numbers = [3, 2, 1].map(SegmentNumber);
    remove_segments(&mut RealFiles::default(), dir.path(), &numbers).unwrap();
    assert_eq!(DirSource::new(dir.path()).segments().unwrap(), []);
}

#[test]
fn unused_segments_go_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = RealFiles::default();
    for number in [1, 2, 3] {
        create_segment_blocking(&mut files, dir.path(), &header(number), 8192).unwrap();
    }
    // What cannot be removed stops it, as a crash does.
    fs::remove_file(paths::segment_path(dir.path(), SegmentNumber(2))).unwrap();
    fs::create_dir(paths::segment_path(dir.path(), SegmentNumber(2))).unwrap();
    let numbers = [1, 2, 3].map(SegmentNumber);
    assert!(remove_unused(&mut files, dir.path(), &numbers).is_err());
    let there = |number| paths::segment_path(dir.path(), SegmentNumber(number)).exists();
    assert!(there(1) && !there(3));
}

#[test]
fn truncating_cuts_zeros_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(1), BYTES).unwrap();
    let bytes = commit(1, &[run(1, 1, 1, 6000)]);
    write_at(dir.path(), 1, 4096, &bytes);
    let end = 4096 + bytes.len() as u64;
    let torn_at = 2 * 1024 * 1024 + 4096 + 17;
    write_at(dir.path(), 1, torn_at, b"torn");
    let kept =
        truncate_sealed(&mut RealFiles::default(), dir.path(), SegmentNumber(1), end).unwrap();
    assert_eq!(kept, torn_at.next_multiple_of(4096));
    write_at(dir.path(), 1, torn_at, &[0; 4]);
    assert_eq!(
        truncate_sealed(&mut RealFiles::default(), dir.path(), SegmentNumber(1), end).unwrap(),
        end
    );
    assert_eq!(
        truncate_sealed(&mut RealFiles::default(), dir.path(), SegmentNumber(1), end).unwrap(),
        end
    );
    let mut source = DirSource::new(dir.path());
    let recovered = recover(&mut source, NodeId(1), ShardId(0)).unwrap();
    assert_eq!((recovered.messages, recovered.damage.len()), (1, 0));
    assert_eq!(recovered.segments[0].bytes_used, end);
}

#[test]
fn quarantine_keeps_a_damaged_segment_from_retention() {
    let dir = tempfile::tempdir().unwrap();
    create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(2), 8192).unwrap();
    let damage = |segment| Damage {
        segment: SegmentNumber(segment),
        start: 0,
        end: 8192,
        commits: None,
        kind: DamageKind::Empty,
    };
    let all = [damage(1), damage(2), damage(2)];
    let linked = quarantine(&mut RealFiles::default(), dir.path(), &all).unwrap();
    let kept = dir.path().join("quarantine/seg-0000000002.wal");
    assert_eq!(linked, [&*kept], "a missing segment is passed over");
    assert!(
        quarantine(&mut RealFiles::default(), dir.path(), &all).unwrap().is_empty(),
        "once is enough"
    );
    remove_segments(&mut RealFiles::default(), dir.path(), &[SegmentNumber(2)]).unwrap();
    assert_eq!(SegmentHeader::decode(&fs::read(&kept).unwrap()), Ok(header(2)));

    create_segment_blocking(&mut RealFiles::default(), dir.path(), &header(2), 8192).unwrap();
    let linked = quarantine(&mut RealFiles::default(), dir.path(), &all).unwrap();
    assert_eq!(linked, [dir.path().join("quarantine/seg-0000000002.wal.2")]);
}

#[test]
fn an_index_does_not_outlive_the_damage_to_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let files = &mut RealFiles::default();
    create_segment_blocking(files, dir.path(), &header(1), BYTES).unwrap();
    let (first, second) = (commit(1, &[run(1, 1, 1, 100)]), commit(2, &[run(1, 2, 1, 100)]));
    write_at(dir.path(), 1, 4096, &first);
    let second_at = 4096 + first.len() as u64;
    write_at(dir.path(), 1, second_at, &second);
    let settle = |files: &mut RealFiles| {
        let recovered = recover(&mut DirSource::new(dir.path()), NodeId(1), ShardId(0)).unwrap();
        write_indices(files, dir.path(), NodeId(1), ShardId(0), &recovered).unwrap();
        recovered
    };
    let index = paths::index_path(dir.path(), SegmentNumber(1));
    assert!(settle(files).damage.is_empty());
    assert!(index.exists());
    write_at(dir.path(), 1, second_at + 600, b"rot");
    assert_eq!(settle(files).damage.len(), 1);
    assert!(!index.exists(), "it says that message 2 is there, and another one becomes message 2");
}

#[test]
fn files_of_another_directory_go_only_when_those_before_them_are_gone_for_good() {
    let log = |generation, shard| LogId { generation, shard: ShardId(shard) };
    let dir = paths::log_dir(Path::new("/d"), log(2, 0));
    let numbers = [(1, 0, 1), (0, 1, 8), (0, 1, 7)]
        .map(|(generation, shard, number)| SegmentNumber(number).sealed(log(generation, shard)));
    let order: Vec<_> = steps_to_remove(&dir, &numbers)
        .iter()
        .filter_map(|step| match step {
            Step::Remove { path } if path.extension()? == "wal" => Some(path.clone()),
            Step::SyncDir { dir } => Some(dir.clone()),
            _ => None,
        })
        .collect();
    let expected = [
        "/d/shard-001/seg-0000000007.wal",
        "/d/shard-001/seg-0000000008.wal",
        "/d/shard-001",
        "/d/gen-001/shard-000/seg-0000000001.wal",
        "/d/gen-001/shard-000",
    ];
    assert_eq!(order, expected.map(PathBuf::from));
}
