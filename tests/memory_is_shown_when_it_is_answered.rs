//! A message of level `memory` that is answered before it is on disk is shown then too, whatever
//! comes behind it.
mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::position::{Level, Seq};
use fanfare::wire::ServerFrame;
use one_shard::{Bench, frames};

/// The messages and the places of PUBLISHED in what a connection was sent.
fn told(bytes: &[u8]) -> (Vec<Seq>, Vec<Seq>) {
    let (mut delivered, mut published) = (Vec::new(), Vec::new());
    for frame in frames(bytes) {
        match frame {
            ServerFrame::Deliver(d) => delivered.push(d.seq),
            ServerFrame::Published(p) => published.push(p.seq),
            _ => {}
        }
    }
    (delivered, published)
}

#[test]
fn a_durable_message_behind_it_in_the_same_turn_does_not_hold_it_back() {
    let mut bench = Bench::new(ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() });
    bench.connect(1, &["a"]);
    // The first one of a segment waits for the disk.
    bench.publish_at(1, "a", 10, Level::Memory);
    bench.settle();
    bench.world.disk_works = false;
    bench.publish_at(1, "a", 10, Level::Memory);
    bench.publish_at(1, "a", 10, Level::Durable);
    bench.publish_at(1, "a", 10, Level::Memory);
    let (delivered, published) = told(&bench.settle_reading(1));
    assert_eq!((delivered, published), (vec![Seq(2)], vec![Seq(2)]));
    bench.world.disk_works = true;
    let (delivered, published) = told(&bench.settle_reading(1));
    assert_eq!((delivered, published), (vec![Seq(3), Seq(4)], vec![Seq(3), Seq(4)]));
}
