//! A server whose delays are known: the figures say them, and say which of two clocks they are by.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{DELAY, Fault, LONG_DELAY, STALL, broadcaster, loadgen_for};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

/// A histogram of three digits is within one in a thousand.
const PRECISION: f64 = 0.001;
/// What waking up two threads and loopback add to the fastest of a hundred messages. The others may
/// have waited for a core on a machine that is used by others too, so they have no upper bound here.
const WAKING_MS: f64 = 2.0;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The shortest time in a histogram of the report.
fn fastest_ms(report: &serde_json::Value, name: &str) -> f64 {
    let bytes = STANDARD.decode(report["histograms"][name].as_str().unwrap()).unwrap();
    let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
    histogram.min() as f64 / 1e6
}

#[test]
fn known_delays_come_out_within_the_precision_of_the_histogram() {
    // Far enough apart that no message waits for the one before.
    let line = "fanout --members 4 --rate 15";
    let run = loadgen_for(broadcaster(Fault::KnownDelays, 0), line, "2s");
    assert_eq!(run.code, 0, "{}", run.stderr);
    for what in ["delivery", "completion", "ack"] {
        for corrected in [false, true] {
            let name = if corrected { format!("{what}-corrected") } else { what.to_owned() };
            let fastest = fastest_ms(&run.report, &name);
            assert!(fastest >= ms(DELAY) * (1.0 - PRECISION), "{name}: {fastest} ms");
            assert!(fastest <= ms(DELAY) * (1.0 + PRECISION) + WAKING_MS, "{name}: {fastest} ms");
            // A tenth is slow, so the 99th of a hundred is.
            let slow = run.latency_ms(&name.replace('-', " "), "p99_us");
            assert!(slow >= ms(LONG_DELAY) * (1.0 - PRECISION), "{name}: p99 {slow} ms");
        }
    }
    let mean = run.latency_ms("delivery", "mean_us");
    let known = ms(DELAY.mul_f64(0.9) + LONG_DELAY.mul_f64(0.1));
    assert!(mean >= known * (1.0 - PRECISION), "mean {mean} ms, should be {known} ms");
}

#[test]
fn what_was_due_and_could_not_be_sent_is_counted() {
    // One in flight at 10 ms each, and 200 a second offered: most of it is never sent, so no latency
    // can show it.
    let line = "fanout --members 4 --rate 200 --in-flight-max 1";
    let run = loadgen_for(broadcaster(Fault::KnownDelays, 0), line, "300ms");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let count = |key: &str| run.report[key].as_u64().unwrap();
    assert!(count("unsent") > 20, "{} of {}", count("unsent"), count("published"));
    assert_eq!(count("unsent") + count("published"), 80);
}

#[test]
fn stall_of_the_server_shows_in_the_corrected_latency_only() {
    // One in flight, as a client that waits for its answer: while the server stands still nothing
    // is sent, so that by the clock of the actual sends one message in hundreds was slow.
    let line = "fanout --members 4 --rate 200 --in-flight-max 1";
    let run = loadgen_for(broadcaster(Fault::Stall, 0), line, "2s");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let stall = ms(STALL);
    let (corrected, uncorrected) =
        (run.latency_ms("delivery corrected", "p99_us"), run.latency_ms("delivery", "p99_us"));
    assert!(corrected > 0.8 * stall, "corrected p99 {corrected} ms hides a stall of {stall} ms");
    assert!(uncorrected < 0.4 * stall, "uncorrected p99 {uncorrected} ms: nothing to correct");
    // It is there in both, as the longest one.
    assert!(run.latency_ms("delivery", "max_us") >= stall * (1.0 - PRECISION));
    // And nothing that was due was left out.
    assert_eq!(run.report["published"], 420);
}
