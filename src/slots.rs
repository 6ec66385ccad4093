//! Records by number, in chunks: those that are there do not move as others come, what is set
//! aside for more is never above one chunk, and a chunk in which nothing is left is given back.

use std::ops::{Index, IndexMut};

/// Records of a chunk; the bits of [`Chunk::used`].
const CHUNK: usize = u64::BITS as usize;
/// Room that a table begins with: most groups are small.
const FIRST_ROOM: usize = 4;

/// A table of records. Its keys are numbers below [`Slots::end`]; those that are given out by
/// [`Slots::insert`] are the lowest free ones, or near them.
#[derive(Debug)]
pub struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    len: usize,
    /// No chunk before this one has room.
    roomy: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    slots: Vec<Option<T>>,
    /// One bit for each slot.
    used: u64,
}

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), used: 0 }
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0, roomy: 0 }
    }
}

#[inline]
fn place(key: u32) -> (usize, usize) {
    (key as usize / CHUNK, key as usize % CHUNK)
}

impl<T> Slots<T> {
    /// Count of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// No key is as large as this.
    #[must_use]
    pub fn end(&self) -> u32 {
        let last = self.chunks.last().map_or(0, |chunk| chunk.slots.len());
        (self.chunks.len().saturating_sub(1) * CHUNK + last) as u32
    }

    /// The record with this key.
    #[inline]
    #[must_use]
    pub fn get(&self, key: u32) -> Option<&T> {
        let (at, slot) = place(key);
        self.chunks.get(at)?.slots.get(slot)?.as_ref()
    }

    /// The record with this key.
    #[inline]
    pub fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        let (at, slot) = place(key);
        self.chunks.get_mut(at)?.slots.get_mut(slot)?.as_mut()
    }

    /// All records, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.slots.iter().flatten())
    }

    /// Adds a record and gives it a key.
    pub fn insert(&mut self, record: T) -> u32 {
        let full = |chunk: &Chunk<T>| chunk.used == u64::MAX;
        while self.chunks.get(self.roomy).is_some_and(full) {
            self.roomy += 1;
        }
        let used = self.chunks.get(self.roomy).map_or(0, |chunk| chunk.used);
        let key = (self.roomy * CHUNK) as u32 + used.trailing_ones();
        self.put(key, record);
        key
    }

    /// Puts a record where its key says; one that was there goes.
    pub fn put(&mut self, key: u32, record: T) {
        let (at, slot) = place(key);
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, Chunk::default);
        }
        let chunk = &mut self.chunks[at];
        if chunk.slots.len() <= slot {
            if chunk.slots.capacity() <= slot {
                let room = match at {
                    0 => (slot + 1).next_power_of_two().max(FIRST_ROOM),
                    _ => CHUNK,
                };
                chunk.slots.reserve_exact(room - chunk.slots.len());
            }
            chunk.slots.resize_with(slot + 1, || None);
        }
        if chunk.slots[slot].replace(record).is_none() {
            chunk.used |= 1 << slot;
            self.len += 1;
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: u32) -> Option<T> {
        let (at, slot) = place(key);
        let chunk = self.chunks.get_mut(at)?;
        let record = chunk.slots.get_mut(slot)?.take()?;
        chunk.used &= !(1 << slot);
        chunk.slots.truncate(CHUNK - chunk.used.leading_zeros() as usize);
        if chunk.used == 0 {
            chunk.slots = Vec::new();
        }
        while self.chunks.last().is_some_and(|chunk| chunk.used == 0) {
            self.chunks.pop();
        }
        if self.chunks.is_empty() {
            self.chunks = Vec::new();
        }
        self.len -= 1;
        self.roomy = self.roomy.min(at);
        Some(record)
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    #[inline]
    #[allow(clippy::expect_used, reason = "as with every index")]
    fn index(&self, key: u32) -> &T {
        self.get(key).expect("a key of this table")
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    #[inline]
    #[allow(clippy::expect_used, reason = "as with every index")]
    fn index_mut(&mut self, key: u32) -> &mut T {
        self.get_mut(key).expect("a key of this table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_holds_what_a_map_would() {
        let (mut slots, mut map) = (Slots::default(), BTreeMap::new());
        let mut random = 1_u64;
        for n in 0..50_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n | 1);
            let (what, key) = (random >> 60, (random >> 32) as u32 % 1_000);
            // It grows and shrinks in waves.
            if what < if n / 5_000 % 2 == 0 { 6 } else { 3 } {
                let key = slots.insert(n);
                assert_eq!(map.insert(key, n), None, "{key} was given twice");
            } else if what == 7 {
                slots.put(key, n);
                map.insert(key, n);
            } else {
                assert_eq!(slots.remove(key), map.remove(&key));
            }
            assert_eq!(slots.len(), map.len());
            assert_eq!(slots.get(key), map.get(&key));
            assert!(map.last_key_value().is_none_or(|(key, _)| *key < slots.end()));
        }
        assert!(slots.iter().eq(map.values()));
        for key in map.into_keys() {
            assert!(slots.remove(key).is_some());
        }
        assert_eq!((slots.end(), slots.chunks.capacity()), (0, 0));
    }

    #[test]
    fn no_record_moves_once_there_is_a_whole_chunk_and_empty_ones_are_given_back() {
        let mut slots = Slots::default();
        let keys: Vec<_> = (0..1_000).map(|n| slots.insert(n)).collect();
        let places: Vec<_> = keys.iter().map(|key| &raw const slots[*key]).collect();
        for n in 1_000..100_000 {
            slots.insert(n);
        }
        assert!(keys.iter().zip(&places).all(|(key, place)| &raw const slots[*key] == *place));
        let room = |slots: &Slots<i32>| slots.chunks.iter().map(|c| c.slots.capacity()).sum();
        assert_eq!(room(&slots), 100_000_usize.next_multiple_of(CHUNK));
        for key in 128..100_000 {
            slots.remove(key);
        }
        assert_eq!((room(&slots), slots.end(), slots.len()), (128, 128, 128));
    }

    #[test]
    fn a_small_table_has_little_room() {
        let mut slots = Slots::default();
        for n in 0..10_u8 {
            slots.insert(n);
        }
        assert_eq!((slots.end(), slots.chunks[0].slots.capacity()), (10, 16));
        slots.remove(3);
        slots.remove(9);
        assert_eq!((slots.end(), slots.insert(3), slots.insert(9)), (9, 3, 9));
    }
}
