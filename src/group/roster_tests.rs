#![allow(clippy::unwrap_used)]

use super::*;
use crate::position::ShardId;
use crate::shard::ConnId;

fn join(roster: &mut Roster, id: &[u8], joined_at: u64) -> RosterKey {
    let at = Seq(joined_at);
    roster.join(Incoming { id, joined_at: at, acked: at, acked_epoch: Epoch(1) })
}

fn place(slot: u32) -> Place {
    Place { shard: ShardId(0), conn: ConnId { slot, generation: 1 } }
}

#[test]
fn a_cursor_moves_forward_only_and_is_written_once_for_many_acks() {
    let mut roster = Roster::default();
    let (ann, bob) = (join(&mut roster, b"ann", 5), join(&mut roster, b"bob", 5));
    assert_eq!(roster.ack(ann, Seq(7), Epoch(1)), Acked::FirstDirty);
    assert_eq!(roster.ack(ann, Seq(9), Epoch(1)), Acked::Moved);
    assert_eq!(roster.ack(ann, Seq(8), Epoch(1)), Acked::Nothing);
    assert_eq!(roster.ack(bob, Seq(6), Epoch(1)), Acked::Moved);
    assert_eq!(roster.dirty(), 2);
    let mut written = Vec::new();
    while let Some((id, acked, _)) = roster.take_dirty(Seq(9)) {
        written.push((id.to_vec(), acked.0));
    }
    written.sort();
    assert_eq!(written, [(b"ann".to_vec(), 9), (b"bob".to_vec(), 6)]);
    assert_eq!(roster.ack(ann, Seq(10), Epoch(1)), Acked::FirstDirty);
}

#[test]
fn no_cursor_is_written_beyond_what_is_on_disk() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    roster.ack(ann, Seq(7), Epoch(2));
    assert_eq!(roster.take_dirty(Seq(5)), Some((b"ann"[..].into(), Seq(5), Epoch(2))));
    assert_eq!(roster.take_dirty(Seq(5)), None, "once");
    assert_eq!(roster.take_dirty(Seq(5)), None, "and not again while no more is on disk");
    assert_eq!(roster.dirty(), 1, "the rest still waits");
    assert_eq!(roster.take_dirty(Seq(7)), Some((b"ann"[..].into(), Seq(7), Epoch(2))));
    assert_eq!((roster.take_dirty(Seq(7)), roster.dirty()), (None, 0));
}

#[test]
fn a_cursor_steps_over_a_gap_in_the_epoch_it_is_in() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    roster.ack(ann, Seq(5), Epoch(3));
    roster.ack(ann, Seq(8), Epoch(0));
    let member = roster.get(ann).unwrap();
    assert_eq!((member.acked, member.acked_epoch), (Seq(8), Epoch(3)));
}

#[test]
fn an_ack_of_an_older_epoch_is_no_news() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    roster.ack(ann, Seq(5), Epoch(3));
    assert_eq!(roster.ack(ann, Seq(9), Epoch(2)), Acked::Nothing);
    assert_eq!(roster.get(ann).unwrap().acked, Seq(5));
}

#[test]
fn a_key_of_a_member_that_left_names_nobody_even_when_its_place_is_taken() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    roster.ack(ann, Seq(3), Epoch(1));
    assert_eq!(roster.leave(ann).unwrap().acked, Seq(3));
    assert!(roster.leave(ann).is_none());
    let bob = join(&mut roster, b"bob", 4);
    assert_eq!(bob.index, ann.index);
    assert_eq!(roster.ack(ann, Seq(9), Epoch(1)), Acked::Nothing);
    assert!(!roster.came(ann, place(1)));
    assert_eq!(roster.dirty(), 0, "who left has no cursor to write");
    assert_eq!((roster.find(b"ann"), roster.find(b"bob")), (None, Some(bob)));
}

#[test]
fn joining_again_changes_nothing() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 2);
    roster.ack(ann, Seq(8), Epoch(1));
    assert_eq!(join(&mut roster, b"ann", 20), ann);
    let member = roster.get(ann).unwrap();
    assert_eq!((member.joined_at, member.acked), (Seq(2), Seq(8)));
    assert_eq!(roster.len(), 1);
}

#[test]
fn a_member_is_online_as_long_as_one_of_its_connections_is() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    assert!(roster.came(ann, place(1)));
    assert!(!roster.came(ann, place(2)) && !roster.came(ann, place(2)));
    assert_eq!(roster.online(), 1);
    assert!(!roster.went(ann, place(3)), "not one of its connections");
    assert!(!roster.went(ann, place(1)) && roster.went(ann, place(2)));
    assert_eq!(roster.online(), 0);
}

#[test]
fn a_member_that_leaves_while_it_is_connected_goes_offline_first() {
    let mut roster = Roster::default();
    let ann = join(&mut roster, b"ann", 0);
    roster.came(ann, place(4));
    roster.leave(ann);
    assert_eq!((roster.online(), roster.len()), (0, 0));
    let changes: Vec<_> = roster.log.newest(3).map(|change| change.what).collect();
    assert_eq!(changes, [Presence::Online, Presence::Offline, Presence::Left]);
}

#[test]
fn members_are_paged_by_index() {
    let mut roster = Roster::default();
    let keys: Vec<_> = (0..10u8).map(|n| join(&mut roster, &[n], 0)).collect();
    roster.leave(keys[4]);
    let ids: Vec<_> = (0..roster.places()).filter_map(|at| Some(roster.at(at)?.id[0])).collect();
    assert_eq!(ids, [0, 1, 2, 3, 5, 6, 7, 8, 9]);
}

#[test]
fn receipts_follow_joins_acks_and_leaves() {
    use crate::group::receipts::Asked;
    let mut roster = Roster::default();
    let (ann, bob) = (join(&mut roster, b"ann", 0), join(&mut roster, b"bob", 0));
    let (seq, epoch) = (Seq(1), Epoch(1));
    roster.receipts.ask(Asked { seq, epoch, percent: 100, sender: 0, producer_seq: 1 });
    let carol = join(&mut roster, b"carol", 1);
    let mut out = Vec::new();
    roster.ack(ann, Seq(1), Epoch(1));
    roster.receipts.settle(Seq(1), &mut out);
    assert!(out.is_empty());
    roster.leave(bob);
    roster.receipts.settle(Seq(1), &mut out);
    assert_eq!((out[0].acked, out[0].members), (1, 1), "carol came later, bob left");
    roster.leave(carol);
    assert!(roster.receipts.is_empty());
}
