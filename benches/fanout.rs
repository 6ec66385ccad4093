//! The engine against the floor, in interleaved pairs within one run: server on core 0, load
//! on core 1, everything durable. Prints a table and keeps it, with the raw results, under
//! `benches/runs/<date>-<host>/`. See benches/README.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;

const FLOOR: &str = "127.0.0.1:7461";
const ENGINE: &str = "127.0.0.1:7462";

type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Args {
    /// Figures to measure: 2 to 8.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,5,6,7,8")]
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
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A value of every run of one side: median, least and greatest.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
    }

    fn show(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.min, self.max)
    }
}

/// The binaries under measurement.
struct Bench {
    args: Args,
    target: PathBuf,
    floor: PathBuf,
    out: PathBuf,
    report: String,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    run(Command::new(&cargo).args(["build", "--release", "--workspace"]))?;
    let floor = floor_binary(&cargo)?;
    let target = std::env::current_exe()?
        .ancestors()
        .nth(2)
        .ok_or("the benchmark does not lie in a target folder")?
        .to_owned();
    let out = args.out.clone().unwrap_or_else(|| {
        let host = output("hostname", &[]);
        Path::new("benches/runs").join(format!("{}-{host}", output("date", &["+%F"])))
    });
    std::fs::create_dir_all(&out)?;
    let mut bench = Bench { args, target, floor, out, report: String::new() };
    bench.header();
    for figure in bench.args.figures.clone() {
        match figure {
            2 => bench.closed_loop(10_000, 1)?,
            3 => {
                bench.closed_loop(1_000, 64)?;
                bench.closed_loop(1_000, 512)?;
            }
            4 => {
                for rate in [50, 100, 150, 200] {
                    bench.open_loop(1_000, rate)?;
                }
            }
            5 => bench.idle(10_000)?,
            6 => bench.stalled(1_000)?,
            7 => bench.catch_up(1_000)?,
            8 => bench.receipts(1_000)?,
            other => return Err(format!("there is no figure {other}; take 2 to 8").into()),
        }
        std::fs::write(bench.out.join("fanout.md"), &bench.report)?;
    }
    println!("\nkept in {}", bench.out.display());
    Ok(())
}

impl Bench {
    fn say(&mut self, line: &str) {
        println!("{line}");
        self.report.push_str(line);
        self.report.push('\n');
    }

    fn header(&mut self) {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("?");
        let dirty = if output("git", &["status", "--porcelain", "-uno"]).is_empty() {
            ""
        } else {
            " (changed)"
        };
        let lines = [
            "# Engine against floor".to_owned(),
            String::new(),
            format!("- command: `cargo bench --bench fanout -- --pairs {} --seconds {}`", self.args.pairs, self.args.seconds),
            format!("- commit: {}{dirty}", output("git", &["rev-parse", "--short=12", "HEAD"])),
            format!("- kernel: {}, CPU: {cpu} x {}", output("uname", &["-r"]), output("nproc", &[])),
            format!("- date: {}", output("date", &["-u", "+%F %H:%M UTC"])),
            format!("- members acknowledge in figures 2 to 4: {}", if self.args.acks { "yes" } else { "no" }),
            "- server pinned to core 0, load generator to core 1; loopback; medians (least to greatest)".to_owned(),
        ];
        lines.iter().for_each(|line| self.say(line));
    }

    /// Runs floor, engine, floor, engine ... and returns the results of each.
    fn pairs(&self, name: &str, load: &[String]) -> Result<(Vec<Value>, Vec<Value>), Failure> {
        let (mut floors, mut engines) = (Vec::new(), Vec::new());
        for pair in 0..self.args.pairs {
            let with = |flag: &str| {
                let flag = self.args.acks.then(|| flag.to_owned());
                load.iter().cloned().chain(flag).collect::<Vec<_>>()
            };
            let (server, acked) = (self.start_floor()?, with("--acks"));
            floors.push(self.load(&format!("{name}-floor-{pair}"), &server, &acked)?);
            drop(server);
            let (server, durable) = (self.start_engine(&[])?, with("--durable"));
            engines.push(self.load(&format!("{name}-engine-{pair}"), &server, &durable)?);
            eprint!(".");
        }
        eprintln!();
        Ok((floors, engines))
    }

    fn start_floor(&self) -> Result<Server, Failure> {
        Server::start(
            Command::new(&self.floor).args(["--listen", FLOOR, "--core", "0"]),
            FLOOR,
            None,
        )
    }

