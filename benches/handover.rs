//! A server takes over from another one while durable members read and publishers publish: how
//! long it takes until all are back, what it does to latencies, and that nothing is lost. Each
//! message that was answered is checked at each member: place, order and content. See
//! benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use fanfare::client::{Core, Event, Link, Membership, Options, PublishId, Reason};
use fanfare::position::Nanos;
use fanfare::ring::{ClientEvent, ClientRing};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use pairs::{Bench, Failure};

#[derive(Parser)]
struct Args {
    /// Durable members, each in one group.
    #[arg(long, default_value_t = 10_000)]
    members: usize,
    /// Groups.
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// Messages per second, over all groups.
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Seconds of load before the takeover, and after all are back.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Shards of both servers.
    #[arg(long, default_value_t = 2)]
    shards: u16,
    #[arg(long, default_value = "127.0.0.1:7471")]
    addr: SocketAddr,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

const PUBLISHERS: usize = 8;
const PAYLOAD: usize = 128;
/// This often the clocks of some clients are looked at: of each once in so many looks, since looking
/// at all of them takes longer than the rest of what they do.
const SWEEP: Duration = Duration::from_millis(2);
const SWEEPS: usize = 20;
/// Everybody must have everything this long after the load.
const SETTLE: Duration = Duration::from_secs(30);

/// A connection, or what is to become one again.
struct Client {
    core: Core,
    slot: Option<u32>,
    /// Messages that came, and a digest over their places and contents.
    got: u64,
    digest: u64,
    /// When it was in its group again after the takeover had begun.
    back: Option<Instant>,
    welcomed: bool,
}

/// What is kept of a publish until it is answered.
struct Sent {
    group: usize,
    number: u64,
}

struct Load {
    args: Args,
    begun: Instant,
    ring: ClientRing,
    /// Members, then publishers.
    clients: Vec<Client>,
    client_of_slot: Vec<usize>,
    sent: HashMap<(usize, PublishId), Sent>,
    /// By group: the number of the message at each place.
    places: Vec<Vec<u64>>,
    answered: u64,
    published: u64,
    /// When it was to be published, and how long it took: deliveries and answers.
    deliveries: Vec<(Duration, Duration)>,
    answers: Vec<(Duration, Duration)>,
    takeover: Option<Instant>,
    /// Which of [`SWEEPS`] shares of the clients was looked at last.
    swept: usize,
    drained: u64,
    broken: Vec<String>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let mut bench = Bench::alone(1, args.out.clone())?;
    let what = format!(
        "{} members in {} groups, {} messages/s, {} shards; servers and clients share all cores",
        args.members, args.groups, args.rate, args.shards
    );
    bench.title("A takeover under load", "handover", &[&what]);
    let data = tempfile::tempdir_in(pairs::target_folder()?)?;
    let mut predecessor = serve(&args, data.path(), "first.log", false)?;
    let mut load = Load::new(args)?;
    load.join_all()?;
    let stop = Arc::new(AtomicBool::new(false));
    let knocks = std::thread::spawn({
        let (addr, stop) = (load.args.addr, stop.clone());
        let mut core = Core::new(Options::new("knock"))?;
        core.connected(Nanos(1));
        let hello = core.take_output();
        move || knock(addr, &hello, &stop)
    });
    load.begun = Instant::now();
    let seconds = Duration::from_secs(load.args.seconds);
    load.run(|load| load.begun.elapsed() >= seconds)?;

    let takeover = Instant::now();
    load.takeover = Some(takeover);
    let mut successor = serve(&load.args, data.path(), "second.log", true)?;
    let mut ended = None;
    let members = load.args.members;
    load.run(|load| {
        if ended.is_none() && predecessor.has_ended() {
            ended = Some(takeover.elapsed());
        }
        load.clients[..members].iter().all(|member| member.back.is_some())
            || takeover.elapsed() > SETTLE
    })?;
    let all_back = Instant::now();
    load.run(|_| all_back.elapsed() >= seconds)?;
    let over = Instant::now();
    let rate = std::mem::take(&mut load.args.rate);
    load.run(|load| load.is_complete() || over.elapsed() > SETTLE)?;
    stop.store(true, Ordering::Relaxed);
    let (knocked, slowest, refused) = knocks.join().map_err(|_| "the knocking thread panicked")?;
    load.args.rate = rate;
    load.verify()?;

