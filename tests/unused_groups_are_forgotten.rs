//! A group that nobody is in and that never had a message goes at once, whatever else waits: made-up
//! names do not fill the table of groups.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::position::Level;
use fanfare::wire::{Join, JoinEntry, Leave, Publish, ServerFrame, Start};
use one_shard::{Bench, frames};

const CLIENT: u32 = 1;

fn bench(groups_max: u32) -> Bench {
    let config = ShardConfig { heartbeat_ms: 0, groups_max, ..ShardConfig::default() };
    let mut bench = Bench::new(config);
    bench.connect(CLIENT, &[]);
    bench.settle();
    bench
}

fn join(out: &mut Vec<u8>, group: &[u8]) {
    Join::encode(out, 1, &[JoinEntry::live(group, Start::Tail)]);
}

fn publish(out: &mut Vec<u8>, group: &[u8], producer_seq: u64) {
    let (level, payload) = (Some(Level::Durable), &b"x"[..]);
    Publish { request: 2, level, receipt: 0, producer_seq, group, payload }.encode(out);
}

#[test]
fn a_publish_to_another_group_in_front_of_the_leave_keeps_nothing() {
    let mut bench = bench(2);
    for n in 1..=10u64 {
        let name = format!("made-up-{n}");
        let mut out = Vec::new();
        join(&mut out, name.as_bytes());
        bench.say(CLIENT, out);
        bench.settle();
        let mut burst = Vec::new();
        publish(&mut burst, b"lobby", n);
        Leave::encode(&mut burst, 3, &[name.as_bytes()]);
        bench.say(CLIENT, burst);
        let bytes = bench.settle_reading(CLIENT);
        let refused = frames(&bytes).find(|frame| matches!(frame, ServerFrame::Error(_)));
        assert!(refused.is_none(), "{n}: {refused:?}");
        assert_eq!(bench.figures().groups, 1, "{n}: the lobby alone");
    }
}

#[test]
fn a_group_with_a_publish_that_waits_stays() {
    let mut bench = bench(8);
    let mut burst = Vec::new();
    join(&mut burst, b"group");
    publish(&mut burst, b"group", 1);
    Leave::encode(&mut burst, 3, &[b"group"]);
    join(&mut burst, b"other");
    bench.say(CLIENT, burst);
    let bytes = bench.settle_reading(CLIENT);
    let published = frames(&bytes).any(|frame| matches!(frame, ServerFrame::Published(_)));
    assert!(published);
    assert_eq!(bench.figures().groups, 2);
}
