//! The driver on real sockets, files and threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::wal::paths::segment_path;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use super::*;
use crate::fanout::{Part, PinGauge, Segment};
use crate::limits::{DESCRIPTORS_SPARE, LOG_BLOCK};
use crate::position::{CommitNumber, Nanos, NodeId, SegmentNumber, Seq, ShardId};
use crate::shard::{ConnId, Event, Io, Job, RecvEnd};
use crate::wal::create::{steps_to_create, steps_to_remove};

struct Rig {
    driver: Driver,
    addr: SocketAddr,
    dir: TempDir,
    _cold: ColdExecutor,
    events: Vec<Event>,
}

#[derive(Clone, Copy)]
struct Sizes {
    connections: u32,
    buffers: u16,
    buffer_bytes: u32,
    send_buffer: usize,
}

const SIZES: Sizes =
    Sizes { connections: 64, buffers: 16, buffer_bytes: 4096, send_buffer: 64 * 1024 };

impl Rig {
    fn new() -> Self {
        Self::with(SIZES, ShardId(0))
    }

    fn with(sizes: Sizes, shard: ShardId) -> Self {
        Self::on(vec![TcpListener::bind("127.0.0.1:0").unwrap()], sizes, shard)
    }

    fn on(listeners: Vec<TcpListener>, sizes: Sizes, shard: ShardId) -> Self {
        let listener = &listeners[0];
        socket2::SockRef::from(listener).set_send_buffer_size(sizes.send_buffer).unwrap();
        let addr = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cold = ColdExecutor::start().unwrap();
        let driver = Driver::new(DriverConfig {
            shard,
            listeners,
            connections_max: sizes.connections,
            recv_buffers: sizes.buffers,
            recv_buffer_bytes: sizes.buffer_bytes,
            spin_us: 0,
            log_dir: dir.path().to_owned(),
            cold: cold.handle(),
            steps: Arc::new(|job, dir| match job {
                Job::CreateSegment { number, bytes, .. } => {
                    steps_to_create(dir, *number, &[0xAB; LOG_BLOCK], *bytes)
                }
                Job::RemoveSegments { numbers } => steps_to_remove(dir, numbers),
                other => crate::serve::recover::steps(other, dir, NodeId(1), ShardId(0), 0),
            }),
        })
        .unwrap();
        Self { driver, addr, dir, _cold: cold, events: Vec::new() }
    }

