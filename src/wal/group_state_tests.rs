#![allow(clippy::unwrap_used)]

use super::*;
use crate::position::Level;

const EPOCH: Epoch = Epoch(3);

fn meta(producer: u8, producer_seq: u64, receipt: u8) -> Meta {
    Meta { producer: [producer; 16], producer_seq, level: Level::Durable, receipt }
}

fn joined(member: &[u8], at: u64, roster: u64) -> Record<'_> {
    Record::MemberJoined { member, joined_at: Seq(at), roster }
}

fn cursor(member: &[u8], acked: u64, epoch: u32) -> Record<'_> {
    Record::Cursor { member, acked: Seq(acked), epoch: Epoch(epoch) }
}

fn state_of(key: &'static [u8], version: u64, data: &'static [u8]) -> Record<'static> {
    Record::State { key, version, stamp: Stamp(version), deleted: data.is_empty(), data }
}

/// Something of each kind, as a log would hold it.
fn apply_all(state: &mut GroupState) {
    for record in [
        joined(b"ann", 0, 1),
        joined(b"bob", 2, 2),
        cursor(b"ann", 5, 3),
        Record::MemberLeft { member: b"bob", roster: 3 },
        joined(b"bob", 6, 4),
        cursor(b"ann", 4, 3),
        state_of(b"topic", 1, b"cats"),
        state_of(b"mood", 2, b"fine"),
        state_of(b"topic", 3, b""),
    ] {
        state.apply_record(&record);
    }
    for n in 1..=4 {
        assert!(state.apply_message(&meta(7, n, 100), Seq(n), EPOCH, b"ann"));
    }
}

#[test]
fn a_log_taken_in_twice_gives_the_same_state() {
    let mut state = GroupState::default();
    apply_all(&mut state);
    let once = state.clone();
    apply_all(&mut state);
    assert_eq!(state, once);
    let ann = MemberState { joined_at: Seq(0), acked: Seq(5), acked_epoch: EPOCH };
    assert_eq!(state.members[&b"ann"[..]], ann, "a cursor never goes back");
    let bob = MemberState { joined_at: Seq(6), ..MemberState::default() };
    assert_eq!(state.members[&b"bob"[..]], bob, "who came back starts anew");
    assert_eq!((state.roster_version, state.state_version), (4, 3));
    assert!(state.entries[&b"topic"[..]].deleted);
    assert_eq!(&*state.entries[&b"mood"[..]].data, b"fine");
    assert_eq!(state.receipts.len(), 4);
    assert_eq!(state.last_known(), Seq(6));
}

/// Any part of the log from any place on, on top of what a later snapshot holds.
#[test]
fn taking_in_any_stretch_of_the_log_again_changes_nothing() {
    let mut state = GroupState::default();
    for n in 1..=50u64 {
        state.apply_message(&meta(1, n, 0), Seq(n), EPOCH, b"ann");
    }
    let whole = state.clone();
    for from in 1..=50 {
        for n in from..=50 {
            assert!(state.apply_message(&meta(1, n, 0), Seq(n), EPOCH, b"ann"));
        }
        assert_eq!(state, whole, "from {from}");
    }
}

#[test]
fn of_a_producer_seq_that_comes_twice_the_first_place_counts() {
    let mut state = GroupState::default();
    for (producer_seq, seq, first) in [(1, 10, true), (2, 11, true), (2, 12, false), (3, 13, true)]
    {
        assert_eq!(
            state.apply_message(&meta(1, producer_seq, 0), Seq(seq), EPOCH, b"ann"),
            first,
            "{producer_seq}"
        );
    }
    let producer = &state.producers[&[1; 16]];
    assert_eq!(producer.find(2), Some((Seq(11), EPOCH)));
    assert_eq!((producer.last, &*producer.member), (3, &b"ann"[..]));
    assert_eq!((producer.find(0), producer.find(4)), (None, None));
}

#[test]
fn a_producer_that_was_forgotten_begins_again_at_one() {
    let mut state = GroupState::default();
    for n in 1..=5 {
        state.apply_message(&meta(1, n, 0), Seq(n), EPOCH, b"ann");
    }
    assert!(state.apply_message(&meta(1, 1, 0), Seq(20), EPOCH, b"bob"));
    assert!(state.apply_message(&meta(1, 2, 0), Seq(21), EPOCH, b"bob"));
    let producer = &state.producers[&[1; 16]];
    assert_eq!((producer.last, &*producer.member), (2, &b"bob"[..]));
    assert_eq!(producer.find(2), Some((Seq(21), EPOCH)));
    let after = state.clone();
    assert!(state.apply_message(&meta(1, 1, 0), Seq(1), EPOCH, b"ann"), "of its earlier life");
    assert_eq!(state, after);
}

#[test]
fn windows_producers_and_receipts_are_bounded() {
    let mut state = GroupState::default();
    for n in 1..=PUBLISH_WINDOW_MAX as u64 + 10 {
        state.apply_message(&meta(1, n, 0), Seq(n), EPOCH, b"ann");
    }
    let producer = &state.producers[&[1; 16]];
    assert_eq!(producer.window.len(), PUBLISH_WINDOW_MAX);
    assert_eq!((producer.find(10), producer.find(11)), (None, Some((Seq(11), EPOCH))));

    let mut state = GroupState::default();
    for n in 1..=2 * PRODUCERS_KEPT_MAX as u128 + 1 {
        let meta = Meta { producer: n.to_le_bytes(), ..meta(0, 1, 50) };
        state.apply_message(&meta, Seq(n as u64), EPOCH, b"ann");
    }
    assert_eq!(state.producers.len(), PRODUCERS_KEPT_MAX);
    let newest = 2 * PRODUCERS_KEPT_MAX as u128 + 1;
    assert!(state.producers.contains_key(&newest.to_le_bytes()));
    assert_eq!(state.receipts.len(), RECEIPTS_KEPT_MAX);
    assert_eq!(state.receipts.last_key_value().unwrap().0.0 as u128, newest);
}

#[test]
fn positions_beyond_what_was_left_of_an_epoch_go_back_to_its_end() {
    let mut state = GroupState::default();
    apply_all(&mut state);
    state.cut_after(Seq(3));
    assert_eq!(state.members[&b"ann"[..]].acked, Seq(3));
    assert_eq!(state.members[&b"bob"[..]].joined_at, Seq(3));
    assert_eq!(state.receipts.len(), 3);
    let producer = &state.producers[&[7; 16]];
    assert_eq!((producer.last, producer.find(3)), (3, Some((Seq(3), EPOCH))));
    // The cursor of the new epoch is behind the old one's number and counts.
    state.apply_record(&cursor(b"ann", 4, 4));
    assert_eq!(state.members[&b"ann"[..]].acked, Seq(4));
}
