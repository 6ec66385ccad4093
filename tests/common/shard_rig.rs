//! Shards in this thread, over a world that takes everything at once: what the engine's own
//! code does can be counted, and comes out the same each time.

use std::collections::HashSet;
use std::sync::Arc;

use fanfare::config::ShardConfig;
use fanfare::fanout::Part;
use fanfare::mesh::mesh;
use fanfare::position::{
    CommitNumber, Epoch, Handle, Level, Nanos, NodeId, SegmentNumber, Seq, ShardId,
};
use fanfare::ring::LogBuf;
use fanfare::shard::counters::{Counters, Figures};
use fanfare::shard::{
    Active, ConnId, Control, Event, Io, Job, RecvBuf, RecvEnd, Shard, ShardParts, Turn, owner_of,
};
use fanfare::wal::Recovered;
use fanfare::wire::{self, Ack, Acks, Auth, ClientFrame, Hello, Join, JoinEntry, Publish, Start};
use fanfare::ws::upgrade::JSON_V1;

const HASH_SEED: u64 = 7;
const CONTROL_BUFS_MAX: usize = 256;

/// The world of one shard: sockets take every write whole, the disk ends every write with the
/// next wait, and nobody sends anything but the rig.
#[derive(Default)]
pub struct World {
    now: Nanos,
    ready: Vec<Event>,
    received: Vec<Vec<u8>>,
    free: Vec<u16>,
    control: Vec<Vec<u8>>,
    conns: u32,
    leaving: HashSet<ConnId>,
    /// The last wait could have slept.
    idle: bool,
    /// Connections may be told to wait.
    pub may_pause: bool,
    /// Connections may be closed that their clients did not close.
    pub may_close: bool,
    /// Sockets take nothing, until they do again.
    pub full: bool,
    held: Vec<Event>,
    /// Writes, and bytes of frames in them that all members share.
    pub writes: u64,
    pub shared_bytes: u64,
    /// What the connections whose answers are looked at were sent beside.
    pub answers: u64,
}

impl World {
    fn hang_up(&mut self, conn: ConnId) {
        self.leaving.insert(conn);
        self.ready.push(Event::RecvEnded { conn, why: RecvEnd::Eof });
    }

    fn accept(&mut self) -> ConnId {
        let conn = ConnId { slot: self.conns, generation: 0 };
        self.conns += 1;
        self.ready.push(Event::Accepted { conn });
        conn
    }

    fn hand(&mut self, conn: ConnId, bytes: &[u8]) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.received.push(Vec::new());
            (self.received.len() - 1) as u16
        });
        let buf = &mut self.received[usize::from(id)];
        buf.clear();
        buf.extend_from_slice(bytes);
        let buf = RecvBuf { id, len: bytes.len() as u32 };
        self.ready.push(Event::Received { conn, buf });
    }
}

impl Io for World {
    fn now(&self) -> Nanos {
        self.now
    }

    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.now.0 / 1_000_000
    }

    fn random(&mut self) -> u64 {
        4
    }

    // Never inlined, so that a profile can tell it from the engine.
    #[inline(never)]
    fn wait(&mut self, until: Option<Nanos>, events: &mut Vec<Event>) {
        self.idle = self.ready.is_empty() && until != Some(Nanos(0));
        // A turn takes 10 us.
        self.now.0 += 10_000;
        if !self.full {
            self.ready.append(&mut self.held);
        }
        events.append(&mut self.ready);
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        &self.received[usize::from(buf.id)]
    }

    #[inline(never)]
    fn release(&mut self, buf: RecvBuf) {
        self.free.push(buf.id);
    }

    #[inline(never)]
    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>) {
        self.writes += 1;
        for part in parts.drain(..) {
            match part {
                Part::Frames(segment) => self.shared_bytes += segment.bytes().len() as u64,
                Part::Control(mut bytes) => {
                    self.answers += bytes.len() as u64;
                    bytes.clear();
                    if self.control.len() < CONTROL_BUFS_MAX {
                        self.control.push(bytes);
                    }
                }
                Part::Header(header) => self.answers += header.as_slice().len() as u64,
            }
        }
        let events = if self.full { &mut self.held } else { &mut self.ready };
        events.push(Event::Sent { conn, result: Ok(()) });
    }

    fn control_buf(&mut self) -> Vec<u8> {
        self.control.pop().unwrap_or_default()
    }

    #[inline(never)]
    fn write_log(&mut self, _: SegmentNumber, _: u64, buf: LogBuf) {
        self.ready.push(Event::LogWritten { result: Ok(()), buf });
    }

    fn start_job(&mut self, job: Job) {
        self.ready.push(Event::JobDone { job, result: Ok(()) });
    }

    fn query_unsent(&mut self, conn: ConnId) {
        self.ready.push(Event::Unsent { conn, result: Ok(0) });
    }

    fn wake(&mut self, _: ShardId) {}
    fn pause_recv(&mut self, conn: ConnId) {
        assert!(self.may_pause, "{conn:?} was not to be paused");
    }
    fn resume_recv(&mut self, _: ConnId) {}
    fn shutdown_write(&mut self, _: ConnId) {}
    fn close(&mut self, conn: ConnId) {
        assert!(self.leaving.remove(&conn) || self.may_close, "{conn:?} was not to be closed");
        self.ready.push(Event::Closed { conn });
    }
    fn stop_accepting(&mut self) {}
    fn read_log(&mut self, _: u64, segment: SegmentNumber, _: u64, _: usize) {
        panic!("{segment:?} was not to be read");
    }
}

