//! The end of a world: no more trouble, everyone finishes, and everything is read back.

use super::client::{Client, Habits, Place};
use super::durable::Belongs;
use super::net::End;
use super::oracle::Violation;
use super::trace::Note;
use super::world::{Due, World};
use crate::position::Nanos;

/// Virtual time in which a world without trouble must come to rest.
const SETTLE_MS: u64 = 20_000;
const STEP_MS: u64 = 50;
const PROBE_AFTER_MS: u64 = 1_500;
const CURSORS_ON_DISK_MS: u64 = 1_000;
/// Nothing that waits for a client that reads is ever this much.
const CONTROL_BYTES_ENOUGH: u64 = 16 * 1024;

impl World {
    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        self.note(Note::Phase("trouble is over"));
        self.calm = true;
        for client in &mut self.clients {
            client.sleeps_until = Nanos(0);
        }
        // A failed log stays so until the node is started again.
        let may_have_failed = self.config.trouble.write_error_ppm > 0;
        if self.node.is_up() && !self.node.draining && !may_have_failed {
            self.rest()?;
        }
        if may_have_failed && self.node.is_up() {
            if !self.node.draining {
                self.members_get_what_was_shown()?;
            }
            self.crash();
        }
        if !self.node.is_up() {
            self.after(0, Due::Start);
        }
        self.rest()?;
        // Now everything that was refused can be accepted.
        for client in &mut self.clients {
            client.finishing = true;
        }
        // Enough for a disk that was full to be tried again.
        self.run_until(self.now.plus_ms(PROBE_AFTER_MS));
        self.rest()?;
        self.read_back("reading back", self.config.trouble.crash_every_ms > 0)?;
        // Longer than cursors may take to the disk.
        self.clients.iter_mut().for_each(Client::confirm_cursors);
        self.run_until(self.now.plus_ms(CURSORS_ON_DISK_MS));
        self.crash();
        self.after(0, Due::Start);
        self.rest()?;
        self.read_back("reading back after the power was cut", true)
    }

    /// Whether a log failed or not, who is in a group gets everything of it that anyone was shown.
    fn members_get_what_was_shown(&mut self) -> Result<(), Violation> {
        let end = self.now.plus_ms(SETTLE_MS);
        // Until then those that were cut off are back.
        self.run_until(self.now.plus_ms(PROBE_AFTER_MS));
        loop {
            let shown = self.oracle.shown();
            let lacks = |client: &Client| {
                let views = client.views.iter().filter(|view| view.place == Place::In);
                views
                    .filter_map(|view| Some((view, *shown.get(&view.handle)?)))
                    .find(|(view, last)| view.has() < *last)
                    .map(|(view, last)| (client.index, view.handle, view.has(), last))
            };
            let Some((client, handle, has, last)) = self.clients.iter().find_map(lacks) else {
                return Ok(());
            };
            if self.is_violated() {
                return Ok(());
            }
            if self.now >= end {
                return Err(format!(
                    "client {client} has group {handle} up to {has}, {last} was shown"
                ));
            }
            self.run_until(self.now.plus_ms(STEP_MS));
        }
    }

    /// Runs until every client has all its answers and is where it wants to be.
    fn rest(&mut self) -> Result<(), Violation> {
        let end = self.now.plus_ms(SETTLE_MS);
        while self.now < end {
            self.run_until(self.now.plus_ms(STEP_MS));
            if self.is_violated() || self.clients.iter().all(Client::is_settled) {
                return Ok(());
            }
        }
        let stuck = self.clients.iter().find(|client| !client.is_settled());
        let waits_for = stuck.map(Client::waits_for).unwrap_or_default();
        Err(format!("no rest after {SETTLE_MS} ms: {waits_for}"))
    }

    /// A client that was not there before reads every group from its first message and
    /// publishes to each, so that a log that stopped taking messages is noticed. Then
    /// every member must be where the groups end.
    fn read_back(&mut self, phase: &'static str, crashed: bool) -> Result<(), Violation> {
        self.note(Note::Phase(phase));
        let index = self.clients.len();
        let profile = Habits {
            window: 0,
            publish_ppm: 0,
            memory_ppm: 0,
            churn_ppm: 0,
            slow: false,
            durable: false,
            receipt_ppm: 0,
            query_ppm: 0,
            watches: false,
            reader: true,
            probe: true,
        };
        self.clients.push(Client::new(index, profile, self.config.groups));
        self.after(0, Due::Tick { client: index });
        self.rest()?;
        let mut heads = vec![0; self.config.groups];
        let end = self.now.plus_ms(SETTLE_MS);
        loop {
            self.run_until(self.now.plus_ms(STEP_MS));
            let members = || self.clients.iter().flat_map(|c| c.heads().map(move |h| (c.index, h)));
            for (_, (group, head)) in members() {
                heads[group] = head.0.max(heads[group]);
            }
            for client in &self.clients {
                for (head, view) in heads.iter_mut().zip(&client.views) {
                    *head = view.head.0.max(*head);
                }
            }
            let Some((client, (group, has))) =
                members().find(|(_, (group, head))| head.0 < heads[*group])
            else {
                break;
            };
            if self.is_violated() {
                return Ok(());
            }
            if self.now >= end {
                let goes_to = heads[group];
                return Err(format!(
                    "client {client} has group {group} up to {has}, it goes up to {goes_to}"
                ));
            }
        }
        self.run_until(self.now.plus_ms(STEP_MS));
        for client in self.clients.iter().filter(|client| client.profile.durable) {
            client.has_all(self.clients[index].found.keys())?;
        }
        self.receipts_come()?;
        self.rosters_are_right(index)?;
        let found = std::mem::take(&mut self.clients[index].found);
        self.oracle.read_back(&found, crashed)?;
        // It leaves for good.
        let reader = &mut self.clients[index];
        reader.retired = true;
        let link = reader.link;
        reader.disconnected(Nanos(0));
        if let Some(link) = link
            && let Some(l) = self.links.get_mut(&link)
        {
            l.client_gone = true;
            self.at(self.now, Due::UpEnds { link, end: End::Fin });
        }
        Ok(())
    }

    /// Who is in a group is on its roster and online, who left is not on it, and whoever hears
    /// of changes has heard of all.
    fn rosters_are_right(&mut self, reader: usize) -> Result<(), Violation> {
        let interval_ms = u64::from(self.config.shard.roster_interval_ms);
        self.run_until(self.now.plus_ms(3 * interval_ms + STEP_MS));
        for group in 0..self.config.groups {
            self.oracle.now = self.now;
            self.clients[reader].ask_whole_roster(group, &self.oracle);
            self.rest()?;
            let Some((version, names)) = self.clients[reader].presences.roster(group) else {
                return Err(format!("the reader has no roster of group {group}"));
            };
            for client in self.clients.iter().filter(|client| client.profile.durable) {
                let view = &client.views[group];
                let is_in = view.place == Place::In;
                let is_out = view.durable.belongs == Belongs::No && !self.oracle.rotten;
                let there = names.get(&client.index);
                if is_in && there != Some(&true) || is_out && there.is_some() {
                    let (index, place) = (client.index, view.place);
                    return Err(format!(
                        "client {index} is {place:?}, the roster of group {group} has {there:?}"
                    ));
                }
            }
            // Where little may wait for a client, announcements are dropped.
            if u64::from(self.config.shard.control_bytes_max) < CONTROL_BYTES_ENOUGH {
                continue;
            }
            for client in &self.clients {
                let mut live = client.presences.live();
                if let Some((_, has)) = live.find(|(of, has)| *of == group && *has < version) {
                    let index = client.index;
                    return Err(format!(
                        "client {index} has the roster of group {group} at {has}, it is at {version}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Everyone has acknowledged everything, so every receipt is due to whoever listens.
    fn receipts_come(&mut self) -> Result<(), Violation> {
        let end = self.now.plus_ms(SETTLE_MS);
        loop {
            let listens =
                |client: usize, group: usize| self.clients[client].views[group].place == Place::In;
            let Some(id) = self.oracle.receipt_is_missing(listens) else { return Ok(()) };
            if self.now >= end {
                return Err(format!("the receipt of message {id} never came"));
            }
            if self.is_violated() {
                return Ok(());
            }
            self.run_until(self.now.plus_ms(STEP_MS));
        }
    }
}
