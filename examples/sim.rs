//! Runs simulated worlds: `cargo run --release --example sim -- --seeds 100 --from 1`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use fanfare::sim::{Failure, Fault, Faults, Outcome, Profile, World};

/// Runs simulated nodes with their clients, network, clock and disks, one world for each seed
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// calm, quiet, unsteady, crashing, memory, disk, queries, shards, rot, tight, sluggish or
    /// all; may be given several times, and then every seed is run with each
    #[arg(long, default_value = "all", value_parser = profile)]
    profile: Vec<Profile>,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
    /// Go on after a failure and print no trace, only how many seeds failed and the first
    #[arg(long)]
    count_only: bool,
    /// Stop at the first failure and print it in one line
    #[arg(long)]
    first_only: bool,
}

fn profile(name: &str) -> Result<Profile, String> {
    let known = Profile::ALL.iter().find(|(known, _)| *known == name);
    known.map(|(_, profile)| *profile).ok_or_else(|| "no such profile".to_owned())
}

/// The seed that is run, for whoever panics.
static SEED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let args = Args::parse();
    let quiet = args.count_only || args.first_only;
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !quiet {
            shown(info);
        }
        // With panic=abort this is the last word; else the world shows its events when it goes.
        if !quiet && cfg!(panic = "abort") {
            eprint!("{}", fanfare::sim::last_events());
        }
        eprintln!("seed {}: the engine panicked", SEED.load(Ordering::Relaxed));
    }));
    let mut failed = 0;
    for profile in &args.profile {
        failed += run(&args, *profile);
        if failed > 0 && args.first_only {
            break;
        }
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs all seeds of a profile; how many failed.
fn run(args: &Args, profile: Profile) -> usize {
    let begin = Instant::now();
    let (mut faults, mut failed) = (Faults::default(), Vec::new());
    let (mut virtual_ms, mut turns, mut acknowledged, mut deliveries) = (0, 0, 0, 0);
    let mut runs = 0;
    for seed in args.from..args.from + args.seeds {
        runs += 1;
        match world(args, profile, seed) {
            Ok(outcome) => {
                faults.add(&outcome.faults);
                virtual_ms += outcome.virtual_ms;
                turns += outcome.turns;
                acknowledged += outcome.acknowledged;
                deliveries += outcome.deliveries;
            }
            Err(failure) => {
                if failed.is_empty() || !args.count_only {
                    println!("{}: seed {seed} failed: {}", profile.name(), failure.why);
                }
                failed.push(seed);
                if args.first_only {
                    println!("killed by {} seed {} after {runs}", profile.name(), seed);
                    return 1;
                }
                if !args.count_only {
                    println!("{}", failure.trace);
                    println!("replay: --profile {} --seeds 1 --from {seed}", profile.name());
                    return 1;
                }
            }
        }
    }
    let real_ms = begin.elapsed().as_millis().max(1) as u64;
    println!(
        "{}: {runs} seeds, {} failed; {virtual_ms} virtual ms in {real_ms} ms ({} times faster), \
         {turns} turns, {acknowledged} publishes, {deliveries} deliveries",
        profile.name(),
        failed.len(),
        virtual_ms / real_ms,
    );
    if !failed.is_empty() {
        println!("failed seeds: {:?}", &failed[..failed.len().min(20)]);
    }
    let never: Vec<_> = profile.expected().iter().filter(|fault| faults.of(**fault) == 0).collect();
    for fault in Fault::ALL.iter().filter(|fault| faults.of(**fault) > 0) {
        println!("{:>12} {fault:?}", faults.of(*fault));
    }
    if !never.is_empty() {
        println!("did not happen: {never:?}");
    }
    failed.len()
}

fn world(args: &Args, profile: Profile, seed: u64) -> Result<Outcome, Failure> {
    SEED.store(seed, Ordering::Relaxed);
    let life = || {
        let mut world = World::new(seed, profile.config(seed));
        if args.trace || args.count_only || args.first_only {
            world.trace(1, args.trace);
        }
        world.try_run()
    };
    catch_unwind(AssertUnwindSafe(life)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let why = format!("panic: {}", text.unwrap_or_default());
        Err(Failure { seed, why, trace: String::new() })
    })
}
