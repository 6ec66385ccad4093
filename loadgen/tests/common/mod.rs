//! A broadcaster in this process that keeps the protocol, or breaks it in one chosen way.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod peers;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fanfare::limits::FRAME_MAX;
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{
    Ack, ClientFrame, Deliver, EpochStart, ErrorCode, ErrorFrame, Gap, GapReason, JoinEntry,
    Joined, Publish, Published, Receipt, ServerFrame, Start, Welcome, split,
};

/// The message at which a fault happens: late enough that all is in motion.
pub const AT: u64 = 20;
/// The member that is hit by faults that hit one.
pub const VICTIM: &[u8] = b"m000003";

/// What goes wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// One member does not get a message.
    Lose,
    /// One member does not get the last messages.
    LoseTheRest,
    /// One member gets a message twice.
    Duplicate,
    /// One member gets two messages in the other order.
    Reorder,
    /// One member gets a message with a flipped bit.
    Corrupt,
    /// Nobody gets a message, and its number is given to the next one.
    LoseForAll,
    /// Everybody gets a message twice, under two numbers.
    DuplicateForAll,
    /// Everybody gets a message with a flipped bit.
    CorruptForAll,
    /// Everybody gets a stamp that goes back.
    StampBack,
    /// Two messages of one publisher change places for everybody.
    ReorderForAll,
    /// Half of the members get two messages in the other order, under right numbers.
    TwoOrders,
    /// PUBLISHED names another number than DELIVER.
    WrongSeq,
    /// PUBLISHED does not come.
    NoAnswer,
    /// PUBLISHED comes twice.
    TwoAnswers,
    /// PUBLISHED says memory.
    WrongLevel,
    /// A RECEIPT does not come.
    NoReceipt,
    /// A RECEIPT comes before the members have acknowledged.
    EarlyReceipt,
    /// The publish gets an ERROR.
    Refuse,
    /// One member is told of a gap.
    Gap,
    /// One member's connection is closed.
    Close,
    /// One member gets bytes that are no frames.
    Garbage,
    /// The first connection gets an ERROR.
    RefuseHello,
    /// One member does not get the first message of those that it missed.
    ForgetWhileAway,
    /// Every message takes [`DELAY`], every tenth [`LONG_DELAY`].
    KnownDelays,
    /// The whole server stands still for [`STALL`].
    Stall,
}

/// See [`Fault::KnownDelays`].
pub const DELAY: Duration = Duration::from_millis(10);
/// See [`Fault::KnownDelays`].
pub const LONG_DELAY: Duration = Duration::from_millis(30);
/// See [`Fault::Stall`].
pub const STALL: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Group {
    handle: u64,
    seq: u64,
    messages: u64,
    members: Vec<(Vec<u8>, Sender<Vec<u8>>)>,
    held: Option<(Vec<u8>, Vec<u8>)>,
    /// Every message, for members that come back.
    log: Vec<(u64, Vec<u8>)>,
    acked: HashMap<Vec<u8>, u64>,
    receipts: Vec<Wanted>,
}

/// A receipt that waits for acknowledgements.
struct Wanted {
    seq: u64,
    producer_seq: u64,
    percent: u8,
    late: bool,
    out: Sender<Vec<u8>>,
}

struct Hub {
    fault: Fault,
    stamp: u64,
    groups: HashMap<Vec<u8>, Group>,
}

/// Starts a broadcaster. It writes in pieces of at most `piece` bytes (0: as they come).
pub fn broadcaster(fault: Fault, piece: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let hub = Arc::new(Mutex::new(Hub { fault, stamp: 1, groups: HashMap::new() }));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let hub = Arc::clone(&hub);
            thread::spawn(move || serve(stream, &hub, piece));
        }
    });
    addr
}

