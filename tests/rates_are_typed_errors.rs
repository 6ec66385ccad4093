//! What is above the bounds of a member or of a group is refused with the time to try again, and
//! the client library does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Got, Server, Settings, wait_until};
use fanfare::client::{Event, Membership, Options, blocking};
use fanfare::wire::{ErrorCode, Start};
use rustix::process::Signal;

/// Publishes one at a time, to a group for each, until one is refused: the count before it, and its
/// request.
fn publish_until_refused(client: &mut Client, group: impl Fn(usize) -> String) -> (usize, u32) {
    for n in 0..100 {
        let request = client.send_publish(&group(n), b"x");
        let refused = client.expect("an answer", |got| match got {
            Got::Published(published) if published.request == request => Some(None),
            Got::Error { request: of, .. } if *of == request => Some(Some(got.clone())),
            _ => None,
        });
        if let Some(error) = refused {
            client.put_back(error);
            return (n, request);
        }
    }
    panic!("100 were taken");
}

#[test]
fn publishes_of_a_member_are_bounded_over_all_its_groups() {
    let server = Server::start(Settings::shards(1).set("member_publishes_per_s", 3));
    let (mut client, mut other) = (Client::open(&server, "ann"), Client::open(&server, "bob"));
    let (taken, request) = publish_until_refused(&mut client, |n| format!("g{n}"));
    assert!(taken >= 3);
    let (code, retry_ms, field) = client.error(request);
    assert_eq!((code, &field[..]), (ErrorCode::RateLimited, "member"));
    assert!((1..=334).contains(&retry_ms), "{retry_ms}");
    other.publish("g0", b"somebody else's");
    std::thread::sleep(Duration::from_millis(retry_ms + 1));
    client.publish("g0", b"x");
}

