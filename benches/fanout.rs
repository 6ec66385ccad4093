//! The engine against the floor, in interleaved pairs within one run: server on core 0, load
//! on core 1, everything durable. Prints a table and keeps it, with the raw results, under
//! `benches/runs/<date>-<host>/`. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;

use pairs::{Bench, Failure, Spread, keys, scaled, spread, values};

#[derive(Parser)]
struct Args {
    /// Figures to measure: 2 to 11.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,5,6,7,8,9,10,11")]
    figures: Vec<u8>,
    /// Interleaved pairs per figure.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Members acknowledge in figures 2 to 4: durable ones at the engine, live ones at the floor,
    /// which reads the ACKs and drops them.
    #[arg(long)]
    acks: bool,
    /// Broadcasts a second of figure 4; a slower machine is full at lower ones.
    #[arg(long, value_delimiter = ',', default_value = "50,100,150,200")]
    rates: Vec<u32>,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A measurement, and whether members acknowledge in it.
struct Fanout {
    bench: Bench,
    acks: bool,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let bench = Bench::new(args.pairs, args.seconds, args.out)?;
    let mut fanout = Fanout { bench, acks: args.acks };
    let acks = if args.acks { "yes" } else { "no" };
    let more = [
        &format!("members acknowledge in figures 2 to 4: {acks}"),
        "server pinned to core 0, load generator to core 1; loopback; medians (least to greatest)",
    ];
    fanout.bench.header("Engine against floor", "fanout", &more);
    for figure in args.figures {
        match figure {
            2 => fanout.closed_loop(10_000, 1)?,
            3 => {
                for window in [64, 512, 1_024] {
                    fanout.closed_loop(1_000, window)?;
                }
            }
            4 => {
                for &rate in &args.rates {
                    fanout.open_loop(1_000, rate)?;
                }
            }
            5 => fanout.idle(10_000)?,
            6 => fanout.stalled(1_000)?,
            7 => fanout.catch_up(1_000)?,
            8 => fanout.receipts(1_000)?,
            9 => {
                fanout.levels(1_000, ["--window", "64"], "64 in flight")?;
                fanout.levels(1_000, ["--window", "512"], "512 in flight")?;
            }
            10 => {
                fanout.levels(10, ["--rate", "100"], "100 broadcasts/s")?;
                fanout.levels(1_000, ["--rate", "20"], "20 broadcasts/s")?;
            }
            11 => fanout.places()?,
            other => return Err(format!("there is no figure {other}; take 2 to 11").into()),
        }
        fanout.bench.keep("fanout.md")?;
    }
    println!("\nkept in {}", fanout.bench.keep("fanout.md")?.display());
    Ok(())
}

impl Fanout {
    /// Runs floor, engine, floor, engine ... and returns the results of each.
    fn pairs(&self, name: &str, load: &[String]) -> Result<(Vec<Value>, Vec<Value>), Failure> {
        let (mut floors, mut engines) = (Vec::new(), Vec::new());
        for pair in 0..self.bench.pairs {
            let with = |flag: &str| {
                let flag = self.acks.then(|| flag.to_owned());
                load.iter().cloned().chain(flag).collect::<Vec<_>>()
            };
            let name = |side| format!("{name}-{side}-{pair}");
            let (server, acked) = (self.bench.start_floor(&[])?, with("--acks"));
            floors.push(self.bench.load_and_writes(&name("floor"), server, &acked)?);
            let (server, durable) = (self.bench.start_engine(&[])?, with("--durable"));
            engines.push(self.bench.load_and_writes(&name("engine"), server, &durable)?);
            eprint!(".");
        }
        eprintln!();
        Ok((floors, engines))
    }

