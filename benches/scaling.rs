//! How the cost of a delivery grows: with shards, the share of members on another shard, members,
//! groups, the size of messages, history on disk, and with what members speak. The server is on core 0, whatever the number
//! of its shards, so CPU per delivery shows what more shards cost, not what more cores bring. The
//! rows of a table take turns: a machine that drifts does so for all of them. See
//! benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use serde_json::Value;

use pairs::{Bench, Failure, Spread, keys, scaled, spread};

#[derive(Parser)]
struct Args {
    /// What grows: shards, foreign, members, groups, payload, history, encodings.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "shards,foreign,members,groups,payload,history,encodings"
    )]
    figures: Vec<String>,
    /// Runs of each row, in turn with the others of its table.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 2)]
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

/// A row of a table.
struct Row {
    label: String,
    engine: Vec<&'static str>,
    load: Vec<String>,
    /// A load before it, which is not measured.
    prepare: Option<Vec<String>>,
}

/// Cores of the shards. The load generator has the second one in any case.
#[derive(Clone, Copy)]
enum On {
    One,
    Both,
}

impl On {
    fn list(self) -> &'static str {
        match self {
            Self::One => "0",
            Self::Both => "0,1",
        }
    }

    fn said(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Both => ", two and more on both cores",
        }
    }
}

/// What was seen of a row.
#[derive(Default)]
struct Seen {
    runs: Vec<Value>,
    wakes: Vec<f64>,
    batches: Vec<f64>,
}

struct Scaling {
    bench: Bench,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut scaling = Scaling { bench: Bench::new(args.pairs, args.seconds, args.out)? };
    let more = [
        "shards on core 0 if no other is named, load generator on core 1; loopback; medians (least to greatest)",
    ];
    scaling.bench.header("How cost grows", "scaling", &more);
    for figure in &args.figures {
        match figure.as_str() {
            "shards" => scaling.shards(On::One)?,
            "foreign" => scaling.foreign(On::One)?,
            "cores" => {
                scaling.shards(On::Both)?;
                scaling.foreign(On::Both)?;
            }
            "members" => scaling.members()?,
            "groups" => scaling.groups()?,
            "payload" => scaling.payload()?,
            "history" => scaling.history()?,
            "encodings" => scaling.encodings()?,
            other => return Err(format!("there is no figure {other}; see --help").into()),
        }
        scaling.bench.keep("scaling.md")?;
    }
    println!("\nkept in {}", scaling.bench.keep("scaling.md")?.display());
    Ok(())
}

