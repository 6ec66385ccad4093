//! Real processes: a server takes over from the one that runs, under load. Nobody who connects is
//! refused, nothing that was acknowledged is lost, and whichever of the two dies on the way, the
//! other serves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::application::{StopOnDrop, nothing_is_lost_or_doubled, options};
use common::client::hello_bytes;
use common::{Client, Got, SOON, Server, Settings, wait_until};
use fanfare::client::Membership;
use fanfare::position::Seq;

/// Long enough for load before and after.
const PAUSE: Duration = Duration::from_millis(300);

/// Connects, says HELLO, and reads until WELCOME has begun, all the time until told to stop.
/// Returns how often, and the longest time it took.
fn knock(addr: SocketAddr, stop: &AtomicBool) -> (u64, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let said = (|| {
            let mut stream = TcpStream::connect(addr)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(&hello_bytes("knock"))?;
            let mut header = [0; 8];
            stream.read_exact(&mut header)?;
            std::io::Result::Ok(header[4])
        })();
        assert_eq!(said.unwrap_or_else(|e| panic!("knock {count}: {e}")), 0x81, "WELCOME");
        count += 1;
        longest = longest.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    (count, longest)
}

/// `trouble` beside publishers and members who must see the same, and somebody who connects all
/// the time and must be welcomed each time.
fn nobody_notices(addr: SocketAddr, how: Membership, trouble: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let knocks = scope.spawn(|| knock(addr, &stop));
        let stop_at_the_end = StopOnDrop(&stop);
        nothing_is_lost_or_doubled(addr, how, || {
            std::thread::sleep(PAUSE);
            trouble();
            std::thread::sleep(PAUSE);
        });
        drop(stop_at_the_end);
        let (count, longest) = knocks.join().unwrap();
        eprintln!("{count} connections, none refused; the slowest took {longest:?}");
    });
}

/// They are members before the first message.
fn join_as_durable_members(addr: SocketAddr) {
    for name in ["ann", "bob", "cyd"] {
        let mut client = fanfare::client::blocking::Client::connect(addr, options(name)).unwrap();
        client.join("g", Membership::durable()).unwrap();
        while !matches!(client.next(SOON).unwrap(), Some(fanfare::client::Event::Joined(_))) {}
        client.close();
    }
}

/// A member that does not read, so that a drain takes as long as it may.
fn stalled_member(server: &Server) -> Client {
    let mut stalled = Client::open(server, "stalled");
    stalled.join("stalled");
    let mut publisher = Client::open(server, "publisher");
    for _ in 0..40 {
        let requests: Vec<_> =
            (0..20).map(|_| publisher.send_publish("stalled", &[1; 20_000])).collect();
        requests.into_iter().for_each(|request| {
            publisher.published(request);
        });
    }
    stalled
}

fn slow_to_drain(shards: u16, grace_ms: u64) -> Settings {
    Settings::shards(shards)
        .set("drain_grace_ms", grace_ms)
        .set("stall_timeout_ms", 60_000)
        .set("socket_send_buffer", 16 * 1024)
}