fn serve(mut stream: TcpStream, hub: &Mutex<Hub>, piece: usize) {
    let out = writer(stream.try_clone().unwrap(), piece);
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut member = Vec::new();
    let mut magic = false;
    loop {
        let Ok(n @ 1..) = stream.read(&mut chunk) else { return };
        buffer.extend_from_slice(&chunk[..n]);
        if !magic && buffer.len() >= 4 {
            assert_eq!(buffer.drain(..4).collect::<Vec<_>>(), b"FNFR");
            magic = true;
        }
        while let Some((frame, len)) = split(&buffer, FRAME_MAX).unwrap() {
            let mut hub = hub.lock().unwrap();
            match ClientFrame::decode(frame).unwrap() {
                ClientFrame::Hello(hello) => {
                    member = hello.member.to_vec();
                    hub.welcome(&out);
                }
                ClientFrame::Join(join) => {
                    for entry in join.entries() {
                        hub.join(join.request, &entry, &member, &out);
                    }
                }
                ClientFrame::Publish(publish) => hub.publish(&member, &publish, &out),
                ClientFrame::Ping { token } => {
                    let mut pong = Vec::new();
                    ServerFrame::encode_pong(&mut pong, token);
                    out.send(pong).unwrap();
                }
                ClientFrame::QuietPing { .. } => {}
                ClientFrame::Ack(acks) => acks.entries().for_each(|ack| hub.ack(&member, &ack)),
                other => panic!("{other:?}"),
            }
            buffer.drain(..len);
        }
    }
}

/// A thread that writes what it is sent; an empty message closes the connection.
pub fn writer(mut stream: TcpStream, piece: usize) -> Sender<Vec<u8>> {
    stream.set_nodelay(true).unwrap();
    let (sender, receiver) = channel::<Vec<u8>>();
    thread::spawn(move || {
        let mut size = 0;
        for bytes in receiver {
            if bytes.is_empty() {
                stream.shutdown(std::net::Shutdown::Both).unwrap();
                return;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                size = if piece == 0 { rest.len() } else { size % piece + 1 };
                let (now, later) = rest.split_at(size.min(rest.len()));
                if stream.write_all(now).is_err() {
                    return;
                }
                rest = later;
            }
        }
    });
    sender
}

impl Hub {
    fn welcome(&self, out: &Sender<Vec<u8>>) {
        let mut frame = Vec::new();
        if self.fault == Fault::RefuseHello {
            ErrorFrame {
                request: 0,
                code: ErrorCode::TooManyConnections as u16,
                limit: 7,
                field: b"",
                text: b"no room for more than 7 connections",
            }
            .encode(&mut frame);
        } else {
            Welcome {
                version: 1,
                node: NodeId(1),
                shard: ShardId(0),
                // Short, so that PONGs come between messages.
                heartbeat_ms: 50,
                payload_max: 65_536,
                frame_max: 70_000,
                groups_per_member_max: 1000,
                ack_every: 100,
                ack_interval_ms: 50,
                ack_timeout_ms: 30_000,
                publish_window: 1024,
                heartbeat_slot_ms: 50,
                producer_ttl_ms: 0,
            }
            .encode(&mut frame);
        }
        out.send(frame).unwrap();
    }

    fn join(&mut self, request: u32, entry: &JoinEntry<'_>, member: &[u8], out: &Sender<Vec<u8>>) {
        let name = entry.group;
        let next = self.groups.len() as u64 + 1000;
        let group = self.groups.entry(name.to_vec()).or_insert_with(|| Group {
            handle: next,
            seq: 5,
            ..Group::default()
        });
        group.members.push((member.to_vec(), out.clone()));
        let mut frame = Vec::new();
        let (handle, head) = (Handle(group.handle), Seq(group.seq));
        let first = match entry.start {
            Start::Seq(seq) => seq,
            _ => head.next(),
        };
        let cursor = Seq(0);
        Joined { request, epoch: Epoch(1), handle, head, group: name, first, cursor }
            .encode(&mut frame);
        EpochStart { epoch: Epoch(1), handle, first }.encode(&mut frame);
        let missed = group.log.iter().filter(|(seq, _)| *seq >= first.0);
        let one_less = usize::from(self.fault == Fault::ForgetWhileAway && member == VICTIM);
        for (_, bytes) in missed.skip(one_less) {
            frame.extend_from_slice(bytes);
        }
        out.send(frame).unwrap();
    }

