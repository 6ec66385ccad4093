//! A publisher that sends faster than the engine takes is not read beyond the bounds, and what
//! it sent is neither lost nor reordered.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::{Client, Follower, Got, Server, Settings};
use socket2::{Domain, Socket, Type};

#[test]
fn a_publisher_that_does_not_read_its_answers_is_not_read() {
    let settings = Settings::shards(1)
        .set("control_bytes_max", 4096)
        // What is read before the answers pile up is answered, too.
        .set("inbox_bytes_max", 300_000)
        .set("recv_buffers", 32)
        .set("socket_send_buffer", 16 * 1024)
        .set("stall_timeout_ms", 60_000);
    let server = Server::start(settings);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Small, but above the segment size of the loopback: with a window below that the kernels
    // of both sides can wait for each other without end.
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.set_send_buffer_size(128 * 1024).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    let mut flooder = Client::over(TcpStream::from(socket));
    flooder.hello("flooder");

    // Two commits hold up to forty thousand of these, the inbox and the buffers of both kernels
    // about eight thousand.
    let count = 100_000u64;
    let frames: Vec<Vec<u8>> =
        (0..count).map(|n| flooder.publish_frame("g", None, &n.to_le_bytes()).1).collect();
    let mut writer = flooder.writer();
    let thread = std::thread::spawn(move || {
        frames.iter().for_each(|frame| writer.write_all(frame).unwrap());
    });
    let mut before = 0;
    common::wait_until("the flood to be stopped", || {
        std::thread::sleep(Duration::from_millis(500));
        let taken = Client::open(&server, "observer").join("g").head.0;
        std::mem::replace(&mut before, taken) == taken
    });
    assert!(before > 0 && before < 60_000, "{before} publishes were taken with no answer read");

    // Others are not concerned.
    let mut member = Client::open(&server, "member");
    let mut follower = Follower::from(member.join_from("g", 1), 1);
    member.publish("other", b"x");

    for n in 1..=count {
        let Got::Published(published) = flooder.recv() else { panic!("not PUBLISHED") };
        assert_eq!((u64::from(published.request), published.seq.0), (n, n));
    }
    thread.join().unwrap();
    member.follow(&mut follower, count);
    for (n, (_, _, payload)) in follower.messages.iter().enumerate() {
        assert_eq!(payload[..], (n as u64).to_le_bytes());
    }
}

#[test]
fn a_flood_through_a_small_inbox_loses_nothing_on_either_shard() {
    let settings = Settings::shards(2).set("inbox_bytes_max", 300_000);
    let server = Server::start(settings);
    let before = server.rss_kib();
    // Four groups, so that both shards own some and forward for others.
    let groups = ["a", "b", "c", "d"];
    let each = 400u64;
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let mut client = Client::on_shard(&server, n % 2, &format!("flooder-{n}"));
            std::thread::spawn(move || {
                let mut frames = Vec::new();
                for i in 0..each {
                    let mut payload = vec![n as u8; 12_000];
                    payload[..8].copy_from_slice(&i.to_le_bytes());
                    for group in groups {
                        frames.push(client.publish_frame(group, None, &payload).1);
                    }
                }
                let mut writer = client.writer();
                let write = std::thread::spawn(move || {
                    frames.iter().for_each(|frame| writer.write_all(frame).unwrap());
                });
                for _ in 0..each * groups.len() as u64 {
                    let got = client.recv();
                    assert!(matches!(got, Got::Published(_)), "{got:?}");
                }
                write.join().unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let after = server.rss_kib();
    // Tails may hold 64 MiB per shard; what flooded in was 77 MB.
    assert!(after < before + 250 * 1024, "memory went from {before} to {after} KiB");

    let mut reader = Client::open(&server, "reader");
    for group in groups {
        let mut follower = Follower::from(reader.join_from(group, 1), 1);
        reader.follow(&mut follower, 4 * each);
        let mut next = [0u64; 4];
        for (_, _, payload) in &follower.messages {
            let expected = &mut next[usize::from(payload[100])];
            assert_eq!(payload[..8], expected.to_le_bytes(), "order of one publisher");
            *expected += 1;
        }
        assert_eq!(next, [each; 4]);
    }
}
