//! FETCH, SET_STATE, SYNC and ROSTER_QUERY of the blocking client.

use std::collections::BTreeMap;

use fanfare::position::{Epoch, Handle, Seq};
use fanfare::wire::{
    Conflict, Expected, Fetch, Fetched, GapReason, Join, JoinEntry, Mode, Presence, Roster,
    RosterForm, RosterHead, RosterQuery, SetState, Start, State, StateForm, StateHead, StateSet,
    SyncState,
};

use super::client::{Client, Got};

/// A page of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub request: u32,
    pub epoch: Epoch,
    pub handle: Handle,
    pub first: u64,
    pub last: u64,
    pub head: u64,
    pub gap: Option<(u64, u64, GapReason)>,
    pub more: bool,
    /// Sequence number, sender, payload.
    pub messages: Vec<(u64, Vec<u8>, Vec<u8>)>,
    /// Bytes of the frames.
    pub bytes: usize,
}

impl Page {
    pub fn of(page: &Fetched<'_>) -> Self {
        let messages: Vec<_> =
            page.messages().map(|d| (d.seq.0, d.sender.to_vec(), d.payload.to_vec())).collect();
        let expected: Vec<u64> =
            if page.first.0 == 0 { Vec::new() } else { (page.first.0..=page.last.0).collect() };
        assert!(messages.iter().map(|(seq, ..)| *seq).eq(expected), "contiguous: {page:?}");
        Self {
            request: page.request,
            epoch: page.epoch,
            handle: page.handle,
            first: page.first.0,
            last: page.last.0,
            head: page.head.0,
            gap: page.gap.map(|(from, to, reason)| (from.0, to.0, reason)),
            more: page.more,
            messages,
            bytes: page.frames.len(),
        }
    }
}

/// A part of a group's state: version, value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePage {
    pub head: StateHead,
    pub entries: Vec<(Vec<u8>, u64, Option<Vec<u8>>)>,
}

impl StatePage {
    pub fn of(state: &State<'_>) -> Self {
        let entries: Vec<_> = state
            .entries()
            .map(|e| (e.key.to_vec(), e.version, e.data.map(<[u8]>::to_vec)))
            .collect();
        assert!(entries.is_sorted_by_key(|(_, version, _)| *version), "in order: {entries:?}");
        Self { head: state.head, entries }
    }
}

/// A CONFLICT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictGot {
    pub request: u32,
    pub version: u64,
    pub data: Option<Vec<u8>>,
}

impl ConflictGot {
    pub fn of(conflict: &Conflict<'_>) -> Self {
        let Conflict { request, version, data, .. } = *conflict;
        Self { request, version, data: data.map(<[u8]>::to_vec) }
    }
}

/// A ROSTER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterPage {
    pub head: RosterHead,
    pub entries: Vec<(Presence, String)>,
}

impl RosterPage {
    pub fn of(roster: &Roster<'_>) -> Self {
        let entries = roster
            .entries()
            .map(|e| (e.what, String::from_utf8(e.member.to_vec()).unwrap()))
            .collect();
        Self { head: roster.head, entries }
    }
}

/// What a client knows of a group's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    pub version: u64,
    pub values: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    /// Form of the last answer, and its frames.
    pub form: Option<StateForm>,
    pub frames: usize,
}

impl Client {
    pub fn send_fetch(&mut self, group: &str, from: u64, to: u64, count: u32, bytes: u32) -> u32 {
        let request = self.request();
        let to = Some(Seq(to)).filter(|to| to.0 > 0);
        let (count_max, bytes_max, group) = (count, bytes, group.as_bytes());
        let mut out = Vec::new();
        Fetch { request, from: Seq(from), to, count_max, bytes_max, group }.encode(&mut out);
        self.send(&out);
        request
    }

    pub fn fetched(&mut self, request: u32) -> Page {
        self.expect("FETCHED", |got| match got {
            Got::Fetched(page) if page.request == request => Some(page.clone()),
            Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
            _ => None,
        })
    }

    pub fn fetch(&mut self, group: &str, from: u64, to: u64, count: u32, bytes: u32) -> Page {
        let request = self.send_fetch(group, from, to, count, bytes);
        self.fetched(request)
    }

