//! The client library against real servers: over crashes, stops, takeovers, retention and lost
//! messages the application gets each message once and in order, and each publish is in the group
//! once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::application::{nothing_is_lost_or_doubled, options};
use common::{Random, SOON, Server, Settings, wait_until};
use fanfare::client::blocking::Client;
use fanfare::client::{
    AckMode, Event, Expected, GapReason, Membership, Options, Publishing, Reason, Resume,
};
use fanfare::position::{Level, Seq};
use rustix::process::Signal;

/// An address that stays while servers come and go, and whose connections can be cut.
struct Relay {
    addr: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            addr: listener.local_addr().unwrap(),
            target: Arc::new(Mutex::new(server.addr())),
            open: Arc::default(),
        };
        let (target, open) = (Arc::clone(&relay.target), Arc::clone(&relay.open));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let target = *target.lock().unwrap();
                let Ok(server) = TcpStream::connect(target) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(client, server));
                std::thread::spawn(move || pass(server2, client2));
            }
        });
        relay
    }

    fn now_to(&self, server: &Server) {
        *self.target.lock().unwrap() = server.addr();
    }

    /// Ends all connections, wherever they are in a frame.
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Takes events until `pick` gives something.
fn until<T>(client: &mut Client, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.next(left).unwrap() {
            Some(event) => {
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
            None => panic!("no {what} within {SOON:?}"),
        }
    }
}

fn joined(client: &mut Client) {
    until(client, "Joined", |e| matches!(e, Event::Joined(_)).then_some(()));
}

fn message(client: &mut Client) -> (u64, Vec<u8>) {
    until(client, "a message", |e| match e {
        Event::Message(m) => Some((m.seq.0, m.payload().to_vec())),
        _ => None,
    })
}

fn published(client: &mut Client) -> u64 {
    until(client, "Published", |e| match e {
        Event::Published(p) => Some(p.seq.0),
        Event::PublishFailed { error, .. } => panic!("{error}"),
        _ => None,
    })
}

#[test]
fn over_crashes_of_the_server_every_publish_is_delivered_once() {
    let mut random = Random::new();
    let settings = Settings::shards(2).set("ack_every", 16);
    let mut server = Server::start(settings);
    let relay = Relay::to(&server);
    nothing_is_lost_or_doubled(relay.addr, Membership::live().from(Seq(1)), || {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(50 + random.below(150)));
            server.kill();
            server.restart();
            relay.now_to(&server);
        }
    });
}

#[test]
fn durable_members_get_everything_once_over_crashes_too() {
    let mut random = Random::new();
    let settings = Settings::shards(2).set("ack_every", 16).set("ack_interval_ms", 50);
    let mut server = Server::start(settings);
    let relay = Relay::to(&server);
    // They are members before the first message.
    for name in ["ann", "bob", "cyd"] {
        let mut client = Client::connect(relay.addr, options(name)).unwrap();
        client.join("g", Membership::durable()).unwrap();
        joined(&mut client);
        client.close();
    }
    nothing_is_lost_or_doubled(relay.addr, Membership::durable(), || {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(50 + random.below(150)));
            server.kill();
            server.restart();
            relay.now_to(&server);
        }
    });
}

#[test]
fn connections_that_break_anywhere_lose_nothing_and_make_no_copies() {
    let mut random = Random::new();
    let server = Server::start(Settings::shards(2));
    let relay = Relay::to(&server);
    nothing_is_lost_or_doubled(relay.addr, Membership::live().from(Seq(1)), || {
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(10 + random.below(60)));
            relay.cut();
        }
    });
}