    fn start_engine(&self, more: &[&str]) -> Result<Server, Failure> {
        let data = tempfile::tempdir_in(&self.target)?;
        let mut command = Command::new(self.target.join("fanfare"));
        command
            .args(["serve", "--listen", ENGINE, "--shards", "1", "--cores", "0", "--data-dir"])
            .arg(data.path())
            .args(more);
        Server::start(&mut command, ENGINE, Some(data))
    }

    /// One run of the load generator; its JSON is kept beside the report.
    fn load(&self, name: &str, server: &Server, load: &[String]) -> Result<Value, Failure> {
        let json = self.out.join(format!("{name}.json"));
        let mut command = Command::new(self.target.join("loadgen"));
        command.args(load).args(["--addr", server.address, "--cores", "1", "--server-pid"]);
        command.arg(server.child.id().to_string()).arg("--json").arg(&json);
        run(command.stdout(Stdio::null()))?;
        Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
    }

    fn fanout(&self, members: u32, rest: &[&str]) -> Vec<String> {
        let members = members.to_string();
        let seconds = format!("{}s", self.args.seconds);
        let base = ["fanout", "--members", &members, "--duration", &seconds];
        base.iter().chain(rest).map(ToString::to_string).collect()
    }

    fn closed_loop(&mut self, members: u32, window: u32) -> Result<(), Failure> {
        let load = self.fanout(members, &["--window", &window.to_string()]);
        let (floors, engines) = self.pairs(&format!("closed-{members}-{window}"), &load)?;
        self.say(&format!("\n## Closed loop, {members} members, {window} in flight, 128 bytes\n"));
        self.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.say("| | CPU per delivery, ns | deliveries/s, million | server busy | load busy |");
        self.say("| --- | --- | --- | --- | --- |");
        for (name, runs) in [("floor", &floors), ("engine", &engines)] {
            let cpu = spread(runs, keys::CPU).show(1);
            let rate = scaled(runs, keys::RATE, 1e-6).show(2);
            let (server, load) =
                (spread(runs, keys::SERVER_BUSY).show(2), spread(runs, keys::LOAD_BUSY).show(2));
            self.say(&format!("| {name} | {cpu} | {rate} | {server} | {load} |"));
        }
        self.ratio("CPU per delivery", &floors, &engines, keys::CPU);
        Ok(())
    }

    fn open_loop(&mut self, members: u32, rate: u32) -> Result<(), Failure> {
        let load = self.fanout(members, &["--rate", &rate.to_string()]);
        let (floors, engines) = self.pairs(&format!("open-{members}-{rate}"), &load)?;
        self.say(&format!("\n## Open loop, {members} members, {rate} broadcasts/s, 128 bytes\n"));
        self.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.say("Delivery latency from the intended start, ms:\n");
        self.say("| | p50 | p99 | p99.9 | publish answered, p50 |");
        self.say("| --- | --- | --- | --- | --- |");
        for (name, runs) in [("floor", &floors), ("engine", &engines)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let row = format!(
                "| {name} | {} | {} | {} | {} |",
                ms(keys::P50),
                ms(keys::P99),
                ms(keys::P999),
                ms(keys::ACK_P50)
            );
            self.say(&row);
        }
        self.ratio("p99", &floors, &engines, keys::P99);
        Ok(())
    }

    /// The engine's ratio to the floor pair by pair, beside the floor's spread against itself.
    fn ratio(&mut self, what: &str, floors: &[Value], engines: &[Value], key: &str) {
        let (floor, engine) = (values(floors, key), values(engines, key));
        let ratio = Spread::of(engine.iter().zip(&floor).map(|(e, f)| e / f).collect());
        let itself =
            Spread::of(floor.iter().zip(floor.iter().skip(1)).map(|(a, b)| b / a).collect());
        self.say(&format!(
            "\n{what}, second / first row by pairs: **{}**; first row against itself, run by run: {}",
            ratio.show(3),
            itself.show(3)
        ));
    }