    /// All pages from `from` on.
    pub fn fetch_all(&mut self, group: &str, from: u64) -> Vec<Page> {
        let (mut pages, mut from) = (Vec::new(), from);
        loop {
            let page = self.fetch(group, from, 0, 0, 0);
            let end = page.last.max(page.gap.map_or(0, |(_, to, _)| to));
            let more = page.more;
            pages.push(page);
            if !more {
                return pages;
            }
            assert!(end >= from, "a page with more makes progress: {pages:?}");
            from = end + 1;
        }
    }

    pub fn send_set(
        &mut self,
        group: &str,
        key: &str,
        expected: Expected,
        data: Option<&[u8]>,
    ) -> u32 {
        let request = self.request();
        let (group, key) = (group.as_bytes(), key.as_bytes());
        let mut out = Vec::new();
        SetState { request, expected, group, key, data }.encode(&mut out);
        self.send(&out);
        request
    }

    /// The answer to a SET_STATE: the new state of the key, or what is there.
    pub fn set_answer(&mut self, request: u32) -> Result<StateSet, ConflictGot> {
        self.expect("STATE_SET or CONFLICT", |got| match got {
            Got::StateSet(set) if set.request == request => Some(Ok(*set)),
            Got::Conflict(conflict) if conflict.request == request => Some(Err(conflict.clone())),
            Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
            _ => None,
        })
    }

    pub fn set(
        &mut self,
        group: &str,
        key: &str,
        expected: Expected,
        data: Option<&[u8]>,
    ) -> Result<StateSet, ConflictGot> {
        let request = self.send_set(group, key, expected, data);
        self.set_answer(request)
    }

    pub fn send_sync(&mut self, group: &str, known: u64) -> u32 {
        let request = self.request();
        let mut out = Vec::new();
        SyncState { request, known, group: group.as_bytes() }.encode(&mut out);
        self.send(&out);
        request
    }

    /// Brings a mirror up to date.
    pub fn sync(&mut self, group: &str, mirror: &mut Mirror) {
        let request = self.send_sync(group, mirror.version);
        mirror.frames = 0;
        let before = mirror.values.clone();
        loop {
            let page = self.expect("STATE", |got| match got {
                Got::State(page) if page.head.request == request => Some(page.clone()),
                Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
                _ => None,
            });
            let form = page.head.form;
            if form == StateForm::Snapshot && (mirror.frames == 0 || mirror.form != Some(form)) {
                mirror.values.clear();
            }
            mirror.frames += 1;
            mirror.form = Some(form);
            for (key, version, data) in page.entries {
                match data {
                    Some(data) => drop(mirror.values.insert(key, (version, data))),
                    None => drop(mirror.values.remove(&key)),
                }
            }
            if !page.head.more {
                mirror.version = page.head.version;
                break;
            }
        }
        if mirror.form == Some(StateForm::UpToDate) {
            assert_eq!(mirror.values, before);
        }
    }

    pub fn send_roster(&mut self, group: &str, known: u64, after: u32, limit: u32) -> u32 {
        let request = self.request();
        let mut out = Vec::new();
        RosterQuery { request, known, after, limit, group: group.as_bytes() }.encode(&mut out);
        self.send(&out);
        request
    }

    pub fn roster(&mut self, group: &str, known: u64, after: u32, limit: u32) -> RosterPage {
        let request = self.send_roster(group, known, after, limit);
        self.expect("ROSTER", |got| match got {
            Got::Roster(page) if page.head.request == request => Some(page.clone()),
            Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
            _ => None,
        })
    }

    /// All pages of a roster.
    pub fn roster_all(&mut self, group: &str, limit: u32) -> Vec<RosterPage> {
        let (mut pages, mut after) = (Vec::new(), 0);
        loop {
            let page = self.roster(group, 0, after, limit);
            assert_eq!(page.head.form, RosterForm::Page, "{page:?}");
            after = page.head.next;
            pages.push(page);
            if after == 0 {
                return pages;
            }
        }
    }

    /// Joins and asks for announcements of the roster.
    pub fn join_watching(&mut self, group: &str, mode: Mode) {
        let request = self.request();
        let entry = JoinEntry { group: group.as_bytes(), mode, start: Start::Tail, roster: true };
        let mut out = Vec::new();
        Join::encode(&mut out, request, &[entry]);
        self.send(&out);
        self.joined(request, group);
    }

    /// The next ROSTER that nobody asked for.
    pub fn announced(&mut self) -> RosterPage {
        self.expect("a ROSTER announcement", |got| match got {
            Got::Roster(page) if page.head.request == 0 => Some(page.clone()),
            _ => None,
        })
    }
}
