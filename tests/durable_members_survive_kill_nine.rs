//! Real processes: the server is killed with `kill -9` under load, again and again, while
//! publishers retry and durable members reconnect, resume and sometimes crash themselves. Each
//! member writes down what it gets in a file of its own. In the end each of these files is the
//! acknowledged order: nothing missing, nothing twice, nothing elsewhere.
//!
//! `TEST_ROUNDS` says how many crashes (20), `TEST_MEMBERS` how many members (200),
//! `TEST_SHARDS` with how many shards one after the other on the same data directory (1), such
//! as `2,3,1`. The rounds are shared among them. The README has the commands.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Random, Server, Settings, raise_open_files};
use fanfare::client::blocking::Client;
use fanfare::client::{
    AckMode, ErrorCode, Event, Membership, Message, Options, PublishId, Publishing, Reason, Resume,
    ResumeGroup,
};
use fanfare::position::{Epoch, Handle, Seq};

const GROUPS: usize = 6;
/// Groups that each member is in.
const GROUPS_EACH: usize = 3;
const PUBLISHERS: usize = 4;
/// Publishes without an answer, per publisher.
const WINDOW: usize = 24;
/// A publisher publishes this often at most.
const PACE: Duration = Duration::from_millis(8);
/// Every so many publishes one asks for a receipt from all members.
const RECEIPT_EVERY: u64 = 40;
const RECEIPTS: bool = true;
/// Longest time in which everybody must have everything once the load is over.
const SETTLE: Duration = Duration::from_secs(120);

/// What a line of a log says: epoch and payload, by group and seq.
type Log = BTreeMap<(usize, u64), (u32, String)>;

fn group_name(group: usize) -> String {
    format!("group-{group}")
}

fn group_number(name: &[u8]) -> usize {
    str::from_utf8(name).unwrap().strip_prefix("group-").unwrap().parse().unwrap()
}

/// One line per message: group, epoch, seq, payload.
fn line(out: &mut String, group: usize, epoch: Epoch, seq: Seq, payload: &[u8]) {
    writeln!(out, "{group} {epoch} {seq} {}", str::from_utf8(payload).unwrap()).unwrap();
}

/// Reads a log that was written in one go by one writer or by several lives of it; a message
/// that is in it twice, or before one with a lower seq, is a failure.
fn read_log(path: &Path) -> Log {
    let mut log = Log::new();
    let mut last = HashMap::new();
    for (number, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
        let what = || format!("{}, line {}: {line}", path.display(), number + 1);
        let mut fields = line.splitn(4, ' ');
        let mut field = || fields.next().unwrap_or_else(|| panic!("{}", what()));
        let (group, epoch) = (field().parse().unwrap(), field().parse().unwrap());
        let (seq, payload): (u64, _) = (field().parse().unwrap(), field().to_owned());
        let before = last.insert(group, (epoch, seq)).unwrap_or((epoch, 0));
        assert_eq!(before, (epoch, seq - 1), "out of order: {}", what());
        log.insert((group, seq), (epoch, payload));
    }
    log
}

/// What all threads see.
struct Shared {
    addr: SocketAddr,
    dir: PathBuf,
    /// Publishers stop.
    load_is_over: AtomicBool,
    /// Members stop.
    over: AtomicBool,
    /// Members that have all groups joined, over all.
    joined: AtomicU64,
    /// Messages that members have written down.
    delivered: AtomicU64,
    /// Times that members came back.
    resumed: AtomicU64,
    redelivered: AtomicU64,
}

fn options(member: &str) -> Options {
    let mut options = Options::new(member).acks(AckMode::Explicit);
    options.backoff_min_ms = 20;
    options.backoff_max_ms = 200;
    options
}

