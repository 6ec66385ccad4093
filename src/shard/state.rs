//! SET_STATE and SYNC on the owner of a group. A change is made in memory at once, so that the
//! next one meets it, and its record goes with the next commit; every answer that shows it
//! waits for that commit.

use super::Shard;
use super::inbox::Origin;
use super::queries::{Asked, Question, SyncPage};
use super::records::Ticket;
use super::replies::{Refusal, refusal_text};
use crate::group::state::{Change, Entry, Form, Limit, State, Verdict};
use crate::limits::STATE_KEYS_MAX;
use crate::position::{Epoch, Handle, Stamp};
use crate::wal::{GroupState, Record};
use crate::wire::{
    self, Conflict, ErrorCode, Expected, STATE_FIXED, StateForm, StateHead, StateSet,
};

/// The state of an owned group, and how far it is on disk.
#[derive(Debug, Default)]
pub struct OwnedState {
    /// The state, with changes that are not on disk yet.
    pub state: State,
    /// Record of its newest change.
    pub ticket: Ticket,
}

impl OwnedState {
    /// The state as recovery found it, if there is any. `lost_below` is the lowest epoch of a
    /// group whose log lost nothing: versions of a group with an older one may have been given
    /// to changes that are gone, so they are not used again, and clients get snapshots. An entry
    /// without a key says how far deletions are forgotten.
    pub(super) fn recovered(
        durable: &GroupState,
        epoch: Epoch,
        lost_below: Epoch,
    ) -> Option<Box<Self>> {
        let mut owned = Box::<Self>::default();
        for (key, value) in &durable.entries {
            if key.is_empty() {
                owned.state.raise(value.version);
                continue;
            }
            let data = (!value.deleted).then_some(&value.data[..]);
            let (version, stamp) = (value.version, value.stamp);
            owned.state.restore(&Entry { key, version, stamp, data });
        }
        owned.state.raise_version(durable.state_version);
        let changed = owned.state.version() > 0;
        if changed && epoch < lost_below {
            owned.state.raise(u64::from(lost_below.0) << 32);
        }
        changed.then_some(owned)
    }
}

impl Shard {
    /// Changes the state of a group, or says why not.
    pub(super) fn set_state(
        &mut self,
        origin: Origin,
        name: &[u8],
        expected: Expected,
        key: &[u8],
        data: Option<&[u8]>,
        wall_ms: u64,
    ) -> usize {
        let refused = match self.drain {
            Some(_) => Err((ErrorCode::Draining, 0)),
            None => self.may_publish().and_then(|()| self.may_record()),
        };
        if let Err((code, limit)) = refused {
            let refusal = Refusal::new(code, refusal_text(code)).limit(limit);
            return self.refuse_question(origin, refusal);
        }
        let bytes_max = self.config.state_bytes_max;
        let nothing = OwnedState::default();
        let group = self.by_name.get(name).copied();
        let owned = group.and_then(|group| self.groups[group as usize].owned_state());
        let OwnedState { state, ticket } = owned.unwrap_or(&nothing);
        let ticket = *ticket;
        let handle = group.map_or(Handle(0), |group| self.groups[group as usize].handle);
        let mut frames = Vec::new();
        match state.judge(&Change { key, expected, data }, bytes_max) {
            Verdict::Apply => {}
            Verdict::Nothing => {
                let (request, stamp) = (origin.request, Stamp(0));
                StateSet { request, handle, version: 0, stamp }.encode(&mut frames);
                return self.answer_when_synced(ticket, origin, frames, None, false);
            }
            Verdict::Conflict(current) => {
                let (version, stamp) = current.map_or((0, Stamp(0)), |e| (e.version, e.stamp));
                let data = current.and_then(|entry| entry.data);
                Conflict { request: origin.request, handle, version, stamp, data }
                    .encode(&mut frames);
                return self.answer_when_synced(ticket, origin, frames, None, false);
            }
            Verdict::Refused(limit) => return self.refuse_state(origin, limit),
        }
        let Some(group) = self.owned_group(name) else {
            let code = ErrorCode::TooManyGroups;
            let max = u64::from(self.config.groups_max);
            return self.refuse_question(origin, Refusal::new(code, refusal_text(code)).limit(max));
        };
        self.stamp = self.stamp.tick(wall_ms);
        let stamp = self.stamp;
        let handle = self.groups[group as usize].handle;
        let Some(sequencer) = self.groups[group as usize].sequencer() else { return 0 };
        let version = sequencer.state.get_or_insert_default().state.apply(key, stamp, data);
        let (deleted, data) = (data.is_none(), data.unwrap_or_default());
        let ticket =
            self.stage_record(group, &Record::State { key, version, stamp, deleted, data });
        if let Some(owned) = self.groups[group as usize].sequencer().and_then(|s| s.state.as_mut())
        {
            owned.ticket = ticket;
        }
        self.figures.state_changes += 1;
        StateSet { request: origin.request, handle, version, stamp }.encode(&mut frames);
        self.answer_when_synced(ticket, origin, frames, None, true)
    }

