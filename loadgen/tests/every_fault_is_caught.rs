//! Whatever a server does wrong, the run ends with exit code 1 and says what it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fault, Run, broadcaster, loadgen};

fn run(fault: Fault) -> Run {
    let addr = broadcaster(fault, 0);
    let run = loadgen(addr, "fanout --members 12 --publishers 1 --window 8 --level durable");
    assert_eq!(run.code, 1, "{fault:?} went unnoticed");
    assert!(!run.report["violations"]["details"].as_array().unwrap().is_empty());
    run
}

#[test]
fn message_lost_by_one_member_is_caught() {
    assert_eq!(run(Fault::Lose).found("lost"), 1);
    assert!(run(Fault::Lose).stderr.contains("m000003"));
}

#[test]
fn messages_missing_at_the_end_are_caught() {
    let run = run(Fault::LoseTheRest);
    assert!(run.found("lost") > 0);
    assert!(run.stderr.contains("m000003"));
}

#[test]
fn message_delivered_twice_is_caught() {
    let run = run(Fault::Duplicate);
    assert_eq!(run.found("duplicate"), 1);
    assert_eq!(run.found("lost"), 0);
}

#[test]
fn messages_in_another_order_are_caught() {
    let run = run(Fault::Reorder);
    assert_eq!(run.found("reordered"), 1);
    assert_eq!(run.found("lost"), 0);
}

#[test]
fn flipped_bit_is_caught() {
    assert!(run(Fault::Corrupt).found("corrupt") >= 1);
    assert!(run(Fault::CorruptForAll).found("corrupt") >= 1);
}

#[test]
fn message_lost_for_all_is_caught_without_a_hole_in_the_sequence() {
    assert!(run(Fault::LoseForAll).found("lost") >= 1);
}

#[test]
fn message_that_was_given_two_numbers_is_caught() {
    assert!(run(Fault::DuplicateForAll).found("duplicate") >= 1);
}

#[test]
fn order_of_a_publisher_that_was_not_kept_is_caught() {
    // The first of the two shows as a message whose predecessor did not come.
    assert!(run(Fault::ReorderForAll).found("lost") >= 1);
}

#[test]
fn members_that_disagree_on_the_order_are_caught_also_across_threads() {
    for threads in [1, 2] {
        let addr = broadcaster(Fault::TwoOrders, 0);
        let line = format!("fanout --members 12 --publishers 2 --window 8 --threads {threads}");
        let run = loadgen(addr, &line);
        assert_eq!(run.code, 1, "with {threads} threads");
        if threads == 2 {
            // Each thread for itself saw nothing wrong.
            assert!(run.stderr.contains("elsewhere"), "{}", run.stderr);
        }
    }
}

#[test]
fn stamp_that_goes_back_is_caught() {
    assert!(run(Fault::StampBack).found("corrupt") >= 1);
}

#[test]
fn answer_with_another_sequence_number_is_caught() {
    assert!(run(Fault::WrongSeq).found("wrong_answer") >= 1);
}

#[test]
fn missing_answer_is_caught() {
    assert!(run(Fault::NoAnswer).found("unanswered") >= 1);
}

#[test]
fn second_answer_is_caught() {
    assert!(run(Fault::TwoAnswers).found("wrong_answer") >= 1);
}

#[test]
fn lower_level_than_asked_for_is_caught() {
    assert!(run(Fault::WrongLevel).found("wrong_answer") >= 1);
}

#[test]
fn refused_publish_is_caught_and_its_text_shown() {
    let run = run(Fault::Refuse);
    assert!(run.found("unanswered") >= 1);
    assert!(run.stderr.contains("no room on disk"));
}

#[test]
fn announced_gap_is_loss() {
    assert!(run(Fault::Gap).found("lost") >= 1);
}

#[test]
fn closed_connection_is_caught() {
    assert!(run(Fault::Close).found("closed") >= 1);
}

#[test]
fn message_that_a_returning_member_does_not_get_is_caught() {
    let line = "herd --members 12 --rate 200 --drop-after 50ms --away 100ms";
    let run = loadgen(broadcaster(Fault::ForgetWhileAway, 0), line);
    assert_eq!(run.code, 1);
    assert_eq!(run.found("lost"), 1, "{}", run.stderr);
    assert!(run.stderr.contains("m000003"));
}

#[test]
fn bytes_that_are_no_frames_are_caught() {
    assert!(run(Fault::Garbage).found("corrupt") >= 1);
}

#[test]
fn receipts_that_do_not_come_or_come_early_are_caught() {
    let line = "fanout --members 8 --publishers 2 --window 8 --durable --receipts 100";
    for (fault, kind) in [(Fault::NoReceipt, "unanswered"), (Fault::EarlyReceipt, "wrong_answer")] {
        let run = loadgen(broadcaster(fault, 0), line);
        assert_eq!(run.code, 1, "{fault:?}");
        assert!(run.found(kind) >= 1, "{fault:?}");
    }
}