    let mut back: Vec<_> = load.clients[..members].iter().filter_map(|c| c.back).collect();
    back.sort_unstable();
    let at = |share: usize| back[(back.len() * share / 100).min(back.len() - 1)] - takeover;
    let ms = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    bench.say(&format!(
        "- predecessor: ended {} after the successor was started",
        ended.map_or("never".into(), ms)
    ));
    for (who, log) in [("predecessor", "first.log"), ("successor", "second.log")] {
        let log = std::fs::read_to_string(data.path().join(log))?;
        let lines = log
            .lines()
            .filter(|l| ["stopped;", "has stopped", "recovered;"].iter().any(|s| l.contains(s)));
        for line in lines {
            let text = line.split(": ").nth(1).unwrap_or(line);
            let took = line.split("took=").nth(1).unwrap_or("?").split_whitespace().next();
            let what = text.split(';').next().unwrap_or(text).trim();
            bench.say(&format!("- {who} says: {what}, took {}", took.unwrap_or("?")));
        }
    }
    bench.say(&format!(
        "- members back in their groups: half after {}, 90 % after {}, all {} after {}",
        ms(at(50)),
        ms(at(90)),
        back.len(),
        ms(at(100))
    ));
    bench.say(&format!(
        "- of {} connections that were made all the while {refused} were refused or broken; the slowest WELCOME took {}",
        knocked, ms(slowest)
    ));
    bench.say(&format!(
        "- {} messages answered and {} deliveries verified: none lost, none twice, all in order",
        load.answered,
        load.clients[..members].iter().map(|m| m.got).sum::<u64>()
    ));
    bench.say("\n| latency, ms | p50 | p99 | max | p50 of answers | p99 of answers |\n| --- | --- | --- | --- | --- | --- |");
    let (from, to) = (takeover - load.begun, all_back - load.begun);
    for (name, from, to) in [
        ("before", Duration::ZERO, from),
        ("from the start of the successor until all were back", from, to),
        ("after", to, Duration::MAX),
    ] {
        let [d50, d99, dmax] = percentiles(&load.deliveries, from, to);
        let [a50, a99, _] = percentiles(&load.answers, from, to);
        bench.say(&format!("| {name} | {d50:.1} | {d99:.1} | {dmax:.1} | {a50:.1} | {a99:.1} |"));
    }
    println!("\nkept in {}", bench.keep("handover.md")?.display());
    successor.stop();
    Ok(())
}

impl Load {
    fn new(args: Args) -> Result<Self, Failure> {
        let count = args.members + PUBLISHERS;
        let mut clients = Vec::new();
        for n in 0..count {
            let name =
                if n < args.members { format!("member-{n}") } else { format!("publisher-{n}") };
            let mut options = Options::new(name);
            options.quiet_pings = true;
            options.publishes_max = 1 << 20;
            options.answer_timeout_ms = SETTLE.as_millis() as u64;
            let mut core = Core::new(options)?;
            if n < args.members {
                core.join(group(n % args.groups).as_bytes(), Membership::durable())?;
            }
            clients.push(Client {
                core,
                slot: None,
                got: 0,
                digest: 0,
                back: None,
                welcomed: false,
            });
        }
        Ok(Self {
            begun: Instant::now(),
            ring: ClientRing::new(count as u32 + 64, 1024, 4096)?,
            clients,
            client_of_slot: vec![usize::MAX; count + 64],
            sent: HashMap::new(),
            places: vec![Vec::new(); args.groups],
            answered: 0,
            published: 0,
            deliveries: Vec::new(),
            answers: Vec::new(),
            takeover: None,
            swept: 0,
            drained: 0,
            broken: Vec::new(),
            args,
        })
    }

