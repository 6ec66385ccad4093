//! Messages of WebSockets are compressed for those who offered it, one by one, and what a client
//! compresses is read within the bound of a message.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::tokens::{Issuer, everything};
use common::websocket::{BINARY_V1, JSON_V1, TEXT, WebSocket, frame};
use common::{Client, Follower, Random, Server, Settings};
use fanfare::limits::{WS_INFLATED_NS_PER_BYTE, WS_INFLATED_UNKNOWN, WS_MESSAGE_MAX};
use fanfare::wire::{JoinEntry, Publish, ServerFrame, Start, split};
use fanfare::ws::deflate::Deflate;

const COMPRESSED: u8 = 0x40;
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const HELLO: &str =
    r#"{"type":"hello","member":"j","producer":"00112233-4455-6677-8899-aabbccddeeff"}"#;
const JOIN: &str = r#"{"type":"join","request":1,"groups":["g"]}"#;

fn server() -> Server {
    Server::start(Settings::shards(1).set("websocket_deflate", true))
}

/// A WebSocket that may send and gets compressed messages.
fn open(server: &Server, protocol: &str) -> WebSocket {
    let (ws, head) = WebSocket::asking(server, protocol, OFFER);
    let answer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                  client_no_context_takeover\r\n";
    assert!(head.contains(answer), "{head}");
    ws
}

fn compressed(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(Deflate::default().compress(text.as_bytes(), &mut out));
    out
}

/// The next message, and whether it came compressed.
fn message(ws: &mut WebSocket) -> (Vec<u8>, bool) {
    let (first, payload) = ws.frame().unwrap();
    if first & COMPRESSED == 0 {
        return (payload, false);
    }
    let mut out = Vec::new();
    Deflate::default().decompress(&payload, 64 << 20, &mut out).unwrap();
    (out, true)
}