/// A client that is there as soon as the server is.
fn connect(mut connect: impl FnMut() -> Result<Client, fanfare::client::ClientError>) -> Client {
    let until = Instant::now() + SETTLE;
    loop {
        match connect() {
            Ok(client) => return client,
            Err(e) => assert!(Instant::now() < until, "cannot connect: {e}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What must never happen here, whoever sees it.
fn is_fine(who: &str, event: &Event) {
    match event {
        Event::Disconnected { reason: Reason::Protocol(_) | Reason::Replaced, .. }
        | Event::Gap { .. }
        | Event::EpochChanged { .. }
        | Event::JoinFailed { .. }
        | Event::PublishFailed { .. }
        | Event::ServerError(_) => panic!("{who}: {event:?}"),
        Event::Joined(joined) => assert_eq!(joined.skipped, None, "{who}"),
        Event::Disconnected { reason: Reason::Server(refusal), .. } => {
            assert_eq!(refusal.known(), Some(ErrorCode::ShuttingDown), "{who}: {refusal}");
        }
        _ => {}
    }
}

// ---- members ----

/// A durable member with a file of its own. When `crash` is set it goes away without a word and
/// comes back as one that knows nothing but its file.
fn member(shared: &Shared, number: usize, crash: &AtomicBool) {
    let name = format!("member-{number}");
    let path = shared.dir.join(&name);
    let mut file = File::options().create(true).append(true).open(&path).unwrap();
    let mut first_life = true;
    while !shared.over.load(Ordering::Relaxed) {
        let mut client = if first_life {
            connect(|| Client::connect(shared.addr, options(&name)))
        } else {
            let resume = resume_from(&path);
            connect(|| Client::resume(shared.addr, options(&name), &resume))
        };
        for nth in 0..GROUPS_EACH {
            let how = Membership::durable().from(Seq(1));
            client.join(group_name((number + nth) % GROUPS), how).unwrap();
        }
        live(shared, &name, &mut client, &mut file, first_life, crash);
        first_life = false;
        // Without close(): the last acknowledgements may be lost, as in a crash.
        drop(client);
    }
}

fn live(
    shared: &Shared,
    name: &str,
    client: &mut Client,
    file: &mut File,
    first_life: bool,
    crash: &AtomicBool,
) {
    let mut joined = 0;
    let mut lines = String::new();
    while !shared.over.load(Ordering::Relaxed) && !crash.swap(false, Ordering::Relaxed) {
        let mut last: HashMap<usize, Message> = HashMap::new();
        let mut wait = Duration::from_millis(50);
        let mut count = 0;
        while count < 500
            && let Some(event) = client.next(wait).unwrap()
        {
            wait = Duration::ZERO;
            is_fine(name, &event);
            match event {
                Event::Message(message) => {
                    let group = group_number(&message.group);
                    line(&mut lines, group, message.epoch, message.seq, message.payload());
                    last.insert(group, message);
                    count += 1;
                }
                Event::Joined(_) => {
                    joined += 1;
                    if first_life && joined == GROUPS_EACH {
                        shared.joined.fetch_add(1, Ordering::Relaxed);
                    }
                    shared.resumed.fetch_add(u64::from(joined > GROUPS_EACH), Ordering::Relaxed);
                }
                Event::Redelivery { .. } => {
                    shared.redelivered.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        // Written down first, acknowledged then.
        file.write_all(lines.as_bytes()).unwrap();
        lines.clear();
        shared.delivered.fetch_add(count, Ordering::Relaxed);
        for message in last.values() {
            client.ack(message).unwrap();
        }
    }
}

/// Where a member was, from its file alone.
fn resume_from(path: &Path) -> Resume {
    let mut last = BTreeMap::new();
    for ((group, seq), (epoch, _)) in read_log(path) {
        last.insert(group, (Epoch(epoch), Seq(seq)));
    }
    let group = |(group, place)| ResumeGroup {
        name: group_name(group).into_bytes().into(),
        handle: Handle(0),
        handled: Some(place),
        unanswered: 1,
        unused: 1,
    };
    Resume { producer: [7; 16], groups: last.into_iter().map(group).collect() }
}

// ---- publishers ----

fn wants_receipt(n: u64) -> bool {
    RECEIPTS && n.is_multiple_of(RECEIPT_EVERY)
}

/// Publishes until the load is over and everything is answered; returns how many receipts it
/// asked for.
fn publisher(shared: &Shared, number: usize) -> u64 {
    let name = format!("publisher-{number}");
    let mut file = File::create(shared.dir.join(&name)).unwrap();
    let mut client = connect(|| Client::connect(shared.addr, options(&name)));
    let mut waiting: HashMap<PublishId, String> = HashMap::new();
    // By group: answers come in the order of the publishes.
    let mut order: Vec<VecDeque<PublishId>> = vec![VecDeque::new(); GROUPS];
    let mut receipts: HashMap<(usize, u64), bool> = HashMap::new();
    let (mut n, mut next_at, mut quiet_since) = (0_u64, Instant::now(), None);
    loop {
        let over = shared.load_is_over.load(Ordering::Relaxed);
        if !over && waiting.len() < WINDOW && Instant::now() >= next_at {
            let (group, payload) = (n as usize % GROUPS, format!("{name} {n}"));
            let receipt_percent = if wants_receipt(n) { 100 } else { 0 };
            let how = Publishing { level: None, receipt_percent };
            let id = client.publish_with(group_name(group), &payload, how).unwrap();
            waiting.insert(id, payload);
            order[group].push_back(id);
            n += 1;
            next_at = (next_at + PACE).max(Instant::now() - 10 * PACE);
        }
        let all_receipts = receipts.values().all(|came| *came);
        if over && waiting.is_empty() {
            let since = *quiet_since.get_or_insert_with(Instant::now);
            if all_receipts {
                break;
            }
            assert!(since.elapsed() < SETTLE, "{name}: receipts are missing: {receipts:?}");
        }
        let wait = if over { Duration::from_millis(50) } else { PACE / 2 };
        let Some(event) = client.next(wait).unwrap() else { continue };
        is_fine(&name, &event);
        match event {
            Event::Published(published) => {
                let group = group_number(&published.group);
                let payload = waiting.remove(&published.id).expect("answered once");
                assert_eq!(
                    order[group].pop_front(),
                    Some(published.id),
                    "{name}: answers in order"
                );
                let asked: u64 = payload.rsplit(' ').next().unwrap().parse().unwrap();
                if wants_receipt(asked) {
                    receipts.entry((group, published.seq.0)).or_insert(false);
                }
                let mut out = String::new();
                line(&mut out, group, published.epoch, published.seq, payload.as_bytes());
                file.write_all(out.as_bytes()).unwrap();
            }
            Event::Receipt(receipt) => {
                assert_eq!(receipt.acked, receipt.members, "{name}: {receipt:?}");
                let group = receipt.group.expect("a group of this client");
                let group = group_number(&group);
                receipts.insert((group, receipt.seq.0), true);
            }
            _ => {}
        }
    }
    receipts.len() as u64
}

/// The acknowledged order: what all publishers were told, checked against each other.
fn acknowledged(dir: &Path) -> Log {
    let mut truth = Log::new();
    for number in 0..PUBLISHERS {
        let name = format!("publisher-{number}");
        let mut last: HashMap<usize, (u64, u64)> = HashMap::new();
        for line in fs::read_to_string(dir.join(&name)).unwrap().lines() {
            let mut fields = line.splitn(4, ' ');
            let mut number = || fields.next().unwrap().parse::<u64>().unwrap();
            let (group, epoch, seq) = (number() as usize, number() as u32, number());
            let payload = fields.next().unwrap().to_owned();
            let n: u64 = payload.rsplit(' ').next().unwrap().parse().unwrap();
            // Per publisher and group: each of its messages once, in its order.
            let (last_n, last_seq) = last.insert(group, (n, seq)).unwrap_or((n, 0));
            let step = if last_seq == 0 { 0 } else { GROUPS as u64 };
            assert_eq!(n, last_n + step, "{name}: answered twice or not at all: {line}");
            assert!(seq > last_seq, "{name}: overtaken: {line}");
            let before = truth.insert((group, seq), (epoch, payload));
            assert_eq!(before, None, "two messages at one place: {line}");
        }
    }
    // Everything that has a place was answered, since all publishers got all answers.
    let mut next = [1; GROUPS];
    for (group, seq) in truth.keys() {
        assert_eq!(
            *seq, next[*group],
            "group {group}: nobody was told of message {}",
            next[*group]
        );
        next[*group] += 1;
    }
    truth
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T
where
    T::Err: std::fmt::Debug,
{
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn the_log_of_every_durable_member_is_the_acknowledged_order() {
    let rounds: usize = setting("TEST_ROUNDS", 20);
    let members: usize = setting("TEST_MEMBERS", 200);
    let shards = std::env::var("TEST_SHARDS").unwrap_or_else(|_| "1".to_owned());
    let shards: Vec<u16> = shards.split(',').map(|n| n.trim().parse().unwrap()).collect();
    raise_open_files();
    let mut random = Random::new();
    let settings =
        |shards| Settings::shards(shards).set("ack_every", 64).set("ack_interval_ms", 200);
    let mut server = Server::start_apart(settings(shards[0]));
    let logs = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared {
        addr: server.addr(),
        dir: logs.path().to_owned(),
        load_is_over: AtomicBool::new(false),
        over: AtomicBool::new(false),
        joined: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        redelivered: AtomicU64::new(0),
    });
    let crashes: Arc<Vec<AtomicBool>> =
        Arc::new((0..members).map(|_| AtomicBool::new(false)).collect());
    let member_threads: Vec<_> = (0..members)
        .map(|number| {
            let (shared, crashes) = (Arc::clone(&shared), Arc::clone(&crashes));
            let run = move || member(&shared, number, &crashes[number]);
            thread::Builder::new().stack_size(512 << 10).spawn(run).unwrap()
        })
        .collect();
    // Receipts count who is a member before the message, so all are before the first one.
    let until = Instant::now() + SETTLE;
    while shared.joined.load(Ordering::Relaxed) < members as u64 {
        assert!(Instant::now() < until, "members cannot join");
        thread::sleep(Duration::from_millis(10));
    }
    let start = Arc::new(Barrier::new(PUBLISHERS));
    let publisher_threads: Vec<_> = (0..PUBLISHERS)
        .map(|number| {
            let (shared, start) = (Arc::clone(&shared), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                publisher(&shared, number)
            })
        })
        .collect();

    let mut member_crashes = 0;
    for round in 0..rounds {
        thread::sleep(Duration::from_millis(100 + random.below(300)));
        for _ in 0..random.below(1 + members as u64 / 20) {
            crashes[random.below(members as u64) as usize].store(true, Ordering::Relaxed);
            member_crashes += 1;
        }
        server.kill();
        let phase = (round + 1) * shards.len() / rounds.max(1);
        server.restart_at(settings(shards[phase.min(shards.len() - 1)]));
        let failed = member_threads.iter().any(thread::JoinHandle::is_finished)
            || publisher_threads.iter().any(thread::JoinHandle::is_finished);
        assert!(!failed, "round {round}: a member or publisher has failed, see above");
    }
    shared.load_is_over.store(true, Ordering::Relaxed);
    let receipts: u64 =
        publisher_threads.into_iter().map(|thread| thread.join().expect("a publisher")).sum();

    let truth = acknowledged(logs.path());
    let expected: u64 = (0..members)
        .flat_map(|number| (0..GROUPS_EACH).map(move |nth| (number + nth) % GROUPS))
        .map(|group| truth.range((group, 0)..(group + 1, 0)).count() as u64)
        .sum();
    let until = Instant::now() + SETTLE;
    while shared.delivered.load(Ordering::Relaxed) < expected && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    // What comes twice would come now.
    thread::sleep(Duration::from_millis(300));
    shared.over.store(true, Ordering::Relaxed);
    for thread in member_threads {
        thread.join().expect("a member");
    }
    for number in 0..members {
        let mut log = read_log(&logs.path().join(format!("member-{number}")));
        for nth in 0..GROUPS_EACH {
            let group = (number + nth) % GROUPS;
            for (place, said) in truth.range((group, 0)..(group + 1, 0)) {
                let got = log.remove(place);
                assert_eq!(got.as_ref(), Some(said), "member {number} at {place:?}");
            }
        }
        assert!(log.is_empty(), "member {number} has what was never acknowledged: {log:?}");
    }
    println!(
        "{rounds} crashes of the server with {shards:?} shards, {member_crashes} of members: {} messages \
         acknowledged, {expected} deliveries, {receipts} receipts, {} resumes, {} redeliveries",
        truth.len(),
        shared.resumed.load(Ordering::Relaxed),
        shared.redelivered.load(Ordering::Relaxed),
    );
    assert!(truth.len() > rounds * 10, "the load was a load: {} messages", truth.len());
}