    fn now(&self) -> Nanos {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    fn join_all(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        // No load yet.
        let rate = std::mem::take(&mut self.args.rate);
        let members = self.args.members;
        self.run(|load| {
            let all = load.clients[members..].iter().all(|c| c.welcomed)
                && load.clients[..members].iter().all(|c| c.back.is_some());
            all || begun.elapsed() > SETTLE
        })?;
        self.args.rate = rate;
        if begun.elapsed() > SETTLE {
            return Err("not all members could join".into());
        }
        self.clients.iter_mut().for_each(|client| client.back = None);
        Ok(())
    }

    /// Publishes at the rate, and lets all clients live, until `done`.
    fn run(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), Failure> {
        let mut swept = Instant::now() - SWEEP;
        let base = self.published;
        let begun = Instant::now();
        loop {
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep()?;
                if done(self) {
                    return Ok(());
                }
            }
            let due = begun.elapsed().as_micros() as u64 * self.args.rate / 1_000_000;
            while self.published - base < due {
                let nth = self.published - base;
                let intended = begun + Duration::from_micros(nth * 1_000_000 / self.args.rate);
                self.publish(intended)?;
            }
            let mut came = Vec::new();
            let clients = &mut self.clients;
            let of_slot = &self.client_of_slot;
            self.ring.wait(Some(Duration::from_millis(1)), &mut |event| match event {
                ClientEvent::Received { slot, bytes } => {
                    let index = of_slot[slot as usize];
                    clients[index].core.receive(bytes);
                    came.push((index, false));
                }
                ClientEvent::Sent { slot } => came.push((of_slot[slot as usize], false)),
                ClientEvent::Closed { slot, .. } => came.push((of_slot[slot as usize], true)),
            })?;
            for (index, closed) in came {
                if closed {
                    let now = self.now();
                    self.clients[index].core.disconnected(now);
                    self.clients[index].slot = None;
                }
                self.serve(index);
            }
        }
    }

    fn publish(&mut self, intended: Instant) -> Result<(), Failure> {
        let number = self.published;
        self.published += 1;
        let group_number = number as usize % self.args.groups;
        let index = self.args.members + group_number % PUBLISHERS;
        let mut payload = vec![0; PAYLOAD];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        let micros = intended.duration_since(self.begun).as_micros() as u64;
        payload[8..16].copy_from_slice(&micros.to_le_bytes());
        let id = self.clients[index].core.publish(
            group(group_number).as_bytes(),
            &payload,
            Default::default(),
        )?;
        self.sent.insert((index, id), Sent { group: group_number, number });
        self.answers.push((Duration::from_micros(micros), Duration::MAX));
        self.serve(index);
        Ok(())
    }

    /// Clocks, and connections that are to be made.
    fn sweep(&mut self) -> Result<(), Failure> {
        let now = self.now();
        self.swept = (self.swept + 1) % SWEEPS;
        for index in (self.swept..self.clients.len()).step_by(SWEEPS) {
            let client = &mut self.clients[index];
            if client.core.deadline().is_some_and(|at| at <= now) {
                match client.core.link() {
                    Link::Connect { at } if at <= now && client.slot.is_none() => {
                        let stream = TcpStream::connect(self.args.addr)?;
                        stream.set_nodelay(true)?;
                        let slot = self.ring.attach(stream.into())?;
                        client.slot = Some(slot);
                        self.client_of_slot[slot as usize] = index;
                        client.core.connected(now);
                    }
                    _ => {}
                }
                self.serve(index);
            }
        }
        Ok(())
    }

    /// Takes the events of a client and sends what it has to say.
    fn serve(&mut self, index: usize) {
        let now = self.now();
        while let Some(event) = self.clients[index].core.next_event(now) {
            self.take(index, event);
        }
        let client = &mut self.clients[index];
        client.core.advance(now);
        let Some(slot) = client.slot else { return };
        let out = client.core.take_output();
        self.ring.send(slot, Bytes::from(out));
        if client.core.link() == Link::Close && self.ring.queued(slot) == 0 {
            self.ring.close(slot);
        }
    }