#[test]
fn a_stopping_server_is_left_in_order_and_joined_again_when_it_says() {
    let mut server = Server::start(Settings::shards(1));
    let relay = Relay::to(&server);
    let mut ann = Client::connect(relay.addr, options("ann")).unwrap();
    ann.join("g", Membership::live()).unwrap();
    joined(&mut ann);
    ann.publish("g", "before").unwrap();
    published(&mut ann);
    assert_eq!(message(&mut ann), (1, b"before".to_vec()));
    server.signal(Signal::TERM);
    let slot = until(&mut ann, "Draining", |e| match e {
        Event::Draining { reconnect_after_ms, .. } => Some(reconnect_after_ms),
        _ => None,
    });
    // Kept for the next server.
    ann.publish("g", "after").unwrap();
    let retry = until(&mut ann, "Disconnected", |e| match e {
        Event::Disconnected { reason, retry_in_ms } => Some((reason, retry_in_ms)),
        _ => None,
    });
    assert_eq!(retry.0, Reason::Drained);
    assert!(retry.1.unwrap() <= u64::from(slot));
    assert!(server.wait(SOON).success());
    server.restart();
    relay.now_to(&server);
    assert_eq!(message(&mut ann), (2, b"after".to_vec()));
    ann.close();
}

#[test]
fn the_second_connection_of_a_member_ends_the_first_for_good() {
    let server = Server::start(Settings::shards(2));
    let mut first = Client::connect(server.addr(), options("ann")).unwrap();
    first.join("g", Membership::durable()).unwrap();
    joined(&mut first);
    let mut second = Client::connect(server.addr(), options("ann")).unwrap();
    second.join("g", Membership::durable()).unwrap();
    joined(&mut second);
    let (reason, retry) = until(&mut first, "Disconnected", |e| match e {
        Event::Disconnected { reason, retry_in_ms } => Some((reason, retry_in_ms)),
        _ => None,
    });
    assert_eq!((reason, retry), (Reason::Replaced, None));
    assert_eq!(first.next(Duration::from_millis(300)).unwrap(), None);
    second.publish("g", "here").unwrap();
    assert_eq!(message(&mut second), (1, b"here".to_vec()));
}

#[test]
fn what_retention_removed_is_a_gap_and_the_rest_follows() {
    let settings =
        Settings::shards(1).set("retention_bytes", 16 << 20).set("tail_bytes_max", 1 << 20);
    let server = Server::start(settings);
    let mut publisher = Client::connect(server.addr(), options("pam")).unwrap();
    let (mut sent, mut answered) = (0, 0);
    while answered < 1_000 {
        while sent < 1_000 && publisher.core().unanswered() < 32 {
            publisher.publish("g", vec![sent as u8; 60_000]).unwrap();
            sent += 1;
        }
        published(&mut publisher);
        answered += 1;
    }
    // Retention works when segments change, which may be a little later.
    let mut ann = Client::connect(server.addr(), options("ann")).unwrap();
    ann.join("g", Membership::live().from(Seq(1))).unwrap();
    let (from, to) = until(&mut ann, "Gap", |e| match e {
        Event::Gap { from, to, reason, .. } => {
            assert_eq!(reason, GapReason::Retention);
            Some((from, to))
        }
        Event::Message(m) => panic!("a message {} before the gap", m.seq),
        _ => None,
    });
    assert_eq!(from, Seq(1));
    for seq in to.0 + 1..=1_000 {
        assert_eq!(message(&mut ann).0, seq);
    }
}

#[test]
fn lost_messages_are_a_change_of_epoch_and_their_places_are_delivered_anew() {
    let mut server = Server::start(Settings::shards(1));
    let relay = Relay::to(&server);
    let mut pam = Client::connect(relay.addr, options("pam")).unwrap();
    let mut ann = Client::connect(relay.addr, options("ann")).unwrap();
    ann.join("g", Membership::live()).unwrap();
    joined(&mut ann);
    let how = Publishing { level: Some(Level::Memory), ..Publishing::default() };
    for n in 1..=5 {
        pam.publish_with("g", [n], how).unwrap();
        published(&mut pam);
        message(&mut ann);
    }
    server.kill();
    server.restart();
    relay.now_to(&server);
    let mut eve = Client::connect(relay.addr, options("eve")).unwrap();
    eve.publish("g", "new").unwrap();
    let place = published(&mut eve);
    let (last, first) = until(&mut ann, "EpochChanged", |e| match e {
        Event::EpochChanged { last, first, before, epoch, .. } => {
            assert!(epoch > before);
            Some((last, first))
        }
        _ => None,
    });
    assert_eq!(last, Seq(5));
    assert!(first.0 <= 6, "what the server kept ends before {first}");
    assert_eq!(first.0, place, "the first message of the epoch is the new one");
    assert_eq!(message(&mut ann), (place, b"new".to_vec()));
}

