//! Nobody without a token reads or writes anything, and what a token allows holds on every
//! request, at the time it says, with the keys that the server has then.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use common::client::hello_bytes;
use common::tokens::{Issuer, base64url, claims, everything, now_s};
use common::websocket::{BINARY, BINARY_V1, JSON_V1, TEXT, WebSocket, frame};
use common::{Client, Got, SOON, Server, Settings, replace, wait_until};
use fanfare::position::Seq;
use fanfare::wire::{Auth, ClientFrame, ErrorCode, Expected, Start};
use serde_json::{Value, json};

const NAMES: [&str; 4] = ["join", "publish", "history", "state"];

/// The fatal ERROR that comes, with its field.
fn refusal(client: &mut Client) -> (ErrorCode, u64, String) {
    let got = client.expect("ERROR", |got| match got {
        Got::Error { code, limit, field, text, .. } => {
            assert!(!text.is_empty());
            Some((ErrorCode::from_number(*code).unwrap(), *limit, field.clone()))
        }
        _ => None,
    });
    assert!(got.0.is_fatal());
    client.expect("the end", |got| (*got == Got::Closed).then_some(()));
    got
}

/// What is answered to HELLO of `member` and this token.
fn try_token(server: &Server, member: &str, token: &str) -> (ErrorCode, String) {
    let mut client = Client::bare(server);
    client.send(&hello_bytes(member));
    client.send_auth(token);
    let (code, _, field) = refusal(&mut client);
    assert!(client.nothing_passed_over(), "no WELCOME came before");
    (code, field)
}

#[test]
fn without_a_token_nothing_is_served() {
    let issuer = Issuer::eddsa("a");
    let settings = Settings::shards(2).set("handshake_timeout_ms", 400);
    let server = Server::with_keys(settings, &issuer.key_file());
    let frames: [&dyn Fn(&mut Client); 5] = [
        &|client| {
            client.send_join(&[("g", Start::Tail)]);
        },
        &|client| {
            client.send_publish("g", b"x");
        },
        &|client| {
            let mut out = Vec::new();
            ClientFrame::encode_ping(&mut out, 1);
            client.send(&out);
        },
        &|client| client.send(&[4, 0, 0, 0, 0x7F, 0, 0, 0]),
        &|client| {
            client.send_leave("g");
        },
    ];
    for send in frames {
        let mut client = Client::bare(&server);
        client.send(&hello_bytes("ann"));
        send(&mut client);
        assert_eq!(refusal(&mut client), (ErrorCode::AuthRequired, 0, String::new()));
        assert!(client.nothing_passed_over());
    }
    let mut silent = Client::bare(&server);
    silent.send(&hello_bytes("ann"));
    assert_eq!(refusal(&mut silent).0, ErrorCode::AuthRequired, "nothing came");
    let mut long = Client::bare(&server);
    long.send(&hello_bytes("ann"));
    long.send(&4109_u32.to_le_bytes());
    assert_eq!(refusal(&mut long), (ErrorCode::FrameTooLong, 4108, String::new()));
    let mut twice = Client::bare(&server);
    twice.send(&hello_bytes("ann"));
    twice.send(&hello_bytes("ann")[4..]);
    assert_eq!(refusal(&mut twice).0, ErrorCode::OutOfState);
}

#[test]
fn a_bad_token_gets_its_reason_and_the_end() {
    let (issuer, other) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let none = format!("{}.{}.", base64url("{\"alg\":\"none\"}"), base64url("{\"sub\":\"ann\"}"));
    let refused = |field: &str| (ErrorCode::TokenRefused, field.to_owned());
    for (token, answer) in [
        (issuer.token("ann", -1, everything()), (ErrorCode::TokenExpired, "exp".into())),
        (other.token("ann", 60, everything()), refused("signature")),
        (none, refused("alg")),
        (Issuer::hs256(&issuer.key_file()).token("ann", 60, everything()), refused("alg")),
        (issuer.token("bob", 60, everything()), refused("sub")),
        ("x".repeat(4096), refused("token")),
    ] {
        assert_eq!(try_token(&server, "ann", &token), answer);
    }
    let good = issuer.token("ann", 60, everything());
    let mut client = Client::open_with(&server, "ann", &good);
    client.join("g");
    assert_eq!(client.publish("g", b"x").seq, Seq(1));
}

