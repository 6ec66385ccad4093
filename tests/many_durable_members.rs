//! A roster of many durable members, of whom one in a hundred is online: a restart is quick, and
//! a broadcast with a receipt does not look at who is away. 4,000 members unless
//! `FANFARE_MEMBERS` says otherwise; with 100,000:
//!
//! `FANFARE_MEMBERS=100000 cargo test --release --test many_durable_members -- --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::client::hello_bytes;
use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Seq;
use fanfare::wire::{Join, JoinEntry};
use socket2::SockRef;

const GROUP: &str = "town";

fn member(n: usize) -> String {
    format!("member-{n}")
}

/// Joins once as a durable member and is gone.
fn enroll(server: &Server, n: usize) {
    let mut client = Client::bare(server);
    let mut bytes = hello_bytes(&member(n));
    Join::encode(&mut bytes, 1, &[JoinEntry::durable(GROUP.as_bytes())]);
    client.send(&bytes);
    client.expect("JOINED", |got| matches!(got, Got::Joined { .. }).then_some(()));
    // Ports of connections that are reset are free at once.
    SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Time for `count` publishes, one after the other, each with a receipt asked for.
fn broadcast(publisher: &mut Client, group: &str, count: u64, percent: u8) -> (Duration, Seq) {
    let started = Instant::now();
    let mut last = Seq(0);
    for _ in 0..count {
        last = publisher.publish_with_receipt(group, percent, b"to all");
    }
    (started.elapsed() / count as u32, last)
}

#[test]
fn restarts_and_receipts_of_a_large_roster_are_quick() {
    let members: usize = std::env::var("FANFARE_MEMBERS").map_or(4_000, |n| n.parse().unwrap());
    let settings = Settings::shards(2).set("connections_max", members / 100 + 2_000);
    let mut server = Server::start(settings.set("ack_timeout_ms", 60_000));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads = 8;
        for thread in 0..threads {
            let server = &server;
            scope.spawn(move || (thread..members).step_by(threads).for_each(|n| enroll(server, n)));
        }
    });
    println!("{members} members joined in {:?}", started.elapsed());

    server.stop();
    for (how, crash) in [("a clean stop", false), ("kill -9", true)] {
        if crash {
            server.kill();
        }
        let started = Instant::now();
        server.restart();
        let took = started.elapsed();
        println!("start after {how} with {members} members: {took:?}");
        assert!(took < Duration::from_secs(3), "{how}: {took:?}");
    }

    let online = members / 100;
    let mut back: Vec<_> = (0..online)
        .map(|n| {
            let mut client = Client::open(&server, &member(n));
            let follower = Follower::first(client.join_durable(GROUP));
            (client, follower)
        })
        .collect();
    let mut publisher = Client::open(&server, "publisher");
    let count = 200;
    let (few, _) = broadcast(&mut publisher, "nobody", count, 100);
    let (full, _) = broadcast(&mut publisher, GROUP, count, 100);
    let (one, last) = broadcast(&mut publisher, GROUP, count, 1);
    println!("a publish with a receipt: to nobody {few:?}, to all {full:?}, to 1 percent {one:?}");
    let started = Instant::now();
    for (client, follower) in &mut back {
        client.follow(follower, last.0);
        client.ack_all(follower);
    }
    let mut receipts = 0;
    while receipts < count {
        let receipt = publisher.receipt();
        if receipt.members > 0 {
            assert_eq!(receipt.percent, 1, "those who are away hold up the others");
            assert_eq!((receipt.acked as usize, receipt.members as usize), (online, members));
            receipts += 1;
        }
    }
    println!("{online} members read and acknowledged, receipts after {:?}", started.elapsed());
    publisher.stream().flush().unwrap();
}
