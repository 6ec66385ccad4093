//! A publish that is sent again, after a lost answer, a reconnect, a restart or a crash, gets
//! its first place, and what cannot be told apart is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::client::new_producer;
use common::{Client, Follower, Got, Random, Server, Settings};
use fanfare::position::{Level, ProducerId};
use fanfare::wire::ErrorCode;

/// Everything in a group, in its order, read by a new member.
fn history(server: &Server, group: &str) -> Vec<Vec<u8>> {
    let mut reader = Client::open(server, "reader");
    let joined = reader.join_from(group, 1);
    let mut follower = Follower::from(joined, 1);
    reader.follow(&mut follower, joined.head.0);
    assert!(follower.gaps.is_empty());
    follower.messages.into_iter().map(|(_, _, payload)| payload).collect()
}

fn payload(n: u64) -> Vec<u8> {
    format!("message {n}").into_bytes()
}

/// One group of each shard, so that one is always published to through another shard.
const GROUPS: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn a_lost_answer_and_a_reconnect_make_no_copy_also_through_another_shard() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let producer = new_producer();
        let mut places = BTreeMap::new();
        for attempt in 0..4u16 {
            let mut client = Client::on_shard_as(&server, attempt % shards, "member", producer);
            // Each time a few more; the answers of the first times are never read.
            let count = 20 + 5 * u64::from(attempt);
            let mut requests = Vec::new();
            for n in 1..=count {
                for group in GROUPS {
                    let request = client.send_publish_as(group, n, &payload(n));
                    requests.push((group, n, request));
                }
            }
            if attempt < 2 {
                // Taken or not, the client does not know.
                if attempt == 0 {
                    client.ping();
                }
                continue;
            }
            for (group, n, request) in requests {
                let published = client.answer(request).unwrap();
                assert_eq!(published.producer_seq, n);
                let place = (published.seq, published.epoch);
                assert_eq!(*places.entry((group, n)).or_insert(place), place);
            }
        }
        for group in GROUPS {
            let expected: Vec<_> = (1..=35).map(payload).collect();
            assert_eq!(history(&server, group), expected, "{shards} shards");
        }
    }
}

#[test]
fn a_restart_and_a_crash_forget_no_producer() {
    let mut server = Server::start(Settings::shards(2));
    let producer = new_producer();
    let mut places = BTreeMap::new();
    for (round, crash) in (1..).zip([false, true, false, true]) {
        let mut client = Client::on_shard_as(&server, 0, "member", producer);
        for n in 1..=10 * round {
            for group in GROUPS {
                let published = client.publish_as(group, n, &payload(n)).unwrap();
                let place = (published.seq, published.epoch, published.handle);
                assert_eq!(*places.entry((group, n)).or_insert(place), place);
            }
        }
        let gap = client.publish_as("a", 10 * round + 2, b"too early");
        assert_eq!(gap, Err((ErrorCode::ProducerGap, 10 * round + 1)));
        if crash {
            server.kill();
        } else {
            server.stop();
        }
        server.restart();
        let mut other = Client::open_as(&server, "another member", producer);
        assert_eq!(other.publish_as("a", 1, b"x"), Err((ErrorCode::ProducerTaken, 0)));
    }
    for group in GROUPS {
        assert_eq!(history(&server, group), (1..=40).map(payload).collect::<Vec<_>>());
    }
}

#[test]
fn a_refused_publish_blocks_its_successors() {
    let server = Server::start(Settings::shards(2).set("payload_max", 100));
    for group in GROUPS {
        let mut client = Client::on_shard(&server, 0, "member");
        assert_eq!(client.publish_as(group, 1, b"1").unwrap().seq.0, 1);
        // A burst whose second message is refused for its length.
        let requests: Vec<_> = (2..=6)
            .map(|n| client.send_publish_as(group, n, &vec![b'x'; if n == 3 { 101 } else { 10 }]))
            .collect();
        let answers: Vec<_> = requests.into_iter().map(|r| client.answer(r)).collect();
        assert_eq!(answers[0].unwrap().seq.0, 2);
        assert_eq!(answers[1], Err((ErrorCode::PayloadTooLong, 100)));
        for answer in &answers[2..] {
            assert_eq!(*answer, Err((ErrorCode::ProducerGap, 3)));
        }
        // Its number is free for another message, and then they go on.
        for n in 3..=6 {
            assert_eq!(client.publish_as(group, n, b"again").unwrap().seq.0, n);
        }
        assert_eq!(history(&server, group).len(), 6);
    }
}

