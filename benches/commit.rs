//! What the disk alone takes for a commit: one block at a time on a file that was zero-written
//! before, by the engine's way and by others, back to back and at a rate, from either core. What a
//! durable message takes beyond one of level memory cannot be less. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use fanfare::limits::LOG_BLOCK;
use fanfare::ring::{TrialCommit, TrialLog, TrialWait, run_when_idle};
use rustix::fs::{OFlags, major, minor};

use pairs::{Bench, Failure, Spread};

#[derive(Parser)]
struct Args {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each row at a rate in each round.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Commits per second of the rows at a rate.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Commits of each row back to back in each round.
    #[arg(long, default_value_t = 500)]
    commits: u32,
    /// Cores to commit from.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cores: Vec<usize>,
    /// Folder of the file that is written [default: where this was built].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A row: how to write, how to wait, and whether something of idle priority keeps the other core
/// from falling asleep.
struct Way {
    name: &'static str,
    how: TrialCommit,
    wait: TrialWait,
    awake: bool,
}

const WAYS: [Way; 8] = [
    way("write with DSYNC (the engine's)", TrialCommit::Dsync, TrialWait::Sleep, false),
    way("the same, registered buffer", TrialCommit::DsyncFixed, TrialWait::Sleep, false),
    way("write, linked FSYNC of data", TrialCommit::LinkedSync, TrialWait::Sleep, false),
    way("pwritev2 with DSYNC, no io_uring", TrialCommit::Blocking, TrialWait::Sleep, false),
    way("write alone, not durable", TrialCommit::NotDurable, TrialWait::Sleep, false),
    way("write with DSYNC, spinning", TrialCommit::Dsync, TrialWait::Spin, false),
    way("write with DSYNC, other core awake", TrialCommit::Dsync, TrialWait::Sleep, true),
    way("spinning, other core awake", TrialCommit::Dsync, TrialWait::Spin, true),
];

const fn way(name: &'static str, how: TrialCommit, wait: TrialWait, awake: bool) -> Way {
    Way { name, how, wait, awake }
}

const FILE_BYTES: u64 = 64 << 20;

/// Median, 90th and 99th percentile of one row in one round, us.
type Percentiles = [f64; 3];

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut bench = Bench::alone(args.rounds, args.out.clone())?;
    let dir = args.dir.clone().map_or_else(pairs::target_folder, Ok)?;
    bench.title(
        "What the disk takes for a commit",
        "commit",
        &[
            &format!(
                "{} rounds; {} commits back to back, {} s at {} a second in each",
                args.rounds, args.commits, args.seconds, args.rate
            ),
            &format!("one block of {LOG_BLOCK} bytes at a time, O_DIRECT; {}", disk(&dir)?),
            "us; medians of the rounds (least to greatest)",
        ],
    );
    let path = tempfile::NamedTempFile::new_in(dir)?.into_temp_path();
    let mut log = TrialLog::new(zero_written(&path)?, LOG_BLOCK)?;
    for core in &args.cores {
        let rows = on_core(*core, &args, &mut log)?;
        show(&mut bench, *core, &args, &rows);
    }
    let polled = match log.commit_polled(0) {
        Ok(()) => "possible here".to_owned(),
        Err(error) => format!("not possible here: {error}"),
    };
    bench.say(&format!("\nPolling the disk (IORING_SETUP_IOPOLL) is {polled}."));
    println!("\nkept in {}", bench.keep("commit.md")?.display());
    Ok(())
}

/// As the engine's segments: commits overwrite zeros and change nothing but data.
fn zero_written(path: &Path) -> Result<File, Failure> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    let direct = OFlags::DIRECT.bits() as i32;
    Ok(OpenOptions::new().write(true).custom_flags(direct).open(path)?)
}

/// For each way, its rounds at the rate and back to back.
fn on_core(
    core: usize,
    args: &Args,
    log: &mut TrialLog,
) -> Result<Vec<[Vec<Percentiles>; 2]>, Failure> {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let mut rows: Vec<[Vec<Percentiles>; 2]> = WAYS.iter().map(|_| Default::default()).collect();
    let mut offset = 0;
    for _ in 0..args.rounds {
        for (way, row) in WAYS.iter().zip(&mut rows) {
            let every = Duration::from_secs(1) / args.rate;
            let done = AtomicBool::new(false);
            let measured = std::thread::scope(|scope| {
                if way.awake {
                    scope.spawn(|| keep_awake(1 - core, &done));
                }
                let mut commits = |count, every| commits(log, way, &mut offset, count, every);
                let paced = commits(args.rate * args.seconds, Some(every));
                let both = paced.and_then(|paced| Ok([paced, commits(args.commits, None)?]));
                done.store(true, Ordering::Relaxed);
                both
            })?;
            row.iter_mut().zip(measured).for_each(|(all, one)| all.push(one));
            eprint!(".");
        }
    }
    eprintln!();
    Ok(rows)
}

fn commits(
    log: &mut TrialLog,
    way: &Way,
    offset: &mut u64,
    count: u32,
    every: Option<Duration>,
) -> Result<Percentiles, Failure> {
    let mut took = Vec::with_capacity(count as usize);
    let mut due = Instant::now();
    for _ in 0..count {
        if let Some(every) = every {
            due += every;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let start = Instant::now();
        log.commit(way.how, *offset, way.wait)?;
        took.push(start.elapsed().as_nanos() as f64 * 1e-3);
        *offset = (*offset + LOG_BLOCK as u64) % FILE_BYTES;
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Ok([at(0.5), at(0.9), at(0.99)])
}

/// Keeps a core from falling asleep, and gives it to whoever wants it.
fn keep_awake(core: usize, done: &AtomicBool) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    if run_when_idle().is_ok() {
        while !done.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    }
}

fn show(bench: &mut Bench, core: usize, args: &Args, rows: &[[Vec<Percentiles>; 2]]) {
    let rate = args.rate;
    bench.say(&format!("\n## From core {core}\n"));
    bench.say(&format!("| | {rate}/s: p50 | p90 | p99 | back to back: p50 | p90 | p99 |"));
    bench.say("| --- | --- | --- | --- | --- | --- | --- |");
    for (way, row) in WAYS.iter().zip(rows) {
        let cells = row.iter().flat_map(|rounds| {
            (0..3).map(|p| Spread::of(rounds.iter().map(|r| r[p]).collect()).show(0))
        });
        bench.say(&format!("| {} | {} |", way.name, cells.collect::<Vec<_>>().join(" | ")));
    }
}

/// What matters of the disk that has this folder.
fn disk(dir: &Path) -> Result<String, Failure> {
    let device = rustix::fs::stat(dir)?.st_dev;
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition has the queue of its disk.
    let shown = |what: &str| {
        let file = |queue: &str| std::fs::read_to_string(format!("{device}/{queue}/{what}"));
        file("queue").or_else(|_| file("../queue")).unwrap_or_default().trim().to_owned()
    };
    Ok(format!("write cache: {}, FUA: {}", shown("write_cache"), shown("fua")))
}
