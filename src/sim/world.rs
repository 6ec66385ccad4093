//! The world: virtual time, and what happens in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::client::{Client, Habits};
use super::config::WorldConfig;
use super::net::{End, Link};
use super::node::Node;
use super::oracle::{Oracle, Violation};
use super::rng::Rng;
use super::trace::Note;
use crate::position::Nanos;

/// Something that is due at some time. Those of a node belong to one of its lives.
#[derive(Debug)]
pub(super) enum Due {
    Turn { shard: usize },
    TurnEnds { shard: usize },
    Deadline { shard: usize, token: u64 },
    LogWritten { shard: usize, failed: bool },
    LogRead { shard: usize, token: u64, segment: u64, offset: u64, len: usize, failed: bool },
    JobStep { shard: usize, id: u64 },
    Accept { link: u32 },
    UpArrives { link: u32, count: usize, sent: Nanos },
    UpEnds { link: u32, end: End },
    Receive { link: u32 },
    PauseTakesEffect { link: u32 },
    KernelWrites { link: u32 },
    Closed { link: u32 },
    DownArrives { link: u32, count: usize },
    DownEnds { link: u32, end: End },
    ClientReads { link: u32 },
    Tick { client: usize },
    Stop,
    Start,
    Rot,
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    order: u64,
    boot: u32,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What came of a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How often each fault happened.
    pub faults: super::Faults,
    /// Virtual time that passed.
    pub virtual_ms: u64,
    /// Messages that members got.
    pub deliveries: u64,
    /// Publishes that were answered.
    pub acknowledged: u64,
    /// Pages of history and changes of state that clients got.
    pub answers: u64,
    /// Turns of all shards.
    pub turns: u64,
    /// The same for the same seed.
    pub digest: u64,
}

/// Why a world ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its seed, which gives the same failure again.
    pub seed: u64,
    /// What was not as it must be.
    pub why: String,
    /// The last events.
    pub trace: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, why, trace } = self;
        write!(f, "{trace}\nseed {seed}: {why}\nthe last events are above")
    }
}

/// One node, its clients, clock, network and disks, run from one seed.
#[derive(Debug)]
pub struct World {
    seed: u64,
    pub(super) config: WorldConfig,
    pub(super) now: Nanos,
    pub(super) rng: Rng,
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub(super) node: Node,
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) next_link: u32,
    pub(super) next_job: u64,
    /// When the newest bytes were sent that have reached the server.
    pub(super) newest_sent: Nanos,
    pub(super) clients: Vec<Client>,
    pub(super) oracle: Oracle,
    /// Trouble is over; everyone finishes what was begun.
    pub(super) calm: bool,
    pub(super) turns: u64,
    /// What should not have been; nothing happens after it.
    violation: Option<Violation>,
}

impl World {
    /// A world that `run` will bring to life.
    #[must_use]
    pub fn new(seed: u64, config: WorldConfig) -> Self {
        let mut rng = Rng::new(seed);
        let mut clients = Vec::new();
        for index in 0..config.clients {
            let profile = Habits {
                window: if rng.chance(700_000) { rng.between(1, 8) as usize } else { 0 },
                publish_ppm: rng.between(20_000, 500_000) as u32,
                memory_ppm: config.memory_ppm,
                churn_ppm: config.churn_ppm,
                slow: rng.chance(config.slow_ppm),
                durable: rng.chance(config.durable_ppm),
                receipt_ppm: config.receipt_ppm,
                query_ppm: config.query_ppm,
                watches: config.query_ppm > 0 && rng.flip(),
                reader: false,
                probe: false,
            };
            let mut client = Client::new(index, profile, config.groups);
            for view in &mut client.views {
                view.wanted = rng.flip();
            }
            clients.push(client);
        }
        let node = Node::new(&mut rng, config.shards);
        Self {
            seed,
            now: Nanos(1_000_000_000),
            rng,
            heap: BinaryHeap::new(),
            order: 0,
            node,
            links: BTreeMap::new(),
            next_link: 0,
            next_job: 0,
            newest_sent: Nanos(0),
            clients,
            oracle: Oracle::default(),
            calm: false,
            turns: 0,
            violation: None,
            config,
        }
    }

    /// Keeps the last `notes` events for the trace, or shows each as it happens.
    pub fn trace(&mut self, notes: usize, show: bool) {
        self.oracle.trace.keep(notes, show);
    }

