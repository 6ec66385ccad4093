//! FETCH, SET_STATE and SYNC of simulated clients, and what their answers may say.

use std::collections::BTreeMap;

use super::client::{Client, State, group_name};
use super::oracle::{Oracle, Violation};
use super::rng::Rng;
use crate::position::{Epoch, Handle, Seq};
use crate::wire::{
    Conflict, ErrorCode, ErrorFrame, Expected, Fetch, Fetched, Gap, SetState, StateForm, StateSet,
    SyncState,
};

/// Questions that a client has under way at most; one less than the server allows.
const ASKED_MAX: usize = 7;
const KEYS: u64 = 5;

/// A question without an answer.
#[derive(Debug)]
pub(super) enum Asked {
    Fetch { group: usize, from: Seq },
    Set { group: usize, key: u8, expected: Expected, value: Value },
    Sync { group: usize, known: u64, mirror: Mirror, acknowledged: u64 },
}

/// What a key is set to: a number that is used once, or nothing.
type Value = Option<u64>;

/// What a client has of a group's state: versions of its keys.
type Mirror = BTreeMap<u8, u64>;

/// What one client asks and has.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: BTreeMap<u32, Asked>,
    /// Per group: the version of the state it has, and what that is.
    states: BTreeMap<usize, (u64, Mirror)>,
}

impl Questions {
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// What was asked on a connection that is gone is never answered.
    pub fn clear(&mut self) {
        self.asked.clear();
    }
}

/// What all clients know of the states of groups.
#[derive(Debug, Default)]
pub(super) struct States {
    /// Pages of history and changes of state that clients got.
    pub answers: u64,
    /// What each version of a group's state changed.
    changes: BTreeMap<(usize, u64), (u8, Value)>,
    /// Changes that were compare-and-set: group, key, the version before.
    swaps: BTreeMap<(usize, u8, u64), u64>,
    /// Highest version that someone was told of, by group.
    told: BTreeMap<usize, u64>,
    /// Values that were sent, and for which key.
    sent: BTreeMap<u64, (usize, u8)>,
    /// Deletions that were sent, by key: whether the one of some version is among them is not
    /// known until someone sees it.
    deletions: BTreeMap<(usize, u8), u64>,
}

impl States {
    /// Someone saw that this version of a group's state changed `key` to `value`.
    fn saw(
        &mut self,
        group: usize,
        version: u64,
        key: u8,
        value: Value,
        rotten: bool,
    ) -> Result<(), Violation> {
        let told = self.told.entry(group).or_default();
        *told = version.max(*told);
        match value {
            Some(value) if self.sent.get(&value) != Some(&(group, key)) => {
                return Err(format!("key {key} of group {group} has value {value}, never sent"));
            }
            None if !self.deletions.contains_key(&(group, key)) => {
                return Err(format!("key {key} of group {group} was deleted by nobody"));
            }
            _ => {}
        }
        let known = *self.changes.entry((group, version)).or_insert((key, value));
        if known != (key, value) && !rotten {
            let seen = (key, value);
            return Err(format!("version {version} of group {group} is {known:?} and {seen:?}"));
        }
        // Nothing may have come between a compare-and-set and what it expected.
        let swaps = self.swaps.range((group, key, 0)..(group, key, version));
        if let Some((&(_, _, before), &after)) = swaps.last()
            && version < after
            && !rotten
        {
            return Err(format!("key {key} changed at {version}, between {before} and {after}"));
        }
        Ok(())
    }

    /// A compare-and-set that expected `before` made `after`.
    fn swapped(&mut self, group: usize, key: u8, before: u64, after: u64) -> Result<(), Violation> {
        if let Some(other) = self.swaps.insert((group, key, before), after)
            && other != after
        {
            return Err(format!(
                "version {before} of key {key} was swapped for {other} and {after}"
            ));
        }
        let between = self.changes.range((group, before + 1)..(group, after));
        if let Some(((_, version), _)) = between.into_iter().find(|(_, change)| change.0 == key) {
            return Err(format!("key {key} changed at {version}, between {before} and {after}"));
        }
        Ok(())
    }

