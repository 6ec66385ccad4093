//! Who answers no PROBE makes the server keep a bounded number of receipts, and the operator sees how
//! many were let go of without proof.

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::position::Level;
use fanfare::wire::Publish;
use one_shard::Bench;

/// As PROTOCOL.md says.
const UNPROVED_MAX: u64 = 4_096;

#[test]
fn receipts_beyond_what_waits_for_proof_are_counted() {
    let (heartbeat_ms, receipts_max) = (0, 100_000);
    let config = ShardConfig { heartbeat_ms, receipts_max, ..ShardConfig::default() };
    let mut bench = Bench::new(config);
    bench.connect(1, &[]);
    bench.settle();
    let ask = |bench: &mut Bench, numbers: std::ops::RangeInclusive<u64>| {
        for producer_seq in numbers {
            let (level, group, payload) = (Some(Level::Durable), &b"group"[..], &b"x"[..]);
            let mut out = Vec::new();
            Publish { request: 1, level, receipt: 100, producer_seq, group, payload }
                .encode(&mut out);
            bench.say(1, out);
            if producer_seq.is_multiple_of(100) {
                bench.settle();
            }
        }
        bench.settle();
    };
    ask(&mut bench, 1..=UNPROVED_MAX);
    assert_eq!((bench.figures().receipts, bench.figures().receipts_unproved), (UNPROVED_MAX, 0));
    ask(&mut bench, UNPROVED_MAX + 1..=UNPROVED_MAX + 7);
    assert_eq!(bench.figures().receipts_unproved, 7);
}