#[test]
fn bounds_set_by_sighup_hold_for_members_who_are_connected() {
    let server = Server::start(Settings::shards(1));
    let mut client = Client::open(&server, "ann");
    let path = server.data_dir().with_file_name("fanfare.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    let reload = |text: &str, changed: &str| {
        std::fs::write(&path, format!("{before}{text}")).unwrap();
        server.signal(Signal::HUP);
        wait_until("the reload", || server.log().contains(changed));
    };
    reload("member_publishes_per_s = 3\n", r#"changed=["member_publishes_per_s"]"#);
    let (taken, _) = publish_until_refused(&mut client, |n| format!("g{n}"));
    assert!(taken >= 3);
    reload("group_publishes_per_s = 2\n", r#""group_publishes_per_s"]"#);
    let (taken, request) = publish_until_refused(&mut client, |_| "g".to_owned());
    assert!(taken >= 2);
    let (_, _, field) = client.error(request);
    assert_eq!(field, "group");
}

#[test]
fn bytes_of_a_member_are_bounded() {
    let server = Server::start(Settings::shards(1).set("member_bytes_per_s", 1_000));
    let mut client = Client::open(&server, "ann");
    client.publish("g", &[0; 3_000]);
    let request = client.send_publish("g", b"x");
    let (code, retry_ms, _) = client.error(request);
    assert_eq!(code, ErrorCode::RateLimited);
    assert!((1..=2_000).contains(&retry_ms), "{retry_ms}");
}

#[test]
fn messages_to_a_group_are_bounded_whoever_publishes_and_wherever() {
    let server = Server::start(Settings::shards(2).set("group_publishes_per_s", 1));
    let mut clients: Vec<_> = (0..2)
        .flat_map(|shard| (0..3).map(move |n| (shard, n)))
        .map(|(shard, n)| Client::on_shard(&server, shard, &format!("m{shard}{n}")))
        .collect();
    let requests: Vec<_> =
        clients.iter_mut().map(|client| client.send_publish("g", b"x")).collect();
    let mut refused = 0;
    for (client, request) in clients.iter_mut().zip(requests) {
        match client.answer(request) {
            Ok(_) => {}
            Err((ErrorCode::RateLimited, retry_ms)) => {
                assert!((1..=1_000).contains(&retry_ms));
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((1..=5).contains(&refused), "{refused}");
    clients[0].publish("another", b"x");
}

#[test]
fn a_class_says_what_its_groups_take() {
    let dir = tempfile::tempdir().unwrap();
    let class = "[{ name = \"small\", groups = [\"s.*\"], payload_max = 10, publishes_per_s = 2 }]";
    let server = Server::start_in(Settings::shards(1).set("class", class), dir);
    let mut client = Client::open(&server, "ann");
    let request = client.send_publish("s.1", &[0; 11]);
    assert_eq!(client.error(request), (ErrorCode::PayloadTooLong, 10, String::new()));
    client.publish("s.1", &[0; 10]);
    let (_, request) = publish_until_refused(&mut client, |_| "s.1".to_owned());
    assert_eq!(client.error(request).2, "group");
    for _ in 0..10 {
        client.publish("large", &[0; 11]);
    }
}

#[test]
fn joins_of_a_member_are_bounded_and_each_refusal_names_its_group() {
    let server = Server::start(Settings::shards(1).set("member_joins_per_s", 3));
    let mut client = Client::open(&server, "ann");
    let names: Vec<_> = (0..5).map(|n| format!("g{n}")).collect();
    let entries: Vec<_> = names.iter().map(|name| (&name[..], Start::Tail)).collect();
    let request = client.send_join(&entries);
    for name in &names[..3] {
        client.joined(request, name);
    }
    for name in &names[3..] {
        let (code, _, field) = client.error(request);
        assert_eq!((code, &field), (ErrorCode::RateLimited, name));
    }
}

#[test]
fn connections_of_a_member_are_bounded_and_one_that_ends_makes_room() {
    let server = Server::start(Settings::shards(1).set("member_connections_max", 2));
    let mut first = Client::open(&server, "ann");
    let second = Client::open(&server, "ann");
    let third = || {
        let mut client = Client::bare(&server);
        client.send(&common::client::hello_bytes("ann"));
        client
    };
    assert_eq!(third().fatal(), (ErrorCode::TooManyConnectionsOfMember, 2));
    Client::open(&server, "bob");
    drop(second);
    common::wait_until("there is room", || matches!(third().recv(), common::Got::Welcome(_)));
    first.ping();
}

/// Takes events until `enough`.
fn follow(client: &mut blocking::Client, mut enough: impl FnMut(&Event) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "it takes too long");
        if let Some(event) = client.next(Duration::from_millis(100)).unwrap()
            && enough(&event)
        {
            return;
        }
    }
}

#[test]
fn the_client_library_waits_and_goes_on_in_order() {
    let settings =
        Settings::shards(1).set("group_publishes_per_s", 10).set("member_joins_per_s", 2);
    let server = Server::start(settings);
    let mut client = blocking::Client::connect(server.addr(), Options::new("ann")).unwrap();
    for group in ["a", "b", "c", "d"] {
        client.join(group, Membership::live()).unwrap();
    }
    let mut joined = 0;
    follow(&mut client, |event| {
        assert!(!matches!(event, Event::JoinFailed { .. }), "{event:?}");
        joined += u32::from(matches!(event, Event::Joined(_)));
        joined == 4
    });
    for n in 0..25_u8 {
        client.publish("a", [n]).unwrap();
    }
    let (mut got, mut held) = (Vec::new(), 0);
    follow(&mut client, |event| {
        match event {
            Event::Message(message) => got.push(message.payload()[0]),
            Event::PublishHeld { error, .. } => {
                assert_eq!(error.known(), Some(ErrorCode::RateLimited));
                held += 1;
            }
            Event::PublishFailed { .. } => panic!("{event:?}"),
            _ => {}
        }
        got.len() == 25
    });
    assert!(got.iter().copied().eq(0..25), "in order: {got:?}");
    assert!(held > 0);
}
