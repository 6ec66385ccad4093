//! What the benches that compare two loads share: servers that are started anew for each run,
//! runs in turn, and their medians. Everything is kept: the table, and the JSON of each run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub type Failure = Box<dyn std::error::Error>;

/// The first of the two ports that servers under measurement listen on.
const PORT: u16 = 7461;
/// How long a server may take until it accepts.
const START: Duration = Duration::from_secs(20);

/// A value of every run of one side: median, least and greatest.
pub struct Spread {
    pub median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let (half, last) = (values.len() / 2, values.len().saturating_sub(1));
        // Of an even number it is between the two in the middle.
        Self { median: (at(last / 2) + at(half.min(last))) / 2.0, min: at(0), max: at(last) }
    }

    pub fn show(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.min, self.max)
    }
}

/// A measurement: the binaries, where results go, and the table so far.
pub struct Bench {
    /// Interleaved pairs per figure.
    pub pairs: usize,
    /// Measured seconds of each run.
    pub seconds: u32,
    target: PathBuf,
    floor: PathBuf,
    out: PathBuf,
    report: String,
}

impl Bench {
    /// Builds everything, unless `BIN` names a folder with `fanfare`, `loadgen` and `floor` that
    /// were built before. Without `out`, results go to `benches/runs/<date>-<host>/`.
    pub fn new(pairs: usize, seconds: u32, out: Option<PathBuf>) -> Result<Self, Failure> {
        let (target, floor) = match built_before() {
            Some(bin) => (bin.clone(), bin.join("floor")),
            None => build()?,
        };
        let out = out.unwrap_or_else(runs_folder);
        std::fs::create_dir_all(&out)?;
        Ok(Self { pairs, seconds, target, floor, out, report: String::new() })
    }

    /// A measurement that starts no servers.
    pub fn alone(rounds: usize, out: Option<PathBuf>) -> Result<Self, Failure> {
        let out = out.unwrap_or_else(runs_folder);
        std::fs::create_dir_all(&out)?;
        let (target, floor, report) = (PathBuf::new(), PathBuf::new(), String::new());
        Ok(Self { pairs: rounds, seconds: 0, target, floor, out, report })
    }

    /// Where the servers are, and their logs.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Adds a line to the table.
    pub fn say(&mut self, line: &str) {
        println!("{line}");
        self.report.push_str(line);
        self.report.push('\n');
    }

    /// Keeps the table so far under this name.
    pub fn keep(&self, name: &str) -> Result<PathBuf, Failure> {
        std::fs::write(self.out.join(name), &self.report)?;
        Ok(self.out.clone())
    }

    /// What was measured, with what, where and when, and in how many pairs.
    pub fn header(&mut self, title: &str, bench: &str, more: &[&str]) {
        let pairs = format!("{} pairs, {} s for each run", self.pairs, self.seconds);
        self.title(title, bench, &[&[&pairs[..]], more].concat());
    }

    /// The same of what is not done in pairs.
    pub fn title(&mut self, title: &str, bench: &str, more: &[&str]) {
        self.say(&format!("# {title}\n"));
        self.say(&format!("- command: `{}`", command(bench)));
        machine().iter().for_each(|line| self.say(line));
        more.iter().for_each(|line| self.say(&format!("- {line}")));
    }

    /// The floor on core 0.
    pub fn start_floor(&self, more: &[&str]) -> Result<Server, Failure> {
        let address = address(0);
        let mut command = Command::new(&self.floor);
        command.args(["--listen", &address, "--core", "0"]).args(more);
        Server::start(&mut command, address, None, START)
    }

    /// An engine with one shard on core 0, unless `more` says otherwise. Its other threads are on the
    /// cores of its shards too.
    pub fn start_engine(&self, more: &[&str]) -> Result<Server, Failure> {
        self.start_engine_in(&self.target, more)
    }

    /// The same with its log in this folder.
    pub fn start_engine_in(&self, folder: &Path, more: &[&str]) -> Result<Server, Failure> {
        let data = tempfile::tempdir_in(folder)?;
        let given = more.iter().skip_while(|flag| **flag != "--cores").nth(1);
        let mut command = on_cores(given.unwrap_or(&"0"), &self.target.join("fanfare"));
        let address = address(1);
        let has = |flag| more.contains(&flag);
        command.args(["serve", "--listen", &address, "--data-dir"]).arg(data.path()).args(more);
        for (flag, value) in [("--shards", "1"), ("--cores", "0")] {
            if !has(flag) {
                command.args([flag, value]);
            }
        }
        Server::start(&mut command, address, Some(data), START)
    }

