//! In steady state the engine allocates for a commit and for a segment of a tail, a few times
//! each: nothing for a message and nothing for a member. The numbers below are exact, so that
//! one more allocation anywhere on the path is seen.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "common/shard_rig.rs"]
#[allow(dead_code, reason = "benches use the rest of it")]
mod shard_rig;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use allocation_counter::measure;
use bytes::Bytes;
use fanfare::config::ShardConfig;
use fanfare::fanout::{Part, PinGauge, Segment, SegmentRef};
use fanfare::limits::LOG_BLOCK;
use fanfare::position::{Level, SegmentNumber, Seq, ShardId};
use fanfare::ring::{ColdExecutor, Driver, DriverConfig, LogBuf};
use fanfare::shard::{ConnId, Event, Io};
use fanfare::wal::paths::segment_path;
use fanfare::wire::{JoinEntry, Start};
use shard_rig::{Publisher, Rig};

const PAYLOAD: [u8; 128] = [7; 128];
const ROUNDS: usize = 101;

/// The runs of a commit, to be encoded.
const PER_COMMIT: u64 = 1;
/// A segment, its bytes, and their count of references.
const PER_SEGMENT: u64 = 3;
/// Room for the runs of records beside those of messages.
const PER_COMMIT_WITH_RECORDS: u64 = 1;
/// Publishes forwarded to the owner: the batch, its bytes and their count of references. Its
/// answer: the batch, the list of segments in it, and the segment on the other shard.
const PER_FOREIGN_COMMIT: u64 = 6;
/// What is announced to another shard, as above, and from there the acknowledgements of a turn
/// and the batch they go with.
const PER_ACKS_OF_ANOTHER_SHARD: u64 = 5;

/// The usual count of allocations of a round. What has not grown to its final size yet, or is
/// done once in a while, may make a round a little dearer, but not many times.
fn usual(counts: &mut [u64]) -> u64 {
    counts.sort_unstable();
    let (median, most) = (counts[counts.len() / 2], counts[counts.len() - 1]);
    assert!(most <= 2 * median + 8, "a round of {most} allocations, where {median} are usual");
    let sum: u64 = counts.iter().sum();
    assert!(sum <= (median + 1) * counts.len() as u64, "{sum} in all, {median} a round");
    median
}

/// Allocations of a broadcast of `messages` in each of the groups, all in one commit.
fn per_commit(rig: &mut Rig, publishers: &mut [Publisher], messages: u64, level: Level) -> u64 {
    let mut round = |rig: &mut Rig| {
        for publisher in publishers.iter_mut() {
            rig.publish(publisher, messages, level, &PAYLOAD);
        }
        measure(|| rig.settle()).count_total
    };
    for _ in 0..(2_000 / messages).max(100) {
        round(rig);
    }
    let before = rig.figures();
    let mut counts: Vec<u64> = (0..ROUNDS).map(|_| round(rig)).collect();
    let after = rig.figures();
    assert_eq!(after.commits - before.commits, ROUNDS as u64, "a round is a commit");
    let groups = publishers.len() as u64;
    assert_eq!(after.messages - before.messages, ROUNDS as u64 * messages * groups);
    assert_eq!(
        (after.deliveries - before.deliveries) * groups,
        (after.messages - before.messages) * after.members,
        "every member got every message"
    );
    usual(&mut counts)
}

fn rig(shards: u16) -> Rig {
    // A small tail, so that segments leave it all the time.
    Rig::with(shards, ShardConfig { tail_bytes_max: 1 << 20, ..ShardConfig::default() })
}

#[test]
fn a_broadcast_costs_the_same_few_allocations_whatever_its_members_and_messages() {
    for level in [Level::Durable, Level::Memory] {
        for members in [1, 10, 100] {
            for messages in [1, 16, 256] {
                let mut rig = rig(1);
                for _ in 0..members {
                    rig.member(0, JoinEntry::live(b"room", Start::Tail));
                }
                let mut publisher = [rig.publisher(0, b"room")];
                rig.settle();
                let count = per_commit(&mut rig, &mut publisher, messages, level);
                let all = format!("{level:?}, {members} members, {messages} messages");
                assert_eq!(count, PER_COMMIT + PER_SEGMENT, "{all}");
            }
        }
    }
}

#[test]
fn a_commit_of_many_groups_costs_the_same_few_allocations_for_each() {
    for groups in [1, 10, 50_u64] {
        let mut rig = rig(1);
        let mut publishers = Vec::new();
        for group in 0..groups {
            let name = format!("room-{group}");
            for _ in 0..3 {
                rig.member(0, JoinEntry::live(name.as_bytes(), Start::Tail));
            }
            publishers.push(rig.publisher(0, name.as_bytes()));
        }
        rig.settle();
        let count = per_commit(&mut rig, &mut publishers, 3, Level::Durable);
        assert_eq!(count, PER_COMMIT + groups * PER_SEGMENT, "{groups} groups");
    }
}

#[test]
fn a_broadcast_over_two_shards_costs_the_same_few_allocations() {
    for members in [2, 20, 100] {
        for messages in [1, 16, 256] {
            let mut rig = rig(2);
            for member in 0..members {
                rig.member(member % 2, JoinEntry::live(b"room", Start::Tail));
            }
            let foreign = 1 - rig.owner(b"room");
            let mut publisher = [rig.publisher(foreign, b"room")];
            rig.settle();
            let count = per_commit(&mut rig, &mut publisher, messages, Level::Durable);
            let all = format!("{members} members, {messages} messages");
            assert_eq!(count, PER_COMMIT + PER_SEGMENT + PER_FOREIGN_COMMIT, "{all}");
        }
    }
}

