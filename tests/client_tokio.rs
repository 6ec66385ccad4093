//! The tokio client does what the blocking one does; both drive the same core.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::Duration;

use common::{SOON, Server, Settings};
use fanfare::client::tokio::Client;
use fanfare::client::{Event, Membership, Options};
use tokio::time::timeout;

async fn message(client: &mut Client) -> (u64, Vec<u8>) {
    let message = async {
        loop {
            match client.next().await.expect("the client lives") {
                Event::Message(m) => return (m.seq.0, m.payload().to_vec()),
                _ => continue,
            }
        }
    };
    timeout(SOON, message).await.expect("a message")
}

#[test]
fn messages_go_round_also_when_a_wait_is_cancelled() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::start(Settings::shards(2));
        let mut options = Options::new("ann");
        options.backoff_min_ms = 20;
        let mut ann = Client::connect(server.addr(), options).await.unwrap();
        ann.join("g", Membership::live()).unwrap();
        ann.publish("g", "1").unwrap();
        assert_eq!(message(&mut ann).await, (1, b"1".to_vec()));
        // Cancelled in every state, it goes on.
        ann.publish("g", vec![2; 60_000]).unwrap();
        let mut got = Vec::new();
        for _ in 0..100_000 {
            let cancelled = timeout(Duration::from_micros(20), ann.next()).await;
            if let Ok(Some(Event::Message(m))) = cancelled {
                got.push((m.seq.0, m.payload().len()));
                break;
            }
        }
        assert_eq!(got, [(2, 60_000)]);
        // Somebody else's messages, while this one waits for two things at a time.
        let mut bob = Client::connect(server.addr(), Options::new("bob")).await.unwrap();
        bob.publish("g", "3").unwrap();
        bob.flush().await;
        tokio::select! {
            got = message(&mut ann) => assert_eq!(got, (3, b"3".to_vec())),
            other = bob.next() => assert!(matches!(other, Some(Event::Connected(_)))),
        }
        bob.close().await;
        ann.close().await;
    });
}

#[test]
fn a_server_that_is_not_there_is_an_error_at_first() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert!(Client::connect("127.0.0.1:1", Options::new("ann")).await.is_err());
    });
}
