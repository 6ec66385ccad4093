//! Deadlines of connections: the handshake, and heartbeats. A time that something must at least
//! take is counted from before the server can have begun to count, and clients that must not be
//! closed have seconds to spare, so that a machine that stops a test for a while breaks none.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::client::hello_bytes;
use common::websocket::{JSON_V1, PING, PONG, TEXT, WebSocket, frame};
use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Seq;
use fanfare::wire::ErrorCode;

#[test]
fn hello_must_come_in_time_however_slowly_bytes_drip() {
    let server = Server::start(Settings::shards(1).set("handshake_timeout_ms", 1_000));
    let started = Instant::now();
    let mut silent = Client::bare(&server);
    let mut magic_only = Client::bare(&server);
    magic_only.send(b"FNFR");
    let mut dripping = Client::bare(&server);
    let drip = {
        let mut writer = dripping.writer();
        std::thread::spawn(move || {
            // At this pace HELLO would be complete after a quarter of a minute.
            let hello = hello_bytes("a member with quite a long name, so that it lasts");
            hello.into_iter().all(|byte| {
                std::thread::sleep(Duration::from_millis(200));
                std::io::Write::write_all(&mut writer, &[byte]).is_ok()
            })
        })
    };
    for client in [&mut silent, &mut magic_only, &mut dripping] {
        // A reset may overtake the ERROR on the connection that goes on sending.
        match client.recv() {
            Got::Closed => {}
            Got::Error { code, limit, .. } => {
                assert_eq!((code, limit), (ErrorCode::HandshakeTimeout as u16, 1_000));
            }
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    }
    assert_eq!(silent.recv(), Got::Closed);
    assert!(!drip.join().unwrap(), "the connection ended before HELLO was whole");
    Client::open(&server, "in time").ping();
}

#[test]
fn a_silent_client_is_closed_after_twice_the_heartbeat_time_and_one_that_pings_is_not() {
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 1_000));
    let mut silent = Client::bare(&server);
    assert_eq!(silent.hello("silent").heartbeat_ms, 1_000);
    // The server counts from when it hears of the JOIN, which is after this.
    let started = Instant::now();
    silent.join("g");
    let mut pinging = Client::open(&server, "pinging");
    let mut follower = Follower::live(pinging.join("g"));
    let mut ended = None;
    while started.elapsed() < Duration::from_secs(6) {
        pinging.ping();
        if ended.is_none()
            && let Some(got) = silent.recv_within(Duration::from_millis(100))
        {
            assert!(
                matches!(got, Got::Error { code, limit: 2_000, .. } if code == ErrorCode::HeartbeatTimeout as u16),
                "{got:?}"
            );
            assert_eq!(silent.recv(), Got::Closed);
            ended = Some(started.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let ended = ended.expect("the silent client is closed");
    assert!(ended > Duration::from_millis(1_950), "{ended:?}");
    assert_eq!(pinging.publish("g", b"x").seq.0, 1);
    pinging.follow(&mut follower, 1);
}

#[test]
fn a_member_that_only_receives_must_ping_too() {
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 1_000));
    let mut member = Client::open(&server, "member");
    member.join("g");
    let mut publisher = Client::open(&server, "publisher");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(3_500) {
        publisher.publish("g", b"x");
        std::thread::sleep(Duration::from_millis(20));
    }
    member.expect("ERROR", |got| {
        matches!(got, Got::Error { code, .. } if *code == ErrorCode::HeartbeatTimeout as u16)
            .then_some(())
    });
}

