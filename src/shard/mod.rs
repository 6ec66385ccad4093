//! The shard: one thread's state machine. It owns connections, groups and a log, does no I/O
//! of its own, and advances by [`Shard::turn`].

mod backpressure;
mod capture;
mod catch_up;
mod codec;
mod commit;
mod conn;
pub mod counters;
mod cursors;
mod drain;
mod duplicates;
mod durable;
mod expire;
mod fetch;
mod heartbeats;
mod held;
pub mod histogram;
mod inbox;
mod inflate;
mod io;
pub mod isolate;
mod joins;
pub mod look;
mod opening;
mod pace;
mod peers;
mod probe;
mod publish;
mod queries;
mod queues;
mod rates;
mod receipts;
mod records;
mod redeliver;
mod replies;
mod retention;
mod rosters;
mod sequence;
mod snapshot;
mod start;
mod state;
pub mod status;
mod take;
mod tls;
mod tokens;
mod websocket;
mod wheel;
mod write;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;

use crate::config::ShardConfig;
use crate::fanout::{Part, PinGauge};
use crate::group::receipts::Fulfilled;
use crate::group::{Group, Place};
use crate::mesh::Mesh;
use crate::position::{Epoch, Handle, Nanos, NodeId, ShardId, Stamp};
use crate::slots::Slots;
use crate::wal::Log;
use crate::wire::ErrorCounts;

use backpressure::Backpressure;
use catch_up::Reads;
use codec::Codec;
use commit::{Commit, Filling};
use conn::{Conn, Membership};
use counters::{Counters, Figures};
use cursors::{AcksOut, Cursors};
use drain::Drain;
use durable::RosterChanges;
use heartbeats::Heartbeats;
use held::HeldAnswers;
use histogram::Distributions;
use inbox::Inbox;
use inflate::Inflating;
use isolate::Normal;
use pace::Pace;
use queries::Questions;
use queues::Queues;
use rates::Rates;
use rosters::Announcements;
use snapshot::Snapshots;
use tls::Handshakes;
use tokens::Tokens;
use wheel::Wheel;

pub use drain::Control;
pub use durable::Wanted;
pub use inbox::Origin;
pub use io::{ConnId, Event, Io, Job, RecvBuf, RecvEnd};
pub use joins::Accepted;
pub use queries::{Answer, Asked, Question};
pub use start::{Active, ShardParts, owner_of};
pub use state::OwnedState;

/// Whether a shard wants another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It does.
    Continue,
    /// It has drained: everything it accepted is on disk and was offered to every member.
    Stopped,
}

/// One shard. See the module's first lines and ARCHITECTURE.md.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    node: NodeId,
    shards: u16,
    hash_seed: u64,
    /// This start of the server; epoch of groups that begin in it.
    start: Epoch,
    config: ShardConfig,
    counters: Arc<Counters>,
    figures: Figures,

    /// Monotonic time of this turn.
    now: Nanos,
    events: Vec<Event>,
    conns: Slots<Conn>,
    groups: Slab<Group>,
    by_name: HashMap<Box<[u8]>, u32>,
    by_handle: HashMap<Handle, u32>,
    groups_created: u32,

    mesh: Mesh,
    inbox: Inbox,
    /// Questions about owned groups, and answers that wait for the disk.
    questions: Questions,
    held: HeldAnswers,
    announcements: Announcements,
    /// Changes of rosters of groups that were forgotten since the start, those of the one with
    /// the most: another group of the name must not give a version twice.
    forgotten_changes: u64,
    backpressure: Backpressure,

    /// Joins and leaves of durable members that wait for the disk.
    roster_changes: RosterChanges,
    /// Cursors that the log does not have yet.
    cursors: Cursors,
    /// Acknowledgements for the owners of foreign groups, by shard.
    acks_out: Vec<AcksOut>,
    /// Durable members that have something to acknowledge with the write being made.
    unwatched: Vec<Membership>,
    /// Owned groups with receipts in which messages were published in this turn.
    receipts_due: Vec<u32>,
    /// Receipts for publishers that were seen in this turn.
    receipts_kept: Vec<(u32, Place, Fulfilled)>,

    stamp: Stamp,
    filling: Filling,
    in_flight: Option<Commit>,
    log: Log,
    reads: Reads,
    pace: Pace,

    queues: Queues,
    pins: PinGauge,
    tail_bytes: u64,
    /// Keys of groups in the order in which their segments were published: who is evicted
    /// first when the tails together are too large.
    tail_order: VecDeque<u32>,
    writes_in_flight: u64,
    parts: Vec<Part>,
    spare_control: Vec<Vec<u8>>,
    /// Where messages of WebSockets are unmasked.
    unmasked: Vec<u8>,
    /// Where frames of WebSockets are translated.
    codec: Codec,
    inflating: Inflating,
    handshakes: Handshakes,

    tokens: Tokens,
    rates: Rates,
    wheel: Wheel,
    heartbeats: Heartbeats,
    fired: Vec<wheel::Due>,
    sweep_at: Option<Nanos>,
    storage_retry_at: Option<Nanos>,
    retention_at: Option<Nanos>,
    snapshots: Snapshots,
    /// The largest epoch that the log held at the start.
    max_epoch: Epoch,
    retention_pass: Option<retention::Pass>,
    removal: retention::Removal,
    /// Another shard wants segments of earlier generations to go.
    expire_sealed: bool,

    control: rtrb::Consumer<Control>,
    drain: Option<Drain>,
    normal: Normal,
    looking: Option<look::Looking>,
    distributions: Distributions,
    errors: ErrorCounts,
}

