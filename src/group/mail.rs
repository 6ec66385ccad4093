//! Receipts on their way to their publishers: who asked, on which connection they were seen
//! last, what was handed to it, and what waits until they come back. A receipt is let go of
//! only when its publisher has shown that it read it.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use slab::Slab;

use super::receipts::Fulfilled;
use crate::position::{Seq, ShardId};
use crate::shard::ConnId;

/// A connection of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The shard that owns it.
    pub shard: ShardId,
    /// Its name there.
    pub conn: ConnId,
}

/// Publishers without a receipt that are remembered, so that one that asks again and again is
/// not made anew each time.
const IDLE_MAX: usize = 256;

/// A publisher that asked for receipts.
#[derive(Debug)]
struct Sender {
    id: Rc<[u8]>,
    /// Where it was seen last, since the start of the server.
    at: Option<Place>,
    /// Where it was seen before that. What comes late from an older connection, which may be dead,
    /// must not make the newer one forgotten.
    before: Option<Place>,
    /// Receipts that wait or are settled and not known to be read.
    open: u32,
    /// Settled ones that no connection could be given.
    kept: Vec<Seq>,
}

#[derive(Clone, Copy, Debug)]
struct Settled {
    receipt: Fulfilled,
    /// The connection that it was handed to.
    handed: Option<Place>,
}

impl Sender {
    fn is_at(&mut self, at: Place) {
        if self.at != Some(at) {
            self.before = self.at.replace(at);
        }
    }

    fn is_gone_from(&mut self, from: Place) {
        self.before = self.before.filter(|before| *before != from);
        if self.at == Some(from) {
            self.at = self.before.take();
        }
    }
}

/// Receipts to be handed over.
pub type Handed = Vec<(Place, Fulfilled)>;

/// The publishers of a group that asked for receipts, and what is settled.
#[derive(Debug, Default)]
pub struct Mail {
    senders: Slab<Sender>,
    by_id: HashMap<Rc<[u8]>, u32>,
    settled: BTreeMap<Seq, Settled>,
    idle: usize,
    /// Settled ones that were given up because too many waited for publishers who stay away.
    pub dropped: u64,
}

impl Mail {
    /// Notes that a publisher asks for a receipt. Returns its key. `at` is `None` after a
    /// restart.
    pub fn asks(&mut self, id: &[u8], at: Option<Place>) -> u32 {
        let key = match self.by_id.get(id) {
            Some(&key) => key,
            None => {
                let id: Rc<[u8]> = id.into();
                let sender =
                    Sender { id: id.clone(), at: None, before: None, open: 0, kept: Vec::new() };
                let key = self.senders.insert(sender) as u32;
                self.by_id.insert(id, key);
                self.idle += 1;
                key
            }
        };
        let sender = &mut self.senders[key as usize];
        self.idle -= usize::from(sender.open == 0);
        sender.open += 1;
        if let Some(at) = at {
            sender.is_at(at);
        }
        key
    }

    /// Whether anybody asked for receipts.
    #[must_use]
    pub fn has_senders(&self) -> bool {
        !self.senders.is_empty()
    }

    /// The member id of a publisher.
    #[must_use]
    pub fn id(&self, sender: u32) -> &[u8] {
        self.senders.get(sender as usize).map_or(&[], |sender| &sender.id)
    }

    /// The member `id` joined or published on this connection: it gets what was kept for it.
    pub fn seen(&mut self, id: &[u8], at: Place, out: &mut Handed) {
        if self.senders.is_empty() {
            return;
        }
        let Some(sender) = self.by_id.get(id).and_then(|&key| self.senders.get_mut(key as usize))
        else {
            return;
        };
        sender.is_at(at);
        for seq in std::mem::take(&mut sender.kept) {
            if let Some(settled) = self.settled.get_mut(&seq) {
                settled.handed = Some(at);
                out.push((at, settled.receipt));
            }
        }
    }

    /// A receipt is settled; at most `max` are kept. Returns where to send it now, if its
    /// publisher was seen.
    pub fn settle(&mut self, receipt: Fulfilled, max: usize) -> Option<Place> {
        while self.settled.len() >= max.max(1)
            && let Some((seq, oldest)) = self.settled.pop_first()
        {
            self.dropped += 1;
            self.release(oldest.receipt.asked.sender, seq);
        }
        let sender = self.senders.get_mut(receipt.asked.sender as usize)?;
        let (seq, handed) = (receipt.asked.seq, sender.at);
        if handed.is_none() {
            sender.kept.push(seq);
        }
        self.settled.insert(seq, Settled { receipt, handed });
        handed
    }

    /// The publisher has read the receipt of message `seq`. Whether it was here.
    pub fn read(&mut self, seq: Seq) -> bool {
        let Some(settled) = self.settled.remove(&seq) else { return false };
        self.release(settled.receipt.asked.sender, seq);
        true
    }