    /// One run of the load generator; its JSON is kept beside the table.
    pub fn load(&self, name: &str, server: &Server, load: &[String]) -> Result<Value, Failure> {
        let json = self.out.join(format!("{name}.json"));
        let mut command = Command::new(self.target.join("loadgen"));
        run(server.under(command.args(load), &json))?;
        Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
    }

    /// The same with the socket writes of the server, which has to be stopped for that, and how many
    /// messages went into each.
    pub fn load_and_writes(
        &self,
        name: &str,
        mut server: Server,
        load: &[String],
    ) -> Result<Value, Failure> {
        let mut run = self.load(name, &server, load)?;
        server.stop();
        let writes = server.last_figure("writes");
        let deliveries = run.pointer("/verified_deliveries").and_then(Value::as_f64);
        run["server_writes"] = writes.into();
        run["messages_per_write"] = (deliveries.unwrap_or(f64::NAN) / writes).into();
        std::fs::write(self.out.join(format!("{name}.json")), format!("{run:#}\n"))?;
        Ok(run)
    }

    /// A run of which nothing is kept.
    pub fn unmeasured(&self, server: &Server, load: &[String]) -> Result<(), Failure> {
        let mut command = Command::new(self.target.join("loadgen"));
        command.args(load).args(["--addr", &server.address]).stdout(Stdio::null());
        run(&mut command)
    }

    /// The result of a run that was made before.
    pub fn kept(&self, name: &str) -> Option<Value> {
        let json = std::fs::read_to_string(self.out.join(format!("{name}.json"))).ok()?;
        serde_json::from_str(&json).ok()
    }

    /// Two loads on engines that are started anew, in turn.
    pub fn turns(
        &self,
        name: &str,
        [first, second]: [&[String]; 2],
    ) -> Result<(Vec<Value>, Vec<Value>), Failure> {
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for pair in 0..self.pairs {
            for (which, load, runs) in [("a", first, &mut firsts), ("b", second, &mut seconds)] {
                let server = self.start_engine(&[])?;
                runs.push(self.load(&format!("{name}-{which}-{pair}"), &server, load)?);
            }
            eprint!(".");
        }
        eprintln!();
        Ok((firsts, seconds))
    }

    /// Arguments of a fan-out to so many members.
    pub fn fanout(&self, members: u32, rest: &[&str]) -> Vec<String> {
        let members = members.to_string();
        let seconds = format!("{}s", self.seconds);
        let base = ["fanout", "--members", &members, "--duration", &seconds];
        base.iter().chain(rest).map(ToString::to_string).collect()
    }

    /// Arguments of messages to groups with so many members in all.
    pub fn groups(&self, members: u32, groups: u32, rest: &[&str]) -> Vec<String> {
        let (members, groups) = (members.to_string(), groups.to_string());
        let seconds = format!("{}s", self.seconds);
        let base = ["groups", "--members", &members, "--groups", &groups, "--duration", &seconds];
        base.iter().chain(rest).map(ToString::to_string).collect()
    }

    /// The second side's ratio to the first one, pair by pair, beside the first one's spread
    /// against itself.
    pub fn ratio(&mut self, what: &str, floors: &[Value], engines: &[Value], key: &str) {
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
}

/// What `cargo bench` was told, but for where results go and what was there already.
fn command(bench: &str) -> String {
    let mut args = std::env::args().skip(1);
    let mut shown = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" | "--resume" | "--skip-build" => {}
            "--out" => drop(args.next()),
            _ => shown.push(arg),
        }
    }
    let with = if shown.is_empty() { "" } else { " -- " };
    format!("cargo bench --bench {bench}{with}{}", shown.join(" "))
}

/// A program whose threads all stay on these cores, as `taskset` takes them.
pub fn on_cores(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program);
    command
}

fn address(nth: u16) -> String {
    let first = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(PORT);
    format!("127.0.0.1:{}", first + nth)
}

/// Where the load generator's JSON has what is shown here.
pub mod keys {
    pub const CPU: &str = "/server_cpu_ns_per_delivery";
    pub const RATE: &str = "/deliveries_per_s";
    pub const SERVER_BUSY: &str = "/server_busy_cores";
    pub const LOAD_BUSY: &str = "/loadgen_busy/0";
    pub const P50: &str = "delivery corrected:/p50_us";
    pub const P99: &str = "delivery corrected:/p99_us";
    pub const P999: &str = "delivery corrected:/p999_us";
    pub const ACK_P50: &str = "ack corrected:/p50_us";
    pub const COMPLETION_P50: &str = "completion corrected:/p50_us";
    pub const COMPLETION_MAX: &str = "completion corrected:/max_us";
    pub const MEMBER_BYTES: &str = "/server_memory/bytes_per_member";
    pub const KERNEL_TCP: &str = "/kernel_tcp_bytes_per_member";
    pub const KERNEL_SLAB: &str = "/kernel_slab_bytes_per_member";
    pub const SLEEPS: &str = "/server_sleeps_per_s";
    pub const CATCH_UP: &str = "/catch_up/mib_per_s";
    pub const RECEIPT_P50: &str = "receipt:/p50_us";
    pub const PER_WRITE: &str = "/messages_per_write";
    pub const RSS: &str = "/server_memory/end";
}

