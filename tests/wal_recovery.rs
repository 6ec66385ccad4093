//! What recovery makes of logs that a crash, a disk or an operator left behind.
//!
//! The rule behind every test: a commit that was acknowledged is there afterwards, or the
//! damage that took it is reported. Only the last commit can be torn.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io;

use fanfare::limits::{COMMIT_BYTES_MAX, LOG_BLOCK, LOG_SECTOR};
use fanfare::position::{
    CommitNumber, Epoch, Handle, Level, NodeId, SegmentNumber, Seq, ShardId, Stamp,
};
use fanfare::ring::LogBuf;
use fanfare::wal::recovery::recover_with;
use fanfare::wal::{
    Damage, DamageKind, LogSource, MemberState, Meta, Record, Recovered, Run, RunKind,
    SegmentHeader, SegmentHeaderFault, Torn, commit_len, encode_commit,
};
use fanfare::wire::Deliver;

const NODE: NodeId = NodeId(7);
const SHARD: ShardId = ShardId(1);
const GROUP: Handle = Handle(0xA1);
const SEGMENT_BYTES: usize = 16 * LOG_BLOCK;

/// A disk in memory.
#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<u64, Vec<u8>>,
    broken: Option<u64>,
}

impl LogSource for Disk {
    fn segments(&mut self) -> io::Result<Vec<SegmentNumber>> {
        Ok(self.files.keys().rev().map(|n| SegmentNumber(*n)).collect())
    }

    fn len(&mut self, number: SegmentNumber) -> io::Result<u64> {
        Ok(self.files[&number.0].len() as u64)
    }