    /// The connection `from` is gone, and whether the receipt was read is unknown. It goes to
    /// another connection of the publisher if one is known, which is returned, else it is kept.
    pub fn unread(&mut self, seq: Seq, from: Place) -> Option<(Place, Fulfilled)> {
        let settled = self.settled.get_mut(&seq).filter(|settled| settled.handed == Some(from))?;
        let sender = self.senders.get_mut(settled.receipt.asked.sender as usize)?;
        sender.is_gone_from(from);
        settled.handed = sender.at;
        if sender.at.is_none() {
            sender.kept.push(seq);
        }
        sender.at.map(|at| (at, settled.receipt))
    }

    fn release(&mut self, key: u32, seq: Seq) {
        let Some(sender) = self.senders.get_mut(key as usize) else { return };
        sender.kept.retain(|kept| *kept != seq);
        sender.open -= 1;
        if sender.open > 0 {
            return;
        }
        if self.idle < IDLE_MAX {
            self.idle += 1;
        } else {
            let sender = self.senders.remove(key as usize);
            self.by_id.remove(&sender.id);
        }
    }

    /// The message of the oldest settled receipt that is not known to be read.
    #[must_use]
    pub fn oldest(&self) -> Option<Seq> {
        self.settled.keys().next().copied()
    }

    /// The settled ones that are not known to be read.
    pub fn settled(&self) -> impl Iterator<Item = &Fulfilled> {
        self.settled.values().map(|settled| &settled.receipt)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::group::receipts::Asked;
    use crate::position::Epoch;

    fn place(slot: u32) -> Place {
        Place { shard: ShardId(1), conn: ConnId { slot, generation: 1 } }
    }

    fn receipt(seq: u64, sender: u32) -> Fulfilled {
        let (seq, epoch) = (Seq(seq), Epoch(1));
        let asked = Asked { seq, epoch, percent: 100, sender, producer_seq: 1 };
        Fulfilled { asked, acked: 1, members: 1 }
    }

    fn seen(mail: &mut Mail, id: &[u8], at: Place) -> Vec<(Place, u64)> {
        let mut out = Vec::new();
        mail.seen(id, at, &mut out);
        out.iter().map(|(at, receipt)| (*at, receipt.asked.seq.0)).collect()
    }

    #[test]
    fn a_receipt_goes_where_its_publisher_was_seen_last_until_it_was_read() {
        let mut mail = Mail::default();
        let ann = mail.asks(b"ann", Some(place(1)));
        assert_eq!(mail.asks(b"ann", None), ann);
        assert_eq!(mail.settle(receipt(1, ann), 10), Some(place(1)));
        assert_eq!(seen(&mut mail, b"ann", place(2)), []);
        // The first connection is gone, the second is known.
        assert_eq!(mail.unread(Seq(1), place(1)).unwrap().0, place(2));
        assert_eq!(mail.unread(Seq(1), place(1)), None, "said twice");
        assert_eq!(mail.unread(Seq(1), place(2)), None);
        assert_eq!(mail.oldest(), Some(Seq(1)));
        assert_eq!(mail.settle(receipt(2, ann), 10), None);
        assert_eq!(seen(&mut mail, b"bob", place(3)), []);
        assert_eq!(seen(&mut mail, b"ann", place(4)), [(place(4), 1), (place(4), 2)]);
        assert_eq!(seen(&mut mail, b"ann", place(4)), [], "once each");
        assert!(mail.read(Seq(1)) && mail.read(Seq(2)) && !mail.read(Seq(2)));
        assert_eq!((mail.oldest(), mail.idle), (None, 1));
    }

    #[test]
    fn what_comes_late_from_a_dead_connection_does_not_hide_the_newer_one() {
        let mut mail = Mail::default();
        let ann = mail.asks(b"ann", Some(place(1)));
        assert_eq!(seen(&mut mail, b"ann", place(2)), []);
        assert_eq!(seen(&mut mail, b"ann", place(1)), [], "sent before it was cut off");
        assert_eq!(mail.settle(receipt(1, ann), 10), Some(place(1)));
        assert_eq!(mail.unread(Seq(1), place(1)).unwrap().0, place(2));
        assert_eq!(mail.unread(Seq(1), place(2)), None, "that one is gone too");
        assert_eq!(seen(&mut mail, b"ann", place(3)), [(place(3), 1)]);
    }

    #[test]
    fn what_nobody_comes_for_is_bounded_and_the_oldest_goes() {
        let mut mail = Mail::default();
        for seq in 1..=10 {
            let ann = mail.asks(b"ann", None);
            assert_eq!(mail.settle(receipt(seq, ann), 4), None);
        }
        assert_eq!(mail.dropped, 6);
        let handed = seen(&mut mail, b"ann", place(1));
        assert_eq!(handed.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [7, 8, 9, 10]);
    }

    #[test]
    fn publishers_without_receipts_are_forgotten_beyond_a_bound() {
        let mut mail = Mail::default();
        for n in 0..2 * IDLE_MAX as u64 {
            let key = mail.asks(&n.to_le_bytes(), Some(place(1)));
            mail.settle(receipt(n + 1, key), 10);
        }
        for n in 0..2 * IDLE_MAX as u64 {
            mail.read(Seq(n + 1));
        }
        assert!(mail.senders.len() <= IDLE_MAX && mail.by_id.len() == mail.senders.len());
    }
}
