//! The golden bytes of WAL_FORMAT.md are what this build writes and reads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fanfare::limits::LOG_BLOCK;
use fanfare::position::{
    CommitNumber, Epoch, Handle, Level, NodeId, SegmentNumber, Seq, ShardId, Stamp,
};
use fanfare::ring::LogBuf;
use fanfare::wal::segment_index::{IndexedGroup, decode_index};
use fanfare::wal::snapshot::{Written, decode_snapshot};
use fanfare::wal::{
    GroupState, IndexEntry, IndexHeader, LogPos, MemberState, Meta, ProducerState, ReceiptState,
    Record, Run, RunKind, SegmentHeader, SegmentIndexBuilder, SegmentInfo, Snapshot, SnapshotGroup,
    SnapshotHeader, SnapshotPiece, StateEntry, decode_commit, encode_commit,
};
use fanfare::wire::Deliver;

const SALT: u64 = 0x1122_3344_5566_7788;
const HANDLE: Handle = Handle(0x0030_0001_0000_0007);
const CREATED_MS: u64 = 1_700_000_000_000;

/// The block of bytes under the heading `golden <name>`, filled up with zeros.
fn golden(name: &str) -> Vec<u8> {
    let mut block = golden_bytes(name);
    block.resize(LOG_BLOCK, 0);
    block
}