/// One shard and its world.
pub struct Side {
    shard: Shard,
    pub world: World,
    counters: Arc<Counters>,
    control: rtrb::Producer<Control>,
}

/// Shards of one node, driven in turn.
pub struct Rig {
    pub sides: Vec<Side>,
    frames: Vec<u8>,
    members: u32,
}

/// Somebody who publishes to one group.
pub struct Publisher {
    shard: usize,
    conn: ConnId,
    group: Vec<u8>,
    next: u64,
}

impl Publisher {
    /// Its connection.
    pub fn connection(&self) -> ConnId {
        self.conn
    }
}

impl Rig {
    /// A node of so many shards, without heartbeats.
    pub fn new(shards: u16) -> Self {
        Self::with(shards, ShardConfig::default())
    }

    pub fn with(shards: u16, config: ShardConfig) -> Self {
        Self::with_heartbeats(shards, ShardConfig { heartbeat_ms: 0, ..config })
    }

    /// The same, but who is silent for too long is closed.
    pub fn with_heartbeats(shards: u16, config: ShardConfig) -> Self {
        let config = ShardConfig { recv_buffer_bytes: 1 << 20, ..config };
        let sides = mesh(shards).into_iter().zip(0..).map(|(mesh, id)| {
            let counters = Arc::<Counters>::default();
            let (control_in, control) = rtrb::RingBuffer::new(4);
            let shard = Shard::new(ShardParts {
                id: ShardId(id),
                node: NodeId(1),
                shards,
                hash_seed: HASH_SEED,
                start: Epoch(1),
                epoch_floor: Epoch(1),
                memory_epoch_floor: Epoch(1),
                config: config.clone(),
                counters: counters.clone(),
                mesh,
                recovered: Recovered { next_commit: CommitNumber(1), ..Recovered::default() },
                active: Active { number: SegmentNumber(1), salt: 3 },
                control,
                now: Nanos(0),
            });
            Side { shard, world: World::default(), counters, control: control_in }
        });
        let mut rig = Self { sides: sides.collect(), frames: Vec::new(), members: 0 };
        rig.settle();
        rig
    }

    /// The shard that owns a group.
    pub fn owner(&self, group: &[u8]) -> usize {
        usize::from(owner_of(group, HASH_SEED, self.sides.len() as u16).0)
    }

    /// A connection that said HELLO.
    pub fn connect(&mut self, shard: usize) -> ConnId {
        self.members += 1;
        let member = format!("member-{}", self.members);
        let hello = Hello {
            version_min: wire::VERSION,
            version_max: wire::VERSION,
            encoding: 0,
            flags: 0,
            producer: u128::from(self.members).to_le_bytes(),
            member: member.as_bytes(),
        };
        let mut bytes = wire::MAGIC.to_vec();
        hello.encode(&mut bytes);
        let world = &mut self.sides[shard].world;
        let conn = world.accept();
        world.hand(conn, &bytes);
        conn
    }

    /// A member of one group, on a connection of its own.
    pub fn member(&mut self, shard: usize, entry: JoinEntry<'_>) -> ConnId {
        let conn = self.connect(shard);
        let mut bytes = Vec::new();
        Join::encode(&mut bytes, 1, &[entry]);
        self.sides[shard].world.hand(conn, &bytes);
        conn
    }

