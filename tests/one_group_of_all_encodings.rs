//! One group on two shards with 300 native members, 300 that speak WebSocket in binary messages, 300
//! that speak JSON and 100 that do one of these by TLS, and publishers of each kind: all of them see
//! one order.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::client::hello_bytes;
use common::tls::{self, Pki};
use common::websocket::{self, BINARY, BINARY_V1, JSON_V1, TEXT, WebSocket, frame, json};
use common::{Client, Follower, Server, Settings, raise_open_files};
use fanfare::limits::FRAME_MAX;
use fanfare::wire::{ClientFrame, Join, JoinEntry, ServerFrame, Start, split};
use rustls::version::{TLS12, TLS13};

const EACH: usize = 300;
const BY_TLS: usize = 100;
const MESSAGES: u64 = 60;

/// Sequence number, publisher and payload of what came.
type Seen = Vec<(u64, Vec<u8>, Vec<u8>)>;

enum Member {
    Native(Box<(Client, Follower)>),
    WebSocket(WebSocket),
}

fn native_member(mut client: Client) -> Member {
    let follower = Follower::live(client.join("g"));
    Member::Native(Box::new((client, follower)))
}

/// A member of this WebSocket that has joined.
fn websocket_member(mut ws: WebSocket, protocol: &str, name: &str) -> Member {
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
    Member::WebSocket(ws)
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
fn members_of_all_encodings_on_two_shards_see_one_order() {
    raise_open_files();
    let begun = Instant::now();
    let pki = Pki::new();
    // Members that wait for the others to join say nothing.
    let settings = Settings::shards(2).set("heartbeat_ms", 0);
    let server = Server::start(pki.settings(settings));
    let configs = [pki.client(&[&TLS12], false), pki.client(&[&TLS13], false)];
    let by_tls = |n: usize| tls::through(&server, &configs[n / 3 % 2]);
    let native = |n: usize| {
        let client = Client::open(&server, &format!("native-{n}"));
        ("native", "native", native_member(client))
    };
    let websocket = |protocol, n: usize| {
        let ws = WebSocket::speaking(&server, protocol);
        (protocol, protocol, websocket_member(ws, protocol, &format!("{protocol}-{n}")))
    };
    let tls_member = |n: usize| {
        let protocol = ["native", BINARY_V1, JSON_V1][n % 3];
        let name = format!("tls-{n}");
        let member = if protocol == "native" {
            let mut client = Client::over(by_tls(n));
            client.hello(&name);
            native_member(client)
        } else {
            websocket_member(WebSocket::over(by_tls(n), protocol), protocol, &name)
        };
        ("TLS", protocol, member)
    };
    let members: Vec<_> = std::thread::scope(|scope| {
        let joining = [
            scope.spawn(|| (0..EACH).map(native).collect::<Vec<_>>()),
            scope.spawn(|| (0..EACH).map(|n| websocket(BINARY_V1, n)).collect()),
            scope.spawn(|| (0..EACH).map(|n| websocket(JSON_V1, n)).collect()),
            scope.spawn(|| (0..BY_TLS).map(tls_member).collect()),
        ];
        joining.into_iter().flat_map(|joined| joined.join().unwrap()).collect()
    });
    let over_tls = |n, protocol| {
        let ws = WebSocket::over(by_tls(n), protocol);
        websocket::client_over(ws, &format!("by-tls-{protocol}"), protocol, usize::MAX)
    };
    let publishers = [
        Client::open(&server, "by-native"),
        websocket::client(&server, "by-binary", usize::MAX),
        websocket::json_client(&server, "by-json", usize::MAX),
        tls::client(&server, &configs[0], "by-tls"),
        over_tls(0, BINARY_V1),
        over_tls(3, JSON_V1),
    ];
    let total = publishers.len() as u64 * MESSAGES;
    eprintln!(
        "{} members and {} publishers, {:?}",
        members.len(),
        publishers.len(),
        begun.elapsed()
    );
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
    eprintln!("{total} messages are published, {:?}", begun.elapsed());

    let mut orders: BTreeMap<&str, Vec<Seen>> = BTreeMap::new();
    for (kind, protocol, member) in members {
        orders.entry(kind).or_default().push(seen(member, protocol, total));
    }
    eprintln!("and all are there, {:?}", begun.elapsed());
    let first = orders["native"][0].clone();
    assert!(first.iter().map(|(seq, ..)| *seq).eq(1..=total));
    for (kind, each) in [("native", EACH), (BINARY_V1, EACH), (JSON_V1, EACH), ("TLS", BY_TLS)] {
        assert_eq!(orders[kind].len(), each);
        assert!(orders[kind].iter().all(|order| *order == first), "{kind} saw another order");
    }
}