/// The bytes under the heading `golden <name>`.
fn golden_bytes(name: &str) -> Vec<u8> {
    let text = include_str!("../WAL_FORMAT.md");
    let start = format!("```golden {name}\n");
    let (_, rest) = text.split_once(&start).expect("the page has this block");
    let (lines, _) = rest.split_once("```").unwrap();
    let mut block = Vec::new();
    for line in lines.lines() {
        let (bytes, _comment) = line.split_once(';').unwrap();
        let (at, bytes) = bytes.strip_prefix('@').unwrap().split_once("  ").unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        for (index, byte) in bytes.split_whitespace().enumerate() {
            block.resize(block.len().max(at + index + 1), 0);
            block[at + index] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    block
}

#[test]
fn the_segment_header_is_the_golden_one() {
    let header = SegmentHeader {
        node: NodeId(0x0102),
        shard: ShardId(3),
        number: SegmentNumber(42),
        salt: SALT,
        bytes: 32 << 20,
        created_ms: CREATED_MS,
    };
    assert_eq!(SegmentHeader::decode(&golden("segment")), Ok(header));
    assert_eq!(header.encode().to_vec(), golden("segment"));
}

#[test]
fn the_commit_is_the_golden_one() {
    let (mut metas, mut frames) = (Vec::new(), Vec::new());
    let producer = std::array::from_fn(|i| 0xA0 + i as u8);
    let stamp = |n: u64| Stamp((CREATED_MS + n) << 16);
    let messages = [(1, Level::Durable, b"hi"), (2, Level::Memory, b"yo")];
    for (n, level, payload) in messages {
        Meta { producer, producer_seq: n, level, receipt: if n == 1 { 80 } else { 0 } }
            .encode(&mut metas);
        Deliver {
            handle: HANDLE,
            seq: Seq(40 + n),
            stamp: stamp(n),
            node: NodeId(0x0102),
            shard: ShardId(3),
            sender: b"ann",
            payload,
        }
        .encode(&mut frames);
    }
    let run = Run {
        kind: RunKind::Messages,
        handle: HANDLE,
        epoch: Epoch(5),
        group: b"lobby",
        first: Seq(41),
        count: 2,
        has_memory: true,
        metas: &metas,
        frames: &frames,
    };
    let mut records = Vec::new();
    for record in golden_records() {
        record.encode(&mut records);
    }
    let records = Run::of_records(HANDLE, Epoch(5), b"lobby", 5, &records);
    let mut buf = LogBuf::with_capacity(LOG_BLOCK);
    encode_commit(&mut buf, CommitNumber(2), SALT, stamp(2), &[run, records]);
    assert_eq!(buf.as_slice(), golden("commit"));

    let golden = golden("commit");
    let commit = decode_commit(&golden, SALT).unwrap();
    assert_eq!(
        (commit.number, commit.max_stamp, commit.total_len),
        (CommitNumber(2), stamp(2), 4096)
    );
    let runs: Vec<_> = commit.runs().collect();
    assert_eq!(runs, [run, records]);
    assert_eq!(runs[1].records().collect::<Vec<_>>(), golden_records());
}

fn golden_records() -> [Record<'static>; 5] {
    [
        Record::MemberJoined { member: b"ann", joined_at: Seq(40), roster: 3 },
        Record::MemberLeft { member: b"bob", roster: 4 },
        Record::Cursor { member: b"ann", acked: Seq(41), epoch: Epoch(5) },
        Record::State {
            key: b"topic",
            version: 6,
            stamp: Stamp((CREATED_MS + 2) << 16),
            deleted: false,
            data: b"cats",
        },
        Record::State {
            key: b"mood",
            version: 7,
            stamp: Stamp(((CREATED_MS + 2) << 16) | 1),
            deleted: true,
            data: b"",
        },
    ]
}

#[test]
fn the_snapshot_is_the_golden_one() {
    let header = SnapshotHeader {
        node: NodeId(0x0102),
        shard: ShardId(3),
        covered: CommitNumber(42),
        max_stamp: Stamp((CREATED_MS + 2) << 16),
        max_epoch: Epoch(6),
    };
    let group = SnapshotGroup {
        name: b"lobby"[..].into(),
        handle: HANDLE,
        epoch: Epoch(5),
        head: Seq(42),
        first_kept: Seq(41),
        used_memory: true,
    };
    let member = MemberState { joined_at: Seq(40), acked: Seq(41), acked_epoch: Epoch(5) };
    let id = std::array::from_fn(|i| 0xA0 + i as u8);
    let places = [(Seq(41), Epoch(5)), (Seq(42), Epoch(5))];
    let receipt = ReceiptState {
        epoch: Epoch(5),
        producer: id,
        producer_seq: 1,
        sender: b"ann"[..].into(),
        percent: 80,
        done: Some((3, 4)),
    };
    let stamp = Stamp((CREATED_MS + 2) << 16);
    let mut bytes = header.encode();
    let (mut piece, mut written) = (SnapshotPiece::default(), Written::default());
    piece.group(&group, 4, 7);
    piece.producer(&id, b"ann", 2, places.into_iter());
    bytes.extend(piece.seal(&mut written));
    piece.member(b"ann", &member);
    piece.entry(b"topic", 6, stamp, Some(b"cats"));
    piece.receipt(Seq(41), &receipt);
    bytes.extend(piece.seal(&mut written));
    bytes.extend(written.end());
    assert_eq!(bytes, golden_bytes("snapshot"));

    let state = GroupState {
        roster_version: 4,
        state_version: 7,
        members: [(b"ann"[..].into(), member)].into(),
        entries: [(
            b"topic"[..].into(),
            StateEntry { version: 6, stamp, deleted: false, data: b"cats"[..].into() },
        )]
        .into(),
        producers: [(
            id,
            ProducerState { member: b"ann"[..].into(), last: 2, window: places.into() },
        )]
        .into(),
        receipts: [(Seq(41), receipt)].into(),
    };
    let snapshot = decode_snapshot(&bytes, NodeId(0x0102), ShardId(3), CommitNumber(42)).unwrap();
    assert_eq!(snapshot, Snapshot { header, groups: vec![(group, state)] });
}

#[test]
fn the_index_is_the_golden_one() {
    let info = SegmentInfo {
        salt: SALT,
        used: 8192,
        newest_ms: CREATED_MS + 2,
        first_commit: CommitNumber(2),
        last_commit: CommitNumber(2),
    };
    let number = SegmentNumber(42);
    let header = IndexHeader { node: NodeId(0x0102), shard: ShardId(3), number, info };
    let pos = LogPos { segment: number, offset: 4096 };
    let entry = IndexEntry { first: Seq(41), pos, bytes: 154, newest_ms: CREATED_MS + 2 };
    let mut index = SegmentIndexBuilder::new(&header);
    index.group(HANDLE, Seq(42), &[entry]);
    let bytes = index.finish();
    assert_eq!(bytes, golden_bytes("index"));
    let group = IndexedGroup { handle: HANDLE, last: Seq(42), entries: vec![entry] };
    assert_eq!(decode_index(&bytes), Some((header, vec![group])));
}
