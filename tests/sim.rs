//! Whole nodes in virtual time. `FANFARE_SEED=n` replays one seed, `FANFARE_SEEDS=n` sets how
//! many each test runs.

use std::time::Instant;

use fanfare::sim::{Fault, Faults, Outcome, World, WorldConfig};

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
    for seed in range {
        let outcome = World::new(seed, config(seed)).run();
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
fn a_seed_always_gives_the_same_world() {
    let run = |seed| -> Outcome { World::new(seed, WorldConfig::calm(3)).run() };
    assert_eq!(run(7), run(7));
}