    fn closed_loop(&mut self, members: u32, window: u32) -> Result<(), Failure> {
        let load = self.bench.fanout(members, &["--window", &window.to_string()]);
        let (floors, engines) = self.pairs(&format!("closed-{members}-{window}"), &load)?;
        self.bench
            .say(&format!("\n## Closed loop, {members} members, {window} in flight, 128 bytes\n"));
        self.bench.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.bench.say(
            "| | CPU per delivery, ns | deliveries/s, million | messages in a write | server busy \
             | load busy |",
        );
        self.bench.say("| --- | --- | --- | --- | --- | --- |");
        for (name, runs) in [("floor", &floors), ("engine", &engines)] {
            let cpu = spread(runs, keys::CPU).show(1);
            let rate = scaled(runs, keys::RATE, 1e-6).show(2);
            let (server, load) =
                (spread(runs, keys::SERVER_BUSY).show(2), spread(runs, keys::LOAD_BUSY).show(2));
            let batch = spread(runs, keys::PER_WRITE).show(1);
            self.bench.say(&format!("| {name} | {cpu} | {rate} | {batch} | {server} | {load} |"));
        }
        self.bench.ratio("CPU per delivery", &floors, &engines, keys::CPU);
        Ok(())
    }

    fn open_loop(&mut self, members: u32, rate: u32) -> Result<(), Failure> {
        let load = self.bench.fanout(members, &["--rate", &rate.to_string()]);
        let (floors, engines) = self.pairs(&format!("open-{members}-{rate}"), &load)?;
        self.bench
            .say(&format!("\n## Open loop, {members} members, {rate} broadcasts/s, 128 bytes\n"));
        self.bench.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.bench.say("Delivery latency from the intended start, ms:\n");
        self.bench.say("| | p50 | p99 | p99.9 | publish answered, p50 |");
        self.bench.say("| --- | --- | --- | --- | --- |");
        for (name, runs) in [("floor", &floors), ("engine", &engines)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let row = format!(
                "| {name} | {} | {} | {} | {} |",
                ms(keys::P50),
                ms(keys::P99),
                ms(keys::P999),
                ms(keys::ACK_P50)
            );
            self.bench.say(&row);
        }
        self.bench.ratio("p99", &floors, &engines, keys::P99);
        Ok(())
    }

    fn idle(&mut self, members: u32) -> Result<(), Failure> {
        self.bench.say(&format!("\n## {members} idle joined members\n"));
        let members = members.to_string();
        let base = ["connect", "--members", &members, "--warmup", "12s", "--duration", "30s"];
        let load: Vec<_> = base.iter().map(ToString::to_string).collect();
        self.bench.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.bench.say("| heartbeat | server bytes per member | kernel bytes per member, sockets' memory and slab | CPU while idle, % of a core | wake-ups per s |");
        self.bench.say("| --- | --- | --- | --- | --- |");
        for heartbeat in ["30000", "0"] {
            let mut runs = Vec::new();
            for run in 0..self.bench.pairs.min(3) {
                let server = self.bench.start_engine(&[
                    "--heartbeat-ms",
                    heartbeat,
                    "--connections-max",
                    "19000",
                ])?;
                runs.push(self.bench.load(&format!("idle-{heartbeat}-{run}"), &server, &load)?);
            }
            let tcp = values(&runs, keys::KERNEL_TCP).into_iter();
            let kernel = tcp.zip(values(&runs, keys::KERNEL_SLAB)).map(|(tcp, slab)| tcp + slab);
            let kernel = Spread::of(kernel.collect());
            let row = format!(
                "| {heartbeat} ms | {} | {} | {} | {} |",
                spread(&runs, keys::MEMBER_BYTES).show(0),
                kernel.show(0),
                scaled(&runs, keys::SERVER_BUSY, 100.0).show(3),
                spread(&runs, keys::SLEEPS).show(2),
            );
            self.bench.say(&row);
        }
        Ok(())
    }

