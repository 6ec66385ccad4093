//! Nobody learns of a change of state, or of a message, before the log has it: every answer
//! that shows it waits for its commit, and if the commit fails no answer shows it.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::position::{Level, Seq};
use fanfare::wire::{
    ErrorCode, Expected, Fetch, Publish, ServerFrame, SetState, StateForm, SyncState,
};
use one_shard::{Bench, frames};

const GROUP: &[u8] = b"g";

fn bench() -> Bench {
    let mut bench = Bench::new(ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() });
    for slot in 0..3 {
        bench.connect(slot, &[]);
    }
    bench.settle();
    bench
}

fn set(bench: &mut Bench, slot: u32, request: u32, expected: Expected, data: &[u8]) {
    let mut out = Vec::new();
    SetState { request, expected, group: GROUP, key: b"k", data: Some(data) }.encode(&mut out);
    bench.say(slot, out);
}

fn sync(bench: &mut Bench, slot: u32, request: u32) {
    let mut out = Vec::new();
    SyncState { request, known: 0, group: GROUP }.encode(&mut out);
    bench.say(slot, out);
}

/// What a connection was sent: one line a frame.
fn told(bytes: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    for frame in frames(bytes) {
        all.push(match frame {
            ServerFrame::StateSet(set) => format!("{} set {}", set.request, set.version),
            ServerFrame::Conflict(c) => format!("{} conflict {}", c.request, c.version),
            ServerFrame::State(state) => {
                assert_ne!(state.head.form, StateForm::UpToDate);
                let values: Vec<_> = state.entries().map(|e| e.data.unwrap()[0] as char).collect();
                format!("{} state {} {values:?}", state.head.request, state.head.version)
            }
            ServerFrame::Error(e) => {
                format!("{} {:?}", e.request, ErrorCode::from_number(e.code).unwrap())
            }
            ServerFrame::Fetched(page) => format!("{} head {}", page.request, page.head),
            ServerFrame::Deliver(d) => format!("message {}", d.seq),
            ServerFrame::Published(p) => format!("{} published {}", p.request, p.seq),
            _ => continue,
        });
    }
    all
}

#[test]
fn every_answer_that_shows_a_change_waits_for_its_commit() {
    let mut bench = bench();
    bench.world.disk_works = false;
    set(&mut bench, 0, 1, Expected::Absent, b"a");
    assert!(bench.settle_reading(0).is_empty(), "not on disk yet");
    sync(&mut bench, 1, 2);
    set(&mut bench, 1, 3, Expected::Absent, b"b");
    set(&mut bench, 1, 4, Expected::Version(1), b"c");
    assert!(bench.settle_reading(1).is_empty(), "all of them show the first change");
    bench.world.disk_works = true;
    let mut all = Vec::new();
    for _ in 0..10 {
        bench.turn();
        let started: Vec<_> = bench.world.started.iter().map(|(_, bytes)| bytes.clone()).collect();
        all.extend(started.iter().flat_map(|bytes| told(bytes)));
    }
    all.sort();
    assert_eq!(all, ["1 set 1", "2 state 1 ['a']", "3 conflict 1", "4 set 2"]);
}

#[test]
fn a_change_whose_commit_failed_is_shown_to_nobody() {
    let mut bench = bench();
    set(&mut bench, 0, 1, Expected::Absent, b"a");
    assert_eq!(told(&bench.settle_reading(0)), ["1 set 1"]);
    bench.world.disk_works = false;
    set(&mut bench, 0, 2, Expected::Version(1), b"b");
    bench.turn();
    sync(&mut bench, 1, 3);
    set(&mut bench, 2, 4, Expected::Version(2), b"c");
    bench.turn();
    bench.world.disk_works = true;
    bench.world.disk_fails = Some(5);
    let mut all = Vec::new();
    for _ in 0..6 {
        bench.turn();
        all.extend(bench.world.started.iter().flat_map(|(_, bytes)| told(bytes)));
    }
    all.sort();
    // The third was staged and not handed to the disk, but a snapshot might have it.
    assert_eq!(all, ["2 Indeterminate", "3 StorageFailed", "4 Indeterminate"]);
    sync(&mut bench, 1, 5);
    set(&mut bench, 1, 6, Expected::Any, b"d");
    assert_eq!(told(&bench.settle_reading(1)), ["5 StorageFailed", "6 StorageFailed"]);
}

#[test]
fn fetch_shows_no_message_that_is_not_on_disk() {
    let mut bench = bench();
    let publish = |bench: &mut Bench, producer_seq| {
        let (request, level, receipt) = (producer_seq as u32, Some(Level::Memory), 0);
        let mut out = Vec::new();
        Publish { request, level, receipt, producer_seq, group: GROUP, payload: b"x" }
            .encode(&mut out);
        bench.say(0, out);
    };
    let fetch = |bench: &mut Bench, request| {
        let (to, count_max, bytes_max) = (None, 0, 0);
        let mut out = Vec::new();
        Fetch { request, from: Seq(1), to, count_max, bytes_max, group: GROUP }.encode(&mut out);
        bench.say(1, out);
    };
    publish(&mut bench, 1);
    assert_eq!(told(&bench.settle_reading(0)), ["1 published 1"]);
    bench.world.disk_works = false;
    publish(&mut bench, 2);
    assert_eq!(told(&bench.settle_reading(0)), ["2 published 2"], "level memory does not wait");
    fetch(&mut bench, 9);
    assert_eq!(told(&bench.settle_reading(1)), ["9 head 1"]);
    bench.world.disk_works = true;
    bench.settle();
    fetch(&mut bench, 10);
    assert_eq!(told(&bench.settle_reading(1)), ["10 head 2"]);
}