    fn read(&mut self, number: SegmentNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.broken == Some(number.0) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let file = &self.files[&number.0];
        let rest = &file[file.len().min(offset as usize)..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

fn salt(segment: u64) -> u64 {
    0x1234_5678_9ABC_DEF0 ^ segment
}

/// One message, whose number in the group is the number of the commit.
fn commit(number: u64, segment: u64, payload: usize) -> Vec<u8> {
    commit_of(number, segment, payload, b"lobby", Seq(number))
}

fn commit_of(number: u64, segment: u64, payload: usize, group: &[u8], seq: Seq) -> Vec<u8> {
    let (mut metas, mut frames) = (Vec::new(), Vec::new());
    Meta { producer: [9; 16], producer_seq: number, level: Level::Durable, receipt: 0 }
        .encode(&mut metas);
    // No sector of it is all zero, so that a missing one can be told.
    let payload: Vec<u8> = (0..payload).map(|i| (i as u8) | 1).collect();
    let stamp = Stamp(number << 16);
    Deliver {
        handle: GROUP,
        seq,
        stamp,
        node: NODE,
        shard: SHARD,
        sender: b"a",
        payload: &payload,
    }
    .encode(&mut frames);
    let run = Run {
        kind: RunKind::Messages,
        handle: GROUP,
        epoch: Epoch(3),
        group,
        first: seq,
        count: 1,
        has_memory: false,
        metas: &metas,
        frames: &frames,
    };
    let mut buf = LogBuf::with_capacity(commit_len([run].iter()));
    encode_commit(&mut buf, CommitNumber(number), salt(segment), stamp, &[run]);
    buf.as_slice().to_vec()
}

fn header(number: u64) -> SegmentHeader {
    SegmentHeader {
        node: NODE,
        shard: SHARD,
        number: SegmentNumber(number),
        salt: salt(number),
        bytes: SEGMENT_BYTES as u64,
        created_ms: 1,
    }
}

/// A segment file with these commits, the rest zeros. Returns where each commit is, too.
fn segment(number: u64, commits: &[u64]) -> (Vec<u8>, Vec<std::ops::Range<usize>>) {
    let mut file = header(number).encode().to_vec();
    let mut places = Vec::new();
    for n in commits {
        let bytes = commit(*n, number, 3 * LOG_SECTOR);
        places.push(file.len()..file.len() + bytes.len());
        file.extend(bytes);
    }
    file.resize(SEGMENT_BYTES.max(file.len()), 0);
    (file, places)
}

fn disk(segments: &[(u64, &[u64])]) -> Disk {
    let files = segments.iter().map(|(n, commits)| (*n, segment(*n, commits).0)).collect();
    Disk { files, broken: None }
}

/// What was recovered, and the numbers of the commits in it.
fn recover(disk: &Disk) -> (Recovered, Vec<u64>) {
    let mut commits = Vec::new();
    let recovered = recover_with(&mut disk.clone(), NODE, SHARD, &mut |_, commit, run| {
        assert_eq!(run.first, Seq(commit.number.0), "a run that was never written");
        commits.push(commit.number.0);
    });
    (recovered.unwrap(), commits)
}

fn kinds(recovered: &Recovered) -> Vec<(u64, DamageKind)> {
    recovered.damage.iter().map(|d| (d.segment.0, d.kind)).collect()
}

fn lost(first: u64, last: u64) -> Option<(CommitNumber, CommitNumber)> {
    Some((CommitNumber(first), CommitNumber(last)))
}

/// Bytes of header and body of the commit at `place`: its padding carries nothing.
fn used(file: &[u8], place: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let field = |at: usize| {
        u32::from_le_bytes(file[place.start + at..place.start + at + 4].try_into().unwrap())
    };
    let sectors = 1 + (field(24) as usize).div_ceil(LOG_SECTOR);
    place.start..place.start + sectors * LOG_SECTOR
}

#[test]
fn a_whole_log_is_recovered_with_heads_epochs_and_places() {
    let disk = disk(&[(4, &[10, 11]), (5, &[12]), (6, &[])]);
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [10, 11, 12]);
    assert_eq!((r.next_commit, r.next_segment), (CommitNumber(13), SegmentNumber(6)));
    assert_eq!((r.max_stamp, r.max_epoch, r.messages), (Stamp(12 << 16), Epoch(3), 3));
    assert_eq!((r.torn, r.damage.len()), (None, 0));
    assert_eq!(r.unused, [SegmentNumber(6)]);
    let group = &r.groups[0];
    assert_eq!((group.handle, &*group.name, group.epoch), (GROUP, &b"lobby"[..], Epoch(3)));
    assert_eq!((group.first, group.head), (Seq(10), Seq(12)));
    assert_eq!(group.index.find(Seq(12)).unwrap().segment, SegmentNumber(5));
    let segments: Vec<_> = r.segments.iter().map(|s| (s.number.0, s.salt, s.newest_ms)).collect();
    assert_eq!(segments, [(4, salt(4), 11), (5, salt(5), 12)]);
    let (file, places) = segment(5, &[12]);
    assert_eq!(r.segments[1].bytes_used, places[0].end as u64);
    assert!(file.len() > places[0].end);
}

#[test]
fn no_segments_are_an_empty_log() {
    let (r, _) = recover(&Disk::default());
    assert_eq!((r.next_commit, r.next_segment), (CommitNumber(1), SegmentNumber(1)));
    assert!(r.damage.is_empty() && r.groups.is_empty() && r.unused.is_empty());
}

#[test]
fn a_tail_torn_at_any_byte_costs_no_earlier_commit_and_is_always_told() {
    let whole = disk(&[(1, &[1, 2]), (2, &[3, 4])]);
    let (_, places) = segment(2, &[3, 4]);
    let last = used(&whole.files[&2], &places[1]);
    for cut in last.start..=last.end {
        for truncate in [false, true] {
            let mut disk = whole.clone();
            let file = disk.files.get_mut(&2).unwrap();
            if truncate {
                file.truncate(cut)
            } else {
                file[cut..].fill(0)
            }
            let unchanged = whole.files[&2][cut..].iter().all(|b| *b == 0);
            let (r, commits) = recover(&disk);
            assert_eq!(commits[..3], [1, 2, 3], "cut at {cut}");
            assert_eq!(commits.len() == 4, unchanged, "cut at {cut}");
            let told = r.torn.is_some() || !r.damage.is_empty();
            assert_eq!(told, !unchanged && cut > last.start, "cut at {cut}");
            if (cut - last.start).is_multiple_of(LOG_SECTOR) {
                assert!(r.damage.is_empty(), "cut at {cut} is between sectors, so it is a tear");
            }
        }
    }
}

#[test]
fn any_set_of_missing_sectors_in_the_last_commit_is_torn_and_no_damage() {
    let whole = disk(&[(1, &[1, 2])]);
    let (_, places) = segment(1, &[1, 2]);
    let last = used(&whole.files[&1], &places[1]);
    let sectors = last.len() / LOG_SECTOR;
    for missing in 1u32..1 << sectors {
        let mut disk = whole.clone();
        let file = disk.files.get_mut(&1).unwrap();
        for sector in (0..sectors).filter(|s| missing & (1 << s) != 0) {
            file[last.start + sector * LOG_SECTOR..][..LOG_SECTOR].fill(0);
        }
        let (r, commits) = recover(&disk);
        assert_eq!((commits, r.damage.len()), (vec![1], 0), "sectors {missing:b}");
        assert_eq!(r.next_commit, CommitNumber(2));
        let nothing_left = missing == (1 << sectors) - 1;
        assert_eq!(r.torn.is_none(), nothing_left, "sectors {missing:b}");
        if let Some(Torn { segment, offset, number, .. }) = r.torn {
            let place = (SegmentNumber(1), last.start as u64, CommitNumber(2));
            assert_eq!((segment, offset, number), place);
        }
    }
}

#[test]
fn a_bit_flipped_in_any_byte_of_the_last_commit_is_damage() {
    let whole = disk(&[(1, &[1]), (2, &[2, 3])]);
    let (_, places) = segment(2, &[2, 3]);
    for at in used(&whole.files[&2], &places[1]) {
        let mut disk = whole.clone();
        disk.files.get_mut(&2).unwrap()[at] ^= 1 << (at % 8);
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1, 2], "byte {at}");
        assert!(matches!(kinds(&r)[..], [(2, DamageKind::Rot(_))]), "byte {at}");
        assert_eq!(r.damage[0].start, places[1].start as u64);
        assert_eq!(r.torn, None);
    }
}

