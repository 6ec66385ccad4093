//! Memory is promised per member: a bound for one that has joined and is idle, on the shard's side
//! and with what the allocator adds. What it held goes back when it leaves.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "common/shard_rig.rs"]
#[allow(dead_code, reason = "benches use the rest of it")]
mod shard_rig;

use allocation_counter::{AllocationInfo, measure};
use fanfare::config::ShardConfig;
use fanfare::shard::ConnId;
use fanfare::wire::{JoinEntry, Start};
use shard_rig::Rig;

/// Most bytes of a member beyond what any shard has; README promises 512 with the receive buffers
/// and whatever else a process has.
const MEMBER_BYTES_MAX: f64 = 360.0;
/// What an allocation costs beside its bytes: a header and what it is rounded up by, in glibc.
const PER_ALLOCATION: f64 = 16.0;
/// A slot of the driver's table of connections.
const DRIVER_SLOT: f64 = 12.0;
/// Members that do something in the same turn.
const TOGETHER: usize = 64;
/// What does not grow with members: lists with room for a turn.
const FIXED: f64 = 64.0 * 1024.0;

fn bytes(info: &AllocationInfo) -> f64 {
    info.bytes_current as f64 + info.count_current as f64 * PER_ALLOCATION
}

/// Does something for each of many members, some of them in one turn.
fn for_each(rig: &mut Rig, conns: &[ConnId], mut what: impl FnMut(&mut Rig, ConnId)) {
    for some in conns.chunks(TOGETHER) {
        some.iter().for_each(|conn| what(rig, *conn));
        rig.settle();
    }
}

/// So many members of one group, each on a connection of its own.
fn join(rig: &mut Rig, members: usize) -> Vec<ConnId> {
    let mut conns = Vec::with_capacity(members);
    while conns.len() < members {
        for _ in 0..TOGETHER.min(members - conns.len()) {
            conns.push(rig.member(0, JoinEntry::live(b"room", Start::Tail)));
        }
        rig.settle();
    }
    conns
}

#[test]
fn an_idle_member_costs_less_than_its_bound_however_many_there_are() {
    // Just above powers of two, where what doubles is largest for what it holds.
    for members in [1_000, 2_050, 4_100, 8_200] {
        let mut rig = Rig::with_heartbeats(1, ShardConfig::default());
        let all = measure(|| drop(join(&mut rig, members)));
        let each = (bytes(&all) - FIXED) / members as f64 + DRIVER_SLOT;
        println!("{members} members: {each:.0} bytes each");
        assert!(each <= MEMBER_BYTES_MAX, "{each:.0} bytes each of {members}");
    }
}

#[test]
fn deadlines_that_come_again_do_not_make_members_larger() {
    let mut rig = Rig::with_heartbeats(1, ShardConfig::default());
    let all = measure(|| {
        let conns = join(&mut rig, 5_000);
        // Five minutes of pings: every deadline moved on, many times.
        for _ in 0..30 {
            rig.pass(10_000);
            for_each(&mut rig, &conns, |rig, conn| rig.ping(0, conn));
        }
    });
    let each = (bytes(&all) - FIXED) / 5_000.0 + DRIVER_SLOT;
    assert!(each <= MEMBER_BYTES_MAX, "{each:.0} bytes each");
}

#[test]
fn a_shard_gives_back_what_members_held_when_they_leave() {
    let mut rig = Rig::with_heartbeats(1, ShardConfig::default());
    // What grows with the first ones is grown.
    let first = join(&mut rig, 100);
    for_each(&mut rig, &first, |rig, conn| rig.hang_up(0, conn));
    let all = measure(|| {
        let conns = join(&mut rig, 5_000);
        for_each(&mut rig, &conns, |rig, conn| rig.hang_up(0, conn));
        // Until the timers of those that are gone have fired.
        for _ in 0..12 {
            rig.pass(10_000);
            rig.settle();
        }
    });
    assert!(bytes(&all) <= FIXED, "{:.0} bytes are left of 5,000 members", bytes(&all));
}
