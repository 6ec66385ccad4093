#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::FileExt;

use super::super::create::create_segment_blocking;
use super::super::files::RealFiles;
use super::super::testing::{OwnedRun, SALT, commit, run};
use super::super::{DataDir, SegmentHeader};
use super::*;
use crate::position::SegmentNumber;

/// A directory as a running server has it: locked, two shards, three commits on shard 0.
fn running_server() -> (tempfile::TempDir, DataDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, manifest) = Manifest::open(dir.path(), Some(2)).unwrap();
    let shard_dir = data.shard_dir(ShardId(0));
    let header = SegmentHeader {
        node: manifest.node,
        shard: ShardId(0),
        number: SegmentNumber(1),
        salt: SALT,
        bytes: 1 << 20,
        created_ms: 1,
    };
    create_segment_blocking(&mut RealFiles::default(), &shard_dir, &header, 1 << 20).unwrap();
    let file = paths::segment_path(&shard_dir, SegmentNumber(1));
    let mut binary = run(2, 1, 1, 5);
    binary.group = vec![0xFF, 1];
    let commits: [&[OwnedRun]; 3] =
        [&[run(1, 1, 2, 4)], &[binary], &[run(1, 3, 1, 4), run(1, 4, 1, 4)]];
    let mut offset = 4096;
    for (index, runs) in commits.into_iter().enumerate() {
        let bytes = commit(index as u64 + 1, runs);
        let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
        open.write_all_at(&bytes, offset).unwrap();
        offset += bytes.len() as u64;
    }
    (dir, data, file)
}

fn flip(file: &Path, at: u64) {
    let open = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, at).unwrap();
    open.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn inspect_text(dir: &Path, json: bool) -> String {
    let mut out = Vec::new();
    inspect(dir, json, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn inspect_shows_segments_and_groups_beside_a_running_server() {
    let (dir, _data, _) = running_server();
    let text = inspect_text(dir.path(), false);
    assert!(text.contains("shard 0: 3 commits, 5 messages, next commit 4"), "{text}");
    assert!(text.contains("group group-1 handle 0000000000000001 epoch 1 messages 1 to 4"));
    assert!(text.contains("group 0xff01 "), "a name that is no text is shown as hex: {text}");
    let json: serde_json::Value = serde_json::from_str(&inspect_text(dir.path(), true)).unwrap();
    assert_eq!(json["sound"], true);
    assert_eq!(json["shards"][0]["segments"][0]["segment"], 1);
    assert_eq!(json["shards"][0]["groups"][1]["head"], 4);
    assert_eq!(json["shards"][1]["commits"], 0);
}

#[test]
fn verify_tells_damage_from_a_torn_tail() {
    let (dir, _data, file) = running_server();
    let check = || {
        let mut out = Vec::new();
        let sound = verify(dir.path(), false, &mut out).unwrap();
        (sound, String::from_utf8(out).unwrap())
    };
    assert!(check().0);
    let last = fs::read(&file).unwrap();
    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.write_all_at(&[0; 512], 4096 * 3 + 512).unwrap();
    let (sound, text) = check();
    assert!(sound && text.contains("torn tail"), "{text}");
    fs::write(&file, last).unwrap();
    flip(&file, 4096 * 2 + 600);
    let (sound, text) = check();
    assert!(!sound && text.contains("commit 2 is lost") && text.ends_with("DAMAGED\n"), "{text}");
    let mut out = Vec::new();
    assert!(!verify(dir.path(), true, &mut out).unwrap());
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["shards"][0]["damage"][0]["lost_commits"], serde_json::json!([2, 2]));
}

#[test]
fn messages_come_in_order_with_payload_as_text_or_hex() {
    let (dir, _data, _) = running_server();
    let lines = |group: &[u8]| -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        messages(dir.path(), group, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(b"group-1");
    let seqs: Vec<u64> = all.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!(all[0]["sender"], "ann");
    assert_eq!(all[0]["producer"], "07".repeat(16));
    assert_eq!((&all[3]["producer_seq"], &all[3]["level"]), (&4.into(), &"durable".into()));
    assert!(all[0]["payload"].is_string() && all[0]["payload_hex"].is_null());
    assert_eq!(lines(&[0xFF, 1]).len(), 1);
    assert_eq!(lines(b"other").len(), 0);
}

#[test]
fn looking_changes_nothing_and_a_wrong_directory_is_named() {
    let (dir, _data, file) = running_server();
    let before = (fs::read(&file).unwrap(), fs::read(dir.path().join(paths::MANIFEST)).unwrap());
    inspect_text(dir.path(), false);
    verify(dir.path(), true, &mut Vec::new()).unwrap();
    let after = (fs::read(&file).unwrap(), fs::read(dir.path().join(paths::MANIFEST)).unwrap());
    assert_eq!(before, after);
    let empty = tempfile::tempdir().unwrap();
    let error = verify(empty.path(), false, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("no manifest.toml"), "{error}");
}

#[test]
fn verify_beside_a_writer_that_rotates_finds_no_damage() {
    const SEGMENT: u64 = 40 * 4096;
    let dir = tempfile::tempdir().unwrap();
    let (data, manifest) = Manifest::open(dir.path(), Some(1)).unwrap();
    let shard_dir = data.shard_dir(ShardId(0));
    let create = move |number| {
        let header = SegmentHeader {
            node: manifest.node,
            shard: ShardId(0),
            number: SegmentNumber(number),
            salt: SALT,
            bytes: SEGMENT,
            created_ms: 1,
        };
        create_segment_blocking(&mut RealFiles::default(), &shard_dir, &header, SEGMENT).unwrap();
        let path = paths::segment_path(&shard_dir, SegmentNumber(number));
        fs::OpenOptions::new().write(true).open(path).unwrap()
    };
    let writer = thread::spawn(move || {
        let (mut number, mut offset) = (1, 4096);
        let (mut active, mut spare) = (create(1), create(2));
        for n in 1..=400 {
            let bytes = commit(n, &[run(1, n, 1, 5000)]);
            if offset + bytes.len() as u64 > SEGMENT {
                number += 1;
                (active, offset) = (spare, 4096);
                spare = create(number + 1);
            }
            active.write_all_at(&bytes, offset).unwrap();
            offset += bytes.len() as u64;
            thread::sleep(Duration::from_millis(1));
        }
    });
    while !writer.is_finished() {
        let mut out = Vec::new();
        assert!(verify(dir.path(), false, &mut out).unwrap(), "{}", String::from_utf8_lossy(&out));
    }
    writer.join().unwrap();
    assert!(inspect_text(dir.path(), false).contains("400 commits, 400 messages"));
}