#[test]
fn a_bit_flipped_in_any_byte_of_a_middle_commit_costs_that_commit_alone() {
    let whole = disk(&[(1, &[1, 2, 3]), (2, &[4])]);
    let (_, places) = segment(1, &[1, 2, 3]);
    for at in used(&whole.files[&1], &places[1]) {
        let mut disk = whole.clone();
        disk.files.get_mut(&1).unwrap()[at] ^= 1 << (at % 8);
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1, 3, 4], "byte {at}");
        let [Damage { segment, start, end, commits, kind: DamageKind::Rot(_) }] = r.damage[..]
        else {
            panic!("byte {at}: {:?}", r.damage);
        };
        assert_eq!(segment, SegmentNumber(1));
        assert_eq!(start..end, places[1].start as u64..places[1].end as u64);
        assert_eq!(commits, lost(2, 2));
        assert_eq!(r.groups[0].head, Seq(4));
    }
}

#[test]
fn a_middle_commit_with_missing_sectors_is_damage_not_a_tear() {
    let whole = disk(&[(1, &[1, 2, 3])]);
    let (_, places) = segment(1, &[1, 2, 3]);
    let middle = used(&whole.files[&1], &places[1]);
    for sector in (middle.start..middle.end).step_by(LOG_SECTOR) {
        let mut disk = whole.clone();
        disk.files.get_mut(&1).unwrap()[sector..sector + LOG_SECTOR].fill(0);
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1, 3]);
        assert_eq!(r.damage[0].commits, lost(2, 2));
        assert_eq!(r.torn, None);
    }
}

#[test]
fn a_last_commit_of_a_sealed_segment_that_is_bad_is_found_by_the_hole() {
    let whole = disk(&[(1, &[1, 2]), (2, &[3])]);
    let (_, places) = segment(1, &[1, 2]);
    let mut zeroed = whole.clone();
    zeroed.files.get_mut(&1).unwrap()[places[1].clone()].fill(0);
    let (r, commits) = recover(&zeroed);
    assert_eq!(commits, [1, 3]);
    assert_eq!(kinds(&r), [(2, DamageKind::Hole)]);
    assert_eq!(r.damage[0].commits, lost(2, 2));

    let mut torn = whole;
    torn.files.get_mut(&1).unwrap().truncate(places[1].start + 2 * LOG_SECTOR);
    let (r, commits) = recover(&torn);
    assert_eq!(commits, [1, 3]);
    assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_)), (2, DamageKind::Hole)]));
}

