//! Plots of a result, made from its JSON alone, so that one of last year can be plotted too.

mod axis;
mod chart;
mod html;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::error::LoadError;
use crate::figures::{self, Spread};
use crate::hdr_files::decoded;
use axis::{Axis, Scale};
use chart::{Bar, Frame, Line};

/// Lines of the percentile plot for each half of the distance to 100 %.
const TICKS_PER_HALF: u32 = 10;

/// Options of `loadgen plot`.
#[derive(Debug, Args)]
pub struct PlotOptions {
    /// A result that was written with --json.
    pub result: PathBuf,
    #[command(flatten)]
    pub to: Pages,
}

/// Where plots go.
#[derive(Debug, Default, Args)]
pub struct Pages {
    /// Write the result with its plots as one page that needs no other file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each plot to a file of its own in this directory.
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
}

/// A plot.
pub struct Plot {
    /// Its file, without the ending.
    pub name: &'static str,
    /// What it shows.
    pub svg: String,
}

/// Plots a result that was kept.
pub fn run(o: &PlotOptions) -> Result<bool, LoadError> {
    if o.to.html.is_none() && o.to.svg.is_none() {
        return Err(LoadError::Usage("say where the plots should go: --html or --svg".to_owned()));
    }
    let text = std::fs::read(&o.result).map_err(LoadError::file(&o.result))?;
    let result: Value = serde_json::from_slice(&text)
        .map_err(|e| LoadError::File { path: o.result.clone(), source: e.into() })?;
    write(&result, &o.to)?;
    Ok(true)
}