    fn idle(&mut self, members: u32) -> Result<(), Failure> {
        self.say(&format!("\n## {members} idle joined members\n"));
        let members = members.to_string();
        let base = ["connect", "--members", &members, "--warmup", "12s", "--duration", "30s"];
        let load: Vec<_> = base.iter().map(ToString::to_string).collect();
        self.say(&format!("`loadgen {}`\n", load.join(" ")));
        self.say("| heartbeat | server bytes per member | kernel bytes per member, sockets' memory and slab | CPU while idle, % of a core | wake-ups per s |");
        self.say("| --- | --- | --- | --- | --- |");
        for heartbeat in ["30000", "0"] {
            let mut runs = Vec::new();
            for run in 0..self.args.pairs.min(3) {
                let server = self.start_engine(&[
                    "--heartbeat-ms",
                    heartbeat,
                    "--connections-max",
                    "19000",
                ])?;
                runs.push(self.load(&format!("idle-{heartbeat}-{run}"), &server, &load)?);
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
            self.say(&row);
        }
        Ok(())
    }

    fn stalled(&mut self, members: u32) -> Result<(), Failure> {
        // 4 KiB, so that the stalled member's socket is full after a second.
        let load = self.fanout(members, &["--rate", "100", "--payload", "4096"]);
        let with = self.fanout(members, &["--rate", "100", "--payload", "4096", "--stalled", "1"]);
        let long = ["--stall-timeout-ms", "600000", "--stats-interval", "1s"];
        let (mut without_runs, mut with_runs, mut pinned) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..self.args.pairs {
            for (name, load, runs) in
                [("none", &load, &mut without_runs), ("one", &with, &mut with_runs)]
            {
                let server = self.start_engine(&long)?;
                runs.push(self.load(&format!("stall-{name}-{pair}"), &server, load)?);
                if name == "one" {
                    pinned.push(server.last_figure("pinned_bytes"));
                }
            }
            eprint!(".");
        }
        eprintln!();
        self.say(&format!(
            "\n## One member that reads nothing beside {members} that do, 100 broadcasts/s\n"
        ));
        self.say(&format!("`loadgen {}`, never disconnected\n", with.join(" ")));
        self.say("| | p50 of the others, ms | p99, ms | server RSS at the end, MiB |");
        self.say("| --- | --- | --- | --- |");
        for (name, runs) in [("without", &without_runs), ("with", &with_runs)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let rss = scaled(runs, keys::RSS, 1.0 / f64::from(1 << 20)).show(1);
            let row = format!("| {name} | {} | {} | {} |", ms(keys::P50), ms(keys::P99), rss);
            self.say(&row);
        }
        let pinned = Spread::of(pinned.iter().map(|v| v / 1024.0).collect()).show(1);
        self.say(&format!("\nPinned by the stalled member's write at the end, KiB: {pinned}"));
        self.ratio("p99, with / without", &without_runs, &with_runs, keys::P99);
        Ok(())
    }
}

/// Two loads on engines that are started anew, in turn.
impl Bench {
    fn turns(
        &self,
        name: &str,
        [first, second]: [&[String]; 2],
    ) -> Result<(Vec<Value>, Vec<Value>), Failure> {
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for pair in 0..self.args.pairs {
            for (which, load, runs) in [("a", first, &mut firsts), ("b", second, &mut seconds)] {
                let server = self.start_engine(&[])?;
                runs.push(self.load(&format!("{name}-{which}-{pair}"), &server, load)?);
            }
            eprint!(".");
        }
        eprintln!();
        Ok((firsts, seconds))
    }

    fn catch_up(&mut self, members: u32) -> Result<(), Failure> {
        let (members, seconds) = (members.to_string(), format!("{}s", self.args.seconds));
        let load = |readers: &str| -> Vec<String> {
            let base = ["catchup", "--members", &members, "--rate", "100", "--duration", &seconds];
            let readers = ["--readers", readers, "--history-bytes", "256MiB"];
            base.iter().chain(&readers).map(ToString::to_string).collect()
        };
        let (without, with) = (load("0"), load("500"));
        let (without_runs, with_runs) = self.turns("catchup", [&without, &with])?;
        self.say(&format!("\n## 500 members catching up from disk beside {members} live ones\n"));
        self.say(&format!("`loadgen {}`\n", with.join(" ")));
        self.say("| | p50 of the live ones, ms | p99, ms | read from disk, MiB/s |");
        self.say("| --- | --- | --- | --- |");
        for (name, runs) in [("without", &without_runs), ("with", &with_runs)] {
            let ms = |key| scaled(runs, key, 1e-3).show(2);
            let read = spread(runs, keys::CATCH_UP).show(1);
            self.say(&format!("| {name} | {} | {} | {read} |", ms(keys::P50), ms(keys::P99)));
        }
        self.ratio("p99, with / without", &without_runs, &with_runs, keys::P99);
        Ok(())
    }