/// A value of each run. A key with a colon names a row of the latencies before it.
pub fn values(runs: &[Value], key: &str) -> Vec<f64> {
    let value = |run: &Value| match key.split_once(':') {
        Some((what, key)) => {
            let rows = run.pointer("/latency")?.as_array()?;
            rows.iter().find(|row| row["what"] == what)?.pointer(key)?.as_f64()
        }
        None => run.pointer(key)?.as_f64(),
    };
    runs.iter().map(|run| value(run).unwrap_or(f64::NAN)).collect()
}

pub fn scaled(runs: &[Value], key: &str, by: f64) -> Spread {
    Spread::of(values(runs, key).into_iter().map(|value| value * by).collect())
}

pub fn spread(runs: &[Value], key: &str) -> Spread {
    Spread::of(values(runs, key))
}

/// A server under measurement; ended by SIGTERM.
pub struct Server {
    child: Child,
    address: String,
    log: tempfile::NamedTempFile,
    _data: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts it and waits until it accepts.
    pub fn start(
        command: &mut Command,
        address: String,
        data: Option<tempfile::TempDir>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let log = tempfile::NamedTempFile::new()?;
        command.stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?);
        let mut server = Self { child: command.spawn()?, address, log, _data: data };
        let deadline = Instant::now() + timeout;
        while std::net::TcpStream::connect(&server.address).is_err() {
            if Instant::now() > deadline || server.child.try_wait()?.is_some() {
                return Err(
                    format!("nothing accepts on {}: {}", server.address, server.said()).into()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // What a server does right after its start, such as zero-writing the next segment, is
        // not measured.
        std::thread::sleep(Duration::from_millis(500));
        if server.child.try_wait()?.is_some() {
            return Err(format!("something else has {}: {}", server.address, server.said()).into());
        }
        Ok(server)
    }

    /// Where it accepts.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts a load generator on core 1 against it; its result goes to `json`.
    pub fn under<'a>(&self, load: &'a mut Command, json: &Path) -> &'a mut Command {
        load.args(["--addr", &self.address, "--cores", "1", "--server-pid"]);
        load.arg(self.child.id().to_string()).arg("--json").arg(json).stdout(Stdio::null())
    }

    /// What it has written to its output.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// The last value of a figure in the server's log.
    pub fn last_figure(&self, name: &str) -> f64 {
        let log = self.said();
        let at = log.rfind(&format!("{name}=")).map(|at| &log[at + name.len() + 1..]);
        let digits = at.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(f64::NAN)
    }

    /// Ends it in good order; its last figures are in its log then.
    pub fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let pid = self.child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

pub fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// Builds everything: the folder of the binaries, and the floor.
fn build() -> Result<(PathBuf, PathBuf), Failure> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    run(Command::new(&cargo).args(["build", "--release", "--workspace"]))?;
    Ok((target_folder()?, floor_binary(&cargo)?))
}

/// The folder that `BIN` names, with programs that were built before.
pub fn built_before() -> Option<PathBuf> {
    std::env::var_os("BIN").map(PathBuf::from)
}

/// Where the binaries are that were built with this one.
pub fn target_folder() -> Result<PathBuf, Failure> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().nth(2).ok_or("the benchmark does not lie in a target folder")?;
    Ok(target.to_owned())
}

/// Where results of today on this machine are kept.
pub fn runs_folder() -> PathBuf {
    let host = output("hostname", &[]);
    Path::new("benches/runs").join(format!("{}-{host}", output("date", &["+%F"])))
}

/// With what, where and when something was measured.
pub fn machine() -> [String; 3] {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("?");
    let clean = output("git", &["status", "--porcelain", "-uno"]).is_empty();
    let changed = if clean { "" } else { " (changed)" };
    [
        format!("- commit: {}{changed}", output("git", &["rev-parse", "--short=12", "HEAD"])),
        format!("- kernel: {}, CPU: {cpu} x {}", output("uname", &["-r"]), output("nproc", &[])),
        format!("- date: {}", output("date", &["-u", "+%F %H:%M UTC"])),
    ]
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
