//! Another number of shards, up and down, on real files: history, durable members, retries and
//! retention go on as if nothing had changed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Client, Follower, Server, Settings};
use fanfare::position::ProducerId;

const GROUPS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Publishes numbered messages to all groups, and sends the last one of each again.
fn publish(server: &Server, producer: ProducerId, next: &mut u64, count: u64, bytes: usize) {
    let mut publisher = Client::open_as(server, "publisher", producer);
    let first = *next;
    for group in GROUPS {
        if first > 1 {
            // The answer was lost, as far as the publisher knows.
            let again = publisher.publish_as(group, first - 1, b"again").unwrap();
            assert_eq!(again.seq.0, first - 1, "the place it had before");
        }
        for n in first..first + count {
            let mut payload = n.to_le_bytes().to_vec();
            payload.resize(bytes, 7);
            assert_eq!(publisher.publish_as(group, n, &payload).unwrap().seq.0, n);
        }
    }
    *next += count;
}

/// A durable member of every group gets what it has not acknowledged, and acknowledges it.
fn member_catches_up(server: &Server, acked: &mut u64, last: u64) {
    let mut member = Client::open(server, "member");
    for group in GROUPS {
        let joined = member.join_durable(group);
        assert_eq!(joined.cursor.0, *acked, "{group}");
        let mut follower = Follower::first(joined);
        member.follow(&mut follower, last);
        assert!(follower.gaps.is_empty());
        assert_eq!(follower.messages.len() as u64, last - *acked);
        if last > *acked {
            member.ack_all(&follower);
        }
    }
    member.ping();
    *acked = last;
}

fn history_is_whole(server: &Server, last: u64) {
    let mut reader = Client::open(server, "reader");
    for group in GROUPS {
        let joined = reader.join_from(group, 1);
        assert_eq!(joined.head.0, last, "{group}");
        let mut follower = Follower::from(joined, 1);
        reader.follow(&mut follower, last);
        for (n, payload) in (1..).zip(follower.payloads()) {
            assert_eq!(payload[..8], u64::to_le_bytes(n), "{group}");
        }
    }
}

fn verify(server: &Server) {
    let mut out = Vec::new();
    let sound = fanfare::wal::tool::verify(&server.data_dir(), false, &mut out).unwrap();
    assert!(sound, "{}", String::from_utf8(out).unwrap());
}

#[test]
fn history_members_and_retries_survive_every_change_of_the_number_of_shards() {
    let producer = [42; 16];
    let mut server = Server::start(Settings::shards(2));
    let (mut next, mut acked) = (1, 0);
    member_catches_up(&server, &mut acked, 0);
    publish(&server, producer, &mut next, 20, 100);
    for (round, shards) in [3, 1, 1, 2, 4].into_iter().enumerate() {
        // After a clean stop and after a crash.
        if round.is_multiple_of(2) {
            server.stop();
        } else {
            server.kill();
        }
        verify(&server);
        server.restart_with(Settings::shards(shards));
        history_is_whole(&server, next - 1);
        // A crash may take cursors that were not written yet; a member then gets more again.
        if round.is_multiple_of(2) {
            member_catches_up(&server, &mut acked, next - 1);
        }
        publish(&server, producer, &mut next, 10, 100);
        history_is_whole(&server, next - 1);
    }
    let log = server.log();
    assert!(log.contains("the number of shards changes"), "{log}");
    server.stop();
    verify(&server);
}

fn segments(server: &Server, dir: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(server.data_dir().join(dir)) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    found.sort();
    found
}

#[test]
fn retention_removes_sealed_logs_and_says_so_to_members() {
    let producer = [42; 16];
    let settings = |shards| Settings::shards(shards).set("retention_bytes", 16 << 20);
    let mut server = Server::start(settings(1));
    let mut next = 1;
    publish(&server, producer, &mut next, 40, 50_000);
    server.stop();
    assert!(segments(&server, "shard-000").len() > 1);
    server.restart_with(settings(2));
    history_is_whole(&server, next - 1);
    for _ in 0..8 {
        publish(&server, producer, &mut next, 30, 50_000);
    }
    common::wait_until("the sealed log is gone", || segments(&server, "shard-000").is_empty());
    let mut reader = Client::open(&server, "reader");
    for group in GROUPS {
        let joined = reader.join_from(group, 1);
        let mut follower = Follower::from(joined, 1);
        reader.follow(&mut follower, next - 1);
        assert!(!follower.gaps.is_empty(), "what is gone is announced");
    }
    server.stop();
    verify(&server);
    server.restart_with(settings(2));
    server.stop();
    assert!(server.log().contains("nothing is left of a sealed log"), "{}", server.log());
    let manifest = fs::read_to_string(server.data_dir().join("manifest.toml")).unwrap();
    assert!(manifest.contains("sealed = []"), "{manifest}");
}