#[test]
fn a_lost_commit_before_a_torn_one_is_damage() {
    let whole = disk(&[(1, &[1, 2, 3])]);
    let (_, places) = segment(1, &[1, 2, 3]);
    let mut disk = whole;
    let file = disk.files.get_mut(&1).unwrap();
    file[places[1].clone()].fill(0);
    file[places[2].start + LOG_SECTOR..].fill(0);
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1]);
    assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_))]));
    assert_eq!(r.torn, None);
}

#[test]
fn content_after_a_torn_commit_is_damage() {
    let whole = disk(&[(1, &[1, 2])]);
    let (_, places) = segment(1, &[1, 2]);
    let mut disk = whole;
    let file = disk.files.get_mut(&1).unwrap();
    file[places[1].start + LOG_SECTOR..][..LOG_SECTOR].fill(0);
    file[places[1].end + LOG_BLOCK + 77] = 1;
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1]);
    assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_))]));
}

#[test]
fn content_further_than_one_commit_after_the_end_is_damage() {
    for (distance, damaged) in [(COMMIT_BYTES_MAX - 1, false), (COMMIT_BYTES_MAX, true)] {
        let mut disk = disk(&[(1, &[1])]);
        let (_, places) = segment(1, &[1]);
        let file = disk.files.get_mut(&1).unwrap();
        file.resize(places[0].end + COMMIT_BYTES_MAX + LOG_BLOCK, 0);
        file[places[0].end + distance] = 1;
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1]);
        assert_eq!((r.torn.is_some(), r.damage.is_empty()), (!damaged, !damaged));
    }
}

#[test]
fn a_commit_without_its_first_sector_before_a_rotten_one_is_damage() {
    let (whole, places) = segment(1, &[1, 2, 3]);
    for at in 0..LOG_SECTOR {
        let mut file = whole.clone();
        file[places[1].start..][..LOG_SECTOR].fill(0);
        file[places[2].start + at] ^= 0xFF;
        let (r, commits) = recover(&Disk { files: [(1, file)].into(), broken: None });
        assert_eq!((commits, r.torn), (vec![1], None), "byte {at}");
        assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_))]), "byte {at}");
    }
}

/// The header of such a commit takes more than one block, each with the salt in it.
#[test]
fn the_largest_commit_without_its_first_sector_is_torn() {
    let mut file = header(1).encode().to_vec();
    let start = file.len();
    file.extend(commit(1, 1, COMMIT_BYTES_MAX - 16 * LOG_BLOCK));
    file[start..][..LOG_SECTOR].fill(0);
    let (r, commits) = recover(&Disk { files: [(1, file)].into(), broken: None });
    assert_eq!((commits, r.damage), (vec![], vec![]));
    assert_eq!(r.torn.unwrap().number, CommitNumber(1));
}

#[test]
fn a_torn_commit_whose_number_is_used_again_stays_no_damage() {
    let (_, places) = segment(1, &[1, 2]);
    let mut disk = disk(&[(1, &[1, 2]), (2, &[2, 3])]);
    disk.files.get_mut(&1).unwrap()[places[1].start + LOG_SECTOR..].fill(0);
    let (r, commits) = recover(&disk);
    assert_eq!((commits, r.torn, r.damage), (vec![1, 2, 3], None, vec![]));
}

#[test]
fn a_rotten_commit_stays_damage_after_its_number_is_used_again() {
    let (_, places) = segment(1, &[1, 2]);
    let mut disk = disk(&[(1, &[1, 2]), (2, &[2, 3])]);
    disk.files.get_mut(&1).unwrap()[places[1].start + LOG_SECTOR] ^= 1;
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1, 2, 3]);
    assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_))]));
}

#[test]
fn a_segment_torn_in_its_first_commit_is_unused() {
    let mut disk = disk(&[(1, &[1]), (2, &[2]), (3, &[])]);
    disk.files.get_mut(&2).unwrap()[LOG_BLOCK + LOG_SECTOR..].fill(0);
    let (r, commits) = recover(&disk);
    assert_eq!((commits, r.damage), (vec![1], vec![]));
    assert_eq!(r.torn.unwrap().segment, SegmentNumber(2));
    assert_eq!(r.unused, [SegmentNumber(2), SegmentNumber(3)]);
    assert_eq!((r.next_segment, r.next_commit), (SegmentNumber(2), CommitNumber(2)));
}