impl Shard {
    /// One turn: the order of the code is the order of the message.
    pub fn turn(&mut self, io: &mut impl Io) -> Turn {
        self.wait(io); //       one enter: submits all that is queued, returns what finished
        self.take(io); //       bytes -> frames -> inbox; finished writes free their connection
        self.shake_hands(io); // a step of a TLS handshake that waits
        self.drain_mesh(io); // what other shards forwarded, announced, asked for
        self.sequence(io); //   inbox -> group seq -> staged for the next commit
        self.answer_questions(io); // a slice of what clients ask about groups
        self.publish(); //      what is on disk: tails move, replies are released
        self.commit(io); //     then the next log write, covering all that was staged
        self.tell_peers(io); // peer rings get segments and replies
        self.walk_announcements(); // who is told that a roster changed
        self.write(io); //      a slice of the run queues, one write per member
        self.read_history(io); // chunks for members behind the tail
        self.expire(io); //     timers, stalls, retention
        self.snapshot(io); //   a slice of the snapshot that is being written
        self.report();
        self.invariants();
        self.finish(io)
    }

    fn wait(&mut self, io: &mut impl Io) {
        let until = self.may_wait_until();
        if until == Some(Nanos(0)) && self.log_is_urgent() {
            io.give_way();
        }
        let sleeps = until != Some(Nanos(0));
        if sleeps {
            // What the kernel does for the last writes of such a turn is in the same call.
            self.distributions.turn.observe(io.clock().since(self.now));
            self.figures.sleeps += 1;
        }
        let before = self.now;
        io.wait(until, &mut self.events);
        self.now = io.now();
        if !sleeps {
            self.distributions.turn.observe(self.now.since(before));
        }
        self.mesh.woken();
    }

    /// How long the next turn may wait for something to happen, as [`Io::wait`] takes it.
    /// Other shards wake this one from now on.
    pub(crate) fn may_wait_until(&mut self) -> Option<Nanos> {
        let has_work = !self.queues.is_empty()
            || self.has_sequenceable()
            || self.can_answer()
            || self.announcements.has_work()
            || self.looking.is_some()
            || self.captures()
            || self.tokens.has_work()
            || !self.handshakes.is_empty()
            || !self.pace.is_empty();
        if has_work || !self.mesh.may_sleep() || !self.control.is_empty() {
            Some(Nanos(0))
        } else {
            self.next_deadline()
        }
    }

    /// Checks the stated order of positions, in debug builds.
    fn invariants(&self) {
        if cfg!(debug_assertions) {
            debug_assert!(self.log.synced() <= self.log.appended());
            for (_, group) in &self.groups {
                group.invariants();
            }
            for conn in self.conns.iter() {
                debug_assert_eq!(conn.drainage.behind(), self.behind(conn));
            }
        }
    }

    fn report(&mut self) {
        let figures = &mut self.figures;
        figures.turns += 1;
        figures.groups = self.groups.len() as u64;
        figures.wal_appended = self.log.appended().0;
        figures.wal_synced = self.log.synced().0;
        figures.tail_bytes = self.tail_bytes + self.pins.encoded_bytes();
        figures.pinned_bytes = self.pins.bytes();
        figures.inbox_bytes =
            self.inbox.bytes() + self.questions.bytes() + self.backpressure.forwarded_bytes();
        self.counters.store(figures);
    }

    /// The connection with this name, if it is still there.
    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot)?;
        (conn.id == id).then_some(conn)
    }
}