    /// The next event that `pick` takes; drops others, giving their buffers back.
    fn next<T>(&mut self, mut pick: impl FnMut(&mut Driver, &Event) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let until = self.driver.now().plus_ms(50);
            if self.events.is_empty() {
                self.driver.wait(Some(until), &mut self.events);
            }
            while !self.events.is_empty() {
                let event = self.events.remove(0);
                let picked = pick(&mut self.driver, &event);
                if let Event::Received { buf, .. } = event {
                    self.driver.release(buf);
                }
                if let Some(picked) = picked {
                    return picked;
                }
            }
            assert!(Instant::now() < end, "the event did not come");
        }
    }

    /// All events of the next `ms` milliseconds; receive buffers are given back.
    fn drain(&mut self, ms: u64) -> Vec<Event> {
        let mut all = std::mem::take(&mut self.events);
        let end = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < end {
            self.driver.wait(Some(self.driver.now().plus_ms(10)), &mut all);
        }
        all
    }

    fn accept(&mut self) -> ConnId {
        self.next(|_, e| if let Event::Accepted { conn } = e { Some(*conn) } else { None })
    }

    fn connect(&mut self) -> (TcpStream, ConnId) {
        let client = TcpStream::connect(self.addr).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (client, self.accept())
    }

    /// Receives until `count` bytes of `conn` came.
    fn receive(&mut self, of: ConnId, count: usize) -> Vec<u8> {
        let mut got = Vec::new();
        self.next(|driver, e| {
            if let Event::Received { conn, buf } = e
                && *conn == of
            {
                got.extend_from_slice(driver.bytes(buf));
            }
            (got.len() >= count).then_some(())
        });
        got
    }

    fn closed(&mut self, of: ConnId) {
        self.next(|_, e| matches!(e, Event::Closed { conn } if *conn == of).then_some(()));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn frames(bytes: Vec<u8>) -> Part {
    Part::Frames(Segment::new(Bytes::from(bytes), Seq(1), Seq(1), &PinGauge::default()))
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn bytes_come_back_in_order_from_any_mix_of_parts() {
    let mut rig = Rig::new();
    let (mut client, conn) = rig.connect();
    let data = pattern(50_000);
    client.write_all(&data).unwrap();
    assert_eq!(rig.receive(conn, data.len()), data);
    for pieces in [1, 2, 3, 64] {
        let size = data.len().div_ceil(pieces);
        let mut parts = Vec::new();
        for (i, piece) in data.chunks(size).enumerate() {
            if i % 2 == 0 {
                parts.push(frames(piece.to_vec()));
            } else {
                let mut buf = rig.driver.control_buf();
                assert!(buf.is_empty());
                buf.extend_from_slice(piece);
                parts.push(Part::Control(buf));
            }
        }
        rig.driver.send(conn, &mut parts);
        assert!(parts.is_empty());
        rig.next(|_, e| {
            matches!(e, Event::Sent { conn: c, result: Ok(()) } if *c == conn).then_some(())
        });
        let mut got = vec![0; data.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == data, "{pieces} pieces");
    }
    let counters = rig.driver.counters();
    assert_eq!((counters.accepts, counters.sends), (1, 1));
    assert_eq!(counters.sendmsgs, 3);
}

#[test]
fn write_to_a_stalled_reader_goes_on_in_order_when_it_reads() {
    let mut rig = Rig::with(Sizes { send_buffer: 8 * 1024, ..SIZES }, ShardId(0));
    let (mut client, conn) = rig.connect();
    let data = pattern(8 << 20);
    let mut parts: Vec<Part> =
        data.chunks(data.len() / 7).map(|piece| frames(piece.to_vec())).collect();
    rig.driver.send(conn, &mut parts);
    let stalled = rig.drain(100);
    assert!(!stalled.iter().any(|e| matches!(e, Event::Sent { .. })));
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 8 << 20];
        client.read_exact(&mut got).unwrap();
        got
    });
    let mut progress = 0;
    rig.next(|_, e| match e {
        Event::SendProgress { conn: c } if *c == conn => {
            progress += 1;
            None
        }
        Event::Sent { result, .. } => {
            assert_eq!(*result, Ok(()));
            Some(())
        }
        _ => None,
    });
    assert!(reader.join().unwrap() == data);
    assert!(progress > 0);
    assert!(rig.driver.counters().short_sends >= progress);
}

#[test]
fn the_kernel_says_what_a_reader_has_not_taken() {
    let mut rig = Rig::new();
    let (mut client, conn) = rig.connect();
    let unsent = |rig: &mut Rig| {
        rig.driver.query_unsent(conn);
        rig.next(|_, e| match e {
            Event::Unsent { conn: of, result } if *of == conn => Some(*result),
            _ => None,
        })
    };
    if let Err(errno) = unsent(&mut rig) {
        // Before Linux 6.7 the shard must do without.
        assert!([libc::EOPNOTSUPP, libc::EINVAL].contains(&errno), "{errno}");
        return;
    }
    assert_eq!(unsent(&mut rig), Ok(0));
    // More than the receive buffer of the client takes.
    let len = 8 << 20;
    rig.driver.send(conn, &mut vec![frames(vec![1; len])]);
    rig.drain(100);
    assert!(unsent(&mut rig).unwrap() > 0);
    let rest = std::thread::spawn(move || {
        client.read_exact(&mut vec![0; len]).unwrap();
        client
    });
    rig.next(|_, e| matches!(e, Event::Sent { .. }).then_some(()));
    let _client = rest.join().unwrap();
    let empty = (0..100).any(|_| {
        rig.drain(10);
        unsent(&mut rig) == Ok(0)
    });
    assert!(empty, "everything was read");
}

