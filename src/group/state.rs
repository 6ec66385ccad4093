//! The state of a group: keys with versions, changed by compare-and-set. Pure.
//!
//! Every change gets the next version of the group, and the key has the version of its last
//! change. So one number says what a client has, and what it lacks is whatever has a higher
//! one. Deleted keys leave a tombstone, so that a client learns of the deletion; only the
//! newest ones are kept, and who knows less than [`State::horizon`] gets a snapshot instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use crate::limits::{STATE_KEYS_MAX, STATE_TOMBSTONES_MAX};
use crate::position::Stamp;
use crate::wire::{Expected, STATE_ENTRY_FIXED};

/// A key: its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    version: u64,
    stamp: Stamp,
    /// `None` if it is deleted.
    data: Option<Box<[u8]>>,
}

/// A key as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub key: &'a [u8],
    /// Version of its last change.
    pub version: u64,
    /// When that was.
    pub stamp: Stamp,
    /// Its value; `None` if it is deleted.
    pub data: Option<&'a [u8]>,
}

impl Entry<'_> {
    /// Bytes that the entry takes in a STATE frame, and against `state_bytes_max`.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        STATE_ENTRY_FIXED + self.key.len() + self.data.map_or(0, <[u8]>::len)
    }
}

/// A change that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What it must be now.
    pub expected: Expected,
    /// Its new value; `None` deletes it.
    pub data: Option<&'a [u8]>,
}

/// What a change would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may be made with [`State::apply`].
    Apply,
    /// It deletes what is not there: nothing is to be done.
    Nothing,
    /// The key is not as expected; `None` if it is not there.
    Conflict(Option<Entry<'a>>),
    /// It would break this limit.
    Refused(Limit),
}

/// A limit of the state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many keys as there may be.
    Keys,
    /// As many bytes as there may be.
    Bytes,
}

/// What a client that knows a version needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing.
    UpToDate,
    /// The changes since.
    Deltas,
    /// All there is; what it has is void.
    Snapshot,
}

/// The state of one group.
#[derive(Clone, Debug, Default)]
pub struct State {
    version: u64,
    horizon: u64,
    values: HashMap<Box<[u8]>, Value>,
    by_version: BTreeMap<u64, Box<[u8]>>,
    /// Versions of the deleted keys.
    tombstones: BTreeSet<u64>,
    live_bytes: u64,
}

