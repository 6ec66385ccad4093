//! A durable member belongs to its group until it leaves. Whatever was published while it was
//! away comes when it is back, in order and without a hole, from the message after the last one
//! that it acknowledged: over reconnects, clean restarts and crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::Duration;

use common::{Client, Follower, Got, Server, Settings, wait_until};
use fanfare::position::{Level, Seq};
use fanfare::wire::{ErrorCode, Start};

/// A member on shard 0 and a publisher on the last shard: with two shards the group is foreign
/// to one of them.
fn on_both(shards: u16, what: impl Fn(&mut Server, &str)) {
    let mut server = Server::start(Settings::shards(shards));
    // With two shards each of these names is owned by one of them, whichever.
    for group in ["a", "b", "c", "d"] {
        what(&mut server, group);
    }
}

fn publish(client: &mut Client, group: &str, count: u64) -> u64 {
    (0..count).map(|n| client.publish(group, &n.to_le_bytes()).seq.0).last().unwrap_or(0)
}

#[test]
fn a_member_that_comes_back_gets_what_follows_its_last_acknowledgement() {
    for shards in [1, 2] {
        on_both(shards, |server, group| {
            let mut publisher = Client::on_shard(server, shards - 1, "publisher");
            publish(&mut publisher, group, 3);
            let mut member = Client::on_shard(server, 0, "member");
            let joined = member.join_durable(group);
            assert_eq!((joined.head, joined.first, joined.cursor), (Seq(3), Seq(4), Seq(3)));
            let mut follower = Follower::first(joined);
            publish(&mut publisher, group, 10);
            member.follow(&mut follower, 8);
            member.ack_all(&follower);
            // The acknowledgement reaches the owner before the end of the connection does.
            member.ping();
            drop(member);
            publish(&mut publisher, group, 20);

            for round in 0..3 {
                let mut member = Client::on_shard(server, round % shards, "member");
                let joined = member.join_durable(group);
                assert_eq!((joined.cursor, joined.first), (Seq(8), Seq(9)), "{round}");
                assert_eq!(joined.head.0, 33 + 5 * u64::from(round));
                let mut follower = Follower::first(joined);
                // History and live messages without a hole between them.
                let last = publish(&mut publisher, group, 5);
                member.follow(&mut follower, last);
                assert_eq!(follower.messages.len() as u64, last - 8);
                assert!(follower.gaps.is_empty());
            }
        });
    }
}