#[test]
fn close_during_a_write_ends_it_and_reports_once() {
    let mut rig = Rig::new();
    let mut last: Option<ConnId> = None;
    for _ in 0..5 {
        let (_client, conn) = rig.connect();
        if let Some(last) = last {
            assert_eq!(conn.slot, last.slot);
            assert_eq!(conn.generation, last.generation + 1);
            // Calls with the name of a connection that is gone do nothing.
            rig.driver.close(last);
            rig.driver.send(last, &mut vec![frames(vec![0; 16])]);
            rig.driver.pause_recv(last);
        }
        rig.driver.send(conn, &mut vec![frames(vec![0; 64 << 20])]);
        rig.drain(20);
        rig.driver.close(conn);
        rig.driver.close(conn);
        let events = rig.drain(100);
        let sent: Vec<_> = events
            .iter()
            .filter_map(|e| if let Event::Sent { result, .. } = e { Some(result) } else { None })
            .collect();
        assert_eq!(sent, [&Err(libc::ECANCELED)]);
        let closed = events.iter().filter(|e| matches!(e, Event::Closed { .. })).count();
        assert_eq!(closed, 1);
        assert!(matches!(events.last(), Some(Event::Closed { conn: c }) if *c == conn));
        last = Some(conn);
    }
}

#[test]
fn pausing_loses_no_byte() {
    let mut rig = Rig::new();
    let (mut client, conn) = rig.connect();
    let data = pattern(2_000_000);
    let expected = data.clone();
    let writer = std::thread::spawn(move || {
        client.write_all(&data).unwrap();
        client
    });
    let mut got = Vec::new();
    let mut pauses = 0;
    let mut paused = false;
    while got.len() < expected.len() {
        rig.next(|driver, e| match e {
            Event::Received { buf, .. } => {
                assert!(!paused, "bytes after Paused");
                got.extend_from_slice(driver.bytes(buf));
                driver.pause_recv(conn);
                Some(())
            }
            Event::RecvEnded { why: RecvEnd::Paused, .. } => {
                paused = true;
                Some(())
            }
            Event::RecvEnded { why, .. } => panic!("{why:?}"),
            _ => None,
        });
        if paused {
            pauses += 1;
            assert!(rig.drain(1).is_empty());
            paused = false;
            rig.driver.resume_recv(conn);
        }
    }
    assert!(got == expected);
    assert!(pauses > 3, "{pauses}");
    // The last bytes were followed by a pause.
    rig.next(|_, e| matches!(e, Event::RecvEnded { why: RecvEnd::Paused, .. }).then_some(()));
    drop(writer.join().unwrap());
    assert!(rig.drain(20).is_empty());
    rig.driver.resume_recv(conn);
    rig.next(|_, e| matches!(e, Event::RecvEnded { why: RecvEnd::Eof, .. }).then_some(()));
}

#[test]
fn receiving_goes_on_after_buffers_ran_out() {
    let mut rig = Rig::with(Sizes { buffers: 4, buffer_bytes: 512, ..SIZES }, ShardId(0));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(rig.connect());
    }
    let data = pattern(4096);
    for (client, _) in &mut clients {
        client.write_all(&data).unwrap();
    }
    // Held back, so that the kernel has none.
    let mut held = rig.drain(50);
    assert!(rig.driver.counters().recv_enobufs > 0);
    assert!(rig.drain(20).is_empty());
    let mut got: std::collections::HashMap<ConnId, Vec<u8>> = Default::default();
    let mut count = 0;
    loop {
        for event in held.drain(..) {
            if let Event::Received { conn, buf } = event {
                count += buf.len as usize;
                got.entry(conn).or_default().extend_from_slice(rig.driver.bytes(&buf));
                rig.driver.release(buf);
            }
        }
        if count == 8 * data.len() {
            break;
        }
        rig.driver.wait(Some(rig.driver.now().plus_ms(1000)), &mut held);
        assert!(!held.is_empty(), "stuck at {count}");
    }
    assert!(got.values().all(|bytes| *bytes == data));
}

#[test]
fn pausing_a_receive_that_waits_for_buffers_ends_at_once() {
    let mut rig = Rig::with(Sizes { buffers: 1, buffer_bytes: 512, ..SIZES }, ShardId(0));
    let (mut a, first) = rig.connect();
    a.write_all(&[1; 2048]).unwrap();
    let held = rig.drain(50);
    rig.driver.pause_recv(first);
    rig.next(|_, e| matches!(e, Event::RecvEnded { why: RecvEnd::Paused, .. }).then_some(()));
    for event in held {
        if let Event::Received { buf, .. } = event {
            rig.driver.release(buf);
        }
    }
    assert!(rig.drain(30).is_empty());
    rig.driver.resume_recv(first);
    rig.receive(first, 2048 - 512);
}

