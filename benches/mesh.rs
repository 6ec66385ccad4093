//! Cost of a hop between two shards: pushing and taking batches on one core, and the round
//! trip between two pinned cores that poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use fanfare::mesh::{Announced, Mesh, Message, mesh};
use fanfare::position::{Handle, Seq, ShardId};

const BATCHES: usize = 256;

fn main() {
    divan::main();
}

fn announce(segment: &Bytes, seq: u64) -> Message {
    let (first, last) = (Seq(seq), Seq(seq));
    let segments = vec![Announced { bytes: segment.clone(), first, last }];
    Message::Announce { handle: Handle(7), segments, published: last }
}

fn send(mesh: &mut Mesh, to: u16, segment: &Bytes, seq: u64) {
    if let Some(peer) = mesh.peer(ShardId(to)) {
        peer.tell(announce(segment, seq));
        peer.flush();
    }
}

fn take(mesh: &mut Mesh, from: u16) -> bool {
    mesh.peer(ShardId(from)).and_then(|peer| peer.receive()).is_some()
}

#[divan::bench]
fn announce_and_take_on_one_core(bencher: Bencher<'_, '_>) {
    let mut sides = mesh(2);
    let segment = Bytes::from(vec![7; 11 * 1024]);
    bencher.counter(ItemsCount::new(BATCHES)).bench_local(|| {
        for seq in 0..BATCHES {
            send(&mut sides[0], 1, &segment, seq as u64 + 1);
        }
        while take(&mut sides[1], 0) {}
    });
}

#[divan::bench]
fn round_trip_between_two_cores(bencher: Bencher<'_, '_>) {
    let mut sides = mesh(2).into_iter();
    let (Some(mut near), Some(mut far)) = (sides.next(), sides.next()) else { return };
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.len() < 2 {
        return;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let echo = std::thread::spawn({
        let core = cores[1];
        move || {
            core_affinity::set_for_current(core);
            let segment = Bytes::from(vec![7; 11 * 1024]);
            while !stopped.load(Ordering::Relaxed) {
                if take(&mut far, 0) {
                    send(&mut far, 0, &segment, 1);
                }
            }
        }
    });
    core_affinity::set_for_current(cores[0]);
    let segment = Bytes::from(vec![7; 11 * 1024]);
    bencher.bench_local(|| {
        send(&mut near, 1, &segment, 1);
        while !take(&mut near, 1) {
            std::hint::spin_loop();
        }
    });
    stop.store(true, Ordering::Relaxed);
    let _ = echo.join();
}
