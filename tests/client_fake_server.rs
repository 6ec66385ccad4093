//! The blocking client against servers that a real one would rarely be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use fanfare::client::blocking::Client;
use fanfare::client::{Event, Membership, Options, Reason, Welcome};
use fanfare::limits::FRAME_MAX;
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{
    ClientFrame, Deliver, EpochStart, ErrorCode, ErrorFrame, Joined, Published, ServerFrame, split,
};

const SOON: Duration = Duration::from_secs(10);

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        node: NodeId(1),
        shard: ShardId(0),
        heartbeat_ms: 0,
        payload_max: 65_536,
        frame_max: 66_560,
        groups_per_member_max: 1000,
        ack_every: 256,
        ack_interval_ms: 1000,
        ack_timeout_ms: 30_000,
        publish_window: 1024,
        heartbeat_slot_ms: 0,
        producer_ttl_ms: 0,
    }
}

/// Plays one connection after another, each with its own part.
fn server(parts: Vec<fn(TcpStream)>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        for part in parts {
            part(listener.accept().unwrap().0);
        }
    });
    (addr, server)
}

fn send(stream: &mut TcpStream, encode: impl FnOnce(&mut Vec<u8>)) {
    let mut out = Vec::new();
    encode(&mut out);
    stream.write_all(&out).unwrap();
}

/// Reads frames, behind the magic if there is one, until `take` is done.
fn receive(stream: &mut TcpStream, mut take: impl FnMut(&mut TcpStream, ClientFrame<'_>) -> bool) {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let len = stream.read(&mut chunk).unwrap();
        assert!(len > 0, "the client is gone");
        bytes.extend_from_slice(&chunk[..len]);
        if bytes.starts_with(b"FNFR") {
            bytes.drain(..4);
        }
        while let Some((frame, len)) = split(&bytes, FRAME_MAX).unwrap() {
            let done = take(stream, ClientFrame::decode(frame).unwrap());
            bytes.drain(..len);
            if done {
                return;
            }
        }
    }
}

fn until<T>(client: &mut Client, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        let event = client.next(SOON).unwrap().expect("an event in time");
        if let Some(picked) = pick(event) {
            return picked;
        }
    }
}

fn options() -> Options {
    let mut options = Options::new("ann").seed(1);
    options.backoff_min_ms = 10;
    options
}

#[test]
fn a_client_that_waits_to_write_still_reads() {
    const PUBLISHES: u64 = 300;
    let (addr, server) = server(vec![|mut stream| {
        receive(&mut stream, |stream, frame| {
            assert!(matches!(frame, ClientFrame::Hello(_)));
            send(stream, |out| welcome().encode(out));
            true
        });
        // More than fits into all buffers, while nothing of the client is read.
        let mut out = Vec::new();
        (0..1_000_000).for_each(|token| ServerFrame::encode_pong(&mut out, token));
        stream.write_all(&out).unwrap();
        let mut seen = 0;
        receive(&mut stream, |stream, frame| {
            let ClientFrame::Publish(p) = frame else { return false };
            seen += 1;
            assert_eq!((p.producer_seq, p.payload.len()), (seen, 60_000));
            let published = Published {
                request: p.request,
                epoch: Epoch(1),
                handle: Handle(1),
                producer_seq: p.producer_seq,
                seq: Seq(seen),
                level: Level::Durable,
            };
            send(stream, |out| published.encode(out));
            seen == PUBLISHES
        });
    }]);
    let mut options = options();
    options.publish_bytes_max = 64 << 20;
    let mut client = Client::connect(addr, options).unwrap();
    for _ in 0..PUBLISHES {
        client.publish("g", vec![7; 60_000]).unwrap();
    }
    let mut answered = 0;
    while answered < PUBLISHES {
        answered = until(&mut client, |event| match event {
            Event::Published(p) => Some(p.seq.0),
            _ => None,
        });
    }
    server.join().unwrap();
}

#[test]
fn the_last_words_of_a_server_are_read_and_a_frame_that_is_cut_is_not() {
    let (addr, server) = server(vec![
        |mut stream| {
            let mut out = Vec::new();
            let (code, limit) = (ErrorCode::TooManyConnections as u16, 7);
            ErrorFrame { request: 0, code, limit, field: b"", text: b"full" }.encode(&mut out);
            stream.write_all(&out).unwrap();
            // Read, since closing with unread bytes would take the words back.
            let _ = stream.read(&mut [0; 1024]);
        },
        |mut stream| {
            receive(&mut stream, |stream, frame| match frame {
                ClientFrame::Hello(_) => {
                    send(stream, |out| welcome().encode(out));
                    false
                }
                ClientFrame::Join(join) => {
                    let (group, handle, epoch) = (&b"g"[..], Handle(1), Epoch(1));
                    let (request, head, first, cursor) = (join.request, Seq(4), Seq(5), Seq(0));
                    let joined = Joined { request, epoch, handle, head, group, first, cursor };
                    let deliver = Deliver {
                        handle,
                        seq: Seq(5),
                        stamp: Stamp(1),
                        node: NodeId(1),
                        shard: ShardId(0),
                        sender: b"bob",
                        payload: b"five",
                    };
                    let mut out = Vec::new();
                    joined.encode(&mut out);
                    EpochStart { epoch, handle, first }.encode(&mut out);
                    deliver.encode(&mut out);
                    Deliver { seq: Seq(6), ..deliver }.encode(&mut out);
                    out.pop();
                    stream.write_all(&out).unwrap();
                    true
                }
                other => panic!("{other:?}"),
            });
        },
        |mut stream| {
            receive(&mut stream, |stream, frame| match frame {
                ClientFrame::Hello(_) => {
                    send(stream, |out| welcome().encode(out));
                    false
                }
                ClientFrame::Join(join) => {
                    let start = join.entries().next().unwrap().start;
                    assert_eq!(start, fanfare::wire::Start::Seq(Seq(6)), "not 7");
                    true
                }
                other => panic!("{other:?}"),
            });
        },
    ]);
    let mut client = Client::connect(addr, options()).unwrap();
    client.join("g", Membership::live()).unwrap();
    let reason = until(&mut client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    let Reason::Server(refusal) = reason else { panic!("{reason:?}") };
    assert_eq!((refusal.known(), refusal.limit), (Some(ErrorCode::TooManyConnections), 7));
    let mut messages = Vec::new();
    let reason = until(&mut client, |event| match event {
        Event::Message(m) => {
            messages.push((m.seq.0, m.payload().to_vec()));
            None
        }
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, Reason::Lost);
    assert_eq!(messages, [(5, b"five".to_vec())]);
    until(&mut client, |event| matches!(event, Event::Connected(_)).then_some(()));
    client.next(Duration::from_millis(300)).unwrap();
    server.join().unwrap();
}

#[test]
fn bytes_that_are_no_frames_end_the_connection_and_the_client_comes_back() {
    let garbage: fn(TcpStream) = |mut stream| {
        stream.write_all(&[0xFF; 64]).unwrap();
        let _ = stream.read(&mut [0; 1024]);
    };
    let (addr, server) = server(vec![garbage, garbage]);
    let mut client = Client::connect(addr, options()).unwrap();
    for _ in 0..2 {
        let reason = until(&mut client, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
        assert!(matches!(reason, Reason::Protocol(_)), "{reason:?}");
    }
    server.join().unwrap();
}
