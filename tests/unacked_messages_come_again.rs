//! What a durable member read and does not acknowledge comes again: after the timeout, on a
//! growing schedule, bounded by a window, until its cursor moves. A member that is only slow, or
//! does not read, gets nothing twice.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Follower, Got, Server, Settings, wait_until};
use fanfare::position::Seq;
use fanfare::wire::{ErrorCode, Redeliver};

const TIMEOUT_MS: u64 = 300;

fn settings(shards: u16) -> Settings {
    Settings::shards(shards).set("ack_timeout_ms", TIMEOUT_MS).set("heartbeat_ms", 0)
}

fn publish(client: &mut Client, group: &str, count: u64) -> u64 {
    let requests: Vec<_> = (0..count).map(|_| client.send_publish(group, b"again")).collect();
    requests.into_iter().map(|request| client.published(request).seq.0).last().unwrap_or(0)
}

/// Answers the next PROBE and waits for REDELIVER.
fn redelivered(member: &mut Client) -> Redeliver {
    let token = member.expect("PROBE", |got| match got {
        Got::Probe(token) => Some(*token),
        _ => None,
    });
    member.probed(token);
    member.expect("REDELIVER", |got| match got {
        Got::Redeliver(redeliver) => Some(*redeliver),
        _ => None,
    })
}

#[test]
fn what_is_not_acknowledged_comes_again_from_the_cursor_on_until_it_moves() {
    for shards in [1, 2] {
        let server = Server::start(settings(shards));
        for group in ["a", "b"] {
            let mut publisher = Client::on_shard(&server, shards - 1, "publisher");
            let mut member = Client::on_shard(&server, 0, "member");
            let joined = member.join_durable(group);
            let mut follower = Follower::first(joined);
            publish(&mut publisher, group, 10);
            member.follow(&mut follower, 10);
            let epoch = follower.epoch.unwrap();
            member.ack(follower.handle, epoch, Seq(4));
            let started = Instant::now();
            let redeliver = redelivered(&mut member);
            assert!(started.elapsed() >= Duration::from_millis(TIMEOUT_MS), "not before its time");
            assert_eq!((redeliver.handle, redeliver.epoch), (follower.handle, epoch));
            assert_eq!((redeliver.from, redeliver.attempt), (Seq(5), 1));
            let mut again = Follower::from(joined, 5);
            again.epoch = Some(epoch);
            member.follow(&mut again, 10);
            // Nothing moved: again after a second, and then after two.
            for (attempt, after) in [(2, 1), (3, 2)] {
                let started = Instant::now();
                let redeliver = redelivered(&mut member);
                assert_eq!((redeliver.from, redeliver.attempt), (Seq(5), attempt));
                assert!(started.elapsed() > Duration::from_millis(after * 1_000 - 200));
                let mut again = Follower::from(joined, 5);
                again.epoch = Some(epoch);
                member.follow(&mut again, 10);
            }
            // Progress ends it, and the next one begins at the new cursor.
            member.ack(follower.handle, epoch, Seq(8));
            let redeliver = redelivered(&mut member);
            assert_eq!((redeliver.from, redeliver.attempt), (Seq(9), 1));
            let mut again = Follower::from(joined, 9);
            again.epoch = Some(epoch);
            publish(&mut publisher, group, 2);
            member.follow(&mut again, 12);
            member.ack(follower.handle, epoch, Seq(12));
            let nothing = member.recv_within(Duration::from_millis(3 * TIMEOUT_MS));
            assert!(nothing.is_none(), "{nothing:?}");
            drop(member);
            let mut member = Client::open(&server, "member");
            assert_eq!(member.join_durable(group).cursor, Seq(12));
        }
    }
}

