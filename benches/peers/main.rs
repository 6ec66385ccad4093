//! Fanfare, durable, against other systems in their default mode: the same load in interleaved
//! runs (fanfare, redis, nats, ..., fanfare, ...), server on core 0, load on core 1. One table per
//! row of the comparison, kept with the raw results under `benches/runs/<date>-<host>/peers/`. See
//! benches/README.md.

#[path = "../pairs/mod.rs"]
#[allow(dead_code, reason = "what other benches use")]
mod pairs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use pairs::{Failure, Server, Spread, keys, run};

/// RabbitMQ needs its time.
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    /// Rows to measure [default: all].
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Systems beside Fanfare.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "redis,nats,mosquitto,mosquitto-nodelay,mosquitto-qos1,rabbitmq,uwebsockets,gorilla,gorilla-spawn,netty"
    )]
    peers: Vec<String>,
    /// What Fanfare's members speak, as `loadgen --encoding` has it.
    #[arg(long, default_value = "native")]
    encoding: String,
    /// Interleaved runs of each system.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// The first port; each system has one of its own.
    #[arg(long, default_value_t = 7470)]
    port: u16,
    /// Take the binaries that are there.
    #[arg(long)]
    skip_build: bool,
    /// Where results are kept [default: benches/runs/<date>-<host>/peers].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A system under load.
struct System {
    name: String,
    /// Its script; Fanfare has none.
    script: Option<PathBuf>,
    environment: &'static [(&'static str, &'static str)],
    flags: &'static [&'static str],
    port: u16,
}

impl System {
    fn named(name: &str, port: u16) -> Result<Self, Failure> {
        let (script, environment, flags): (&str, &[(&str, &str)], &[&str]) = match name {
            "fanfare" => ("", &[], &[]),
            "redis" => ("redis", &[], &["--target", "redis"]),
            "nats" => ("nats", &[], &["--target", "nats"]),
            "mosquitto" => ("mosquitto", &[], &["--target", "mqtt"]),
            "mosquitto-nodelay" => ("mosquitto", &[("NODELAY", "true")], &["--target", "mqtt"]),
            "mosquitto-qos1" => ("mosquitto", &[], &["--target", "mqtt", "--qos", "1"]),
            "rabbitmq" => ("rabbitmq", &[], &["--target", "mqtt"]),
            "uwebsockets" | "gorilla" | "gorilla-spawn" | "netty" => {
                (name, &[], &["--target", "ws"])
            }
            other => return Err(format!("there is no peer {other}; see benches/README.md").into()),
        };
        let path = || Path::new("benches/peers").join(format!("{script}.sh"));
        let script = (!script.is_empty()).then(path);
        Ok(Self { name: name.to_owned(), script, environment, flags, port })
    }

    fn script(&self, task: &[&str]) -> Option<Command> {
        let mut command = Command::new(self.script.as_ref()?);
        command.args(task).envs(self.environment.iter().copied());
        Some(command)
    }
}

/// Rows of the comparison and their loads.
fn rows() -> Vec<(String, Vec<&'static str>)> {
    let mut rows = Vec::new();
    for window in ["1", "16", "64", "256"] {
        let load = vec!["fanout", "--members", "1000", "--window", window];
        rows.push((format!("closed-1000-{window}"), load));
    }
    rows.push(("closed-10000-1".into(), vec!["fanout", "--members", "10000", "--window", "1"]));
    for rate in ["50", "100", "150", "200"] {
        let load = vec!["fanout", "--members", "1000", "--rate", rate];
        rows.push((format!("open-1000-{rate}"), load));
    }
    // A publisher for each group: a WebSocket is in one room.
    let groups = ["groups", "--groups", "1000", "--members", "10000", "--publishers", "1000"];
    rows.push(("groups-1000".into(), [&groups[..], &["--rate", "5000"]].concat()));
    let zipf = ["groups", "--sizes", "zipf", "--groups", "1000", "--members", "10000"];
    rows.push(("zipf-1000".into(), [&zipf[..], &["--rate", "1000"]].concat()));
    rows.push(("idle-10000".into(), vec!["connect", "--members", "10000"]));
    rows
}

struct Bench {
    args: Args,
    systems: Vec<System>,
    target: PathBuf,
    out: PathBuf,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if !args.skip_build {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        run(Command::new(cargo).args(["build", "--release", "--workspace"]))?;
    }
    let target = pairs::target_folder()?;
    let out = args.out.clone().unwrap_or_else(|| pairs::runs_folder().join("peers"));
    std::fs::create_dir_all(&out)?;
    let mut systems = vec![System::named("fanfare", args.port)?];
    for (i, name) in (1..).zip(&args.peers) {
        systems.push(System::named(name, args.port + i)?);
    }
    for system in &systems {
        if let Some(mut install) = system.script(&["install"]) {
            run(&mut install)?;
        }
    }
    let bench = Bench { args, systems, target, out };
    let rows = rows();
    let known = |name: &String| rows.iter().any(|(row, _)| row == name);
    if let Some(unknown) = bench.args.rows.iter().find(|name| !known(name)) {
        let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("there is no row {unknown}; take {}", names.join(", ")).into());
    }
    for (name, load) in &rows {
        if bench.args.rows.is_empty() || bench.args.rows.contains(name) {
            bench.row(name, load)?;
        }
    }
    println!("\nkept in {}", bench.out.display());
    Ok(())
}

