#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::testing::{OwnedRun, SALT, commit, frame, run};
use super::*;

const A: Handle = Handle(1);
const BASE: u64 = 40_960;

fn log(commits: &[&[OwnedRun]]) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
    for (index, runs) in commits.iter().enumerate() {
        offsets.push(BASE + bytes.len() as u64);
        bytes.extend(commit(index as u64 + 1, runs));
    }
    offsets.push(BASE + bytes.len() as u64);
    (bytes, offsets)
}

fn collect_a(bytes: &[u8], from: u64, max: usize) -> Collected {
    collect(bytes, BASE, SALT, A, Seq(from), max)
}

fn frames(range: std::ops::RangeInclusive<u64>, payload: usize) -> Vec<u8> {
    range.clone().flat_map(|seq| run(1, seq, 1, payload).frames).collect()
}

#[test]
fn frames_come_as_they_were_sent_across_commits_and_other_groups() {
    let (bytes, offsets) = log(&[
        &[run(2, 1, 3, 10), run(1, 1, 2, 10)],
        &[run(2, 4, 1, 10)],
        &[run(1, 3, 2, 10), run(1, 5, 1, 10)],
    ]);
    for from in 1..=5 {
        let got = collect_a(&bytes, from, usize::MAX);
        assert_eq!((got.first, got.last, got.epoch), (Seq(from), Seq(5), Epoch(1)));
        assert_eq!(got.frames, frames(from..=5, 10));
        assert_eq!(got.end, Resume::NextAt { offset: offsets[3] });
    }
    let none = collect_a(&bytes, 6, usize::MAX);
    assert_eq!((none.frames.len(), none.first, none.last), (0, Seq(0), Seq(0)));
}

#[test]
fn chunks_of_any_size_put_together_are_the_whole_history() {
    let (bytes, _) = log(&[&[run(1, 1, 3, 100)], &[run(1, 4, 1, 100)], &[run(1, 5, 4, 100)]]);
    for max in [1, 200, 500, 1000, 10_000] {
        let (mut all, mut from, mut offset) = (Vec::new(), 1, BASE);
        while from <= 8 {
            let rest = &bytes[(offset - BASE) as usize..];
            let got = collect(rest, offset, SALT, A, Seq(from), max);
            assert_eq!(got.first, Seq(from));
            all.extend(got.frames);
            from = got.last.0 + 1;
            match got.end {
                Resume::NextAt { offset: next } => offset = next,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(all, frames(1..=8, 100), "chunks of {max}");
    }
}

#[test]
fn the_end_of_the_bytes_and_of_the_log_are_told_apart() {
    let (mut bytes, offsets) = log(&[&[run(1, 1, 1, 10)], &[run(1, 2, 1, 9000)]]);
    for cut in (4096..bytes.len()).step_by(512) {
        let got = collect_a(&bytes[..cut], 1, usize::MAX);
        let rest = cut - 4096;
        let expected = match rest {
            0 => Resume::NextAt { offset: offsets[1] },
            _ if rest < 4096 => Resume::NeedBytes { offset: offsets[1], need: 4096 },
            _ => Resume::NeedBytes { offset: offsets[1], need: bytes.len() - 4096 },
        };
        assert_eq!((got.last, got.end), (Seq(1), expected), "cut at {cut}");
    }
    bytes.extend([0; 8192]);
    assert_eq!(collect_a(&bytes, 1, usize::MAX).end, Resume::SegmentEnd);
}

#[test]
fn a_hole_is_told_after_what_comes_before_it() {
    let (bytes, offsets) = log(&[&[run(1, 1, 2, 10)], &[run(1, 5, 2, 10)]]);
    let got = collect_a(&bytes, 1, usize::MAX);
    assert_eq!((got.last, got.end), (Seq(2), Resume::NextAt { offset: offsets[1] }));
    let rest = &bytes[(offsets[1] - BASE) as usize..];
    let got = collect(rest, offsets[1], SALT, A, Seq(3), usize::MAX);
    assert!(got.frames.is_empty());
    assert_eq!(got.end, Resume::Hole { offset: offsets[1], next: Seq(5) });
    let got = collect(rest, offsets[1], SALT, A, Seq(5), usize::MAX);
    assert_eq!((got.first, got.last), (Seq(5), Seq(6)));
}

#[test]
fn a_bad_commit_is_told_after_what_comes_before_it_and_can_be_passed() {
    let (mut bytes, offsets) =
        log(&[&[run(1, 1, 1, 10)], &[run(1, 2, 1, 9000)], &[run(1, 3, 1, 10)]]);
    bytes[4096 + 5000] ^= 1;
    let got = collect_a(&bytes, 1, usize::MAX);
    assert_eq!((got.last, got.end), (Seq(1), Resume::NextAt { offset: offsets[1] }));
    let rest = &bytes[4096..];
    let got = collect(rest, offsets[1], SALT, A, Seq(2), usize::MAX);
    assert_eq!(got.end, Resume::Bad { offset: offsets[1], skip_to: offsets[2] });
    let rest = &bytes[(offsets[2] - BASE) as usize..];
    let got = collect(rest, offsets[2], SALT, A, Seq(2), usize::MAX);
    assert_eq!(got.end, Resume::Hole { offset: offsets[2], next: Seq(3) });
}

#[test]
fn one_chunk_holds_frames_of_one_epoch() {
    let mut later = run(1, 2, 1, 10);
    later.epoch = Epoch(2);
    let (bytes, offsets) = log(&[&[run(1, 1, 1, 10)], &[later]]);
    let got = collect_a(&bytes, 1, usize::MAX);
    assert_eq!((got.last, got.epoch), (Seq(1), Epoch(1)));
    assert_eq!(got.end, Resume::NextAt { offset: offsets[1] });
    assert_eq!(collect_a(&bytes, 2, usize::MAX).epoch, Epoch(2));
}

#[test]
fn a_run_with_fewer_frames_than_it_says_is_bad() {
    let mut short = run(1, 1, 3, 10);
    short.frames = frame(A, 1, b"x");
    let (bytes, offsets) = log(&[&[short]]);
    let got = collect_a(&bytes, 3, usize::MAX);
    assert_eq!(got.end, Resume::Bad { offset: BASE, skip_to: offsets[1] });
}

#[test]
fn no_bytes_make_collecting_panic_and_frames_stay_whole_and_in_order() {
    let clean =
        log(&[&[run(1, 1, 3, 50), run(2, 1, 1, 40)], &[run(1, 4, 2, 700)], &[run(1, 6, 1, 9)]]).0;
    bolero::check!()
        .with_iterations(10_000)
        .with_type::<(Vec<(u16, u8)>, u8, u16, u16)>()
        .for_each(|(edits, from, max, len)| {
            let mut bytes = clean.clone();
            for (at, mask) in edits.iter().take(2) {
                let at = usize::from(*at) % bytes.len();
                bytes[at] ^= mask;
            }
            bytes.truncate(usize::from(*len).max(1));
            let got = collect_a(&bytes, u64::from(*from % 8).max(1), usize::from(*max));
            let mut rest = &got.frames[..];
            let mut seq = got.first;
            while let Some((frame, taken)) = wire::split(rest, rest.len()).unwrap() {
                let wire::ServerFrame::Deliver(message) = wire::ServerFrame::decode(frame).unwrap()
                else {
                    panic!("not a DELIVER");
                };
                assert_eq!(message.seq, seq);
                seq = seq.next();
                rest = &rest[taken..];
            }
            assert!(rest.is_empty());
            assert!(got.frames.is_empty() || seq == got.last.next());
        });
}
