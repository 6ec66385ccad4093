//! Each limit that a client can run into answers with its own code, and says the limit.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use common::{Client, Got, Server, Settings};
use fanfare::wire::{ErrorCode, Start};

#[test]
fn payload_above_the_limit_is_refused_and_the_connection_goes_on() {
    let server = Server::start(Settings::shards(1).set("payload_max", 1000));
    let mut client = Client::bare(&server);
    let welcome = client.hello("client");
    assert_eq!(welcome.payload_max, 1000);
    assert!(welcome.frame_max >= 2024);
    let request = client.send_publish("g", &[0; 1001]);
    let (code, limit, _) = client.error(request);
    assert_eq!((code, limit), (ErrorCode::PayloadTooLong, 1000));
    assert_eq!(client.publish("g", &[0; 1000]).seq.0, 1, "the refused one took no number");
}

#[test]
fn frame_of_the_greatest_length_is_taken_and_one_byte_more_is_fatal() {
    let server = Server::start(Settings::shards(1).set("payload_max", 1000));
    let mut client = Client::bare(&server);
    let frame_max = client.hello("client").frame_max;
    // An unknown kind may be as long as a frame may be.
    let mut frame = frame_max.to_le_bytes().to_vec();
    frame.extend([0x7F, 0, 0, 0]);
    frame.resize(4 + frame_max as usize, 0);
    client.send(&frame);
    assert_eq!(client.error(0).0, ErrorCode::UnknownFrame);
    client.send(&(frame_max + 1).to_le_bytes());
    assert_eq!(client.fatal(), (ErrorCode::FrameTooLong, u64::from(frame_max)));
}

#[test]
fn groups_per_member_hold_over_all_shards_also_when_joined_at_once() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards).set("groups_per_member_max", 10));
        let mut client = Client::open(&server, "client");
        let names: Vec<_> = (0..30).map(|n| format!("group-{n}")).collect();
        let entries: Vec<_> = names.iter().map(|name| (&name[..], Start::Tail)).collect();
        let request = client.send_join(&entries);
        let (mut joined, mut refused) = (Vec::new(), 0);
        for _ in 0..names.len() {
            match client.recv() {
                Got::Joined { group, request: of, .. } if of == request => joined.push(group),
                Got::Error { request: of, code, limit, field, .. } if of == request => {
                    assert_eq!(code, ErrorCode::TooManyGroupsPerMember as u16);
                    assert_eq!(limit, 10);
                    assert!(names.contains(&field));
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((joined.len(), refused), (10, 20), "over {shards} shards");
        // Leaving one makes room for one.
        let leave = client.send_leave(str::from_utf8(&joined[0]).unwrap());
        client.expect("LEFT", |got| {
            matches!(got, Got::Left { request, .. } if *request == leave).then_some(())
        });
        client.join("another");
        let request = client.send_join(&[("one too many", Start::Tail)]);
        assert_eq!(client.error(request).0, ErrorCode::TooManyGroupsPerMember);
    }
}

#[test]
fn groups_of_a_shard_are_bounded_for_join_and_publish() {
    let server = Server::start(Settings::shards(1).set("groups_max", 3));
    let mut client = Client::open(&server, "client");
    for group in ["a", "b", "c"] {
        client.join(group);
    }
    let request = client.send_join(&[("d", Start::Tail)]);
    assert_eq!(client.error(request), (ErrorCode::TooManyGroups, 3, "d".to_owned()));
    let request = client.send_publish("d", b"x");
    let (code, limit, _) = client.error(request);
    assert_eq!((code, limit), (ErrorCode::TooManyGroups, 3));
    client.publish("a", b"x");
}

#[test]
fn members_of_a_group_are_bounded_over_all_shards() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards).set("members_per_group_max", 4));
        let mut members: Vec<_> = (0..4)
            .map(|n| {
                let mut client = Client::on_shard(&server, n % shards, "member");
                client.join("g");
                client
            })
            .collect();
        for shard in 0..shards {
            let mut late = Client::on_shard(&server, shard, "late");
            let request = late.send_join(&[("g", Start::Tail)]);
            assert_eq!(late.error(request), (ErrorCode::TooManyMembers, 4, "g".to_owned()));
        }
        // A member that leaves, and one whose connection ends, make room.
        let leave = members[0].send_leave("g");
        members[0].expect("LEFT", |got| {
            matches!(got, Got::Left { request, .. } if *request == leave).then_some(())
        });
        drop(members.pop());
        for shard in 0..2 {
            common::wait_until("room in the group", || {
                let mut late = Client::on_shard(&server, shard % shards, "late");
                let request = late.send_join(&[("g", Start::Tail)]);
                let joined = late.expect("an answer", |got| match got {
                    Got::Joined { request: of, .. } if *of == request => Some(true),
                    Got::Error { request: of, .. } if *of == request => Some(false),
                    _ => None,
                });
                if joined {
                    members.push(late);
                }
                joined
            });
        }
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = Server::start(Settings::shards(1).set("connections_max", 5));
    let open = || {
        let mut client = Client::bare(&server);
        client.send(&common::client::hello_bytes("client"));
        let got = client.recv();
        (client, got)
    };
    let mut clients = Vec::new();
    // The connection that looked whether the server is up may still be counted for a moment.
    common::wait_until("five connections", || {
        if let (client, Got::Welcome(_)) = open() {
            clients.push(client);
        }
        clients.len() == 5
    });
    for _ in 0..20 {
        match open() {
            (mut client, Got::Error { code, limit, .. }) => {
                assert_eq!((code, limit), (ErrorCode::TooManyConnections as u16, 5));
                assert_eq!(client.recv(), Got::Closed);
            }
            (_, other) => panic!("{other:?}"),
        }
    }
    clients[0].ping();
    drop(clients.pop());
    common::wait_until("room for a connection", || matches!(open().1, Got::Welcome(_)));
}

#[test]
fn joining_twice_and_leaving_what_was_not_joined_are_told() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let mut client = Client::open(&server, "client");
        for group in ["a", "b", "c", "d"] {
            client.join(group);
            let request = client.send_join(&[(group, Start::Tail)]);
            assert_eq!(client.error(request), (ErrorCode::AlreadyAMember, 0, group.to_owned()));
            let request = client.send_leave("nowhere");
            assert_eq!(client.error(request), (ErrorCode::NotAMember, 0, "nowhere".to_owned()));
            // Twice in one frame: one of them joins.
            let twice = format!("{group}{group}");
            let request = client.send_join(&[(&twice, Start::Tail), (&twice, Start::Tail)]);
            client.expect("JOINED", |got| {
                matches!(got, Got::Joined { request: of, .. } if *of == request).then_some(())
            });
            assert_eq!(client.error(request), (ErrorCode::AlreadyAMember, 0, twice));
        }
    }
}
