//! Cost of the log's format: encoding a commit (copy and checksums) and checking it at
//! recovery or catch-up. The disk is not in it.

use bytes::BytesMut;
use divan::{Bencher, black_box, counter::BytesCount};
use fanfare::limits::COMMIT_BYTES_MAX;
use fanfare::position::{CommitNumber, Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::ring::LogBuf;
use fanfare::wal::{Meta, Run, RunKind, decode_commit, encode_commit};
use fanfare::wire::Deliver;

const MESSAGES: [u32; 4] = [1, 16, 256, 4096];
const SALT: u64 = 42;

fn main() {
    divan::main();
}

struct Staged {
    frames: BytesMut,
    metas: Vec<u8>,
    count: u32,
}

fn staged(count: u32) -> Staged {
    let (mut frames, mut metas) = (BytesMut::new(), Vec::new());
    for seq in 1..=count {
        Deliver {
            handle: Handle(7),
            seq: Seq(u64::from(seq)),
            stamp: Stamp(1 << 16),
            node: NodeId(1),
            shard: ShardId(0),
            sender: b"m000001",
            payload: &[7; 128],
        }
        .encode(&mut frames);
        Meta { producer: [1; 16], producer_seq: u64::from(seq), level: Level::Durable, receipt: 0 }
            .encode(&mut metas);
    }
    Staged { frames, metas, count }
}

fn run(staged: &Staged) -> Run<'_> {
    Run {
        kind: RunKind::Messages,
        handle: Handle(7),
        epoch: Epoch(1),
        group: b"room-42",
        first: Seq(1),
        count: staged.count,
        has_memory: false,
        metas: &staged.metas,
        frames: &staged.frames,
    }
}

#[divan::bench(args = MESSAGES)]
fn encode(bencher: Bencher<'_, '_>, messages: u32) {
    let staged = staged(messages);
    let mut buf = LogBuf::with_capacity(COMMIT_BYTES_MAX);
    bencher.counter(BytesCount::new(staged.frames.len())).bench_local(|| {
        encode_commit(&mut buf, CommitNumber(1), SALT, Stamp(1), &[run(&staged)]);
        black_box(buf.len())
    });
}

#[divan::bench(args = MESSAGES)]
fn decode(bencher: Bencher<'_, '_>, messages: u32) {
    let staged = staged(messages);
    let mut buf = LogBuf::with_capacity(COMMIT_BYTES_MAX);
    encode_commit(&mut buf, CommitNumber(1), SALT, Stamp(1), &[run(&staged)]);
    bencher
        .counter(BytesCount::new(staged.frames.len()))
        .bench_local(|| black_box(decode_commit(buf.as_slice(), SALT).is_ok()));
}
