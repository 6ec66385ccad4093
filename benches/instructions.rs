//! What `instructions.sh` counts under callgrind: the same work a given number of times, so that
//! two runs that differ only in that number tell what one time costs.
//!
//! `shard` drives a shard over a world that takes everything at once. `driver` has the driver
//! write to sockets; they are read by another process, which is not counted.

#[path = "../tests/common/shard_rig.rs"]
#[allow(dead_code, clippy::panic, reason = "tests use the rest of it")]
mod shard_rig;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use fanfare::config::ShardConfig;
use fanfare::fanout::{Part, PinGauge, Segment};
use fanfare::position::{Level, Seq, ShardId};
use fanfare::ring::{ColdExecutor, Driver, DriverConfig};
use fanfare::shard::{ConnId, Event, Io};
use fanfare::wire::{JoinEntry, Start};
use shard_rig::Rig;

type Failure = Box<dyn std::error::Error>;

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Shard,
    Driver,
    /// The process that reads.
    Readers,
}

#[derive(Parser)]
struct Args {
    /// What is counted.
    what: Option<What>,
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
    #[arg(long, hide = true)]
    address: Option<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    match args.what {
        None => {
            println!("run benches/instructions.sh, which needs valgrind");
            Ok(())
        }
        Some(What::Shard) => shard(&args),
        Some(What::Driver) => driver(&args),
        Some(What::Readers) => readers(&args),
    }
}

fn shard(args: &Args) -> Result<(), Failure> {
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

fn driver(args: &Args) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let cold = ColdExecutor::start()?;
    let mut driver = Driver::new(DriverConfig {
        shard: ShardId(0),
        listener,
        connections_max: args.members,
        recv_buffers: 16,
        recv_buffer_bytes: 4096,
        log_dir: dir.path().to_owned(),
        cold: cold.handle(),
        steps: Arc::new(|_, _| Vec::new()),
    })?;
    let mut readers = start_readers(args, &address)?;
    let (mut conns, mut events): (Vec<ConnId>, _) = (Vec::new(), Vec::new());
    while conns.len() < args.members as usize {
        wait(&mut driver, &mut events);
        conns.extend(events.drain(..).filter_map(|event| match event {
            Event::Accepted { conn } => Some(conn),
            _ => None,
        }));
    }
    let bytes = Bytes::from(vec![7; 193 * args.messages as usize]);
    let segment = Segment::new(bytes, Seq(1), Seq(args.messages), &PinGauge::default());
    let mut parts = Vec::new();
    for _ in 0..args.rounds {
        let (mut left, mut next) = (conns.len(), conns.iter());
        while left > 0 {
            // A slice, as the shard makes them.
            for conn in next.by_ref().take(64) {
                parts.push(Part::Frames(segment.clone()));
                driver.send(*conn, &mut parts);
            }
            wait(&mut driver, &mut events);
            left -= events.drain(..).filter(|event| matches!(event, Event::Sent { .. })).count();
        }
    }
    drop(driver);
    readers.wait()?;
    Ok(())
}

fn wait(driver: &mut Driver, events: &mut Vec<Event>) {
    let until = driver.now().plus_ms(1_000);
    driver.wait(Some(until), events);
}

fn start_readers(args: &Args, address: &str) -> Result<Child, Failure> {
    let members = args.members.to_string();
    let mut command = Command::new(std::env::current_exe()?);
    Ok(command.args(["readers", "--address", address, "--members", &members]).spawn()?)
}

/// Reads from all connections until they end.
fn readers(args: &Args) -> Result<(), Failure> {
    let address = args.address.as_deref().ok_or("--address is missing")?;
    let connect = |_| TcpStream::connect(address);
    let mut sockets = (0..args.members).map(connect).collect::<Result<Vec<_>, _>>()?;
    let mut buf = vec![0; 1 << 20];
    while !sockets.is_empty() {
        // The one after the other: each has room for what is sent meanwhile.
        sockets.retain_mut(|socket| socket.read(&mut buf).is_ok_and(|count| count > 0));
    }
    Ok(())
}