#[test]
fn a_message_published_while_its_join_is_on_the_way_to_the_disk_is_not_missed() {
    let server = Server::start(Settings::shards(2));
    for group in ["a", "b"] {
        let mut publisher = Client::on_shard(&server, 1, "publisher");
        let mut writer = publisher.writer();
        let count = 400;
        let frames: Vec<_> =
            (0..count).map(|_| publisher.publish_frame(group, None, &[5; 200]).1).collect();
        let flood = std::thread::spawn(move || {
            for frame in frames {
                std::io::Write::write_all(&mut writer, &frame).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        // Joins in the middle of the flood, gone at once, and back.
        let mut firsts = Vec::new();
        for n in 0..20 {
            let mut member = Client::on_shard(&server, 0, &format!("member-{n}"));
            firsts.push(member.join_durable(group).first);
        }
        flood.join().unwrap();
        let head = |client: &mut Client| client.join(group).head.0;
        let mut watcher = Client::open(&server, "watcher");
        wait_until("publishing", || {
            let reached = head(&mut watcher) == count;
            watcher.leave(group);
            reached
        });
        for (n, first) in firsts.into_iter().enumerate() {
            let mut member = Client::open(&server, &format!("member-{n}"));
            let joined = member.join_durable(group);
            assert!(joined.first <= first, "{} after {first}", joined.first);
            member.follow(&mut Follower::first(joined), count);
        }
    }
}

#[test]
fn cursors_and_members_outlive_a_clean_restart() {
    for shards in [1, 2] {
        on_both(shards, |server, group| {
            let mut publisher = Client::open(server, "publisher");
            let mut member = Client::on_shard(server, 0, "member");
            let mut follower = Follower::first(member.join_durable(group));
            publish(&mut publisher, group, 12);
            member.follow(&mut follower, 12);
            member.ack(follower.handle, follower.epoch.unwrap(), Seq(7));
            member.ping();
            // Before cursor_flush_ms: the stop writes what waits.
            server.stop();
            server.restart();
            let mut member = Client::open(server, "member");
            let joined = member.join_durable(group);
            assert_eq!((joined.cursor, joined.first, joined.head), (Seq(7), Seq(8), Seq(12)));
            member.follow(&mut Follower::first(joined), 12);
        });
    }
}

#[test]
fn a_member_that_joined_is_one_after_a_crash_and_its_cursor_is_at_most_a_flush_old() {
    for shards in [1, 2] {
        let flush_ms = 100;
        let mut server = Server::start(Settings::shards(shards).set("cursor_flush_ms", flush_ms));
        for group in ["a", "b", "c"] {
            let mut publisher = Client::open(&server, "publisher");
            publish(&mut publisher, group, 2);
            let mut member = Client::on_shard(&server, 0, "member");
            let joined = member.join_durable(group);
            server.kill();
            server.restart();

            let mut member = Client::on_shard(&server, shards - 1, "member");
            assert_eq!(member.join_durable(group).first, joined.first);
            let mut follower = Follower::first(joined);
            let mut publisher = Client::open(&server, "publisher-2");
            publish(&mut publisher, group, 6);
            member.follow(&mut follower, 8);
            member.ack(follower.handle, follower.epoch.unwrap(), Seq(5));
            member.ping();
            // Nothing else is written: the cursor goes alone.
            std::thread::sleep(Duration::from_millis(3 * flush_ms));
            server.kill();
            server.restart();

            let mut member = Client::open(&server, "member");
            let joined = member.join_durable(group);
            assert_eq!((joined.cursor, joined.first, joined.head), (Seq(5), Seq(6), Seq(8)));
            member.follow(&mut Follower::first(joined), 8);
        }
    }
}

#[test]
fn who_left_is_no_member_any_more_also_after_a_crash() {
    for shards in [1, 2] {
        let mut server = Server::start(Settings::shards(shards));
        for group in ["a", "b", "c"] {
            let mut publisher = Client::open(&server, "publisher");
            let mut member = Client::on_shard(&server, 0, "member");
            let mut follower = Follower::first(member.join_durable(group));
            publish(&mut publisher, group, 5);
            member.follow(&mut follower, 5);
            member.leave(group);
            assert_eq!(publish(&mut publisher, group, 2), 7);
            member.ping();
            let nothing = member.recv_within(Duration::from_millis(50));
            assert!(nothing.is_none(), "after LEFT: {nothing:?}");
            server.kill();
            server.restart();
            // A new member: it begins at the tail.
            let mut member = Client::open(&server, "member");
            let joined = member.join_durable(group);
            assert_eq!((joined.cursor, joined.first), (Seq(7), Seq(8)));
        }
    }
}

#[test]
fn leaving_and_joining_again_in_one_breath_makes_a_new_member() {
    let server = Server::start(Settings::shards(2));
    for group in ["a", "b", "c"] {
        let mut publisher = Client::open(&server, "publisher");
        let mut member = Client::on_shard(&server, 0, "member");
        let mut follower = Follower::first(member.join_durable(group));
        publish(&mut publisher, group, 5);
        member.follow(&mut follower, 5);
        let left = member.send_leave(group);
        let joined = member.send_join_durable(group, Start::Cursor);
        member.expect("LEFT", |got| {
            matches!(got, Got::Left { request, .. } if *request == left).then_some(())
        });
        let joined = member.joined(joined, group);
        assert_eq!((joined.cursor, joined.first), (Seq(5), Seq(6)));
        let mut follower = Follower::first(joined);
        publish(&mut publisher, group, 1);
        member.follow(&mut follower, 6);
    }
}

#[test]
fn a_new_member_may_begin_in_the_past_and_keeps_that_place() {
    let mut server = Server::start(Settings::shards(2));
    let mut publisher = Client::open(&server, "publisher");
    publish(&mut publisher, "a", 10);
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable_at("a", Start::Seq(Seq(4)));
    assert_eq!((joined.cursor, joined.first), (Seq(3), Seq(4)));
    member.follow(&mut Follower::first(joined), 10);
    server.kill();
    server.restart();
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    assert_eq!((joined.cursor, joined.first), (Seq(3), Seq(4)));
    // Who asks for another place gets it; the cursor stays.
    drop(member);
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable_at("a", Start::Tail);
    assert_eq!((joined.cursor, joined.first), (Seq(3), Seq(11)));
    drop(member);
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable_at("a", Start::Seq(Seq(2)));
    assert_eq!((joined.cursor, joined.first), (Seq(3), Seq(2)));
    member.follow(&mut Follower::first(joined), 10);
}

#[test]
fn acks_of_what_was_not_sent_or_of_another_epoch_move_nothing() {
    let server = Server::start(Settings::shards(1));
    let mut publisher = Client::open(&server, "publisher");
    let mut member = Client::open(&server, "member");
    let mut follower = Follower::first(member.join_durable("a"));
    publish(&mut publisher, "a", 5);
    member.follow(&mut follower, 5);
    let epoch = follower.epoch.unwrap();
    member.ack(follower.handle, epoch, Seq(2));
    member.ack(follower.handle, epoch, Seq(6));
    member.ack(follower.handle, fanfare::position::Epoch(epoch.0 + 1), Seq(4));
    member.ack(follower.handle, epoch, Seq(1));
    member.ping();
    drop(member);
    let mut member = Client::open(&server, "member");
    assert_eq!(member.join_durable("a").cursor, Seq(2));
}

/// What a crash takes of level memory had been acknowledged: the messages that get those
/// numbers in the new epoch are others, and the member gets them.
#[test]
fn a_cursor_never_skips_messages_of_the_epoch_after_a_crash() {
    let mut server = Server::start(Settings::shards(1).set("cursor_flush_ms", 1));
    for _ in 0..5 {
        let mut publisher = Client::open(&server, "publisher");
        let mut member = Client::open(&server, "member");
        let joined = member.join_durable("a");
        let mut follower = Follower::first(joined);
        let mut last = joined.head.0;
        // The first of a segment waits for the disk, the others do not.
        for _ in 0..50 {
            let (request, bytes) = publisher.publish_frame("a", Some(Level::Memory), b"m");
            publisher.send(&bytes);
            last = publisher.published(request).seq.0;
            member.follow(&mut follower, last);
            member.ack_all(&follower);
        }
        server.kill();
        server.restart();
        let mut publisher = Client::open(&server, "publisher-2");
        let mut member = Client::open(&server, "member");
        let joined = member.join_durable("a");
        assert!(joined.epoch > follower.epoch.unwrap(), "a new epoch after the crash");
        assert!(joined.cursor <= joined.head && joined.head.0 <= last);
        assert_eq!(joined.first, joined.cursor.next());
        let mut follower = Follower::first(joined);
        let last = publish(&mut publisher, "a", 60);
        member.follow(&mut follower, last);
        assert_eq!(follower.messages.len() as u64, last - joined.cursor.0);
        member.ack_all(&follower);
        member.ping();
    }
}

#[test]
fn a_cursor_that_retention_passed_gets_a_gap_and_goes_on_after_it() {
    let segment = 8 << 20;
    let settings = Settings::shards(1)
        .set("segment_bytes", segment)
        .set("retention_bytes", segment)
        .set("tail_bytes_max", 64 << 10)
        .set("ack_timeout_ms", 300);
    let server = Server::start(settings);
    let mut publisher = Client::open(&server, "publisher");
    let mut member = Client::open(&server, "member");
    let mut follower = Follower::first(member.join_durable("a"));
    publish(&mut publisher, "a", 3);
    member.follow(&mut follower, 3);
    member.ack_all(&follower);
    member.ping();
    drop(member);
    let payload = vec![7; 60_000];
    let mut last = 0;
    for _ in 0..30 {
        let requests: Vec<_> = (0..20).map(|_| publisher.send_publish("a", &payload)).collect();
        last =
            requests.into_iter().map(|request| publisher.published(request).seq.0).max().unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    assert_eq!(joined.cursor, Seq(3));
    let mut follower = Follower::first(joined);
    member.follow(&mut follower, last);
    assert_eq!(follower.gaps[0].0, Seq(4));
    // That the GAP was sent says nothing: who crashes before it knows of the hole is told again.
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    assert_eq!((joined.cursor, joined.first), (Seq(3), Seq(4)));
    let mut again = Follower::first(joined);
    member.follow(&mut again, last);
    assert_eq!(again.gaps, follower.gaps);
    // Who has read it passes it, although it acknowledges nothing; and nothing comes again for it.
    let token = member.expect("PROBE", |got| match got {
        Got::Probe(token) => Some(*token),
        _ => None,
    });
    member.probed(token);
    member.ping();
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    assert_eq!(joined.cursor, follower.gaps[0].1);
}

#[test]
fn a_group_takes_no_more_durable_members_than_it_may() {
    let server = Server::start(Settings::shards(2).set("members_per_group_max", 3));
    for n in 0..3 {
        Client::open(&server, &format!("member-{n}")).join_durable("a");
    }
    let mut fourth = Client::open(&server, "member-4");
    let request = fourth.send_join_durable("a", Start::Cursor);
    assert_eq!(fourth.error(request).0, ErrorCode::TooManyMembers);
    // They are away, but members; one leaves and makes room.
    let mut first = Client::open(&server, "member-0");
    first.join_durable("a");
    first.leave("a");
    fourth.join_durable("a");
}

/// Names of groups in which nothing ever was and nobody is any more.
#[test]
fn groups_that_durable_members_left_without_a_message_are_forgotten_over_crashes_too() {
    for shards in [1, 2] {
        let settings = Settings::shards(shards).set("groups_max", 4).set("cursor_flush_ms", 20);
        let mut server = Server::start(settings);
        for round in 0..3 {
            let mut member = Client::on_shard(&server, round % shards, "member");
            for n in 0..20 {
                let group = format!("made-up-{round}-{n}");
                member.join_durable(&group);
                member.leave(&group);
            }
            // The name is free, and who comes now is a member as any other.
            let joined = member.join_durable("made-up-0-0");
            let known = if round == 0 { Seq(0) } else { Seq(u64::from(round)) };
            assert_eq!(joined.cursor, known, "round {round}");
            let mut follower = Follower::first(joined);
            let mut publisher = Client::open(&server, "publisher");
            assert_eq!(publisher.publish("made-up-0-0", b"x").seq, known.next());
            member.follow(&mut follower, known.0 + 1);
            member.ack_all(&follower);
            member.ping();
            std::thread::sleep(Duration::from_millis(500));
            server.kill();
            server.restart();
        }
        // Those that are used count.
        let mut member = Client::open(&server, "member");
        let answers: Vec<_> = (0..20 * shards)
            .map(|n| {
                let request = member.send_join_durable(&format!("used-{n}"), Start::Cursor);
                member.expect("an answer", |got| match got {
                    Got::Joined { request: of, .. } if *of == request => Some(true),
                    Got::Error { request: of, code, limit: 4, .. } if *of == request => {
                        assert_eq!(*code, ErrorCode::TooManyGroups as u16);
                        Some(false)
                    }
                    _ => None,
                })
            })
            .collect();
        assert!(answers.contains(&false) && answers.contains(&true), "{answers:?}");
    }
}