#[test]
fn full_table_accepts_again_after_a_close() {
    let mut rig = Rig::with(Sizes { connections: 2, ..SIZES }, ShardId(0));
    let slots = 2 + DESCRIPTORS_SPARE;
    assert_eq!(rig.driver.connections_max(), 2);
    let mut open: Vec<_> = (0..slots).map(|_| rig.connect()).collect();
    let mut refused = TcpStream::connect(rig.addr).unwrap();
    rig.drain(50);
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0, "closed by the kernel");
    assert_eq!(rig.driver.counters().accept_failures, 1);
    let waiting = TcpStream::connect(rig.addr).unwrap();
    assert!(rig.drain(150).is_empty());
    let (_, conn) = open.pop().unwrap();
    rig.driver.close(conn);
    rig.closed(conn);
    let conn = rig.accept();
    rig.driver.send(conn, &mut vec![frames(b"hello".to_vec())]);
    rig.drain(10);
    let mut got = [0; 5];
    (&waiting).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn reset_peer_is_reported_and_can_be_closed() {
    let mut rig = Rig::new();
    let (client, conn) = rig.connect();
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    rig.next(|_, e| match e {
        Event::RecvEnded { why, .. } => {
            assert_eq!(*why, RecvEnd::Failed(libc::ECONNRESET));
            Some(())
        }
        _ => None,
    });
    rig.driver.send(conn, &mut vec![frames(vec![1; 10])]);
    rig.next(|_, e| match e {
        Event::Sent { result, .. } => {
            assert_eq!(*result, Err(libc::EPIPE));
            Some(())
        }
        _ => None,
    });
    rig.driver.close(conn);
    rig.closed(conn);
}

#[test]
fn shutdown_comes_after_the_write_in_flight() {
    let mut rig = Rig::new();
    let (mut client, conn) = rig.connect();
    let data = pattern(4 << 20);
    rig.driver.send(conn, &mut vec![frames(data.clone())]);
    rig.driver.shutdown_write(conn);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got
    });
    rig.next(|_, e| matches!(e, Event::Sent { result: Ok(()), .. }).then_some(()));
    rig.next(|_, e| matches!(e, Event::RecvEnded { why: RecvEnd::Eof, .. }).then_some(()));
    assert!(reader.join().unwrap() == data);
    rig.driver.shutdown_write(conn);
    rig.driver.close(conn);
    rig.closed(conn);
}

#[test]
fn stopped_acceptor_refuses_clients() {
    let mut rig = Rig::new();
    let (_client, _conn) = rig.connect();
    rig.driver.stop_accepting();
    rig.drain(50);
    let error = TcpStream::connect(rig.addr).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
}

#[test]
fn completions_beyond_the_queue_are_not_lost() {
    // Far more finished writes than entries, reaped late.
    let mut rig = Rig::new();
    let (mut client, conn) = rig.connect();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got.len()
    });
    let missing = SegmentNumber(99);
    for token in 0..20_000 {
        rig.driver.read_log(token, missing, 0, LOG_BLOCK);
    }
    for _ in 0..20_000 {
        // Each wake-up of this shard by a message leaves a completion.
        rig.driver.push_nop_for_test();
    }
    let mut seen = 0;
    while seen < 20_000 {
        rig.driver.wait(Some(Nanos(0)), &mut rig.events);
        seen += rig.events.drain(..).filter(|e| matches!(e, Event::LogRead { .. })).count();
    }
    while rig.driver.counters().cqes < 20_000 {
        rig.driver.wait(Some(Nanos(0)), &mut rig.events);
    }
    assert!(rig.driver.counters().cq_overflows > 0);
    rig.driver.send(conn, &mut vec![frames(vec![7; 1000])]);
    rig.next(|_, e| matches!(e, Event::Sent { result: Ok(()), .. }).then_some(()));
    rig.driver.close(conn);
    rig.closed(conn);
    assert_eq!(reader.join().unwrap(), 1000);
}

