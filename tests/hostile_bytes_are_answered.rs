//! Bytes that are not as PROTOCOL.md asks get the error it names, and hurt nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use common::client::hello_bytes;
use common::{Client, Follower, Got, Random, SOON, Server, Settings};
use fanfare::wire::{ErrorCode, Hello, MAGIC, Start, kind};

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32 + 4).to_le_bytes().to_vec();
    out.extend([kind, 0, 0, 0]);
    out.extend(body);
    out
}

fn hello(version: (u16, u16), encoding: u8) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let (version_min, version_max) = version;
    let producer = [1; 16];
    Hello { version_min, version_max, encoding, flags: 0xFFFF, producer, member: b"client" }
        .encode(&mut out);
    out
}

/// Sends `bytes` on a new connection and returns the fatal error that ends it.
fn fatal(server: &Server, bytes: &[u8]) -> (ErrorCode, u64) {
    let mut client = Client::bare(server);
    client.send(bytes);
    client.fatal()
}

#[test]
fn a_tls_client_gets_an_alert_that_it_understands() {
    let server = Server::start(Settings::shards(1));
    for hello in [&b"\x16"[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]] {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(hello).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [0x15, 3, 1, 0, 2, 2, 40]);
    }
}

#[test]
fn openings_that_are_not_the_protocol_end_with_a_typed_error() {
    let server = Server::start(Settings::shards(1));
    assert_eq!(fatal(&server, b"get / HTTP/1.1\r\n\r\n").0, ErrorCode::BadMagic);
    assert_eq!(fatal(&server, b"FNFX").0, ErrorCode::BadMagic);
    assert_eq!(fatal(&server, b"X").0, ErrorCode::BadMagic);
    assert_eq!(fatal(&server, &hello((2, 9), 0)), (ErrorCode::VersionUnsupported, 1));
    assert_eq!(fatal(&server, &hello((0, 0), 0)), (ErrorCode::VersionUnsupported, 1));
    assert_eq!(fatal(&server, &hello((1, 1), 3)), (ErrorCode::EncodingUnsupported, 0));

    let mut early = MAGIC.to_vec();
    early.extend(frame(kind::PING, &[0; 8]));
    assert_eq!(fatal(&server, &early).0, ErrorCode::OutOfState);
    let mut long = MAGIC.to_vec();
    long.extend([0xFF; 4]);
    assert_eq!(fatal(&server, &long).0, ErrorCode::FrameTooLong);
    let mut short = MAGIC.to_vec();
    short.extend([3, 0, 0, 0]);
    assert_eq!(fatal(&server, &short).0, ErrorCode::FrameTooShort);

    let mut nameless = MAGIC.to_vec();
    nameless.extend(frame(kind::HELLO, &[1, 0, 1, 0, 0, 0, 0, 0]));
    let mut client = Client::bare(&server);
    client.send(&nameless);
    let (code, _, field) = client.error(0);
    assert_eq!((code, &field[..]), (ErrorCode::Malformed, "producer"));
    assert_eq!(client.recv(), Got::Closed);

    // A version range around ours, unknown flags: fine.
    let mut client = Client::bare(&server);
    client.send(&hello((0, 700), 0));
    assert!(matches!(client.recv(), Got::Welcome(welcome) if welcome.version == 1));
}

#[test]
fn a_second_hello_ends_the_connection() {
    let server = Server::start(Settings::shards(1));
    let mut client = Client::open(&server, "client");
    client.send(&hello_bytes("client")[4..]);
    assert_eq!(client.fatal().0, ErrorCode::OutOfState);
}

#[test]
fn broken_framing_after_hello_ends_the_connection_and_its_memberships() {
    let server = Server::start(Settings::shards(1));
    let mut healthy = Client::open(&server, "healthy");
    let mut follower = Follower::live(healthy.join("g"));
    for bytes in [&[0xFF; 4][..], &[0, 0, 0, 0], &[3, 0, 0, 0, 1, 2, 3]] {
        let mut client = Client::open(&server, "client");
        client.join("g");
        client.send(bytes);
        assert!(client.fatal().0.is_fatal());
        healthy.publish("g", b"x");
    }
    healthy.follow(&mut follower, 3);
}

#[test]
fn unknown_and_malformed_frames_leave_the_connection_open() {
    let server = Server::start(Settings::shards(1));
    let mut client = Client::open(&server, "client");
    for unknown in [0x00, 0x0A, 0x0E, 0x7F, 0x81, 0x85, 0xC0, 0xFF] {
        client.send(&frame(unknown, &[1, 2, 3]));
        assert_eq!(client.error(0), (ErrorCode::UnknownFrame, u64::from(unknown), String::new()));
    }
    let malformed = |client: &mut Client, bytes: &[u8], request: u32, field: &str| {
        client.send(bytes);
        assert_eq!(client.error(request), (ErrorCode::Malformed, 0, field.to_owned()));
    };
    malformed(&mut client, &frame(kind::PING, &[]), 0, "token");
    malformed(&mut client, &frame(kind::ACK, &[0; 8]), 0, "count");
    malformed(&mut client, &frame(kind::PUBLISH, &[7, 0, 0]), 0, "request");
    malformed(&mut client, &frame(kind::PUBLISH, &[7, 0, 0, 0, 9]), 7, "level");
    malformed(&mut client, &frame(kind::PUBLISH, &[8, 0, 0, 0]), 8, "level");
    malformed(&mut client, &frame(kind::JOIN, &[9, 0, 0, 0, 0, 0, 0, 0]), 9, "count");
    malformed(&mut client, &frame(kind::AUTH, &[7, 0, 0]), 0, "request");
    for query in [kind::FETCH, kind::SET_STATE, kind::SYNC, kind::ROSTER_QUERY] {
        malformed(&mut client, &frame(query, &[7, 0, 0]), 0, "request");
        malformed(&mut client, &frame(query, &[7, 0, 0, 0]), 7, "name_len");
    }
    malformed(&mut client, &frame(kind::PROBED, &[0; 7]), 0, "token");
    let no_mode = [10, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'g'];
    malformed(&mut client, &frame(kind::JOIN, &no_mode), 10, "mode");
    malformed(&mut client, &frame(kind::LEAVE, &[11, 0, 0, 0, 1, 0, 0, 0, 0]), 11, "group");
    client.join("g");
    assert_eq!(client.publish("g", b"x").seq.0, 1);
}