impl State {
    /// Version of the newest change; 0 if there was none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Deletions up to this version may be forgotten.
    #[must_use]
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// Keys that are there.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.values.len() - self.tombstones.len()
    }

    /// Bytes of all keys that are there, as they count against the limit.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The key, if it is there.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        let (key, value) = self.values.get_key_value(key)?;
        let data = value.data.as_deref()?;
        Some(Entry { key, version: value.version, stamp: value.stamp, data: Some(data) })
    }

    /// What `change` would do with at most `bytes_max` bytes for the whole state.
    #[must_use]
    pub fn judge(&self, change: &Change<'_>, bytes_max: u64) -> Verdict<'_> {
        let current = self.get(change.key);
        let as_expected = match change.expected {
            Expected::Any => true,
            Expected::Absent => current.is_none(),
            Expected::Version(version) => current.is_some_and(|entry| entry.version == version),
        };
        if !as_expected {
            return Verdict::Conflict(current);
        }
        let Some(data) = change.data else {
            return if current.is_some() { Verdict::Apply } else { Verdict::Nothing };
        };
        if current.is_none() && self.keys() >= STATE_KEYS_MAX {
            return Verdict::Refused(Limit::Keys);
        }
        let before = current.map_or(0, |entry| entry.encoded_len() as u64);
        let after = (STATE_ENTRY_FIXED + change.key.len() + data.len()) as u64;
        // What makes it smaller is always allowed, so that a lowered limit locks nobody out.
        if after > before && self.live_bytes - before + after > bytes_max {
            return Verdict::Refused(Limit::Bytes);
        }
        Verdict::Apply
    }

    /// Makes a change that was judged [`Verdict::Apply`]. Returns its version.
    pub fn apply(&mut self, key: &[u8], stamp: Stamp, data: Option<&[u8]>) -> u64 {
        self.version += 1;
        self.put(key, Value { version: self.version, stamp, data: data.map(Into::into) });
        self.version
    }

    /// Takes in a key as the log or a snapshot has it. Taking it in again, or an older change
    /// of the same key, changes nothing.
    pub fn restore(&mut self, entry: &Entry<'_>) {
        self.version = self.version.max(entry.version);
        if self.values.get(entry.key).is_some_and(|known| known.version >= entry.version) {
            return;
        }
        let data = entry.data.map(Into::into);
        self.put(entry.key, Value { version: entry.version, stamp: entry.stamp, data });
    }

    /// Says that deletions up to `horizon` are forgotten, and that no change has a version
    /// below it from now on.
    pub fn raise(&mut self, horizon: u64) {
        self.horizon = self.horizon.max(horizon);
        self.version = self.version.max(horizon);
    }

    /// Says that versions up to `version` were given.
    pub fn raise_version(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    fn put(&mut self, key: &[u8], value: Value) {
        let version = value.version;
        let live_len = |value: &Value| {
            let data = value.data.as_ref()?;
            Some((STATE_ENTRY_FIXED + key.len() + data.len()) as u64)
        };
        match live_len(&value) {
            Some(bytes) => self.live_bytes += bytes,
            None => drop(self.tombstones.insert(version)),
        }
        self.by_version.insert(version, key.into());
        if let Some(before) = self.values.insert(key.into(), value) {
            self.by_version.remove(&before.version);
            self.tombstones.remove(&before.version);
            self.live_bytes -= live_len(&before).unwrap_or(0);
        }
        while self.tombstones.len() > STATE_TOMBSTONES_MAX
            && let Some(oldest) = self.tombstones.pop_first()
        {
            if let Some(key) = self.by_version.remove(&oldest) {
                self.values.remove(&key);
            }
            self.horizon = self.horizon.max(oldest);
        }
    }

    /// What a client that has `known` needs: the changes, or everything if that is smaller or
    /// if the changes are not known any more.
    #[must_use]
    pub fn form(&self, known: u64) -> Form {
        if known == self.version {
            return Form::UpToDate;
        }
        // A version that was never given: what that client has is of another life.
        if known < self.horizon || known > self.version {
            return Form::Snapshot;
        }
        let deltas: u64 = self.after(known).map(|entry| entry.encoded_len() as u64).sum();
        if deltas <= self.live_bytes { Form::Deltas } else { Form::Snapshot }
    }

    /// The keys whose last change has a higher version than `known`, by version, deleted ones
    /// included.
    pub fn after(&self, known: u64) -> impl Iterator<Item = Entry<'_>> + Clone {
        let range = (Bound::Excluded(known), Bound::Unbounded);
        self.by_version.range(range).filter_map(|(_, key)| {
            let value = self.values.get(key)?;
            let data = value.data.as_deref();
            Some(Entry { key, version: value.version, stamp: value.stamp, data })
        })
    }

    /// Checks what the fields promise of each other, for tests.
    #[cfg(test)]
    fn invariants(&self) {
        let live: Vec<_> = self.after(0).filter(|entry| entry.data.is_some()).collect();
        let bytes: usize = live.iter().map(Entry::encoded_len).sum();
        assert_eq!((self.keys(), self.live_bytes), (live.len(), bytes as u64));
        assert_eq!(self.values.len(), self.by_version.len());
        assert!(self.keys() <= STATE_KEYS_MAX);
        assert!(self.tombstones.len() <= STATE_TOMBSTONES_MAX);
        assert!(self.by_version.keys().next_back().is_none_or(|last| *last <= self.version));
        assert!(self.horizon <= self.version);
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