#[test]
fn members_get_the_same_messages_compressed_and_plain() {
    let server = server();
    let mut json = open(&server, JSON_V1);
    json.send(&frame(TEXT | COMPRESSED, &compressed(HELLO)));
    json.send(&frame(TEXT, JOIN.as_bytes()));
    let mut plain = WebSocket::speaking(&server, JSON_V1);
    let hello = HELLO.replace("0011", "0022").replace("\"j\"", "\"p\"");
    plain.send(&frame(TEXT, hello.as_bytes()));
    plain.send(&frame(TEXT, JOIN.as_bytes()));
    for ws in [&mut json, &mut plain] {
        while !message(ws).0.starts_with(br#"{"type":"joined""#) {}
    }
    let mut binary = open(&server, BINARY_V1);
    let mut frames = common::client::hello_bytes("b")[4..].to_vec();
    fanfare::wire::Join::encode(&mut frames, 1, &[JoinEntry::live(b"g", Start::Tail)]);
    let mut small = Vec::new();
    if Deflate::default().compress(&frames, &mut small) {
        binary.send(&frame(0x82 | COMPRESSED, &small));
    } else {
        binary.send(&frame(0x82, &frames));
    }
    // Its WELCOME and JOINED may come in one message.
    while !native(&message(&mut binary).0, |frame| matches!(frame, ServerFrame::Joined(_))) {}

    let mut publisher = Client::open(&server, "publisher");
    let payload = "chat ".repeat(100);
    for n in 1..=20u64 {
        publisher.publish("g", payload.as_bytes());
        let (mut from_json, mut from_plain) = (message(&mut json), message(&mut plain));
        if n == 1 {
            // EPOCH comes before.
            (from_json, from_plain) = (message(&mut json), message(&mut plain));
        }
        assert_eq!(from_json.0, from_plain.0);
        assert!(from_json.1 && !from_plain.1);
        let value: serde_json::Value = serde_json::from_slice(&from_json.0).unwrap();
        assert_eq!(
            (&value["seq"], &value["payload"]),
            (&n.to_string().into(), &payload.as_str().into())
        );
        let mut seen = message(&mut binary);
        if n == 1 {
            seen = message(&mut binary);
        }
        assert!(seen.1);
        let found = native(
            &seen.0,
            |frame| matches!(frame, ServerFrame::Deliver(d) if d.seq.0 == n && d.payload == payload.as_bytes()),
        );
        assert!(found, "message {n}");
    }
}

/// Whether one of the frames is what is looked for.
fn native(mut frames: &[u8], mut is_it: impl FnMut(ServerFrame<'_>) -> bool) -> bool {
    let mut found = false;
    while let Some((frame, len)) = split(frames, 1 << 20).unwrap() {
        found |= is_it(ServerFrame::decode(frame).unwrap());
        frames = &frames[len..];
    }
    found
}

#[test]
fn bombs_and_broken_data_end_the_connection_and_nobody_elses() {
    let server = server();
    let mut healthy = Client::open(&server, "healthy");
    healthy.ping();
    let before = server.rss_kib();
    let mut bomb = Vec::new();
    assert!(Deflate::default().compress(&vec![b' '; 16 << 20], &mut bomb));
    assert!((bomb.len() as u64) < WS_MESSAGE_MAX, "{} bytes", bomb.len());
    for _ in 0..4 {
        let mut ws = open(&server, JSON_V1);
        ws.send(&frame(TEXT | COMPRESSED, &bomb));
        assert_eq!(ws.closed().0, 1_009);
    }
    let after = server.rss_kib();
    assert!(after < before + 16 * 1024, "memory went from {before} to {after} KiB");
    // Many small ones, each below the bound of a message: the first is refused.
    let mut small = Vec::new();
    assert!(Deflate::default().compress(&vec![b' '; 100_000], &mut small));
    let mut ws = open(&server, JSON_V1);
    ws.send(&frame(TEXT | COMPRESSED, &small).repeat(100));
    assert_eq!(ws.closed().0, 1_009);
    for (first, payload, code) in [
        (TEXT | COMPRESSED, &b"\xFF\xFF\xFF\xFF"[..], 1_007),
        // Of a compressed message only the first frame says so, and pings never do.
        (0x80 | COMPRESSED, b"", 1_002),
        (0x89 | COMPRESSED, b"", 1_002),
        // Compressed text that is not UTF-8: a stored block of one byte.
        (TEXT | COMPRESSED, b"\x00\x01\x00\xFE\xFF\xFF\x00", 1_007),
    ] {
        let mut ws = open(&server, JSON_V1);
        ws.send(&frame(first, payload));
        assert_eq!(ws.closed().0, code, "{first:x} {payload:x?}");
    }
    // Not agreed on: the client did not offer it, or the server does not do it.
    let mut ws = WebSocket::speaking(&server, JSON_V1);
    ws.send(&frame(TEXT | COMPRESSED, &compressed(HELLO)));
    assert_eq!(ws.closed().0, 1_002);
    let without = Server::start(Settings::shards(1));
    let (mut ws, head) = WebSocket::asking(&without, JSON_V1, OFFER);
    assert!(!head.contains("Extensions"), "{head}");
    ws.send(&frame(TEXT | COMPRESSED, &compressed(HELLO)));
    assert_eq!(ws.closed().0, 1_002);
    healthy.ping();
}

#[test]
fn a_compressed_message_of_a_stranger_comes_to_little() {
    let issuer = Issuer::eddsa("a");
    let settings = Settings::shards(1).set("websocket_deflate", true);
    let server = Server::with_keys(settings, &issuer.key_file());
    // Letters at random hardly get shorter, so the bound by the compressed length is far.
    let mut random = Random::new();
    let letters = (0..=WS_INFLATED_UNKNOWN).map(|_| char::from(b'a' + random.below(26) as u8));
    let long = compressed(&letters.collect::<String>());
    let mut ws = open(&server, JSON_V1);
    ws.send(&frame(TEXT | COMPRESSED, &long));
    assert_eq!(ws.closed().0, 1_009);
    let mut ws = open(&server, JSON_V1);
    ws.send(&frame(TEXT | COMPRESSED, &compressed(HELLO)));
    let token = issuer.token("j", 600, everything());
    let auth = format!(r#"{{"type":"auth","request":1,"token":"{token}"}}"#);
    ws.send(&frame(TEXT | COMPRESSED, &compressed(&auth)));
    while !message(&mut ws).0.starts_with(br#"{"type":"authed""#) {}
    ws.send(&frame(TEXT | COMPRESSED, &long));
    let (answer, _) = message(&mut ws);
    assert!(answer.starts_with(br#"{"type":"error""#), "{}", String::from_utf8_lossy(&answer));
}

/// Browsers compress whatever a page sends, so a member may send what comes to hundreds of times its
/// length, at a pace that leaves the shard to the others.
#[test]
fn members_may_send_what_compresses_well_and_all_of_it_arrives_in_order() {
    let server = server();
    let mut follower = Client::open(&server, "follower");
    let mut seen = Follower::live(follower.join("g"));
    let mut json = open(&server, JSON_V1);
    json.send(&frame(TEXT | COMPRESSED, &compressed(HELLO)));
    let letters = |n: u64| char::from(b'a' + n as u8).to_string().repeat(50_000);
    let publish = |n: u64| {
        let text = letters(n);
        let publish = format!(
            r#"{{"type":"publish","request":{n},"group":"g","producer_seq":"{n}","payload":"{text}"}}"#
        );
        let small = compressed(&publish);
        assert!(publish.len() > 100 * small.len(), "{} of {}", small.len(), publish.len());
        frame(TEXT | COMPRESSED, &small)
    };
    // All at once, and what is ordinary behind it.
    let mut bytes: Vec<u8> = (1..=20).flat_map(publish).collect();
    let last =
        r#"{"type":"publish","request":21,"group":"g","producer_seq":"21","payload":"last"}"#;
    bytes.extend(frame(TEXT | COMPRESSED, &compressed(last)));
    let sent = Instant::now();
    json.send(&bytes);
    follower.follow(&mut seen, 21);
    let pace = Duration::from_nanos(19 * 50_000 * WS_INFLATED_NS_PER_BYTE);
    assert!(sent.elapsed() >= pace, "{:?}, the pace is {pace:?}", sent.elapsed());
    for (n, seen) in (1..=20).zip(seen.payloads()) {
        assert_eq!(seen, letters(n).as_bytes(), "message {n}");
    }
    assert_eq!(seen.payloads()[20], b"last");

    // Many frames in one message, as a client sends that gathers what it has to say.
    let mut binary = open(&server, BINARY_V1);
    let hello = &common::client::hello_bytes("b")[4..];
    binary.send(&frame(0x82, hello));
    let payload = [b'x'; 1_000];
    let mut frames = Vec::new();
    for n in 1..=200 {
        let request = n as u32;
        let group = b"g";
        Publish { request, level: None, receipt: 0, producer_seq: n, group, payload: &payload }
            .encode(&mut frames);
    }
    let mut small = Vec::new();
    assert!(Deflate::default().compress(&frames, &mut small));
    assert!(frames.len() > 40 * small.len(), "{} of {}", small.len(), frames.len());
    binary.send(&frame(0x82 | COMPRESSED, &small));
    follower.follow(&mut seen, 200);
    assert!(seen.payloads()[21..].iter().all(|seen| **seen == payload));
}
