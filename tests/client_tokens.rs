//! The client library with a server that takes nobody without a token.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::tokens::{Issuer, everything};
use common::{Server, Settings};
use fanfare::client::blocking::Client;
use fanfare::client::{Event, Membership, Options, Reason};
use fanfare::wire::ErrorCode;
use serde_json::json;

fn server(issuer: &Issuer) -> Server {
    Server::with_keys(Settings::shards(2), &issuer.key_file())
}

/// The first event for which `pick` gives something.
fn wait<T>(client: &mut Client, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "it takes too long");
        if let Some(event) = client.next(Duration::from_millis(100)).unwrap()
            && let Some(picked) = pick(event)
        {
            return picked;
        }
    }
}

fn end(client: &mut Client) -> (ErrorCode, Option<u64>) {
    wait(client, |event| match event {
        Event::Disconnected { reason: Reason::Server(refusal), retry_in_ms } => {
            Some((refusal.known().unwrap(), retry_in_ms))
        }
        _ => None,
    })
}

#[test]
fn a_client_without_a_token_or_with_a_bad_one_has_ended() {
    let issuer = Issuer::eddsa("a");
    let server = server(&issuer);
    let mut options = Options::new("ann");
    options.eager = true;
    let mut without = Client::connect(server.addr(), options).unwrap();
    without.join("g", Membership::live()).unwrap();
    assert_eq!(end(&mut without), (ErrorCode::AuthRequired, None));
    let foreign = issuer.token("bob", 60, everything());
    let mut bad = Client::connect(server.addr(), Options::new("ann").token(foreign)).unwrap();
    assert_eq!(end(&mut bad), (ErrorCode::TokenRefused, None));
    let short = issuer.token("ann", 2, everything());
    let mut ends = Client::connect(server.addr(), Options::new("ann").token(short)).unwrap();
    wait(&mut ends, |event| matches!(event, Event::Connected(_)).then_some(()));
    assert_eq!(end(&mut ends), (ErrorCode::TokenExpired, None));
    assert!(Client::connect(server.addr(), Options::new("ann").token("x".repeat(5_000))).is_err());
}

#[test]
fn a_client_renews_its_token_on_the_connection_that_it_has() {
    let issuer = Arc::new(Issuer::eddsa("a"));
    let server = server(&issuer);
    let asked = Arc::new(AtomicU32::new(0));
    let newest = {
        let (issuer, asked) = (Arc::clone(&issuer), Arc::clone(&asked));
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
            issuer.token("ann", 3, everything())
        }
    };
    let mut client =
        Client::connect(server.addr(), Options::new("ann").token_from(newest)).unwrap();
    client.join("g", Membership::live()).unwrap();
    let until = Instant::now() + Duration::from_secs(7);
    let (mut sent, mut got) = (0, 0);
    while Instant::now() < until || got < sent {
        if Instant::now() < until && got == sent {
            client.publish("g", "x").unwrap();
            sent += 1;
        }
        match client.next(Duration::from_millis(50)).unwrap() {
            Some(Event::Message(_)) => {
                got += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Some(event @ Event::Disconnected { .. }) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert!(asked.load(Ordering::Relaxed) >= 3, "{asked:?}");
}

#[test]
fn a_client_whose_token_comes_late_connects_again() {
    let issuer = Issuer::eddsa("a");
    let server = server(&issuer);
    let calls = AtomicU32::new(0);
    let newest = move || match calls.fetch_add(1, Ordering::Relaxed) {
        0 => issuer.token("ann", -5, everything()),
        _ => issuer.token("ann", 60, everything()),
    };
    let mut options = Options::new("ann").token_from(newest);
    options.backoff_min_ms = 50;
    let mut client = Client::connect(server.addr(), options).unwrap();
    let (code, retry_in_ms) = end(&mut client);
    assert_eq!(code, ErrorCode::TokenExpired);
    assert!(retry_in_ms.is_some());
    wait(&mut client, |event| matches!(event, Event::Connected(_)).then_some(()));
}

#[test]
fn a_member_without_the_right_to_history_comes_back_to_what_is_live_and_learns_of_the_gap() {
    let issuer = Issuer::eddsa("a");
    let mut server = server(&issuer);
    let live = issuer.token("ann", 600, json!({"join": ["g"], "history": []}));
    let mut options = Options::new("ann").token(live);
    options.backoff_min_ms = 300;
    let mut client = Client::connect(server.addr(), options).unwrap();
    client.join("g", Membership::live()).unwrap();
    wait(&mut client, |event| matches!(event, Event::Joined(_)).then_some(()));
    let mut other = common::Client::open_with(
        &server,
        "eve",
        &issuer.token("eve", 600, json!({"publish": ["g"]})),
    );
    other.publish("g", b"1");
    wait(&mut client, |event| matches!(event, Event::Message(_)).then_some(()));
    server.stop();
    let settings = Settings::shards(2).set("auth_keys", "\"keys\"").set("auth_leeway_s", 0);
    server.restart_at(settings);
    let mut other = common::Client::open_with(
        &server,
        "eve",
        &issuer.token("eve", 600, json!({"publish": ["g"]})),
    );
    other.publish("g", b"missed");
    wait(&mut client, |event| match event {
        Event::JoinFailed { .. } => panic!("{event:?}"),
        Event::Joined(_) => Some(()),
        _ => None,
    });
    other.publish("g", b"3");
    let mut gap = false;
    let payload = wait(&mut client, |event| match event {
        Event::Message(message) => Some(message.payload().to_vec()),
        Event::Gap { .. } => {
            gap = true;
            None
        }
        _ => None,
    });
    assert!(payload == b"3" && gap || payload == b"missed", "{payload:?}");
}
