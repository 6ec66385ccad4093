//! What the kernel takes for a write to a socket, way by way: SEND against SENDMSG, bundles,
//! sends without a copy, registered buffers, direct descriptors. No engine and no protocol: one
//! thread on core 0 writes to sockets whose other ends are read on core 1. The ways take turns
//! within a round, so that a machine that drifts does so for all of them. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use fanfare::ring::{ClientEvent, ClientRing, TrialRing, TrialWrite};
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use pairs::{Bench, Failure, Spread};

#[derive(Parser)]
struct Args {
    /// Sockets that are written to in each round.
    #[arg(long, default_value_t = 1_000)]
    sockets: u32,
    /// Bytes of a write.
    #[arg(long, value_delimiter = ',', default_value = "128,1024,8192,32768,65536")]
    bytes: Vec<usize>,
    /// Measured rounds; one more before them is not counted.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

const WAYS: [(&str, TrialWrite); 10] = [
    ("SEND, direct descriptor", TrialWrite::Send),
    ("SEND, file descriptor", TrialWrite::SendFd),
    ("SENDMSG, 1 piece", TrialWrite::SendMsg(1)),
    ("SENDMSG, 2 pieces", TrialWrite::SendMsg(2)),
    ("SENDMSG, 8 pieces", TrialWrite::SendMsg(8)),
    ("SEND of a bundle, 1 buffer", TrialWrite::Bundle(1)),
    ("SEND of a bundle, 8 buffers", TrialWrite::Bundle(8)),
    ("SEND_ZC", TrialWrite::SendZc),
    ("SEND_ZC, registered buffer", TrialWrite::SendZcFixed),
    ("WRITE_FIXED, registered buffer", TrialWrite::WriteFixed),
];
/// For the largest write; the kernel's own maximum may be lower.
const SOCKET_BUFFER: usize = 1 << 20;
/// The other ends are given up when they have not got everything by then.
const READ_TIME: Duration = Duration::from_secs(5);

/// The other ends of all sockets, on a thread of their own.
#[derive(Default)]
struct Reader {
    bytes: AtomicU64,
    stop: AtomicBool,
}

/// What one way took.
#[derive(Default)]
struct Seen {
    /// CPU of a write in each round, ns.
    cpu: Vec<f64>,
    writes: u64,
    copied: u64,
    failed: Option<std::io::Error>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut bench = Bench::alone(args.rounds, args.out.clone())?;
    bench.title(
        "What a write to a socket takes",
        "writes",
        &[
            &format!("{} sockets on loopback, {} rounds", args.sockets, args.rounds),
            "writer on core 0, 64 writes for each io_uring_enter; readers on core 1",
            "CPU time of the writing thread, loopback's way to the receiving socket included; \
         medians (least to greatest)",
        ],
    );
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    let (ours, theirs) = connected(args.sockets)?;
    let most = args.bytes.iter().copied().max().unwrap_or_default();
    let mut ring = TrialRing::new(ours, most)?;
    let reader = Reader::default();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| reader.run(theirs));
        let measured = args.bytes.iter().try_for_each(|bytes| {
            let seen = rounds(&mut ring, &reader, &args, *bytes)?;
            show(&mut bench, *bytes, &seen);
            Ok::<_, Failure>(())
        });
        reader.stop.store(true, Ordering::Relaxed);
        reading.join().map_err(|_| "the reader panicked")??;
        measured
    })?;
    println!("\nkept in {}", bench.keep("writes.md")?.display());
    Ok(())
}

/// Both ends of so many connections.
fn connected(count: u32) -> Result<(Vec<OwnedFd>, Vec<OwnedFd>), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let there = TcpStream::connect(listener.local_addr()?)?;
        let here = listener.accept()?.0;
        here.set_nodelay(true)?;
        SockRef::from(&here).set_send_buffer_size(SOCKET_BUFFER)?;
        ours.push(here.into());
        theirs.push(there.into());
    }
    Ok((ours, theirs))
}

/// All rounds with writes of this size.
fn rounds(
    ring: &mut TrialRing,
    reader: &Reader,
    args: &Args,
    bytes: usize,
) -> Result<Vec<Seen>, Failure> {
    let mut seen: Vec<Seen> = WAYS.iter().map(|_| Seen::default()).collect();
    for round in 0..=args.rounds {
        for nth in 0..WAYS.len() {
            // Each way follows each other one.
            let way = if round % 2 == 0 { nth } else { WAYS.len() - 1 - nth };
            let seen = &mut seen[way];
            if seen.failed.is_some() {
                continue;
            }
            let (before, read) = (cpu_ns(), reader.bytes.load(Ordering::Acquire));
            match ring.round(WAYS[way].1, bytes) {
                Ok(done) => {
                    let cpu = (cpu_ns() - before) as f64 / done.writes as f64;
                    reader.wait_for(read + done.writes * bytes as u64)?;
                    if round > 0 {
                        seen.cpu.push(cpu);
                        seen.writes += done.writes;
                        seen.copied += done.copied;
                    }
                }
                Err(error) => {
                    seen.failed = Some(error);
                    // What was written before the error is read, and not counted.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
    Ok(seen)
}

fn show(bench: &mut Bench, bytes: usize, all: &[Seen]) {
    bench.say(&format!("\n## {bytes} bytes a write\n"));
    bench.say(
        "| | CPU per write, us | CPU per byte, ns | against SEND, by rounds | copied after all |",
    );
    bench.say("| --- | --- | --- | --- | --- |");
    for ((name, way), seen) in WAYS.iter().zip(all) {
        if let Some(error) = &seen.failed {
            bench.say(&format!("| {name} | {error} | | | |"));
            continue;
        }
        let us = Spread::of(seen.cpu.iter().map(|ns| ns * 1e-3).collect());
        let ratio = seen.cpu.iter().zip(&all[0].cpu).map(|(this, send)| this / send);
        let copied = match way {
            TrialWrite::SendZc | TrialWrite::SendZcFixed => {
                format!("{:.0} %", 100.0 * seen.copied as f64 / seen.writes as f64)
            }
            _ => String::new(),
        };
        bench.say(&format!(
            "| {name} | {} | {:.3} | {} | {copied} |",
            us.show(2),
            us.median * 1e3 / bytes as f64,
            Spread::of(ratio.collect()).show(3),
        ));
    }
}

impl Reader {
    fn run(&self, sockets: Vec<OwnedFd>) -> std::io::Result<()> {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        let mut ring = ClientRing::new(sockets.len() as u32, 64, 64 << 10)?;
        for socket in sockets {
            ring.attach(socket)?;
        }
        while !self.stop.load(Ordering::Relaxed) {
            let mut read = 0;
            ring.wait(Some(Duration::from_millis(20)), &mut |event| {
                if let ClientEvent::Received { bytes, .. } = event {
                    read += bytes.len() as u64;
                }
            })?;
            self.bytes.fetch_add(read, Ordering::Release);
        }
        Ok(())
    }

    fn wait_for(&self, bytes: u64) -> Result<(), Failure> {
        let deadline = Instant::now() + READ_TIME;
        while self.bytes.load(Ordering::Acquire) < bytes {
            if Instant::now() > deadline {
                return Err("the other ends did not get what was written".into());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
