//! What realtime groups feel of a bulk flood: pairs of runs on one server, realtime groups at
//! a low rate alone and then beside a flood that saturates their shard.
//!
//! Flood and measurement are processes of their own, and the flood's gives way: else the
//! figures would show how the load generator shares its core, not how the server does.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use clap::{Args, Parser};
use serde_json::{Value, json};

use crate::args::{Cli, Task, parse_duration};
use crate::error::LoadError;
use crate::figures::Spread;
use crate::spawn::Server;

/// Time between the start of the flood and the measurement beside it, its warm-up included.
const FLOOD_LEAD: Duration = Duration::from_secs(3);
/// What joining and draining of the measurement may take while the flood goes on.
const FLOOD_REST: Duration = Duration::from_secs(4);

const CLASSES: &str = r#"
[[class]]
name = "realtime"
groups = ["realtime/*"]
priority = "realtime"

[[class]]
name = "bulk"
groups = ["bulk/*"]
priority = "bulk"
"#;

/// Options of `loadgen priority`.
#[derive(Debug, Args)]
pub struct PriorityOptions {
    /// Pairs of runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    /// Realtime groups.
    #[arg(long, default_value_t = 4)]
    pub groups: u32,
    /// Members of them together.
    #[arg(long, default_value_t = 40)]
    pub members: u32,
    /// Realtime messages per second over all groups, on a fixed schedule.
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    /// Bytes of each of them.
    #[arg(long, default_value_t = 128)]
    pub payload: u32,
    /// Bulk groups.
    #[arg(long, default_value_t = 1)]
    pub bulk_groups: u32,
    /// Members of them together.
    #[arg(long, default_value_t = 2000)]
    pub bulk_members: u32,
    /// Messages in flight in each bulk group.
    #[arg(long, default_value_t = 2)]
    pub bulk_window: u32,
    /// Bytes of each of them.
    #[arg(long, default_value_t = 512)]
    pub bulk_payload: u32,
    /// Measured time of each run.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Start the server without classes, to see what they are good for.
    #[arg(long)]
    pub without_classes: bool,
    /// Shards of the server.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Cores of the server.
    #[arg(long, default_value = "0")]
    pub server_cores: String,
    /// Core of the measurement and of the flood [default: the last one].
    #[arg(long)]
    pub core: Option<usize>,
    /// Further argument for the server; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// The server's binary [default: `fanfare` beside this one].
    #[arg(long)]
    pub server_bin: Option<PathBuf>,
    /// Where the server's temporary data directory is made [default: the system's].
    #[arg(long)]
    pub server_data_parent: Option<PathBuf>,
    /// Write the results as JSON, with the report of every run.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Makes the pairs and shows them. Returns whether everything was verified.
pub fn run(o: &PriorityOptions) -> Result<bool, LoadError> {
    let scratch = tempfile::tempdir().map_err(LoadError::file(std::env::temp_dir()))?;
    let server = start_server(o, scratch.path())?;
    let mut pairs = Vec::new();
    let mut passed = true;
    println!("{}", head());
    for n in 0..o.pairs {
        let alone = Load::start(o, scratch.path(), &server, Kind::Realtime)?.finish()?;
        let flood = Load::start(o, scratch.path(), &server, Kind::Bulk)?;
        thread::sleep(FLOOD_LEAD);
        let beside = Load::start(o, scratch.path(), &server, Kind::Realtime)?.finish()?;
        let flood = flood.finish()?;
        passed &= [&alone, &beside, &flood].iter().all(|report| report["passed"] == true);
        println!("{}", row(n, &alone, &beside, &flood));
        let _ = std::io::stdout().flush();
        pairs.push(json!({ "alone": alone, "beside": beside, "flood": flood }));
    }
    println!("{}", summary(&pairs, passed));
    if let Some(path) = &o.json {
        let result = json!({
            "workload": "priority",
            "classes": !o.without_classes,
            "server_command": server.command,
            "passed": passed,
            "pairs": pairs,
        });
        let text = format!("{result:#}\n");
        std::fs::write(path, text).map_err(LoadError::file(path))?;
    }
    server.stop()?;
    Ok(passed)
}

fn start_server(o: &PriorityOptions, scratch: &Path) -> Result<Server, LoadError> {
    let config = scratch.join("classes.toml");
    let classes = if o.without_classes { "" } else { CLASSES };
    std::fs::write(&config, classes).map_err(LoadError::file(&config))?;
    let mut line = vec!["loadgen".to_owned(), "fanout".to_owned(), "--spawn".to_owned()];
    line.push(format!("--shards={}", o.shards));
    line.push(format!("--server-cores={}", o.server_cores));
    line.push("--server-arg=--config".to_owned());
    line.push(format!("--server-arg={}", config.display()));
    line.extend(o.server_arg.iter().map(|arg| format!("--server-arg={arg}")));
    let path = |flag: &str, path: &Option<PathBuf>| {
        path.as_ref().map(|path| format!("{flag}={}", path.display()))
    };
    line.extend(path("--server-bin", &o.server_bin));
    line.extend(path("--server-data-parent", &o.server_data_parent));
    let cli = Cli::try_parse_from(line).map_err(|e| LoadError::Usage(e.to_string()))?;
    match &cli.task {
        Task::Run(workload) => Server::start(workload.options()),
        _ => Err(LoadError::Usage("a server has no pairs".to_owned())),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Realtime,
    Bulk,
}

/// A load generator that runs.
struct Load {
    child: Child,
    report: PathBuf,
}

impl Load {
    fn start(
        o: &PriorityOptions,
        scratch: &Path,
        server: &Server,
        kind: Kind,
    ) -> Result<Self, LoadError> {
        let own = std::env::current_exe().map_err(LoadError::file("loadgen"))?;
        let mut command = Command::new(own);
        let report = scratch.join(if kind == Kind::Bulk { "bulk.json" } else { "realtime.json" });
        command.args(["groups", "--level", "durable", "--warmup", "1s"]);
        command.args(["--addr", &server.addr.to_string()]);
        command.args(["--server-pid", &server.pid().to_string()]);
        command.arg("--json").arg(&report);
        if let Some(core) = o.core {
            command.args(["--cores", &core.to_string()]);
        }
        let (groups, members, payload, duration) = match kind {
            Kind::Realtime => {
                command.args(["--publishers", "2", "--rate", &o.rate.to_string()]);
                (o.groups, o.members, o.payload, o.duration)
            }
            Kind::Bulk => {
                command.args(["--background", "--publishers", "4"]);
                command.args(["--window", &o.bulk_window.to_string()]);
                let duration = o.duration + FLOOD_LEAD + FLOOD_REST;
                (o.bulk_groups, o.bulk_members, o.bulk_payload, duration)
            }
        };
        let name = if kind == Kind::Bulk { "bulk" } else { "realtime" };
        // Groups of an earlier run keep their messages; each run has its own.
        let unique = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        command.args(["--group-prefix", &format!("{name}/{unique:x}")]);
        command.args(["--groups", &groups.to_string(), "--members", &members.to_string()]);
        command.args(["--payload", &payload.to_string()]);
        command.args(["--duration", &format!("{}s", duration.as_secs_f64())]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(LoadError::file("loadgen"))?;
        Ok(Self { child, report })
    }

    /// Waits for its end; its report.
    fn finish(mut self) -> Result<Value, LoadError> {
        let status = self.child.wait().map_err(LoadError::file("loadgen"))?;
        if status.code().is_none_or(|code| code > 1) {
            let what = format!("a load generator ended with {status}");
            return Err(LoadError::Usage(what));
        }
        let text = std::fs::read(&self.report).map_err(LoadError::file(&self.report))?;
        serde_json::from_slice(&text)
            .map_err(|e| LoadError::File { path: self.report.clone(), source: e.into() })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Without effect on one that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A latency of a report in microseconds, from the intended start.
fn latency(report: &Value, quantile: &str) -> f64 {
    let of = report["latency"].as_array().and_then(|all| {
        all.iter().find(|l| l["what"] == "delivery corrected").map(|l| &l[quantile])
    });
    of.and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn ratio(alone: &Value, beside: &Value) -> f64 {
    latency(beside, "p99_us") / latency(alone, "p99_us")
}

fn head() -> String {
    format!(
        "{:<6} {:>10} {:>10} {:>12} {:>12} {:>7} {:>16} {:>12} {:>9}",
        "pair",
        "alone p50",
        "alone p99",
        "beside p50",
        "beside p99",
        "ratio",
        "bulk deliv./s",
        "server busy",
        "verified"
    )
}

fn row(n: u32, alone: &Value, beside: &Value, flood: &Value) -> String {
    let verified = [alone, beside, flood].iter().all(|report| report["passed"] == true);
    format!(
        "{:<6} {:>10.1} {:>10.1} {:>12.1} {:>12.1} {:>7.2} {:>16.0} {:>11.0}% {:>9}",
        n,
        latency(alone, "p50_us"),
        latency(alone, "p99_us"),
        latency(beside, "p50_us"),
        latency(beside, "p99_us"),
        ratio(alone, beside),
        flood["deliveries_per_s"].as_f64().unwrap_or(f64::NAN),
        beside["server_busy_cores"].as_f64().unwrap_or(f64::NAN) * 100.0,
        if verified { "yes" } else { "NO" },
    )
}

fn summary(pairs: &[Value], passed: bool) -> String {
    let ratios = pairs.iter().map(|pair| ratio(&pair["alone"], &pair["beside"]));
    let differences = pairs
        .iter()
        .map(|pair| latency(&pair["beside"], "p99_us") - latency(&pair["alone"], "p99_us"));
    let verdict = if passed {
        "VERIFIED: every member got every message once, in order, unchanged"
    } else {
        "FAILED: see the reports of the runs (--json)"
    };
    format!(
        "median of the ratios of p99 {:.2}, of the differences {:.0} us (latencies in us, from the intended start)\n{verdict}",
        median(ratios),
        median(differences)
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_compared_by_its_corrected_p99() {
        let report = |p99: f64| {
            json!({ "passed": true, "latency": [
                { "what": "delivery", "p50_us": 1.0, "p99_us": 1.0 },
                { "what": "delivery corrected", "p50_us": 50.0, "p99_us": p99 },
            ], "deliveries_per_s": 5.0, "server_busy_cores": 1.0 })
        };
        let (alone, beside) = (report(100.0), report(150.0));
        assert!(row(0, &alone, &beside, &report(9.0)).contains(" 1.50 "));
        let pairs = [json!({ "alone": alone, "beside": beside })];
        assert!(summary(&pairs, true).contains("p99 1.50, of the differences 50 us"));
        assert!(summary(&pairs, false).contains("FAILED"));
    }
}