fn job_done(rig: &mut Rig) -> (Job, Result<(), i32>) {
    rig.next(|_, e| {
        if let Event::JobDone { job, result } = e { Some((job.clone(), *result)) } else { None }
    })
}

#[test]
fn segment_is_created_written_read_and_removed() {
    let mut rig = Rig::new();
    let number = SegmentNumber(7);
    // Not a multiple of the piece in which zeros are written.
    let bytes = (3 << 20) + 8192;
    let create = Job::CreateSegment { number, salt: 1, bytes };
    rig.driver.start_job(create.clone());
    assert_eq!(job_done(&mut rig), (create, Ok(())));
    let path = segment_path(rig.dir.path(), number);
    let file = std::fs::read(&path).unwrap();
    assert_eq!(file.len() as u64, bytes);
    assert!(file[..LOG_BLOCK].iter().all(|&b| b == 0xAB));
    assert!(file[LOG_BLOCK..].iter().all(|&b| b == 0));
    assert!(!path.with_extension("tmp").exists());

    let mut buf = LogBuf::with_capacity(3 * LOG_BLOCK);
    buf.set_len(2 * LOG_BLOCK);
    buf.as_mut_slice().fill(0x5A);
    let address = buf.as_slice().as_ptr();
    rig.driver.write_log(number, 4 * LOG_BLOCK as u64, buf);
    let back = rig.next(|_, e| match e {
        Event::LogWritten { result, buf } => {
            result.unwrap();
            Some(buf.as_slice().as_ptr())
        }
        _ => None,
    });
    assert_eq!(back, address);
    rig.driver.read_log(42, number, 3 * LOG_BLOCK as u64, 4 * LOG_BLOCK);
    rig.next(|_, e| match e {
        Event::LogRead { token: 42, result } => {
            let read = result.as_ref().unwrap().as_slice();
            assert_eq!(read.len(), 4 * LOG_BLOCK);
            assert!(read[..LOG_BLOCK].iter().all(|&b| b == 0));
            assert!(read[LOG_BLOCK..3 * LOG_BLOCK].iter().all(|&b| b == 0x5A));
            assert!(read[3 * LOG_BLOCK..].iter().all(|&b| b == 0));
            Some(())
        }
        _ => None,
    });
    rig.driver.read_log(43, number, bytes - LOG_BLOCK as u64, 4 * LOG_BLOCK);
    rig.next(|_, e| match e {
        Event::LogRead { token: 43, result } => {
            assert_eq!(result.as_ref().unwrap().len(), LOG_BLOCK);
            Some(())
        }
        _ => None,
    });
    let remove = Job::RemoveSegments { numbers: vec![number, SegmentNumber(8)] };
    rig.driver.start_job(remove.clone());
    assert_eq!(job_done(&mut rig), (remove, Ok(())));
    assert!(!path.exists());
}

#[test]
fn errors_of_the_log_come_back_as_errno() {
    let mut rig = Rig::new();
    let mut buf = LogBuf::with_capacity(LOG_BLOCK);
    buf.set_len(LOG_BLOCK);
    rig.driver.write_log(SegmentNumber(1), 0, buf);
    rig.next(|_, e| match e {
        Event::LogWritten { result, .. } => {
            assert_eq!(*result, Err(libc::ENOENT));
            Some(())
        }
        _ => None,
    });
    // Larger than any file system here.
    let job = Job::CreateSegment { number: SegmentNumber(1), salt: 0, bytes: 1 << 43 };
    rig.driver.start_job(job);
    assert_eq!(job_done(&mut rig).1, Err(libc::ENOSPC));
    assert_eq!(std::fs::read_dir(rig.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_driver_that_looks_again_sees_what_comes_and_sleeps_when_its_time_is_over() {
    let mut rig = Rig::new();
    rig.driver.wait(Some(Nanos(0)), &mut rig.events);
    rig.driver.spin_ns = 50_000_000;
    let (start, enters) = (Instant::now(), rig.driver.counters().enters);
    rig.driver.wait(Some(rig.driver.now().plus_ms(200)), &mut rig.events);
    assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    let enters = rig.driver.counters().enters - enters;
    assert!(enters <= 4, "looking took {enters} system calls");

    rig.driver.spin_ns = 20_000_000_000;
    let waker = rig.driver.waker();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        waker.wake();
    });
    let start = Instant::now();
    rig.driver.wait(None, &mut rig.events);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    other.join().unwrap();
}

#[test]
fn waker_of_another_thread_ends_a_wait_without_deadline() {
    let mut rig = Rig::new();
    rig.drain(10);
    for _ in 0..3 {
        let waker = rig.driver.waker();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            waker.wake();
        });
        rig.driver.wait(None, &mut rig.events);
        assert!(start.elapsed() >= Duration::from_millis(45));
        thread.join().unwrap();
    }
    assert!(rig.events.is_empty());
}

