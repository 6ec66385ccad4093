//! The physical limit: how fast one core writes the same bytes to the same load generator by
//! raw io_uring SENDs, with the ring flags, descriptors and slices of the engine and nothing
//! else. It speaks just enough of the protocol for one group; nothing is durable, limited or
//! timed.
//!
//! `cargo bench --bench floor -- --listen 127.0.0.1:7401 --core 0`

use std::collections::HashMap;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use fanfare::config::ShardConfig;
use fanfare::limits::{FRAME_MAX, SENDS_PER_TURN};
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::ring::{BareEvent, BareRing};
use fanfare::wire::{
    self, ClientFrame, Deliver, EpochStart, Joined, Published, ServerFrame, Welcome,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use socket2::{Domain, Socket, Type};

const EPOCH: Epoch = Epoch(1);
const BACKLOG: i32 = 4096;

/// The leanest possible broadcaster, as a server for loadgen.
#[derive(Parser)]
struct Args {
    /// Address to listen on; without one nothing is done.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Core to run on.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Most connections.
    #[arg(long, default_value_t = 16_384)]
    connections: u32,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A connection before and after HELLO.
#[derive(Default)]
struct Client {
    greeted: bool,
    member: Vec<u8>,
    /// The start of a frame that has not come whole.
    partial: Vec<u8>,
}

/// What clients asked for in one look at the input. The ring cannot be touched while it
/// reports, and everything read at once is encoded at once.
#[derive(Default)]
struct Round {
    /// Who joined, and how much of `shared` is of before that.
    joins: Vec<(u32, usize)>,
    replies: Vec<(u32, Vec<u8>)>,
    shared: Vec<u8>,
}

struct Floor {
    clients: HashMap<u32, Client>,
    seq: Seq,
    stamp: Stamp,
    handle: Handle,
    round: Round,
    limits: ShardConfig,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let Some(listen) = args.listen else {
        println!("floor: give --listen ADDRESS and point loadgen at it");
        return Ok(());
    };
    core_affinity::set_for_current(core_affinity::CoreId { id: args.core });
    let limits = ShardConfig::default();
    let listener = listener(listen, &limits)?;
    let mut ring =
        BareRing::new(listener, args.connections, limits.recv_buffers, limits.recv_buffer_bytes)?;
    let stop = stop_on_signal(&ring)?;
    println!("floor: listening on {listen}, core {}", args.core);
    let mut floor = Floor {
        clients: HashMap::new(),
        seq: Seq(0),
        stamp: Stamp::default(),
        handle: Handle::new(ShardId(0), EPOCH, 1),
        round: Round::default(),
        limits,
    };
    while !stop.load(Ordering::Relaxed) {
        let block = !ring.has_work();
        ring.wait(block, &mut |event| floor.take(event));
        floor.answer(&mut ring);
        ring.write(SENDS_PER_TURN);
    }
    println!("floor: {} messages, {} writes", floor.seq, ring.writes);
    Ok(())
}

/// A listener like the engine's; accepted sockets inherit its options.
fn listener(addr: SocketAddr, limits: &ShardConfig) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(limits.socket_send_buffer as usize)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn stop_on_signal(ring: &BareRing) -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (set, waker) = (stop.clone(), ring.waker());
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            set.store(true, Ordering::Relaxed);
            waker.wake();
        }
    })?;
    Ok(stop)
}

impl Floor {
    fn take(&mut self, event: BareEvent<'_>) {
        match event {
            BareEvent::Accepted { slot } => {
                self.clients.insert(slot, Client::default());
            }
            BareEvent::Closed { slot } => {
                self.clients.remove(&slot);
            }
            BareEvent::Received { slot, bytes } => {
                let Some(mut client) = self.clients.remove(&slot) else { return };
                if client.partial.is_empty() {
                    let used = self.frames(slot, &mut client, bytes);
                    client.partial.extend_from_slice(&bytes[used..]);
                } else {
                    let mut all = std::mem::take(&mut client.partial);
                    all.extend_from_slice(bytes);
                    let used = self.frames(slot, &mut client, &all);
                    all.drain(..used);
                    client.partial = all;
                }
                self.clients.insert(slot, client);
            }
        }
    }

