//! A server that stops gives its clients time to read that it does, however long it took to say so.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "common/shard_rig.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod shard_rig;

use fanfare::shard::ConnId;
use fanfare::wire::{JoinEntry, Start};
use shard_rig::Rig;

/// A node whose client has not taken DRAIN for longer than it is waited for, and then has.
fn told_late() -> (Rig, ConnId) {
    let mut rig = Rig::new(1);
    let member = rig.member(0, JoinEntry::live(b"g", Start::Tail));
    rig.settle();
    rig.sides[0].world.full = true;
    rig.drain();
    for _ in 0..50 {
        assert!(!rig.turn());
        rig.pass(20);
    }
    rig.sides[0].world.full = false;
    (rig, member)
}

#[test]
fn a_client_that_was_told_late_may_close_by_itself() {
    let (mut rig, member) = told_late();
    for _ in 0..20 {
        assert!(!rig.turn());
        rig.pass(20);
    }
    rig.hang_up(0, member);
    assert!((0..10).any(|_| rig.turn()), "everybody has gone");
}

#[test]
fn a_client_that_does_not_close_is_not_waited_for() {
    let (mut rig, _) = told_late();
    rig.sides[0].world.may_close = true;
    let turns = (0..100).take_while(|_| {
        rig.pass(20);
        !rig.turn()
    });
    assert!((24..35).contains(&turns.count()), "half a second");
}
