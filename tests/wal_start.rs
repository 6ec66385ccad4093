//! A start from a snapshot and indices finds what a start from the whole log finds, wherever
//! the snapshot was begun and ended, and whatever of both is missing or damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fanfare::limits::LOG_BLOCK;
use fanfare::position::{
    CommitNumber, Epoch, Handle, Level, NodeId, SegmentNumber, Seq, ShardId, Stamp,
};
use fanfare::ring::LogBuf;
use fanfare::wal::create::write_indices;
use fanfare::wal::paths::{index_path, segment_path, snapshot_path};
use fanfare::wal::snapshot::encode_snapshot;
use fanfare::wal::{
    DamageKind, DirSource, GroupState, IndexEntry, Meta, RealFiles, Record, Recovered, Run,
    RunKind, SegmentHeader, Snapshot, SnapshotFault, SnapshotGroup, SnapshotHeader, commit_len,
    encode_commit, recover,
};
use fanfare::wire::Deliver;

const NODE: NodeId = NodeId(7);
const SHARD: ShardId = ShardId(1);
const GROUPS: u64 = 4;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// A log on disk, written commit by commit as a shard would.
struct Writer {
    rng: Rng,
    heads: BTreeMap<u64, u64>,
    producers: BTreeMap<(u64, u8), u64>,
    rosters: BTreeMap<u64, u64>,
    states: BTreeMap<u64, u64>,
    commits: Vec<Vec<u8>>,
}

fn name(group: u64) -> Vec<u8> {
    format!("group-{group}").into_bytes()
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            heads: BTreeMap::new(),
            producers: BTreeMap::new(),
            rosters: BTreeMap::new(),
            states: BTreeMap::new(),
            commits: Vec::new(),
        }
    }

    fn commit(&mut self, salt: u64) {
        let number = self.commits.len() as u64 + 1;
        let stamp = Stamp((1_000 + number) << 16);
        let mut parts = Vec::new();
        for _ in 0..=self.rng.below(3) {
            let group = 1 + self.rng.below(GROUPS);
            if self.rng.below(3) == 0 {
                parts.push((group, None, self.records(group)));
            } else {
                let (metas, frames, first, count) = self.messages(group, stamp);
                parts.push((group, Some((metas, first, count)), (frames, 0)));
            }
        }
        let names: Vec<_> = parts.iter().map(|(group, ..)| name(*group)).collect();
        let runs: Vec<Run<'_>> = parts
            .iter()
            .zip(&names)
            .map(|((group, messages, (bytes, count)), name)| match messages {
                None => Run::of_records(Handle(*group), Epoch(1), name, *count, bytes),
                Some((metas, first, count)) => Run {
                    kind: RunKind::Messages,
                    handle: Handle(*group),
                    epoch: Epoch(1),
                    group: name,
                    first: Seq(*first),
                    count: *count,
                    has_memory: group.is_multiple_of(2),
                    metas,
                    frames: bytes,
                },
            })
            .collect();
        let mut buf = LogBuf::with_capacity(commit_len(runs.iter()));
        encode_commit(&mut buf, CommitNumber(number), salt, stamp, &runs);
        self.commits.push(buf.as_slice().to_vec());
    }

    fn messages(&mut self, group: u64, stamp: Stamp) -> (Vec<u8>, Vec<u8>, u64, u32) {
        let head = *self.heads.entry(group).or_default();
        let count = 1 + self.rng.below(4);
        let (mut metas, mut frames) = (Vec::new(), Vec::new());
        for seq in head + 1..=head + count {
            let producer = self.rng.below(3) as u8;
            let producer_seq = self.producers.entry((group, producer)).or_default();
            *producer_seq += 1;
            let (producer_seq, receipt) = (*producer_seq, (self.rng.below(4) * 25) as u8);
            Meta { producer: [producer; 16], producer_seq, level: Level::Durable, receipt }
                .encode(&mut metas);
            Deliver {
                handle: Handle(group),
                seq: Seq(seq),
                stamp,
                node: NODE,
                shard: SHARD,
                sender: &[b'a' + producer],
                payload: &vec![7; self.rng.below(3_000) as usize],
            }
            .encode(&mut frames);
        }
        self.heads.insert(group, head + count);
        (metas, frames, head + 1, count as u32)
    }

    fn records(&mut self, group: u64) -> (Vec<u8>, u32) {
        let mut bytes = Vec::new();
        let count = 1 + self.rng.below(3) as u32;
        for _ in 0..count {
            let member = [b'a' + self.rng.below(4) as u8];
            let head = self.heads.get(&group).copied().unwrap_or_default();
            match self.rng.below(5) {
                0 => {
                    let roster = self.rosters.entry(group).or_default();
                    *roster += 1;
                    let (member, joined_at) = (&member[..], Seq(head));
                    Record::MemberJoined { member, joined_at, roster: *roster }.encode(&mut bytes);
                }
                1 => {
                    let roster = self.rosters.entry(group).or_default();
                    *roster += 1;
                    Record::MemberLeft { member: &member, roster: *roster }.encode(&mut bytes);
                }
                2 | 3 => {
                    let acked = Seq(self.rng.below(head + 1));
                    Record::Cursor { member: &member, acked, epoch: Epoch(1) }.encode(&mut bytes);
                }
                _ => {
                    let version = self.states.entry(group).or_default();
                    *version += 1;
                    let deleted = self.rng.below(3) == 0;
                    let data: &[u8] = if deleted { b"" } else { b"value" };
                    let (key, stamp) = (&member[..], Stamp(*version));
                    Record::State { key, version: *version, stamp, deleted, data }
                        .encode(&mut bytes);
                }
            }
        }
        (bytes, count)
    }
}