/// All requests that name a group, and the right that each needs.
fn ask_everything(client: &mut Client, group: &str) -> Vec<(&'static str, u32)> {
    vec![
        ("join", client.send_join(&[(group, Start::Tail)])),
        ("publish", client.send_publish(group, b"x")),
        ("history", client.send_fetch(group, 1, 0, 0, 0)),
        ("state", client.send_set(group, "k", Expected::Any, Some(b"v"))),
        ("join or state", client.send_sync(group, 0)),
        ("join", client.send_roster(group, 0, 0, 0)),
    ]
}

#[test]
fn each_request_needs_its_right_in_that_group() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(2), &issuer.key_file());
    for allowed in NAMES {
        // History would come with join.
        let mut lists = json!({"history": []});
        lists[allowed] = json!(["room.*"]);
        let token = issuer.token("ann", 60, lists);
        let mut client = Client::open_with(&server, "ann", &token);
        for group in ["room.1", "foreign"] {
            for (needs, request) in ask_everything(&mut client, group) {
                let fits = needs.split(" or ").any(|right| right == allowed);
                let code = client.expect("an answer", |got| match got {
                    Got::Error { request: of, code, limit, field, .. } if *of == request => {
                        assert_eq!(field, group);
                        assert!(needs.contains(NAMES[*limit as usize - 1]), "{got:?}");
                        Some(Some(*code))
                    }
                    Got::Joined { request: of, .. } if *of == request => Some(None),
                    Got::Published(published) if published.request == request => Some(None),
                    Got::Fetched(page) if page.request == request => Some(None),
                    Got::StateSet(set) if set.request == request => Some(None),
                    Got::State(page) if page.head.request == request => Some(None),
                    Got::Roster(page) if page.head.request == request => Some(None),
                    _ => None,
                });
                let forbidden =
                    (!(fits && group == "room.1")).then_some(ErrorCode::Forbidden as u16);
                assert_eq!(code, forbidden, "{needs} of {group} with {allowed}");
            }
        }
    }
    // What was forbidden left nothing behind.
    let mut all = Client::open_with(&server, "eve", &issuer.token("eve", 60, everything()));
    assert_eq!(all.publish("foreign", b"first").seq, Seq(1));
}

#[test]
fn history_by_joining_needs_the_right_to_history() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(2), &issuer.key_file());
    let lists = json!({"join": ["*"], "history": ["open"]});
    let mut client = Client::open_with(&server, "ann", &issuer.token("ann", 60, lists));
    client.join_from("open", 1);
    let request = client.send_join(&[("closed", Start::Seq(Seq(1)))]);
    assert_eq!(client.error(request), (ErrorCode::Forbidden, 3, "closed".into()));
    client.join("closed");
}

#[test]
fn requests_behind_a_token_are_handled_after_it_also_in_one_piece() {
    let issuer = Issuer::rs256();
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let token = issuer.token("ann", 60, everything());
    let mut bytes = hello_bytes("ann");
    Auth { request: 77, token: token.as_bytes() }.encode(&mut bytes);
    let mut ping = Vec::new();
    ClientFrame::encode_ping(&mut ping, 5);
    bytes.extend(ping);
    for cut in [0, 4, 5, bytes.len() / 2, bytes.len() - 1] {
        let mut client = Client::bare(&server);
        client.send(&bytes[..cut]);
        std::thread::sleep(Duration::from_millis(20));
        client.send(&bytes[cut..]);
        assert!(matches!(client.recv(), Got::Welcome(_)));
        let Got::Authed(authed) = client.recv() else { panic!("no AUTHED") };
        assert_eq!(authed.request, 77);
        assert!((58_000..=60_000).contains(&authed.valid_ms), "{authed:?}");
        let (half, most) = (authed.valid_ms / 2, authed.valid_ms / 8 * 7 + 8);
        assert!((half..=most).contains(&authed.renew_after_ms), "{authed:?}");
        assert_eq!(client.recv(), Got::Pong(5));
    }
}

#[test]
fn a_connection_ends_with_its_token_unless_it_was_renewed() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let (from, exp) = (Instant::now(), now_s() + 2);
    let token = issuer.token("ann", 2, everything());
    let mut ends = Client::open_with(&server, "ann", &token);
    let mut renewed = Client::open_with(&server, "ann", &token);
    renewed.join("g");
    let request = renewed.send_auth(&issuer.token("ann", 600, everything()));
    assert!(renewed.authed(request).valid_ms > 500_000);
    assert_eq!(refusal(&mut ends), (ErrorCode::TokenExpired, exp, "exp".into()));
    assert!(from.elapsed() >= Duration::from_secs(1), "not before its time");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(renewed.publish("g", b"still here").seq, Seq(1));
    // A shorter one in place of a longer one counts as well.
    let request = renewed.send_auth(&issuer.token("ann", 1, everything()));
    renewed.authed(request);
    assert_eq!(refusal(&mut renewed).0, ErrorCode::TokenExpired);
}

