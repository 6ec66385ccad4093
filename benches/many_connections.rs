//! 100,000 joined members on one machine: one broadcast to all of them at a time, each verified by
//! every member, by the engine and by floors with as many sockets, in interleaved pairs. A table
//! of direct descriptors is bounded by the limit of open files, so six shards and six rings share
//! core 0; the load is on core 1. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;

use pairs::{Bench, Failure, Server, Spread, keys, scaled, spread};

#[derive(Parser)]
struct Args {
    /// Members that join and verify.
    #[arg(long, default_value_t = 100_000)]
    members: u32,
    /// Shards of the engine, rings of the floor, and threads of the load generator.
    #[arg(long, default_value = "6")]
    shards: String,
    /// Interleaved pairs.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Take runs whose results lie in the folder already as they are, so that a measurement can be
    /// made in several sittings.
    #[arg(long)]
    resume: bool,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs with a part of the members show what a process takes beside them: buffers and lists that
/// are as long for few members as for many.
const FEW_OF: u32 = 100;

/// Runs of one side.
#[derive(Default)]
struct Runs {
    few: Vec<Value>,
    all: Vec<Value>,
}

impl Runs {
    /// Memory of each member beyond the few, by pairs, least to greatest.
    fn further_member(&self, few: u32, members: u32) -> Spread {
        let bytes = |run: &Value, count: u32| {
            let each = run.pointer(keys::MEMBER_BYTES).and_then(Value::as_f64);
            each.unwrap_or(f64::NAN) * f64::from(count)
        };
        let pairs = self.all.iter().zip(&self.few);
        let each = pairs
            .map(|(all, some)| (bytes(all, members) - bytes(some, few)) / f64::from(members - few));
        Spread::of(each.collect())
    }
}

/// Connections of a shard or ring: what a limit of 20,000 open files allows for.
const CONNECTIONS: &str = "19900";

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut bench = Bench::new(args.pairs, args.seconds, args.out.clone())?;
    let more = ["--threads", &args.shards, "--window", "1", "--warmup", "3s"];
    let load = bench.fanout(args.members, &more);
    let few = args.members / FEW_OF;
    let few_load = bench.fanout(few, &more);
    let (mut floors, mut engines) = (Runs::default(), Runs::default());
    for pair in 0..args.pairs {
        for (which, runs) in [("floor", &mut floors), ("engine", &mut engines)] {
            for (members, load, runs) in
                [(few, &few_load, &mut runs.few), (args.members, &load, &mut runs.all)]
            {
                let name = format!("many-{members}-{which}-{pair}");
                let kept = if args.resume { bench.kept(&name) } else { None };
                runs.push(match kept {
                    Some(run) => run,
                    None => bench.load(&name, &start(&bench, which, &args.shards)?, load)?,
                });
                eprint!(".");
            }
        }
    }
    eprintln!();
    table(&mut bench, &args, few, &load, &floors, &engines);
    println!("\nkept in {}", bench.keep("many-connections.md")?.display());
    Ok(())
}

/// A floor or an engine. Heartbeats are off on both sides, and nobody is thrown out while 100,000
/// join one after the other.
fn start(bench: &Bench, which: &str, shards: &str) -> Result<Server, Failure> {
    if which == "floor" {
        return bench.start_floor(&["--rings", shards, "--connections", CONNECTIONS]);
    }
    let mut flags = vec!["--shards", shards, "--cores", "0", "--connections-max", CONNECTIONS];
    flags.extend(["--handshake-timeout-ms", "300000", "--heartbeat-ms", "0"]);
    bench.start_engine(&flags)
}

fn table(bench: &mut Bench, args: &Args, few: u32, load: &[String], floors: &Runs, engines: &Runs) {
    let Args { members, shards, .. } = args;
    let more = [
        &format!("{shards} shards against {shards} rings, all on core 0, load generator on core 1"),
        "loopback; everything durable at the engine; medians (least to greatest)",
    ];
    bench.header(&format!("{members} joined members"), "many-connections", &more);
    bench.say(&format!("\n`loadgen {}`\n", load.join(" ")));
    bench.say(&format!(
        "| | a broadcast to all, p50, ms | longest, ms | deliveries/s, million \
         | CPU per delivery, us | server busy | user memory per member, bytes \
         | the same of each beyond {few} | kernel memory per connection, both ends, bytes |",
    ));
    bench.say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, runs) in [("floor", floors), ("engine", engines)] {
        let further = runs.further_member(few, *members);
        let runs = &runs.all;
        let ms = |key| scaled(runs, key, 1e-3).show(0);
        bench.say(&format!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            ms(keys::COMPLETION_P50),
            ms(keys::COMPLETION_MAX),
            scaled(runs, keys::RATE, 1e-6).show(3),
            scaled(runs, keys::CPU, 1e-3).show(2),
            spread(runs, keys::SERVER_BUSY).show(2),
            spread(runs, keys::MEMBER_BYTES).show(0),
            further.show(0),
            spread(runs, keys::KERNEL_SLAB).show(0),
        ));
    }
    bench.ratio("A broadcast to all, p50", &floors.all, &engines.all, keys::COMPLETION_P50);
    bench.ratio("CPU per delivery", &floors.all, &engines.all, keys::CPU);
}