    fn receipts(&mut self, members: u32) -> Result<(), Failure> {
        let plain = self.fanout(members, &["--window", "64"]);
        let asked = self.fanout(members, &["--window", "64", "--durable", "--receipts", "100"]);
        let (without_runs, with_runs) = self.turns("receipts", [&plain, &asked])?;
        self.say(&format!(
            "\n## Durable members and a receipt of all for each message, {members} members, 64 in flight\n"
        ));
        self.say(&format!("`loadgen {}`\n", asked.join(" ")));
        self.say("| | CPU per delivery, ns | deliveries/s, million | receipt, p50, ms |");
        self.say("| --- | --- | --- | --- |");
        for (name, runs) in [("live, no acks", &without_runs), ("durable, receipts", &with_runs)] {
            let (cpu, rate) = (spread(runs, keys::CPU).show(1), scaled(runs, keys::RATE, 1e-6));
            let receipt = scaled(runs, keys::RECEIPT_P50, 1e-3).show(1);
            self.say(&format!("| {name} | {cpu} | {} | {receipt} |", rate.show(2)));
        }
        self.ratio("CPU per delivery, with / without", &without_runs, &with_runs, keys::CPU);
        Ok(())
    }
}

/// Where the load generator's JSON has what is shown here.
mod keys {
    pub const CPU: &str = "/server_cpu_ns_per_delivery";
    pub const RATE: &str = "/deliveries_per_s";
    pub const SERVER_BUSY: &str = "/server_busy_cores";
    pub const LOAD_BUSY: &str = "/loadgen_busy/0";
    pub const P50: &str = "delivery corrected:/p50_us";
    pub const P99: &str = "delivery corrected:/p99_us";
    pub const P999: &str = "delivery corrected:/p999_us";
    pub const ACK_P50: &str = "ack corrected:/p50_us";
    pub const MEMBER_BYTES: &str = "/server_memory/bytes_per_member";
    pub const KERNEL_TCP: &str = "/kernel_tcp_bytes_per_member";
    pub const KERNEL_SLAB: &str = "/kernel_slab_bytes_per_member";
    pub const SLEEPS: &str = "/server_sleeps_per_s";
    pub const CATCH_UP: &str = "/catch_up/mib_per_s";
    pub const RECEIPT_P50: &str = "receipt:/p50_us";
    pub const RSS: &str = "/server_memory/end";
}

/// A value of each run. A key with a colon names a row of the latencies before it.
fn values(runs: &[Value], key: &str) -> Vec<f64> {
    let value = |run: &Value| match key.split_once(':') {
        Some((what, key)) => {
            let rows = run.pointer("/latency")?.as_array()?;
            rows.iter().find(|row| row["what"] == what)?.pointer(key)?.as_f64()
        }
        None => run.pointer(key)?.as_f64(),
    };
    runs.iter().map(|run| value(run).unwrap_or(f64::NAN)).collect()
}

fn scaled(runs: &[Value], key: &str, by: f64) -> Spread {
    Spread::of(values(runs, key).into_iter().map(|value| value * by).collect())
}

fn spread(runs: &[Value], key: &str) -> Spread {
    Spread::of(values(runs, key))
}

/// A server under measurement; ended by SIGTERM.
struct Server {
    child: Child,
    address: &'static str,
    log: tempfile::NamedTempFile,
    _data: Option<tempfile::TempDir>,
}

impl Server {
    fn start(
        command: &mut Command,
        address: &'static str,
        data: Option<tempfile::TempDir>,
    ) -> Result<Self, Failure> {
        let log = tempfile::NamedTempFile::new()?;
        let child = command.stdout(Stdio::null()).stderr(log.reopen()?).spawn()?;
        let mut server = Self { child, address, log, _data: data };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            if Instant::now() > deadline || server.child.try_wait()?.is_some() {
                let log = std::fs::read_to_string(server.log.path())?;
                return Err(format!("nothing accepts on {address}: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The next segment is zero-written right after the start; that is not measured.
        std::thread::sleep(Duration::from_millis(500));
        Ok(server)
    }
}

impl Server {
    /// The last value of a figure in the server's log.
    fn last_figure(&self, name: &str) -> f64 {
        let log = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        let at = log.rfind(&format!("{name}=")).map(|at| &log[at + name.len() + 1..]);
        let digits = at.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(f64::NAN)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
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

/// Builds the floor and finds its binary, whose name has a hash in it.
fn floor_binary(cargo: &str) -> Result<PathBuf, Failure> {
    let args = ["bench", "--bench", "floor", "--no-run", "--message-format=json"];
    let built = Command::new(cargo).args(args).stderr(Stdio::inherit()).output()?;
    let names: BTreeMap<String, PathBuf> = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let name = message.pointer("/target/name")?.as_str()?.to_owned();
            Some((name, PathBuf::from(message.pointer("/executable")?.as_str()?)))
        })
        .collect();
    names.get("floor").cloned().ok_or_else(|| "the floor could not be built".into())
}
