//! One shard over an outside world that the test holds in its hands: what a turn starts is
//! seen one by one, and finishes when the test says so.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part, and may panic")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use fanfare::config::{Class, Classes, Pattern, Priority, ShardConfig};
use fanfare::fanout::Part;
use fanfare::mesh::mesh;
use fanfare::position::{CommitNumber, Epoch, Level, Nanos, NodeId, SegmentNumber, ShardId};
use fanfare::ring::LogBuf;
use fanfare::shard::counters::{Counters, Figures};
use fanfare::shard::{
    Active, ConnId, Control, Event, Io, Job, RecvBuf, RecvEnd, Shard, ShardParts,
};
use fanfare::wal::Recovered;
use fanfare::wire::{Hello, Join, JoinEntry, MAGIC, Publish, ServerFrame, Start, VERSION, split};

/// The world.
pub struct World {
    pub now: Nanos,
    events: VecDeque<Event>,
    bufs: HashMap<u16, Vec<u8>>,
    next_buf: u16,
    /// Writes that were started since the test last looked, in order.
    pub started: Vec<(u32, Vec<u8>)>,
    /// Connections whose writes do not finish.
    pub stuck: HashSet<u32>,
    /// Connections with a write that is not finished.
    pub unfinished: Vec<u32>,
    /// Whether log writes finish.
    pub disk_works: bool,
    /// The errno with which the next one ends.
    pub disk_fails: Option<i32>,
    log: Option<LogBuf>,
    /// Bytes of each log write.
    pub commits: Vec<Vec<u8>>,
    /// How often the shard let others have its core.
    pub gave_way: u32,
    /// Connections that are not read.
    pub paused: HashSet<u32>,
    /// Until when the last turn would have slept.
    pub until: Option<Nanos>,
    /// Segments that were removed.
    pub removed: Vec<SegmentNumber>,
    pub wall_ms: u64,
    /// Reads of the log that were begun.
    pub reads: usize,
    /// So many of the next ones fail.
    pub reads_fail: usize,
    /// What is in each segment.
    disk: HashMap<SegmentNumber, Vec<u8>>,
}

/// A shard in its world.
pub struct Bench {
    pub shard: Shard,
    pub world: World,
    counters: Arc<Counters>,
    sequences: HashMap<(u32, String), u64>,
    pub control: rtrb::Producer<Control>,
}

fn id(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

/// The frames in what a connection was sent.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = ServerFrame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (frame, len) = split(rest, rest.len()).unwrap()?;
        rest = &rest[len..];
        Some(ServerFrame::decode(frame).unwrap())
    })
}

/// A class for the groups that start with its name.
pub fn class(priority: Priority) -> Class {
    let name = priority.name();
    let groups = vec![Pattern::parse(&format!("{name}/*")).unwrap()];
    Class { groups, priority, ..Class::named(name) }
}

/// Classes `realtime/*` and `bulk/*`; everything else is normal.
pub fn mixed() -> ShardConfig {
    let classes = Classes::new(vec![class(Priority::Realtime), class(Priority::Bulk)]);
    ShardConfig { classes: Arc::new(classes), heartbeat_ms: 0, ..ShardConfig::default() }
}

impl Bench {
    pub fn new(config: ShardConfig) -> Self {
        let (orders, control) = rtrb::RingBuffer::new(1);
        let counters = Arc::<Counters>::default();
        let now = Nanos(1_000_000_000);
        let shard = Shard::new(ShardParts {
            id: ShardId(0),
            node: NodeId(1),
            shards: 1,
            hash_seed: 0,
            start: Epoch(1),
            epoch_floor: Epoch(1),
            memory_epoch_floor: Epoch(1),
            config,
            counters: counters.clone(),
            mesh: mesh(1).remove(0),
            recovered: Recovered { next_commit: CommitNumber(1), ..Recovered::default() },
            active: Active { number: SegmentNumber(1), salt: 7 },
            control,
            now,
        });
        let world = World {
            now,
            events: VecDeque::new(),
            bufs: HashMap::new(),
            next_buf: 0,
            started: Vec::new(),
            stuck: HashSet::new(),
            unfinished: Vec::new(),
            disk_works: true,
            disk_fails: None,
            log: None,
            commits: Vec::new(),
            gave_way: 0,
            paused: HashSet::new(),
            until: None,
            removed: Vec::new(),
            wall_ms: 1_000_000,
            reads: 0,
            reads_fail: 0,
            disk: HashMap::new(),
        };
        Self { shard, world, counters, sequences: HashMap::new(), control: orders }
    }