    fn refuse_state(&mut self, origin: Origin, limit: Limit) -> usize {
        let refusal = match limit {
            Limit::Keys => {
                let text = "the group has as many keys as it may; delete one first";
                Refusal::new(ErrorCode::TooManyKeys, text).limit(STATE_KEYS_MAX as u64)
            }
            Limit::Bytes => {
                let text = "the state of the group has no room for it; delete keys or raise \
                            state_bytes_max";
                Refusal::new(ErrorCode::StateTooLarge, text)
                    .limit(self.config.state_bytes_max)
                    .field(b"group")
            }
        };
        self.refuse_question(origin, refusal)
    }

    /// Answers a SYNC with one page, and has the next one asked for.
    pub(super) fn sync_state(
        &mut self,
        origin: Origin,
        name: Box<[u8]>,
        known: u64,
        page: Option<SyncPage>,
    ) -> usize {
        let room = self.config.frame_max() + 4 - STATE_FIXED;
        let nothing = OwnedState::default();
        let group = self.by_name.get(&name).copied();
        let owned = group.and_then(|group| self.groups[group as usize].owned_state());
        let OwnedState { state, ticket } = owned.unwrap_or(&nothing);
        let handle = group.map_or(Handle(0), |group| self.groups[group as usize].handle);
        let page = match page {
            // A deletion between the pages was forgotten meanwhile: all from the start.
            Some(page) if page.form == StateForm::Deltas && page.after < state.horizon() => {
                SyncPage { form: StateForm::Snapshot, after: 0, up_to: state.version() }
            }
            Some(page) => page,
            None => first_page(state, known),
        };
        let SyncPage { form, after, up_to } = page;
        let wanted = state
            .after(after)
            .take_while(|entry| entry.version <= up_to)
            .filter(|entry| form == StateForm::Deltas || entry.data.is_some());
        let (mut count, mut bytes, mut last, mut more) = (0, 0, after, false);
        if form != StateForm::UpToDate {
            for entry in wanted.clone() {
                bytes += entry.encoded_len();
                if count > 0 && (bytes > room || count >= usize::from(u16::MAX)) {
                    more = true;
                    break;
                }
                (count, last) = (count + 1, entry.version);
            }
        }
        let head = StateHead { request: origin.request, form, more, handle, version: up_to };
        let entries = wanted.take(count).map(|e| wire::StateEntry {
            version: e.version,
            stamp: e.stamp,
            key: e.key,
            data: e.data,
        });
        let mut frames = Vec::new();
        wire::State::encode(&mut frames, &head, entries);
        let ticket = *ticket;
        let next = more.then(|| {
            let page = Some(SyncPage { form, after: last, up_to });
            Box::new(Asked { origin, group: name, question: Question::Sync { known, page } })
        });
        self.answer_when_synced(ticket, origin, frames, next, false)
    }
}

fn first_page(state: &State, known: u64) -> SyncPage {
    let up_to = state.version();
    match state.form(known) {
        Form::UpToDate => SyncPage { form: StateForm::UpToDate, after: known, up_to },
        Form::Deltas => SyncPage { form: StateForm::Deltas, after: known, up_to },
        Form::Snapshot => SyncPage { form: StateForm::Snapshot, after: 0, up_to },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wal::StateEntry;

    fn changed() -> OwnedState {
        let mut owned = OwnedState::default();
        for n in 0..2_000u32 {
            let data = (n % 3 > 0).then_some(&b"v"[..]);
            owned.state.apply(&(n % 1_700).to_le_bytes(), Stamp(n.into()), data);
        }
        owned
    }

    /// What a snapshot has of it.
    fn captured(owned: &OwnedState) -> GroupState {
        let mut durable =
            GroupState { state_version: owned.state.version(), ..GroupState::default() };
        let keep = |entry: Entry<'_>| {
            let (version, stamp, deleted) = (entry.version, entry.stamp, entry.data.is_none());
            let data = entry.data.unwrap_or_default().into();
            (entry.key.into(), StateEntry { version, stamp, deleted, data })
        };
        durable.entries = owned.state.after(0).map(keep).collect();
        let (version, deleted) = (owned.state.horizon(), true);
        let forgotten = StateEntry { version, deleted, ..StateEntry::default() };
        durable.entries.insert(Box::default(), forgotten);
        durable
    }

    #[test]
    fn what_is_captured_comes_back_as_it_was() {
        let owned = changed();
        let durable = captured(&owned);
        let back = OwnedState::recovered(&durable, Epoch(2), Epoch(2)).unwrap().state;
        assert_eq!(back.version(), owned.state.version());
        assert_eq!(back.horizon(), owned.state.horizon());
        assert!(back.after(0).eq(owned.state.after(0)));
        assert!(OwnedState::recovered(&GroupState::default(), Epoch(1), Epoch(2)).is_none());
    }

    /// After damage, versions that were given may be gone from the log: none is given twice,
    /// and every client starts over.
    #[test]
    fn a_log_that_lost_something_makes_every_client_start_over() {
        let owned = changed();
        let durable = captured(&owned);
        let mut back = OwnedState::recovered(&durable, Epoch(2), Epoch(3)).unwrap().state;
        for known in [1, owned.state.version(), owned.state.version() + 77] {
            assert_eq!(back.form(known), Form::Snapshot);
        }
        assert!(back.apply(b"k", Stamp(1), None) > owned.state.version() + 1_000);
    }
}