    fn stalled(&mut self, members: u32) -> Result<(), Failure> {
        // 4 KiB, so that the stalled member's socket is full after a second.
        let load = self.bench.fanout(members, &["--rate", "100", "--payload", "4096"]);
        let with =
            self.bench.fanout(members, &["--rate", "100", "--payload", "4096", "--stalled", "1"]);
        let long = ["--stall-timeout-ms", "600000", "--stats-interval", "1s"];
        let (mut without_runs, mut with_runs, mut pinned) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..self.bench.pairs {
            for (name, load, runs) in
                [("none", &load, &mut without_runs), ("one", &with, &mut with_runs)]
            {
                let server = self.bench.start_engine(&long)?;
                runs.push(self.bench.load(&format!("stall-{name}-{pair}"), &server, load)?);
                if name == "one" {
                    pinned.push(server.last_figure("pinned_bytes"));
                }
            }
            eprint!(".");
        }
        eprintln!();
        self.bench.say(&format!(
            "\n## One member that reads nothing beside {members} that do, 100 broadcasts/s\n"
        ));
        self.bench.say(&format!("`loadgen {}`, never disconnected\n", with.join(" ")));
        self.bench.say("| | p50 of the others, ms | p99, ms | server RSS at the end, MiB |");
        self.bench.say("| --- | --- | --- | --- |");
        for (name, runs) in [("without", &without_runs), ("with", &with_runs)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let rss = scaled(runs, keys::RSS, 1.0 / f64::from(1 << 20)).show(1);
            let row = format!("| {name} | {} | {} | {} |", ms(keys::P50), ms(keys::P99), rss);
            self.bench.say(&row);
        }
        let pinned = Spread::of(pinned.iter().map(|v| v / 1024.0).collect()).show(1);
        self.bench
            .say(&format!("\nPinned by the stalled member's write at the end, KiB: {pinned}"));
        self.bench.ratio("p99, with / without", &without_runs, &with_runs, keys::P99);
        Ok(())
    }

    fn catch_up(&mut self, members: u32) -> Result<(), Failure> {
        let (members, seconds) = (members.to_string(), format!("{}s", self.bench.seconds));
        let load = |readers: &str| -> Vec<String> {
            let base = ["catchup", "--members", &members, "--rate", "100", "--duration", &seconds];
            let readers = ["--readers", readers, "--history-bytes", "256MiB"];
            base.iter().chain(&readers).map(ToString::to_string).collect()
        };
        let (without, with) = (load("0"), load("500"));
        let (without_runs, with_runs) = self.bench.turns("catchup", [&without, &with])?;
        self.bench
            .say(&format!("\n## 500 members catching up from disk beside {members} live ones\n"));
        self.bench.say(&format!("`loadgen {}`\n", with.join(" ")));
        self.bench.say("| | p50 of the live ones, ms | p99, ms | read from disk, MiB/s |");
        self.bench.say("| --- | --- | --- | --- |");
        for (name, runs) in [("without", &without_runs), ("with", &with_runs)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let read = spread(runs, keys::CATCH_UP).show(1);
            self.bench.say(&format!("| {name} | {} | {} | {read} |", ms(keys::P50), ms(keys::P99)));
        }
        self.bench.ratio("p99, with / without", &without_runs, &with_runs, keys::P99);
        Ok(())
    }

    fn receipts(&mut self, members: u32) -> Result<(), Failure> {
        let plain = self.bench.fanout(members, &["--window", "64"]);
        let asked =
            self.bench.fanout(members, &["--window", "64", "--durable", "--receipts", "100"]);
        let (without_runs, with_runs) = self.bench.turns("receipts", [&plain, &asked])?;
        self.bench.say(&format!(
            "\n## Durable members and a receipt of all for each message, {members} members, 64 in flight\n"
        ));
        self.bench.say(&format!("`loadgen {}`\n", asked.join(" ")));
        self.bench.say("| | CPU per delivery, ns | deliveries/s, million | receipt, p50, ms |");
        self.bench.say("| --- | --- | --- | --- |");
        for (name, runs) in [("live, no acks", &without_runs), ("durable, receipts", &with_runs)] {
            let (cpu, rate) = (spread(runs, keys::CPU).show(1), scaled(runs, keys::RATE, 1e-6));
            let receipt = scaled(runs, keys::RECEIPT_P50, 1e-3).show(1);
            self.bench.say(&format!("| {name} | {cpu} | {} | {receipt} |", rate.show(2)));
        }
        self.bench.ratio("CPU per delivery, with / without", &without_runs, &with_runs, keys::CPU);
        Ok(())
    }

