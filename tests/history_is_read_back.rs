//! JOIN from a sequence number: from memory, from the log, and after a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use common::{Client, Follower, Random, Server, Settings};

const GROUPS: [&str; 3] = ["a", "b", "c"];

/// Publishes `count` messages to each group; `expected` collects what went where.
fn publish(
    client: &mut Client,
    random: &mut Random,
    expected: &mut [Vec<Vec<u8>>; 3],
    count: u64,
    len: u64,
) {
    for _ in 0..count / 20 {
        let mut requests = Vec::new();
        for _ in 0..20 {
            for (group, payloads) in GROUPS.iter().zip(&mut *expected) {
                let len = random.below(len) as usize;
                payloads.push(random.bytes(len));
                requests.push(client.send_publish(group, payloads.last().unwrap()));
            }
        }
        for request in requests {
            client.published(request);
        }
    }
}

fn check(server: &Server, random: &mut Random, expected: &[Vec<Vec<u8>>; 3], shards: u16) {
    for shard in 0..shards {
        for (group, payloads) in GROUPS.iter().zip(expected) {
            let head = payloads.len() as u64;
            let anywhere = 1 + random.below(head);
            for from in [1, 2, anywhere, head, head + 1, head + 1000] {
                let mut member = Client::on_shard(server, shard, "member");
                let joined = member.join_from(group, from);
                assert_eq!(joined.head.0, head);
                // Beyond the head means live.
                let from = from.min(head + 1);
                let mut follower = Follower::from(joined, from);
                member.follow(&mut follower, head);
                assert!(follower.gaps.is_empty());
                let wanted: Vec<_> = payloads[from as usize - 1..].iter().map(|p| &p[..]).collect();
                assert!(follower.payloads() == wanted, "{group} from {from}");
            }
        }
    }
}

#[test]
fn every_message_is_there_from_any_start_live_from_the_log_and_after_restarts() {
    for shards in [1, 2] {
        let mut random = Random::new();
        // Tails that hold little, so that most of it comes from the log.
        let server_settings = Settings::shards(shards).set("tail_bytes_max", 256 * 1024);
        let mut server = Server::start(server_settings);
        let mut expected = [const { Vec::new() }; 3];
        for round in 0..4 {
            let mut publisher = Client::open(&server, "publisher");
            publish(&mut publisher, &mut random, &mut expected, 400, 6_000);
            check(&server, &mut random, &expected, shards);
            drop(publisher);
            if round % 2 == 0 {
                server.stop();
            } else {
                server.kill();
            }
            server.restart();
            check(&server, &mut random, &expected, shards);
        }
    }
}

#[test]
fn history_that_retention_removed_is_a_gap_also_after_a_restart() {
    let settings =
        Settings::shards(1).set("retention_bytes", 16 << 20).set("tail_bytes_max", 1 << 20);
    let mut server = Server::start(settings);
    let mut publisher = Client::open(&server, "publisher");
    let count = 4_000u64;
    for n in 0..count / 50 {
        let requests: Vec<_> = (n * 50..(n + 1) * 50)
            .map(|n| publisher.send_publish("g", &n.to_le_bytes().repeat(1_500)))
            .collect();
        requests.into_iter().for_each(|request| {
            publisher.published(request);
        });
    }
    for restarted in [false, true] {
        if restarted {
            server.stop();
            server.restart();
        }
        // Retention follows what was published: a reading that it overtakes is told of what went
        // meanwhile in a GAP of its own. Once it rests there is one.
        common::wait_until("one GAP at the start", || read_after_gap(&server, count) == 1);
    }
}

/// Reads the group from its start; how many times it was told that messages are gone.
fn read_after_gap(server: &Server, count: u64) -> usize {
    let mut member = Client::open(server, "member");
    let joined = member.join_from("g", 1);
    assert_eq!(joined.head.0, count);
    let mut follower = Follower::from(joined, 1);
    member.follow(&mut follower, count);
    assert_eq!(follower.gaps[0].0.0, 1, "what is gone is gone from the start");
    let kept = follower.messages.len() as u64;
    assert!(kept > 500 && kept < count, "{kept} of {count} are kept");
    for (seq, _, payload) in &follower.messages {
        assert_eq!(payload[..8], (seq.0 - 1).to_le_bytes());
    }
    follower.gaps.len()
}