#[test]
fn a_renewed_token_counts_alone() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(2), &issuer.key_file());
    let mut other = Client::open_with(&server, "eve", &issuer.token("eve", 60, everything()));
    let mut client = Client::open_with(&server, "ann", &issuer.token("ann", 60, everything()));
    let (kept, lost) = (client.join("kept"), client.join("lost"));
    let fewer = json!({"join": ["kept"], "publish": []});
    let request = client.send_auth(&issuer.token("ann", 60, fewer));
    assert_eq!(client.error(0), (ErrorCode::Forbidden, 1, "lost".into()));
    let left = client.expect("LEFT", |got| match got {
        Got::Left { request: 0, handle } => Some(*handle),
        _ => None,
    });
    assert_eq!(left, lost.handle);
    client.authed(request);
    other.publish("lost", b"secret");
    other.publish("kept", b"hello");
    client.expect("DELIVER", |got| match got {
        Got::Deliver { handle, .. } => {
            assert_eq!(*handle, kept.handle, "of a group that was left");
            Some(())
        }
        _ => None,
    });
    let request = client.send_publish("kept", b"x");
    assert_eq!(client.error(request), (ErrorCode::Forbidden, 2, "kept".into()));
    // A renewal is for the same member, and one that is refused ends the connection.
    client.send_auth(&issuer.token("eve", 60, everything()));
    assert_eq!(refusal(&mut client), (ErrorCode::TokenRefused, 0, "sub".into()));
}

#[test]
fn a_long_token_has_room_also_after_the_configuration_was_read_again() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(1).set("payload_max", 10), &issuer.key_file());
    let mut long = claims("ann", 60, everything());
    long["jti"] = "x".repeat(2_500).into();
    let long = issuer.sign(&long);
    let mut client = Client::open_with(&server, "ann", &long);
    server.signal(rustix::process::Signal::HUP);
    wait_until("the reload", || server.log().contains("the configuration was read again"));
    // A shard takes it over when it is awake.
    client.ping();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let request = client.send_auth(&long);
    client.authed(request);
}

#[test]
fn keys_are_taken_over_while_the_server_runs() {
    let (a, b) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let jwks = |keys: &[Value]| json!({"keys": keys}).to_string();
    let server = Server::with_keys(Settings::shards(2), &jwks(&[a.jwk("a")]));
    let path = server.key_file();
    let token =
        |issuer: &Issuer, kid: &str| issuer.sign_named(kid, &claims("ann", 600, everything()));
    let mut old = Client::open_with(&server, "ann", &token(&a, "a"));
    assert_eq!(try_token(&server, "ann", &token(&b, "b")).1, "kid");

    replace(&path, &jwks(&[a.jwk("a"), b.jwk("b")]));
    let in_force = || {
        (0..8).all(|_| {
            let mut client = Client::bare(&server);
            client.send(&hello_bytes("ann"));
            client.send_auth(&token(&b, "b"));
            matches!(client.recv(), Got::Welcome(_))
        })
    };
    wait_until("both shards have the new key", in_force);
    assert!(server.log().contains("the key file was read again"));
    let mut new = Client::open_with(&server, "ann", &token(&b, "b"));
    old.publish("g", b"both keys hold");

    fs::File::create(&path).unwrap().write_all(b"{ broken").unwrap();
    wait_until("the log says so", || server.log().contains("stay in force"));
    Client::open_with(&server, "ann", &token(&a, "a")).ping();

    replace(&path, &jwks(&[b.jwk("b")]));
    assert_eq!(refusal(&mut old), (ErrorCode::TokenRefused, 0, "key".into()));
    new.ping();
    assert_eq!(try_token(&server, "ann", &token(&a, "a")).1, "kid");
}

