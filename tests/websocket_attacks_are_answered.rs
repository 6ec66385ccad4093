//! What a WebSocket client must not do ends its connection with the code that PROTOCOL.md names,
//! and hurts nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::client::hello_bytes;
use common::websocket::{
    BINARY, CLOSE, JSON_V1, PING, PONG, TEXT, WebSocket, client, ends_within, frame, request,
};
use common::{Client, Follower, Server, Settings};
use fanfare::limits::WS_MESSAGE_MAX;
use fanfare::wire::{ErrorCode, ServerFrame, kind, split};

/// HELLO without the magic.
fn hello() -> Vec<u8> {
    hello_bytes("client")[4..].to_vec()
}

/// A native frame.
fn native(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 4).to_le_bytes()[..], &[kind, 0, 0, 0], body].concat()
}

/// An open connection that has got WELCOME.
fn open(server: &Server) -> WebSocket {
    let mut ws = WebSocket::open(server);
    ws.send(&frame(BINARY, &hello()));
    let (first, payload) = ws.frame().unwrap();
    assert_eq!((first, payload[4]), (BINARY, kind::WELCOME));
    ws
}

/// The status line and body of the answer to a request, after which the connection ends.
fn answer(server: &Server, request: &str) -> (String, String) {
    let mut ws = WebSocket::bare(server);
    ws.send(request.as_bytes());
    let head = ws.head();
    let status = head.lines().next().unwrap().to_owned();
    (status, String::from_utf8(ws.rest()).unwrap())
}

