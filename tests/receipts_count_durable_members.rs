//! A publisher that asks for a receipt learns when enough durable members have the message:
//! those who joined before it and have not left. Receipts find their publisher over shards,
//! reconnects, clean restarts and crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::Duration;

use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Seq;
use fanfare::wire::{ErrorCode, Receipt};

/// Durable members of a group, spread over the shards.
fn members(server: &Server, shards: u16, group: &str, count: u16) -> Vec<(Client, Follower)> {
    (0..count)
        .map(|n| {
            let mut member = Client::on_shard(server, n % shards, &format!("member-{n}"));
            let follower = Follower::first(member.join_durable(group));
            (member, follower)
        })
        .collect()
}

fn read_and_ack((member, follower): &mut (Client, Follower), seq: Seq) {
    member.follow(follower, seq.0);
    member.ack_all(follower);
}

fn none(client: &mut Client) {
    client.ping();
    let got = client.recv_within(Duration::from_millis(100));
    assert!(got.is_none() || matches!(got, Some(Got::Probe(_))), "{got:?}");
}

fn numbers(receipt: Receipt) -> (u64, u32, u32, u8) {
    (receipt.seq.0, receipt.acked, receipt.members, receipt.percent)
}

#[test]
fn a_receipt_comes_when_the_asked_share_of_the_members_has_the_message() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        for group in ["a", "b", "c"] {
            let mut all = members(&server, shards, group, 5);
            let mut live = Client::open(&server, "live");
            live.join(group);
            let mut publisher = Client::on_shard(&server, shards - 1, "publisher");
            let full = publisher.publish_with_receipt(group, 100, b"all");
            let half = publisher.publish_with_receipt(group, 50, b"half");
            // Who joins later does not count for it.
            let mut late = Client::open(&server, "late");
            let follower = Follower::first(late.join_durable(group));
            let mut late = (late, follower);
            let last = publisher.publish_with_receipt(group, 100, b"with the late one");
            none(&mut publisher);
            for member in &mut all[..2] {
                read_and_ack(member, half);
            }
            none(&mut publisher);
            read_and_ack(&mut all[2], half);
            let receipt = publisher.receipt();
            assert_eq!(numbers(receipt), (half.0, 3, 5, 50));
            assert_eq!(receipt.producer_seq, 2);
            for member in &mut all[3..] {
                read_and_ack(member, last);
            }
            assert_eq!(numbers(publisher.receipt()), (full.0, 5, 5, 100));
            read_and_ack(&mut late, last);
            none(&mut publisher);
            for member in &mut all[..3] {
                read_and_ack(member, last);
            }
            assert_eq!(numbers(publisher.receipt()), (last.0, 6, 6, 100));
        }
    }
}

#[test]
fn who_leaves_is_not_waited_for_and_without_members_a_receipt_comes_at_once() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        for group in ["a", "b", "c"] {
            let mut publisher = Client::on_shard(&server, 0, "publisher");
            let seq = publisher.publish_with_receipt(group, 100, b"to nobody");
            assert_eq!(numbers(publisher.receipt()), (seq.0, 0, 0, 100));
            let mut all = members(&server, shards, group, 3);
            let seq = publisher.publish_with_receipt(group, 100, b"to three");
            read_and_ack(&mut all[0], seq);
            all[1].0.leave(group);
            none(&mut publisher);
            all[2].0.leave(group);
            assert_eq!(numbers(publisher.receipt()), (seq.0, 1, 1, 100));
        }
    }
}

#[test]
fn a_receipt_finds_its_publisher_on_the_connection_it_came_back_with() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        for group in ["a", "b", "c"] {
            let mut all = members(&server, shards, group, 2);
            let mut publisher = Client::on_shard(&server, 0, "publisher");
            let first = publisher.publish_with_receipt(group, 100, b"one");
            let second = publisher.publish_with_receipt(group, 100, b"two");
            drop(publisher);
            read_and_ack(&mut all[0], second);
            read_and_ack(&mut all[1], first);
            all[1].0.ping();
            std::thread::sleep(Duration::from_millis(20));
            // Settled while it was away: it comes with the join.
            let mut publisher = Client::on_shard(&server, shards - 1, "publisher");
            publisher.join(group);
            assert_eq!(numbers(publisher.receipt()), (first.0, 2, 2, 100));
            // Settled when it is back: it comes at once, there.
            read_and_ack(&mut all[1], second);
            assert_eq!(numbers(publisher.receipt()), (second.0, 2, 2, 100));
            // Nothing was proved to be read, so it all comes again, until it is.
            drop(publisher);
            let mut publisher = Client::on_shard(&server, 0, "publisher");
            publisher.join(group);
            let again = [publisher.receipt().seq, publisher.receipt().seq];
            assert_eq!(again, [first, second]);
            for _ in 0..2 {
                if let Some(Got::Probe(token)) = publisher.recv_within(Duration::from_millis(100)) {
                    publisher.probed(token);
                }
            }
            publisher.ping();
            drop(publisher);
            let mut publisher = Client::on_shard(&server, 0, "publisher");
            publisher.join(group);
            none(&mut publisher);
        }
    }
}