#[test]
fn acks_of_nothing_are_ignored() {
    let server = Server::start(Settings::shards(2));
    let mut client = Client::open(&server, "client");
    for group in ["a", "b", "c"] {
        let joined = client.join(group);
        let mut follower = Follower::live(joined);
        let published = client.publish(group, b"x");
        client.follow(&mut follower, 1);
        let (handle, epoch, seq) = (joined.handle, joined.epoch, published.seq);
        client.ack(handle, epoch, fanfare::position::Seq(u64::MAX));
        client.ack(handle, fanfare::position::Epoch(u32::MAX), seq);
        client.ack(fanfare::position::Handle(u64::MAX), epoch, seq);
        client.ack(handle, epoch, seq);
        client.ack(handle, epoch, seq);
        client.ack(handle, epoch, fanfare::position::Seq(0));
        client.ping();
    }
    assert_eq!(client.recv_within(std::time::Duration::from_millis(50)), None);
}

#[test]
fn a_stream_cut_at_every_byte_is_the_same_stream() {
    let server = Server::start(Settings::shards(1));
    let mut writer = Client::open(&server, "writer");
    let mut stream = hello_bytes("client");
    let mut helper = Client::open(&server, "helper");
    let (_, publish) = helper.publish_frame("g", None, b"payload");
    stream.extend(publish);
    stream.extend(frame(kind::PING, &[9; 8]));
    let token = u64::from_le_bytes([9; 8]);
    for cut in 1..stream.len() {
        let mut client = Client::bare(&server);
        client.send(&stream[..cut]);
        if cut % 8 == 0 {
            // Something else goes on in between.
            writer.ping();
        }
        client.send(&stream[cut..]);
        assert!(matches!(client.recv(), Got::Welcome(_)));
        client.expect("PUBLISHED", |got| matches!(got, Got::Published(_)).then_some(()));
        client.expect("PONG", |got| (*got == Got::Pong(token)).then_some(()));
    }
    // One byte at a time, and everything of three clients' worth in one write.
    let mut client = Client::bare(&server);
    for byte in &stream {
        client.send(&[*byte]);
    }
    assert!(matches!(client.recv(), Got::Welcome(_)));
    client.expect("PONG", |got| (*got == Got::Pong(token)).then_some(()));
    let many = frame(kind::PING, &[9; 8]).repeat(5_000);
    let mut other = client.writer();
    let thread = std::thread::spawn(move || other.write_all(&many).unwrap());
    for _ in 0..5_000 {
        client.expect("PONG", |got| (*got == Got::Pong(token)).then_some(()));
    }
    thread.join().unwrap();
}

#[test]
fn random_bytes_hurt_nobody() {
    let server = Server::start(Settings::shards(2));
    let mut random = Random::new();
    let mut healthy = Client::open(&server, "healthy");
    let mut follower = Follower::live(healthy.join("g"));
    let (_, publish) = healthy.publish_frame("h", None, &[5; 200]);
    for round in 1..=300u64 {
        let mut stream = hello_bytes("hostile");
        let mut join = Vec::new();
        let entry = fanfare::wire::JoinEntry::live(b"g", Start::Tail);
        fanfare::wire::Join::encode(&mut join, 1, &[entry; 3]);
        stream.extend(&join);
        stream.extend(&publish);
        match round % 3 {
            0 => {
                let len = random.below(400) as usize;
                let garbage = random.bytes(len);
                stream.truncate(random.below(stream.len() as u64) as usize);
                stream.extend(garbage);
            }
            1 => {
                for _ in 0..1 + random.below(8) {
                    let at = random.below(stream.len() as u64) as usize;
                    stream[at] = random.next() as u8;
                }
            }
            _ => stream.truncate(random.below(stream.len() as u64) as usize),
        }
        let client = Client::bare(&server);
        let mut socket = client.stream();
        let _ = socket.write_all(&stream);
        match random.below(3) {
            0 => drop(client),
            1 => {
                let _ = client.stream().shutdown(Shutdown::Write);
            }
            _ => {
                // A reset instead of an orderly end.
                socket2::SockRef::from(client.stream())
                    .set_linger(Some(std::time::Duration::ZERO))
                    .unwrap();
            }
        }
        healthy.publish("g", &round.to_le_bytes());
    }
    // A changed byte in the stream above may have published to this group, too.
    healthy.follow(&mut follower, 300);
    healthy.ping();
}
