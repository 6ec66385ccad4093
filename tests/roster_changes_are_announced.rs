//! Joins, leaves, online and offline of durable members have versions; who wants to know is
//! told of them together, once per interval, on every shard; who asks gets what changed or
//! the roster in pages.
#![allow(clippy::unwrap_used, clippy::expect_used)]
mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::queries::RosterPage;
use common::{Client, Server, Settings};
use fanfare::wire::{Mode, Presence, RosterForm, Start};

fn any_shards(test: impl Fn(u16)) {
    test(1);
    test(2);
}

/// A roster as a client keeps it: members, and whether they are online.
#[derive(Default)]
struct Known {
    version: u64,
    members: BTreeMap<String, bool>,
}

impl Known {
    /// Takes changes in, which must follow what is known.
    fn take(&mut self, page: &RosterPage) {
        assert_eq!(page.head.form, RosterForm::Changes, "{page:?}");
        let count = page.entries.len() as u64;
        assert!(self.version == 0 || page.head.version - count == self.version, "{page:?}");
        self.version = page.head.version;
        for (what, member) in &page.entries {
            match what {
                Presence::Joined => drop(self.members.insert(member.clone(), false)),
                Presence::Left => drop(self.members.remove(member)),
                Presence::Online => drop(self.members.insert(member.clone(), true)),
                Presence::Offline => drop(self.members.insert(member.clone(), false)),
            }
        }
        assert_eq!(self.members.len(), page.head.members as usize, "{page:?}");
        let online = self.members.values().filter(|online| **online).count();
        assert_eq!(online, page.head.online as usize);
    }

    fn of_pages(pages: &[RosterPage]) -> Self {
        let mut known = Self { version: pages[0].head.version, ..Self::default() };
        for (what, member) in pages.iter().flat_map(|page| &page.entries) {
            known.members.insert(member.clone(), *what == Presence::Online);
        }
        known
    }
}

/// Waits until the watcher knows of `members`, with who is online.
fn watch(client: &mut Client, known: &mut Known, members: &[(&str, bool)]) {
    let want: BTreeMap<_, _> = members.iter().map(|(m, on)| ((*m).to_owned(), *on)).collect();
    while known.members != want {
        known.take(&client.announced());
    }
}

#[test]
fn changes_are_announced_on_every_shard_to_who_wants_them() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards).set("roster_interval_ms", 50));
        for group in ["one", "two", "three"] {
            let mut watchers: Vec<_> = (0..shards)
                .map(|shard| {
                    let mut client = Client::on_shard(&server, shard, &format!("watcher{shard}"));
                    client.join_watching(group, Mode::Live);
                    (client, Known::default())
                })
                .collect();
            let mut silent = Client::open(&server, "silent");
            silent.join(group);
            let mut ann = Client::open(&server, "ann");
            ann.join_durable(group);
            let mut bob = Client::open(&server, "bob");
            bob.join_durable(group);
            for (client, known) in &mut watchers {
                watch(client, known, &[("ann", true), ("bob", true)]);
            }
            drop(ann);
            bob.leave(group);
            for (client, known) in &mut watchers {
                watch(client, known, &[("ann", false)]);
            }
            let mut ann = Client::open(&server, "ann");
            ann.join_durable(group);
            for (client, known) in &mut watchers {
                watch(client, known, &[("ann", true)]);
                let page = client.roster(group, known.version, 0, 100);
                assert_eq!(page.head.form, RosterForm::UpToDate);
            }
            silent.ping();
            assert!(silent.nothing_passed_over(), "nobody is told who did not ask");
        }
    });
}

