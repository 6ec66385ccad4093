//! Groups of class realtime are served before others and never wait for more than a slice of
//! them; bulk groups make progress always.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::limits::{COMMIT_BULK_MAX, SENDS_PER_TURN};
use one_shard::{Bench, mixed};

/// Slots 0 to 9 are in `realtime/a`, 100 to 399 in `bulk/a`, 1000 to 1299 in `normal/a`.
fn crowd(config: ShardConfig) -> Bench {
    let mut bench = Bench::new(config);
    for slot in 0..10 {
        bench.connect(slot, &["realtime/a"]);
    }
    for slot in 0..300 {
        bench.connect(100 + slot, &["bulk/a"]);
        bench.connect(1_000 + slot, &["normal/a"]);
    }
    bench.connect(5_000, &[]);
    bench.connect(5_001, &[]);
    bench.settle();
    bench
}

fn publish_to(bench: &mut Bench, groups: &[&str]) {
    for (n, group) in (5_000..).zip(groups) {
        bench.publish(n, group, 100);
    }
    // The publishes are staged and committed in the first turn and on disk in the second.
    bench.turn();
}

fn count(started: &[u32], slots: std::ops::Range<u32>) -> usize {
    started.iter().filter(|slot| slots.contains(slot)).count()
}

#[test]
fn realtime_is_written_before_bulk_that_came_earlier() {
    let mut bench = crowd(mixed());
    publish_to(&mut bench, &["bulk/a"]);
    let first = bench.turn();
    assert_eq!(count(&first, 100..400), SENDS_PER_TURN - 1, "one is the publisher's answer");
    bench.publish(5_001, "realtime/a", 100);
    bench.turn();
    let next = bench.turn();
    assert_eq!(next[0], 5_001, "the publisher of the realtime group is answered");
    assert_eq!(next[1..11], (0..10).collect::<Vec<_>>());
    assert_eq!(count(&next, 100..400), SENDS_PER_TURN / 4, "bulk has a short slice beside it");
    bench.pass_ms(1_100);
    bench.settle();
    bench.publish(5_000, "bulk/a", 100);
    bench.turn();
    let later = bench.turn();
    assert_eq!(later.len(), SENDS_PER_TURN, "and a whole one when no realtime comes");
}

#[test]
fn normal_and_bulk_share_by_eight_to_one() {
    let mut bench = crowd(mixed());
    publish_to(&mut bench, &["bulk/a", "normal/a"]);
    let (mut normal, mut bulk) = (0, 0);
    for _ in 0..4 {
        let started = bench.turn();
        normal += count(&started, 1_000..1_300);
        bulk += count(&started, 100..400);
    }
    assert_eq!(bulk, 4 * (SENDS_PER_TURN / 9));
    assert_eq!(normal + bulk, 4 * SENDS_PER_TURN - 2, "and two answers");
    bench.settle();
    assert_eq!(bench.figures().deliveries, 600, "what one does not use the other may");
}

#[test]
fn bulk_makes_progress_under_a_realtime_flood() {
    let mut bench = Bench::new(mixed());
    for slot in 0..200 {
        bench.connect(slot, &["realtime/a"]);
    }
    for slot in 1_000..1_050 {
        bench.connect(slot, &["bulk/a"]);
    }
    bench.connect(5_000, &[]);
    bench.connect(5_001, &[]);
    bench.settle();
    bench.publish(5_001, "bulk/a", 100);
    let mut served = 0;
    for _ in 0..60 {
        // Every turn leaves more realtime output than a slice can take.
        bench.publish(5_000, "realtime/a", 100);
        let started = bench.turn();
        assert!(started.len() <= SENDS_PER_TURN);
        served += count(&started, 1_000..1_050);
    }
    assert_eq!(served, 50);
}

#[test]
fn a_realtime_flood_does_not_starve_the_bulk_groups_of_the_same_connection() {
    let mut bench = Bench::new(mixed());
    for slot in 0..200 {
        bench.connect(slot, &["realtime/a", "bulk/a"]);
    }
    bench.connect(5_000, &[]);
    bench.settle();
    bench.publish(5_000, "bulk/a", 100);
    bench.turn();
    let before = bench.figures();
    for _ in 0..100 {
        bench.publish(5_000, "realtime/a", 10);
        bench.turn();
    }
    bench.settle();
    let delivered = bench.figures().deliveries - before.deliveries;
    assert_eq!(delivered, 200 + 100 * 200);
}

#[test]
fn within_one_write_realtime_goes_first() {
    let mut bench = Bench::new(mixed());
    bench.connect(1, &["bulk/a", "normal/a", "realtime/a"]);
    bench.connect(5_000, &[]);
    bench.settle();
    bench.world.stuck.insert(1);
    bench.publish(5_000, "normal/x", 10);
    for group in ["bulk/a", "normal/a", "bulk/a"] {
        bench.publish(5_000, group, 10);
    }
    bench.settle();
    // One write with what came first is stuck; now all three have something.
    for (group, bytes) in [("bulk/a", 1_001), ("normal/a", 1_002), ("realtime/a", 1_003)] {
        bench.publish(5_000, group, bytes);
    }
    bench.settle();
    bench.finish_write(1);
    let started = bench.turn();
    assert_eq!(started, [1]);
    let bytes = bench.world.started[0].1.clone();
    let runs: Vec<_> = bytes
        .chunk_by(|a, b| (*a == b'x') == (*b == b'x'))
        .filter(|run| run[0] == b'x')
        .map(<[u8]>::len)
        .filter(|len| *len > 1_000)
        .collect();
    assert_eq!(runs, [1_003, 1_002, 1_001]);
}

