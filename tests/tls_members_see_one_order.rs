//! Members with TLS are members like the others: one order for all, the largest messages, history,
//! and bytes both ways at once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use common::tls::{self, Pki};
use common::{Client, Follower, Got, Server, Settings, websocket};
use rustls::version::{TLS12, TLS13};

const EACH: u32 = 200;
const WINDOW: usize = 32;

fn publisher(mut client: Client, seed: u32) {
    let mut in_flight = 0;
    for n in 0..EACH {
        client.send_publish("g", &vec![n as u8; (seed.wrapping_mul(n + 1) % 900) as usize]);
        in_flight += 1;
        if in_flight == WINDOW {
            client.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
            in_flight -= 1;
        }
    }
    for _ in 0..in_flight {
        client.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
    }
}

#[test]
fn native_websocket_and_tls_members_see_one_order_on_two_shards() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(2)));
    let (old, new) = (pki.client(&[&TLS12], false), pki.client(&[&TLS13], false));
    let member = |n: usize| match n % 4 {
        0 => Client::open(&server, &format!("native-{n}")),
        1 => websocket::client(&server, &format!("ws-{n}"), usize::MAX),
        2 => tls::client(&server, &old, &format!("tls-{n}")),
        _ => tls::client(&server, &new, &format!("tls-{n}")),
    };
    let readers: Vec<_> = (0..12)
        .map(|n| {
            let mut client = member(n);
            let follower = Follower::live(client.join("g"));
            (client, follower)
        })
        .collect();
    let publishers: Vec<_> = (0..4)
        .map(|n| {
            let client = member(n);
            std::thread::spawn(move || publisher(client, 7 + n as u32))
        })
        .collect();
    let total = 4 * u64::from(EACH);
    let readers: Vec<_> = readers
        .into_iter()
        .map(|(mut client, mut follower)| {
            std::thread::spawn(move || {
                client.follow(&mut follower, total);
                follower
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    let mut followers = readers.into_iter().map(|reader| reader.join().unwrap());
    let first = followers.next().unwrap();
    for follower in followers {
        assert_eq!(follower.payloads(), first.payloads());
    }
    // Those who come later read the same from the log.
    for config in [&old, &new] {
        let mut late = tls::client(&server, config, "late");
        let mut follower = Follower::from(late.join_from("g", 1), 1);
        late.follow(&mut follower, total);
        assert_eq!(follower.payloads(), first.payloads());
    }
}

#[test]
fn the_largest_messages_pass_in_both_versions() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(1)));
    for version in [&TLS12, &TLS13] {
        let config = pki.client(&[version], false);
        let mut client = tls::client(&server, &config, "m");
        let mut follower = Follower::live(client.join("large"));
        let payload: Vec<u8> = (0..64 * 1024_u32).map(|n| (n * 7) as u8).collect();
        for _ in 0..20 {
            client.send_publish("large", &payload);
        }
        let from = follower.payloads().len();
        let until = client.publish("large", &payload).seq.0;
        client.follow(&mut follower, until);
        assert_eq!(follower.payloads().len() - from, 21);
        assert!(follower.payloads().iter().all(|got| *got == payload));
    }
}