    /// A whole state at `version`: it has the last change of each key that someone saw.
    fn whole(&self, group: usize, version: u64, mirror: &Mirror) -> Result<(), Violation> {
        let mut last = BTreeMap::new();
        for (&(_, at), &(key, value)) in self.changes.range((group, 0)..=(group, version)) {
            last.insert(key, (at, value));
        }
        for (key, (at, value)) in last {
            let have = mirror.get(&key).copied();
            // A later deletion whose answer was lost may be what took it.
            let perhaps_deleted = have.is_none() && self.deletions.contains_key(&(group, key));
            let is_right = match value {
                Some(_) => have.is_some_and(|have| have >= at) || perhaps_deleted,
                None => have.is_none_or(|have| have > at),
            };
            if !is_right {
                return Err(format!(
                    "the state of group {group} at {version} has key {key} at {have:?}, which was \
                     changed to {value:?} at {at}"
                ));
            }
        }
        Ok(())
    }
}

impl Oracle {
    /// After rot, changes may be gone from the log with the versions that they had.
    fn saw_state(
        &mut self,
        group: usize,
        version: u64,
        key: u8,
        value: Value,
    ) -> Result<(), Violation> {
        self.states.saw(group, version, key, value, self.rotten)
    }
}

fn key_name(key: u8) -> [u8; 2] {
    [b'k', key]
}

fn value_of(data: Option<&[u8]>) -> Result<Value, Violation> {
    let Some(data) = data else { return Ok(None) };
    let id = data.first_chunk().ok_or("a value that nobody sent")?;
    Ok(Some(u64::from_le_bytes(*id)))
}

impl Client {
    /// Asks something, or not.
    pub(super) fn ask(&mut self, rng: &mut Rng, oracle: &mut Oracle) {
        if self.state != State::Open || self.questions.asked.len() >= ASKED_MAX {
            return;
        }
        let (request, group) = (self.request(), rng.index(self.views.len()));
        let name = group_name(group);
        let asked = match rng.below(4) {
            0 => {
                let from = Seq(1 + rng.below(200));
                let (count_max, bytes_max) = (rng.below(40) as u32, rng.below(20_000) as u32);
                Fetch { request, from, to: None, count_max, bytes_max, group: &name }
                    .encode(&mut self.out);
                Asked::Fetch { group, from }
            }
            1 => {
                let (known, mirror) =
                    self.questions.states.get(&group).cloned().unwrap_or_default();
                SyncState { request, known, group: &name }.encode(&mut self.out);
                let acknowledged = oracle.states.told.get(&group).copied().unwrap_or_default();
                Asked::Sync { group, known, mirror, acknowledged }
            }
            _ => {
                let key = rng.below(KEYS) as u8;
                let known = self.questions.states.get(&group).and_then(|(_, m)| m.get(&key));
                let expected = match known {
                    Some(version) if rng.flip() => Expected::Version(*version),
                    None if rng.flip() => Expected::Absent,
                    _ => Expected::Any,
                };
                let value = (rng.below(4) > 0).then(|| rng.next());
                match value {
                    Some(value) => drop(oracle.states.sent.insert(value, (group, key))),
                    None => *oracle.states.deletions.entry((group, key)).or_default() += 1,
                }
                let data = value.map(|value| {
                    let mut data = value.to_le_bytes().to_vec();
                    data.resize(8 + rng.below(600) as usize, 0);
                    data
                });
                let (group_name, key_name, data) = (&name[..], key_name(key), data.as_deref());
                SetState { request, expected, group: group_name, key: &key_name, data }
                    .encode(&mut self.out);
                Asked::Set { group, key, expected, value }
            }
        };
        self.questions.asked.insert(request, asked);
    }