#[test]
fn an_application_that_crashed_goes_on_with_what_it_kept() {
    let server = Server::start(Settings::shards(2));
    let explicit = |name| options(name).acks(AckMode::Explicit);
    let mut ann = Client::connect(server.addr(), explicit("ann")).unwrap();
    ann.join("g", Membership::durable()).unwrap();
    joined(&mut ann);
    for n in 1..=10_u8 {
        ann.publish("g", [n]).unwrap();
    }
    let (mut kept, mut answered, mut last) = (Vec::new(), 0, None);
    while answered < 10 || last < Some(Seq(6)) {
        match ann.next(SOON).unwrap().expect("an answer or a message") {
            Event::Published(_) => answered += 1,
            Event::Message(m) => {
                last = Some(m.seq);
                if m.seq <= Seq(4) {
                    ann.ack(&m).unwrap();
                }
            }
            _ => {}
        }
        kept = ann.to_resume().to_bytes();
    }
    // The publish is sent, its answer is not seen.
    ann.publish("g", [11]).unwrap();
    let mut bob = Client::connect(server.addr(), options("bob")).unwrap();
    bob.join("g", Membership::live().from(Seq(11))).unwrap();
    assert_eq!(message(&mut bob), (11, vec![11]));
    drop(ann);

    let resume = Resume::from_bytes(&kept).unwrap();
    assert_eq!(resume.groups[0].unanswered, 11);
    let mut ann = Client::resume(server.addr(), explicit("ann"), &resume).unwrap();
    ann.join("g", Membership::durable()).unwrap();
    ann.publish("g", [11]).unwrap();
    ann.publish("g", [12]).unwrap();
    let (mut places, mut seqs) = (Vec::new(), Vec::new());
    until(&mut ann, "the rest", |e| {
        match e {
            Event::Published(p) => places.push(p.seq.0),
            Event::Message(m) => seqs.push(m.seq.0),
            _ => {}
        }
        (places.len() == 2 && seqs.last() == Some(&12)).then_some(())
    });
    assert_eq!(places, [11, 12], "one copy of 11");
    assert_eq!(seqs, (5..=12).collect::<Vec<_>>(), "what was not handled comes again");
}

#[test]
fn the_example_of_the_readme_works() {
    let server = Server::start(Settings::shards(1));
    let addr = server.addr().to_string();
    let example = |addr: &str| -> Result<Vec<String>, fanfare::client::ClientError> {
        let mut said = Vec::new();
        // README begin
        let mut client = Client::connect(addr, Options::new("ann"))?;
        client.join("lobby", Membership::durable())?;
        client.publish("lobby", "hello")?;
        while let Some(event) = client.next(Duration::from_secs(1))? {
            match event {
                Event::Message(m) => said.push(String::from_utf8_lossy(m.payload()).into_owned()),
                other => println!("{other:?}"),
            }
        }
        client.close();
        // README end
        Ok(said)
    };
    assert_eq!(example(&addr).unwrap(), ["hello"]);

    // And it is the one of the page.
    let part = |text: &str, begin: &str, end: &str| -> Vec<String> {
        let (_, rest) = text.split_once(begin).unwrap();
        let (part, _) = rest.split_once(end).unwrap();
        part.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect()
    };
    let here = part(include_str!("client_library.rs"), "// README begin\n", "// README end");
    let page = include_str!("../README.md");
    let there = part(page, "let mut said = Vec::new();\n", "println!(\"{said:?}\");");
    assert_eq!(here, there);
}

