//! `kill -9` under load, again and again: what was acknowledged is there after each restart, at
//! its place, and nothing that a member saw is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use common::{Client, Follower, Got, Random, Server, Settings};

const GROUPS: [&str; 2] = ["a", "b"];
/// Small, since each round reads everything back from the first message.
const WINDOW: usize = 24;

/// What is known of one group: the payload at each place that was acknowledged or seen.
type Known = HashMap<u64, Vec<u8>>;

/// Publishes with a window until the connection ends; returns group, place and payload of each
/// message that was acknowledged.
fn publish_until_the_end(mut client: Client, tag: String) -> Vec<(usize, u64, Vec<u8>)> {
    let mut writer = client.writer();
    let mut in_flight = HashMap::new();
    let mut acknowledged = Vec::new();
    let mut n = 0;
    loop {
        while in_flight.len() < WINDOW {
            let (group, payload) = (n % GROUPS.len(), format!("{tag} {n}").into_bytes());
            let (request, bytes) = client.publish_frame(GROUPS[group], None, &payload);
            if writer.write_all(&bytes).is_err() {
                break;
            }
            in_flight.insert(request, (group, payload));
            n += 1;
        }
        match client.recv() {
            Got::Published(published) => {
                let (group, payload) = in_flight.remove(&published.request).unwrap();
                acknowledged.push((group, published.seq.0, payload));
            }
            Got::Closed => return acknowledged,
            other => panic!("{other:?}"),
        }
    }
}

/// Reads a member's groups until the connection ends; returns group, place and payload.
fn read_until_the_end(
    mut client: Client,
    mut followers: Vec<Follower>,
) -> Vec<(usize, u64, Vec<u8>)> {
    loop {
        match client.recv_within(Duration::from_secs(30)).unwrap() {
            Got::Closed => break,
            got => {
                let handle = match &got {
                    Got::Epoch { handle, .. } | Got::Deliver { handle, .. } => *handle,
                    other => panic!("{other:?}"),
                };
                let follower = followers.iter_mut().find(|f| f.handle == handle).unwrap();
                follower.take(got);
            }
        }
    }
    followers
        .into_iter()
        .enumerate()
        .flat_map(|(group, f)| f.messages.into_iter().map(move |(seq, _, p)| (group, seq.0, p)))
        .collect()
}

#[test]
fn fifty_crashes_under_load_lose_nothing_that_was_acknowledged_or_seen() {
    let rounds = std::env::var("TEST_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    let mut random = Random::new();
    let mut server = Server::start(Settings::shards(2));
    let mut known = [Known::new(), Known::new()];
    let mut epochs = [None; 2];
    for round in 0..rounds {
        let mut member = Client::open(&server, "member");
        let mut followers = Vec::new();
        for (group, known) in known.iter().enumerate() {
            // What is there now: everything known, at its place, without a hole.
            let joined = member.join_from(GROUPS[group], 1);
            assert!(
                known.keys().all(|seq| *seq <= joined.head.0),
                "round {round}: the head is {}, known is {:?}",
                joined.head,
                known.keys().max()
            );
            let mut follower = Follower::from(joined, 1);
            member.follow(&mut follower, joined.head.0);
            assert!(follower.gaps.is_empty(), "round {round}: {:?}", follower.gaps);
            for (seq, _, payload) in &follower.messages {
                if let Some(expected) = known.get(&seq.0) {
                    assert_eq!(payload, expected, "round {round}: message {seq} is another one");
                }
            }
            // Only level memory and damage may begin an epoch, and there was neither.
            let epoch = *epochs[group].get_or_insert(joined.epoch);
            assert_eq!(joined.epoch, epoch, "round {round}");
            follower.messages.clear();
            followers.push(follower);
        }
        let reader = std::thread::spawn(move || read_until_the_end(member, followers));
        let publishers: Vec<_> = (0..2)
            .map(|n| {
                let client = Client::open(&server, &format!("publisher-{n}"));
                let tag = format!("round {round} publisher {n}");
                std::thread::spawn(move || publish_until_the_end(client, tag))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20 + random.below(120)));
        server.kill();
        let threads = publishers.into_iter().chain([reader]);
        for (group, seq, payload) in threads.flat_map(|thread| thread.join().unwrap()) {
            let before = known[group].insert(seq, payload.clone());
            assert!(before.is_none_or(|before| before == payload), "round {round}: two at {seq}");
        }
        server.restart();
    }
    let total: usize = known.iter().map(Known::len).sum();
    eprintln!("{rounds} crashes, {total} messages acknowledged or seen");
    assert!(total > rounds * 20, "the load was a load: {total} messages");
}
