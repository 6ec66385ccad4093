//! What durability costs the publisher: the latency of its answer against the offered rate, with
//! the levels in turn at each rate.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Results, Runner};
use crate::args::LevelArg;
use crate::error::LoadError;
use crate::figures::latency;

/// Options of `loadgen durability`.
#[derive(Debug, Args)]
pub struct DurabilityOptions {
    /// Arguments of each run but for its --rate and --level.
    #[arg(default_value = "fanout --spawn --members 10 --publishers 10")]
    pub args: String,
    /// Messages per second that are offered, in turn.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000,10000,20000")]
    pub rates: Vec<f64>,
    /// Levels at each of them, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "memory,durable")]
    pub levels: Vec<LevelArg>,
    #[command(flatten)]
    pub results: Results,
}

/// Makes the runs and shows them.
pub fn run(o: &DurabilityOptions) -> Result<bool, LoadError> {
    let mut runner = Runner::new()?;
    let mut lines = vec![format!(
        "{:>10} {:<8} {:>10} {:>10} {:>10} {:>10} {:>16} {:>10}",
        "offered/s",
        "level",
        "done/s",
        "ack p50",
        "ack p99",
        "ack p99.9",
        "p99 uncorrected",
        "server CPU"
    )];
    println!("publisher's answer in us, from when the message was due\n{}", lines[0]);
    for rate in &o.rates {
        for level in &o.levels {
            let level =
                level.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
            let args = format!("{} --rate {rate} --level {level}", o.args);
            let said = json!({ "rate": rate, "level": level });
            let report = runner.run(&format!("{level} {rate}/s"), &args, said)?;
            let line = row(*rate, &level, &report);
            println!("{line}");
            lines.push(line);
        }
    }
    let text = lines.join("\n");
    runner.finish("durability", json!({ "args": o.args }), &text, &o.results)
}

fn row(rate: f64, level: &str, report: &Value) -> String {
    let us = |what, quantile| latency(report, what, quantile).unwrap_or(f64::NAN);
    format!(
        "{rate:>10} {level:<8} {:>10.0} {:>10.1} {:>10.1} {:>10.1} {:>16.1} {:>9.0}%",
        report["broadcasts_per_s"].as_f64().unwrap_or(f64::NAN),
        us("ack corrected", "p50_us"),
        us("ack corrected", "p99_us"),
        us("ack corrected", "p999_us"),
        us("ack", "p99_us"),
        report["server_busy_cores"].as_f64().unwrap_or(f64::NAN) * 100.0
    )
}
