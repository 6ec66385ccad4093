//! What compressing WebSocket messages costs and saves: each message once for all members of a
//! shard, by itself, as the server does it; and for each member with the messages before it as
//! context, which compresses better. The messages are lines of this project's README as JSON.

use std::hint::black_box;
use std::time::Instant;

use allocation_counter::measure;
use fanfare::position::{Handle, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::Deliver;
use fanfare::ws::deflate::Deflate;
use fanfare::ws::json::from_native;
use flate2::{Compress, Compression, FlushCompress};

const ROUNDS: usize = 9;

/// DELIVER frames whose payloads have about `bytes` bytes of the README.
fn messages(bytes: usize) -> Vec<Vec<u8>> {
    let text = include_str!("../README.md").as_bytes();
    let pieces = text.chunks(bytes).filter(|piece| std::str::from_utf8(piece).is_ok());
    let mut found = Vec::new();
    for (n, payload) in (1..).zip(pieces.take(400)) {
        let mut frame = Vec::new();
        Deliver {
            handle: Handle(4_503_608_217_305_091),
            seq: Seq(n),
            stamp: Stamp(115_633_000_000_000_000 + n * 65_536 * 37),
            node: NodeId(1),
            shard: ShardId(0),
            sender: [&b"ann"[..], b"bob", b"cid"][n as usize % 3],
            payload,
        }
        .encode(&mut frame);
        let (mut text, mut out) = (Vec::new(), Vec::new());
        from_native(&frame, &mut text, &mut |message| out.extend_from_slice(message));
        found.push(out);
    }
    found
}

/// The fastest of some rounds, in ns per message.
fn fastest(messages: &[Vec<u8>], mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let started = Instant::now();
        round();
        started.elapsed().as_nanos() as f64 / messages.len() as f64
    });
    times.fold(f64::INFINITY, f64::min)
}

fn main() {
    println!(
        "| payload | JSON, bytes | by itself, bytes | ns | for 1,000 members once, ns each \
         | with context, bytes | ns, and so for each member |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for bytes in [32, 128, 512, 2_048] {
        let messages = messages(bytes);
        let mean = |total: usize| total / messages.len();
        let plain = messages.iter().map(Vec::len).sum();
        let (mut deflate, mut out) = (Deflate::default(), Vec::new());
        let mut alone = 0;
        let alone_ns = fastest(&messages, || {
            alone = 0;
            for message in &messages {
                out.clear();
                let shorter = deflate.compress(black_box(message), &mut out);
                alone += if shorter { out.len() } else { message.len() };
            }
        });
        let mut context = 0;
        let context_ns = fastest(&messages, || {
            let mut stream = Compress::new(Compression::fast(), false);
            for message in &messages {
                out.clear();
                out.reserve(2 * message.len() + 64);
                let done = stream.compress_vec(black_box(message), &mut out, FlushCompress::Sync);
                assert!(done.is_ok());
            }
            context = stream.total_out() as usize;
        });
        println!(
            "| {bytes} | {} | {} | {alone_ns:.0} | {:.1} | {} | {context_ns:.0} |",
            mean(plain),
            mean(alone),
            alone_ns / 1_000.0,
            mean(context) - 4,
        );
    }
    let state = measure(|| {
        black_box(Compress::new(Compression::fast(), false));
    });
    println!("\nA context of its own takes {} bytes per member.", state.bytes_max);
}
