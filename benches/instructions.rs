//! What `instructions.sh` counts under callgrind: the same work a given number of times, so that
//! two runs that differ only in that number tell what one time costs. It
//! drives a shard over a world that takes everything at once.

#[path = "../tests/common/shard_rig.rs"]
#[allow(dead_code, clippy::panic, reason = "tests use the rest of it")]
mod shard_rig;

use clap::Parser;
use fanfare::config::ShardConfig;
use fanfare::position::Level;
use fanfare::wire::{JoinEntry, Start};
use shard_rig::Rig;

type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Args {
    /// Members of the group.
    #[arg(long, default_value_t = 1_000)]
    members: u32,
    /// Messages of each broadcast.
    #[arg(long, default_value_t = 1)]
    messages: u64,
    /// Broadcasts.
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Two shards: this share of the members is not on the group's own one, in percent.
    #[arg(long)]
    foreign: Option<u32>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let config = ShardConfig { tail_bytes_max: 4 << 20, ..ShardConfig::default() };
    let mut rig = Rig::with(if args.foreign.is_some() { 2 } else { 1 }, config);
    let owner = rig.owner(b"room");
    let foreign = args.foreign.unwrap_or_default();
    for member in 0..args.members {
        let shard = if member % 100 < foreign { 1 - owner } else { owner };
        rig.member(shard, JoinEntry::live(b"room", Start::Tail));
    }
    // The publisher is where most members are.
    let mut publisher = rig.publisher(if foreign > 50 { 1 - owner } else { owner }, b"room");
    rig.settle();
    for _ in 0..args.rounds {
        rig.publish(&mut publisher, args.messages, Level::Durable, &[7; 128]);
        rig.settle();
    }
    let figures = rig.figures();
    let expected = args.rounds * args.messages * u64::from(args.members);
    if figures.deliveries != expected {
        return Err(format!("{} deliveries instead of {expected}", figures.deliveries).into());
    }
    Ok(())
}