    /// One turn; returns the slots of the writes it started, in order.
    pub fn turn(&mut self) -> Vec<u32> {
        self.world.started.clear();
        let _ = self.shard.turn(&mut self.world);
        self.world.started.iter().map(|(slot, _)| *slot).collect()
    }

    /// Turns as [`Bench::settle`] does; returns all that was written to a connection.
    pub fn settle_reading(&mut self, slot: u32) -> Vec<u8> {
        let (mut bytes, mut quiet) = (Vec::new(), 0);
        while quiet < 4 {
            quiet = if self.turn().is_empty() { quiet + 1 } else { 0 };
            let started = self.world.started.iter().filter(|(to, _)| *to == slot);
            bytes.extend(started.flat_map(|(_, bytes)| bytes.iter().copied()));
        }
        bytes
    }

    /// Turns until no write was started for a while.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 4 {
            quiet = if self.turn().is_empty() { quiet + 1 } else { 0 };
        }
    }

    pub fn figures(&self) -> Figures {
        self.counters.load()
    }

    /// Lets time pass.
    pub fn pass_ms(&mut self, ms: u64) {
        self.world.now = self.world.now.plus_ms(ms);
        self.world.wall_ms += ms;
    }

    pub fn say(&mut self, slot: u32, bytes: Vec<u8>) {
        let buf = RecvBuf { id: self.world.next_buf, len: bytes.len() as u32 };
        self.world.next_buf = self.world.next_buf.wrapping_add(1);
        self.world.bufs.insert(buf.id, bytes);
        self.world.events.push_back(Event::Received { conn: id(slot), buf });
    }

    /// A connection that is in these groups from their tails on.
    pub fn connect(&mut self, slot: u32, groups: &[&str]) {
        self.connect_from(slot, groups, Start::Tail);
    }

    /// A connection that is in these groups from `start` on.
    pub fn connect_from(&mut self, slot: u32, groups: &[&str], start: Start) {
        let entries = groups.iter().map(|g| JoinEntry::live(g.as_bytes(), start));
        self.connect_as(slot, &format!("m{slot}"), &entries.collect::<Vec<_>>());
    }

    /// A connection of a member that joins these groups at once.
    pub fn connect_as(&mut self, slot: u32, member: &str, entries: &[JoinEntry<'_>]) {
        self.world.events.push_back(Event::Accepted { conn: id(slot) });
        let mut bytes = MAGIC.to_vec();
        let mut producer = [0; 16];
        producer[..4].copy_from_slice(&slot.to_le_bytes());
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            encoding: 0,
            flags: 0,
            producer,
            member: member.as_bytes(),
        }
        .encode(&mut bytes);
        if !entries.is_empty() {
            Join::encode(&mut bytes, 1, entries);
        }
        self.say(slot, bytes);
    }

    pub fn publish(&mut self, slot: u32, group: &str, bytes: usize) {
        self.publish_at(slot, group, bytes, Level::Durable);
    }

    pub fn publish_at(&mut self, slot: u32, group: &str, bytes: usize, level: Level) {
        let payload = vec![b'x'; bytes];
        let seq = self.sequences.entry((slot, group.into())).or_default();
        *seq += 1;
        let mut out = Vec::new();
        Publish {
            request: 1,
            level: Some(level),
            receipt: 0,
            producer_seq: *seq,
            group: group.as_bytes(),
            payload: &payload,
        }
        .encode(&mut out);
        self.say(slot, out);
    }

    pub fn disconnect(&mut self, slot: u32) {
        self.world.events.push_back(Event::RecvEnded { conn: id(slot), why: RecvEnd::Eof });
    }

    /// Lets the unfinished write of a connection end.
    pub fn finish_write(&mut self, slot: u32) {
        let before = self.world.unfinished.len();
        self.world.unfinished.retain(|s| *s != slot);
        assert!(self.world.unfinished.len() < before, "no write of {slot} is unfinished");
        self.world.events.push_back(Event::Sent { conn: id(slot), result: Ok(()) });
    }
}