    pub(super) fn fetched(
        &mut self,
        page: &Fetched<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let Some(Asked::Fetch { group, from }) = self.questions.asked.remove(&page.request) else {
            return Err("nobody asked for this page".to_owned());
        };
        oracle.states.answers += 1;
        let mut next = from;
        if let Some((gap_from, gap_to, reason)) = page.gap {
            if gap_from != from {
                return Err(format!("the gap begins at {gap_from}, asked was {from}"));
            }
            let (handle, epoch) = (page.handle, page.epoch);
            oracle.gap(&Gap { handle, from: gap_from, to: gap_to, epoch, reason })?;
            next = gap_to.next();
        }
        if page.first > Seq(0) && page.first != next {
            return Err(format!("the page should begin at {next}"));
        }
        if page.last > page.head {
            return Err("a page goes beyond the head".to_owned());
        }
        for d in page.messages() {
            let name = (group, page.epoch.0, d.seq.0);
            oracle.delivered(name, d.handle, d.stamp, d.sender, d.payload)?;
        }
        let nothing = page.handle == Handle(0);
        if nothing && (page.head > Seq(0) || page.epoch != Epoch(0)) {
            return Err("a group without a handle has messages".to_owned());
        }
        Ok(())
    }

    pub(super) fn state_set(
        &mut self,
        set: &StateSet,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let asked = self.questions.asked.remove(&set.request);
        let Some(Asked::Set { group, key, expected, value }) = asked else {
            return Err("nobody set this".to_owned());
        };
        if set.version == 0 {
            return if value.is_none() {
                Ok(())
            } else {
                Err("a value without version".to_owned())
            };
        }
        oracle.states.answers += 1;
        oracle.saw_state(group, set.version, key, value)?;
        if let Expected::Version(before) = expected
            && !oracle.rotten
        {
            oracle.states.swapped(group, key, before, set.version)?;
        }
        Ok(())
    }

    pub(super) fn conflict(
        &mut self,
        c: &Conflict<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let asked = self.questions.asked.remove(&c.request);
        let Some(Asked::Set { group, key, expected, .. }) = asked else {
            return Err("nobody set this".to_owned());
        };
        let as_expected = match expected {
            Expected::Any => true,
            Expected::Absent => c.data.is_none(),
            Expected::Version(version) => c.version == version,
        };
        if as_expected {
            return Err(format!("the key is as expected: {expected:?}"));
        }
        match value_of(c.data)? {
            None => Ok(()),
            value => oracle.saw_state(group, c.version, key, value),
        }
    }

    pub(super) fn synced(
        &mut self,
        state: &crate::wire::State<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let head = state.head;
        let asked = self.questions.asked.get_mut(&head.request);
        let Some(Asked::Sync { group, known, mirror, acknowledged }) = asked else {
            return Err("nobody asked for this state".to_owned());
        };
        let (group, acknowledged) = (*group, *acknowledged);
        if head.form == StateForm::Snapshot && *known != u64::MAX {
            // The first frame of a snapshot: what was known is void.
            mirror.clear();
            *known = u64::MAX;
        }
        for entry in state.entries() {
            let key = *entry.key.get(1).ok_or("a key that nobody set")?;
            let value = value_of(entry.data)?;
            oracle.saw_state(group, entry.version, key, value)?;
            match value {
                Some(_) => drop(mirror.insert(key, entry.version)),
                None => drop(mirror.remove(&key)),
            }
        }
        if head.more {
            return Ok(());
        }
        let mirror = std::mem::take(mirror);
        self.questions.asked.remove(&head.request);
        if head.version < acknowledged && !oracle.rotten {
            return Err(format!("version {acknowledged} was known before it was asked"));
        }
        if !oracle.rotten {
            oracle.states.whole(group, head.version, &mirror)?;
        }
        self.questions.states.insert(group, (head.version, mirror));
        Ok(())
    }

    /// A question was refused; whether it was one.
    pub(super) fn question_refused(&mut self, e: &ErrorFrame<'_>, code: ErrorCode) -> bool {
        use ErrorCode as E;
        let no_log =
            matches!(code, E::StorageFull | E::StorageFailed | E::Indeterminate | E::Draining);
        no_log && self.questions.asked.remove(&e.request).is_some()
    }
}