#[test]
fn zero_filled_segments_are_unused_at_the_end_and_damage_in_the_middle() {
    let mut disk = disk(&[(1, &[1]), (2, &[2]), (3, &[3]), (4, &[])]);
    disk.files.get_mut(&2).unwrap().fill(0);
    disk.files.get_mut(&4).unwrap().fill(0);
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1, 3]);
    assert_eq!(kinds(&r), [(2, DamageKind::Empty), (3, DamageKind::Hole)]);
    assert_eq!(r.damage[1].commits, lost(2, 2));
    assert_eq!((r.unused, r.next_segment), (vec![SegmentNumber(4)], SegmentNumber(4)));
}

#[test]
fn a_segment_without_commits_in_the_middle_is_damage() {
    let (r, commits) = recover(&disk(&[(1, &[1]), (2, &[]), (3, &[2])]));
    assert_eq!(commits, [1, 2]);
    assert_eq!(kinds(&r), [(2, DamageKind::Empty)]);
}

#[test]
fn a_duplicated_segment_is_damage_and_never_used() {
    let whole = disk(&[(1, &[1]), (2, &[2]), (3, &[3])]);
    let mut behind = whole.clone();
    behind.files.insert(4, whole.files[&2].clone());
    let (r, commits) = recover(&behind);
    assert_eq!(commits, [1, 2, 3]);
    assert!(matches!(kinds(&r)[..], [(4, DamageKind::Foreign { .. })]));
    assert_eq!((r.unusable, r.next_segment), (vec![SegmentNumber(4)], SegmentNumber(5)));

    let mut over = whole.clone();
    over.files.insert(2, whole.files[&1].clone());
    let (r, commits) = recover(&over);
    assert_eq!(commits, [1, 3]);
    assert!(matches!(kinds(&r)[..], [(2, DamageKind::Foreign { .. }), (3, DamageKind::Hole)]));
}

#[test]
fn a_missing_segment_is_damage() {
    let mut disk = disk(&[(1, &[1]), (2, &[2, 3]), (3, &[4])]);
    disk.files.remove(&2);
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1, 4]);
    assert_eq!(kinds(&r), [(2, DamageKind::Missing), (3, DamageKind::Hole)]);
    assert_eq!(r.damage[1].commits, lost(2, 3));
}

#[test]
fn a_missing_first_segment_is_what_retention_leaves() {
    let mut disk = disk(&[(1, &[1]), (2, &[2]), (3, &[3])]);
    disk.files.remove(&1);
    let (r, commits) = recover(&disk);
    assert_eq!((commits, r.damage), (vec![2, 3], vec![]));
    assert_eq!(r.groups[0].first, Seq(2));
}

#[test]
fn swapped_segments_are_damage_and_never_used() {
    let whole = disk(&[(1, &[1]), (2, &[2]), (3, &[3]), (4, &[4])]);
    let mut disk = whole.clone();
    disk.files.insert(2, whole.files[&3].clone());
    disk.files.insert(3, whole.files[&2].clone());
    let (r, commits) = recover(&disk);
    assert_eq!(commits, [1, 4]);
    assert_eq!(r.unusable, [SegmentNumber(2), SegmentNumber(3)]);
    assert_eq!(r.damage.last().unwrap().commits, lost(2, 3));
}

#[test]
fn a_segment_of_another_shard_or_node_is_damage_and_never_used() {
    let shard = SegmentHeader { shard: ShardId(2), ..header(2) };
    let node = SegmentHeader { node: NodeId(8), ..header(2) };
    for foreign in [shard, node] {
        let mut disk = disk(&[(1, &[1]), (2, &[2])]);
        disk.files.get_mut(&2).unwrap()[..LOG_BLOCK].copy_from_slice(&foreign.encode());
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1]);
        assert!(matches!(kinds(&r)[..], [(2, DamageKind::Foreign { .. })]));
        assert_eq!(r.next_segment, SegmentNumber(3));
    }
}