#[test]
fn at_most_a_window_comes_again_and_the_rest_after_an_acknowledgement() {
    let server = Server::start(settings(1).set("redeliver_window", 16));
    let mut publisher = Client::open(&server, "publisher");
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    let mut follower = Follower::first(joined);
    publish(&mut publisher, "a", 100);
    member.follow(&mut follower, 100);
    let epoch = follower.epoch.unwrap();
    assert_eq!(redelivered(&mut member).from, Seq(1));
    let mut again = Follower::from(joined, 1);
    again.epoch = Some(epoch);
    member.follow(&mut again, 16);
    // Live messages wait too: what comes is in order.
    publish(&mut publisher, "a", 5);
    member.ping();
    let more = member.recv_within(Duration::from_millis(100));
    assert!(more.is_none() || matches!(more, Some(Got::Probe(_))), "{more:?}");
    member.ack(follower.handle, epoch, Seq(10));
    member.follow(&mut again, 105);
    // An acknowledgement of what was sent the first time counts as well.
    publish(&mut publisher, "a", 40);
    member.follow(&mut again, 145);
    assert_eq!(redelivered(&mut member).from, Seq(11));
    member.ack(follower.handle, epoch, Seq(145));
    publish(&mut publisher, "a", 1);
    let deadline = Instant::now() + common::SOON;
    loop {
        assert!(Instant::now() < deadline);
        match member.recv() {
            Got::Deliver { seq: Seq(146), .. } => break,
            Got::Deliver { seq, .. } => assert!(seq <= Seq(27), "in the window: {seq}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_comes_again_before_the_member_has_read_everything() {
    let server = Server::start(settings(1));
    let mut publisher = Client::open(&server, "publisher");
    let mut member = Client::open(&server, "member");
    let mut follower = Follower::first(member.join_durable("a"));
    publish(&mut publisher, "a", 10);
    member.follow(&mut follower, 10);
    // It does not answer PROBE: its thread that reads may be stuck.
    let token = member.expect("PROBE", |got| match got {
        Got::Probe(token) => Some(*token),
        _ => None,
    });
    let nothing = member.recv_within(Duration::from_millis(5 * TIMEOUT_MS));
    assert!(nothing.is_none(), "without proof: {nothing:?}");
    // An acknowledgement in the last moment.
    member.ack_all(&follower);
    member.probed(token);
    let nothing = member.recv_within(Duration::from_millis(3 * TIMEOUT_MS));
    assert!(nothing.is_none(), "after progress: {nothing:?}");
    member.probed(token);
    member.probed(u64::MAX);
    member.ping();
}

#[test]
fn a_member_is_not_even_probed_before_its_socket_let_go_of_what_was_overdue() {
    let server = Server::start(settings(1).set("stall_timeout_ms", 60_000));
    let mut publisher = Client::open(&server, "publisher");
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    // More than the buffers of both sockets hold.
    let payload = vec![1; 60_000];
    let requests: Vec<_> = (0..400).map(|_| publisher.send_publish("a", &payload)).collect();
    let last = requests.into_iter().map(|r| publisher.published(r).seq.0).last().unwrap();
    std::thread::sleep(Duration::from_millis(6 * TIMEOUT_MS));
    // What its own socket holds by now was sent before it was suspected, and there is more in
    // the server's.
    let here = rustix::io::ioctl_fionread(member.stream()).unwrap() / 60_000;
    assert!(here > 0);
    let mut follower = Follower::first(joined);
    while follower.last.0 < last {
        match member.recv() {
            Got::Probe(_) => assert!(follower.last.0 > here, "probed after {}", follower.last),
            got => follower.take(got),
        }
        // It reads slowly and acknowledges what it has: nothing comes again.
        member.ack_all(&follower);
    }
}

/// While it reads, there is always something in its socket: new messages must not put off what
/// is due.
#[test]
fn a_member_that_never_acknowledges_is_found_out_and_bounded_under_steady_traffic_too() {
    const WINDOW: u64 = 16;
    let settings = settings(1).set("redeliver_window", WINDOW).set("redeliver_max", 2);
    let server = Server::start(settings);
    let mut member = Client::open(&server, "member");
    let joined = member.join_durable("a");
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (sent, over, server) = (&sent, &over, &server);
        scope.spawn(move || {
            let mut publisher = Client::open(server, "publisher");
            let payload = vec![1; 20_000];
            while !over.load(Ordering::Relaxed) {
                publisher.publish("a", &payload);
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(4));
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Some megabytes behind, and from there on as fast as they come.
            const BEHIND: u64 = 150;
            wait_until("some messages", || sent.load(Ordering::Relaxed) > BEHIND);
            let (mut follower, mut attempts) = (Follower::first(joined), Vec::new());
            let mut again = None;
            loop {
                match member.recv() {
                    Got::Probe(token) => member.probed(token),
                    Got::Redeliver(r) => {
                        assert_eq!(r.from, Seq(1));
                        attempts.push(r.attempt);
                        again = Some(0);
                    }
                    Got::Deliver { seq, .. } if again.is_some() => {
                        assert!(seq.0 <= WINDOW, "{seq} is not in the window");
                        again = Some(seq.0);
                    }
                    Got::Epoch { .. } if again.is_some() => {}
                    Got::Error { code, limit, .. } => break (attempts, code, limit),
                    got => {
                        follower.take(got);
                        while sent.load(Ordering::Relaxed) < follower.last.0 + BEHIND {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        let (attempts, code, limit) = ended.unwrap();
        assert_eq!(attempts, [1, 2]);
        assert_eq!((code, limit), (ErrorCode::Stalled as u16, 2));
    });
    let mut member = Client::open(&server, "member");
    assert_eq!(member.join_durable("a").cursor, Seq(0), "it stays a member");
}

#[test]
fn a_member_that_never_acknowledges_is_closed_and_stays_durable() {
    let server = Server::start(settings(2).set("redeliver_max", 2));
    for group in ["a", "b"] {
        let mut publisher = Client::open(&server, "publisher");
        let mut member = Client::on_shard(&server, 0, "member");
        let mut follower = Follower::first(member.join_durable(group));
        publish(&mut publisher, group, 3);
        member.follow(&mut follower, 3);
        for attempt in 1..=2 {
            assert_eq!(redelivered(&mut member).attempt, attempt);
        }
        let token = member.expect("PROBE", |got| match got {
            Got::Probe(token) => Some(*token),
            _ => None,
        });
        member.probed(token);
        let (code, limit, _) = member.error(0);
        assert_eq!((code, limit), (ErrorCode::Stalled, 2));
        let mut member = Client::open(&server, "member");
        let joined = member.join_durable(group);
        assert_eq!((joined.cursor, joined.first), (Seq(0), Seq(1)));
        member.follow(&mut Follower::first(joined), 3);
    }
}

#[test]
fn live_members_are_never_asked_or_served_twice() {
    let server = Server::start(settings(1));
    let mut publisher = Client::open(&server, "publisher");
    let mut live = Client::open(&server, "live");
    let mut follower = Follower::live(live.join("a"));
    publish(&mut publisher, "a", 5);
    live.follow(&mut follower, 5);
    let nothing = live.recv_within(Duration::from_millis(5 * TIMEOUT_MS));
    assert!(nothing.is_none(), "{nothing:?}");
}