#[test]
fn a_client_that_closes_has_acknowledged_what_it_handled() {
    let server = Server::start(Settings::shards(1).set("ack_interval_ms", 60_000));
    let mut ann = Client::connect(server.addr(), options("ann")).unwrap();
    ann.join("g", Membership::durable()).unwrap();
    joined(&mut ann);
    for n in 1..=3_u8 {
        ann.publish("g", [n]).unwrap();
    }
    for n in 1..=3 {
        assert_eq!(message(&mut ann).0, n);
    }
    ann.close();
    wait_until("the cursor to be at 3", || {
        let mut ann = Client::connect(server.addr(), options("ann")).unwrap();
        ann.join("g", Membership::durable()).unwrap();
        until(&mut ann, "Joined", |e| match e {
            Event::Joined(j) => Some(j.cursor == Seq(3) && j.first == Seq(4)),
            _ => None,
        })
    });
}

#[test]
fn history_state_and_rosters_are_answered() {
    let server = Server::start(Settings::shards(2));
    let mut ann = Client::connect(server.addr(), options("ann")).unwrap();
    for n in 1..=20_u8 {
        ann.publish("g", [n]).unwrap();
    }
    for n in 1..=20 {
        assert_eq!(published(&mut ann), n);
    }
    // History, page by page.
    let (mut from, mut got) = (Seq(3), Vec::new());
    loop {
        let id = ann.fetch("g", from, Some(Seq(18)), 5).unwrap();
        let page = until(&mut ann, "a page", |e| match e {
            Event::Fetched(page) => Some(page),
            _ => None,
        });
        assert_eq!((page.id, page.head, page.gap), (id, Seq(20), None));
        got.extend(page.messages.iter().map(|m| (m.seq.0, m.payload()[0])));
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(got, (3..=18).map(|n| (n, n as u8)).collect::<Vec<_>>());
    // State: set, conflict, sync.
    ann.set_state("g", "topic", Expected::Absent, Some(b"cats")).unwrap();
    let version = until(&mut ann, "StateSet", |e| match e {
        Event::StateSet { version, .. } => Some(version),
        _ => None,
    });
    ann.set_state("g", "topic", Expected::Absent, Some(b"dogs")).unwrap();
    until(&mut ann, "Conflict", |e| match e {
        Event::Conflict { version: there, data, .. } => {
            assert_eq!((there, data.as_deref()), (version, Some(&b"cats"[..])));
            Some(())
        }
        _ => None,
    });
    ann.sync("g", 0).unwrap();
    let state = until(&mut ann, "State", |e| match e {
        Event::State(page) => Some(page),
        _ => None,
    });
    assert_eq!((state.version, state.more, state.entries.len()), (version, false, 1));
    assert_eq!(state.entries[0].data.as_deref(), Some(&b"cats"[..]));
    // The roster, and who comes.
    ann.join("g", Membership::durable().with_roster()).unwrap();
    joined(&mut ann);
    let mut bob = Client::connect(server.addr(), options("bob")).unwrap();
    bob.join("g", Membership::durable()).unwrap();
    joined(&mut bob);
    until(&mut ann, "an announcement of bob", |e| match e {
        Event::Roster(r) if r.id.is_none() => {
            r.entries.iter().any(|(_, member)| member[..] == *b"bob").then_some(())
        }
        _ => None,
    });
    ann.roster("g", 0, 0, 10).unwrap();
    let roster = until(&mut ann, "the roster", |e| match e {
        Event::Roster(r) if r.id.is_some() => Some(r),
        _ => None,
    });
    let mut names: Vec<_> = roster.entries.iter().map(|(_, member)| &member[..]).collect();
    names.sort_unstable();
    assert_eq!((names, roster.members, roster.online), (vec![&b"ann"[..], b"bob"], 2, 2));
}
#[test]
fn a_receipt_comes_when_the_members_have_acknowledged() {
    let server = Server::start(Settings::shards(2).set("ack_interval_ms", 20));
    let mut members: Vec<_> = ["ann", "bob"]
        .map(|name| {
            let how = options(name).acks(AckMode::Explicit);
            let mut client = Client::connect(server.addr(), how).unwrap();
            client.join("g", Membership::durable()).unwrap();
            joined(&mut client);
            client
        })
        .into();
    let mut pam = Client::connect(server.addr(), options("pam")).unwrap();
    let how = Publishing { receipt_percent: 100, ..Publishing::default() };
    pam.publish_with("g", "x", how).unwrap();
    published(&mut pam);
    for (n, member) in members.iter_mut().enumerate() {
        assert_eq!(pam.next(Duration::from_millis(100)).unwrap(), None, "{n} of 2 is not all");
        let m = until(member, "a message", |e| match e {
            Event::Message(m) => Some(m),
            _ => None,
        });
        member.ack(&m).unwrap();
        // Sent when its time has come.
        member.next(Duration::from_millis(100)).unwrap();
    }
    let receipt = until(&mut pam, "a receipt", |e| match e {
        Event::Receipt(r) => Some(r),
        _ => None,
    });
    assert_eq!(receipt.group.as_deref(), Some(&b"g"[..]));
    assert_eq!((receipt.seq, receipt.acked, receipt.members), (Seq(1), 2, 2));
}

#[test]
fn a_client_that_a_group_forgot_goes_on_under_a_new_id_and_makes_no_copies() {
    let settings =
        Settings::shards(1).set("producers_per_group_max", 1).set("producer_ttl_ms", 1_000);
    let mut server = Server::start_apart(settings);
    let addr = server.addr();
    let mut ann = Client::connect(addr, options("ann").producer([7; 16])).unwrap();
    let mut bob = Client::connect(addr, options("bob")).unwrap();
    for text in ["a1", "a2"] {
        ann.publish("lobby", text).unwrap();
        published(&mut ann);
        ann.publish("other", text).unwrap();
        published(&mut ann);
    }
    // Bob takes the only place of the group, once Ann has been silent for long enough.
    std::thread::sleep(Duration::from_millis(1_300));
    bob.publish("lobby", "b1").unwrap();
    assert_eq!(published(&mut bob), 3);
    std::thread::sleep(Duration::from_millis(1_300));
    for text in ["a3", "a4"] {
        ann.publish("lobby", text).unwrap();
        ann.publish("other", text).unwrap();
    }
    let (mut renewed, mut places) = (None, Vec::new());
    until(&mut ann, "four places", |event| {
        match event {
            Event::ProducerRenewed { producer } => renewed = Some(producer),
            Event::Published(p) => places.push((p.group.to_vec(), p.producer_seq, p.seq.0)),
            Event::PublishFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
        (places.len() == 4).then_some(())
    });
    assert!(renewed.is_some_and(|id| id != [7; 16]), "{renewed:?}");
    let of = |group: &[u8]| -> Vec<_> {
        let of = places.iter().filter(|place| place.0 == group);
        of.map(|(_, number, seq)| (*number, *seq)).collect()
    };
    assert_eq!(of(b"lobby"), [(1, 4), (2, 5)], "numbers begin again");
    let texts = |client: &mut Client, group: &str, count: usize| -> Vec<String> {
        client.join(group, Membership::live().from(Seq(1))).unwrap();
        (0..count).map(|_| String::from_utf8(message(client).1).unwrap()).collect()
    };
    assert_eq!(texts(&mut bob, "lobby", 5), ["a1", "a2", "b1", "a3", "a4"]);
    let mut others = texts(&mut bob, "other", 4);
    others.sort();
    assert_eq!(others, ["a1", "a2", "a3", "a4"]);
    // What recovery makes of two ids of one member is the same.
    server.kill();
    server.restart_at(
        Settings::shards(1).set("producers_per_group_max", 8).set("producer_ttl_ms", 1_000),
    );
    ann.publish("lobby", "a5").unwrap();
    assert_eq!(published(&mut ann), 6);
}
