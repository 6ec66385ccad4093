//! What a shard holds for writes that their peers do not read, and for frames whose end does not come, is
//! bounded: who holds the most, or for the longest, goes, is counted, and the others stay.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use common::{Client, Follower, Got, Http, Settings, wait_until};
use fanfare::limits::FRAME_MAX;
use fanfare::position::Level;
use fanfare::wire::ErrorCode;

const CLOSED: &str = "fanfare_connections_closed_total";

#[test]
fn a_write_that_is_not_read_goes_when_such_writes_hold_more_than_they_may() {
    let settings = Settings::shards(1).set("stall_timeout_ms", 60_000);
    let settings = settings.set("socket_send_buffer", 4096).set("tail_bytes_max", 2 << 20);
    let settings = settings.set("payload_max", 256 * 1024).set("pinned_bytes_max", 64 * 1024);
    let (server, http) = Http::start(settings);
    let mut sleeper = Client::open(&server, "sleeper");
    sleeper.join("g");
    let mut reader = Client::open(&server, "reader");
    let mut follower = Follower::live(reader.join("g"));
    let mut publisher = Client::open(&server, "publisher");
    let mut published = 0;
    wait_until("the sleeper's end", || {
        publisher.publish("g", &[b'x'; 100_000]);
        published += 1;
        reader.follow(&mut follower, published);
        http.metric(CLOSED, "memory") == 1.0
    });
    assert_eq!(http.metric(CLOSED, "stalled"), 0.0, "the stall time was not over");
    publisher.publish("g", b"last");
    reader.follow(&mut follower, published + 1);
}

#[test]
fn the_largest_unfinished_frame_goes_when_they_are_more_than_they_may_be() {
    let settings = Settings::shards(1).set("payload_max", 256 * 1024);
    let (server, http) = Http::start(settings.set("partial_bytes_max", FRAME_MAX));
    let mut clients: Vec<_> = ["small", "large"].map(|member| Client::open(&server, member)).into();
    let frames = [110_000, 210_000]
        .map(|len| clients[0].publish_frame_as("g", Some(Level::Durable), 1, &vec![b'x'; len]).1);
    for (client, frame) in clients.iter_mut().zip(&frames) {
        client.send(&frame[..frame.len() - 10_000]);
    }
    let code = ErrorCode::MemoryBudget as u16;
    clients[1].expect("ERROR", |got| {
        matches!(got, Got::Error { code: is, limit, .. } if (*is, *limit) == (code, FRAME_MAX as u64))
            .then_some(())
    });
    assert_eq!(clients[1].recv(), Got::Closed);
    assert_eq!(http.metric(CLOSED, "memory"), 1.0);
    // The other one's frame is whole when its end comes.
    clients[0].send(&frames[0][frames[0].len() - 10_000..]);
    let got = clients[0].recv();
    assert!(matches!(got, Got::Published(_)), "{got:?}");
}
