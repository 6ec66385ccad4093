//! A group with native and WebSocket members: whoever publishes, all of them get the same
//! messages in the same order, also those that fell behind and those that resume.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use common::{Client, Follower, Got, Random, Server, Settings, websocket};

const EACH: u32 = 300;
const WINDOW: usize = 32;

fn publisher(mut client: Client, seed: u64) {
    let mut in_flight = 0;
    for n in 0..EACH {
        let len = (seed.wrapping_mul(u64::from(n) + 1) % 900) as usize;
        client.send_publish("g", &vec![n as u8; len]);
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

/// Messages are cut into fragments of these sizes.
fn member(server: &Server, n: usize) -> Client {
    match n % 6 {
        0 => Client::open(server, &format!("native-{n}")),
        1 => websocket::client(server, &format!("ws-{n}"), usize::MAX),
        2 => websocket::json_client(server, &format!("json-{n}"), usize::MAX),
        3 => websocket::json_client(server, &format!("json-{n}"), 11),
        4 => websocket::client(server, &format!("ws-{n}"), 7),
        _ => websocket::client(server, &format!("ws-{n}"), 1),
    }
}

#[test]
fn native_and_websocket_members_see_one_order() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let mut random = Random::new();
        let readers: Vec<_> = (0..12)
            .map(|n| {
                let mut client = member(&server, n);
                let follower = Follower::live(client.join("g"));
                (client, follower)
            })
            .collect();
        let publishers: Vec<_> = (0..4)
            .map(|n| {
                let (client, seed) = (member(&server, n), random.next());
                std::thread::spawn(move || publisher(client, seed))
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
        publishers.into_iter().for_each(|thread| thread.join().unwrap());
        let seen: Vec<_> = readers.into_iter().map(|thread| thread.join().unwrap()).collect();
        for other in &seen[1..] {
            assert!(other.gaps.is_empty());
            assert!(other.messages == seen[0].messages, "two members differ");
        }
    }
}

#[test]
fn websocket_members_that_fell_off_the_tail_get_all_of_it_from_the_log() {
    let settings = Settings::shards(1).set("tail_bytes_max", 64 * 1024);
    let server = Server::start(settings.set("socket_send_buffer", 16 * 1024));
    let mut publisher = Client::open(&server, "publisher");
    for n in 0..400u32 {
        publisher.publish("g", &n.to_le_bytes().repeat(500));
    }
    let clients = [websocket::client, websocket::json_client];
    for (n, client) in (401..).zip(clients) {
        let mut late = client(&server, "late", usize::MAX);
        let mut follower = Follower::from(late.join_from("g", 1), 1);
        late.follow(&mut follower, 400);
        assert!(follower.gaps.is_empty());
        for (n, (_, _, payload)) in follower.messages.iter().take(400).enumerate() {
            assert_eq!(payload[..4], (n as u32).to_le_bytes());
        }
        // And it is live.
        publisher.publish("g", b"last");
        late.follow(&mut follower, n);
    }
}
