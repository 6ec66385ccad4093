//! Cost of the codec per frame: what a shard pays for each PUBLISH it reads, and once per
//! message, whatever the number of members, for the DELIVER it encodes.

use bytes::BytesMut;
use divan::{Bencher, black_box, counter::ItemsCount};
use fanfare::limits::FRAME_MAX;
use fanfare::position::{Handle, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{ClientFrame, Deliver, Publish, ServerFrame, split};

const FRAMES: usize = 1024;
const PAYLOADS: [usize; 3] = [16, 128, 1024];

fn main() {
    divan::main();
}

fn deliver(payload: &[u8]) -> Deliver<'_> {
    Deliver {
        handle: Handle(7),
        seq: Seq(1),
        stamp: Stamp(1 << 16),
        node: NodeId(1),
        shard: ShardId(0),
        sender: b"m000001",
        payload,
    }
}

#[divan::bench(args = PAYLOADS)]
fn decode_publish(bencher: Bencher<'_, '_>, payload: usize) {
    let payload = vec![7; payload];
    let publish = Publish {
        request: 1,
        level: None,
        receipt: 0,
        producer_seq: 1,
        group: b"room-42",
        payload: &payload,
    };
    let mut stream = Vec::new();
    (0..FRAMES).for_each(|_| publish.encode(&mut stream));
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        let mut at = 0;
        while let Ok(Some((frame, len))) = split(&stream[at..], FRAME_MAX) {
            let _ = black_box(ClientFrame::decode(frame));
            at += len;
        }
        at
    });
}

#[divan::bench(args = PAYLOADS)]
fn encode_deliver(bencher: Bencher<'_, '_>, payload: usize) {
    let payload = vec![7; payload];
    let mut out = BytesMut::with_capacity(FRAMES * (payload.len() + 64));
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        out.clear();
        (0..FRAMES).for_each(|_| black_box(deliver(&payload)).encode(&mut out));
        out.len()
    });
}

#[divan::bench(args = PAYLOADS)]
fn decode_deliver(bencher: Bencher<'_, '_>, payload: usize) {
    let payload = vec![7; payload];
    let mut stream = Vec::new();
    (0..FRAMES).for_each(|_| deliver(&payload).encode(&mut stream));
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        let mut at = 0;
        while let Ok(Some((frame, len))) = split(&stream[at..], FRAME_MAX) {
            let _ = black_box(ServerFrame::decode(frame));
            at += len;
        }
        at
    });
}
