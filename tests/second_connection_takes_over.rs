//! A durable member joins on a second connection: the first one is told and closed, or both are
//! served, as the operator has it. The cursor stays right either way.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;
mod one_shard;

use common::{Client, Follower, Got, Server, Settings};
use fanfare::config::{SecondConnection, ShardConfig};
use fanfare::position::Seq;
use fanfare::wire::{ErrorCode, JoinEntry, Leave, ServerFrame, Start};
use one_shard::{Bench, frames};

fn publish(client: &mut Client, group: &str, count: u64) -> u64 {
    (0..count).map(|n| client.publish(group, &n.to_le_bytes()).seq.0).last().unwrap_or(0)
}

/// The next fatal ERROR, passing over what comes before it, then the end.
fn ends_with(client: &mut Client, code: ErrorCode) {
    let (got, _, _) = client.error(0);
    assert_eq!(got, code);
    assert_eq!(client.recv(), Got::Closed);
}

#[test]
fn the_first_connection_is_told_and_closed_and_the_second_goes_on_at_the_cursor() {
    for shards in [1, 2] {
        let server = Server::start(Settings::shards(shards));
        for group in ["a", "b", "c"] {
            let mut publisher = Client::open(&server, "publisher");
            let mut first = Client::on_shard(&server, 0, "member");
            let mut follower = Follower::first(first.join_durable(group));
            publish(&mut publisher, group, 6);
            first.follow(&mut follower, 6);
            first.ack(follower.handle, follower.epoch.unwrap(), Seq(4));
            first.ping();
            let mut second = Client::on_shard(&server, shards - 1, "member");
            let joined = second.join_durable(group);
            assert_eq!((joined.cursor, joined.first), (Seq(4), Seq(5)));
            ends_with(&mut first, ErrorCode::Replaced);
            let mut follower = Follower::first(joined);
            publish(&mut publisher, group, 4);
            second.follow(&mut follower, 10);
            second.ack_all(&follower);
            second.ping();
            // And back to the other shard.
            let mut third = Client::on_shard(&server, 0, "member");
            assert_eq!(third.join_durable(group).cursor, Seq(10));
            ends_with(&mut second, ErrorCode::Replaced);
        }
    }
}

#[test]
fn a_live_member_of_the_same_name_is_left_alone() {
    let server = Server::start(Settings::shards(2));
    let mut publisher = Client::open(&server, "publisher");
    let mut live = Client::open(&server, "member");
    let mut follower = Follower::live(live.join("a"));
    let mut durable = Client::open(&server, "member");
    durable.join_durable("a");
    publish(&mut publisher, "a", 3);
    live.follow(&mut follower, 3);
}

#[test]
fn joining_twice_on_one_connection_replaces_nothing() {
    let server = Server::start(Settings::shards(2));
    for group in ["a", "b", "c"] {
        let mut member = Client::on_shard(&server, 0, "member");
        let first = member.send_join_durable(group, Start::Cursor);
        let second = member.send_join_durable(group, Start::Cursor);
        let joined = member.joined(first, group);
        assert_eq!(member.error(second).0, ErrorCode::AlreadyAMember);
        let mut publisher = Client::open(&server, "publisher");
        publish(&mut publisher, group, 2);
        member.follow(&mut Follower::first(joined), 2);
    }
}

