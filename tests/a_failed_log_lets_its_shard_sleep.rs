//! A shard whose log failed stages nothing any more and waits for events: cursors that were to go to
//! the log do not keep it busy.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod one_shard;

use fanfare::config::ShardConfig;
use fanfare::position::{Epoch, Level, Seq};
use fanfare::wire::{Ack, Acks, JoinEntry, ServerFrame};
use one_shard::{Bench, frames};

const EIO: i32 = 5;

#[test]
fn cursors_that_can_no_longer_be_written_keep_no_shard_awake() {
    let mut bench = Bench::new(ShardConfig { heartbeat_ms: 0, ..ShardConfig::default() });
    bench.connect_as(1, "ann", &[JoinEntry::durable(b"a")]);
    bench.publish_at(1, "a", 10, Level::Memory);
    let handle = frames(&bench.settle_reading(1)).find_map(|frame| match frame {
        ServerFrame::Joined(joined) => Some(joined.handle),
        _ => None,
    });
    // The second message is on its way to the disk when the third one is shown and acknowledged.
    bench.world.disk_works = false;
    bench.publish_at(1, "a", 10, Level::Memory);
    bench.settle();
    bench.publish_at(1, "a", 10, Level::Memory);
    bench.settle();
    let mut ack = Vec::new();
    Acks::encode(&mut ack, &[Ack { handle: handle.unwrap(), epoch: Epoch(1), seq: Seq(3) }]);
    bench.say(1, ack);
    bench.settle();
    // The commit of the third takes no cursor along that is beyond the disk, and fails.
    let commits = bench.world.commits.len();
    bench.world.disk_works = true;
    bench.turn();
    assert_eq!(bench.world.commits.len(), commits + 1);
    bench.world.disk_fails = Some(EIO);
    bench.settle();
    bench.pass_ms(60_000);
    bench.settle();
    let until = bench.world.until;
    assert!(until.is_none_or(|until| until > bench.world.now), "{until:?}");
}