#[test]
fn an_unknown_producer_begins_at_one_and_leaves_no_trace_otherwise() {
    let server = Server::start(Settings::shards(2).set("groups_max", 4));
    let mut client = Client::open(&server, "member");
    // More made-up groups than there may be.
    for n in 0..50 {
        let refused = client.publish_as(&format!("made-up {n}"), 2 + n, b"x");
        assert_eq!(refused, Err((ErrorCode::UnknownProducer, 1)));
    }
    assert_eq!(client.publish_as("a", 0, b"x"), Err((ErrorCode::Malformed, 0)));
    assert_eq!(client.publish_as("a", 1, b"x").unwrap().seq.0, 1);
    let mut other = Client::open(&server, "other");
    assert_eq!(other.publish_as("a", 2, b"x"), Err((ErrorCode::UnknownProducer, 1)));
    assert_eq!(history(&server, "a").len(), 1);
}

#[test]
fn what_is_older_than_the_window_is_refused_also_after_a_crash() {
    let mut server = Server::start(Settings::shards(2).set("publish_window", 8));
    let producer = new_producer();
    for crashed in [false, true] {
        let mut client = Client::on_shard_as(&server, 0, "member", producer);
        for group in GROUPS {
            if !crashed {
                (1..=20).for_each(|n| _ = client.publish_as(group, n, &payload(n)).unwrap());
            }
            for n in [1, 2, 12] {
                let refused = client.publish_as(group, n, b"x");
                assert_eq!(refused, Err((ErrorCode::ProducerSeqTooOld, 13)), "{n}");
            }
            for n in 13..=20 {
                assert_eq!(client.publish_as(group, n, b"x").unwrap().seq.0, n);
            }
        }
        server.kill();
        server.restart();
    }
    assert_eq!(history(&server, "a"), (1..=20).map(payload).collect::<Vec<_>>());
}

#[test]
fn only_idle_producers_make_room_for_others() {
    let settings =
        Settings::shards(2).set("producers_per_group_max", 3).set("producer_ttl_ms", 1_000);
    let server = Server::start(settings);
    let welcome = Client::bare(&server).hello("somebody");
    assert_eq!(welcome.producer_ttl_ms, 1_000, "clients are told");
    for group in GROUPS {
        let mut clients: Vec<_> =
            (0..4).map(|n| Client::on_shard(&server, n % 2, &format!("member-{n}"))).collect();
        for client in &mut clients[..3] {
            client.publish_as(group, 1, b"x").unwrap();
        }
        let full = Err((ErrorCode::TooManyProducers, 3));
        assert_eq!(clients[3].publish_as(group, 1, b"x"), full);
        std::thread::sleep(Duration::from_millis(600));
        // A sign of life, and the time begins anew; a duplicate is one too.
        clients[0].publish_as(group, 2, b"x").unwrap();
        clients[1].publish_as(group, 1, b"x").unwrap();
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(clients[3].publish_as(group, 1, b"x").unwrap().seq.0, 5);
        let forgotten = clients[2].publish_as(group, 2, b"x");
        assert_eq!(forgotten, Err((ErrorCode::UnknownProducer, 1)));
        assert_eq!(clients[0].publish_as(group, 3, b"x").unwrap().seq.0, 6);
        assert_eq!(clients[1].publish_as(group, 2, b"x").unwrap().seq.0, 7);
    }
}

#[test]
fn two_connections_of_one_producer_share_its_numbers() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let producer = new_producer();
        let count = 500;
        let threads: Vec<_> = (0..2)
            .map(|n| {
                let mut client = Client::on_shard_as(&server, n % shards, "member", producer);
                std::thread::spawn(move || {
                    let mut places = Vec::new();
                    for first in (1..=count).step_by(25) {
                        let requests: Vec<_> = (first..first + 25)
                            .map(|n| client.send_publish_as("g", n, &payload(n)))
                            .collect();
                        places.extend(requests.into_iter().map(|r| client.answer(r).unwrap().seq));
                    }
                    places
                })
            })
            .collect();
        let places: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(places[0], places[1], "both are told the same places");
        assert_eq!(history(&server, "g"), (1..=count).map(payload).collect::<Vec<_>>());
    }
}