#[test]
fn a_bit_flipped_in_any_byte_of_a_segment_header_is_damage() {
    let whole = disk(&[(1, &[1]), (2, &[2]), (3, &[3])]);
    for at in 0..LOG_BLOCK {
        let mut disk = whole.clone();
        disk.files.get_mut(&2).unwrap()[at] ^= 1 << (at % 8);
        let (r, commits) = recover(&disk);
        assert_eq!(commits, [1, 3], "byte {at}");
        assert!(matches!(r.damage[0].kind, DamageKind::Header(_)), "byte {at}");
    }
    let mut zeroed = whole;
    zeroed.files.get_mut(&2).unwrap()[..LOG_BLOCK].fill(0);
    let (r, _) = recover(&zeroed);
    assert_eq!(r.damage[0].kind, DamageKind::Header(SegmentHeaderFault::Zero));
}

#[test]
fn a_commit_that_comes_twice_is_used_once() {
    let (r, commits) = recover(&disk(&[(1, &[1, 2, 2, 1, 3])]));
    assert_eq!(commits, [1, 2, 3]);
    assert_eq!(kinds(&r), [(1, DamageKind::Repeated), (1, DamageKind::Repeated)]);
    assert_eq!(r.groups[0].head, Seq(3));
}

#[test]
fn a_torn_commit_with_a_number_that_jumps_is_damage() {
    let mut disk = disk(&[(1, &[1, 3])]);
    let (_, places) = segment(1, &[1, 3]);
    disk.files.get_mut(&1).unwrap()[places[1].start + LOG_SECTOR..].fill(0);
    let (r, commits) = recover(&disk);
    assert_eq!((commits, r.torn), (vec![1], None));
    assert!(matches!(kinds(&r)[..], [(1, DamageKind::Rot(_))]));
    assert_eq!(r.damage[0].commits, lost(3, 3));
}

#[test]
fn a_run_that_contradicts_the_one_before_it_is_damage() {
    let cases: [(&str, &[u8], u64, bool); 4] = [
        ("the next message", b"lobby", 2, false),
        ("a message again", b"lobby", 1, true),
        ("a hole without damage", b"lobby", 3, true),
        ("another name", b"other", 2, true),
    ];
    for (what, group, seq, damaged) in cases {
        let mut file = header(1).encode().to_vec();
        file.extend(commit(1, 1, 10));
        file.extend(commit_of(2, 1, 10, group, Seq(seq)));
        let mut disk = Disk { files: BTreeMap::from([(1, file)]), broken: None };
        let r = fanfare::wal::recover(&mut disk, NODE, SHARD).unwrap();
        let expected = damaged.then_some((1, DamageKind::Contradiction(GROUP)));
        assert_eq!(kinds(&r), Vec::from_iter(expected), "{what}");
        assert_eq!(r.groups[0].head, Seq(seq), "{what}");
    }
}

#[test]
fn the_first_commit_of_the_first_segment_is_commit_one() {
    let (r, commits) = recover(&disk(&[(1, &[3])]));
    assert_eq!((commits, r.damage[0].commits), (vec![3], lost(1, 2)));
}

#[test]
fn a_read_error_in_any_segment_stops_recovery() {
    for broken in 1..=3 {
        let mut disk = disk(&[(1, &[1]), (2, &[2]), (3, &[])]);
        disk.broken = Some(broken);
        let error = fanfare::wal::recover(&mut disk, NODE, SHARD).unwrap_err();
        assert!(error.to_string().contains(&format!("log segment {broken}")), "{error}");
    }
}

#[test]
fn commits_larger_than_any_buffer_step_are_recovered() {
    let mut file = header(1).encode().to_vec();
    for number in 1..=12 {
        file.extend(commit(number, 1, 900_000 + 1_000 * number as usize));
    }
    file.resize(file.len() + COMMIT_BYTES_MAX, 0);
    let disk = Disk { files: BTreeMap::from([(1, file)]), broken: None };
    let (r, commits) = recover(&disk);
    assert_eq!((commits.len(), r.damage.len(), r.torn), (12, 0, None));
}

