//! Fanfare, durable, against other systems in their default mode: the same load in interleaved
//! runs (fanfare, redis, nats, ..., fanfare, ...), server on core 0, load on core 1. One table per
//! row of the comparison, kept with the raw results under `benches/runs/<date>-<host>/peers/`. See
//! benches/README.md.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;

type Failure = Box<dyn std::error::Error>;

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
    let target = std::env::current_exe()?
        .ancestors()
        .nth(2)
        .ok_or("the benchmark does not lie in a target folder")?
        .to_owned();
    let out = args.out.clone().unwrap_or_else(|| {
        let host = output("hostname", &[]);
        Path::new("benches/runs").join(format!("{}-{host}/peers", output("date", &["+%F"])))
    });
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
            for (system, runs) in self.systems.iter().zip(&mut runs) {
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
        Ok(std::fs::write(self.out.join(format!("{row}.md")), text)?)
    }

    /// One run: a server of its own, and the load generator, whose JSON is kept.
    fn load(&self, name: &str, system: &System, load: &[&str]) -> Result<Value, Failure> {
        let data = tempfile::tempdir_in(&self.target)?;
        let mut command = match system.script(&["serve", &system.port.to_string()]) {
            Some(command) => command,
            None => self.fanfare(system.port, data.path()),
        };
        let log = tempfile::NamedTempFile::new()?;
        command.stdout(log.reopen()?).stderr(log.reopen()?);
        let server = Server::start(&mut command, system.port, log.path())?;
        let json = self.out.join(format!("{name}.json"));
        let mut command = Command::new(self.target.join("loadgen"));
        command.args(load).args(system.flags);
        command.args(["--duration", &format!("{}s", self.args.seconds), "--cores", "1"]);
        command.args(["--addr", &format!("127.0.0.1:{}", system.port), "--server-pid"]);
        command.arg(server.child.id().to_string()).arg("--json").arg(&json);
        let status = command.stdout(Stdio::null()).status()?;
        // 1 is a run that was made and failed: that is a result too.
        if !matches!(status.code(), Some(0 | 1)) {
            let said = std::fs::read_to_string(log.path()).unwrap_or_default();
            return Err(format!("{command:?} ended with {status}; the server said: {said}").into());
        }
        Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
    }

    fn fanfare(&self, port: u16, data: &Path) -> Command {
        let mut command = Command::new(self.target.join("fanfare"));
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--shards", "1"]);
        command.args(["--cores", "0", "--connections-max", "19000", "--data-dir"]).arg(data);
        command
    }

    fn header(&self, row: &str, load: &[&str]) -> Vec<String> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("?");
        let clean = output("git", &["status", "--porcelain", "-uno"]).is_empty();
        let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
        let peers = self.args.peers.join(",");
        let (pairs, seconds) = (self.args.pairs, self.args.seconds);
        let mut lines = vec![
            format!("# Fanfare and others: {row}"),
            String::new(),
            format!("- command: `cargo bench --bench peers -- --rows {row} --peers {peers} --pairs {pairs} --seconds {seconds}`"),
            format!("- load: `loadgen {}`, with the flags of each target", load.join(" ")),
            format!("- commit: {commit}{}", if clean { "" } else { " (changed)" }),
            format!("- kernel: {}, CPU: {cpu} x {}", output("uname", &["-r"]), output("nproc", &[])),
            format!("- date: {}", output("date", &["-u", "+%F %H:%M UTC"])),
            "- server pinned to core 0, load generator to core 1; loopback; medians (least to greatest)".to_owned(),
            "- fanfare: durable, one shard, a log on the disk of the target folder".to_owned(),
        ];
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
                let ratio = spread(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect(), 3);
                let itself = theirs.iter().zip(theirs.iter().skip(1)).map(|(a, b)| b / a);
                format!("{ratio} | {}", spread(itself.collect(), 3))
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

/// A column: where it is in the JSON of a run, and how it is shown.
struct Figure {
    title: &'static str,
    /// A pointer, or the name of a latency and its quantile.
    at: At,
    scale: f64,
    digits: usize,
    compared: bool,
}

enum At {
    Pointer(&'static str),
    Latency(&'static str, &'static str),
}

const fn figure(title: &'static str, at: At, scale: f64, digits: usize, compared: bool) -> Figure {
    Figure { title, at, scale, digits, compared }
}

const LOADED: [Figure; 9] = [
    figure("deliveries/s, million", At::Pointer("/deliveries_per_s"), 1e-6, 3, true),
    figure("p50, ms", At::Latency("delivery corrected", "p50_us"), 1e-3, 2, false),
    figure("p99, ms", At::Latency("delivery corrected", "p99_us"), 1e-3, 2, true),
    figure("p99.9, ms", At::Latency("delivery corrected", "p999_us"), 1e-3, 2, false),
    figure("publish answered, p50, ms", At::Latency("ack corrected", "p50_us"), 1e-3, 2, false),
    figure("server CPU per delivery, ns", At::Pointer("/server_cpu_ns_per_delivery"), 1.0, 1, true),
    figure("server busy", At::Pointer("/server_busy_cores"), 1.0, 2, false),
    figure("load busy", At::Pointer("/loadgen_busy/0"), 1.0, 2, false),
    figure("server's core taken by others", At::Pointer("/server_waiting_cores"), 1.0, 2, false),
];

const IDLE: [Figure; 5] = [
    figure("server bytes per member", At::Pointer("/server_memory/bytes_per_member"), 1.0, 0, true),
    figure(
        "kernel slab bytes per member, both ends",
        At::Pointer("/kernel_slab_bytes_per_member"),
        1.0,
        0,
        false,
    ),
    figure("joined in, s", At::Pointer("/join_s"), 1.0, 2, true),
    figure("join p99, ms", At::Latency("join", "p99_us"), 1e-3, 2, false),
    figure("server busy while idle, %", At::Pointer("/server_busy_cores"), 100.0, 3, false),
];

impl Figure {
    fn values(&self, runs: &[Value]) -> Vec<f64> {
        let one = |run: &Value| {
            let value = match self.at {
                At::Pointer(at) => run.pointer(at)?.as_f64()?,
                At::Latency(what, quantile) => {
                    let all = run["latency"].as_array()?;
                    all.iter().find(|l| l["what"] == what)?[quantile].as_f64()?
                }
            };
            Some(value * self.scale)
        };
        runs.iter().filter_map(one).collect()
    }

    fn cell(&self, runs: &[Value]) -> String {
        match self.values(runs) {
            values if values.is_empty() => "none".to_owned(),
            values => spread(values, self.digits),
        }
    }
}

/// Median, least and greatest.
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(greatest)) => {
            format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
        }
        _ => "none".to_owned(),
    }
}

/// A server's process, stopped when dropped.
struct Server {
    child: Child,
}

impl Server {
    fn start(command: &mut Command, port: u16, log: &Path) -> Result<Self, Failure> {
        let mut server = Self { child: command.stdin(Stdio::null()).spawn()? };
        let deadline = Instant::now() + START_TIMEOUT;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline || server.child.try_wait()?.is_some() {
                let log = std::fs::read_to_string(log)?;
                return Err(format!("nothing accepts on port {port}: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // What a server does right after its start is not measured.
        std::thread::sleep(Duration::from_millis(500));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