#[test]
fn a_log_of_everything_holds_no_token_and_no_key() {
    let secret = "a secret that must not be in any log at all";
    let issuer = Issuer::hs256(secret);
    let settings = Settings::shards(1).set("log", "\"trace\"");
    let mut server = Server::with_keys(settings, secret);
    let good = issuer.token("ann", 600, everything());
    let expired = issuer.token("ann", -9, everything());
    let foreign = Issuer::hs256("another secret that is long enough!!").token("ann", 9, json!({}));
    let mut client = Client::open_with(&server, "ann", &good);
    client.publish("g", b"x");
    for token in [&expired, &foreign] {
        try_token(&server, "ann", token);
    }
    client.send_auth(&foreign);
    refusal(&mut client);
    // Cut off in the middle: what is left of it when the connection ends.
    let mut cut = Client::bare(&server);
    cut.send(&hello_bytes("ann"));
    let mut bytes = Vec::new();
    Auth { request: 1, token: good.as_bytes() }.encode(&mut bytes);
    cut.send(&bytes[..bytes.len() - 5]);
    drop(cut);
    server.stop();
    let log = server.log();
    assert!(log.contains("token refused"), "the log was at work");
    for token in [&good, &expired, &foreign] {
        for part in token.split('.') {
            assert!(!log.contains(&part[..part.len().min(20)]), "a part of a token is in the log");
        }
    }
    assert!(!log.contains(secret));
}

#[test]
fn many_bad_tokens_at_once_are_all_answered_and_others_go_on() {
    let (issuer, other) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let mut member = Client::open_with(&server, "ann", &issuer.token("ann", 600, everything()));
    let bad = other.token("eve", 600, everything());
    let mut bytes = hello_bytes("eve");
    Auth { request: 1, token: bad.as_bytes() }.encode(&mut bytes);
    let mut storm: Vec<_> = (0..300)
        .map(|_| {
            let mut client = Client::bare(&server);
            client.send(&bytes);
            client
        })
        .collect();
    let deadline = Instant::now() + SOON;
    for n in 1..=100 {
        assert_eq!(member.publish("g", b"x").seq, Seq(n));
    }
    assert!(Instant::now() < deadline);
    for client in &mut storm {
        assert_eq!(refusal(client), (ErrorCode::TokenRefused, 0, "signature".into()));
    }
}

#[test]
fn a_server_without_keys_answers_tokens_and_does_not_look_at_them() {
    let server = Server::start(Settings::shards(1));
    let mut client = Client::open(&server, "ann");
    let request = client.send_auth("not a token");
    let authed = client.authed(request);
    assert_eq!((authed.valid_ms, authed.renew_after_ms), (0, 0));
    client.publish("g", b"x");
}

/// Bytes of WebSocket messages that open a connection with a token and then PING, and how the answers
/// look in it.
fn opening(protocol: &str, member: &str, token: &str) -> Vec<u8> {
    if protocol == BINARY_V1 {
        let mut frames = hello_bytes(member)[4..].to_vec();
        Auth { request: 7, token: token.as_bytes() }.encode(&mut frames);
        let mut ping = Vec::new();
        ClientFrame::encode_ping(&mut ping, 5);
        return [frame(BINARY, &frames), frame(BINARY, &ping)].concat();
    }
    let producer = "00112233445566778899aabbccddeeff";
    let messages = [
        json!({"type": "hello", "producer": producer, "member": member}),
        json!({"type": "auth", "request": 7, "token": token}),
        json!({"type": "ping", "token": "5"}),
    ];
    messages.iter().flat_map(|message| frame(TEXT, message.to_string().as_bytes())).collect()
}

#[test]
fn websockets_show_their_token_in_a_frame_and_wait_for_their_turn_too() {
    let (issuer, other) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    for protocol in [BINARY_V1, JSON_V1] {
        let sockets: Vec<_> = (0..60)
            .map(|n| {
                let good = n % 2 == 0;
                let signed = if good { &issuer } else { &other };
                let token = signed.token("ann", 600, everything());
                let mut socket = WebSocket::speaking(&server, protocol);
                socket.send(&opening(protocol, "ann", &token));
                (good, socket)
            })
            .collect();
        for (good, mut socket) in sockets {
            if !good {
                let (code, reason) = socket.closed();
                assert_eq!((code, &reason[..]), (4016, "TokenRefused"), "{protocol}");
                continue;
            }
            let mut said = Vec::new();
            let pong: &[u8] = if protocol == BINARY_V1 { &[0x87, 0, 0, 0, 5] } else { b"pong" };
            while !said.windows(pong.len()).any(|at| at == pong) {
                said.extend(socket.frame().expect("the connection has ended").1);
            }
        }
    }
}