impl Bench {
    fn row(&self, row: &str, load: &[&str]) -> Result<(), Failure> {
        let mut runs: Vec<Vec<Value>> = self.systems.iter().map(|_| Vec::new()).collect();
        for pair in 0..self.args.pairs {
            // Each round begins with another system, so that none always comes after the same one.
            let n = self.systems.len();
            for at in (0..n).map(|nth| (nth + pair) % n) {
                let (system, runs) = (&self.systems[at], &mut runs[at]);
                // Members are in several groups there, a WebSocket is in one.
                if row.starts_with("zipf") && system.flags.contains(&"ws") {
                    continue;
                }
                let result = self.load(&format!("{row}-{}-{pair}", system.name), system, load);
                runs.push(result.map_err(|e| format!("{row}, {}: {e}", system.name))?);
                eprint!(".");
            }
        }
        eprintln!();
        let table = if row.starts_with("idle") { &IDLE[..] } else { &LOADED[..] };
        let mut lines = self.header(row, load);
        lines.extend(self.figures(&runs, table));
        lines.extend(self.ratios(&runs, table));
        lines.extend(self.findings(&runs));
        let text = lines.join("\n") + "\n";
        println!("{text}");
        std::fs::write(self.out.join(format!("{row}.md")), text)?;
        self.plot(row, &runs)
    }

    /// What `loadgen compare` would plot of these runs, in a folder of the row.
    fn plot(&self, row: &str, runs: &[Vec<Value>]) -> Result<(), Failure> {
        let mut all = Vec::new();
        for (system, runs) in self.systems.iter().zip(runs) {
            all.extend(runs.iter().map(|run| json!({"label": system.name, "report": run})));
        }
        let result = tempfile::NamedTempFile::new_in(&self.target)?;
        serde_json::to_writer(&result, &json!({"workload": "compare", "runs": all}))?;
        let mut plot = Command::new(self.target.join("loadgen"));
        run(plot.arg("plot").arg(result.path()).arg("--svg").arg(self.out.join(row)))
    }

    /// One run: a server of its own, and the load generator, whose JSON is kept.
    fn load(&self, name: &str, system: &System, load: &[&str]) -> Result<Value, Failure> {
        let data = tempfile::tempdir_in(&self.target)?;
        let mut command = match system.script(&["serve", &system.port.to_string()]) {
            Some(command) => command,
            None => self.fanfare(system.port, data.path()),
        };
        let address = format!("127.0.0.1:{}", system.port);
        let server = Server::start(&mut command, address, Some(data), START_TIMEOUT)?;
        let json = self.out.join(format!("{name}.json"));
        let mut command = Command::new(self.target.join("loadgen"));
        command.args(load).args(system.flags);
        if system.script.is_none() {
            command.args(["--encoding", &self.args.encoding]);
        }
        command.args(["--duration", &format!("{}s", self.args.seconds)]);
        let status = server.under(&mut command, &json).status()?;
        // 1 is a run that was made and failed: that is a result too.
        if !matches!(status.code(), Some(0 | 1)) {
            let said = server.said();
            return Err(format!("{command:?} ended with {status}; the server said: {said}").into());
        }
        Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
    }

    fn fanfare(&self, port: u16, data: &Path) -> Command {
        let mut command = pairs::on_cores("0", &self.target.join("fanfare"));
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--shards", "1"]);
        command.args(["--cores", "0", "--connections-max", "19000", "--data-dir"]).arg(data);
        command
    }

    fn header(&self, row: &str, load: &[&str]) -> Vec<String> {
        let peers = self.args.peers.join(",");
        let (pairs, seconds) = (self.args.pairs, self.args.seconds);
        let encoding = &self.args.encoding;
        let mut lines = vec![
            format!("# Fanfare and others: {row}"),
            String::new(),
            format!(
                "- command: `cargo bench --bench peers -- --rows {row} --peers {peers} --encoding {encoding} --pairs {pairs} --seconds {seconds}`"
            ),
            format!("- load: `loadgen {}`, with the flags of each target", load.join(" ")),
        ];
        lines.extend(pairs::machine());
        lines.extend([
            "- server pinned to core 0, load generator to core 1; loopback; medians (least to greatest)".to_owned(),
            format!("- fanfare: durable, one shard, a log on the disk of the target folder; {encoding}"),
        ]);
        for system in &self.systems {
            let Some(about) = system.script(&["about"]).and_then(|mut c| c.output().ok()) else {
                continue;
            };
            let about = String::from_utf8_lossy(&about.stdout).trim().replace('\n', "; ");
            lines.push(format!("- {}: {about}", system.name));
        }
        lines.push(String::new());
        lines
    }

