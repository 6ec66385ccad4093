//! The same run several times: medians and ranges.

use clap::Args;
use serde_json::json;

use super::{Results, Runner, shown};
use crate::error::LoadError;
use crate::figures::{FIGURES, Spread};

/// Options of `loadgen repeat`.
#[derive(Debug, Args)]
pub struct RepeatOptions {
    /// Arguments of the run, e.g. "fanout --spawn --members 1000 --rate 100".
    pub args: String,
    /// How often.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    #[command(flatten)]
    pub results: Results,
}

/// Makes the runs and shows them.
pub fn run(o: &RepeatOptions) -> Result<bool, LoadError> {
    let mut runner = Runner::new()?;
    for n in 0..o.runs {
        let report = runner.run("run", &o.args, json!({ "round": n }))?;
        let values = FIGURES.iter().filter_map(|f| Some((f.name, (f.of)(&report)?)));
        let values: Vec<String> = values.map(|(name, v)| format!("{name} {v:.1}")).collect();
        println!("run {n}: {}", values.join(", "));
    }
    let mut lines = vec![format!("{:<26} median (lowest..highest) of {} runs", "", o.runs)];
    let mut summary = Vec::new();
    for figure in &FIGURES {
        let spread = Spread::of(runner.reports("run").filter_map(figure.of));
        lines.push(format!("{:<26} {}", figure.name, shown(spread, 1)));
        summary.push(json!({ "figure": figure.name, "spread": spread }));
    }
    let text = lines.join("\n");
    println!("{text}");
    runner.finish("repeat", json!({ "summary": summary }), &text, &o.results)
}
