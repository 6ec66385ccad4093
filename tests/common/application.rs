//! Applications with the client library: publishers and members that must see the same.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fanfare::client::blocking::Client;
use fanfare::client::{Event, Membership, Options};

use super::SOON;

/// Options for a member whose waits are short.
pub fn options(member: &str) -> Options {
    let mut options = Options::new(member);
    (options.backoff_min_ms, options.backoff_max_ms) = (20, 200);
    options
}

/// Stops whoever looks at it, also when a test fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Publishes until told to stop and all is answered; returns the payload at each place.
fn publish_all(addr: SocketAddr, name: &str, stop: &AtomicBool) -> BTreeMap<u64, Vec<u8>> {
    let mut client = Client::connect(addr, options(name)).unwrap();
    let (mut sent, mut places) = (HashMap::new(), BTreeMap::new());
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) || !sent.is_empty() {
        while sent.len() < 50 && !stop.load(Ordering::Relaxed) {
            let payload = format!("{name} {n}").into_bytes();
            n += 1;
            sent.insert(client.publish("g", &payload).unwrap(), payload);
        }
        match client.next(SOON).unwrap().expect("an answer, or news of the connection") {
            Event::Published(p) => {
                let payload = sent.remove(&p.id).expect("one answer for each publish");
                assert!(places.insert(p.seq.0, payload).is_none(), "two at {}", p.seq);
            }
            Event::PublishFailed { error, .. } => panic!("{name}: {error}"),
            _ => {}
        }
    }
    client.close();
    places
}

/// Reads until the place `last` is known and reached; returns the payload at each place.
fn read_all(
    addr: SocketAddr,
    name: &str,
    how: Membership,
    last: &Mutex<Option<u64>>,
) -> BTreeMap<u64, Vec<u8>> {
    let mut client = Client::connect(addr, options(name)).unwrap();
    client.join("g", how).unwrap();
    let mut places = BTreeMap::new();
    let mut next = 1;
    let mut quiet_since = Instant::now();
    loop {
        match client.next(Duration::from_millis(50)).unwrap() {
            Some(Event::Message(m)) => {
                assert_eq!(m.seq.0, next, "{name}: in order, without a hole, once");
                next += 1;
                places.insert(m.seq.0, m.payload().to_vec());
                quiet_since = Instant::now();
            }
            Some(e @ (Event::Gap { .. } | Event::EpochChanged { .. })) => panic!("{name}: {e:?}"),
            Some(Event::Joined(j)) => assert_eq!(j.skipped, None, "{name}"),
            _ => {}
        }
        if last.lock().unwrap().is_some_and(|last| next > last) {
            client.close();
            return places;
        }
        assert!(quiet_since.elapsed() < 3 * SOON, "{name} is at {next} of {:?}", last.lock());
    }
}

/// Runs publishers and members beside `trouble` and checks that all saw the same.
pub fn nothing_is_lost_or_doubled(addr: SocketAddr, how: Membership, trouble: impl FnOnce()) {
    let (stop, last) = (AtomicBool::new(false), Mutex::new(None));
    std::thread::scope(|scope| {
        let members: Vec<_> = ["ann", "bob", "cyd"]
            .map(|name| {
                let last = &last;
                scope.spawn(move || read_all(addr, name, how, last))
            })
            .into();
        let publishers: Vec<_> = ["pam", "pat"]
            .map(|name| {
                let stop = &stop;
                scope.spawn(move || publish_all(addr, name, stop))
            })
            .into();
        let stop_at_the_end = StopOnDrop(&stop);
        trouble();
        drop(stop_at_the_end);
        let mut answered = BTreeMap::new();
        for publisher in publishers {
            let places = publisher.join().unwrap();
            let count = answered.len() + places.len();
            answered.extend(places);
            assert_eq!(answered.len(), count, "two publishes have one place");
        }
        let end = *answered.keys().last().unwrap();
        assert_eq!(answered.len() as u64, end, "every place has one publish: no copy, no hole");
        *last.lock().unwrap() = Some(end);
        for member in members {
            assert_eq!(member.join().unwrap(), answered);
        }
        eprintln!("{end} messages");
    });
}