impl Io for World {
    fn now(&self) -> Nanos {
        self.now
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms
    }

    fn random(&mut self) -> u64 {
        4
    }

    fn wait(&mut self, until: Option<Nanos>, events: &mut Vec<Event>) {
        self.until = until;
        self.now = Nanos(self.now.0 + 1_000);
        if self.disk_works
            && let Some(buf) = self.log.take()
        {
            let result = self.disk_fails.take().map_or(Ok(()), Err);
            events.push(Event::LogWritten { result, buf });
        }
        events.extend(self.events.drain(..));
    }

    fn give_way(&mut self) {
        self.gave_way += 1;
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        &self.bufs[&buf.id]
    }

    fn release(&mut self, buf: RecvBuf) {
        self.bufs.remove(&buf.id);
    }

    fn pause_recv(&mut self, conn: ConnId) {
        self.paused.insert(conn.slot);
        self.events.push_back(Event::RecvEnded { conn, why: RecvEnd::Paused });
    }

    fn resume_recv(&mut self, conn: ConnId) {
        self.paused.remove(&conn.slot);
    }

    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>) {
        let bytes = parts.drain(..).flat_map(|part| part.as_slice().to_vec()).collect();
        self.started.push((conn.slot, bytes));
        if self.stuck.contains(&conn.slot) {
            self.unfinished.push(conn.slot);
        } else {
            self.events.push_back(Event::Sent { conn, result: Ok(()) });
        }
    }

    fn query_unsent(&mut self, conn: ConnId) {
        self.events.push_back(Event::Unsent { conn, result: Ok(0) });
    }

    fn control_buf(&mut self) -> Vec<u8> {
        Vec::with_capacity(64)
    }

    fn shutdown_write(&mut self, _: ConnId) {}

    fn close(&mut self, conn: ConnId) {
        self.unfinished.retain(|slot| *slot != conn.slot);
        self.events.push_back(Event::Closed { conn });
    }

    fn stop_accepting(&mut self) {}

    fn write_log(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf) {
        let file = self.disk.entry(segment).or_default();
        file.resize(offset as usize, 0);
        file.extend_from_slice(buf.as_slice());
        self.commits.push(buf.as_slice().to_vec());
        self.log = Some(buf);
    }

    fn read_log(&mut self, token: u64, segment: SegmentNumber, offset: u64, len: usize) {
        self.reads += 1;
        if self.reads_fail > 0 {
            self.reads_fail -= 1;
            const EIO: i32 = 5;
            return self.events.push_back(Event::LogRead { token, result: Err(EIO) });
        }
        let file = self.disk.get(&segment).map_or(&[][..], Vec::as_slice);
        let start = (offset as usize).min(file.len());
        let bytes = &file[start..(start + len).min(file.len())];
        let mut buf = LogBuf::with_capacity(len);
        buf.set_len(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        self.events.push_back(Event::LogRead { token, result: Ok(buf) });
    }

    fn start_job(&mut self, job: Job) {
        if let Job::RemoveSegments { numbers } = &job {
            self.removed.extend(numbers);
            self.disk.retain(|number, _| !numbers.contains(number));
        }
        self.events.push_back(Event::JobDone { job, result: Ok(()) });
    }

    fn wake(&mut self, _: ShardId) {}
}
