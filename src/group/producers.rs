//! Who has published to a group, and where their last messages are: what makes a publish that
//! is sent again get its first place instead of a second one.
//!
//! The numbers of a producer are contiguous in a group, so its window is a ring of places that
//! the number itself points into: one look-up per publish, whatever its outcome, and no
//! allocation once the window has grown to its size. A number above the next one is refused
//! (what it waits for may never come), one below the window too (it may be here, or not).

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use twox_hash::XxHash3_64;

use crate::position::{Epoch, ProducerId, Seq};
use crate::wal::ProducerState;

/// Up to this many producers are looked through; more get an index.
const UNINDEXED_MAX: usize = 8;
const NONE: u32 = u32::MAX;

/// Bounds of the producers of one group.
#[derive(Clone, Copy, Debug)]
pub struct ProducerLimits {
    /// Places that are remembered of each producer.
    pub window: usize,
    /// Producers that are remembered.
    pub producers_max: usize,
    /// One that published within this time is not forgotten, whoever waits for its room.
    pub ttl_ms: u64,
}

/// A publish as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The producer.
    pub producer: &'a ProducerId,
    /// The member that it publishes as.
    pub member: &'a [u8],
    /// Its number of the message.
    pub producer_seq: u64,
    /// Monotonic time.
    pub now_ms: u64,
}

/// What a publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next message of its producer. [`Producers::accept`] takes it.
    Fresh(Slot),
    /// A message that has its place already.
    Duplicate {
        /// Its place.
        seq: Seq,
        /// The epoch in which it got it.
        epoch: Epoch,
    },
    /// Not to be taken.
    Refused(Unacceptable),
}

/// Where a producer is in the table, until the next change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// Why a publish is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unacceptable {
    /// The producer is not known here and its number is not 1.
    Unknown,
    /// A message before it is missing.
    Gap {
        /// The number that is next.
        expected: u64,
    },
    /// It is older than the window.
    TooOld {
        /// The oldest number that is recognised.
        oldest: u64,
    },
    /// The producer belongs to another member.
    Taken,
    /// All the room is held by producers that published a short time ago.
    TooMany {
        /// The room.
        producers_max: usize,
    },
}

/// A place: seq and epoch in 12 bytes, since there is one per message in the window.
#[derive(Clone, Copy, Debug)]
struct Place([u32; 3]);

impl Place {
    fn new(seq: Seq, epoch: Epoch) -> Self {
        Self([seq.0 as u32, (seq.0 >> 32) as u32, epoch.0])
    }

    fn seq(self) -> Seq {
        Seq(u64::from(self.0[0]) | u64::from(self.0[1]) << 32)
    }

    fn epoch(self) -> Epoch {
        Epoch(self.0[2])
    }
}

#[derive(Debug)]
struct Producer {
    id: ProducerId,
    member: Box<[u8]>,
    /// Its last number that has a place.
    last: u64,
    /// The places up to that of `last`.
    window: VecDeque<Place>,
    used_ms: u64,
    /// Neighbours in the order of use.
    older: u32,
    newer: u32,
}

impl Producer {
    fn oldest(&self) -> u64 {
        self.last - self.window.len() as u64 + 1
    }

    fn newest(&self) -> Seq {
        self.window.back().map_or(Seq(0), |place| place.seq())
    }
}

/// The producers of one group.
#[derive(Debug)]
pub struct Producers {
    table: Vec<Producer>,
    index: Option<HashMap<ProducerId, u32, ProducerHash>>,
    /// Ends of the order of use.
    oldest: u32,
    newest: u32,
}

impl Default for Producers {
    fn default() -> Self {
        Self { table: Vec::new(), index: None, oldest: NONE, newest: NONE }
    }
}

impl Producers {
    /// Says what a publish is. What `synced` covers is on disk.
    pub fn judge(&mut self, attempt: Attempt<'_>, synced: Seq, limits: &ProducerLimits) -> Verdict {
        let Some(slot) = self.find(attempt.producer) else {
            return if attempt.producer_seq != 1 {
                Verdict::Refused(Unacceptable::Unknown)
            } else if self.has_room(attempt.now_ms, synced, limits) {
                Verdict::Fresh(Slot(NONE))
            } else {
                let producers_max = limits.producers_max;
                Verdict::Refused(Unacceptable::TooMany { producers_max })
            };
        };
        let producer = &self.table[slot as usize];
        if *producer.member != *attempt.member {
            return Verdict::Refused(Unacceptable::Taken);
        }
        let oldest = producer.oldest();
        if attempt.producer_seq > producer.last {
            let expected = producer.last + 1;
            return if attempt.producer_seq == expected {
                Verdict::Fresh(Slot(slot))
            } else {
                Verdict::Refused(Unacceptable::Gap { expected })
            };
        }
        let place = attempt.producer_seq.checked_sub(oldest);
        match place.and_then(|back| producer.window.get(back as usize)).copied() {
            Some(place) => {
                self.used(slot, attempt.now_ms);
                Verdict::Duplicate { seq: place.seq(), epoch: place.epoch() }
            }
            None => Verdict::Refused(Unacceptable::TooOld { oldest }),
        }
    }