/// A log of `segments` segments of a few commits each in `dir`; the last commit of each.
fn write_log(dir: &Path, seed: u64, segments: u64, upto: Option<u64>) -> Vec<u64> {
    let mut writer = Writer::new(seed);
    let mut lasts = Vec::new();
    for number in 1..=segments {
        let salt = 0xABCD_0000 + number;
        let header = SegmentHeader {
            node: NODE,
            shard: SHARD,
            number: SegmentNumber(number),
            salt,
            bytes: 1 << 20,
            created_ms: 5,
        };
        let mut file = header.encode().to_vec();
        for _ in 0..3 + writer.rng.below(6) {
            writer.commit(salt);
            let number = writer.commits.len() as u64;
            if upto.is_none_or(|upto| number <= upto) {
                file.extend(writer.commits.last().unwrap());
            }
        }
        file.resize(file.len() + 4 * LOG_BLOCK, 0);
        fs::write(segment_path(dir, SegmentNumber(number)), file).unwrap();
        lasts.push(writer.commits.len() as u64);
    }
    lasts
}

fn recovered(dir: &Path) -> Recovered {
    recover(&mut DirSource::new(dir), NODE, SHARD).unwrap()
}

/// A snapshot that was begun at `covered`, with what was true when it ended.
fn snapshot_of(then: &Recovered, covered: u64) -> Snapshot {
    let header = SnapshotHeader {
        node: NODE,
        shard: SHARD,
        covered: CommitNumber(covered),
        max_stamp: then.max_stamp,
        max_epoch: then.max_epoch,
    };
    let group = |g: &fanfare::wal::RecoveredGroup| {
        let group = SnapshotGroup {
            name: g.name.clone(),
            handle: g.handle,
            epoch: g.epoch,
            head: g.head,
            first_kept: g.first,
            used_memory: g.used_memory,
        };
        (group, g.state.clone())
    };
    Snapshot { header, groups: then.groups.iter().map(group).collect() }
}

fn put_snapshot(dir: &Path, snapshot: &Snapshot) {
    fs::write(snapshot_path(dir, snapshot.header.covered), encode_snapshot(snapshot)).unwrap();
}

