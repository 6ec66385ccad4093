//! Snapshots and indices on real files: a clean stop leaves little to read, and a start that
//! finds them damaged, missing or half-written says so and has everything all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Client, Follower, Server, Settings};

fn files(server: &Server, suffix: &str) -> Vec<PathBuf> {
    let dir = server.data_dir().join("shard-000");
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect();
    found.sort();
    found
}

/// Publishes `count` messages of 60 KB: 139 fill a segment.
fn publish(client: &mut Client, count: usize) {
    for _ in 0..count / 10 {
        let requests: Vec<_> = (0..10).map(|_| client.send_publish("g", &[7; 60_000])).collect();
        requests.into_iter().for_each(|request| {
            client.published(request);
        });
    }
}

/// Reads all messages of the group, without a gap.
fn read_back(server: &Server, last: u64) {
    let mut member = Client::open(server, "reader");
    let joined = member.join_from("g", 1);
    assert_eq!(joined.head.0, last);
    let mut follower = Follower::from(joined, 1);
    member.follow(&mut follower, last);
}

fn verify(dir: &Path) -> (bool, String) {
    let mut out = Vec::new();
    let sound = fanfare::wal::tool::verify(dir, false, &mut out).unwrap();
    (sound, String::from_utf8(out).unwrap())
}

#[test]
fn a_clean_stop_leaves_a_snapshot_and_an_index_of_every_segment() {
    let mut server = Server::start(Settings::shards(1));
    publish(&mut Client::open(&server, "publisher"), 200);
    server.stop();
    let segments = files(&server, ".wal").len();
    // The last one was created ahead of use and holds nothing.
    assert_eq!(files(&server, ".idx").len(), segments - 1);
    assert!((1..=2).contains(&files(&server, ".snap").len()));
    assert!(files(&server, ".tmp").is_empty());
    let (sound, text) = verify(&server.data_dir());
    assert!(sound, "{text}");
    server.restart();
    read_back(&server, 200);
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

#[test]
fn damaged_snapshots_and_indices_are_passed_over_loudly_and_cost_nothing() {
    let mut server = Server::start(Settings::shards(1));
    publish(&mut Client::open(&server, "publisher"), 400);
    server.stop();
    let snapshots = files(&server, ".snap");
    assert_eq!(snapshots.len(), 2);
    let mut bytes = fs::read(&snapshots[1]).unwrap();
    bytes[80] ^= 1;
    fs::write(&snapshots[1], &bytes).unwrap();
    let indices = files(&server, ".idx");
    fs::remove_file(&indices[0]).unwrap();
    fs::write(&indices[1], b"torn").unwrap();
    fs::write(server.data_dir().join("shard-000/snapshot.tmp"), &bytes[..70]).unwrap();
    let (sound, text) = verify(&server.data_dir());
    assert!(!sound && text.contains("snapshot"), "{text}");

    server.restart();
    read_back(&server, 400);
    assert!(server.log().contains("a snapshot is damaged"), "{}", server.log());
    let kept = server.data_dir().join("shard-000/quarantine");
    assert_eq!(fs::read(kept.join(snapshots[1].file_name().unwrap())).unwrap(), bytes);
    assert_eq!(files(&server, ".idx").len(), indices.len(), "made again");
    server.stop();
    let (sound, text) = verify(&server.data_dir());
    assert!(sound, "{text}");
}

#[test]
fn kill_nine_amid_snapshots_and_retention_keeps_every_message_that_is_left() {
    let settings = Settings::shards(1).set("retention_bytes", 30 << 20);
    let mut server = Server::start(settings);
    let mut last = 0;
    for round in 0..6 {
        let mut publisher = Client::open(&server, &format!("publisher-{round}"));
        publish(&mut publisher, 150);
        last += 150;
        // Some publishes, and perhaps a snapshot, are under way.
        for _ in 0..5 * round {
            publisher.send_publish("g", &[1; 50_000]);
        }
        server.kill();
        let (sound, text) = verify(&server.data_dir());
        assert!(sound, "round {round}: {text}");
        server.restart();
        let mut member = Client::open(&server, "reader");
        let joined = member.join_from("g", 1);
        assert!(joined.head.0 >= last);
        last = joined.head.0;
    }
    server.stop();
    let oldest = files(&server, ".wal")[0].clone();
    assert!(!oldest.ends_with("seg-0000000001.wal"), "retention went on");
    let bytes: u64 = files(&server, ".wal").iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes < 80 << 20, "{bytes}");
    server.restart();
    assert!(!server.log().contains("damaged"), "{}", server.log());
}