#[test]
fn acknowledgements_of_durable_members_cost_the_same_few_allocations() {
    for shards in [1, 2] {
        for members in [2, 20, 100] {
            let mut rig = rig(shards);
            let owner = rig.owner(b"room");
            let mut publisher = rig.publisher(owner, b"room");
            let mut conns = vec![Vec::new(); usize::from(shards)];
            for member in 0..members {
                let shard = member % usize::from(shards);
                conns[shard].push(rig.member(shard, JoinEntry::durable(b"room")));
            }
            rig.settle();
            let mut published = 0;
            let mut round = |rig: &mut Rig| {
                published += 16;
                rig.publish(&mut publisher, 16, Level::Durable, &PAYLOAD);
                let broadcast = measure(|| rig.settle()).count_total;
                for (shard, conns) in conns.iter().enumerate() {
                    rig.acknowledge(shard, conns, owner, Seq(published));
                }
                broadcast + measure(|| rig.settle()).count_total
            };
            for _ in 0..200 {
                round(&mut rig);
            }
            let before = rig.figures();
            let mut counts: Vec<u64> = (0..ROUNDS).map(|_| round(&mut rig)).collect();
            let written = rig.figures().cursors_written - before.cursors_written;
            assert!(written >= (ROUNDS * members / 2) as u64, "{written} cursors");
            let mut expected = PER_COMMIT + PER_SEGMENT + PER_COMMIT_WITH_RECORDS;
            if shards > 1 {
                expected += PER_ACKS_OF_ANOTHER_SHARD;
            }
            assert_eq!(usual(&mut counts), expected, "{members} members on {shards} shards");
        }
    }
}

/// A driver on real sockets, and members that read what it writes.
struct Sockets {
    driver: Driver,
    conns: Vec<ConnId>,
    events: Vec<Event>,
    parts: Vec<Part>,
    log: Option<LogBuf>,
    _cold: ColdExecutor,
    _dir: tempfile::TempDir,
}

impl Sockets {
    fn new(members: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(segment_path(dir.path(), SegmentNumber(1)), vec![0; 1 << 20]).unwrap();
        let cold = ColdExecutor::start().unwrap();
        let driver = Driver::new(DriverConfig {
            shard: ShardId(0),
            listeners: vec![listener],
            connections_max: members as u32,
            recv_buffers: 16,
            recv_buffer_bytes: 4096,
            spin_us: 0,
            log_dir: dir.path().to_owned(),
            cold: cold.handle(),
            steps: Arc::new(|_, _| Vec::new()),
        });
        let mut sockets = Self {
            driver: driver.unwrap(),
            conns: Vec::new(),
            events: Vec::with_capacity(1024),
            parts: Vec::new(),
            log: Some(LogBuf::with_capacity(LOG_BLOCK)),
            _cold: cold,
            _dir: dir,
        };
        for _ in 0..members {
            let mut member = TcpStream::connect(address).unwrap();
            std::thread::spawn(move || while member.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {});
        }
        while sockets.conns.len() < members {
            sockets.wait();
            let accepted = sockets.events.drain(..).filter_map(|event| match event {
                Event::Accepted { conn } => Some(conn),
                _ => None,
            });
            sockets.conns.extend(accepted);
        }
        sockets
    }

    fn wait(&mut self) {
        let until = self.driver.now().plus_ms(1_000);
        self.driver.wait(Some(until), &mut self.events);
    }

    /// Writes to all members, each with some frames of its own before those of the tail, and a
    /// commit to the log; comes back when all of it has ended.
    fn broadcast(&mut self, tail: &[SegmentRef]) {
        for at in 0..self.conns.len() {
            let mut control = self.driver.control_buf();
            control.extend_from_slice(&[9; 24]);
            self.parts.push(Part::Control(control));
            self.parts.extend(tail.iter().cloned().map(Part::Frames));
            self.driver.send(self.conns[at], &mut self.parts);
        }
        let mut buf = self.log.take().unwrap();
        buf.set_len(LOG_BLOCK);
        self.driver.write_log(SegmentNumber(1), 0, buf);
        let mut left = self.conns.len() + 1;
        while left > 0 {
            self.wait();
            for event in self.events.drain(..) {
                match event {
                    Event::Sent { result, .. } => {
                        result.unwrap();
                        left -= 1;
                    }
                    Event::LogWritten { result, buf } => {
                        result.unwrap();
                        self.log = Some(buf);
                        left -= 1;
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn writes_to_sockets_and_to_the_log_allocate_nothing() {
    let gauge = PinGauge::default();
    for members in [1, 50] {
        let mut sockets = Sockets::new(members);
        for segments in [1, 20] {
            let segment = |at| Segment::new(Bytes::from(vec![7; 200]), Seq(at), Seq(at), &gauge);
            let tail: Vec<_> = (1..=segments).map(segment).collect();
            for _ in 0..50 {
                sockets.broadcast(&tail);
            }
            let all = measure(|| (0..ROUNDS).for_each(|_| sockets.broadcast(&tail)));
            assert_eq!(all.count_total, 0, "{members} members, {segments} segments");
        }
    }
}
