//! What waits for a connection in several groups goes out in one write.

mod one_shard;

use fanfare::config::ShardConfig;
use one_shard::Bench;

const MEMBERS: u32 = 200;

#[test]
fn a_member_of_several_groups_gets_what_waits_in_them_by_one_write() {
    let mut bench = Bench::new(ShardConfig::default());
    for slot in 0..MEMBERS {
        bench.connect(slot, &["a", "b", "c"]);
    }
    for slot in MEMBERS..MEMBERS + 10 {
        bench.connect(slot, &["b"]);
    }
    let publishers = 5_000..5_003;
    publishers.clone().for_each(|slot| bench.connect(slot, &[]));
    bench.settle();
    let before = bench.figures().deliveries;
    for (slot, group) in publishers.zip(["a", "b", "c"]) {
        bench.publish(slot, group, 100);
    }
    let mut writes = vec![0; MEMBERS as usize + 10];
    for _ in 0..20 {
        for slot in bench.turn() {
            if let Some(count) = writes.get_mut(slot as usize) {
                *count += 1;
            }
        }
    }
    assert_eq!(writes, vec![1; MEMBERS as usize + 10]);
    let deliveries = bench.figures().deliveries - before;
    assert_eq!(deliveries, u64::from(3 * MEMBERS + 10));
}
