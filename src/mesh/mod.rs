//! The mesh: between each ordered pair of shards one bounded lock-free ring of batches.

mod message;
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use bytes::{BufMut, BytesMut};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::limits::MESH_RING_ENTRIES;
use crate::position::ShardId;

pub use message::{Announced, Batch, CursorMove, Forward, History, Message};
pub use wake::Sleeper;

/// This shard's ends of the rings to and from one other shard.
#[derive(Debug)]
pub struct Peer {
    to: Producer<Batch>,
    from: Consumer<Batch>,
    sleeper: Arc<Sleeper>,
    outbox: Vec<Message>,
    arena: BytesMut,
    /// Messages and bytes of the last batches, the largest fading: as much is reserved at once
    /// for the next one, so that it does not grow message by message.
    usual: (usize, usize),
    /// Keys of owned groups whose tail this peer has not been told of.
    pub dirty: Vec<u32>,
}

/// One shard's side of the mesh.
#[derive(Debug)]
pub struct Mesh {
    me: Arc<Sleeper>,
    undrained: Arc<AtomicUsize>,
    peers: Vec<Option<Peer>>,
}

/// Builds the mesh of `shards` shards, one side each.
#[must_use]
pub fn mesh(shards: u16) -> Vec<Mesh> {
    mesh_of(shards, MESH_RING_ENTRIES)
}

/// As [`mesh`], with rings of `entries`: small ones are full often.
#[must_use]
pub fn mesh_of(shards: u16, entries: usize) -> Vec<Mesh> {
    let count = usize::from(shards);
    let sleepers: Vec<_> = (0..count).map(|_| Arc::new(Sleeper::default())).collect();
    let undrained = Arc::new(AtomicUsize::new(count));
    let mut to: Vec<Vec<Option<Producer<Batch>>>> = Vec::new();
    let mut from: Vec<Vec<Option<Consumer<Batch>>>> =
        (0..count).map(|_| (0..count).map(|_| None).collect()).collect();
    for a in 0..count {
        let mut row = Vec::new();
        for (b, inbound) in from.iter_mut().enumerate() {
            row.push((a != b).then(|| {
                let (producer, consumer) = RingBuffer::new(entries);
                inbound[a] = Some(consumer);
                producer
            }));
        }
        to.push(row);
    }
    to.into_iter()
        .zip(from)
        .enumerate()
        .map(|(a, (to, from))| Mesh {
            me: sleepers[a].clone(),
            undrained: undrained.clone(),
            peers: to
                .into_iter()
                .zip(from)
                .enumerate()
                .map(|(b, ends)| match ends {
                    (Some(to), Some(from)) => Some(Peer {
                        to,
                        from,
                        sleeper: sleepers[b].clone(),
                        outbox: Vec::new(),
                        arena: BytesMut::new(),
                        usual: (0, 0),
                        dirty: Vec::new(),
                    }),
                    _ => None,
                })
                .collect(),
        })
        .collect()
}

impl Peer {
    /// Queues a message for the next flush.
    pub fn tell(&mut self, message: Message) {
        if self.outbox.is_empty() {
            self.outbox.reserve_exact(self.usual.0);
        }
        self.outbox.push(message);
    }

    /// Queues bytes of a forwarded publish; the range points into the batch.
    pub fn carry(&mut self, bytes: &[u8]) -> std::ops::Range<u32> {
        if self.arena.is_empty() {
            self.arena.reserve(self.usual.1);
        }
        let start = self.arena.len() as u32;
        self.arena.put_slice(bytes);
        start..start + bytes.len() as u32
    }

    /// Whether a flush would find room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.to.is_full()
    }

    /// Whether anything waits to be pushed.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() || !self.dirty.is_empty()
    }

    /// Pushes what is queued as one batch. `None` if the ring is full, else whether the peer
    /// must be woken.
    pub fn flush(&mut self) -> Option<bool> {
        if self.to.is_full() {
            return None;
        }
        let messages = std::mem::take(&mut self.outbox);
        let arena = self.arena.split().freeze();
        let fading = |usual: usize, now: usize| now.max(usual - usual.div_ceil(8));
        self.usual = (fading(self.usual.0, messages.len()), fading(self.usual.1, arena.len()));
        self.to.push(Batch { messages, arena }).ok()?;
        Some(self.sleeper.notify())
    }

    /// The next batch of the peer.
    pub fn receive(&mut self) -> Option<Received> {
        let batch = self.from.pop().ok()?;
        // Looking after the pop and a fence: a producer that found the ring full and slept
        // filled it before its own fence, so it is seen here. A look before the pop could
        // miss a push in between, and nobody would wake that producer.
        fence(Ordering::SeqCst);
        let was_full = self.from.slots() + 1 >= self.from.buffer().capacity();
        Some(Received { batch, producer_asleep: was_full && self.sleeper.notify() })
    }

    fn waits_for_room(&self) -> bool {
        self.has_output() && self.to.is_full()
    }
}

/// A batch that was taken out of a ring.
#[derive(Debug)]
pub struct Received {
    /// The batch.
    pub batch: Batch,
    /// The ring was full and its producer sleeps: the caller must wake it.
    pub producer_asleep: bool,
}

impl Mesh {
    /// The other shards.
    pub fn peers(&mut self) -> impl Iterator<Item = (ShardId, &mut Peer)> {
        (0..).map(ShardId).zip(&mut self.peers).filter_map(|(id, peer)| Some((id, peer.as_mut()?)))
    }

    /// One other shard.
    pub fn peer(&mut self, shard: ShardId) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(shard.0))?.as_mut()
    }

    /// Says that this shard is about to sleep, and whether it may: no batch waits to be
    /// taken, and what waits to be pushed has no room.
    #[must_use]
    pub fn may_sleep(&mut self) -> bool {
        self.me.prepare();
        self.is_quiet() && self.peers().all(|(_, peer)| peer.waits_for_room() || !peer.has_output())
    }

    /// Batches in the fullest ring from this shard to another one, and how many fit.
    #[must_use]
    pub fn fullness(&mut self) -> (u64, u64) {
        let used = |peer: &Peer| peer.to.buffer().capacity() - peer.to.slots();
        let rings = self.peers().map(|(_, peer)| (used(peer), peer.to.buffer().capacity()));
        let (used, slots) = rings.max().unwrap_or_default();
        (used as u64, slots as u64)
    }

    /// Says that this shard is awake.
    pub fn woken(&self) {
        self.me.woken();
    }

    /// Whether no batch waits to be received.
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        self.peers().all(|(_, peer)| peer.from.is_empty())
    }

    /// Whether no message waits to be pushed and no group to be announced.
    #[must_use]
    pub fn is_flushed(&mut self) -> bool {
        self.peers().all(|(_, peer)| !peer.has_output())
    }

    /// This shard has nothing left of what it accepted before the drain.
    pub fn drained(&self) {
        self.undrained.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether all shards said [`Mesh::drained`]; what they pushed before is visible.
    #[must_use]
    pub fn all_drained(&self) -> bool {
        self.undrained.load(Ordering::SeqCst) == 0
    }
}
