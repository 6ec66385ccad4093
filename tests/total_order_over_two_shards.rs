//! All members of a group see the same messages in the same order, whichever shard they, the
//! publishers and the group are on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::HashMap;

use common::{Client, Follower, Got, Random, Server, Settings};
use fanfare::position::Level;

const GROUPS: [&str; 4] = ["news", "lobby", "room/1", "room/2"];
const EACH: u32 = 400;
const WINDOW: u32 = 32;

/// Publishes to all groups in turn with a window, some of it at level memory.
fn publisher(mut client: Client, name: String, mut random: Random) {
    let mut in_flight = 0;
    for n in 0..EACH {
        for group in GROUPS {
            let mut payload = format!("{name} {n} ").into_bytes();
            let len = random.below(600) as usize;
            payload.extend(random.bytes(len));
            let level = if n % 5 == 0 { Level::Memory } else { Level::Durable };
            let (_, bytes) = client.publish_frame(group, Some(level), &payload);
            client.send(&bytes);
            in_flight += 1;
            while in_flight >= WINDOW {
                client.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
                in_flight -= 1;
            }
        }
    }
    for _ in 0..in_flight {
        client.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
    }
}

#[test]
fn every_member_gets_every_message_once_in_one_order() {
    let server = Server::start(Settings::shards(2));
    let mut members = Vec::new();
    for n in 0..6u16 {
        let mut client = Client::on_shard(&server, n % 2, &format!("member-{n}"));
        let followers: Vec<_> = GROUPS.iter().map(|group| client.join(group)).collect();
        members.push((client, followers.into_iter().map(Follower::live).collect::<Vec<_>>()));
    }
    let mut random = Random::new();
    let publishers: Vec<_> = (0..4u16)
        .map(|n| {
            let name = format!("publisher-{n}");
            let client = Client::on_shard(&server, n % 2, &name);
            let mut own = Random::new();
            for _ in 0..random.below(7) {
                own.next();
            }
            std::thread::spawn(move || publisher(client, name, own))
        })
        .collect();
    let total = 4 * u64::from(EACH);
    let readers: Vec<_> = members
        .into_iter()
        .map(|(mut client, mut followers)| {
            std::thread::spawn(move || {
                for follower in &mut followers {
                    client.follow(follower, total);
                }
                assert_eq!(client.recv_within(std::time::Duration::from_millis(100)), None);
                followers
            })
        })
        .collect();
    publishers.into_iter().for_each(|thread| thread.join().unwrap());
    let seen: Vec<_> = readers.into_iter().map(|thread| thread.join().unwrap()).collect();

    for (of, group) in GROUPS.iter().enumerate() {
        let first = &seen[0][of];
        assert!(first.gaps.is_empty());
        for other in &seen[1..] {
            assert_eq!(other[of].handle, first.handle);
            assert!(other[of].messages == first.messages, "two members differ on {group}");
        }
        // Each publisher's messages are there once, in its order.
        let mut next: HashMap<&[u8], u32> = HashMap::new();
        for (_, sender, payload) in &first.messages {
            let text = String::from_utf8_lossy(payload);
            let mut words = text.split(' ');
            assert_eq!(words.next().unwrap().as_bytes(), sender);
            let n: u32 = words.next().unwrap().parse().unwrap();
            let expected = next.entry(sender).or_default();
            assert_eq!(n, *expected, "order of {}", String::from_utf8_lossy(sender));
            *expected += 1;
        }
        assert_eq!(next.len(), 4);
        assert!(next.values().all(|count| *count == EACH));
    }
}