type Essence = BTreeMap<u64, (Vec<u8>, u64, u64, bool, GroupState, Vec<IndexEntry>)>;

/// What must be the same however it was found.
fn essence(r: &Recovered) -> Essence {
    assert!(r.damage.is_empty(), "{:?}", r.damage);
    let group = |g: &fanfare::wal::RecoveredGroup| {
        let entries = g.index.entries().to_vec();
        let name = g.name.to_vec();
        (g.handle.0, (name, g.first.0, g.head.0, g.used_memory, g.state.clone(), entries))
    };
    r.groups.iter().map(group).collect()
}

#[test]
fn a_start_from_any_snapshot_with_any_indices_finds_what_the_whole_log_says() {
    for seed in 1..=3 {
        let whole = tempfile::tempdir().unwrap();
        let lasts = write_log(whole.path(), seed, 4, None);
        let total = *lasts.last().unwrap();
        let full = recovered(whole.path());
        let expected = essence(&full);
        assert_eq!(full.next_commit.0, total + 1);
        assert_eq!(full.to_index.len(), 4);
        for covered in 1..=total {
            // It ended at once, some commits later, or at the end.
            for ended in [covered, (covered + 3).min(total), total] {
                let then = tempfile::tempdir().unwrap();
                write_log(then.path(), seed, 4, Some(ended));
                let then = recovered(then.path());
                put_snapshot(whole.path(), &snapshot_of(&then, covered));
                for with_indices in [false, true] {
                    if with_indices {
                        let mut files = RealFiles::default();
                        let r = recovered(whole.path());
                        write_indices(&mut files, whole.path(), NODE, SHARD, &r).unwrap();
                    }
                    let r = recovered(whole.path());
                    let what = format!("seed {seed}, from {covered} to {ended}, {with_indices}");
                    assert_eq!(r.snapshot, Some(CommitNumber(covered)), "{what}");
                    assert!(essence(&r) == expected, "{what}");
                    assert_eq!((r.next_commit, r.max_stamp), (full.next_commit, full.max_stamp));
                    assert_eq!(r.segments, full.segments);
                    let indexed = lasts.iter().filter(|last| **last <= covered).count();
                    let read = if with_indices { 4 - indexed } else { 4 };
                    assert_eq!(r.to_index.len(), read, "{what}");
                }
                for number in 1..=4 {
                    fs::remove_file(index_path(whole.path(), SegmentNumber(number))).unwrap();
                }
            }
            fs::remove_file(snapshot_path(whole.path(), CommitNumber(covered))).unwrap();
        }
    }
}

/// A log with snapshots of commits in the second and third of four segments, and all indices.
fn with_snapshots(seed: u64) -> (tempfile::TempDir, [u64; 2], Essence) {
    let dir = tempfile::tempdir().unwrap();
    let lasts = write_log(dir.path(), seed, 4, None);
    let r = recovered(dir.path());
    let expected = essence(&r);
    write_indices(&mut RealFiles::default(), dir.path(), NODE, SHARD, &r).unwrap();
    let covered = [lasts[1], lasts[2]];
    for covered in covered {
        let then = tempfile::tempdir().unwrap();
        write_log(then.path(), seed, 4, Some(covered));
        put_snapshot(dir.path(), &snapshot_of(&recovered(then.path()), covered));
    }
    (dir, covered, expected)
}