fn status(server: &Server, request: &str) -> u16 {
    let (line, body) = answer(server, request);
    assert!(!body.is_empty(), "{line}");
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn requests_that_are_not_granted_get_their_status() {
    let server = Server::start(Settings::shards(1));
    let mut healthy = Client::open(&server, "healthy");
    assert_eq!(status(&server, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 426);
    assert_eq!(status(&server, "GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status(&server, "POST / HTTP/1.1\r\nHost: a\r\n\r\n"), 405);
    assert_eq!(status(&server, &request("").replace("Version: 13", "Version: 7")), 426);
    assert_eq!(status(&server, &request("").replace("binary.v1", "binary.v9")), 400);
    assert_eq!(status(&server, &request("Origin: https://evil.example\r\n")), 403);
    assert_eq!(status(&server, &request(&"a: b\r\n".repeat(100))), 431);
    assert_eq!(status(&server, &request(&format!("a: {}\r\n", "b".repeat(9_000)))), 431);
    let endless = format!("GET /{}", "a".repeat(9_000));
    assert_eq!(status(&server, &endless), 431);
    healthy.ping();
}

#[test]
fn pages_of_listed_origins_may_connect_and_no_others() {
    let server = Server::start(
        Settings::shards(1).set("websocket_origins", r#"["https://chat.example", "null"]"#),
    );
    let granted = |origin: &str| {
        let mut ws = WebSocket::bare(&server);
        ws.send(request(&format!("Origin: {origin}\r\n")).as_bytes());
        ws.head().starts_with("HTTP/1.1 101 ")
    };
    assert!(granted("https://chat.example"));
    assert!(granted("null"));
    assert!(granted("http://127.0.0.1"), "the page comes from the server's own address");
    assert!(!granted("http://chat.example"));
    assert!(!granted("https://evil.example"));
}

#[test]
fn a_request_that_drips_is_answered_at_the_deadline() {
    let server = Server::start(Settings::shards(1).set("handshake_timeout_ms", 1_000));
    let started = Instant::now();
    let mut silent = WebSocket::bare(&server);
    silent.send(b"GET / HTTP/1.1\r\nHost: a\r\n");
    let mut dripping = WebSocket::bare(&server);
    let mut writer = dripping.stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        request("").into_bytes().into_iter().all(|byte| {
            std::thread::sleep(Duration::from_millis(100));
            writer.write_all(&[byte]).is_ok()
        })
    });
    // Upgraded, but without a HELLO.
    let mut mute = WebSocket::open(&server);
    assert!(silent.head().starts_with("HTTP/1.1 408 "));
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    assert_eq!(mute.closed(), (4_005, "HandshakeTimeout".to_owned()));
    assert!(ends_within(&mut dripping.stream, Duration::from_secs(10)));
    assert!(!drip.join().unwrap());
    client(&server, "in time", 5).ping();
}

#[test]
fn broken_rules_end_the_connection_with_their_code_and_others_go_on() {
    let server = Server::start(Settings::shards(1));
    let mut healthy = client(&server, "healthy", 50);
    let mut follower = Follower::live(healthy.join("g"));
    let long = WS_MESSAGE_MAX as usize + 1;
    let header = frame(BINARY, &vec![0; long])[..14].to_vec();
    let half = native(kind::PING, &[1; 8]);
    let cases: [(&str, Vec<u8>, u16); 13] = [
        ("unmasked", vec![BINARY, 2, 1, 2], 1002),
        ("reserved bit", frame(0xC2, b""), 1002),
        ("reserved opcode", frame(0x83, b""), 1002),
        ("long ping", frame(PING, &[0; 126]), 1002),
        ("fragmented ping", frame(0x09, b""), 1002),
        ("nothing to continue", frame(0x80, b"x"), 1002),
        ("half a close code", frame(CLOSE, b"\x03"), 1002),
        ("close code 1005", frame(CLOSE, &1005u16.to_be_bytes()), 1002),
        ("close reason", frame(CLOSE, b"\x03\xE8\xFF"), 1007),
        ("text", frame(TEXT, b"{}"), 1003),
        ("cut-off frame", frame(BINARY, &half[..half.len() - 1]), 1007),
        ("oversized", header, 1009),
        ("oversized native frame", frame(BINARY, &[0xFF; 8]), 4_007),
    ];
    let mut published = 0;
    for (what, bytes, code) in cases {
        for pieces in [bytes.len(), 1] {
            let mut ws = open(&server);
            for piece in bytes.chunks(pieces.max(1)) {
                let _ = ws.stream.write_all(piece);
            }
            assert_eq!(ws.closed().0, code, "{what}");
        }
        healthy.publish("g", what.as_bytes());
        published += 1;
    }
    healthy.follow(&mut follower, published);
}

/// The next message as JSON.
fn json(ws: &mut WebSocket) -> serde_json::Value {
    let (first, payload) = ws.frame().unwrap();
    assert_eq!(first, TEXT);
    serde_json::from_slice(&payload).unwrap()
}

const JSON_HELLO: &str =
    r#"{"type":"hello","member":"j","producer":"00112233-4455-6677-8899-aabbccddeeff"}"#;

#[test]
fn json_that_is_wrong_is_told_and_the_connection_goes_on_after_hello() {
    let server = Server::start(Settings::shards(1).set("payload_max", 1_000));
    let mut ws = WebSocket::speaking(&server, JSON_V1);
    ws.send(&frame(TEXT, JSON_HELLO.as_bytes()));
    assert_eq!(json(&mut ws)["type"], "welcome");
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    let digits = format!(r#"{{"type":"sync","request":{}}}"#, "9".repeat(1_000_000));
    let publish = |len: usize| {
        let payload = "x".repeat(len);
        format!(
            r#"{{"type":"publish","request":3,"group":"g","producer_seq":"1","payload":"{payload}"}}"#
        )
    };
    for (text, name, field, request) in [
        ("", "Malformed", "", 0),
        (r#"{"type":"join","request":3}"#, "Malformed", "groups", 3),
        (r#"{"type":"dance","request":3}"#, "UnknownFrame", "type", 3),
        (&deep, "Malformed", "", 0),
        (&digits, "Malformed", "request", 0),
        // Longer than a native frame may be, and than a payload.
        (&publish(500_000), "PayloadTooLong", "", 3),
    ] {
        ws.send(&frame(TEXT, text.as_bytes()));
        let error = json(&mut ws);
        let seen = (&error["name"], &error["field"], &error["request"]);
        assert_eq!(seen, (&name.into(), &field.into(), &request.into()), "{error}");
    }
    ws.send(&frame(TEXT, publish(1_000).as_bytes()));
    assert_eq!(json(&mut ws)["type"], "published");
    ws.send(&frame(BINARY, b"{}"));
    assert_eq!(ws.closed().0, 1_003);

    for (text, code) in [
        ("{}", (4_101, "Malformed")),
        (r#"{"type":"dance"}"#, (4_100, "UnknownFrame")),
        (r#"{"type":"ping"}"#, (4_004, "OutOfState")),
        (r#"{"type":"hello","member":""}"#, (4_101, "Malformed")),
    ] {
        let mut ws = WebSocket::speaking(&server, JSON_V1);
        ws.send(&frame(TEXT, text.as_bytes()));
        assert_eq!(ws.closed(), (code.0, code.1.to_owned()), "{text}");
    }
    let mut ws = WebSocket::speaking(&server, JSON_V1);
    ws.send(&frame(TEXT, b"\xFF"));
    assert_eq!(ws.closed().0, 1_007);
}

#[test]
fn a_fatal_error_comes_before_the_close_that_names_it() {
    let server = Server::start(Settings::shards(1));
    let mut ws = open(&server);
    ws.send(&frame(BINARY, &hello()));
    let (first, payload) = ws.frame().unwrap();
    let (error, _) = split(&payload, 1 << 20).unwrap().unwrap();
    let Ok(ServerFrame::Error(error)) = ServerFrame::decode(error) else { panic!("{payload:?}") };
    assert_eq!((first, error.code), (BINARY, ErrorCode::OutOfState as u16));
    assert_eq!(ws.closed(), (4_004, "OutOfState".to_owned()));

    let mut nameless = WebSocket::open(&server);
    nameless.send(&frame(BINARY, &native(kind::HELLO, &[1, 0, 1, 0, 0, 0, 0, 0])));
    assert_eq!(nameless.closed(), (4_101, "Malformed".to_owned()));
}

#[test]
fn a_close_is_answered_after_what_was_asked_before_it() {
    let server = Server::start(Settings::shards(1));
    let mut ws = open(&server);
    let mut bytes = frame(BINARY, &native(kind::PING, &[5; 8]));
    bytes.extend(frame(PING, b"hi"));
    bytes.extend(frame(CLOSE, &[&4_321u16.to_be_bytes()[..], b"bye"].concat()));
    bytes.extend(frame(BINARY, &native(kind::PING, &[6; 8])));
    ws.send(&bytes);
    let mut seen = [ws.frame().unwrap(), ws.frame().unwrap()];
    seen.sort();
    assert_eq!(seen, [(BINARY, native(kind::PONG, &[5; 8])), (PONG, b"hi".to_vec())]);
    assert_eq!(ws.closed(), (4_321, String::new()));

    let mut ws = open(&server);
    ws.send(&frame(CLOSE, b""));
    assert_eq!(ws.frame(), Some((CLOSE, Vec::new())));
    assert_eq!(ws.frame(), None);
}

#[test]
fn pings_are_answered_in_order_between_fragments_too() {
    let server = Server::start(Settings::shards(1));
    let mut ws = open(&server);
    let ping = native(kind::PING, &[7; 8]);
    let mut bytes = Vec::new();
    for n in 0..100u8 {
        bytes.extend(frame(0x02, &ping[..3]));
        bytes.extend(frame(PING, &[n; 125]));
        bytes.extend(frame(0x80, &ping[3..]));
    }
    ws.send(&bytes);
    let (mut pongs, mut answers) = (0, 0);
    while pongs < 100 || answers < 100 {
        match ws.frame().unwrap() {
            (PONG, payload) => {
                assert_eq!(payload, [pongs; 125]);
                pongs += 1;
            }
            (BINARY, payload) => {
                let one = native(kind::PONG, &[7; 8]);
                assert_eq!(payload, one.repeat(payload.len() / one.len()));
                answers += payload.len() / one.len();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((pongs, answers), (100, 100));
}

#[test]
fn a_flood_of_pings_does_not_grow_memory() {
    let server = Server::start(Settings::shards(1).set("stall_timeout_ms", 60_000));
    let mut healthy = Client::open(&server, "healthy");
    healthy.ping();
    let before = server.rss_kib();
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let ws = open(&server);
            ws.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            std::thread::spawn(move || {
                let flood = frame(PING, &[1; 125]).repeat(1_000);
                // Nothing is read, so in the end nothing more is taken.
                let mut taken = 0;
                while taken < 400_000_000 && (&ws.stream).write_all(&flood).is_ok() {
                    taken += flood.len();
                }
                (ws, taken)
            })
        })
        .collect();
    let floods: Vec<_> = floods.into_iter().map(|thread| thread.join().unwrap()).collect();
    for (_, taken) in &floods {
        assert!(*taken < 400_000_000, "the server goes on reading");
    }
    let after = server.rss_kib();
    assert!(after < before + 16 * 1024, "memory went from {before} to {after} KiB");
    healthy.ping();
}

#[test]
fn bytes_that_follow_the_request_at_once_are_taken() {
    let server = Server::start(Settings::shards(1));
    let mut stream = request("").into_bytes();
    stream.extend(frame(BINARY, &[hello(), native(kind::PING, &[3; 8])].concat()));
    for cut in (0..stream.len()).step_by(3) {
        let mut ws = WebSocket::bare(&server);
        ws.send(&stream[..cut]);
        ws.send(&stream[cut..]);
        assert!(ws.head().starts_with("HTTP/1.1 101 "));
        let mut got = Vec::new();
        while got.len() < 56 + 16 {
            let (first, payload) = ws.frame().unwrap();
            assert_eq!(first, BINARY);
            got.extend(payload);
        }
        assert_eq!(got[56..], native(kind::PONG, &[3; 8]));
    }
}