    /// Remembers the place of a publish that was judged to be fresh just now.
    pub fn accept(
        &mut self,
        Slot(mut slot): Slot,
        attempt: Attempt<'_>,
        (seq, epoch): (Seq, Epoch),
        limits: &ProducerLimits,
    ) {
        if slot == NONE {
            slot = self.admit(*attempt.producer, attempt.member.into(), limits);
        }
        let producer = &mut self.table[slot as usize];
        debug_assert_eq!(producer.last + 1, attempt.producer_seq);
        debug_assert!(producer.newest() < seq, "places only go up");
        producer.last = attempt.producer_seq;
        while producer.window.len() >= limits.window.max(1) {
            producer.window.pop_front();
        }
        producer.window.push_back(Place::new(seq, epoch));
        self.used(slot, attempt.now_ms);
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// What is durable of the producers: nothing beyond `synced`, since a crash may take that.
    pub fn to_state(&self, synced: Seq) -> impl Iterator<Item = (ProducerId, ProducerState)> {
        (0..self.table.len()).filter_map(move |slot| self.saved(slot, synced))
    }

    /// The same of the one in `slot`, from 0 up to [`Producers::len`].
    #[must_use]
    pub fn saved(&self, slot: usize, synced: Seq) -> Option<(ProducerId, ProducerState)> {
        let producer = self.table.get(slot)?;
        let durable = producer.window.partition_point(|place| place.seq() <= synced);
        let last = producer.last - (producer.window.len() - durable) as u64;
        let places = producer.window.range(..durable);
        let window = places.map(|place| (place.seq(), place.epoch())).collect();
        let member = producer.member.as_ref().into();
        (last > 0).then_some((producer.id, ProducerState { member, last, window }))
    }

    /// Takes back what [`Producers::to_state`] or recovery gave. The time of each begins anew,
    /// so that a restart never makes one forgotten early; there may be more than the limit.
    pub fn restore(
        &mut self,
        saved: impl IntoIterator<Item = (ProducerId, ProducerState)>,
        now_ms: u64,
        limits: &ProducerLimits,
    ) {
        let fits = |state: &ProducerState| {
            (state.window.len() as u64..u64::MAX).contains(&state.last) && state.last > 0
        };
        let mut saved: Vec<_> = saved.into_iter().filter(|(_, state)| fits(state)).collect();
        saved.sort_by_key(|(_, state)| state.window.back().map(|(seq, _)| *seq));
        let unlimited = ProducerLimits { producers_max: usize::MAX, ..*limits };
        for (id, state) in saved {
            let slot = self.admit(id, state.member.as_ref().into(), &unlimited);
            let producer = &mut self.table[slot as usize];
            producer.last = state.last;
            let skipped = state.window.len().saturating_sub(limits.window);
            let places = state.window.iter().skip(skipped);
            producer.window = places.map(|(seq, epoch)| Place::new(*seq, *epoch)).collect();
            self.used(slot, now_ms);
        }
    }

    fn find(&self, id: &ProducerId) -> Option<u32> {
        match &self.index {
            Some(index) => index.get(id).copied(),
            None => self.table.iter().position(|known| known.id == *id).map(|slot| slot as u32),
        }
    }

    /// Whether one more fits, perhaps for the one that was not used for longest. One whose
    /// last message is not on disk yet may be about to send it again, however long ago.
    fn has_room(&self, now_ms: u64, synced: Seq, limits: &ProducerLimits) -> bool {
        self.table.len() < limits.producers_max
            || self.table.get(self.oldest as usize).is_some_and(|oldest| {
                now_ms.saturating_sub(oldest.used_ms) > limits.ttl_ms && oldest.newest() <= synced
            })
    }

    fn admit(&mut self, id: ProducerId, member: Box<[u8]>, limits: &ProducerLimits) -> u32 {
        let producer = Producer {
            id,
            member,
            last: 0,
            window: VecDeque::new(),
            used_ms: 0,
            older: NONE,
            newer: NONE,
        };
        let slot = if self.table.len() < limits.producers_max || self.oldest == NONE {
            self.table.push(producer);
            self.table.len() as u32 - 1
        } else {
            let slot = self.oldest;
            self.unlink(slot);
            let forgotten = std::mem::replace(&mut self.table[slot as usize], producer);
            if let Some(index) = &mut self.index {
                index.remove(&forgotten.id);
            }
            slot
        };
        self.link(slot);
        if let Some(index) = &mut self.index {
            index.insert(id, slot);
        } else if self.table.len() > UNINDEXED_MAX {
            let slots = self.table.iter().enumerate();
            self.index = Some(slots.map(|(slot, p)| (p.id, slot as u32)).collect());
        }
        slot
    }

    /// Makes a producer the last one used.
    fn used(&mut self, slot: u32, now_ms: u64) {
        self.table[slot as usize].used_ms = now_ms;
        if self.newest != slot {
            self.unlink(slot);
            self.link(slot);
        }
    }

    fn link(&mut self, slot: u32) {
        let before = std::mem::replace(&mut self.newest, slot);
        match self.table.get_mut(before as usize) {
            Some(before) => before.newer = slot,
            None => self.oldest = slot,
        }
        let producer = &mut self.table[slot as usize];
        (producer.older, producer.newer) = (before, NONE);
    }

    fn unlink(&mut self, slot: u32) {
        let Producer { older, newer, .. } = self.table[slot as usize];
        match self.table.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.table.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}

/// Hashes producer ids with a seed of this process: clients choose the ids, and must not be
/// able to choose ones that meet.
#[derive(Clone, Debug)]
struct ProducerHash(u64);

impl Default for ProducerHash {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Self(*SEED.get_or_init(|| RandomState::new().hash_one(0)))
    }
}

impl BuildHasher for ProducerHash {
    type Hasher = ProducerHasher;

    fn build_hasher(&self) -> ProducerHasher {
        ProducerHasher(self.0)
    }
}

struct ProducerHasher(u64);

impl Hasher for ProducerHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot_with_seed(self.0, bytes);
    }

    /// Ids are all of one length.
    fn write_usize(&mut self, _len: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "producers_tests.rs"]
mod tests;