#[test]
fn a_damaged_snapshot_is_told_of_and_the_one_before_it_says_the_same() {
    let (dir, [older, newer], expected) = with_snapshots(3);
    let path = snapshot_path(dir.path(), CommitNumber(newer));
    let whole = fs::read(&path).unwrap();
    for (damage, len) in [("rotten", whole.len()), ("torn", whole.len() / 2), ("empty", 0)] {
        let mut bad = whole[..len].to_vec();
        if damage == "rotten" {
            bad[len / 2] ^= 4;
        }
        fs::write(&path, bad).unwrap();
        let r = recovered(dir.path());
        assert_eq!((r.snapshot.unwrap().0, essence(&r)), (older, expected.clone()), "{damage}");
        let [(covered, fault)] = r.bad_snapshots[..] else { panic!("{:?}", r.bad_snapshots) };
        assert_eq!(covered.0, newer);
        assert_eq!(matches!(fault, SnapshotFault::Rotten { .. }), damage == "rotten");
        assert_eq!(r.snapshots, [CommitNumber(older)]);
    }
    fs::write(snapshot_path(dir.path(), CommitNumber(older)), b"x").unwrap();
    let r = recovered(dir.path());
    assert_eq!((r.snapshot, r.bad_snapshots.len()), (None, 2));
    assert_eq!(essence(&r), expected, "the whole log is read");
}

#[test]
fn without_any_snapshot_of_what_retention_took_it_is_damage() {
    let (dir, [older, newer], expected) = with_snapshots(4);
    for number in [1, 2] {
        fs::remove_file(segment_path(dir.path(), SegmentNumber(number))).unwrap();
        fs::remove_file(index_path(dir.path(), SegmentNumber(number))).unwrap();
    }
    for covered in [newer, older] {
        let r = recovered(dir.path());
        assert!(r.damage.is_empty(), "{:?}", r.damage);
        assert_eq!(r.snapshot, Some(CommitNumber(covered)));
        for group in &r.groups {
            let (_, _, head, _, state, _) = &expected[&group.handle.0];
            assert_eq!((group.head.0, &group.state), (*head, state));
            assert!(group.first.0 > 1 || group.index.first() == Some(Seq(1)));
        }
        fs::write(snapshot_path(dir.path(), CommitNumber(covered)), b"x").unwrap();
    }
    let r = recovered(dir.path());
    assert_eq!(r.damage[0].kind, DamageKind::NoSnapshot);
    assert_eq!(r.snapshot, None);
}

#[test]
fn a_log_that_ends_before_its_snapshot_is_damage_and_no_number_is_used_again() {
    let (dir, [_, newer], expected) = with_snapshots(5);
    for number in [3, 4] {
        fs::remove_file(segment_path(dir.path(), SegmentNumber(number))).unwrap();
    }
    let r = recovered(dir.path());
    assert_eq!(r.damage.last().unwrap().kind, DamageKind::Short);
    assert_eq!(r.next_commit.0, newer + 1);
    for group in &r.groups {
        let (_, _, head, _, _, _) = &expected[&group.handle.0];
        assert!(group.head.0 <= *head);
    }
}

#[test]
fn an_index_that_lies_or_is_of_another_segment_is_not_used() {
    let (dir, _, expected) = with_snapshots(6);
    let [one, two] = [1, 2].map(|n| index_path(dir.path(), SegmentNumber(n)));
    let (first, second) = (fs::read(&one).unwrap(), fs::read(&two).unwrap());
    fs::write(&one, &second).unwrap();
    fs::write(&two, &first).unwrap();
    let r = recovered(dir.path());
    assert_eq!(essence(&r), expected);
    assert_eq!(r.to_index[..2], [SegmentNumber(1), SegmentNumber(2)], "made again");
    // The file was replaced by one with another salt since.
    fs::write(&one, &first).unwrap();
    fs::remove_file(&two).unwrap();
    let mut segment = fs::read(segment_path(dir.path(), SegmentNumber(1))).unwrap();
    let header = SegmentHeader { salt: 1, ..SegmentHeader::decode(&segment).unwrap() };
    segment[..LOG_BLOCK].copy_from_slice(&header.encode());
    fs::write(segment_path(dir.path(), SegmentNumber(1)), segment).unwrap();
    assert!(!recovered(dir.path()).damage.is_empty(), "its commits are not that segment's");
}
