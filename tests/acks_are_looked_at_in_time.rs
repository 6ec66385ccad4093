//! Each durable membership has the time of its class to acknowledge, whatever the others on its
//! connection have.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use std::sync::Arc;

use fanfare::config::{Class, Classes, Pattern, ShardConfig};
use fanfare::wire::{JoinEntry, ServerFrame};
use one_shard::{Bench, frames};

const MEMBER: u32 = 1;
const PUBLISHER: u32 = 9;

#[test]
fn a_short_time_is_not_put_off_by_a_long_one_that_began_before() {
    let class = |name: &str, ack_timeout_ms| Class {
        groups: vec![Pattern::parse(&format!("{name}/*")).unwrap()],
        ack_timeout_ms: Some(ack_timeout_ms),
        ..Class::named(name)
    };
    let classes = Classes::new(vec![class("long", 60_000), class("short", 500)]);
    let config =
        ShardConfig { classes: Arc::new(classes), heartbeat_ms: 0, ..ShardConfig::default() };
    let mut bench = Bench::new(config);
    bench.connect(PUBLISHER, &[]);
    let entries = [JoinEntry::durable(b"long/a"), JoinEntry::durable(b"short/a")];
    bench.connect_as(MEMBER, "member", &entries);
    bench.settle();
    for group in ["long/a", "short/a"] {
        bench.publish(PUBLISHER, group, 10);
        bench.settle();
    }
    let mut asked_after = None;
    for passed in 1..=40 {
        bench.pass_ms(50);
        let bytes = bench.settle_reading(MEMBER);
        if frames(&bytes).any(|frame| matches!(frame, ServerFrame::Probe { .. })) {
            asked_after = Some(50 * passed);
            break;
        }
    }
    assert!(asked_after.is_some_and(|ms| (500..=700).contains(&ms)), "{asked_after:?}");
}