#[test]
fn changes_of_one_interval_come_in_one_frame_and_too_many_are_counted() {
    any_shards(|shards| {
        let interval = Duration::from_millis(1_500);
        let settings = Settings::shards(shards).set("roster_interval_ms", interval.as_millis());
        let server = Server::start(settings);
        let mut watcher = Client::open(&server, "watcher");
        watcher.join_watching("g", Mode::Live);
        let began = Instant::now();
        let few: Vec<_> = (0..20)
            .map(|n| {
                let mut client = Client::open(&server, &format!("m{n:02}"));
                client.join_durable("g");
                client
            })
            .collect();
        let together = began.elapsed() < interval;
        let mut known = Known::default();
        let first = watcher.announced();
        known.take(&first);
        if together {
            assert_eq!((first.entries.len(), first.head.members), (40, 20));
        }
        while known.members.len() < 20 {
            known.take(&watcher.announced());
        }
        drop(few);
        let all_off = |known: &Known| known.members.values().all(|online| !online);
        while !all_off(&known) {
            known.take(&watcher.announced());
        }
        // More changes in one interval than an announcement names.
        let mut one = Client::open(&server, "flapping");
        for _ in 0..80 {
            one.join_durable("g");
            one.leave("g");
        }
        let mut counted = None;
        while counted.is_none() {
            let page = watcher.announced();
            match page.head.form {
                RosterForm::Counts => counted = Some(page),
                _ => assert!(page.entries.len() < 130 && began.elapsed().as_secs() < 60),
            }
        }
        let counted = counted.unwrap();
        assert!(counted.entries.len() <= 16, "a sample");
        let page = watcher.roster("g", counted.head.version, 0, 1_000);
        assert!(matches!(page.head.form, RosterForm::UpToDate | RosterForm::Changes));
    });
}

#[test]
fn a_roster_is_read_in_pages_or_as_changes_since_a_version() {
    any_shards(|shards| {
        let mut server = Server::start(Settings::shards(shards));
        let mut online = Vec::new();
        for n in 0..300 {
            let mut client = Client::open(&server, &format!("member{n:03}"));
            client.join_durable("g");
            if n % 10 == 0 {
                online.push(client);
            }
        }
        let mut client = Client::open(&server, "reader");
        common::wait_until("members are offline", || client.roster("g", 0, 0, 0).head.online == 30);
        let counts = client.roster("g", 0, 0, 0);
        assert_eq!((counts.head.form, counts.head.members), (RosterForm::Counts, 300));
        assert!(counts.entries.is_empty());
        let pages = client.roster_all("g", 70);
        assert!(pages.len() >= 5 && pages.iter().all(|page| page.entries.len() <= 70));
        let mut known = Known::of_pages(&pages);
        assert_eq!(known.members.len(), 300);
        for (n, online) in known.members.values().enumerate() {
            assert_eq!(*online, n % 10 == 0);
        }
        let up_to_date = client.roster("g", known.version, 0, 70);
        assert_eq!((up_to_date.head.form, up_to_date.entries.len()), (RosterForm::UpToDate, 0));
        online[3].leave("g");
        let changes = client.roster("g", known.version, 0, 70);
        known.take(&changes);
        let left = [(Presence::Offline, "member030".into()), (Presence::Left, "member030".into())];
        assert_eq!((known.members.len(), changes.entries), (299, left.into()));
        let before = known.version;
        drop(online);
        server.kill();
        server.restart();
        let mut client = Client::open(&server, "reader");
        let page = client.roster("g", before, 0, 1_000);
        assert_eq!((page.head.form, page.head.next), (RosterForm::Page, 0), "of another start");
        assert!(page.head.version > before, "no version is given twice");
        assert_eq!((page.head.members, page.head.online), (299, 0));
        assert_eq!(page.entries.len(), 299);
    });
}

#[test]
fn a_huge_roster_is_asked_for_and_announced_without_stalling_anyone() {
    let settings = Settings::shards(2).set("roster_interval_ms", 100).set("payload_max", 1_024);
    let server = Server::start(settings);
    // Members of one connection each are dear, so one connection joins many groups of a name
    // and 2,000 of them make a large roster of one group.
    let mut clients = Vec::new();
    for n in 0..60 {
        let mut client = Client::on_shard(&server, n % 2, &format!("watcher{n}"));
        client.join_watching("huge", Mode::Live);
        clients.push(client);
    }
    for n in 0..1_500 {
        let mut client = Client::open(&server, &format!("a member with a longer name {n:05}"));
        client.send_join_durable("huge", Start::Tail);
        client.ping();
    }
    let mut reader = Client::open(&server, "reader");
    common::wait_until("all are in", || reader.roster("huge", 0, 0, 0).head.members == 1_500);
    let pages = reader.roster_all("huge", 100_000);
    assert!(pages.len() > 10, "{} frames of at most 2048 bytes", pages.len());
    assert_eq!(Known::of_pages(&pages).members.len(), 1_500);
    for client in &mut clients {
        let last = std::iter::repeat_with(|| client.announced())
            .find(|page| page.head.members == 1_500)
            .unwrap();
        assert!(last.head.version > 0);
        client.ping();
    }
}
