//! Other systems get the same load and the same verification: a clean run passes however its bytes
//! are cut, and whatever a server does wrong is named.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::peers::{Speaks, peer};
use common::{Fault, Run, loadgen, loadgen_for};

fn run(speaks: Speaks, fault: Fault) -> Run {
    let line = format!("fanout {} --members 12 --window 8", speaks.flags());
    // A finding ends the run, so this is only how long a slow machine may take to get there.
    let run = loadgen_for(peer(speaks, fault, 0), &line, duration(fault));
    assert_eq!(run.code, 1, "{fault:?} of {speaks:?} went unnoticed");
    assert!(!run.report["violations"]["details"].as_array().unwrap().is_empty());
    run
}

fn duration(fault: Fault) -> &'static str {
    match fault {
        // Seen at the end only.
        Fault::Lose | Fault::LoseTheRest | Fault::LoseForAll | Fault::NoAnswer => "1s",
        _ => "5s",
    }
}

fn passes(speaks: Speaks, fault: Fault, piece: usize, line: &str) -> serde_json::Value {
    let run = loadgen(peer(speaks, fault, piece), &format!("{line} {}", speaks.flags()));
    assert_eq!(run.code, 0, "{speaks:?}, {line}: {}", run.stderr);
    run.report
}

/// Each protocol at the same time: most of a run is waiting.
fn each(test: impl Fn(Speaks) + Sync) {
    std::thread::scope(|scope| {
        for speaks in Speaks::ALL {
            let test = &test;
            scope.spawn(move || test(speaks));
        }
    });
}

#[test]
fn every_delivery_is_counted_and_timed() {
    each(|speaks| {
        let report = passes(speaks, Fault::Nothing, 0, "fanout --members 20 --window 16");
        let number = |key: &str| report[key].as_u64();
        let published = number("published").unwrap();
        assert!(published > 0);
        assert_eq!(number("verified_deliveries"), Some(20 * published));
        let latency = report["latency"].as_array().unwrap();
        let has = |what| latency.iter().any(|l| l["what"] == what && l["count"].as_u64() > Some(0));
        for what in ["delivery", "delivery corrected", "completion", "join"] {
            assert!(has(what), "{speaks:?}: {what}");
        }
        // Who answers nothing has no figure, rather than a zero.
        assert_eq!(has("ack"), speaks.answers(), "{speaks:?}");
        assert_eq!(number("answered"), speaks.answers().then_some(published), "{speaks:?}");
        assert_eq!(report["publish_answer"].is_string(), speaks.answers());
    });
}

#[test]
fn frames_may_be_cut_anywhere() {
    each(|speaks| {
        for piece in [1, 7, 61] {
            passes(speaks, Fault::Nothing, piece, "fanout --members 4 --window 2 --payload 40");
            passes(speaks, Fault::Nothing, piece, "fanout --members 3 --window 2 --payload 300");
        }
    });
}

#[test]
fn groups_publishers_and_threads_pass() {
    each(|speaks| {
        let line = "groups --groups 3 --members 9 --publishers 6 --window 2 --threads 2";
        passes(speaks, Fault::Nothing, 0, line);
        passes(speaks, Fault::Nothing, 0, "fanout --members 6 --publishers 2 --rate 200");
        passes(speaks, Fault::Nothing, 0, "connect --members 20");
        if speaks != Speaks::Ws {
            let line = "groups --groups 5 --groups-per-member 3 --members 10 --window 2";
            passes(speaks, Fault::Nothing, 0, line);
            passes(speaks, Fault::Nothing, 0, "soak --groups 4 --members 8 --rate 300");
        }
    });
}

#[test]
fn payloads_of_every_kind_are_verified() {
    each(|speaks| {
        for payload in [1, 24, 126, 65_536] {
            let line = format!("fanout --members 4 --window 2 --payload {payload}");
            passes(speaks, Fault::Nothing, 0, &line);
        }
    });
}

#[test]
fn publishers_messages_may_come_in_any_order_between_them() {
    each(|speaks| {
        let line = "fanout --members 12 --publishers 2 --window 8";
        passes(speaks, Fault::TwoOrders, 0, line);
        passes(speaks, Fault::TwoOrders, 0, &format!("{line} --threads 2"));
    });
}

#[test]
fn message_lost_by_one_member_is_caught() {
    each(|speaks| {
        assert_eq!(run(speaks, Fault::Lose).found("lost"), 1);
        assert!(run(speaks, Fault::LoseTheRest).found("lost") > 0);
    });
}

#[test]
fn message_delivered_twice_is_caught() {
    each(|speaks| {
        let one = run(speaks, Fault::Duplicate);
        assert_eq!((one.found("duplicate"), one.found("lost")), (1, 0));
        assert_eq!(run(speaks, Fault::DuplicateForAll).found("duplicate"), 12);
    });
}

#[test]
fn messages_of_a_publisher_in_another_order_are_caught() {
    each(|speaks| {
        let one = run(speaks, Fault::Reorder);
        assert_eq!((one.found("reordered"), one.found("lost")), (1, 0));
        assert_eq!(run(speaks, Fault::ReorderForAll).found("reordered"), 12);
    });
}

#[test]
fn flipped_bit_is_caught() {
    each(|speaks| {
        assert_eq!(run(speaks, Fault::Corrupt).found("corrupt"), 1);
        assert_eq!(run(speaks, Fault::CorruptForAll).found("corrupt"), 12);
    });
}

#[test]
fn message_lost_for_all_is_caught() {
    each(|speaks| {
        assert_eq!(run(speaks, Fault::LoseForAll).found("lost"), 12);
    });
}

#[test]
fn connection_that_ends_or_talks_nonsense_is_caught() {
    each(|speaks| {
        assert_eq!(run(speaks, Fault::Close).found("closed"), 1);
        let garbage = run(speaks, Fault::Garbage);
        assert_eq!((garbage.found("corrupt"), garbage.found("closed")), (1, 1));
    });
}

#[test]
fn answers_that_are_missing_or_too_many_or_wrong_are_caught() {
    for speaks in Speaks::ALL.into_iter().filter(|speaks| speaks.answers()) {
        assert!(run(speaks, Fault::TwoAnswers).found("wrong_answer") >= 1);
        assert_eq!(run(speaks, Fault::NoAnswer).found("unanswered"), 1);
    }
    // The number of receivers is one too low.
    assert_eq!(run(Speaks::Redis, Fault::WrongSeq).found("wrong_answer"), 1);
}

#[test]
fn what_a_target_does_not_have_is_refused() {
    for line in [
        "fanout --target redis --durable",
        "fanout --target nats --level durable",
        "fanout --target mqtt --spawn",
        "fanout --target redis --qos 1",
        "catchup --target mqtt",
        "groups --target ws --groups 3 --members 9",
        "groups --target ws --groups 3 --members 9 --publishers 4",
        "groups --target ws --groups 5 --groups-per-member 2 --members 9 --publishers 5",
        "fanout --target nats --publishers 2 --payload 8",
    ] {
        let run = common::command(&format!("{line} --drain-timeout 1s"));
        assert_eq!(run.status.code(), Some(2), "{line}");
    }
}