#[test]
fn receipts_outlive_a_clean_restart_and_a_crash() {
    for (shards, clean) in [(1, true), (1, false), (2, true), (2, false)] {
        let mut server = Server::start(Settings::shards(shards).set("cursor_flush_ms", 10));
        for group in ["a", "b"] {
            let mut all = members(&server, shards, group, 3);
            let mut publisher = Client::open(&server, "publisher");
            let first = publisher.publish_with_receipt(group, 100, b"one");
            let second = publisher.publish_with_receipt(group, 60, b"two");
            for member in &mut all[..2] {
                read_and_ack(member, first);
                member.0.ping();
            }
            std::thread::sleep(Duration::from_millis(100));
            if clean {
                server.stop();
            } else {
                server.kill();
            }
            server.restart();
            let mut publisher = Client::open(&server, "publisher");
            publisher.join(group);
            none(&mut publisher);
            let mut third = Client::open(&server, "member-2");
            let mut follower = Follower::first(third.join_durable(group));
            third.follow(&mut follower, second.0);
            third.ack_all(&follower);
            assert_eq!(numbers(publisher.receipt()), (first.0, 3, 3, 100), "{clean}");
            let mut other = Client::open(&server, "member-0");
            let mut follower = Follower::first(other.join_durable(group));
            other.follow(&mut follower, second.0);
            other.ack_all(&follower);
            assert_eq!(numbers(publisher.receipt()), (second.0, 2, 3, 60), "{clean}");
        }
    }
}

#[test]
fn a_receipt_is_refused_where_too_many_wait_and_the_number_is_free() {
    let server = Server::start(Settings::shards(2).set("receipts_max", 4));
    for group in ["a", "b"] {
        let mut all = members(&server, 2, group, 1);
        let mut publisher = Client::on_shard(&server, 0, "publisher");
        let mut last = Seq(0);
        for _ in 0..4 {
            last = publisher.publish_with_receipt(group, 100, b"waits");
        }
        let request = publisher.send_publish_with_receipt(group, 100, b"too many");
        let (code, limit, _) = publisher.error(request);
        assert_eq!((code, limit), (ErrorCode::ReceiptsRefused, 4));
        read_and_ack(&mut all[0], last);
        for seq in last.0 - 3..=last.0 {
            assert_eq!(publisher.receipt().seq, Seq(seq));
        }
    }
}

#[test]
fn a_ninth_share_is_refused_with_its_own_limit_and_a_known_one_or_all_is_not() {
    let server = Server::start(Settings::shards(2));
    for group in ["a", "b"] {
        let _all = members(&server, 2, group, 1);
        let mut publisher = Client::on_shard(&server, 0, "publisher");
        for percent in 1..=8 {
            publisher.publish_with_receipt(group, percent, b"waits");
        }
        let request = publisher.send_publish_with_receipt(group, 9, b"one too many");
        let (code, limit, _) = publisher.error(request);
        assert_eq!((code, limit), (ErrorCode::TooManyShares, 8));
        publisher.publish_with_receipt(group, 8, b"known");
        publisher.publish_with_receipt(group, 100, b"all");
    }
}

#[test]
fn an_acknowledgement_of_another_member_or_a_redelivery_completes_nothing_twice() {
    let server = Server::start(Settings::shards(1));
    let mut all = members(&server, 1, "a", 2);
    let mut publisher = Client::open(&server, "publisher");
    let seq = publisher.publish_with_receipt("a", 100, b"once");
    for _ in 0..3 {
        read_and_ack(&mut all[0], seq);
    }
    none(&mut publisher);
    read_and_ack(&mut all[1], seq);
    assert_eq!(numbers(publisher.receipt()), (seq.0, 2, 2, 100));
    read_and_ack(&mut all[1], seq);
    none(&mut publisher);
}
