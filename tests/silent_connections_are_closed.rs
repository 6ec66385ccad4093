//! Deadlines of connections: the handshake, and heartbeats.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::client::hello_bytes;
use common::{Client, Follower, Got, Server, Settings};
use fanfare::wire::ErrorCode;

#[test]
fn hello_must_come_in_time_however_slowly_bytes_drip() {
    let server = Server::start(Settings::shards(1).set("handshake_timeout_ms", 500));
    let started = Instant::now();
    let mut silent = Client::bare(&server);
    let mut magic_only = Client::bare(&server);
    magic_only.send(b"FNFR");
    let mut dripping = Client::bare(&server);
    let drip = {
        let mut writer = dripping.writer();
        std::thread::spawn(move || {
            for byte in hello_bytes("a member with quite a long name, so that it lasts") {
                if std::io::Write::write_all(&mut writer, &[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        })
    };
    for client in [&mut silent, &mut magic_only, &mut dripping] {
        // A reset may overtake the ERROR on the connection that goes on sending.
        match client.recv() {
            Got::Closed => {}
            Got::Error { code, limit, .. } => {
                assert_eq!((code, limit), (ErrorCode::HandshakeTimeout as u16, 500));
            }
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
    assert_eq!(silent.recv(), Got::Closed);
    drip.join().unwrap();
    Client::open(&server, "in time").ping();
}

#[test]
fn a_silent_client_is_closed_after_twice_the_heartbeat_time_and_one_that_pings_is_not() {
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 300));
    let mut silent = Client::bare(&server);
    assert_eq!(silent.hello("silent").heartbeat_ms, 300);
    silent.join("g");
    let started = Instant::now();
    let mut pinging = Client::open(&server, "pinging");
    let mut follower = Follower::live(pinging.join("g"));
    let mut ended = None;
    while started.elapsed() < Duration::from_secs(3) {
        pinging.ping();
        if ended.is_none()
            && let Some(got) = silent.recv_within(Duration::from_millis(100))
        {
            assert!(
                matches!(got, Got::Error { code, limit: 600, .. } if code == ErrorCode::HeartbeatTimeout as u16),
                "{got:?}"
            );
            assert_eq!(silent.recv(), Got::Closed);
            ended = Some(started.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let ended = ended.expect("the silent client is closed");
    assert!(
        ended > Duration::from_millis(550) && ended < Duration::from_millis(1_500),
        "{ended:?}"
    );
    assert_eq!(pinging.publish("g", b"x").seq.0, 1);
    pinging.follow(&mut follower, 1);
}

#[test]
fn a_member_that_only_receives_must_ping_too() {
    let server = Server::start(Settings::shards(1).set("heartbeat_ms", 200));
    let mut member = Client::open(&server, "member");
    member.join("g");
    let mut publisher = Client::open(&server, "publisher");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1_500) {
        publisher.publish("g", b"x");
        std::thread::sleep(Duration::from_millis(20));
    }
    member.expect("ERROR", |got| {
        matches!(got, Got::Error { code, .. } if *code == ErrorCode::HeartbeatTimeout as u16)
            .then_some(())
    });
}

#[test]
fn without_heartbeats_silence_is_fine() {
    let settings = Settings::shards(1).set("heartbeat_ms", 0).set("handshake_timeout_ms", 300);
    let server = Server::start(settings);
    let mut client = Client::bare(&server);
    assert_eq!(client.hello("client").heartbeat_ms, 0);
    assert_eq!(client.recv_within(Duration::from_millis(1_500)), None);
    client.ping();
}