#[test]
fn shard_wakes_another_by_its_ring() {
    let (send_fd, fd) = channel();
    let (send_done, done) = channel::<()>();
    let sleeper = std::thread::spawn(move || {
        let mut rig = Rig::with(SIZES, ShardId(1));
        rig.drain(10);
        send_fd.send((rig.driver.ring_fd().unwrap(), Instant::now())).unwrap();
        rig.driver.wait(None, &mut rig.events);
        let woken = Instant::now();
        assert!(rig.events.is_empty());
        done.recv().unwrap();
        woken
    });
    let (fd, asleep) = fd.recv().unwrap();
    let mut rig = Rig::new();
    let own = rig.driver.ring_fd().unwrap();
    rig.driver.set_peers(vec![own, fd]);
    // Neither an unknown shard nor the own one is a mistake.
    rig.driver.wake(ShardId(0));
    rig.driver.wake(ShardId(9));
    rig.drain(100);
    rig.driver.wake(ShardId(1));
    rig.driver.wait(Some(Nanos(0)), &mut rig.events);
    send_done.send(()).unwrap();
    assert!(sleeper.join().unwrap() - asleep >= Duration::from_millis(90));
}

#[test]
fn idle_wait_uses_no_processor() {
    let mut rig = Rig::new();
    let clients: Vec<_> = (0..16).map(|_| rig.connect()).collect();
    rig.drain(20);
    let waker = rig.driver.waker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        waker.wake();
    });
    let (cpu, enters) = (thread_cpu(), rig.driver.counters().enters);
    rig.driver.wait(None, &mut rig.events);
    assert!(thread_cpu() - cpu < Duration::from_millis(5));
    assert_eq!(rig.driver.counters().enters, enters + 1);
    thread.join().unwrap();
    drop(clients);
}

/// Processor time in clock ticks and voluntary switches of the threads named `name`.
fn thread_stats(name: &str) -> Vec<(u64, u64)> {
    let mut stats = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim() != name {
            continue;
        }
        let stat = read("stat");
        let fields: Vec<_> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
        let ticks = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
        let status = read("status");
        let switches =
            status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        stats.push((ticks, switches.trim().parse().unwrap()));
    }
    stats.sort_unstable();
    stats
}

