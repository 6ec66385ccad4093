//! A disk that fails for a moment costs a reader time, not messages; one that goes on failing costs
//! what lies there, and nobody else waits.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::limits::HISTORY_READ_TRIES;
use fanfare::position::Seq;
use fanfare::wire::{Fetch, GapReason, ServerFrame, Start};
use one_shard::{Bench, frames};

const PUBLISHER: u32 = 9;
const READER: u32 = 1;
const TRIES: usize = HISTORY_READ_TRIES as usize;

/// `group` has messages 1 to 40, of which no tail keeps all; those from 21 on are in the log 4 MiB
/// after the others.
fn bench() -> Bench {
    let config = ShardConfig { heartbeat_ms: 0, tail_bytes_max: 1024, ..ShardConfig::default() };
    let mut bench = Bench::new(config);
    bench.connect(PUBLISHER, &[]);
    bench.settle();
    for half in 0..2 {
        for _ in 0..20 {
            bench.publish(PUBLISHER, "group", 100);
            bench.settle();
        }
        for _ in 0..64 * (1 - half) {
            bench.publish(PUBLISHER, "other", 60_000);
            bench.settle();
        }
    }
    bench.pass_ms(1_000);
    bench.settle();
    bench
}

/// What a member was told: its messages and its gap.
fn got(bytes: &[u8]) -> (Vec<u64>, Option<(Seq, Seq, GapReason)>) {
    let (mut seqs, mut gap) = (Vec::new(), None);
    for frame in frames(bytes) {
        match frame {
            ServerFrame::Deliver(d) => seqs.push(d.seq.0),
            ServerFrame::Gap(g) => gap = Some((g.from, g.to, g.reason)),
            _ => {}
        }
    }
    (seqs, gap)
}

/// All that the reader is told while its reads are tried again.
fn read_for(bench: &mut Bench, seconds: usize) -> Vec<u8> {
    let mut bytes = bench.settle_reading(READER);
    for _ in 0..seconds {
        bench.pass_ms(1_000);
        bytes.extend(bench.settle_reading(READER));
    }
    bytes
}

#[test]
fn one_error_costs_no_message() {
    let mut bench = bench();
    bench.world.reads_fail = TRIES - 1;
    bench.connect_from(READER, &["group"], Start::Seq(Seq(1)));
    assert_eq!(got(&bench.settle_reading(READER)), (vec![], None), "it waits");
    let bytes = read_for(&mut bench, TRIES - 1);
    assert_eq!(got(&bytes), ((1..=40).collect(), None));
    assert_eq!(bench.figures().catch_up_read_errors, TRIES as u64 - 1);
}

#[test]
fn the_shard_wakes_up_for_the_next_try() {
    let mut bench = bench();
    bench.world.reads_fail = 1;
    bench.connect_from(READER, &["group"], Start::Seq(Seq(1)));
    bench.settle();
    let until = bench.world.until.unwrap();
    assert!(until <= bench.world.now.plus_ms(1_000), "{until:?}");
}

#[test]
fn a_place_that_goes_on_failing_is_given_up_and_the_rest_comes() {
    let mut bench = bench();
    bench.world.reads_fail = TRIES;
    bench.connect_from(READER, &["group"], Start::Seq(Seq(1)));
    let (seqs, gap) = got(&read_for(&mut bench, TRIES));
    let (from, to, reason) = gap.unwrap();
    assert_eq!((from, reason), (Seq(1), GapReason::Damaged));
    assert!((1..=20).contains(&to.0), "what lies far behind it is not lost with it: {to}");
    assert_eq!(seqs, (to.0 + 1..=40).collect::<Vec<_>>());
}

#[test]
fn a_page_of_history_is_tried_again_too() {
    let mut bench = bench();
    bench.connect(READER, &[]);
    bench.settle();
    bench.world.reads_fail = TRIES - 1;
    let mut out = Vec::new();
    Fetch { request: 7, from: Seq(1), to: None, count_max: 0, bytes_max: 0, group: b"group" }
        .encode(&mut out);
    bench.say(READER, out);
    let bytes = read_for(&mut bench, TRIES - 1);
    let page = frames(&bytes).find_map(|frame| match frame {
        ServerFrame::Fetched(page) => Some((page.first, page.gap)),
        _ => None,
    });
    assert_eq!(page, Some((Seq(1), None)));
}

#[test]
fn others_do_not_wait_for_a_read_that_failed() {
    let mut bench = bench();
    bench.world.reads_fail = 1;
    bench.connect_from(READER, &["group"], Start::Seq(Seq(1)));
    bench.settle();
    bench.connect_from(2, &["other"], Start::Seq(Seq(1)));
    let (seqs, gap) = got(&bench.settle_reading(2));
    assert_eq!((seqs.len(), gap), (64, None));
}
