//! A shard's first state, from what recovery found.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;
use twox_hash::XxHash3_64;

use super::Shard;
use super::codec::Codec;
use super::commit::Filling;
use super::counters::{Counters, Figures};
use super::drain::Control;
use super::state::OwnedState;
use crate::config::ShardConfig;
use crate::fanout::PinGauge;
use crate::group::{Group, Role, Roster, Sequencer};
use crate::mesh::Mesh;
use crate::position::{CommitNumber, Epoch, Handle, Nanos, NodeId, SegmentNumber, Seq, ShardId};
use crate::wal::{Log, Recovered, RecoveredGroup};

/// The segment that was created for this start, empty.
#[derive(Clone, Copy, Debug)]
pub struct Active {
    /// Its number.
    pub number: SegmentNumber,
    /// Its salt.
    pub salt: u64,
}

/// Everything a shard starts from.
#[derive(Debug)]
pub struct ShardParts {
    /// This shard.
    pub id: ShardId,
    /// The node.
    pub node: NodeId,
    /// Shards of the node.
    pub shards: u16,
    /// Seed of the hash that places groups, from the manifest.
    pub hash_seed: u64,
    /// Number of this start of the server, from the manifest.
    pub start: Epoch,
    /// No group has an epoch below this one, from the manifest.
    pub epoch_floor: Epoch,
    /// The same for groups that used level memory.
    pub memory_epoch_floor: Epoch,
    /// What the operator set.
    pub config: ShardConfig,
    /// Where figures are published.
    pub counters: Arc<Counters>,
    /// This shard's side of the mesh.
    pub mesh: Mesh,
    /// What the log holds.
    pub recovered: Recovered,
    /// Where the log goes on.
    pub active: Active,
    /// Orders of the control thread.
    pub control: rtrb::Consumer<Control>,
    /// Monotonic time.
    pub now: Nanos,
}

/// The groups to go on with. The log may still hold some that were forgotten, since nothing was
/// left of them; a newer one may have the name.
fn newest_of_each_name(mut groups: Vec<RecoveredGroup>) -> Vec<RecoveredGroup> {
    groups.retain(|group| !group.is_unused());
    let mut newest: HashMap<&[u8], (Seq, Handle)> = HashMap::with_capacity(groups.len());
    for group in &groups {
        let place = newest.entry(&group.name).or_default();
        *place = (*place).max((group.head, group.handle));
    }
    // Two of one name can be there only if damage took what said that one of them ended.
    if newest.len() < groups.len() {
        let keep: Vec<bool> =
            groups.iter().map(|group| newest[&*group.name].1 == group.handle).collect();
        let mut keep = keep.into_iter();
        groups.retain(|_| keep.next().unwrap_or(true));
    }
    groups
}

/// The shard that owns the group `name`.
#[must_use]
pub fn owner_of(name: &[u8], hash_seed: u64, shards: u16) -> ShardId {
    ShardId((XxHash3_64::oneshot_with_seed(hash_seed, name) % u64::from(shards.max(1))) as u16)
}

impl Shard {
    /// A shard that goes on where its log ended.
    ///
    /// After damage all groups begin a new epoch, and after an unclean stop so do those that
    /// used level memory, since what their members saw last may be lost: the manifest's
    /// floors say so.
    #[must_use]
    pub fn new(parts: ShardParts) -> Self {
        let ShardParts { recovered, config, .. } = parts;
        let segments: BTreeMap<_, _> =
            recovered.segments.iter().map(|s| (s.number, s.info())).collect();
        let last_commit = CommitNumber(recovered.next_commit.0.saturating_sub(1));
        let active = parts.active;
        let mut log =
            Log::new(segments, active.number, active.salt, last_commit, config.segment_bytes);
        log.adopt(&recovered.sealed);
        let mut shard = Self {
            id: parts.id,
            node: parts.node,
            shards: parts.shards,
            hash_seed: parts.hash_seed,
            start: parts.start,
            counters: parts.counters,
            figures: Figures::default(),
            now: parts.now,
            events: Vec::with_capacity(1024),
            conns: crate::slots::Slots::default(),
            groups: Slab::new(),
            by_name: HashMap::new(),
            by_handle: HashMap::new(),
            groups_created: 0,
            mesh: parts.mesh,
            inbox: super::inbox::Inbox::default(),
            questions: super::queries::Questions::default(),
            held: super::held::HeldAnswers::default(),
            announcements: super::rosters::Announcements::default(),
            forgotten_changes: 0,
            backpressure: super::backpressure::Backpressure::default(),
            roster_changes: super::durable::RosterChanges::default(),
            cursors: super::cursors::Cursors::default(),
            acks_out: Vec::new(),
            unwatched: Vec::new(),
            receipts_due: Vec::new(),
            receipts_kept: Vec::new(),
            stamp: recovered.max_stamp,
            filling: Filling::default(),
            in_flight: None,
            log,
            reads: super::catch_up::Reads::default(),
            pace: super::pace::Pace::default(),
            queues: super::queues::Queues::default(),
            pins: PinGauge::default(),
            tail_bytes: 0,
            tail_order: VecDeque::new(),
            writes_in_flight: 0,
            parts: Vec::new(),
            spare_control: Vec::new(),
            unmasked: Vec::new(),
            codec: Codec::default(),
            rates: super::rates::Rates::new(&config),
            tokens: super::tokens::Tokens::new(config.keys.clone()),
            inflating: super::inflate::Inflating::default(),
            handshakes: super::tls::Handshakes::new(config.tls.clone()),
            wheel: super::wheel::Wheel::new(parts.now),
            heartbeats: super::heartbeats::Heartbeats::new(config.heartbeat_ms),
            fired: Vec::new(),
            sweep_at: None,
            storage_retry_at: None,
            retention_at: Some(parts.now),
            snapshots: super::snapshot::Snapshots::after(&recovered),
            max_epoch: recovered.max_epoch,
            retention_pass: None,
            removal: super::retention::Removal::default(),
            expire_sealed: false,
            control: parts.control,
            drain: None,
            normal: super::isolate::Normal::new(parts.now),
            looking: None,
            distributions: super::histogram::Distributions::default(),
            errors: crate::wire::ErrorCounts::default(),
            config,
        };
        let limits = shard.config.producer_limits();
        for group in newest_of_each_name(recovered.groups) {
            let mut epoch = group.epoch.max(parts.epoch_floor);
            if group.used_memory {
                epoch = epoch.max(parts.memory_epoch_floor);
            }
            let mut sequencer = Sequencer::after(group.head, group.first, group.index);
            sequencer.used_memory = group.used_memory;
            sequencer.roster =
                Roster::restore(&group.state, group.head, shard.config.receipts_max as usize)
                    .map(Box::new);
            sequencer.state = OwnedState::recovered(&group.state, group.epoch, parts.epoch_floor);
            let now_ms = parts.now.0 / 1_000_000;
            sequencer.producers.restore(group.state.producers, now_ms, &limits);
            let role = Role::Owner(Box::new(sequencer));
            let mut restored = Group::new(group.name, group.handle, epoch, role);
            restored.published = group.head;
            let key = shard.place_group(restored);
            shard.by_handle.insert(group.handle, key);
        }
        shard
    }

    pub(super) fn owner_of(&self, name: &[u8]) -> ShardId {
        owner_of(name, self.hash_seed, self.shards)
    }
}