#[test]
fn idle_cold_executor_does_not_wake_up() {
    // Other tests have cold executors of their own, so this one runs in its own process.
    if std::env::var_os("FANFARE_COLD_IDLE").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ring::tests::idle_cold_executor_does_not_wake_up"])
            .env("FANFARE_COLD_IDLE", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut rig = Rig::new();
    for round in 0..3 {
        let job = Job::CreateSegment { number: SegmentNumber(round + 1), salt: 0, bytes: 1 << 20 };
        let start = Instant::now();
        rig.driver.start_job(job);
        assert_eq!(job_done(&mut rig).1, Ok(()));
        // A foreign wake that got lost would show as a job that waits for something else.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(200));
        let before = thread_stats("cold");
        // Its own thread and the one that glommio keeps for blocking calls.
        assert!(!before.is_empty());
        std::thread::sleep(Duration::from_millis(500));
        let after = thread_stats("cold");
        assert_eq!(before, after);
    }
}

#[test]
fn wait_with_nothing_to_do_makes_no_call() {
    let mut rig = Rig::new();
    rig.drain(20);
    let enters = rig.driver.counters().enters;
    for _ in 0..100 {
        rig.driver.wait(Some(Nanos(0)), &mut rig.events);
    }
    assert_eq!(rig.driver.counters().enters, enters);
}

#[test]
fn deadline_ends_a_wait() {
    let mut rig = Rig::new();
    rig.drain(10);
    let until = rig.driver.now().plus_ms(30);
    rig.driver.wait(Some(until), &mut rig.events);
    assert!(rig.driver.now() >= until);
    assert!(rig.driver.now().since(until) < 20_000_000);
}

#[test]
fn connections_come_from_every_listener_until_all_have_stopped() {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let sizes = Sizes { connections: 4, ..SIZES };
    let mut rig = Rig::on(listeners, sizes, ShardId(0));
    let mut open = Vec::new();
    for addr in addrs.iter().cycle().take(9) {
        open.push((TcpStream::connect(addr).unwrap(), rig.accept()));
    }
    // A full table ends the accepts and drops who came; a close arms all of them again.
    let spare = crate::limits::DESCRIPTORS_SPARE + 4 - open.len();
    for _ in 0..spare {
        open.push((TcpStream::connect(addrs[0]).unwrap(), rig.accept()));
    }
    let _dropped: Vec<_> = addrs.iter().map(|addr| TcpStream::connect(addr).unwrap()).collect();
    assert!(!rig.drain(50).iter().any(|e| matches!(e, Event::Accepted { .. })));
    for (_, conn) in open.drain(..3) {
        rig.driver.close(conn);
    }
    rig.drain(50);
    for addr in &addrs {
        open.push((TcpStream::connect(addr).unwrap(), rig.accept()));
    }
    rig.driver.stop_accepting();
    rig.drain(50);
    for addr in addrs {
        assert!(TcpStream::connect(addr).is_err());
    }
}

#[test]
fn dropped_driver_has_let_go_of_address_and_sockets() {
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..SIZES.connections).map(|_| rig.connect().0).collect();
    let addr = rig.addr;
    drop(rig);
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
    let error = TcpStream::connect(addr).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
}

#[test]
fn driver_dropped_with_writes_in_flight_leaves_memory_alone() {
    for _ in 0..3 {
        let mut rig = Rig::new();
        let (_client, conn) = rig.connect();
        rig.driver.send(conn, &mut vec![frames(vec![0; 64 << 20])]);
        rig.driver.start_job(Job::CreateSegment {
            number: SegmentNumber(1),
            salt: 0,
            bytes: 1 << 20,
        });
        assert_eq!(job_done(&mut rig).1, Ok(()));
        let mut buf = LogBuf::with_capacity(1 << 19);
        buf.set_len(1 << 19);
        rig.driver.write_log(SegmentNumber(1), 0, buf);
        rig.driver.wait(Some(Nanos(0)), &mut rig.events);
    }
}

#[test]
fn a_snapshot_written_in_pieces_is_whole_and_takes_the_place_of_older_ones() {
    let mut rig = Rig::new();
    let older = rig.dir.path().join("snap-00000000000000000007.snap");
    std::fs::write(&older, b"old").unwrap();
    let pieces: Vec<bytes::Bytes> =
        (1..=3u8).map(|n| vec![n; 100_000 + usize::from(n)].into()).collect();
    let mut at = 0;
    for (n, bytes) in pieces.iter().enumerate() {
        let bytes = bytes.clone();
        let len = bytes.len() as u64;
        let job = match n {
            2 => {
                let (covered, obsolete) = (CommitNumber(9), vec![CommitNumber(7)]);
                Job::EndSnapshot { covered, at, bytes, obsolete }
            }
            _ => Job::WriteSnapshot { at, bytes },
        };
        rig.driver.start_job(job.clone());
        let result = rig.next(|_, event| match event {
            Event::JobDone { job: done, result } if *done == job => Some(*result),
            _ => None,
        });
        assert_eq!(result, Ok(()));
        at += len;
    }
    let names: Vec<_> = std::fs::read_dir(rig.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["snap-00000000000000000009.snap"]);
    let file = std::fs::read(rig.dir.path().join(&names[0])).unwrap();
    assert!(file == pieces.concat());
}
