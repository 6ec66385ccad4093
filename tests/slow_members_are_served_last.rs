//! Isolation by behaviour: a member that keeps falling behind is served after the others until
//! it has recovered, and an operator sees who it is. A shard on which all are slow blames nobody.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::shard::Control;
use fanfare::shard::isolate::Health;
use fanfare::shard::look::{Look, Seen};
use fanfare::shard::status::{SLOWEST_MAX, ShardStatus};
use one_shard::Bench;

const PUBLISHER: u32 = 900;

fn bench(members: u32) -> Bench {
    let config = ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() };
    with(config, members)
}

fn with(config: ShardConfig, members: u32) -> Bench {
    let mut bench = Bench::new(config);
    for slot in 0..members {
        bench.connect(slot, &["chat"]);
    }
    bench.connect(PUBLISHER, &[]);
    bench.settle();
    bench
}

/// One message; who is in `slow` takes `ms` for it, the others take it at once.
fn message(bench: &mut Bench, slow: &[u32], ms: u64) {
    bench.world.stuck.extend(slow);
    bench.publish(PUBLISHER, "chat", 100);
    bench.settle();
    bench.pass_ms(ms);
    for slot in slow {
        bench.finish_write(*slot);
        bench.world.stuck.remove(slot);
    }
    bench.settle();
}

/// The order in which members are served with the next message.
fn order(bench: &mut Bench) -> Vec<u32> {
    bench.publish(PUBLISHER, "chat", 100);
    let mut order = Vec::new();
    for _ in 0..6 {
        order.extend(bench.turn());
    }
    order.retain(|slot| *slot != PUBLISHER);
    order
}

fn status(bench: &mut Bench) -> ShardStatus {
    let (to, mut from) = rtrb::RingBuffer::new(1);
    bench.control.push(Control::Look(Look::Status { slowest: true }, to)).unwrap();
    bench.settle();
    match from.pop().unwrap() {
        Seen::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_member_that_keeps_being_slow_is_served_last_until_it_has_recovered() {
    let mut bench = bench(10);
    assert_eq!(order(&mut bench), (0..10).collect::<Vec<_>>());
    for _ in 0..3 {
        message(&mut bench, &[0], 50);
    }
    let figures = bench.figures();
    assert_eq!((figures.members_lagging, figures.members_tripped), (1, 0));
    assert_eq!(order(&mut bench)[0], 0, "not for three slow writes");
    for _ in 0..2 {
        message(&mut bench, &[0], 50);
    }
    assert_eq!(bench.figures().members_tripped, 1);
    assert_eq!(*order(&mut bench).last().unwrap(), 0);
    // Good writes count against the bad ones; all have to be made good.
    let mut good = 0;
    while bench.figures().members_tripped > 0 {
        message(&mut bench, &[], 0);
        good += 1;
        assert!(good < 10);
    }
    assert!(good >= 2, "recovered after {good}");
    assert_eq!(order(&mut bench)[0], 0);
    let figures = bench.figures();
    assert_eq!((figures.members_live, figures.members_lagging, figures.trips), (11, 0, 1));
}

#[test]
fn where_all_are_slow_nobody_is_called_slow() {
    let mut bench = bench(10);
    let all: Vec<u32> = (0..10).collect();
    // The first seconds teach the shard what is normal here.
    for _ in 0..3 {
        message(&mut bench, &all, 400);
    }
    for _ in 0..10 {
        message(&mut bench, &[], 400);
    }
    let trips = bench.figures().trips;
    for _ in 0..20 {
        message(&mut bench, &all, 400);
    }
    assert_eq!(bench.figures().trips, trips);
    assert_eq!(bench.figures().members_tripped, 0);
    // One that is much slower than all the others is called so.
    for _ in 0..5 {
        bench.world.stuck.insert(3);
        message(&mut bench, &[0, 1, 2, 4, 5, 6, 7, 8, 9], 400);
        bench.pass_ms(5_000);
        bench.finish_write(3);
        bench.world.stuck.remove(&3);
        bench.settle();
    }
    assert_eq!(bench.figures().members_tripped, 1);
    assert_eq!(status(&mut bench).slowest[0].member[..], *b"m3");
}

#[test]
fn a_write_that_does_not_move_is_seen_before_it_is_given_up() {
    let config = ShardConfig { heartbeat_ms: 0, stall_timeout_ms: 10_000, ..Default::default() };
    let mut bench = with(config, 3);
    bench.world.stuck.insert(1);
    for _ in 0..4 {
        bench.publish(PUBLISHER, "chat", 100);
        bench.settle();
    }
    assert_eq!(bench.figures().members_stalled, 0);
    bench.pass_ms(3_000);
    bench.settle();
    let figures = bench.figures();
    assert_eq!((figures.members_stalled, figures.members_tripped), (1, 1));
    let seen = status(&mut bench);
    let slow = &seen.slowest[0];
    assert_eq!((slow.health, slow.tripped), (Health::Stalled, true));
    assert_eq!(slow.lag, 3, "the write that is stuck holds the first");
    // It moves again before the time is over.
    bench.finish_write(1);
    bench.world.stuck.remove(&1);
    bench.settle();
    assert_eq!(bench.figures().members_stalled, 0);
    bench.world.stuck.insert(2);
    bench.publish(PUBLISHER, "chat", 100);
    bench.settle();
    for _ in 0..5 {
        bench.pass_ms(3_000);
        bench.settle();
    }
    let figures = bench.figures();
    assert_eq!((figures.stalled, figures.members_stalled), (1, 0), "then it is closed");
    assert_eq!(figures.members_live + figures.members_lagging, 3);
}

#[test]
fn a_member_off_the_tail_is_in_catch_up_until_it_is_back() {
    let config = ShardConfig { heartbeat_ms: 0, tail_bytes_max: 64 * 1024, ..Default::default() };
    let mut bench = with(config, 3);
    bench.world.stuck.insert(0);
    for _ in 0..20 {
        bench.publish(PUBLISHER, "chat", 10_000);
        bench.settle();
    }
    bench.finish_write(0);
    bench.turn();
    bench.turn();
    let figures = bench.figures();
    assert_eq!((figures.members_catch_up, figures.catch_up_members), (1, 1));
    bench.world.stuck.remove(&0);
    for _ in 0..10 {
        if bench.world.unfinished.contains(&0) {
            bench.finish_write(0);
        }
        bench.settle();
    }
    let figures = bench.figures();
    assert_eq!((figures.members_catch_up, figures.catch_up_members), (0, 0));
    assert_eq!(figures.deliveries, 60);
}

#[test]
fn the_list_of_the_slowest_is_bounded_and_the_worst_are_first() {
    let mut bench = bench(40);
    let slow: Vec<u32> = (0..12).collect();
    for _ in 0..6 {
        message(&mut bench, &slow, 80);
    }
    bench.pass_ms(1_000);
    bench.settle();
    let seen = status(&mut bench);
    assert!(seen.slowest.len() <= SLOWEST_MAX);
    assert_eq!(seen.slowest.len() as u64, bench.figures().members_tripped);
    assert!(seen.slowest.is_sorted_by(|a, b| { (b.tripped, b.health) <= (a.tripped, a.health) }));
    assert!(seen.median_rate > 0 && seen.median_write_ns > 0);
    for slot in 0..40 {
        bench.disconnect(slot);
    }
    bench.settle();
    let figures = bench.figures();
    assert_eq!(figures.members_live, 1, "the publisher");
    assert_eq!(figures.members_lagging + figures.members_tripped + figures.members_stalled, 0);
}