    fn publish(&mut self, sender: &[u8], p: &Publish<'_>, out: &Sender<Vec<u8>>) {
        self.stamp += 1;
        let (fault, stamp) = (self.fault, self.stamp);
        let group = self.groups.get_mut(p.group).unwrap();
        group.messages += 1;
        let hit = group.messages == AT;
        match fault {
            Fault::KnownDelays if group.messages.is_multiple_of(10) => thread::sleep(LONG_DELAY),
            Fault::KnownDelays => thread::sleep(DELAY),
            // Later than the others: past the warm-up at 200 messages/s.
            Fault::Stall if group.messages == 2 * AT => thread::sleep(STALL),
            _ => {}
        }
        let skipped = hit && fault == Fault::LoseForAll;
        if !skipped {
            group.seq += 1;
        }
        let deliver = Deliver {
            handle: Handle(group.handle),
            seq: Seq(group.seq),
            stamp: Stamp(if hit && fault == Fault::StampBack { 1 } else { stamp }),
            node: NodeId(1),
            shard: ShardId(0),
            sender,
            payload: p.payload,
        };
        if hit && fault == Fault::Refuse {
            let mut frame = Vec::new();
            ErrorFrame {
                request: p.request,
                code: ErrorCode::StorageFull as u16,
                limit: 0,
                field: b"",
                text: b"no room on disk",
            }
            .encode(&mut frame);
            out.send(frame).unwrap();
            group.seq -= 1;
            return;
        }
        group.answer(fault, hit, p, out);
        if p.receipt > 0 && !(hit && fault == Fault::NoReceipt) {
            group.receipts.push(Wanted {
                seq: group.seq,
                producer_seq: p.producer_seq,
                percent: p.receipt,
                late: !(hit && fault == Fault::EarlyReceipt),
                out: out.clone(),
            });
        }
        if skipped {
            return;
        }
        group.deliver(fault, hit, deliver);
        group.send_receipts();
    }

    fn ack(&mut self, member: &[u8], ack: &Ack) {
        let group = self.groups.values_mut().find(|group| group.handle == ack.handle.0).unwrap();
        assert!(ack.seq.0 <= group.seq && ack.epoch == Epoch(1));
        let before = group.acked.insert(member.to_vec(), ack.seq.0);
        assert!(before < Some(ack.seq.0), "an ACK that says nothing new");
        group.send_receipts();
    }
}

impl Group {
    fn send_receipts(&mut self) {
        let members = self.members.len() as u64;
        let acked = &self.acked;
        self.receipts.retain(|wanted| {
            let has = acked.values().filter(|seq| **seq >= wanted.seq).count() as u64;
            if wanted.late && has * 100 < members * u64::from(wanted.percent) {
                return true;
            }
            let mut frame = Vec::new();
            Receipt {
                handle: Handle(self.handle),
                seq: Seq(wanted.seq),
                producer_seq: wanted.producer_seq,
                epoch: Epoch(1),
                acked: has as u32,
                members: members as u32,
                percent: wanted.percent,
            }
            .encode(&mut frame);
            let _ = wanted.out.send(frame);
            false
        });
    }

    fn answer(&self, fault: Fault, hit: bool, p: &Publish<'_>, out: &Sender<Vec<u8>>) {
        if hit && fault == Fault::NoAnswer {
            return;
        }
        let wrong = u64::from(hit && fault == Fault::WrongSeq);
        let memory = hit && fault == Fault::WrongLevel;
        let mut frame = Vec::new();
        for _ in 0..1 + u8::from(hit && fault == Fault::TwoAnswers) {
            Published {
                request: p.request,
                epoch: Epoch(1),
                handle: Handle(self.handle),
                producer_seq: p.producer_seq,
                seq: Seq(self.seq + wrong),
                level: if memory { Level::Memory } else { Level::Durable },
            }
            .encode(&mut frame);
        }
        out.send(frame).unwrap();
    }

