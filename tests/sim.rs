//! Whole nodes in virtual time. `FANFARE_SEED=n` replays one seed, `FANFARE_SEEDS=n` sets how
//! many each test runs, and with `FANFARE_COUNT=1` all seeds are run and the failing ones
//! counted: that is how a deliberate mistake in the engine shows how well it is found.

use std::time::Instant;

use fanfare::config::ShardConfig;
use fanfare::sim::{Fault, Faults, Outcome, Trouble, World, WorldConfig};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a world per seed and asserts that every kind of trouble in `expected` happened.
fn batch(name: &str, seeds: u64, expected: &[Fault], config: impl Fn(u64) -> WorldConfig) {
    let replay = number("FANFARE_SEED");
    let seeds = number("FANFARE_SEEDS").unwrap_or(seeds);
    let range = replay.map_or(1..=seeds, |seed| seed..=seed);
    let begin = Instant::now();
    let mut faults = Faults::default();
    let (mut virtual_ms, mut deliveries, mut turns, mut acknowledged) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for seed in range {
        let run = || World::new(seed, config(seed)).run();
        let outcome = if number("FANFARE_COUNT").is_none() {
            run()
        } else if let Ok(outcome) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            outcome
        } else {
            failed.push(seed);
            continue;
        };
        faults.add(&outcome.faults);
        virtual_ms += outcome.virtual_ms;
        deliveries += outcome.deliveries;
        turns += outcome.turns;
        acknowledged += outcome.acknowledged;
    }
    let real_ms = begin.elapsed().as_millis().max(1) as u64;
    eprintln!(
        "{name}: {virtual_ms} virtual ms in {real_ms} ms ({} times faster), {turns} turns, \
         {acknowledged} publishes, {deliveries} deliveries",
        virtual_ms / real_ms
    );
    assert!(failed.is_empty(), "{name}: {} of {seeds} seeds failed: {failed:?}", failed.len());
    let happened = Fault::ALL.iter().map(|f| (f, faults.of(*f))).filter(|(_, n)| *n > 0);
    eprintln!("{:?}", happened.collect::<Vec<_>>());
    if replay.is_none() {
        for fault in expected {
            assert!(faults.of(*fault) > 0, "{name}: {fault:?} never happened; use more seeds");
        }
    }
}

#[test]
fn members_of_every_shard_get_one_order_whatever_the_network_cuts_and_delays() {
    let expected =
        [Fault::SplitReceive, Fault::MergedReceive, Fault::ShortWrite, Fault::NoReceiveBuffer];
    batch("calm", 40, &expected, |seed| WorldConfig::calm(1 + (seed % 3) as u16));
}

#[test]
fn a_quiet_node_wakes_whoever_has_something_to_do() {
    batch("quiet", 30, &[Fault::MeshFull], |seed| {
        let calm = WorldConfig::calm(2 + (seed % 2) as u16);
        WorldConfig {
            clients: 4,
            active_ms: 60_000,
            tick_ms: 1_500,
            mesh_entries: 1,
            late_ms: 700,
            shard: ShardConfig { heartbeat_ms: 20_000, ..calm.shard.clone() },
            ..calm
        }
    });
}

/// Members that come, go and do not read; tails and retention so small that it matters.
fn unsteady(shards: u16) -> WorldConfig {
    let calm = WorldConfig::calm(shards);
    WorldConfig {
        slow_ppm: 300_000,
        churn_ppm: 30_000,
        mesh_entries: 2,
        shard: ShardConfig {
            tail_bytes_max: 12 * 1024,
            pinned_bytes_max: 256 * 1024,
            control_bytes_max: 64,
            inbox_bytes_max: 8 * 1024,
            send_bytes_max: 8 * 1024,
            segment_bytes: 192 * 1024,
            retention_bytes: 256 * 1024,
            ..calm.shard.clone()
        },
        trouble: Trouble {
            disconnect_ppm: 6_000,
            garbage_ppm: 1_000,
            mute_ppm: 50_000,
            stall_ppm: 1_000,
            clock_ppm: 1_000,
            ..Trouble::default()
        },
        ..calm
    }
}

#[test]
fn slow_and_leaving_members_miss_nothing_that_no_gap_announces() {
    let expected = [
        Fault::ClientClosed,
        Fault::ClientReset,
        Fault::ClientVanished,
        Fault::ServerClosed,
        Fault::SlowReader,
        Fault::StalledWrite,
        Fault::Paused,
        Fault::Garbage,
        Fault::CatchUp,
        Fault::Gap,
        Fault::ShardStalled,
        Fault::MeshFull,
        Fault::Mute,
        Fault::ClockJumped,
        Fault::Republished,
    ];
    batch("unsteady", 40, &expected, |seed| unsteady(1 + (seed % 3) as u16));
}

/// The node stops at any point, and starts again from what its disks have.
fn crashing(shards: u16) -> WorldConfig {
    let calm = WorldConfig::calm(shards);
    WorldConfig {
        slow_ppm: 150_000,
        trouble: Trouble {
            disconnect_ppm: 2_000,
            crash_every_ms: 1_000,
            crash_at_write_ppm: 20_000,
            drain_ppm: 100_000,
            ..Trouble::default()
        },
        ..calm
    }
}

#[test]
fn what_was_acknowledged_or_seen_survives_every_crash_under_its_name() {
    let expected = [Fault::Crash, Fault::TornWrite, Fault::InterruptedJob, Fault::Drain];
    batch("crashing", 40, &expected, |seed| crashing(1 + (seed % 3) as u16));
}

#[test]
fn a_crash_takes_only_memory_and_then_begins_a_new_epoch() {
    let expected =
        [Fault::Crash, Fault::AnsweredEarly, Fault::MemoryLost, Fault::EpochChanged, Fault::Gap];
    batch("memory", 40, &expected, |seed| {
        let shards = 1 + (seed % 3) as u16;
        let config = if seed % 2 == 0 { unsteady(shards) } else { crashing(shards) };
        let trouble =
            Trouble { crash_every_ms: 1_500, crash_at_write_ppm: 15_000, ..config.trouble.clone() };
        // With few of them, a crash can take the very first one of a group.
        let (memory_ppm, groups) = if seed % 5 < 2 { (30_000, 12) } else { (500_000, 5) };
        WorldConfig { memory_ppm, groups, trouble, ..config }
    });
}

#[test]
fn a_full_or_failing_disk_loses_nothing_that_was_acknowledged() {
    let expected = [
        Fault::DiskFull,
        Fault::RefusedFull,
        Fault::WriteError,
        Fault::RefusedFailed,
        Fault::Indeterminate,
        Fault::ReadError,
        Fault::Crash,
    ];
    batch("disk", 40, &expected, |seed| {
        let config = unsteady(1 + (seed % 3) as u16);
        let trouble = Trouble {
            crash_every_ms: 1_000,
            disk_full_ppm: 400_000,
            write_error_ppm: if seed % 4 < 2 { 4_000 } else { 0 },
            read_error_ppm: 20_000,
            ..config.trouble.clone()
        };
        WorldConfig { memory_ppm: 100_000, trouble, ..config }
    });
}

#[test]
fn a_seed_always_gives_the_same_world() {
    let run = |seed| -> Outcome { World::new(seed, WorldConfig::calm(3)).run() };
    assert_eq!(run(7), run(7));
}