    fn figures(&self, runs: &[Vec<Value>], table: &[Figure]) -> Vec<String> {
        let titles: Vec<_> = table.iter().map(|figure| figure.title).collect();
        let mut lines = vec![
            format!("| | {} |", titles.join(" | ")),
            format!("| ---{} |", " | ---".repeat(titles.len())),
        ];
        for (system, runs) in self.systems.iter().zip(runs) {
            let cells: Vec<_> = table.iter().map(|figure| figure.cell(runs)).collect();
            lines.push(format!("| {} | {} |", system.name, cells.join(" | ")));
        }
        lines
    }

    /// Fanfare by each peer, run by run, beside the peer's runs against each other.
    fn ratios(&self, runs: &[Vec<Value>], table: &[Figure]) -> Vec<String> {
        let table: Vec<_> = table.iter().filter(|figure| figure.compared).collect();
        let titles: Vec<_> = table
            .iter()
            .map(|figure| format!("{} | the peer against itself", figure.title))
            .collect();
        let mut lines = vec![
            String::new(),
            "Fanfare / peer, round by round:".to_owned(),
            String::new(),
            format!("| | {} |", titles.join(" | ")),
            format!("| ---{} |", " | --- | ---".repeat(titles.len())),
        ];
        for (system, theirs) in self.systems.iter().zip(runs).skip(1) {
            let cells = table.iter().map(|figure| {
                let (ours, theirs) = (figure.values(&runs[0]), figure.values(theirs));
                let ratio = shown(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect(), 3);
                let itself = theirs.iter().zip(theirs.iter().skip(1)).map(|(a, b)| b / a);
                format!("{ratio} | {}", shown(itself.collect(), 3))
            });
            let cells: Vec<_> = cells.collect();
            lines.push(format!("| {} | {} |", system.name, cells.join(" | ")));
        }
        lines
    }

    /// Runs in which something was wrong, with the first finding.
    fn findings(&self, runs: &[Vec<Value>]) -> Vec<String> {
        let mut lines = Vec::new();
        for (system, runs) in self.systems.iter().zip(runs) {
            let failed = runs.iter().filter(|run| run["passed"] != true);
            let n = failed.clone().count();
            if let Some(first) = failed.into_iter().next() {
                let text = first.pointer("/violations/details/0").and_then(Value::as_str);
                lines.push(format!(
                    "\n{}: {n} of {} runs failed verification; the first: {}",
                    system.name,
                    runs.len(),
                    text.unwrap_or("not every message came to every member")
                ));
            }
        }
        if lines.is_empty() {
            lines.push("\nEvery delivery of every run was verified.".to_owned());
        }
        lines
    }
}

/// A column: where it is in the JSON of a run, as [`pairs::values`] takes it, and how it is shown.
struct Figure {
    title: &'static str,
    at: &'static str,
    scale: f64,
    digits: usize,
    compared: bool,
}

const fn figure(
    title: &'static str,
    at: &'static str,
    scale: f64,
    digits: usize,
    compared: bool,
) -> Figure {
    Figure { title, at, scale, digits, compared }
}

const LOADED: [Figure; 10] = [
    figure("deliveries/s, million", keys::RATE, 1e-6, 3, true),
    figure("p50, ms", keys::P50, 1e-3, 2, false),
    figure("p99, ms", keys::P99, 1e-3, 2, true),
    figure("p99.9, ms", keys::P999, 1e-3, 2, false),
    figure("publish answered, p50, ms", keys::ACK_P50, 1e-3, 2, false),
    figure("server CPU per delivery, ns", keys::CPU, 1.0, 1, true),
    figure("server busy", keys::SERVER_BUSY, 1.0, 2, false),
    figure("load busy", keys::LOAD_BUSY, 1.0, 2, false),
    figure("due and not sent", "/unsent", 1.0, 0, false),
    figure("server's core taken by others", "/server_waiting_cores", 1.0, 2, false),
];

const IDLE: [Figure; 5] = [
    figure("server bytes per member", keys::MEMBER_BYTES, 1.0, 0, true),
    figure("kernel slab bytes per member, both ends", keys::KERNEL_SLAB, 1.0, 0, false),
    figure("joined in, s", "/join_s", 1.0, 2, true),
    figure("join p99, ms", "join:/p99_us", 1e-3, 2, false),
    figure("server busy while idle, %", keys::SERVER_BUSY, 100.0, 3, false),
];

impl Figure {
    /// Of every run; no number where a run does not have it.
    fn values(&self, runs: &[Value]) -> Vec<f64> {
        pairs::values(runs, self.at).into_iter().map(|value| value * self.scale).collect()
    }

    fn cell(&self, runs: &[Value]) -> String {
        shown(self.values(runs), self.digits)
    }
}

fn shown(mut values: Vec<f64>, digits: usize) -> String {
    values.retain(|value| !value.is_nan());
    if values.is_empty() { "none".to_owned() } else { Spread::of(values).show(digits) }
}
