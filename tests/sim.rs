//! Whole nodes in virtual time. `FANFARE_SEED=n` replays one seed, `FANFARE_SEEDS=n` sets how
//! many each test runs. `cargo run --release --example sim` runs the same worlds faster.

use std::sync::Arc;
use std::time::Instant;

use fanfare::config::{Class, Classes, Pattern, Priority};
use fanfare::sim::{Faults, Outcome, Profile, World, WorldConfig};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a world per seed and asserts that every kind of trouble it should see happened.
fn batch(profile: Profile, seeds: u64) {
    let name = profile.name();
    let replay = number("FANFARE_SEED");
    let seeds = number("FANFARE_SEEDS").unwrap_or(seeds);
    let range = replay.map_or(1..=seeds, |seed| seed..=seed);
    let begin = Instant::now();
    let mut faults = Faults::default();
    let (mut virtual_ms, mut deliveries, mut turns, mut acknowledged) = (0, 0, 0, 0);
    for seed in range {
        let outcome = World::new(seed, profile.config(seed)).run();
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
    eprintln!("{faults}");
    if replay.is_none() {
        for fault in profile.expected() {
            assert!(faults.of(*fault) > 0, "{name}: {fault:?} never happened; use more seeds");
        }
    }
}

#[test]
fn members_of_every_shard_get_one_order_whatever_the_network_cuts_and_delays() {
    batch(Profile::Calm, 40);
}

#[test]
fn a_quiet_node_wakes_whoever_has_something_to_do() {
    batch(Profile::Quiet, 30);
}

#[test]
fn slow_and_leaving_members_miss_nothing_that_no_gap_announces() {
    batch(Profile::Unsteady, 200);
}

#[test]
fn what_was_acknowledged_or_seen_survives_every_crash_under_its_name() {
    batch(Profile::Crashing, 40);
}

#[test]
fn a_crash_takes_only_memory_and_then_begins_a_new_epoch() {
    batch(Profile::Memory, 40);
}

#[test]
fn a_full_or_failing_disk_loses_nothing_that_was_acknowledged() {
    batch(Profile::Disk, 40);
}

#[test]
fn another_number_of_shards_changes_nothing_that_clients_see() {
    batch(Profile::Shards, 60);
}

#[test]
fn what_rots_on_a_disk_is_announced_and_nothing_else_is_lost() {
    batch(Profile::Rot, 60);
}

#[test]
fn short_files_on_full_disks_lose_nothing_that_was_acknowledged() {
    batch(Profile::Tight, 40);
}

#[test]
fn files_that_are_slow_to_come_and_go_lose_nothing_that_was_acknowledged() {
    batch(Profile::Sluggish, 40);
}

#[test]
fn all_faults_together_break_no_promise() {
    batch(Profile::All, 200);
}

#[test]
fn a_seed_always_gives_the_same_world() {
    let run = |seed| -> Outcome { World::new(seed, WorldConfig::calm(3)).run() };
    assert_eq!(run(7), run(7));
    let run = |seed| -> Outcome { World::new(seed, Profile::All.config(seed)).run() };
    assert_eq!(run(11), run(11));
}

#[test]
fn priorities_break_no_promise() {
    let class = |priority: Priority, group: &str| {
        let groups = Pattern::parse(group).into_iter().collect();
        Class { priority, groups, ..Class::named(priority.name()) }
    };
    let classes = Arc::new(Classes::new(vec![
        class(Priority::Realtime, "group-0"),
        class(Priority::Bulk, "group-1"),
    ]));
    let seeds = number("FANFARE_SEEDS").unwrap_or(15);
    let range = number("FANFARE_SEED").map_or(1..=seeds, |seed| seed..=seed);
    for seed in range {
        for profile in [Profile::Unsteady, Profile::All] {
            let mut config = profile.config(seed);
            config.shard.classes = classes.clone();
            World::new(seed, config).run();
        }
    }
}

/// History and state, asked for through every kind of trouble but rot.
#[test]
fn what_clients_ask_is_answered_with_what_is_on_disk() {
    let seeds = number("FANFARE_SEEDS").unwrap_or(12);
    let range = number("FANFARE_SEED").map_or(1..=seeds, |seed| seed..=seed);
    let mut answers = 0;
    for seed in range {
        for profile in [Profile::Unsteady, Profile::Crashing, Profile::Disk] {
            // A fifth of the questions are about rosters and count apart.
            let (query_ppm, durable_ppm) = (75_000, 0);
            let config = WorldConfig { query_ppm, durable_ppm, ..profile.config(seed) };
            answers += World::new(seed, config).run().answers;
        }
    }
    assert!(answers > 1_000, "{answers}");
}
