//! How the cost of a delivery grows: with shards, members, groups, the size of messages, and
//! history on disk. The server is on core 0, whatever the number of its shards, so CPU per
//! delivery shows what more shards cost, not what more cores bring. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;

use pairs::{Bench, Failure, keys, scaled, spread};

#[derive(Parser)]
struct Args {
    /// What grows: shards, members, groups, payload, history.
    #[arg(long, value_delimiter = ',', default_value = "shards,members,groups,payload,history")]
    figures: Vec<String>,
    /// Runs of each row.
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Engines of a run: room for as many members as a table of descriptors has.
const ENGINE: [&str; 2] = ["--connections-max", "19000"];

struct Scaling {
    bench: Bench,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut scaling = Scaling { bench: Bench::new(args.pairs, args.seconds, args.out)? };
    let more =
        ["all shards on core 0, load generator on core 1; loopback; medians (least to greatest)"];
    scaling.bench.header("How cost grows", "cargo bench --bench scaling --", &more);
    for figure in &args.figures {
        match figure.as_str() {
            "shards" => scaling.shards()?,
            "members" => scaling.members()?,
            "groups" => scaling.groups()?,
            "payload" => scaling.payload()?,
            "history" => scaling.history()?,
            other => return Err(format!("there is no figure {other}; see --help").into()),
        }
        scaling.bench.keep(&format!("scaling-{figure}.md"))?;
    }
    println!("\nkept in {}", scaling.bench.keep("scaling.md")?.display());
    Ok(())
}

impl Scaling {
    /// A row of a table: some runs, and what else is to be shown of the engine after each.
    fn row(
        &mut self,
        label: &str,
        engine: &[&str],
        load: &[String],
        prepare: Option<&[String]>,
    ) -> Result<(), Failure> {
        let (mut runs, mut wakes, mut batches) = (Vec::<Value>::new(), 0.0, 0.0);
        for run in 0..self.bench.pairs {
            let more = [&ENGINE[..], engine].concat();
            let mut server = self.bench.start_engine(&more)?;
            let name = format!("scaling-{}-{run}", label.replace([' ', ','], ""));
            if let Some(load) = prepare {
                self.bench.load(&format!("{name}-prepare"), &server, load)?;
            }
            runs.push(self.bench.load(&name, &server, load)?);
            // What it says when it stops counts from its start.
            server.stop();
            let messages = server.last_figure("messages");
            wakes += server.last_figure("mesh_wakes") / messages;
            batches += server.last_figure("mesh_batches") / messages;
            eprint!(".");
        }
        let count = runs.len() as f64;
        let (cpu, rate) = (spread(&runs, keys::CPU), scaled(&runs, keys::RATE, 1e-6));
        let (busy, p50) = (spread(&runs, keys::SERVER_BUSY), scaled(&runs, keys::P50, 1e-3));
        self.bench.say(&format!(
            "| {label} | {} | {} | {} | {} | {:.3} | {:.3} |",
            cpu.show(1),
            rate.show(2),
            busy.show(2),
            p50.show(2),
            wakes / count,
            batches / count
        ));
        Ok(())
    }

    fn table(&mut self, title: &str, what: &str, load: &[String]) {
        self.bench.say(&format!("\n## {title}\n\n`loadgen {}`\n", load.join(" ")));
        self.bench.say(&format!(
            "| {what} | CPU per delivery, ns | deliveries/s, million | server busy | delivery p50, ms \
             | wake-ups of shards per message | batches between shards per message |"
        ));
        self.bench.say("| --- | --- | --- | --- | --- | --- | --- |");
    }

    fn shards(&mut self) -> Result<(), Failure> {
        let load = self.bench.fanout(1_000, &["--window", "64"]);
        self.table("Shards: one group, members spread over them", "shards", &load);
        for shards in ["1", "2", "4", "8"] {
            self.row(shards, &["--shards", shards], &load, None)?;
        }
        let load = self.groups_of(1_000, 100, 1, &["--window", "4"]);
        self.table("Shards: 100 groups of 10", "shards", &load);
        for shards in ["1", "2", "4", "8"] {
            self.row(&format!("{shards}, groups"), &["--shards", shards], &load, None)?;
        }
        Ok(())
    }

    fn members(&mut self) -> Result<(), Failure> {
        let load = |bench: &Bench, members| bench.fanout(members, &["--window", "64"]);
        let first = load(&self.bench, 10);
        self.table("Members of one group, 64 in flight", "members", &first);
        for members in [10, 100, 1_000, 4_000, 16_000] {
            let load = load(&self.bench, members);
            self.row(&format!("{members} members"), &[], &load, None)?;
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<(), Failure> {
        let first = self.groups_of(1_000, 1, 1, &["--window", "64"]);
        self.table("Groups, 10 memberships in each from 100 on", "groups", &first);
        for (groups, members, per_member) in
            [(1, 10, 1), (10, 100, 1), (100, 1_000, 1), (1_000, 10_000, 1), (10_000, 10_000, 10)]
        {
            let rate = ["--rate", "5000"];
            let load = self.groups_of(members, groups, per_member, &rate);
            self.row(&format!("{groups} groups"), &[], &load, None)?;
        }
        // As many as a member may join in one frame.
        let load = self.groups_of(10_000, 100_000, 20, &["--rate", "5000"]);
        self.row("100000 groups of 2", &[], &load, None)
    }

    fn payload(&mut self) -> Result<(), Failure> {
        let load = |bench: &Bench, bytes: &str| {
            bench.fanout(1_000, &["--window", "16", "--payload", bytes])
        };
        let first = load(&self.bench, "16");
        self.table("Bytes of a message, 1,000 members, 16 in flight", "payload", &first);
        for bytes in ["16", "128", "1024", "4096", "16384", "65536"] {
            let load = load(&self.bench, bytes);
            self.row(&format!("{bytes} bytes"), &[], &load, None)?;
        }
        Ok(())
    }

    fn history(&mut self) -> Result<(), Failure> {
        let load = self.bench.fanout(1_000, &["--window", "64"]);
        self.table("History on disk, in 1,000 groups", "history", &load);
        self.row("none", &[], &load, None)?;
        let fill = ["fill", "--groups", "1000", "--members", "1", "--publishers", "4", "--payload"];
        let fill = [&fill[..], &["4096", "--bytes", "1GiB"]].concat();
        let fill: Vec<_> = fill.iter().map(ToString::to_string).collect();
        self.row("1 GiB", &[], &load, Some(&fill))
    }

    fn groups_of(&self, members: u32, groups: u32, per: u32, rest: &[&str]) -> Vec<String> {
        let seconds = format!("{}s", self.bench.seconds);
        let (members, groups, per) = (members.to_string(), groups.to_string(), per.to_string());
        let base = ["groups", "--members", &members, "--groups", &groups, "--publishers", "4"];
        let more = ["--groups-per-member", &per, "--duration", &seconds];
        base.iter().chain(&more).chain(rest).map(ToString::to_string).collect()
    }
}