/// PROTOCOL.md, Time: PINGs by the intended time; one may be left out if something was sent
/// within half a heartbeat before it.
#[test]
fn members_that_keep_to_their_slots_stay_and_share_the_moments() {
    const HEARTBEAT: Duration = Duration::from_secs(1);
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 1_000));
    let (mut members, mut unsure) = (Vec::new(), Duration::ZERO);
    for i in 0..30 {
        let mut client = Client::bare(&server);
        let asked = Instant::now();
        let welcome = client.hello(&format!("member-{i}"));
        let came = Instant::now();
        let slot = Duration::from_millis(u64::from(welcome.heartbeat_slot_ms));
        assert!(!slot.is_zero() && slot <= HEARTBEAT, "{slot:?}");
        members.push((client, came, came + slot));
        // WELCOME was made at some time since HELLO was sent, and slots are in whole ms.
        unsure = unsure.max(came - asked + Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(17));
    }
    let first = members[0].2;
    for (.., due) in &members {
        let apart = (*due - first).as_nanos() % HEARTBEAT.as_nanos();
        let apart = apart.min(HEARTBEAT.as_nanos() - apart);
        assert!(apart <= unsure.as_nanos(), "{apart} ns from the first, unsure by {unsure:?}");
    }
    let started = Instant::now();
    let mut skipped = 0;
    let mut ping = Vec::new();
    fanfare::wire::ClientFrame::encode_quiet_ping(&mut ping, 1);
    while started.elapsed() < HEARTBEAT * 5 {
        std::thread::sleep(Duration::from_millis(5));
        for (i, (client, last_sent, due)) in members.iter_mut().enumerate() {
            let now = Instant::now();
            // Every third member is one that sends shortly before its slots and leaves PINGs out.
            let shortly_before = *due - HEARTBEAT / 4;
            if i % 3 == 0 && now >= shortly_before && *last_sent < shortly_before {
                client.ack(fanfare::position::Handle(1), fanfare::position::Epoch(1), Seq(1));
                *last_sent = now;
            }
            if now >= *due {
                if *last_sent + HEARTBEAT / 2 >= *due {
                    skipped += 1;
                } else {
                    client.send(&ping);
                    *last_sent = now;
                }
                while *due <= now {
                    *due += HEARTBEAT;
                }
            }
        }
    }
    assert!(skipped >= 10, "{skipped} PINGs were left out");
    for (client, ..) in &mut members {
        // These wanted no answers: the first frame since WELCOME is the PONG of this one.
        client.ping();
        assert_eq!(client.recv_within(Duration::ZERO), None);
    }
}

#[test]
fn without_heartbeats_silence_is_fine() {
    let settings = Settings::shards(1).set("heartbeat_ms", 0).set("handshake_timeout_ms", 1_000);
    let server = Server::start(settings);
    let mut client = Client::bare(&server);
    assert_eq!(client.hello("client").heartbeat_ms, 0);
    assert_eq!(client.recv_within(Duration::from_millis(2_500)), None);
    client.ping();
}

/// Pages in the background may run no timer for a minute, and a page that only reads has none.
#[test]
fn a_websocket_that_answers_pings_stays_and_one_that_does_not_is_closed() {
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 1_000));
    let hello = |member| {
        format!(
            r#"{{"type":"hello","member":"{member}","producer":"00112233-4455-6677-8899-aabbccddeeff"}}"#
        )
    };
    let mut answering = WebSocket::speaking(&server, JSON_V1);
    answering.send(&frame(TEXT, hello("answering").as_bytes()));
    let mut deaf = WebSocket::speaking(&server, JSON_V1);
    let started = Instant::now();
    deaf.send(&frame(TEXT, hello("deaf").as_bytes()));

    // Four times what a silent connection has.
    let mut pings = 0;
    while started.elapsed() < Duration::from_secs(8) {
        let (first, payload) = answering.frame().expect("it stays");
        if first == PING {
            answering.send(&frame(PONG, &payload));
            pings += 1;
        }
    }
    assert!((3..=6).contains(&pings), "{pings} pings in 8 s, one after each 1.5 s of silence");
    let (code, reason) = deaf.closed();
    assert_eq!(code, 4_000 + ErrorCode::HeartbeatTimeout as u16, "{reason}");
}