    /// Durable messages against those of level memory.
    fn levels(&mut self, members: u32, how: [&str; 2], what: &str) -> Result<(), Failure> {
        let load = |level| self.bench.fanout(members, &[&how[..], &["--level", level]].concat());
        let (memory, durable) = (load("memory"), load("durable"));
        let name = format!("levels-{members}-{}", how[1]);
        let (memory_runs, durable_runs) = self.bench.turns(&name, [&memory, &durable])?;
        self.bench.say(&format!("\n## Durable against memory, {members} members, {what}\n"));
        self.bench.say(&format!("`loadgen {}`\n", durable.join(" ")));
        self.bench.say(
            "| | deliveries/s, million | CPU per delivery, ns | delivery p50, us | p99, us \
             | publish answered, p50, us |",
        );
        self.bench.say("| --- | --- | --- | --- | --- | --- |");
        for (level, runs) in [("memory", &memory_runs), ("durable", &durable_runs)] {
            let (rate, cpu) = (scaled(runs, keys::RATE, 1e-6), spread(runs, keys::CPU));
            let us = |key| spread(runs, key).show(0);
            self.bench.say(&format!(
                "| {level} | {} | {} | {} | {} | {} |",
                rate.show(2),
                cpu.show(1),
                us(keys::P50),
                us(keys::P99),
                us(keys::ACK_P50)
            ));
        }
        self.bench.ratio("throughput, durable / memory", &memory_runs, &durable_runs, keys::RATE);
        self.bench.ratio("p50, durable / memory", &memory_runs, &durable_runs, keys::P50);
        Ok(())
    }

    /// Where the log is, and what a message waits for: two loads on the disk, on a file system in
    /// memory, and at level memory.
    fn places(&mut self) -> Result<(), Failure> {
        let window = self.bench.fanout(1_000, &["--window", "16"]);
        let groups = self.bench.groups(10_000, 1_000, &["--publishers", "1000", "--rate", "5000"]);
        let disk = self.bench.target().to_owned();
        let places = [
            ("durable, on the disk", &*disk, "durable"),
            ("durable, in memory", Path::new("/dev/shm"), "durable"),
            ("level memory", &*disk, "memory"),
        ];
        for (name, load) in [("16 in flight", window), ("1,000 groups of 10", groups)] {
            let mut runs = places.map(|_| Vec::new());
            for run in 0..self.bench.pairs {
                for ((what, folder, level), runs) in places.iter().zip(&mut runs) {
                    let flags = ["--connections-max", "19000", "--level", level];
                    let server = self.bench.start_engine_in(folder, &flags)?;
                    let file = format!("places-{name}-{what}-{run}").replace([' ', ','], "-");
                    runs.push(self.bench.load(&file, &server, &load)?);
                }
                eprint!(".");
            }
            eprintln!();
            self.bench.say(&format!("\n## Where the log is: {name}\n"));
            self.bench.say(&format!("`loadgen {}`\n", load.join(" ")));
            self.bench
                .say("| | deliveries/s, million | p50, ms | p99, ms | CPU per delivery, ns |");
            self.bench.say("| --- | --- | --- | --- | --- |");
            for ((what, ..), runs) in places.iter().zip(&runs) {
                let ms = |key| scaled(runs, key, 1e-3).show(2);
                let (rate, cpu) = (scaled(runs, keys::RATE, 1e-6), spread(runs, keys::CPU));
                let (p50, p99) = (ms(keys::P50), ms(keys::P99));
                let (rate, cpu) = (rate.show(3), cpu.show(0));
                self.bench.say(&format!("| {what} | {rate} | {p50} | {p99} | {cpu} |"));
            }
        }
        Ok(())
    }
}
