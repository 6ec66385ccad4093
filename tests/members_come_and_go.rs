//! JOIN and LEAVE: what a member gets begins and ends exactly where it was told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Level;
use fanfare::wire::Start;

#[test]
fn no_deliver_comes_after_left_and_joining_again_goes_on_at_the_head() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let stop = Arc::new(AtomicBool::new(false));
        let publisher = {
            let mut client = Client::on_shard(&server, 0, "publisher");
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let requests: Vec<_> =
                        (0..16).map(|_| client.send_publish("g", b"payload")).collect();
                    requests.into_iter().for_each(|request| {
                        client.published(request);
                    });
                }
            })
        };
        for shard in 0..shards {
            let mut member = Client::on_shard(&server, shard, "member");
            for round in 0..40 {
                let joined = member.join("g");
                let mut follower = Follower::live(joined);
                if round % 4 != 0 {
                    member.follow(&mut follower, joined.head.0 + 1 + round);
                }
                let leave = member.send_leave("g");
                // Everything up to LEFT is in order; nothing comes after it.
                loop {
                    match member.recv() {
                        Got::Left { request, handle } => {
                            assert_eq!((request, handle), (leave, joined.handle));
                            break;
                        }
                        got => follower.take(got),
                    }
                }
                if round % 8 == 0 {
                    assert_eq!(member.recv_within(Duration::from_millis(20)), None);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        publisher.join().unwrap();
    }
}

#[test]
fn a_publisher_gets_its_own_messages_if_it_is_a_member_and_none_otherwise() {
    let server = Server::start(Settings::shards(2));
    let mut outsider = Client::open(&server, "outsider");
    let mut member = Client::open(&server, "member");
    for group in ["a", "b", "c", "d"] {
        let joined = member.join(group);
        assert_eq!(joined.head.0, 0);
        let mut follower = Follower::live(joined);
        let one = outsider.publish(group, b"one");
        let two = member.publish(group, b"two");
        assert_eq!((one.handle, one.epoch, one.seq.0), (joined.handle, joined.epoch, 1));
        assert_eq!((two.handle, two.epoch, two.seq.0), (joined.handle, joined.epoch, 2));
        assert_eq!(two.level, Level::Durable);
        member.follow(&mut follower, 2);
        assert_eq!(follower.payloads(), [b"one", b"two"]);
        assert_eq!(follower.messages[0].1, b"outsider");
        assert_eq!(follower.messages[1].1, b"member");
    }
    assert_eq!(outsider.recv_within(Duration::from_millis(50)), None);
}

#[test]
fn a_join_during_traffic_has_no_hole_between_head_and_live() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..2)
            .map(|n| {
                let mut client = Client::on_shard(&server, n % shards, "publisher");
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let requests: Vec<_> =
                            (0..16).map(|_| client.send_publish("g", &[7; 300])).collect();
                        requests.into_iter().for_each(|request| {
                            client.published(request);
                        });
                    }
                })
            })
            .collect();
        for round in 0..60u16 {
            let mut member = Client::on_shard(&server, round % shards, "member");
            let (joined, mut follower) = if round % 3 == 0 {
                let joined = member.join("g");
                (joined, Follower::live(joined))
            } else {
                // Some of history first: the cut between it and live must not show.
                let head = member.join("g").head.0;
                let leave = member.send_leave("g");
                loop {
                    if matches!(member.recv(), Got::Left { request, .. } if request == leave) {
                        break;
                    }
                }
                let from = head.saturating_sub(200).max(1);
                let joined = member.join_from("g", from);
                (joined, Follower::from(joined, from))
            };
            member.follow(&mut follower, joined.head.0 + 50);
            assert!(follower.gaps.is_empty());
        }
        stop.store(true, Ordering::Relaxed);
        publishers.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn one_join_of_many_groups_is_answered_for_each() {
    let server = Server::start(Settings::shards(2));
    let mut client = Client::open(&server, "client");
    let names: Vec<_> = (0..256).map(|n| format!("group-{n}")).collect();
    let entries: Vec<_> = names.iter().map(|name| (&name[..], Start::Tail)).collect();
    let request = client.send_join(&entries);
    let mut joined = std::collections::HashMap::new();
    for _ in &names {
        let Got::Joined { request: of, handle, group, .. } = client.recv() else { panic!() };
        assert_eq!(of, request);
        assert!(joined.insert(group, handle).is_none());
    }
    let handles: std::collections::HashSet<_> = joined.values().collect();
    assert_eq!(handles.len(), 256);
    let requests: Vec<_> = names.iter().map(|name| client.send_publish(name, b"x")).collect();
    for (name, request) in names.iter().zip(requests) {
        assert_eq!(client.published(request).handle, joined[name.as_bytes()]);
        let handle = joined[name.as_bytes()];
        client.expect("DELIVER", |got| {
            matches!(got, Got::Deliver { handle: of, .. } if *of == handle).then_some(())
        });
    }
}

#[test]
fn members_that_vanish_leave_nothing_behind() {
    let server = Server::start(Settings::shards(2));
    let mut publisher = Client::open(&server, "publisher");
    let mut stays = Client::open(&server, "stays");
    let mut follower = Follower::live(stays.join("g"));
    for round in 0..50u64 {
        let mut gone: Vec<_> = (0..4)
            .map(|n| {
                let mut client = Client::open(&server, &format!("gone-{n}"));
                client.join("g");
                client
            })
            .collect();
        publisher.publish("g", &round.to_le_bytes());
        gone.truncate(2);
        publisher.publish("g", &round.to_le_bytes());
    }
    stays.follow(&mut follower, 100);
}