    /// Handles the whole frames in `bytes`; returns how many bytes they took.
    fn frames(&mut self, slot: u32, client: &mut Client, bytes: &[u8]) -> usize {
        let mut used = 0;
        if !client.greeted {
            if bytes.len() < wire::MAGIC.len() {
                return 0;
            }
            client.greeted = true;
            used = wire::MAGIC.len();
        }
        while let Ok(Some((frame, len))) = wire::split(&bytes[used..], FRAME_MAX) {
            used += len;
            if let Ok(frame) = ClientFrame::decode(frame) {
                self.frame(slot, client, frame);
            }
        }
        used
    }

    fn frame(&mut self, slot: u32, client: &mut Client, frame: ClientFrame<'_>) {
        let mut reply = Vec::new();
        match frame {
            ClientFrame::Hello(hello) => {
                client.member = hello.member.to_vec();
                self.welcome().encode(&mut reply);
            }
            ClientFrame::Join(join) => {
                self.round.joins.push((slot, self.round.shared.len()));
                for entry in join.entries() {
                    let joined = Joined {
                        request: join.request,
                        epoch: EPOCH,
                        handle: self.handle,
                        head: self.seq,
                        group: entry.group,
                        first: self.seq.next(),
                        cursor: Seq(0),
                    };
                    joined.encode(&mut reply);
                    let (epoch, handle, first) = (EPOCH, self.handle, joined.first);
                    EpochStart { epoch, handle, first }.encode(&mut reply);
                }
            }
            ClientFrame::Publish(publish) => {
                self.seq = self.seq.next();
                self.stamp = self.stamp.tick(wall_ms());
                let deliver = Deliver {
                    handle: self.handle,
                    seq: self.seq,
                    stamp: self.stamp,
                    node: NodeId(1),
                    shard: ShardId(0),
                    sender: &client.member,
                    payload: publish.payload,
                };
                deliver.encode(&mut self.round.shared);
                let published = Published {
                    request: publish.request,
                    epoch: EPOCH,
                    handle: self.handle,
                    producer_seq: publish.producer_seq,
                    seq: self.seq,
                    level: Level::Memory,
                };
                published.encode(&mut reply);
            }
            ClientFrame::Ping { token } => ServerFrame::encode_pong(&mut reply, token),
            _ => {}
        }
        match self.round.replies.last_mut() {
            Some((last, bytes)) if *last == slot => bytes.extend_from_slice(&reply),
            _ if reply.is_empty() => {}
            _ => self.round.replies.push((slot, reply)),
        }
    }

    /// Hands the round to the ring; replies go first.
    fn answer(&mut self, ring: &mut BareRing) {
        for (slot, bytes) in self.round.replies.drain(..) {
            ring.reply(slot, &bytes);
        }
        for (slot, before) in self.round.joins.drain(..) {
            ring.join(slot, before);
        }
        if !self.round.shared.is_empty() {
            if !ring.broadcast(&self.round.shared) {
                eprintln!("floor: a member is more than the shared buffer behind; lost messages");
            }
            self.round.shared.clear();
        }
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: wire::VERSION,
            node: NodeId(1),
            shard: ShardId(0),
            heartbeat_ms: 0,
            payload_max: self.limits.payload_max,
            frame_max: self.limits.frame_max() as u32,
            groups_per_member_max: 1,
            ack_every: self.limits.ack_every,
            ack_interval_ms: self.limits.ack_interval_ms,
            ack_timeout_ms: self.limits.ack_timeout_ms,
            publish_window: self.limits.publish_window,
            heartbeat_slot_ms: 0,
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}
