//! The physical limit: how fast one core writes the same bytes to the same load generator by
//! raw io_uring SENDs, with the ring flags, descriptors and slices of the engine and nothing
//! else. It speaks just enough of the protocol for one group; nothing is durable, limited or
//! timed. Several rings share the core, as shards of the engine do, when one table of descriptors
//! is too small for all members: a message then costs one hand-over for each other ring.
//!
//! `cargo bench --bench floor -- --listen 127.0.0.1:7401 --core 0`

use std::collections::HashMap;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use fanfare::config::ShardConfig;
use fanfare::limits::{FRAME_MAX, SENDS_PER_TURN};
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::ring::{BareEvent, BareRing, Waker};
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
    /// Most connections of each ring.
    #[arg(long, default_value_t = 16_384)]
    connections: u32,
    /// Rings, each with a thread, a listener and members of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    rings: u16,
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

/// The place of the newest message of the group.
#[derive(Clone, Copy, Default)]
struct Newest {
    seq: Seq,
    stamp: Stamp,
}

/// What all rings share, and each one's way to the others.
struct Others {
    newest: Arc<Mutex<Newest>>,
    /// Messages of other rings, encoded, in their order.
    inbox: Receiver<Arc<[u8]>>,
    rings: Vec<(Sender<Arc<[u8]>>, Waker)>,
    /// They have to be woken at the end of this round.
    wake: bool,
}

struct Floor {
    clients: HashMap<u32, Client>,
    /// Of what this ring has.
    newest: Newest,
    handle: Handle,
    round: Round,
    limits: ShardConfig,
    others: Option<Others>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let Some(listen) = args.listen else {
        println!("floor: give --listen ADDRESS and point loadgen at it");
        return Ok(());
    };
    core_affinity::set_for_current(core_affinity::CoreId { id: args.core });
    let stop = Arc::new(AtomicBool::new(false));
    let newest = Arc::new(Mutex::new(Newest::default()));
    let mut threads = Vec::new();
    // Rings are made on their threads, which inherit the core; then each gets to know the others.
    for nth in 0..args.rings {
        let (hello_in, hello) = channel();
        let (others_in, others) = channel();
        let listener = listener(listen, &ShardConfig::default(), args.rings > 1)?;
        let (connections, stop) = (args.connections, stop.clone());
        let run = move || serve(listener, connections, &stop, &hello_in, &others);
        let thread = std::thread::Builder::new().name(format!("ring-{nth}")).spawn(run)?;
        threads.push((thread, hello.recv()??, others_in));
    }
    let wakers: Vec<Waker> = threads.iter().map(|(_, waker, _)| waker.clone()).collect();
    let (inboxes, receivers): (Vec<_>, Vec<_>) = (0..args.rings).map(|_| channel()).unzip();
    for (nth, inbox) in receivers.into_iter().enumerate() {
        let rings = inboxes.iter().cloned().zip(wakers.iter().cloned()).enumerate();
        let rings = rings.filter(|(other, _)| *other != nth).map(|(_, ring)| ring).collect();
        let newest = newest.clone();
        let others = (args.rings > 1).then_some(Others { newest, inbox, rings, wake: false });
        threads[nth].2.send(others)?;
    }
    stop_on_signal(stop, wakers)?;
    println!("floor: listening on {listen}, core {}, rings: {}", args.core, args.rings);
    let mut writes = 0;
    for (thread, ..) in threads {
        writes += thread.join().map_err(|_| "a ring's thread panicked")?;
    }
    println!("floor: stopped; writes={writes}");
    Ok(())
}

/// A ring from start to end; returns its writes.
fn serve(
    listener: TcpListener,
    connections: u32,
    stop: &AtomicBool,
    hello: &Sender<std::io::Result<Waker>>,
    others: &Receiver<Option<Others>>,
) -> u64 {
    let limits = ShardConfig::default();
    let made = BareRing::new(listener, connections, limits.recv_buffers, limits.recv_buffer_bytes);
    let mut ring = match made {
        Ok(ring) => ring,
        Err(error) => {
            let _ = hello.send(Err(error));
            return 0;
        }
    };
    let _ = hello.send(Ok(ring.waker()));
    let Ok(others) = others.recv() else { return 0 };
    let mut floor = Floor {
        clients: HashMap::new(),
        newest: Newest::default(),
        handle: Handle::new(ShardId(0), EPOCH, 1),
        round: Round::default(),
        limits,
        others,
    };
    while !stop.load(Ordering::Relaxed) {
        let block = !ring.has_work();
        ring.wait(block, &mut |event| floor.take(event));
        floor.answer(&mut ring);
        ring.write(SENDS_PER_TURN);
    }
    ring.writes
}

/// A listener like the engine's; accepted sockets inherit its options.
fn listener(
    addr: SocketAddr,
    limits: &ShardConfig,
    one_of_many: bool,
) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(one_of_many)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(limits.socket_send_buffer as usize)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn stop_on_signal(stop: Arc<AtomicBool>, wakers: Vec<Waker>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop.store(true, Ordering::Relaxed);
            wakers.iter().for_each(Waker::wake);
        }
    })?;
    Ok(())
}

impl Newest {
    fn next(self) -> Self {
        Self { seq: self.seq.next(), stamp: self.stamp.tick(wall_ms()) }
    }
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
                        head: self.newest.seq,
                        group: entry.group,
                        first: self.newest.seq.next(),
                        cursor: Seq(0),
                    };
                    joined.encode(&mut reply);
                    let (epoch, handle, first) = (EPOCH, self.handle, joined.first);
                    EpochStart { epoch, handle, first }.encode(&mut reply);
                }
            }
            ClientFrame::Publish(publish) => {
                self.publish(&client.member, publish.payload);
                let published = Published {
                    request: publish.request,
                    epoch: EPOCH,
                    handle: self.handle,
                    producer_seq: publish.producer_seq,
                    seq: self.newest.seq,
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

    /// Gives a message its place and encodes it, for this ring and for the others.
    fn publish(&mut self, sender: &[u8], payload: &[u8]) {
        let Some(mut others) = self.others.take() else {
            self.newest = self.newest.next();
            self.encode(sender, payload);
            return;
        };
        let shared = others.newest.clone();
        // Held until all rings have the message, so that all have the same order.
        let mut newest = shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_over(&others);
        *newest = newest.next();
        self.newest = *newest;
        let before = self.round.shared.len();
        self.encode(sender, payload);
        let message: Arc<[u8]> = self.round.shared[before..].into();
        for (ring, _) in &others.rings {
            let _ = ring.send(message.clone());
        }
        others.wake = true;
        self.others = Some(others);
    }

    fn encode(&mut self, sender: &[u8], payload: &[u8]) {
        let Newest { seq, stamp } = self.newest;
        let (handle, node, shard) = (self.handle, NodeId(1), ShardId(0));
        let deliver = Deliver { handle, seq, stamp, node, shard, sender, payload };
        deliver.encode(&mut self.round.shared);
    }

    /// What other rings published until now.
    fn take_over(&mut self, others: &Others) {
        for message in others.inbox.try_iter() {
            self.round.shared.extend_from_slice(&message);
            self.newest.seq = self.newest.seq.next();
        }
    }

    /// Hands the round to the ring; replies go first.
    fn answer(&mut self, ring: &mut BareRing) {
        if let Some(mut others) = self.others.take() {
            self.take_over(&others);
            if std::mem::take(&mut others.wake) {
                others.rings.iter().for_each(|(_, waker)| waker.wake());
            }
            self.others = Some(others);
        }
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
            producer_ttl_ms: 0,
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}