/// Writes the pages that are asked for.
pub fn write(result: &Value, to: &Pages) -> Result<(), LoadError> {
    if to.html.is_none() && to.svg.is_none() {
        return Ok(());
    }
    let plots = plots(result)
        .map_err(|e| LoadError::Usage(format!("the result cannot be plotted: {e}")))?;
    if let Some(dir) = &to.svg {
        std::fs::create_dir_all(dir).map_err(LoadError::file(dir))?;
        for plot in &plots {
            put(&dir.join(format!("{}.svg", plot.name)), &plot.svg)?;
        }
    }
    if let Some(path) = &to.html {
        put(path, &html::page(result, &plots))?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), LoadError> {
    std::fs::write(path, text).map_err(LoadError::file(path))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn plots(result: &Value) -> Result<Vec<Plot>, Failure> {
    let mut plots = Vec::new();
    let mut add = |name, svg: String| {
        // A result of old may lack what a plot is made of.
        if !svg.is_empty() {
            plots.push(Plot { name, svg });
        }
    };
    match result["workload"].as_str() {
        Some("sweep") => {
            add("throughput-p99", throughput(result)?);
            add("percentiles", percentiles_by_label(result, "delivery-corrected")?);
        }
        Some("durability") => add("durability", durability(result)?),
        Some("compare" | "repeat") => {
            add("percentiles", percentiles_by_label(result, "delivery-corrected")?);
            add("over-time", over_time_by_label(result)?);
            add("cpu-per-delivery", cpu(result)?);
        }
        _ => {
            add("percentiles", percentiles_of_one(result)?);
            if !list(&result["over_time"]).is_empty() {
                add("over-time", over_time_of_one(result)?);
            }
        }
    }
    Ok(plots)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Runs by label, in the order in which they came first.
fn by_label(result: &Value) -> Vec<(&str, Vec<&Value>)> {
    let mut all: Vec<(&str, Vec<&Value>)> = Vec::new();
    for run in list(&result["runs"]) {
        let label = run["label"].as_str().unwrap_or_default();
        match all.iter_mut().find(|(l, _)| *l == label) {
            Some((_, runs)) => runs.push(&run["report"]),
            None => all.push((label, vec![&run["report"]])),
        }
    }
    all
}

fn merged(reports: &[&Value], name: &str) -> Option<Histogram<u64>> {
    let mut all = reports.iter().filter_map(|report| decoded(report["histograms"][name].as_str()?));
    let mut sum = all.next()?;
    for other in all {
        sum.add(&other).ok()?;
    }
    Some(sum)
}

/// 1/(1-p) and milliseconds.
fn curve(name: String, histogram: &Histogram<u64>) -> Line {
    let points = histogram
        .iter_quantiles(TICKS_PER_HALF)
        .filter(|v| v.quantile_iterated_to() < 1.0)
        .map(|v| {
            let inverse = 1.0 / (1.0 - v.quantile_iterated_to());
            (inverse.min(histogram.len() as f64), v.value_iterated_to() as f64 / 1e6)
        })
        .collect();
    Line { name, points, dots: false }
}

fn percentiles(title: &str, lines: &[Line]) -> Result<String, Failure> {
    let points = lines.iter().flat_map(|line| &line.points);
    let frame = Frame {
        title,
        x: ("percentile", Axis::new(Scale::Percentile, points.clone().map(|p| p.0))),
        y: ("latency in ms", Axis::fitting(points.map(|p| p.1))),
    };
    chart::lines(&frame, lines)
}

fn percentiles_of_one(result: &Value) -> Result<String, Failure> {
    let shown = [
        ("delivery-corrected", "delivery, from when it was due"),
        ("delivery", "delivery, from when it was sent"),
        ("completion-corrected", "last member, from when it was due"),
        ("ack-corrected", "publisher's answer, from when it was due"),
        ("receipt-corrected", "receipt, from when it was due"),
        ("join-corrected", "join"),
        ("back-corrected", "back in the group after the drop"),
        ("caught-up-corrected", "everything missed is there"),
    ];
    let published = result["published"].as_u64().unwrap_or(0) > 0;
    let lines: Vec<Line> = shown
        .iter()
        .filter(|(name, _)| !published || *name != "join-corrected")
        .filter_map(|(name, text)| {
            let histogram = merged(&[result], name)?;
            Some(curve((*text).to_owned(), &histogram))
        })
        .collect();
    percentiles(&format!("{}: latency by percentile", workload(result)), &lines)
}

fn percentiles_by_label(result: &Value, name: &str) -> Result<String, Failure> {
    let lines: Vec<Line> = by_label(result)
        .into_iter()
        .filter_map(|(label, reports)| Some(curve(label.to_owned(), &merged(&reports, name)?)))
        .collect();
    let title = format!("{}: delivery latency, from when it was due", workload(result));
    percentiles(&title, &lines)
}

fn workload(result: &Value) -> &str {
    result["workload"].as_str().unwrap_or("run")
}

fn over_time(title: &str, lines: &[Line]) -> Result<String, Failure> {
    let points = lines.iter().flat_map(|line| &line.points);
    let frame = Frame {
        title,
        x: ("seconds of the measured time", Axis::new(Scale::Linear, points.clone().map(|p| p.0))),
        y: ("delivery latency in ms", Axis::fitting(points.map(|p| p.1))),
    };
    chart::lines(&frame, lines)
}

fn series(report: &Value, key: &str, name: String) -> Line {
    let points = list(&report["over_time"])
        .iter()
        .filter_map(|p| Some((p["at_s"].as_f64()?, p[key].as_f64()? / 1e3)))
        // Where nothing came there is no latency, least of all a short one.
        .filter(|(_, ms)| *ms > 0.0)
        .collect();
    Line { name, points, dots: false }
}

fn over_time_of_one(result: &Value) -> Result<String, Failure> {
    let lines = [("p50_us", "p50"), ("p99_us", "p99"), ("max_us", "longest")]
        .map(|(key, name)| series(result, key, name.to_owned()));
    over_time(&format!("{}: latency over time", workload(result)), &lines)
}

fn over_time_by_label(result: &Value) -> Result<String, Failure> {
    let lines: Vec<Line> = by_label(result)
        .into_iter()
        .map(|(label, reports)| series(reports[0], "p99_us", format!("{label}, p99")))
        .collect();
    over_time(&format!("{}: latency over time, first run of each", workload(result)), &lines)
}

fn throughput(result: &Value) -> Result<String, Failure> {
    let mut by_quantile = BTreeMap::from([("p50_us", Vec::new()), ("p99_us", Vec::new())]);
    for run in list(&result["runs"]) {
        let report = &run["report"];
        let Some(x) = report["deliveries_per_s"].as_f64() else { continue };
        for (quantile, points) in &mut by_quantile {
            if let Some(us) = figures::latency(report, "delivery corrected", quantile) {
                points.push((x, us / 1e3));
            }
        }
    }
    let mut lines: Vec<Line> = by_quantile
        .into_iter()
        .rev()
        .map(|(quantile, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line { name: quantile.trim_end_matches("_us").to_owned(), points, dots: true }
        })
        .collect();
    let x = Axis::new(Scale::Linear, lines.iter().flat_map(|l| &l.points).map(|p| p.0));
    if let Some(bound) = result["p99_max_us"].as_f64() {
        let points = vec![(0.0, bound / 1e3), (x.end(), bound / 1e3)];
        lines.push(Line { name: "bound of p99".to_owned(), points, dots: false });
    }
    if let (Some(x), Some(us)) =
        (result["knee"]["deliveries_per_s"].as_f64(), result["knee"]["p99_us"].as_f64())
    {
        lines.push(Line { name: "knee".to_owned(), points: vec![(x, us / 1e3)], dots: true });
    }
    let y = Axis::fitting(lines.iter().flat_map(|l| &l.points).map(|p| p.1));
    let frame = Frame {
        title: "sweep: delivery latency against throughput, from when it was due",
        x: ("verified deliveries per second", x),
        y: ("latency in ms", y),
    };
    chart::lines(&frame, &lines)
}

fn durability(result: &Value) -> Result<String, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    for run in list(&result["runs"]) {
        let level = run["level"].as_str().unwrap_or_default();
        let Some(rate) = run["rate"].as_f64() else { continue };
        for (quantile, short) in [("p50_us", "p50"), ("p99_us", "p99")] {
            let Some(us) = figures::latency(&run["report"], "ack corrected", quantile) else {
                continue;
            };
            let name = format!("{level}, {short}");
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((rate, us / 1e3)),
                None => lines.push(Line { name, points: vec![(rate, us / 1e3)], dots: true }),
            }
        }
    }
    let points = lines.iter().flat_map(|line| &line.points);
    let frame = Frame {
        title: "durability: the publisher's answer, from when the message was due",
        x: ("messages offered per second", Axis::new(Scale::Log, points.clone().map(|p| p.0))),
        y: ("latency in ms", Axis::fitting(points.map(|p| p.1))),
    };
    chart::lines(&frame, &lines)
}

fn cpu(result: &Value) -> Result<String, Failure> {
    let kinds = [
        ("server_cpu_ns_per_delivery", "server"),
        ("loadgen_cpu_ns_per_delivery", "load generator"),
    ];
    // The first is on top.
    let labels: Vec<_> = by_label(result).into_iter().rev().collect();
    let mut bars = Vec::new();
    for (place, (_, reports)) in labels.iter().enumerate() {
        for (kind, (key, name)) in kinds.iter().enumerate() {
            let values = reports.iter().filter_map(|report| report[*key].as_f64());
            if let Some(s) = Spread::of(values) {
                let value = (s.median, s.lowest, s.highest);
                bars.push(Bar { place, kind: (kind, name), kinds: kinds.len(), value });
            }
        }
    }
    let names = labels.iter().map(|(label, _)| (*label).to_owned()).collect();
    let frame = Frame {
        title: "CPU time per delivery: median, and range over the runs",
        // Room for the number beside, and for the shortest box.
        x: (
            "ns per delivery",
            Axis::fitting(bars.iter().flat_map(|b| [b.value.1 / 2.0, b.value.2 * 1.2])),
        ),
        y: ("", Axis::new(Scale::Names(names), std::iter::empty())),
    };
    chart::bars(&frame, &bars)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_second_in_which_nothing_came_is_no_short_latency() {
        let at = |at_s: u32, us: f64| json!({"at_s": at_s, "p99_us": us});
        let report = json!({"over_time": [at(1, 5e3), at(2, 0.0), at(3, 7e3)]});
        assert_eq!(series(&report, "p99_us", String::new()).points, [(1.0, 5.0), (3.0, 7.0)]);
    }
}
