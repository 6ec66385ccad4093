//! A class of groups keeps less history than the shard: by bytes, by age; what is gone is
//! announced, other groups keep theirs, and segments that nobody needs go early.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

mod one_shard;

use std::sync::Arc;

use fanfare::config::{Class, Classes, Pattern, ShardConfig};
use fanfare::limits::SEGMENT_BYTES_MIN;
use fanfare::position::{SegmentNumber, Seq};
use fanfare::wire::{GapReason, ServerFrame, Start, split};
use one_shard::Bench;

const RETENTION_MS: u64 = 10_001;

fn config(class: Class) -> ShardConfig {
    ShardConfig {
        classes: Arc::new(Classes::new(vec![class])),
        segment_bytes: SEGMENT_BYTES_MIN,
        heartbeat_ms: 0,
        ..ShardConfig::default()
    }
}

fn class(pattern: &str) -> Class {
    Class { groups: vec![Pattern::parse(pattern).unwrap()], ..Class::named("some") }
}

/// Publishes `count` messages of 20 kB, each in a commit of its own.
fn fill(bench: &mut Bench, group: &str, count: usize) {
    for _ in 0..count {
        bench.publish(1, group, 20_000);
        bench.turn();
        bench.turn();
    }
    bench.settle();
}

/// What a member that starts at the first message gets: gaps, and the messages.
fn history(bench: &mut Bench, slot: u32, group: &str) -> (Vec<(u64, u64)>, Vec<u64>) {
    bench.connect_from(slot, &[group], Start::Seq(Seq(1)));
    let bytes = bench.settle_reading(slot);
    let (mut gaps, mut seqs, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some((frame, len)) = split(&bytes[at..], 1 << 20).unwrap() {
        match ServerFrame::decode(frame).unwrap() {
            ServerFrame::Gap(gap) => {
                assert_eq!(gap.reason, GapReason::Retention);
                gaps.push((gap.from.0, gap.to.0));
            }
            ServerFrame::Deliver(deliver) => seqs.push(deliver.seq.0),
            ServerFrame::Error(error) => panic!("{:?}", String::from_utf8_lossy(error.text)),
            _ => {}
        }
        at += len;
    }
    (gaps, seqs)
}

/// The tails must not hold what history is asked for.
fn small_tails(config: ShardConfig) -> ShardConfig {
    ShardConfig { tail_bytes_max: 64 * 1024, ..config }
}

#[test]
fn a_group_keeps_the_bytes_of_its_class_and_others_keep_all() {
    let some = Class { retention_bytes: Some(500_000), ..class("feed/*") };
    let mut bench = Bench::new(small_tails(config(some)));
    bench.connect(1, &[]);
    fill(&mut bench, "feed/a", 100);
    fill(&mut bench, "chat", 100);
    bench.pass_ms(RETENTION_MS);
    bench.settle();
    let (gaps, seqs) = history(&mut bench, 2, "feed/a");
    assert_eq!(gaps.len(), 1);
    let (from, to) = gaps[0];
    assert_eq!(from, 1);
    assert_eq!(seqs, (to + 1..=100).collect::<Vec<_>>());
    let kept = seqs.len() * 20_000;
    assert!((400_000..=500_000).contains(&kept), "{kept} bytes are kept");
    assert_eq!(history(&mut bench, 3, "chat"), (vec![], (1..=100).collect()));
}

#[test]
fn a_group_keeps_messages_for_the_time_of_its_class() {
    let some = Class { retention_age_ms: Some(60_000), ..class("feed/*") };
    let mut bench = Bench::new(small_tails(config(some)));
    bench.connect(1, &[]);
    fill(&mut bench, "feed/a", 20);
    bench.pass_ms(50_000);
    fill(&mut bench, "feed/a", 20);
    bench.pass_ms(20_000);
    bench.settle();
    let (gaps, seqs) = history(&mut bench, 2, "feed/a");
    let (_, to) = gaps[0];
    // An index entry covers up to four of these messages and goes with the newest of them.
    assert!((16..=20).contains(&to), "up to {to} is gone");
    assert_eq!(seqs, (to + 1..=40).collect::<Vec<_>>());
    bench.pass_ms(60_000);
    bench.settle();
    let (gaps, seqs) = history(&mut bench, 3, "feed/a");
    assert_eq!((gaps, seqs), (vec![(1, 40)], vec![]));
    fill(&mut bench, "feed/a", 1);
    assert_eq!(history(&mut bench, 4, "feed/a").1, [41]);
}

#[test]
fn segments_that_no_group_needs_are_removed_before_the_shard_must() {
    let some = Class { retention_bytes: Some(100_000), ..class("feed/*") };
    let mut bench = Bench::new(config(some));
    bench.connect(1, &[]);
    // More than two segments; "chat" holds on to the first.
    fill(&mut bench, "chat", 1);
    fill(&mut bench, "feed/a", 900);
    bench.pass_ms(RETENTION_MS);
    bench.settle();
    assert_eq!(bench.world.removed, []);
    // The same without anyone who needs it.
    let some = Class { retention_bytes: Some(100_000), ..class("*") };
    let mut bench = Bench::new(small_tails(config(some)));
    bench.connect(1, &[]);
    fill(&mut bench, "chat", 1);
    fill(&mut bench, "feed/a", 1_400);
    assert_eq!(bench.world.removed, [], "one message is within its class");
    bench.pass_ms(RETENTION_MS);
    bench.settle();
    fill(&mut bench, "chat", 20);
    bench.pass_ms(RETENTION_MS);
    bench.settle();
    // Sealed segments go once snapshots stand for what else is in them.
    let removed: Vec<u64> = bench.world.removed.iter().map(|number| number.0).collect();
    assert!(removed.len() >= 2 && removed.iter().eq(&[1, 2, 3][..removed.len()]), "{removed:?}");
    let (gaps, seqs) = history(&mut bench, 2, "feed/a");
    assert_eq!((gaps.len(), seqs.last()), (1, Some(&1_400)));
}

#[test]
fn the_retention_of_the_shard_stays_the_bound_for_every_class() {
    let some = Class { retention_bytes: Some(1 << 40), ..class("feed/*") };
    let bound = ShardConfig { retention_bytes: SEGMENT_BYTES_MIN, ..config(some) };
    let mut bench = Bench::new(small_tails(bound));
    bench.connect(1, &[]);
    fill(&mut bench, "feed/a", 900);
    bench.pass_ms(RETENTION_MS);
    bench.settle();
    assert!(bench.world.removed.contains(&SegmentNumber(1)));
    let (gaps, seqs) = history(&mut bench, 2, "feed/a");
    assert_eq!(seqs, (gaps[0].1 + 1..=900).collect::<Vec<_>>());
}
