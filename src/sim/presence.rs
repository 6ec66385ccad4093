//! ROSTER_QUERY and roster announcements of simulated clients: a client mirrors rosters by
//! the rules of PROTOCOL.md, and what it then has is compared with what others know.

use std::collections::BTreeMap;

use super::client::{Client, Place, State, group_name};
use super::oracle::{Oracle, Violation, client_of};
use super::rng::Rng;
use super::trace::Fault;
use crate::position::Nanos;
use crate::wire::{self, Presence, RosterForm, RosterQuery};

/// Who is on a roster, and whether it is online.
pub(super) type Names = BTreeMap<usize, bool>;

/// More than there are clients.
const ALL: u32 = 1_000;

/// A ROSTER_QUERY without an answer.
#[derive(Debug)]
struct Asked {
    group: usize,
    /// What the client has; pages that were read so far, or what changes will be made to.
    names: Names,
    /// Version of `names`; of the first of several pages.
    version: u64,
    /// All of `names` is as it was at `version`.
    whole: bool,
    after: u32,
    limit: u32,
    at: Nanos,
    /// Someone was told this version before.
    told: u64,
    /// The client hears of changes since before it asked.
    heard: bool,
}

/// A roster as a client has it.
#[derive(Clone, Debug, Default)]
struct Mirror {
    version: u64,
    names: Names,
    /// Every change since `version` comes as an announcement.
    live: bool,
}

/// What a client asks of rosters and has.
#[derive(Debug, Default)]
pub(super) struct Presences {
    asked: BTreeMap<u32, Asked>,
    mirrors: BTreeMap<usize, Mirror>,
    /// Version of the last announcement on this connection, by group.
    announced: BTreeMap<usize, u64>,
}

impl Presences {
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// The connection is gone.
    pub fn clear(&mut self) {
        self.asked.clear();
        self.announced.clear();
        self.mirrors.values_mut().for_each(|mirror| mirror.live = false);
    }

    /// The client is not in the group any more and hears no changes.
    pub fn left(&mut self, group: usize) {
        self.mirrors.entry(group).and_modify(|mirror| mirror.live = false);
    }

    /// Rosters whose changes it hears, with their versions.
    pub fn live(&self) -> impl Iterator<Item = (usize, u64)> {
        self.mirrors.iter().filter(|(_, m)| m.live).map(|(group, m)| (*group, m.version))
    }

    /// The roster of a group, if the client has one.
    pub fn roster(&self, group: usize) -> Option<(u64, &Names)> {
        self.mirrors.get(&group).map(|mirror| (mirror.version, &mirror.names))
    }
}

/// Makes one change. If the roster is `whole`, the change must be possible.
fn change(names: &mut Names, member: usize, what: Presence, whole: bool) -> Result<(), Violation> {
    let before = names.get(&member).copied();
    let possible = match what {
        Presence::Joined => before.is_none(),
        Presence::Left => before == Some(false),
        Presence::Online => before == Some(false),
        Presence::Offline => before == Some(true),
    };
    if whole && !possible {
        return Err(format!("member {member} was {before:?} before {what:?}"));
    }
    match what {
        Presence::Left => drop(names.remove(&member)),
        Presence::Joined | Presence::Offline => drop(names.insert(member, false)),
        Presence::Online => drop(names.insert(member, true)),
    }
    Ok(())
}

impl Client {
    /// Asks for a roster: all of it, in pages, what changed, or the counts.
    pub(super) fn ask_roster(&mut self, rng: &mut Rng, oracle: &Oracle) {
        if self.state != State::Open || !self.presences.is_empty() {
            return;
        }
        let group = rng.index(self.views.len());
        let limit = match rng.below(4) {
            0 => 0,
            1 => rng.between(1, 5) as u32,
            _ => ALL,
        };
        let mirror = self.presences.mirrors.get(&group).filter(|_| rng.flip());
        let (version, names) = mirror.map_or((0, Names::new()), |m| (m.version, m.names.clone()));
        self.send_query(group, (version, names, true), (0, limit), oracle);
    }

    /// Asks for a whole roster.
    pub(super) fn ask_whole_roster(&mut self, group: usize, oracle: &Oracle) {
        self.send_query(group, (0, Names::new(), true), (0, ALL), oracle);
    }

    fn send_query(
        &mut self,
        group: usize,
        (version, names, whole): (u64, Names, bool),
        (after, limit): (u32, u32),
        oracle: &Oracle,
    ) {
        let request = self.request();
        let known = if after == 0 { version } else { 0 };
        RosterQuery { request, known, after, limit, group: &group_name(group) }
            .encode(&mut self.out);
        let heard = self.profile.watches && self.views[group].place == Place::In;
        let (at, told) = (oracle.now, oracle.rosters.told(group));
        let asked = Asked { group, names, version, whole, after, limit, at, told, heard };
        self.presences.asked.insert(request, asked);
    }