/// Flips bits all over a log, blanks one sector, and swaps blocks.
#[test]
fn random_damage_never_takes_an_acknowledged_commit_silently() {
    let whole = disk(&[(1, &[1, 2, 3]), (2, &[4, 5, 6]), (3, &[7, 8])]);
    let acknowledged: Vec<u64> = (1..8).collect();
    bolero::check!().with_iterations(3_000).with_type::<(Vec<(u8, u32, u8)>, u32)>().for_each(
        |(flips, sector)| {
            let mut disk = whole.clone();
            if let Some(file) = disk.files.get_mut(&u64::from(1 + sector % 3)) {
                let at = (sector / 3) as usize % (file.len() / LOG_SECTOR) * LOG_SECTOR;
                file[at..at + LOG_SECTOR].fill(0);
            }
            for (segment, at, mask) in flips.iter().take(1) {
                let file = disk.files.get_mut(&u64::from(1 + segment % 3)).unwrap();
                let at = *at as usize % file.len();
                file[at] ^= mask;
            }
            let (r, commits) = recover(&disk);
            let whole = acknowledged.iter().all(|n| commits.contains(n));
            assert!(whole || !r.damage.is_empty(), "kept {commits:?}, told nothing");
        },
    );
}

/// A commit with one run of records of the group.
fn records_commit(number: u64, segment: u64, records: &[Record<'_>], count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    let run = Run::of_records(GROUP, Epoch(3), b"lobby", count, &bytes);
    let mut buf = LogBuf::with_capacity(commit_len([run].iter()));
    encode_commit(&mut buf, CommitNumber(number), salt(segment), Stamp(number << 16), &[run]);
    buf.as_slice().to_vec()
}

fn file_of(number: u64, commits: &[Vec<u8>]) -> Disk {
    let mut file = header(number).encode().to_vec();
    commits.iter().for_each(|commit| file.extend(commit));
    file.resize(SEGMENT_BYTES.max(file.len()), 0);
    Disk { files: [(number, file)].into(), broken: None }
}

fn recovered(disk: &Disk) -> Recovered {
    recover_with(&mut disk.clone(), NODE, SHARD, &mut |_, _, _| {}).unwrap()
}

fn ann_joined() -> [Record<'static>; 2] {
    [
        Record::MemberJoined { member: b"ann", joined_at: Seq(1), roster: 1 },
        Record::Cursor { member: b"ann", acked: Seq(2), epoch: Epoch(3) },
    ]
}

#[test]
fn records_and_producers_are_recovered_beside_the_messages() {
    let disk =
        file_of(1, &[commit(1, 1, 9), commit(2, 1, 9), records_commit(3, 1, &ann_joined(), 2)]);
    let r = recovered(&disk);
    assert!(r.damage.is_empty(), "{:?}", r.damage);
    let [group] = &r.groups[..] else { panic!("{:?}", r.groups) };
    assert_eq!((group.first, group.head), (Seq(1), Seq(2)));
    let ann = MemberState { joined_at: Seq(1), acked: Seq(2), acked_epoch: Epoch(3) };
    assert_eq!(group.state.members[&b"ann"[..]], ann);
    let producer = &group.state.producers[&[9; 16]];
    assert_eq!((producer.last, &*producer.member), (2, &b"a"[..]));
    assert_eq!(producer.find(1), Some((Seq(1), Epoch(3))));
}

#[test]
fn a_group_of_which_only_records_are_left_goes_on_behind_its_members() {
    let disk = file_of(4, &[records_commit(9, 4, &ann_joined(), 2)]);
    let r = recovered(&disk);
    assert!(r.damage.is_empty());
    assert_eq!((r.groups[0].first, r.groups[0].head), (Seq(3), Seq(2)));
    let disk = file_of(4, &[records_commit(9, 4, &ann_joined(), 2), commit(10, 4, 9)]);
    let r = recovered(&disk);
    assert!(r.damage.is_empty(), "the first message tells where the group was: {:?}", r.damage);
    assert_eq!((r.groups[0].first, r.groups[0].head), (Seq(10), Seq(10)));
}

#[test]
fn a_cursor_beyond_the_last_message_goes_back_to_it() {
    let disk = file_of(1, &[commit(1, 1, 9), records_commit(2, 1, &ann_joined(), 2)]);
    let r = recovered(&disk);
    assert_eq!(r.groups[0].head, Seq(1));
    assert_eq!(r.groups[0].state.members[&b"ann"[..]].acked, Seq(1));
}

#[test]
fn records_that_end_early_under_right_checksums_are_a_contradiction() {
    let disk = file_of(1, &[commit(1, 1, 9), records_commit(2, 1, &ann_joined(), 3)]);
    let r = recovered(&disk);
    assert_eq!(kinds(&r), [(1, DamageKind::Contradiction(GROUP))]);
    assert_eq!(r.groups[0].state.members.len(), 1, "what can be read is used");
}
