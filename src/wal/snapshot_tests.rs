#![allow(clippy::unwrap_used)]

use super::*;

const NODE: NodeId = NodeId(7);
const SHARD: ShardId = ShardId(2);
const COVERED: CommitNumber = CommitNumber(1234);

fn group(handle: u64) -> (SnapshotGroup, GroupState) {
    let group = SnapshotGroup {
        name: format!("group-{handle}").into_bytes().into(),
        handle: Handle(handle),
        epoch: Epoch(3),
        head: Seq(90),
        first_kept: Seq(11),
        used_memory: handle.is_multiple_of(2),
    };
    let mut state = GroupState { roster_version: 5, state_version: 8, ..GroupState::default() };
    let member = MemberState { joined_at: Seq(4), acked: Seq(80), acked_epoch: Epoch(3) };
    state.members.insert(b"ann"[..].into(), member);
    state.members.insert(b"bob"[..].into(), MemberState::default());
    let window = (80..=90).map(|seq| (Seq(seq), Epoch(3))).collect();
    let producer = ProducerState { member: b"ann"[..].into(), last: 33, window };
    state.producers.insert([9; 16], producer);
    let entry = |version, deleted, data: &[u8]| StateEntry {
        version,
        stamp: Stamp(version << 16),
        deleted,
        data: data.into(),
    };
    state.entries.insert(b"topic"[..].into(), entry(7, false, b"cats"));
    state.entries.insert(b"mood"[..].into(), entry(8, true, b""));
    let receipt = |done| ReceiptState {
        epoch: Epoch(3),
        producer: [9; 16],
        producer_seq: 33,
        sender: b"ann"[..].into(),
        percent: 80,
        done,
    };
    state.receipts.insert(Seq(89), receipt(Some((3, 4))));
    state.receipts.insert(Seq(90), receipt(None));
    (group, state)
}

fn snapshot(groups: u64) -> Snapshot {
    let header = SnapshotHeader {
        node: NODE,
        shard: SHARD,
        covered: COVERED,
        max_stamp: Stamp(99 << 16),
        max_epoch: Epoch(4),
    };
    Snapshot { header, groups: (1..=groups).map(group).collect() }
}

fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotFault> {
    decode_snapshot(bytes, NODE, SHARD, COVERED)
}

#[test]
fn a_snapshot_decodes_to_what_was_encoded() {
    for groups in [0, 1, 5] {
        assert_eq!(decode(&encode_snapshot(&snapshot(groups))), Ok(snapshot(groups)));
    }
}

#[test]
fn a_group_may_go_on_in_later_pieces() {
    let whole = snapshot(2);
    let mut bytes = whole.header.encode();
    let (mut piece, mut written) = (SnapshotPiece::default(), Written::default());
    for (group, state) in &whole.groups {
        piece.group(group, state.roster_version, state.state_version);
        for (id, member) in &state.members {
            bytes.extend(piece.seal(&mut written));
            piece.member(id, member);
        }
        bytes.extend(piece.seal(&mut written));
        assert!(piece.is_empty() && piece.seal(&mut written).is_empty());
        for (id, p) in &state.producers {
            piece.producer(id, &p.member, p.last, p.window.iter().copied());
        }
        for (key, e) in &state.entries {
            piece.entry(key, e.version, e.stamp, (!e.deleted).then_some(&e.data));
        }
        state.receipts.iter().for_each(|(seq, receipt)| piece.receipt(*seq, receipt));
    }
    bytes.extend(piece.seal(&mut written));
    bytes.extend(written.end());
    assert_eq!(decode(&bytes), Ok(whole));
}

#[test]
fn a_snapshot_cut_off_anywhere_is_short_and_never_used() {
    let bytes = encode_snapshot(&snapshot(3));
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len]), Err(SnapshotFault::Short { len }));
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(decode(&longer), Err(SnapshotFault::Rotten { .. })));
}

#[test]
fn a_bit_flipped_anywhere_is_found() {
    let bytes = encode_snapshot(&snapshot(2));
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn missing_pieces_and_zeros_are_found() {
    let mut bytes = snapshot(1).header.encode();
    let mut written = Written::default();
    for n in 1..=3 {
        let mut piece = SnapshotPiece::default();
        let (group, state) = group(n);
        piece.whole_group(&group, &state);
        let sealed = piece.seal(&mut written);
        if n != 2 {
            bytes.extend(sealed);
        }
    }
    bytes.extend(written.end());
    assert!(matches!(decode(&bytes), Err(SnapshotFault::Rotten { .. })));
    assert_eq!(decode(&[0; 4096]), Err(SnapshotFault::Header));
    let mut zeroed = encode_snapshot(&snapshot(2));
    zeroed[SNAPSHOT_HEADER..].fill(0);
    assert_eq!(decode(&zeroed), Err(SnapshotFault::Rotten { at: SNAPSHOT_HEADER }));
}

#[test]
fn a_snapshot_of_elsewhere_is_not_used() {
    let bytes = encode_snapshot(&snapshot(1));
    let foreign = SnapshotFault::Foreign { node: NODE, shard: SHARD, covered: COVERED };
    assert_eq!(decode_snapshot(&bytes, NODE, ShardId(3), COVERED), Err(foreign));
    assert_eq!(decode_snapshot(&bytes, NODE, SHARD, CommitNumber(1)), Err(foreign));
}

#[test]
fn no_bytes_make_decoding_panic() {
    bolero::check!().with_iterations(10_000).with_type::<(Vec<(u16, u8)>, Vec<u8>)>().for_each(
        |(edits, noise)| {
            let mut bytes = encode_snapshot(&snapshot(1));
            // Under a right checksum, so that the items themselves are what is read.
            let end = bytes.len() - END_BYTES;
            for (at, byte) in edits {
                let at = SNAPSHOT_HEADER + PIECE_FIXED + usize::from(*at);
                if at < end {
                    bytes[at] = *byte;
                }
            }
            let crc = crc32fast::hash(&bytes[SNAPSHOT_HEADER + PIECE_FIXED..end]);
            bytes[SNAPSHOT_HEADER + 4..][..4].copy_from_slice(&crc.to_le_bytes());
            let _ = decode(&bytes);
            assert!(decode(noise).is_err());
        },
    );
}