    /// As [`World::try_run`].
    ///
    /// # Panics
    /// If anything that must be true is not; the message has the seed and the last events.
    pub fn run(&mut self) -> Outcome {
        match self.try_run() {
            Ok(outcome) => outcome,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Lives through the active time, lets everything settle, and reads everything back
    /// twice: as it is, and after the power was cut.
    ///
    /// # Errors
    /// What was not as it must be, and the last events.
    pub fn try_run(&mut self) -> Result<Outcome, Failure> {
        match self.live() {
            Ok(outcome) if self.violation.is_none() => Ok(outcome),
            result => Err(Failure {
                seed: self.seed,
                why: self.violation.take().or(result.err()).unwrap_or_default(),
                trace: self.oracle.trace.to_string(),
            }),
        }
    }

    fn live(&mut self) -> Result<Outcome, Violation> {
        let start = self.now;
        self.oracle.late_ms = self.config.late_ms;
        self.oracle.payload_bytes = self.config.payload_bytes;
        self.start_node();
        for client in 0..self.clients.len() {
            let after = self.rng.below(200_000_000);
            self.after(after, Due::Tick { client });
        }
        if self.config.trouble.crash_every_ms > 0 {
            self.plan_stop();
        }
        self.plan_rot();
        let end = start.plus_ms(self.config.active_ms);
        self.run_until(end);
        self.settle()?;
        Ok(Outcome {
            faults: self.oracle.faults.clone(),
            virtual_ms: self.now.since(start) / 1_000_000,
            deliveries: self.oracle.deliveries,
            acknowledged: self.oracle.acknowledged,
            answers: self.oracle.states.answers,
            turns: self.turns,
            digest: self.oracle.digest,
        })
    }

    pub(super) fn after(&mut self, nanos: u64, due: Due) {
        self.at(Nanos(self.now.0 + nanos), due);
    }

    pub(super) fn at(&mut self, at: Nanos, due: Due) {
        self.order += 1;
        let (order, boot) = (self.order, self.node.boot);
        self.heap.push(Reverse(Entry { at, order, boot, due }));
    }

    pub(super) fn note(&mut self, note: Note) {
        self.oracle.now = self.now;
        self.oracle.note(note);
    }

    /// Ends the world if a check failed.
    pub(super) fn check(&mut self, result: Result<(), Violation>) {
        if self.violation.is_none() {
            self.violation = result.err();
        }
    }

    pub(super) fn is_violated(&self) -> bool {
        self.violation.is_some()
    }

    pub(super) fn run_until(&mut self, end: Nanos) {
        while let Some(Reverse(next)) = self.heap.peek() {
            if next.at > end || self.violation.is_some() {
                break;
            }
            let Some(Reverse(entry)) = self.heap.pop() else { break };
            self.now = self.now.max(entry.at);
            self.oracle.now = self.now;
            self.happens(entry);
        }
        self.now = self.now.max(end);
    }

    fn happens(&mut self, entry: Entry) {
        let alive = entry.boot == self.node.boot && self.node.is_up();
        match entry.due {
            Due::Accept { link } => self.accept(link),
            Due::UpArrives { link, count, sent } => self.up_arrives(link, count, sent),
            Due::UpEnds { link, end } => self.up_ends(link, end),
            Due::Receive { link } => self.receive(link),
            Due::PauseTakesEffect { link } => self.pause_takes_effect(link),
            Due::KernelWrites { link } => self.kernel_writes(link),
            Due::Closed { link } => self.closed(link),
            Due::DownArrives { link, count } => self.down_arrives(link, count),
            Due::DownEnds { link, end } => self.down_ends(link, end),
            Due::ClientReads { link } => self.client_reads(link),
            Due::Tick { client } => self.tick(client),
            Due::Start => self.start_node(),
            Due::Rot if !self.calm => self.rot(),
            Due::Stop if alive => self.stop(),
            Due::Turn { shard } if alive => self.turn(shard),
            Due::TurnEnds { shard } if alive => self.turn_ends(shard),
            Due::Deadline { shard, token } if alive => self.deadline(shard, token),
            Due::LogWritten { shard, failed } if alive => self.log_written(shard, failed),
            Due::LogRead { shard, token, segment, offset, len, failed } if alive => {
                self.log_read(shard, token, segment, offset, len, failed);
            }
            Due::JobStep { shard, id } if alive => self.job_step(shard, id),
            _ => {}
        }
    }
}

impl Drop for World {
    /// A panic anywhere below a world, also in the engine itself, shows the seed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            if self.violation.is_none() {
                eprintln!("{}", self.oracle.trace);
            }
            eprintln!("the last events are above; replay with FANFARE_SEED={}", self.seed);
        }
    }
}
