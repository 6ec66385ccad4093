//! Repeats, comparisons and sweeps end with one result and plots that need nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{Fault, broadcaster};
use serde_json::Value;

const SHORT: &str = "--warmup 50ms --duration 200ms --interval 50ms";

/// Runs the program in `dir` with these arguments.
fn loadgen(dir: &Path, args: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .current_dir(dir)
        .args(args)
        .args(["--json", "result.json", "--html", "page.html", "--svg", "plots"])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read(dir.join("result.json")).unwrap();
    (output, serde_json::from_slice(&text).unwrap())
}

/// Each of the plots is there, also in the page, and nothing is loaded from elsewhere.
fn has_plots(dir: &Path, names: &[&str]) {
    let page = std::fs::read_to_string(dir.join("page.html")).unwrap();
    for name in names {
        let svg = std::fs::read_to_string(dir.join(format!("plots/{name}.svg"))).unwrap();
        assert!(svg.contains("<polyline") || svg.contains("<rect"), "{name} is empty");
        assert!(svg.contains("prefers-color-scheme:dark"), "{name} is for light pages only");
        assert!(page.contains(&format!("<figure id=\"{name}\"><svg")), "{name} is not in the page");
    }
    for outside in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}

#[test]
fn one_run_is_plotted_from_its_json_too() {
    let dir = tempfile::tempdir().unwrap();
    let addr = broadcaster(Fault::Nothing, 0).to_string();
    let line = format!("fanout --members 5 --rate 200 --addr {addr} {SHORT}");
    let args: Vec<&str> = line.split(' ').collect();
    let (output, result) = loadgen(dir.path(), &args);
    assert!(output.status.success());
    assert!(result["over_time"].as_array().unwrap().len() >= 3);
    has_plots(dir.path(), &["percentiles", "over-time"]);
    let again = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .current_dir(dir.path())
        .args(["plot", "result.json", "--svg", "later"])
        .status()
        .unwrap();
    assert!(again.success());
    let read = |file: &str| std::fs::read(dir.path().join(file)).unwrap();
    assert_eq!(read("plots/percentiles.svg"), read("later/percentiles.svg"));
}

#[test]
fn comparison_has_both_sides_and_one_against_itself() {
    let dir = tempfile::tempdir().unwrap();
    let side = |members: u32| {
        let addr = broadcaster(Fault::Nothing, 0);
        format!("fanout --members {members} --window 2 --addr {addr} {SHORT}")
    };
    let (output, result) =
        loadgen(dir.path(), &["compare", "--a", &side(3), "--b", &side(12), "--pairs", "2"]);
    assert!(output.status.success());
    let labels: Vec<&str> =
        result["runs"].as_array().unwrap().iter().map(|r| r["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["A", "B", "A again", "A", "B", "A again"]);
    let summary = &result["summary"][0];
    assert!(summary["ratio"]["median"].as_f64().unwrap() > 0.0);
    assert!(summary["a_against_itself"]["median"].as_f64().unwrap() > 0.0);
    has_plots(dir.path(), &["percentiles", "over-time", "cpu-per-delivery"]);
}

#[test]
fn finding_in_one_of_several_runs_fails_all() {
    let dir = tempfile::tempdir().unwrap();
    let addr = broadcaster(Fault::Lose, 0);
    let args = format!("fanout --members 5 --window 2 --addr {addr} --drain-timeout 500ms {SHORT}");
    let (output, result) = loadgen(dir.path(), &["repeat", &args, "--runs", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(result["passed"], false);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("FAILED"), "{text}");
}

#[test]
fn sweep_finds_the_rate_that_a_slow_server_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let addr = broadcaster(Fault::KnownDelays, 0);
    // 12 ms a message on average: 83/s at most.
    let args = format!("fanout --members 2 --addr {addr} --warmup 100ms --duration 1s");
    let (output, result) = loadgen(
        dir.path(),
        &["sweep", &args, "--from", "10", "--factor", "4", "--refine", "1", "--p99-max", "150ms"],
    );
    assert!(output.status.success());
    let knee = result["knee"]["rate"].as_f64().unwrap();
    assert!((10.0..83.0).contains(&knee), "{knee}");
    has_plots(dir.path(), &["throughput-p99", "percentiles"]);
}

#[test]
fn durability_has_a_row_for_each_rate_and_level() {
    let dir = tempfile::tempdir().unwrap();
    let addr = broadcaster(Fault::Nothing, 0);
    let args = format!("fanout --members 2 --addr {addr} {SHORT}");
    let (output, result) = loadgen(dir.path(), &["durability", &args, "--rates", "50,100"]);
    assert!(output.status.success());
    assert_eq!(result["runs"].as_array().unwrap().len(), 4);
    has_plots(dir.path(), &["durability"]);
}