    pub(super) fn roster(
        &mut self,
        roster: &wire::Roster<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let head = roster.head;
        if head.request == 0 {
            return self.roster_announced(roster, oracle);
        }
        let Some(mut asked) = self.presences.asked.remove(&head.request) else {
            return Err("nobody asked for this roster".to_owned());
        };
        oracle.fault(Fault::RosterRead);
        // A group of which nothing is on disk is gone after a crash.
        if head.version < asked.told && head.version != 0 {
            return Err(format!("version {} was told before it was asked", asked.told));
        }
        let (known, is_first) = (asked.version, asked.after == 0);
        match head.form {
            RosterForm::Counts if asked.limit == 0 => {
                return oracle.roster_counts(asked.group, &head);
            }
            RosterForm::UpToDate if is_first && known > 0 && head.version == known => {}
            RosterForm::Changes if is_first && known > 0 => {
                let changes = roster.entries().count() as u64;
                if head.version != known + changes {
                    return Err(format!("{changes} changes after version {known}"));
                }
                for entry in roster.entries() {
                    let member = client_of(entry.member).ok_or("an unknown member")?;
                    change(&mut asked.names, member, entry.what, asked.whole)?;
                }
            }
            RosterForm::Page => return self.roster_page(asked, roster, oracle),
            _ => return Err("this form was not asked for".to_owned()),
        }
        self.has_roster(asked, &head, oracle)
    }

    /// One page; after the last one, what changed meanwhile is asked for.
    fn roster_page(
        &mut self,
        mut asked: Asked,
        roster: &wire::Roster<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let head = roster.head;
        if asked.after == 0 {
            (asked.names, asked.version, asked.whole) = (Names::new(), head.version, true);
        }
        asked.whole &= head.version == asked.version;
        for entry in roster.entries() {
            let member = client_of(entry.member).ok_or("an unknown member")?;
            let online = match entry.what {
                Presence::Online => true,
                Presence::Offline => false,
                what => return Err(format!("{what:?} in a page")),
            };
            if asked.names.insert(member, online).is_some() && asked.whole {
                return Err(format!("member {member} is on two pages of one version"));
            }
        }
        let Asked { group, version, whole, limit, .. } = asked;
        if head.next != 0 {
            if head.next <= asked.after {
                return Err("the next page is not after this one".to_owned());
            }
            self.send_query(group, (version, asked.names, whole), (head.next, limit), oracle);
            return Ok(());
        }
        if !whole {
            self.send_query(group, (version, asked.names, false), (0, ALL), oracle);
            return Ok(());
        }
        self.has_roster(asked, &head, oracle)
    }

    /// The client knows the roster as it is at `head`.
    fn has_roster(
        &mut self,
        asked: Asked,
        head: &wire::RosterHead,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let Asked { group, names, heard, .. } = asked;
        oracle.roster_counts(group, head)?;
        oracle.roster_is(group, head, &names, Some(asked.at))?;
        // An announcement may have come before the answer.
        let mirrors = &mut self.presences.mirrors;
        if mirrors.get(&group).is_none_or(|mirror| mirror.version <= head.version) {
            let live = heard && self.views[group].place == Place::In;
            mirrors.insert(group, Mirror { version: head.version, names, live });
        }
        Ok(())
    }

    /// Changes come to a client that wants to know.
    fn roster_announced(
        &mut self,
        roster: &wire::Roster<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let head = roster.head;
        let group = self.member_of(head.handle)?;
        if !self.profile.watches {
            return Err("a client that did not want to know is told".to_owned());
        }
        oracle.fault(Fault::RosterAnnounced);
        let last = self.presences.announced.insert(group, head.version);
        if last.is_some_and(|last| last >= head.version) {
            return Err(format!("version {last:?} was announced before"));
        }
        oracle.roster_counts(group, &head)?;
        let Some(mirror) = self.presences.mirrors.get_mut(&group) else { return Ok(()) };
        if head.version <= mirror.version {
            return Ok(());
        }
        let first = match head.form {
            RosterForm::Changes => head.version - roster.entries().count() as u64,
            RosterForm::Counts => u64::MAX,
            _ => return Err("this form is no announcement".to_owned()),
        };
        if first > mirror.version {
            // It missed something, and has to ask.
            self.presences.mirrors.remove(&group);
            return Ok(());
        }
        for entry in roster.entries().skip((mirror.version - first) as usize) {
            let member = client_of(entry.member).ok_or("an unknown member")?;
            change(&mut mirror.names, member, entry.what, true)?;
        }
        mirror.version = head.version;
        oracle.roster_is(group, &head, &mirror.names, None)
    }
}
