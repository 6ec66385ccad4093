//! A member that does not read costs nobody else anything, and gets what it missed later.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Follower, Got, Http, Server, Settings, wait_until};

const PAYLOAD: usize = 16 * 1024;

/// Publishes and has `reader` follow, and returns the longest time from PUBLISH to DELIVER.
fn stream(
    publisher: &mut Client,
    reader: &mut Client,
    follower: &mut Follower,
    count: u64,
) -> Duration {
    let mut worst = Duration::ZERO;
    for n in 0..count {
        let mut payload = vec![b'x'; PAYLOAD];
        payload[..8].copy_from_slice(&n.to_le_bytes());
        let sent = Instant::now();
        publisher.send_publish("g", &payload);
        let next = follower.last.0 + 1;
        reader.follow(follower, next);
        follower.messages.clear();
        worst = worst.max(sent.elapsed());
        publisher.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
    }
    worst
}

/// A server whose tails hold little, so that a member that stops is soon behind them.
fn settings(shards: u16) -> Settings {
    Settings::shards(shards).set("tail_bytes_max", 1 << 20).set("socket_send_buffer", 64 * 1024)
}

#[test]
fn others_go_on_and_the_slow_one_gets_all_of_it_later() {
    for shards in [1, 2] {
        let server = Server::start(settings(shards).set("stall_timeout_ms", 60_000));
        // With two shards the slow members are on both sides of the mesh.
        let mut slow: Vec<_> = (0..2)
            .map(|n| {
                let mut client = Client::on_shard(&server, n % shards, "slow");
                let follower = Follower::live(client.join("g"));
                (client, follower)
            })
            .collect();
        let mut reader = Client::open(&server, "reader");
        let mut follower = Follower::live(reader.join("g"));
        let mut publisher = Client::open(&server, "publisher");
        let count = 2_000;
        let worst = stream(&mut publisher, &mut reader, &mut follower, count);
        assert!(worst < Duration::from_secs(1), "a message took {worst:?}");
        for (client, follower) in &mut slow {
            client.follow(follower, count);
            assert!(follower.gaps.is_empty(), "nothing was removed from the log");
            for (n, (_, _, payload)) in follower.messages.iter().enumerate() {
                assert_eq!(payload.len(), PAYLOAD);
                assert_eq!(payload[..8], (n as u64).to_le_bytes());
            }
        }
        // And both are live again.
        stream(&mut publisher, &mut reader, &mut follower, 3);
        for (client, follower) in &mut slow {
            client.follow(follower, count + 3);
        }
    }
}

#[test]
fn a_member_that_retention_passed_gets_a_gap_and_the_rest() {
    let settings = settings(1).set("stall_timeout_ms", 60_000).set("retention_bytes", 16 << 20);
    let (server, http) = Http::start(settings);
    let mut slow = Client::open(&server, "slow");
    let mut behind = Follower::live(slow.join("g"));
    let mut reader = Client::open(&server, "reader");
    let mut follower = Follower::live(reader.join("g"));
    let mut publisher = Client::open(&server, "publisher");
    let count = 4_000;
    stream(&mut publisher, &mut reader, &mut follower, count);
    slow.follow(&mut behind, count);
    assert!(!behind.gaps.is_empty(), "64 MB went through a log of 16 MB");
    let missing: u64 = behind.gaps.iter().map(|(from, to)| to.0 - from.0 + 1).sum();
    assert_eq!(missing + behind.messages.len() as u64, count);
    assert!(behind.messages.len() > 200, "what the log holds is delivered");
    assert_eq!(http.metric("fanfare_gaps_total", "retention"), behind.gaps.len() as f64);
    assert_eq!(http.metric("fanfare_gaps_total", "damaged"), 0.0);
}

#[test]
fn a_member_that_reads_nothing_for_the_stall_time_is_closed() {
    let server = Server::start(settings(1).set("stall_timeout_ms", 400));
    let mut slow = Client::open(&server, "slow");
    slow.join("g");
    let mut reader = Client::open(&server, "reader");
    let mut follower = Follower::live(reader.join("g"));
    let mut publisher = Client::open(&server, "publisher");
    // Enough to fill the socket buffers of both sides.
    let worst = stream(&mut publisher, &mut reader, &mut follower, 1_500);
    assert!(worst < Duration::from_secs(1), "a message took {worst:?}");
    std::thread::sleep(Duration::from_millis(1_000));
    wait_until("the end of the stalled connection", || {
        slow.recv_within(Duration::from_millis(1)) == Some(Got::Closed)
    });
    stream(&mut publisher, &mut reader, &mut follower, 10);
}

#[test]
fn memory_stays_bounded_while_members_do_not_read() {
    let server = Server::start(settings(1).set("stall_timeout_ms", 60_000));
    let slow: Vec<_> = (0..20)
        .map(|n| {
            let mut client = Client::open(&server, &format!("slow-{n}"));
            client.join("g");
            client
        })
        .collect();
    let mut reader = Client::open(&server, "reader");
    let mut follower = Follower::live(reader.join("g"));
    let mut publisher = Client::open(&server, "publisher");
    stream(&mut publisher, &mut reader, &mut follower, 500);
    let before = server.rss_kib();
    stream(&mut publisher, &mut reader, &mut follower, 2_000);
    let after = server.rss_kib();
    assert!(after < before + 16 * 1024, "memory went from {before} to {after} KiB");
    drop(slow);
}