#[test]
fn side_by_side_the_highest_acknowledgement_is_the_cursor() {
    for shards in [1, 2] {
        let settings = Settings::shards(shards).set("second_connection", "\"allow\"");
        let server = Server::start(settings);
        for group in ["a", "b", "c"] {
            let mut publisher = Client::open(&server, "publisher");
            let mut first = Client::on_shard(&server, 0, "member");
            let mut second = Client::on_shard(&server, shards - 1, "member");
            let mut one = Follower::first(first.join_durable(group));
            let mut two = Follower::first(second.join_durable(group));
            publish(&mut publisher, group, 9);
            first.follow(&mut one, 9);
            second.follow(&mut two, 9);
            let epoch = one.epoch.unwrap();
            first.ack(one.handle, epoch, Seq(7));
            first.ping();
            second.ack(two.handle, epoch, Seq(5));
            second.ping();
            drop(first);
            let mut third = Client::on_shard(&server, shards - 1, "member");
            assert_eq!(third.join_durable(group).cursor, Seq(7));
            // Leaving on one of them is leaving; the other one reads on until it goes.
            third.leave(group);
            publish(&mut publisher, group, 1);
            second.follow(&mut two, 10);
            second.ack_all(&two);
            second.ping();
            drop(second);
            let mut again = Client::open(&server, "member");
            let joined = again.join_durable(group);
            assert_eq!((joined.cursor, joined.first), (Seq(10), Seq(11)), "a new member");
        }
    }
}

/// What a connection was sent: where JOINED says that it begins, its cursor, and the messages.
fn sent_to(bytes: &[u8]) -> (Option<(Seq, Seq)>, Vec<Seq>) {
    let (mut joined, mut seqs) = (None, Vec::new());
    for frame in frames(bytes) {
        match frame {
            ServerFrame::Joined(j) => joined = Some((j.cursor, j.first)),
            ServerFrame::Deliver(d) => seqs.push(d.seq),
            _ => {}
        }
    }
    (joined, seqs)
}

#[test]
fn a_join_that_waits_beside_the_one_that_makes_the_member_goes_on_at_its_cursor() {
    let mut bench = Bench::new(ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() });
    let entry = JoinEntry::durable(b"a");
    bench.connect(9, &[]);
    bench.settle();
    bench.world.disk_works = false;
    bench.publish(9, "a", 10);
    bench.settle();
    // The group is empty as far as the first connection can see.
    bench.connect_as(1, "member", &[entry]);
    bench.settle();
    // The message is published, and the join is on its way to the disk.
    bench.world.disk_works = true;
    bench.turn();
    bench.world.disk_works = false;
    bench.settle();
    bench.connect_as(2, "member", &[entry]);
    bench.settle();
    bench.world.disk_works = true;
    let (joined, seqs) = sent_to(&bench.settle_reading(2));
    assert_eq!(joined, Some((Seq(0), Seq(1))), "the cursor, and what comes first");
    assert_eq!(seqs, [Seq(1)]);
}

/// How often the name of a member is in what was written to the log from `from` on.
fn times_in_log(bench: &Bench, from: usize, member: &[u8]) -> usize {
    let commits = bench.world.commits[from..].iter();
    commits.map(|c| c.windows(member.len()).filter(|bytes| *bytes == member).count()).sum()
}

#[test]
fn a_join_after_a_leave_is_on_disk_though_a_join_before_it_still_waits() {
    let config = ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() };
    let mut bench =
        Bench::new(ShardConfig { second_connection: SecondConnection::Allow, ..config });
    let entry = JoinEntry::durable(b"a");
    bench.world.disk_works = false;
    bench.connect_as(1, "ann", &[entry]);
    bench.settle();
    // What another member stages has the second join of ann wait for the commit after hers.
    bench.connect_as(2, "bob", &[entry]);
    bench.settle();
    bench.connect_as(3, "ann", &[entry]);
    bench.settle();
    // One commit ends, and the next one begins.
    bench.world.disk_works = true;
    assert_eq!(bench.turn(), [1], "the first is in");
    bench.world.disk_works = false;
    bench.settle();
    let before_leave = bench.world.commits.len();
    let mut leave = Vec::new();
    Leave::encode(&mut leave, 2, &[b"a"]);
    bench.say(1, leave);
    bench.settle();
    bench.connect_as(4, "ann", &[entry]);
    bench.settle();
    bench.world.disk_works = true;
    assert!(sent_to(&bench.settle_reading(4)).0.is_some(), "the last is in");
    assert_eq!(times_in_log(&bench, before_leave, b"ann"), 2, "she left, and she joined");
}
