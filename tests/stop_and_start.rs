//! SIGTERM ends the server in good order, and what it was comes back with the next start.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::client::new_producer;
use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Level;
use fanfare::wire::ErrorCode;
use rustix::process::Signal;

#[test]
fn a_data_directory_named_relative_to_the_working_directory_takes_segments_and_snapshots() {
    let mut server = Server::start(Settings::shards(1).with_relative_data_dir());
    let mut publisher = Client::open(&server, "publisher");
    // More than the two segments that a start makes.
    let payload = vec![7; 60_000];
    for seq in 1..=300 {
        assert_eq!(publisher.publish("g", &payload).seq.0, seq);
    }
    server.signal(Signal::TERM);
    assert!(server.wait(Duration::from_secs(5)).success());
    server.restart();
    let mut member = Client::open(&server, "member");
    assert_eq!(member.join("g").head.0, 300);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn a_drain_answers_and_delivers_what_was_published_and_ends_with_zero() {
    for shards in [1, 2] {
        let mut server = Server::start(Settings::shards(shards));
        let mut member = Client::on_shard(&server, 0, "member");
        let mut follower = Follower::live(member.join("g"));
        let mut publisher = Client::on_shard(&server, shards - 1, "publisher");
        publisher.publish("g", b"first");
        // A burst that is under way when the signal comes.
        let requests: Vec<_> = (0..500).map(|_| publisher.send_publish("g", &[3; 500])).collect();
        server.signal(Signal::TERM);
        let (mut published, mut refused, mut drained) = (1, 0, false);
        loop {
            match publisher.recv() {
                Got::Published(p) => {
                    published += 1;
                    assert_eq!(p.seq.0, published);
                }
                Got::Error { code, request, .. } => {
                    assert_eq!(code, ErrorCode::Draining as u16);
                    assert!(requests.contains(&request));
                    refused += 1;
                }
                Got::Drain { grace_ms, .. } => {
                    assert_eq!(grace_ms, 2_000);
                    drained = true;
                }
                Got::Closed => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(drained, "DRAIN comes before the end");
        eprintln!("{shards} shards: {published} published, {refused} refused while draining");
        // The member got all that was acknowledged, and DRAIN.
        member.follow(&mut follower, published);
        member.expect("DRAIN", |got| matches!(got, Got::Drain { .. }).then_some(()));
        let status = server.wait(Duration::from_secs(5));
        assert!(status.success(), "{status}");

        server.restart();
        let mut member = Client::open(&server, "member");
        let joined = member.join_from("g", 1);
        assert!(joined.head.0 >= published);
        let mut follower = Follower::from(joined, 1);
        member.follow(&mut follower, published);
    }
}

#[test]
fn an_idle_server_stops_at_once_and_takes_no_connection_meanwhile() {
    let mut server = Server::start(Settings::shards(2).set("drain_grace_ms", 10_000));
    let mut clients: Vec<_> = (0..20)
        .map(|n| {
            let mut client = Client::open(&server, &format!("client-{n}"));
            client.join("g");
            client
        })
        .collect();
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    for client in &mut clients {
        assert!(matches!(client.recv(), Got::Drain { grace_ms: 10_000, .. }));
        assert_eq!(client.recv(), Got::Closed);
    }
    assert!(std::net::TcpStream::connect(server.addr()).is_err());
}

/// A server that cannot finish its drain soon, since a member does not read.
fn server_with_a_stalled_member(grace_ms: u64) -> (Server, Client) {
    let settings = Settings::shards(1)
        .set("drain_grace_ms", grace_ms)
        .set("stall_timeout_ms", 60_000)
        .set("socket_send_buffer", 16 * 1024);
    let server = Server::start(settings);
    let mut stalled = Client::open(&server, "stalled");
    stalled.join("g");
    let mut publisher = Client::open(&server, "publisher");
    for _ in 0..40 {
        let requests: Vec<_> = (0..20).map(|_| publisher.send_publish("g", &[1; 20_000])).collect();
        requests.into_iter().for_each(|request| {
            publisher.published(request);
        });
    }
    (server, stalled)
}

#[test]
fn the_grace_time_bounds_a_drain() {
    let (mut server, _stalled) = server_with_a_stalled_member(700);
    let started = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
    assert!(started.elapsed() >= Duration::from_millis(600), "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_stopping_server_still_answers_what_has_its_place_and_takes_nothing_new() {
    let (server, _stalled) = server_with_a_stalled_member(60_000);
    let producer = new_producer();
    let mut client = Client::open_as(&server, "client", producer);
    let first = client.publish_as("g", 1, b"once").unwrap();
    server.signal(Signal::TERM);
    client.expect("DRAIN", |got| matches!(got, Got::Drain { .. }).then_some(()));
    let again = client.publish_as("g", 1, b"once").unwrap();
    assert_eq!((again.seq, again.epoch), (first.seq, first.epoch));
    for (group, number) in [("g", 2), ("g", 3), ("new", 1), ("new", 2)] {
        assert_eq!(client.publish_as(group, number, b"x"), Err((ErrorCode::Draining, 0)));
    }
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let (mut server, _stalled) = server_with_a_stalled_member(60_000);
    server.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.has_ended(), None);
    let started = Instant::now();
    server.signal(Signal::TERM);
    server.wait(Duration::from_secs(5));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn handles_heads_and_epochs_survive_a_restart_and_a_crash() {
    let mut server = Server::start(Settings::shards(2));
    let names: Vec<_> = (0..20).map(|n| format!("group-{n}")).collect();
    let mut before = Vec::new();
    let mut client = Client::open(&server, "client");
    for (n, name) in names.iter().enumerate() {
        for _ in 0..=n {
            client.publish(name, b"x");
        }
        before.push(client.join(name));
    }
    for crash in [false, true, false, true] {
        if crash {
            server.kill();
        } else {
            server.stop();
        }
        server.restart();
        let mut client = Client::open(&server, "client");
        for (n, name) in names.iter().enumerate() {
            let joined = client.join(name);
            assert_eq!(joined.handle, before[n].handle);
            assert_eq!(joined.epoch, before[n].epoch, "nothing was lost, so the epoch stays");
            assert_eq!(joined.head, before[n].head);
        }
        // New groups do not take old handles.
        let new = client.publish(&format!("new-{}", client_count(&before)), b"x").handle;
        assert!(before.iter().all(|joined| joined.handle != new));
        for (name, joined) in names.iter().zip(&mut before) {
            let published = client.publish(name, b"y");
            joined.head = published.seq;
            assert_eq!(published.handle, joined.handle);
        }
    }
}

fn client_count(before: &[common::client::JoinedGroup]) -> u64 {
    before.iter().map(|joined| joined.head.0).sum()
}

#[test]
fn a_crash_gives_groups_that_used_level_memory_a_new_epoch_and_no_others() {
    for crash in [true, false] {
        let mut server = Server::start(Settings::shards(2));
        let mut client = Client::open(&server, "client");
        let (durable, memory) = (client.join("durable"), client.join("memory"));
        for _ in 0..10 {
            client.publish("durable", b"x");
            let (request, bytes) = client.publish_frame("memory", Some(Level::Memory), b"x");
            client.send(&bytes);
            client.published(request);
        }
        drop(client);
        if crash {
            server.kill();
        } else {
            server.stop();
        }
        server.restart();
        let mut client = Client::open(&server, "client");
        let durable_after = client.join("durable");
        assert_eq!(durable_after.epoch, durable.epoch);
        assert_eq!(durable_after.head.0, 10);
        let memory_after = client.join_from("memory", 1);
        if crash {
            assert!(memory_after.epoch > memory.epoch);
        } else {
            assert_eq!(memory_after.epoch, memory.epoch);
            assert_eq!(memory_after.head.0, 10);
        }
        // History shows the epoch in which it was, and what comes now the new one.
        let mut follower = Follower::from(memory_after, 1);
        client.follow(&mut follower, memory_after.head.0);
        if memory_after.head.0 > 0 {
            assert_eq!(follower.epoch, Some(memory.epoch));
        }
        let published = client.publish("memory", b"y");
        assert_eq!(published.epoch, memory_after.epoch);
        client.follow(&mut follower, published.seq.0);
        assert_eq!(follower.epoch, Some(memory_after.epoch));
    }
}