#[test]
fn a_successor_takes_over_under_load_and_nobody_notices() {
    let mut server = Server::start(Settings::shards(2));
    join_as_durable_members(server.addr());
    nobody_notices(server.addr(), Membership::durable(), || {
        for _ in 0..3 {
            server.begin_takeover(Settings::shards(2));
            server.finish_takeover();
            std::thread::sleep(PAUSE);
        }
    });
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

#[test]
fn a_successor_may_have_more_or_fewer_shards() {
    let mut server = Server::start(Settings::shards(2));
    nobody_notices(server.addr(), Membership::live().from(Seq(1)), || {
        for shards in [3, 1, 2] {
            server.begin_takeover(Settings::shards(shards));
            server.finish_takeover();
            std::thread::sleep(PAUSE);
        }
    });
    // Also the sockets of shards that there are no more were handed on.
    assert!(server.log().contains("sockets=3"), "{}", server.log());
}

#[test]
fn when_the_predecessor_is_killed_on_the_way_the_successor_serves() {
    let mut server = Server::start(slow_to_drain(2, 60_000));
    join_as_durable_members(server.addr());
    let stalled = stalled_member(&server);
    nobody_notices(server.addr(), Membership::durable(), || {
        server.begin_takeover(Settings::shards(2));
        wait_until("draining", || server.log().contains("stopping"));
        std::thread::sleep(PAUSE);
        server.kill();
        server.adopt_successor();
        wait_until("serving", || server.log().contains("serving in place"));
    });
    drop(stalled);
    assert!(server.log().contains("recovering as after a crash"), "{}", server.log());
}

#[test]
fn when_the_successor_is_killed_on_the_way_the_predecessor_serves() {
    let mut server = Server::start(slow_to_drain(2, 1_500));
    join_as_durable_members(server.addr());
    let stalled = stalled_member(&server);
    nobody_notices(server.addr(), Membership::durable(), || {
        server.begin_takeover(slow_to_drain(2, 1_500));
        wait_until("draining", || server.log().contains("stopping"));
        std::thread::sleep(PAUSE);
        server.kill_successor();
        wait_until("serving again", || server.log().matches("ready").count() == 2);
    });
    drop(stalled);
    assert_eq!(server.has_ended(), None);
    // It can be taken over from as before.
    server.begin_takeover(Settings::shards(2));
    server.finish_takeover();
}

#[test]
fn whoever_asks_and_goes_away_changes_nothing() {
    let server = Server::start(Settings::shards(2));
    let mut member = Client::open(&server, "member");
    member.join("g");
    for last_words in ["", "rea", "no\n", "released\n"] {
        let mut line = UnixStream::connect(server.data_dir().join("admin.sock")).unwrap();
        line.write_all(b"handover 1\n").unwrap();
        let mut offer = String::new();
        BufReader::new(&line).read_line(&mut offer).unwrap();
        assert!(offer.contains("\"pid\""), "{offer}");
        line.write_all(last_words.as_bytes()).unwrap();
    }
    wait_until("it is said", || server.log().matches("did not get ready").count() == 4);
    let seq = Client::open(&server, "publisher").publish("g", b"x").seq;
    member.expect("the message", |got| {
        matches!(got, Got::Deliver { seq: s, .. } if *s == seq).then_some(())
    });
    assert!(!server.log().contains("stopping"), "{}", server.log());
}

#[test]
fn without_a_predecessor_it_is_an_ordinary_start() {
    for crash in [false, true] {
        let mut server = Server::start(Settings::shards(1).flag("--takeover"));
        Client::open(&server, "publisher").publish("g", b"x");
        if crash {
            server.kill()
        } else {
            server.stop()
        }
        server.restart();
        assert_eq!(Client::open(&server, "member").join("g").head.0, 1);
        assert_eq!(server.log().matches("no server runs on this data directory").count(), 2);
    }
}

#[test]
fn a_successor_that_cannot_take_over_says_why_and_the_predecessor_serves_on() {
    let mut server = Server::start(Settings::shards(1));
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 1));
    server.begin_takeover_at(Settings::shards(1), elsewhere);
    assert_eq!(server.takeover_fails().code(), Some(1));
    assert!(server.log().contains("take over with the same --listen"), "{}", server.log());
    Client::open(&server, "publisher").publish("g", b"x");
    assert!(!server.log().contains("stopping"), "{}", server.log());

    // A server of before there was this.
    let admin = server.data_dir().join("admin.sock");
    std::fs::remove_file(&admin).unwrap();
    let old = UnixListener::bind(&admin).unwrap();
    server.begin_takeover(Settings::shards(1));
    let mut client = old.accept().unwrap().0;
    client.write_all(b"{\"error\":\"unknown question\"}\n").unwrap();
    assert_eq!(server.takeover_fails().code(), Some(1));
    assert!(server.log().contains("unknown question"), "{}", server.log());
    Client::open(&server, "publisher").publish("g", b"x");
}