#[test]
fn bulk_publishers_fill_their_share_of_the_inbox_and_no_other() {
    let config = ShardConfig { inbox_bytes_max: 64 * 1024, ..mixed() };
    let mut bench = Bench::new(config);
    for slot in 1..=3 {
        bench.connect(slot, &[]);
    }
    bench.settle();
    bench.world.disk_works = false;
    // Until the commit's share of bulk and then the inbox's share of bulk are full.
    let mut sent = 0;
    while !bench.world.paused.contains(&1) {
        bench.publish(1, "bulk/a", 4_000);
        bench.turn();
        sent += 4_000;
        assert!(sent < 2 * COMMIT_BULK_MAX + 64 * 1024, "bulk is stopped by its own share");
    }
    // Slot 2 publishes realtime and goes on; slot 3 publishes both and is stopped too.
    for slot in [2, 3] {
        for _ in 0..3 {
            bench.publish(slot, "realtime/a", 1_000);
            bench.turn();
        }
    }
    bench.publish(3, "bulk/a", 10);
    bench.turn();
    assert!(!bench.world.paused.contains(&2));
    assert!(bench.world.paused.contains(&3));
    bench.world.disk_works = true;
    bench.settle();
    bench.settle();
    assert!(bench.world.paused.is_empty(), "{:?}", bench.world.paused);
    assert_eq!(bench.figures().inbox_bytes, 0);
}

#[test]
fn a_realtime_message_does_not_wait_for_a_full_commit_of_bulk() {
    let mut bench = Bench::new(mixed());
    bench.connect(1, &[]);
    bench.connect(2, &[]);
    bench.settle();
    bench.world.disk_works = false;
    bench.publish(1, "normal/first", 10);
    bench.turn();
    // While that is on its way to the disk, more bulk than a share comes, and one of realtime.
    for _ in 0..100 {
        bench.publish(1, "bulk/a", 10_000);
    }
    bench.publish(2, "realtime/a", 10);
    bench.turn();
    bench.world.commits.clear();
    bench.world.disk_works = true;
    bench.turn();
    let next = &bench.world.commits[0];
    assert!(next.windows(10).any(|name| name == b"realtime/a"), "it is in the next commit");
    assert!(next.len() < COMMIT_BULK_MAX + 64 * 1024, "{} bytes", next.len());
    assert!(next.len() > COMMIT_BULK_MAX);
    bench.settle();
    assert_eq!(bench.figures().messages, 102, "and bulk comes after it");
}

/// Turns of a shard that has bulk to write all the time, each with a log write in flight; how
/// often it gave way in them.
fn busy_turns(bench: &mut Bench) -> u32 {
    bench.world.gave_way = 0;
    for _ in 0..4 {
        assert!(!bench.turn().is_empty(), "the shard is busy with bulk");
    }
    bench.world.gave_way
}

#[test]
fn a_busy_shard_gives_way_to_the_log_write_that_a_realtime_message_waits_for() {
    let mut bench = crowd(mixed());
    for slot in 10_000..11_000 {
        bench.connect(slot, &["bulk/a"]);
    }
    bench.settle();
    publish_to(&mut bench, &["bulk/a"]);
    bench.turn();
    bench.world.disk_works = false;
    bench.publish(5_000, "bulk/b", 100);
    bench.turn();
    assert_eq!(busy_turns(&mut bench), 0, "a write with bulk alone is not urgent");
    bench.publish(5_001, "realtime/b", 100);
    bench.turn();
    assert_eq!(busy_turns(&mut bench), 4, "but it is when a realtime message waits behind it");
    bench.world.disk_works = true;
    bench.settle();

    publish_to(&mut bench, &["bulk/a"]);
    bench.turn();
    bench.world.disk_works = false;
    bench.publish(5_001, "realtime/b", 100);
    bench.turn();
    assert_eq!(busy_turns(&mut bench), 4, "and when one is in it");
    bench.world.disk_works = true;
    bench.turn();
    assert_eq!(busy_turns(&mut bench), 0, "and not after it");
}

#[test]
fn without_classes_nothing_is_held_back_for_others() {
    let mut bench = Bench::new(ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() });
    bench.connect(1, &[]);
    bench.settle();
    bench.world.disk_works = false;
    bench.publish(1, "bulk/first", 10);
    bench.turn();
    for _ in 0..99 {
        bench.publish(1, "bulk/a", 10_000);
    }
    bench.turn();
    bench.world.commits.clear();
    bench.world.disk_works = true;
    bench.turn();
    assert!(bench.world.commits[0].len() > 990_000, "one commit takes all of it");
}