#[test]
fn answers_of_a_group_come_in_the_order_of_its_publishes_also_to_duplicates() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        let mut client = Client::on_shard(&server, 0, "member");
        let mut random = Random::new();
        let mut last = BTreeMap::new();
        let mut sent = BTreeMap::<_, Vec<_>>::new();
        for _ in 0..2_000 {
            let group = GROUPS[random.below(4) as usize];
            let last = last.entry(group).or_insert(0);
            let again = *last > 0 && random.below(3) == 0;
            let n = if again {
                *last - random.below(*last.min(&mut 30))
            } else {
                *last += 1;
                *last
            };
            let level = if random.below(3) == 0 { Level::Memory } else { Level::Durable };
            let (request, bytes) = client.publish_frame_as(group, Some(level), n, &payload(n));
            client.send(&bytes);
            sent.entry(group).or_default().push((request, n));
        }
        let mut answered = BTreeMap::<_, Vec<_>>::new();
        for _ in 0..2_000 {
            let Got::Published(published) = client.recv() else { panic!("not PUBLISHED") };
            let answered = answered.entry(published.handle).or_default();
            answered.push((published.request, published.producer_seq));
            assert_eq!(published.seq.0, published.producer_seq, "there is no other producer");
        }
        let sort = |lists: Vec<Vec<_>>| {
            let mut lists = lists;
            lists.sort();
            lists
        };
        assert_eq!(sort(answered.into_values().collect()), sort(sent.into_values().collect()));
    }
}

#[test]
fn numbers_of_level_memory_that_a_crash_took_are_expected_again() {
    let mut server = Server::start(Settings::shards(2));
    let producer = new_producer();
    let (mut sent, mut lost) = (0u64, 0u64);
    for round in 0..8 {
        let mut client = Client::on_shard_as(&server, 0, "member", producer);
        // What is expected is what is there.
        let mut reader = Client::open(&server, "reader");
        let head = reader.join("g").head.0;
        assert!(head <= sent);
        if sent > 0 {
            let answer = client.publish_as("g", sent + 2, b"too early");
            let expected =
                if head == 0 { ErrorCode::UnknownProducer } else { ErrorCode::ProducerGap };
            assert_eq!(answer, Err((expected, head + 1)), "round {round}");
        }
        lost += sent - head;
        sent = head;
        let mut requests = Vec::new();
        for n in head + 1..=head + 200 {
            let (request, bytes) =
                client.publish_frame_as("g", Some(Level::Memory), n, &payload(n));
            client.send(&bytes);
            requests.push((n, request));
        }
        for (n, request) in requests {
            assert_eq!(client.answer(request).unwrap().seq.0, n);
            // Once more, while it may be on its way to the disk.
            let (request, bytes) =
                client.publish_frame_as("g", Some(Level::Memory), n, &payload(n));
            client.send(&bytes);
            assert_eq!(client.answer(request).unwrap().seq.0, n);
            sent = n;
        }
        server.kill();
        server.restart();
    }
    eprintln!("{lost} messages of level memory were lost");
    let head = history(&server, "g");
    assert_eq!(head, (1..=head.len() as u64).map(payload).collect::<Vec<_>>());
}

#[test]
fn another_shard_count_forgets_no_producer() {
    let mut server = Server::start(Settings::shards(2));
    let producer = new_producer();
    let mut places = BTreeMap::new();
    for (round, shards) in (1..).zip([2, 3, 1, 2]) {
        if round > 1 {
            server.kill();
            server.restart_with(Settings::shards(shards));
        }
        let mut client = Client::open_as(&server, "member", producer);
        for n in 1..=10 * round {
            for group in GROUPS {
                let published = client.publish_as(group, n, &payload(n)).unwrap();
                let place = (published.seq, published.epoch);
                assert_eq!(*places.entry((group, n)).or_insert(place), place, "{shards} shards");
            }
        }
    }
    for group in GROUPS {
        assert_eq!(history(&server, group), (1..=40).map(payload).collect::<Vec<_>>());
    }
}

