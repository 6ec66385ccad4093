//! A server that keeps the protocol passes, in every workload, however its bytes are cut.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use common::{Fault, broadcaster, command, loadgen};
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

fn passes(line: &str, piece: usize) -> serde_json::Value {
    let run = loadgen(broadcaster(Fault::Nothing, piece), line);
    assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    assert_eq!(run.report["passed"], true);
    run.report
}

#[test]
fn every_delivery_is_counted_and_timed() {
    let report = passes("fanout --members 20 --publishers 3 --window 16", 0);
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!(number("published") > 0);
    assert_eq!(number("verified_deliveries"), 20 * number("published"));
    assert_eq!(number("answered"), number("published"));
    let latency = report["latency"].as_array().unwrap();
    for what in ["delivery", "delivery corrected", "ack", "completion", "join"] {
        assert!(latency.iter().any(|l| l["what"] == what && l["count"].as_u64() > Some(0)));
    }
}

#[test]
fn frames_may_be_cut_anywhere() {
    for piece in [1, 7, 61, 999] {
        passes("fanout --members 4 --window 2 --payload 40", piece);
        passes("groups --groups 3 --groups-per-member 2 --members 6 --payload 7", piece);
    }
}

#[test]
fn payloads_of_every_kind_are_verified() {
    for payload in [1, 23, 24, 25, 1024, 65_536] {
        passes(&format!("fanout --members 4 --window 2 --payload {payload}"), 0);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    std::fs::write(&file, "one\ntwo and more\n\nthree\n").unwrap();
    passes(&format!("fanout --members 4 --payload-file {}", file.display()), 0);
}

#[test]
fn groups_with_several_memberships_and_threads_pass() {
    for threads in [1, 2, 3] {
        passes(
            &format!(
                "groups --groups 7 --groups-per-member 3 --members 15 --publishers 3 --threads {threads} --window 4"
            ),
            0,
        );
    }
    passes("groups --groups 3 --members 9 --publishers 7 --acks", 0);
}

#[test]
fn groups_of_drawn_sizes_pass() {
    let line = "groups --sizes zipf --groups 20 --members 40 --publishers 3 --seed 5 --threads 2";
    let report = passes(line, 0);
    assert_eq!(report["sizes"]["seed"], 5);
    assert_eq!(report["sizes"]["largest"], 40);
    assert_eq!(report["sizes"]["smallest"], 2);
}

#[test]
fn open_loop_keeps_its_schedule() {
    let report = passes("fanout --members 5 --publishers 2 --rate 200", 0);
    // 100 ms of warm-up and 300 ms measured.
    assert_eq!(report["published"].as_u64().unwrap(), 80);
}

#[test]
fn stalled_members_hold_nobody_up() {
    let report = passes("fanout --members 5 --stalled 2 --window 4", 0);
    assert_eq!(report["stalled"], 2);
}

#[test]
fn slow_members_read_at_their_rate_and_the_others_are_verified() {
    let line = "slow --members 10 --slow-percent 30 --slow-rate 10000 --rate 1000 --payload 1000";
    let begun = Instant::now();
    let report = passes(line, 0);
    let ms = begun.elapsed().as_millis() as u64;
    assert_eq!((report["members"].as_u64(), report["stalled"].as_u64()), (Some(7), Some(3)));
    // Three of 10,000 bytes/s for 400 ms and a little, at most for as long as the run took, each ahead
    // by a piece of 100 ms.
    let (bytes, most) = (report["stalled_bytes"].as_u64().unwrap(), 3 * (10 * ms + 1_000));
    assert!((3_000..=most).contains(&bytes), "{bytes} bytes of 1.2 MB that were sent, in {ms} ms");
    let none = passes("slow --members 10 --slow-percent 30 --window 4", 0);
    assert_eq!(none["stalled"], 3);
}

#[test]
fn herd_comes_back_and_gets_what_it_missed() {
    for threads in [1, 2] {
        let line = format!(
            "herd --members 30 --rate 200 --drop-after 50ms --away 100ms --threads {threads}"
        );
        let report = passes(&line, 0);
        let herd = &report["herd"];
        assert_eq!((herd["back"].as_u64(), herd["caught_up"].as_u64()), (Some(30), Some(30)));
        assert!(herd["caught_up_s"].as_f64() >= herd["back_s"].as_f64());
        assert_eq!(report["verified_deliveries"], 30 * report["published"].as_u64().unwrap());
        let latency = report["latency"].as_array().unwrap();
        for what in ["back", "caught-up corrected"] {
            assert!(latency.iter().any(|l| l["what"] == what && l["count"] == 30), "{what}");
        }
        // What was due when they were gone came when they were back.
        let delivery = latency.iter().find(|l| l["what"] == "delivery corrected").unwrap();
        assert!(delivery["max_us"].as_f64().unwrap() > 90e3);
    }
}

#[test]
fn members_that_acknowledge_make_receipts_come() {
    for percent in [1, 60, 100] {
        let line =
            format!("fanout --members 10 --publishers 2 --window 8 --durable --receipts {percent}");
        let report = passes(&line, 0);
        assert_eq!(report["receipts"], report["published"]);
        let latency = report["latency"].as_array().unwrap();
        assert!(latency.iter().any(|l| l["what"] == "receipt" && l["count"].as_u64() > Some(0)));
    }
}

#[test]
fn connect_reports_join_latency() {
    let report = passes("connect --members 50 --rate 500", 0);
    assert_eq!(report["latency"][0]["what"], "join");
    assert_eq!(report["latency"][0]["count"], 50);
    assert!(report["join_s"].as_f64().unwrap() > 0.09);
    let storm = passes("connect --members 300 --storm", 0);
    assert_eq!(storm["latency"][0]["count"], 300);
}

#[test]
fn histogram_files_are_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (hgrm, hlog) = (dir.path().join("run"), dir.path().join("run.hlog"));
    passes(
        &format!(
            "soak --groups 4 --members 10 --rate 300 --threads 2 --interval 100ms --hgrm {} --hlog {}",
            hgrm.display(),
            hlog.display()
        ),
        0,
    );
    let text = std::fs::read_to_string(dir.path().join("run.delivery-corrected.hgrm")).unwrap();
    assert!(text.contains("1.000000000000") && text.contains("#[Mean"));
    let log = std::fs::read(hlog).unwrap();
    let intervals = IntervalLogIterator::new(&log)
        .filter(
            |e| matches!(e, Ok(LogEntry::Interval(i)) if i.tag().unwrap().as_str() == "delivery"),
        )
        .count();
    assert!(intervals >= 3, "{intervals} intervals");
    assert!(IntervalLogIterator::new(&log).all(|e| e.is_ok()));
}

#[test]
fn table_shows_what_was_found() {
    let addr = broadcaster(Fault::Nothing, 0);
    let output =
        command(&format!("fanout --members 5 --addr {addr} --warmup 50ms --duration 200ms"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for part in ["VERIFIED", "delivery corrected", "1/(1-Percentile)", "saturated side"] {
        assert!(text.contains(part), "{text}");
    }
}