    fn take(&mut self, index: usize, event: Event) {
        let client = &mut self.clients[index];
        match event {
            Event::Connected(_) => client.welcomed = true,
            Event::Joined(joined) => {
                client.back = Some(Instant::now());
                if joined.skipped.is_some() {
                    self.broken.push(format!("client {index}: {joined:?}"));
                }
            }
            Event::Message(message) => {
                client.got += 1;
                if message.seq.0 != client.got {
                    let text = format!("client {index}: {} after {}", message.seq, client.got - 1);
                    self.broken.push(text);
                }
                let (number, micros) = (word(message.payload(), 0), word(message.payload(), 8));
                client.digest = digest(client.digest, number);
                let intended = Duration::from_micros(micros);
                self.deliveries.push((intended, self.begun.elapsed().saturating_sub(intended)));
            }
            Event::Published(p) => match self.sent.remove(&(index, p.id)) {
                Some(Sent { group, number }) => {
                    let places = &mut self.places[group];
                    let place = p.seq.0 as usize - 1;
                    if places.len() <= place {
                        places.resize(place + 1, u64::MAX);
                    }
                    if places[place] != u64::MAX {
                        self.broken.push(format!("two answers for {place} of group {group}"));
                    }
                    places[place] = number;
                    self.answered += 1;
                    let answer = &mut self.answers[number as usize];
                    answer.1 = self.begun.elapsed().saturating_sub(answer.0);
                }
                None => self.broken.push(format!("an answer to nothing: {p:?}")),
            },
            Event::Disconnected { reason: Reason::Drained, .. } => self.drained += 1,
            Event::PublishHeld { .. } | Event::Draining { .. } | Event::Left { .. } => {}
            Event::Redelivery { .. } => {}
            other => {
                let at = self.takeover.map(|takeover| takeover.elapsed());
                let text = format!("client {index}, {at:?} after the takeover began: {other:?}");
                self.broken.push(text);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.sent.is_empty()
            && self.clients[..self.args.members]
                .iter()
                .enumerate()
                .all(|(n, member)| member.got as usize >= self.places[n % self.args.groups].len())
    }

    /// Each member has what was answered, at its place, and nothing else.
    fn verify(&self) -> Result<(), Failure> {
        if !self.broken.is_empty() {
            let count = self.broken.len();
            let first = self.broken[..count.min(10)].join("; ");
            return Err(format!("{count} findings, the first: {first}").into());
        }
        if self.answered != self.published {
            return Err(format!("{} of {} were answered", self.answered, self.published).into());
        }
        let of_group = |places: &Vec<u64>| places.iter().fold(0, |d, number| digest(d, *number));
        let digests: Vec<_> = self.places.iter().map(of_group).collect();
        for (n, member) in self.clients[..self.args.members].iter().enumerate() {
            let places = &self.places[n % self.args.groups];
            if member.got as usize != places.len() || member.digest != digests[n % self.args.groups]
            {
                return Err(format!("member {n} has {} of {}", member.got, places.len()).into());
            }
        }
        if self.drained < self.clients.len() as u64 {
            return Err(
                format!("only {} of {} were drained", self.drained, self.clients.len()).into()
            );
        }
        Ok(())
    }
}

fn group(number: usize) -> String {
    format!("room-{number}")
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(u64::MAX, u64::from_le_bytes)
}

fn digest(before: u64, number: u64) -> u64 {
    (before ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_add(1)
}

fn percentiles(samples: &[(Duration, Duration)], from: Duration, to: Duration) -> [f64; 3] {
    let inside = samples.iter().filter(|(at, _)| (from..to).contains(at));
    let mut values: Vec<_> = inside.map(|(_, took)| took.as_secs_f64() * 1e3).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = values.len().saturating_sub(1);
        values.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    };
    [at(0.5), at(0.99), at(1.0)]
}

/// Connects, says HELLO and reads until WELCOME begins, all the time.
fn knock(addr: SocketAddr, hello: &[u8], stop: &AtomicBool) -> (u64, Duration, u64) {
    let (mut count, mut slowest, mut refused) = (0, Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let welcomed = (|| {
            let mut stream = TcpStream::connect(addr)?;
            stream.set_read_timeout(Some(SETTLE))?;
            stream.write_all(hello)?;
            let mut header = [0; 5];
            stream.read_exact(&mut header)?;
            std::io::Result::Ok(header[4] == 0x81)
        })();
        count += 1;
        refused += u64::from(!welcomed.unwrap_or(false));
        slowest = slowest.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    (count, slowest, refused)
}

/// A server process, ended with the bench.
struct Server(Child);

impl Server {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }

    fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(args: &Args, data: &Path, log: &str, takeover: bool) -> Result<Server, Failure> {
    let log = data.join(log);
    let fanfare = pairs::built_before().map(|bin| bin.join("fanfare"));
    let mut command = Command::new(fanfare.unwrap_or_else(|| env!("CARGO_BIN_EXE_fanfare").into()));
    command
        .args(["serve", "--listen", &args.addr.to_string(), "--shards", &args.shards.to_string()])
        .arg("--data-dir")
        .arg(data.join("data"))
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log)?);
    if takeover {
        command.arg("--takeover");
    }
    let mut server = Server(command.spawn()?);
    while !takeover && !std::fs::read_to_string(&log)?.contains("ready") {
        if server.has_ended() {
            return Err(std::fs::read_to_string(&log)?.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}