#[test]
fn retention_takes_messages_and_no_memory_of_who_sent_them() {
    let settings = Settings::shards(1).set("retention_bytes", 16 << 20);
    let mut server = Server::start(settings);
    let early = new_producer();
    let mut client = Client::open_as(&server, "early", early);
    let places: Vec<_> = (1..=5).map(|n| client.publish_as("g", n, &payload(n)).unwrap()).collect();
    let mut flooder = Client::open(&server, "flooder");
    for _ in 0..40 {
        // Together more than the log may hold.
        let requests: Vec<_> = (0..30).map(|_| flooder.send_publish("g", &[7; 60_000])).collect();
        requests.into_iter().for_each(|request| _ = flooder.published(request));
    }
    let mut reader = Client::open(&server, "reader");
    reader.join_from("g", 1);
    let gap = reader.expect("GAP", |got| match got {
        Got::Gap { from, to, .. } => Some((from.0, to.0)),
        _ => None,
    });
    assert!(gap.0 == 1 && gap.1 >= 5, "retention passed the first messages: {gap:?}");
    for crash in [true, false, true] {
        if crash {
            server.kill();
        } else {
            server.stop();
        }
        server.restart();
        let mut client = Client::open_as(&server, "early", early);
        for place in &places {
            let again = client.publish_as("g", place.producer_seq, b"x").unwrap();
            assert_eq!((again.seq, again.epoch), (place.seq, place.epoch));
        }
        assert_eq!(client.publish_as("g", 7, b"x"), Err((ErrorCode::ProducerGap, 6)));
    }
}

/// Publishes with a window and resends what has no answer after each crash, as PROTOCOL.md
/// asks it to; returns the place that each message was answered to have.
struct Publisher {
    member: String,
    producer: ProducerId,
    answered: u64,
    sent: u64,
    places: BTreeMap<u64, u64>,
    again: u64,
}

impl Publisher {
    fn new(member: String) -> Self {
        let producer = new_producer();
        Self { member, producer, answered: 0, sent: 0, places: BTreeMap::new(), again: 0 }
    }

    fn payload(&self, n: u64) -> Vec<u8> {
        format!("{} {n}", self.member).into_bytes()
    }

    /// Until the connection ends or, if `goal` is set, all up to it are answered.
    fn run(&mut self, mut client: Client, goal: Option<u64>) {
        use std::io::Write;
        let mut writer = client.writer();
        let mut requests = BTreeMap::new();
        self.again += self.sent - self.answered;
        let mut next = self.answered + 1;
        loop {
            let end = goal.unwrap_or(u64::MAX).min(self.answered + 24);
            while next <= end {
                let (request, bytes) =
                    client.publish_frame_as("g", None, next, &self.payload(next));
                self.sent = self.sent.max(next);
                if writer.write_all(&bytes).is_err() {
                    break;
                }
                requests.insert(request, next);
                next += 1;
            }
            if goal == Some(self.answered) {
                return;
            }
            match client.recv() {
                Got::Published(p) => {
                    let n = requests.remove(&p.request).unwrap();
                    assert_eq!(n, self.answered + 1, "answers come in order");
                    self.answered = n;
                    self.places.insert(n, p.seq.0);
                }
                Got::Closed => return,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn forty_crashes_under_load_make_no_copy_and_no_hole() {
    let rounds = std::env::var("TEST_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    let mut random = Random::new();
    let mut server = Server::start(Settings::shards(2));
    let mut publishers: Vec<_> = (0..3).map(|n| Publisher::new(format!("publisher-{n}"))).collect();
    for _ in 0..rounds {
        let threads: Vec<_> = publishers
            .into_iter()
            .enumerate()
            .map(|(n, mut publisher)| {
                let member = publisher.member.clone();
                let shard = n as u16 % 2;
                let client = Client::on_shard_as(&server, shard, &member, publisher.producer);
                std::thread::spawn(move || {
                    publisher.run(client, None);
                    publisher
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(10 + random.below(80)));
        server.kill();
        publishers = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        server.restart();
    }
    for publisher in &mut publishers {
        let client = Client::open_as(&server, &publisher.member.clone(), publisher.producer);
        publisher.run(client, Some(publisher.sent));
    }
    let history = history(&server, "g");
    let again: u64 = publishers.iter().map(|publisher| publisher.again).sum();
    eprintln!("{rounds} crashes, {} messages, {again} sent again", history.len());
    assert!(again > rounds, "the load was a load: {again} were sent again");
    for publisher in &publishers {
        // Every message is where it was answered to be ...
        for (n, seq) in &publisher.places {
            assert_eq!(history[*seq as usize - 1], publisher.payload(*n));
        }
        // ... and they are there once, in their order.
        let own = format!("{} ", publisher.member).into_bytes();
        let own: Vec<_> = history.iter().filter(|payload| payload.starts_with(&own)).collect();
        let expected: Vec<_> = (1..=publisher.sent).map(|n| publisher.payload(n)).collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
}
