//! Members that catch up get what live traffic leaves, but always something; alone they are
//! served at full speed.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::limits::{
    HISTORY_BYTES_BESIDE_LIVE, HISTORY_BYTES_PER_TURN, HISTORY_WRITE_COST, SENDS_PER_TURN,
};
use fanfare::position::Seq;
use fanfare::wire::Start;
use one_shard::Bench;

const MESSAGES: u64 = 200;
const BYTES: usize = 4096;
const READERS: u32 = 20;
const PUBLISHER: u32 = 5_000;
/// Most bytes in one write.
const WRITE_MAX: usize = 64 * 1024;

/// Slots 0 to 299 are in `live`; `history` has 800 KiB, of which a tail keeps `tail` bytes.
fn crowd(tail: u64) -> Bench {
    let mut bench = Bench::new(ShardConfig {
        heartbeat_ms: 0,
        tail_bytes_max: tail,
        send_bytes_max: WRITE_MAX as u32,
        ..ShardConfig::default()
    });
    for slot in 0..300 {
        bench.connect(slot, &["live"]);
    }
    bench.connect(PUBLISHER, &[]);
    bench.settle();
    for _ in 0..MESSAGES {
        bench.publish(PUBLISHER, "history", BYTES);
        bench.settle();
    }
    bench.pass_ms(1_000);
    bench.settle();
    bench
}

fn readers(bench: &mut Bench) {
    for slot in 1_000..1_000 + READERS {
        bench.connect_from(slot, &["history"], Start::Seq(Seq(1)));
    }
}

/// Bytes that a turn wrote to readers, and writes to live members.
fn turn(bench: &mut Bench) -> (usize, usize) {
    let live = bench.turn().iter().filter(|slot| **slot < 300).count();
    let started = bench.world.started.iter();
    let history = started.filter(|(slot, _)| (1_000..2_000).contains(slot));
    (history.map(|(_, bytes)| bytes.len()).sum(), live)
}

/// Turns with live messages that always wait, until readers have what they want.
fn beside_live(bench: &mut Bench) -> Vec<(usize, usize)> {
    let before = bench.figures().deliveries;
    let mut turns = Vec::new();
    for _ in 0..2 {
        bench.publish(PUBLISHER, "live", 10);
        bench.turn();
    }
    readers(bench);
    let (mut live, mut quiet) = (0, 0);
    while quiet < 200 {
        bench.pass_ms(1);
        bench.publish(PUBLISHER, "live", 10);
        let (history, writes) = turn(bench);
        live += writes as u64;
        quiet = if history < 1_000 { quiet + 1 } else { 0 };
        turns.push((history, writes));
    }
    let all = bench.figures().deliveries - before;
    assert!(all >= live / 2 + u64::from(READERS) * MESSAGES, "{all}, {live}");
    turns
}

/// The most that a stretch of turns may have.
fn most(turns: usize) -> usize {
    turns * HISTORY_BYTES_BESIDE_LIVE + HISTORY_BYTES_PER_TURN
}

fn check_beside_live(turns: &[(usize, usize)]) {
    for (n, stretch) in turns.windows(40).enumerate() {
        let history: usize = stretch.iter().map(|(history, _)| history).sum();
        // JOINED and the rest of the first slice go to the same connections.
        let joined = READERS as usize * 200;
        assert!(history <= most(stretch.len()) + joined, "{history} bytes from turn {n} on");
    }
    let beside = HISTORY_BYTES_BESIDE_LIVE / HISTORY_WRITE_COST;
    for (n, (_, live)) in turns.iter().enumerate().skip(4) {
        // The publisher's answers go in the same slice.
        assert!(*live + beside + 4 >= SENDS_PER_TURN, "turn {n} has {live} live writes");
    }
}

#[test]
fn beside_live_members_history_from_the_log_has_a_share_of_each_turn_and_arrives() {
    let mut bench = crowd(64 * 1024);
    let turns = beside_live(&mut bench);
    assert!(bench.world.reads > 0, "it came from the log");
    check_beside_live(&turns);
}

#[test]
fn beside_live_members_those_far_behind_on_the_tail_have_the_same_share() {
    let mut bench = crowd(64 << 20);
    let turns = beside_live(&mut bench);
    assert_eq!(bench.world.reads, 0, "it came from the tail");
    // Only after a first write is it known that one is not enough.
    check_beside_live(&turns[4..]);
}

#[test]
fn alone_they_are_served_at_full_speed_in_short_turns() {
    let mut bench = crowd(64 * 1024);
    readers(&mut bench);
    let all = MESSAGES as usize * BYTES * READERS as usize;
    let (mut sent, mut turns) = (0, 0);
    while sent < all {
        let (history, _) = turn(&mut bench);
        assert!(history <= 2 * HISTORY_BYTES_PER_TURN + READERS as usize * WRITE_MAX, "{history}");
        (sent, turns) = (sent + history, turns + 1);
        assert!(turns < 3 * (all / HISTORY_BYTES_PER_TURN) + 50, "{sent} bytes in {turns} turns");
    }
}

#[test]
fn reads_wait_for_a_commit_but_not_for_ever() {
    let mut bench = crowd(64 * 1024);
    bench.world.disk_works = false;
    bench.publish(PUBLISHER, "live", 10);
    bench.turn();
    bench.turn();
    readers(&mut bench);
    let before = bench.world.reads;
    for _ in 0..4 {
        bench.turn();
    }
    let first = bench.world.reads - before;
    assert!(first <= 1, "{first} reads beside a commit");
    bench.turn();
    assert_eq!(bench.world.reads - before, first, "no other at once");
    for _ in 0..20 {
        bench.pass_ms(5);
        bench.turn();
    }
    let later = bench.world.reads - before;
    assert!((5..=21).contains(&later), "{later} reads in 100 ms");
    bench.world.disk_works = true;
    bench.settle();
    let deliveries = bench.figures().deliveries;
    assert_eq!(deliveries, u64::from(READERS) * MESSAGES + 300);
}
