//! One group on two shards with 300 native members, 300 that speak WebSocket in binary messages and
//! 300 that speak JSON, and publishers of each kind: all of them see one order.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::BTreeMap;

use common::client::hello_bytes;
use common::websocket::{self, BINARY, BINARY_V1, JSON_V1, TEXT, WebSocket, frame, json};
use common::{Client, Follower, Server, Settings};
use fanfare::limits::FRAME_MAX;
use fanfare::wire::{ClientFrame, Join, JoinEntry, ServerFrame, Start, split};

const EACH: usize = 300;
const MESSAGES: u64 = 60;

/// Sequence number, publisher and payload of what came.
type Seen = Vec<(u64, Vec<u8>, Vec<u8>)>;

enum Member {
    Native(Box<(Client, Follower)>),
    WebSocket(WebSocket),
}

/// A WebSocket that has joined.
fn websocket_member(server: &Server, protocol: &str, name: &str) -> WebSocket {
    let mut ws = WebSocket::speaking(server, protocol);
    let mut frames = hello_bytes(name)[4..].to_vec();
    Join::encode(&mut frames, 1, &[JoinEntry::live(b"g", Start::Tail)]);
    if protocol == BINARY_V1 {
        ws.send(&frame(BINARY, &frames));
    } else {
        let mut rest = &frames[..];
        while let Some((whole, len)) = split(rest, FRAME_MAX).unwrap() {
            let text = json::from_native(&ClientFrame::decode(whole).unwrap()).unwrap();
            ws.send(&frame(TEXT, text.as_bytes()));
            rest = &rest[len..];
        }
    }
    while !native(&mut ws, protocol, &mut |frame| matches!(frame, ServerFrame::Joined(_))) {}
    ws
}

/// Takes one message; whether `done` says so of one of its frames.
fn native(
    ws: &mut WebSocket,
    protocol: &str,
    done: &mut dyn FnMut(ServerFrame<'_>) -> bool,
) -> bool {
    let (first, payload) = ws.frame().expect("the connection has ended");
    let mut frames = Vec::new();
    if protocol == JSON_V1 {
        assert_eq!(first, TEXT);
        json::to_native(&payload, &mut frames).unwrap();
    } else {
        assert_eq!(first, BINARY);
        frames = payload;
    }
    let (mut rest, mut found) = (&frames[..], false);
    while let Some((frame, len)) = split(rest, FRAME_MAX).unwrap() {
        found |= done(ServerFrame::decode(frame).unwrap());
        rest = &rest[len..];
    }
    found
}

fn seen(member: Member, protocol: &str, total: u64) -> Seen {
    match member {
        Member::Native(member) => {
            let (mut client, mut follower) = *member;
            client.follow(&mut follower, total);
            assert!(follower.gaps.is_empty());
            follower.messages.into_iter().map(|(seq, by, payload)| (seq.0, by, payload)).collect()
        }
        Member::WebSocket(mut ws) => {
            let mut seen = Vec::new();
            while (seen.len() as u64) < total {
                native(&mut ws, protocol, &mut |frame| {
                    let ServerFrame::Deliver(d) = frame else { return false };
                    seen.push((d.seq.0, d.sender.to_vec(), d.payload.to_vec()));
                    false
                });
            }
            seen
        }
    }
}

#[test]
fn native_binary_and_json_members_of_two_shards_see_one_order() {
    let server = Server::start(Settings::shards(2));
    let mut members = Vec::new();
    for n in 0..EACH {
        let mut client = Client::open(&server, &format!("native-{n}"));
        let follower = Follower::live(client.join("g"));
        members.push(("native", Member::Native(Box::new((client, follower)))));
        for protocol in [BINARY_V1, JSON_V1] {
            let ws = websocket_member(&server, protocol, &format!("{protocol}-{n}"));
            members.push((protocol, Member::WebSocket(ws)));
        }
    }
    let publishers = [
        Client::open(&server, "by-native"),
        websocket::client(&server, "by-binary", usize::MAX),
        websocket::json_client(&server, "by-json", usize::MAX),
    ];
    let threads: Vec<_> = publishers
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                for n in 0..MESSAGES {
                    // Text, and what is none.
                    let payload = if n % 2 == 0 { vec![b'a'; 40] } else { vec![0xFF; 40] };
                    client.publish("g", &payload);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());

    let mut orders: BTreeMap<&str, Vec<Seen>> = BTreeMap::new();
    for (protocol, member) in members {
        orders.entry(protocol).or_default().push(seen(member, protocol, 3 * MESSAGES));
    }
    let first = orders["native"][0].clone();
    assert!(first.iter().map(|(seq, ..)| *seq).eq(1..=3 * MESSAGES));
    for (protocol, orders) in orders {
        assert_eq!(orders.len(), EACH);
        for order in orders {
            assert!(order == first, "a member of {protocol} saw another order");
        }
    }
}
