//! A server whose delays are known: the figures say them, and say which of two clocks they are by.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{DELAY, Fault, LONG_DELAY, STALL, broadcaster, loadgen_for};

/// A histogram of three digits is within one in a thousand.
const PRECISION: f64 = 0.001;
/// What waking up two threads and loopback may add to a delay, on a machine that others use too.
const WAKING_MS: f64 = 4.0;

fn is_about(ms: f64, known: std::time::Duration, what: &str) {
    let known = known.as_secs_f64() * 1e3;
    assert!(ms >= known * (1.0 - PRECISION), "{what} is {ms} ms, the server took {known} ms");
    assert!(ms <= known * (1.0 + PRECISION) + WAKING_MS, "{what} is {ms} ms, not {known} ms");
}

#[test]
fn known_delays_come_out_within_the_precision_of_the_histogram() {
    // Far enough apart that no message waits for the one before.
    let line = "fanout --members 4 --rate 15";
    let run = loadgen_for(broadcaster(Fault::KnownDelays, 0), line, "2s");
    assert_eq!(run.code, 0, "{}", run.stderr);
    for what in ["delivery", "delivery corrected", "completion corrected", "ack corrected"] {
        is_about(run.latency_ms(what, "p50_us"), DELAY, what);
        // A tenth is slow, so the 99th of a hundred is.
        let slow = run.latency_ms(what, "p99_us");
        assert!(slow >= LONG_DELAY.as_secs_f64() * 1e3 * (1.0 - PRECISION), "{what}: {slow} ms");
    }
    let mean = run.latency_ms("delivery", "mean_us");
    let known = (DELAY.mul_f64(0.9) + LONG_DELAY.mul_f64(0.1)).as_secs_f64() * 1e3;
    assert!((mean - known).abs() < WAKING_MS, "mean {mean} ms, should be {known} ms");
}

#[test]
fn stall_of_the_server_shows_in_the_corrected_latency_only() {
    // One in flight, as a client that waits for its answer: while the server stands still nothing
    // is sent, so that by the clock of the actual sends one message in hundreds was slow.
    let line = "fanout --members 4 --rate 200 --in-flight-max 1";
    let run = loadgen_for(broadcaster(Fault::Stall, 0), line, "2s");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let stall = STALL.as_secs_f64() * 1e3;
    let (corrected, uncorrected) =
        (run.latency_ms("delivery corrected", "p99_us"), run.latency_ms("delivery", "p99_us"));
    assert!(corrected > 0.8 * stall, "corrected p99 {corrected} ms hides a stall of {stall} ms");
    assert!(uncorrected < 0.4 * stall, "uncorrected p99 {uncorrected} ms: nothing to correct");
    // It is there in both, as the longest one.
    assert!(run.latency_ms("delivery", "max_us") >= stall * (1.0 - PRECISION));
    // And nothing that was due was left out.
    assert_eq!(run.report["published"], 420);
}