    /// A member of one group that speaks WebSocket with this subprotocol; further header fields may
    /// follow it.
    pub fn websocket_member(&mut self, shard: usize, protocol: &str, group: &str) -> ConnId {
        self.members += 1;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        let member = format!("member-{}", self.members);
        let producer = u128::from(self.members);
        let mut bytes = request.into_bytes();
        if protocol.starts_with(JSON_V1) {
            for text in [
                format!(r#"{{"type":"hello","member":"{member}","producer":"{producer:032x}"}}"#),
                format!(r#"{{"type":"join","request":1,"groups":["{group}"]}}"#),
            ] {
                masked(0x81, text.as_bytes(), &mut bytes);
            }
        } else {
            let (version, producer) = (wire::VERSION, producer.to_le_bytes());
            let (version_min, version_max, member) = (version, version, member.as_bytes());
            let hello = Hello { version_min, version_max, encoding: 0, flags: 0, producer, member };
            let mut frames = Vec::new();
            hello.encode(&mut frames);
            Join::encode(&mut frames, 1, &[JoinEntry::live(group.as_bytes(), Start::Tail)]);
            masked(0x82, &frames, &mut bytes);
        }
        let world = &mut self.sides[shard].world;
        let conn = world.accept();
        world.hand(conn, &bytes);
        conn
    }

    /// Time goes by.
    pub fn pass(&mut self, ms: u64) {
        for side in &mut self.sides {
            side.world.now = side.world.now.plus_ms(ms);
        }
    }

    /// A client sends a token.
    pub fn auth(&mut self, shard: usize, conn: ConnId, token: &str) {
        self.frames.clear();
        Auth { request: 1, token: token.as_bytes() }.encode(&mut self.frames);
        self.sides[shard].world.hand(conn, &self.frames);
    }

    /// One turn of each shard; whether all have stopped.
    pub fn turn(&mut self) -> bool {
        let mut stopped = true;
        for side in &mut self.sides {
            stopped &= side.shard.turn(&mut side.world) == Turn::Stopped;
        }
        stopped
    }

    /// All shards are to stop in good order.
    pub fn drain(&mut self) {
        for side in &mut self.sides {
            assert!(side.control.push(Control::Drain).is_ok(), "orders wait already");
        }
    }

    /// A client says that it is there.
    pub fn ping(&mut self, shard: usize, conn: ConnId) {
        self.frames.clear();
        ClientFrame::encode_quiet_ping(&mut self.frames, 1);
        self.sides[shard].world.hand(conn, &self.frames);
    }

    /// A client closes its connection.
    pub fn hang_up(&mut self, shard: usize, conn: ConnId) {
        self.sides[shard].world.hang_up(conn);
    }

    /// Somebody who will publish to a group.
    pub fn publisher(&mut self, shard: usize, group: &[u8]) -> Publisher {
        let conn = self.connect(shard);
        Publisher { shard, conn, group: group.to_vec(), next: 1 }
    }

    /// Hands over messages that came together. Nothing happens before [`Rig::settle`].
    pub fn publish(&mut self, by: &mut Publisher, messages: u64, level: Level, payload: &[u8]) {
        self.frames.clear();
        for producer_seq in by.next..by.next + messages {
            let request = producer_seq as u32;
            let (group, level) = (&by.group[..], Some(level));
            Publish { request, level, receipt: 0, producer_seq, group, payload }
                .encode(&mut self.frames);
        }
        by.next += messages;
        self.sides[by.shard].world.hand(by.conn, &self.frames);
    }

    /// Members acknowledge everything up to `seq` in the first group of their shard.
    pub fn acknowledge(&mut self, shard: usize, members: &[ConnId], owner: usize, seq: Seq) {
        let handle = Handle::new(ShardId(owner as u16), Epoch(1), 1);
        self.frames.clear();
        Acks::encode(&mut self.frames, &[Ack { handle, seq, epoch: Epoch(1) }]);
        for &conn in members {
            self.sides[shard].world.hand(conn, &self.frames);
        }
    }

    /// Turns until nobody has anything to do.
    pub fn settle(&mut self) {
        loop {
            let mut idle = true;
            for side in &mut self.sides {
                side.shard.turn(&mut side.world);
                idle &= side.world.idle;
            }
            if idle {
                return;
            }
        }
    }

    /// The figures of all shards together.
    pub fn figures(&self) -> Figures {
        let all = self.sides.iter().map(|side| side.counters.load());
        all.fold(Figures::default(), |sum, one| sum.plus(&one))
    }
}

/// Appends a WebSocket frame of a client, whose mask changes nothing.
fn masked(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend(payload);
}