impl Scaling {
    /// Runs all rows in turn, again and again, and shows them.
    fn table(&mut self, title: &str, what: &str, rows: &[Row]) -> Result<(), Failure> {
        let mut seen: Vec<Seen> = rows.iter().map(|_| Seen::default()).collect();
        for run in 0..self.bench.pairs {
            for (row, seen) in rows.iter().zip(&mut seen) {
                let name = format!("scaling-{title}-{}-{run}", row.label);
                self.run(&name.replace(|c: char| !c.is_alphanumeric(), "-"), row, seen)?;
                eprint!(".");
            }
        }
        eprintln!();
        let load = rows.first().map(|row| row.load.join(" ")).unwrap_or_default();
        self.bench.say(&format!("\n## {title}\n\nFirst row: `loadgen {load}`\n"));
        self.bench.say(&format!(
            "| {what} | CPU per delivery, ns | deliveries/s, million | server busy \
             | load busy | delivery p50, ms | wake-ups of shards per message \
             | batches between shards per message |"
        ));
        self.bench.say("| --- | --- | --- | --- | --- | --- | --- | --- |");
        for (row, seen) in rows.iter().zip(seen) {
            let runs = &seen.runs;
            let (cpu, rate) = (spread(runs, keys::CPU), scaled(runs, keys::RATE, 1e-6));
            let (busy, load) = (spread(runs, keys::SERVER_BUSY), spread(runs, keys::LOAD_BUSY));
            self.bench.say(&format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                row.label,
                cpu.show(1),
                rate.show(2),
                busy.show(2),
                load.show(2),
                scaled(runs, keys::P50, 1e-3).show(2),
                Spread::of(seen.wakes).show(3),
                Spread::of(seen.batches).show(3),
            ));
        }
        Ok(())
    }

    /// One run of a row on an engine that is started for it.
    fn run(&self, name: &str, row: &Row, seen: &mut Seen) -> Result<(), Failure> {
        let more = [&ENGINE[..], &row.engine].concat();
        let mut server = self.bench.start_engine(&more)?;
        if let Some(load) = &row.prepare {
            self.bench.unmeasured(&server, load)?;
        }
        seen.runs.push(self.bench.load(name, &server, &row.load)?);
        // What it says when it stops counts from its start.
        server.stop();
        let messages = server.last_figure("messages");
        seen.wakes.push(server.last_figure("mesh_wakes") / messages);
        seen.batches.push(server.last_figure("mesh_batches") / messages);
        Ok(())
    }

    fn shards(&mut self, on: On) -> Result<(), Failure> {
        let one = self.bench.fanout(1_000, &["--window", "64"]);
        let many = self.groups_of(1_000, 100, 1, &["--window", "4"]);
        for (title, load) in [("one group of 1,000, 64 in flight", one), ("100 groups of 10", many)]
        {
            let rows = ["1", "2", "4", "8"].map(|shards| {
                let cores = if shards == "1" { On::One } else { on };
                row(shards, &["--shards", shards, "--cores", cores.list()], load.clone())
            });
            self.table(&format!("Shards: {title}{}", on.said()), "shards", &rows)?;
        }
        Ok(())
    }

    fn foreign(&mut self, on: On) -> Result<(), Failure> {
        for window in ["1", "64"] {
            let rows = ["0", "50", "100"].map(|share| {
                let more = ["--window", window, "--foreign", share];
                let engine = ["--shards", "2", "--cores", on.list()];
                row(&format!("{share} %"), &engine, self.bench.fanout(1_000, &more))
            });
            let title = format!(
                "Members on another shard: 2 shards, 1,000 members, {window} in flight{}",
                on.said()
            );
            self.table(&title, "on another shard", &rows)?;
        }
        Ok(())
    }

    fn members(&mut self) -> Result<(), Failure> {
        for window in ["1", "64"] {
            let rows = [10, 100, 1_000, 4_000, 16_000].map(|members| {
                row(&members.to_string(), &[], self.bench.fanout(members, &["--window", window]))
            });
            let title = format!("Members of one group, {window} in flight");
            self.table(&title, "members", &rows)?;
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<(), Failure> {
        // Of the last ones as many as a member may join in one frame.
        let rows = [
            (1, 10, 1),
            (10, 100, 1),
            (100, 1_000, 1),
            (1_000, 10_000, 1),
            (10_000, 10_000, 10),
            (100_000, 10_000, 20),
        ]
        .map(|(groups, members, each)| {
            let label = format!("{groups} of {}", members * each / groups);
            row(&label, &[], self.groups_of(members, groups, each, &["--rate", "5000"]))
        });
        self.table("Groups: 5,000 messages/s over all of them", "groups", &rows)
    }

    fn payload(&mut self) -> Result<(), Failure> {
        let rows = ["16", "128", "1024", "4096", "16384", "65536"].map(|bytes| {
            let more = ["--window", "16", "--payload", bytes];
            row(bytes, &[], self.bench.fanout(1_000, &more))
        });
        self.table("Bytes of a message: 1,000 members, 16 in flight", "bytes", &rows)
    }

    fn history(&mut self) -> Result<(), Failure> {
        let load = self.bench.fanout(1_000, &["--window", "64"]);
        // Nothing of it is to be removed while it is measured.
        let engine = ["--retention-bytes", "4294967296"];
        let rows = ["none", "256MiB", "1GiB"].map(|bytes| {
            let fill = ["fill", "--groups", "1000", "--payload", "4096", "--bytes", bytes];
            let fill = fill.map(ToString::to_string).to_vec();
            Row { prepare: (bytes != "none").then_some(fill), ..row(bytes, &engine, load.clone()) }
        });
        self.table(
            "History on disk, in 1,000 groups: 1,000 members, 64 in flight",
            "history",
            &rows,
        )
    }

    fn encodings(&mut self) -> Result<(), Failure> {
        let script = "tests/conversations/certificates.sh";
        if !Command::new(script).arg("target/clients/tls").status()?.success() {
            return Err(format!("{script} failed").into());
        }
        let server = [
            "--set",
            "tls_cert=target/clients/tls/cert.pem",
            "--set",
            "tls_key=target/clients/tls/key.pem",
        ];
        let plain = ["native", "ws-binary", "ws-json", "native,ws-binary,ws-json"];
        let by_tls = ["tls", "wss-binary", "wss-json"];
        let none: &[&str] = &[];
        let ca: &[&str] = &["--tls-ca", "target/clients/tls/ca.pem"];
        for window in ["1", "64"] {
            let rows: Vec<_> = plain
                .map(|what| (what, none))
                .into_iter()
                .chain(by_tls.map(|what| (what, ca)))
                .map(|(what, ca)| {
                    let more = [&["--window", window, "--encoding", what][..], ca].concat();
                    row(what, &server, self.bench.fanout(1_000, &more))
                })
                .collect();
            let title = format!("Encodings: 1,000 members, {window} in flight");
            self.table(&title, "encoding", &rows)?;
        }
        Ok(())
    }

    fn groups_of(&self, members: u32, groups: u32, per: u32, rest: &[&str]) -> Vec<String> {
        let per = per.to_string();
        let base = ["--publishers", "4", "--groups-per-member", &per];
        self.bench.groups(members, groups, &[&base[..], rest].concat())
    }
}

fn row(label: &str, engine: &[&'static str], load: Vec<String>) -> Row {
    Row { label: label.to_owned(), engine: engine.to_vec(), load, prepare: None }
}
