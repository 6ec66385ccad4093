//! The client library by TLS, on threads and on tokio.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::Duration;

use common::tls::Pki;
use common::{Server, Settings};
use fanfare::client::{ClientError, Event, Membership, Options, Tls, blocking, tokio as on_tokio};

const MESSAGES: u32 = 500;

fn options(pki: &Pki, member: &str) -> Options {
    Options::new(member).tls(Tls::with_ca_file("localhost", pki.path("ca.pem")).unwrap())
}

#[test]
fn the_blocking_client_publishes_and_receives() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(2)));
    let mut client = blocking::Client::connect(server.addr(), options(&pki, "ann")).unwrap();
    client.join("g", Membership::durable()).unwrap();
    let payload = |n: u32| vec![n as u8; (n * 37 % 2_000) as usize];
    let (mut sent, mut got) = (0, 0);
    while got < MESSAGES {
        match client.next(common::SOON).unwrap().expect("an event") {
            Event::Joined(_) => {
                while sent < MESSAGES {
                    client.publish("g", payload(sent)).unwrap();
                    sent += 1;
                }
            }
            Event::Message(message) => {
                assert_eq!(message.payload(), payload(got));
                got += 1;
            }
            Event::Disconnected { .. } => panic!("the connection broke"),
            _ => {}
        }
    }
    client.close();
}

#[test]
fn the_tokio_client_comes_back_after_a_restart() {
    let pki = Pki::new();
    let mut server = Server::start_apart(pki.settings(Settings::shards(1)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut options = options(&pki, "ann");
        (options.backoff_min_ms, options.backoff_max_ms) = (50, 200);
        let mut client = on_tokio::Client::connect(server.addr(), options).await.unwrap();
        client.join("g", Membership::durable()).unwrap();
        client.publish("g", "before").unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            let event = tokio::time::timeout(Duration::from_secs(20), client.next()).await;
            if let Event::Message(message) = event.expect("in time").expect("an event") {
                got.push(message.payload().to_vec());
                if got.len() == 1 {
                    server.kill();
                    server.restart_at(pki.settings(Settings::shards(1)));
                    client.publish("g", "after").unwrap();
                }
            }
        }
        assert_eq!(got, [&b"before"[..], b"after"]);
        client.close().await;
    });
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = Server::start(pki.settings(Settings::shards(1)));
    let wrong_name = Tls::with_ca_file("elsewhere", pki.path("ca.pem")).unwrap();
    let wrong_ca = Tls::with_ca_file("localhost", other.path("ca.pem")).unwrap();
    for tls in [wrong_name, wrong_ca, Tls::new("localhost").unwrap()] {
        let connected = blocking::Client::connect(server.addr(), Options::new("ann").tls(tls));
        let Err(ClientError::Connect(error)) = connected else { panic!("connected") };
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    assert!(Tls::with_ca_file("localhost", pki.path("client-key.pem")).is_err());
}