    fn deliver(&mut self, fault: Fault, hit: bool, deliver: Deliver<'_>) {
        let mut frame = encoded(&deliver);
        self.log.push((deliver.seq.0, frame.clone()));
        match fault {
            Fault::CorruptForAll if hit => *frame.last_mut().unwrap() ^= 1,
            Fault::DuplicateForAll if hit => {
                self.seq += 1;
                let stamp = Stamp(deliver.stamp.0 + 1);
                frame.extend(encoded(&Deliver { seq: Seq(self.seq), stamp, ..deliver }));
            }
            Fault::ReorderForAll | Fault::TwoOrders if hit => {
                self.held = Some((deliver.sender.to_vec(), deliver.payload.to_vec()));
                return;
            }
            _ => {}
        }
        let mut swapped = None;
        // Only messages of two publishers may come in either order.
        if fault == Fault::TwoOrders
            && let Some((sender, payload)) = self.held.take_if(|held| held.0 == deliver.sender)
        {
            self.held = Some((sender.clone(), deliver.payload.to_vec()));
            let (seq, stamp) = (Seq(deliver.seq.0 - 1), Stamp(deliver.stamp.0 - 1));
            frame = encoded(&Deliver { seq, stamp, payload: &payload, ..deliver });
        } else if let Some((sender, payload)) = self.held.take() {
            // Under the numbers and stamps of before, but with contents exchanged.
            let before = Deliver {
                seq: Seq(deliver.seq.0 - 1),
                stamp: Stamp(deliver.stamp.0 - 1),
                ..deliver
            };
            let after = Deliver { sender: &sender, payload: &payload, ..deliver };
            swapped = Some([encoded(&before), encoded(&after)].concat());
            let first = Deliver { seq: before.seq, stamp: before.stamp, ..after };
            frame = [encoded(&first), frame].concat();
        }
        for (member, out) in &self.members {
            // Odd members are all on one of two threads.
            let odd = member.last().unwrap() % 2 == 1;
            let exchanged = swapped.as_ref().filter(|_| odd || fault == Fault::ReorderForAll);
            let bytes = exchanged.unwrap_or(&frame).clone();
            if member == VICTIM {
                self.to_victim(fault, hit, bytes, &deliver, out);
            } else {
                let _ = out.send(bytes);
            }
        }
    }

    fn to_victim(
        &self,
        fault: Fault,
        hit: bool,
        mut bytes: Vec<u8>,
        deliver: &Deliver<'_>,
        out: &Sender<Vec<u8>>,
    ) {
        let after = self.messages > AT;
        match fault {
            Fault::Lose if hit => return,
            Fault::LoseTheRest if after => return,
            Fault::Duplicate if hit => bytes.extend_from_within(..),
            Fault::Corrupt if hit => *bytes.last_mut().unwrap() ^= 1,
            // The message after this one is the very next, so hold this back for it.
            Fault::Reorder if hit => return,
            Fault::Reorder if self.messages == AT + 1 => {
                let late = Deliver { seq: Seq(deliver.seq.0 - 1), ..*deliver };
                bytes.extend(encoded(&late));
            }
            Fault::Gap if hit => {
                bytes.clear();
                Gap {
                    handle: deliver.handle,
                    from: deliver.seq,
                    to: deliver.seq,
                    epoch: Epoch(1),
                    reason: GapReason::Retention,
                }
                .encode(&mut bytes);
            }
            Fault::Close if hit => bytes.clear(),
            Fault::Garbage if hit => bytes = vec![0xFF; 64],
            _ => {}
        }
        let _ = out.send(bytes);
    }
}

fn encoded(deliver: &Deliver<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    deliver.encode(&mut out);
    out
}

/// What a run said.
pub struct Run {
    pub code: i32,
    pub report: serde_json::Value,
    pub stderr: String,
}

impl Run {
    /// A quantile of a latency, in milliseconds.
    pub fn latency_ms(&self, what: &str, quantile: &str) -> f64 {
        let all = self.report["latency"].as_array().unwrap();
        let row = all.iter().find(|row| row["what"] == what).unwrap();
        row[quantile].as_f64().unwrap() / 1e3
    }

    /// Number of findings of a kind.
    pub fn found(&self, kind: &str) -> u64 {
        self.report["violations"][kind].as_u64().unwrap()
    }
}

/// Runs the program with `--json -`, on any core and for a short time.
pub fn loadgen(addr: SocketAddr, line: &str) -> Run {
    loadgen_for(addr, line, "300ms")
}

/// The same for `duration`, or until something is found.
pub fn loadgen_for(addr: SocketAddr, line: &str, duration: &str) -> Run {
    let output = command(&format!(
        "{line} --addr {addr} --json - --warmup 100ms --duration {duration} --drain-timeout 2s"
    ));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{stderr}");
    Run {
        code: output.status.code().unwrap(),
        report: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        stderr,
    }
}

/// Runs the program.
pub fn command(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(line.split_whitespace()).output().unwrap()
}
