//! The JSON of a message is made once for all members of a shard that want it, while there are
//! any, and counts against the bound of the tails.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "common/shard_rig.rs"]
#[allow(dead_code, reason = "benches use the rest of it")]
mod shard_rig;

use allocation_counter::measure;
use fanfare::config::ShardConfig;
use fanfare::position::Level;
use fanfare::wire::{JoinEntry, Start};
use fanfare::ws::upgrade::{BINARY_V1, JSON_V1};
use shard_rig::Rig;

const PAYLOAD: [u8; 128] = [b'x'; 128];
const TAIL: u64 = 1 << 20;

/// A shard with members of each encoding.
fn rig(native: usize, binary: usize, json: usize) -> Rig {
    let mut rig = Rig::with(1, ShardConfig { tail_bytes_max: TAIL, ..ShardConfig::default() });
    for _ in 0..native {
        rig.member(0, JoinEntry::live(b"room", Start::Tail));
    }
    for _ in 0..binary {
        rig.websocket_member(0, BINARY_V1, "room");
    }
    for _ in 0..json {
        rig.websocket_member(0, JSON_V1, "room");
    }
    rig.settle();
    assert_eq!(rig.figures().members, (native + binary + json) as u64);
    rig
}

/// The usual count of allocations of a broadcast, once everything has its size.
fn allocations(rig: &mut Rig, messages: u64) -> u64 {
    let mut publisher = rig.publisher(0, b"room");
    let mut counts: Vec<u64> = (0..400)
        .map(|_| {
            rig.publish(&mut publisher, messages, Level::Durable, &PAYLOAD);
            measure(|| rig.settle()).count_total
        })
        .skip(200)
        .collect();
    counts.sort_unstable();
    counts[counts.len() / 2]
}

#[test]
fn compressed_messages_are_made_once_too() {
    const JSON: &str = "fanfare.json.v1\r\nSec-WebSocket-Extensions: permessage-deflate";
    const BINARY: &str = "fanfare.binary.v1\r\nSec-WebSocket-Extensions: permessage-deflate";
    let count = |each: usize| {
        let config =
            ShardConfig { tail_bytes_max: TAIL, websocket_deflate: true, ..ShardConfig::default() };
        let mut rig = Rig::with(1, config);
        for _ in 0..each {
            rig.websocket_member(0, JSON, "room");
            rig.websocket_member(0, BINARY, "room");
        }
        rig.settle();
        let count = allocations(&mut rig, 16);
        let (shared, writes) = (rig.sides[0].world.shared_bytes, rig.sides[0].world.writes);
        assert!(shared / writes < 16 * 100, "{} bytes a write", shared / writes);
        count
    };
    assert_eq!(count(1), count(100));
}

#[test]
fn members_cost_no_allocation_whatever_they_speak() {
    let native = allocations(&mut rig(10, 0, 0), 16);
    assert_eq!(allocations(&mut rig(10, 100, 0), 16), native);
    let few = allocations(&mut rig(10, 10, 1), 16);
    assert_eq!(allocations(&mut rig(10, 10, 100), 16), few);
    assert_eq!(allocations(&mut rig(10, 10, 100), 256), few, "nor a message");
    // The segment, its bytes, cut to their size, and their count of references.
    assert!(few <= native + 4, "{few} with JSON, {native} without");
}

#[test]
fn the_json_of_a_tail_is_there_only_for_members_who_want_it_and_within_the_bound() {
    let mut native = rig(3, 3, 0);
    let mut both = rig(3, 3, 3);
    let (mut a, mut b) = (native.publisher(0, b"room"), both.publisher(0, b"room"));
    // Each byte takes six in JSON.
    for round in 0..3_000 {
        native.publish(&mut a, 1, Level::Durable, &[1; 128]);
        both.publish(&mut b, 1, Level::Durable, &[1; 128]);
        native.settle();
        both.settle();
        let (native, both) = (native.figures().tail_bytes, both.figures().tail_bytes);
        assert!(both <= TAIL, "{both} bytes");
        if round == 100 {
            assert!(both > 5 * native, "{both} bytes with JSON, {native} without");
        }
    }
    let full = both.figures().tail_bytes;
    assert!(full > TAIL / 2, "{full} bytes");
    assert_eq!(both.figures().catch_up_members, 0);
}
