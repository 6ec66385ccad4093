#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use super::*;

const ROOM: u64 = 1 << 20;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn set(state: &mut State, key: &[u8], expected: Expected, data: &[u8]) -> Option<u64> {
    let change = Change { key, expected, data: Some(data) };
    match state.judge(&change, ROOM) {
        Verdict::Apply => Some(state.apply(key, Stamp(1), Some(data))),
        _ => None,
    }
}

fn delete(state: &mut State, key: &[u8]) {
    let change = Change { key, expected: Expected::Any, data: None };
    if state.judge(&change, ROOM) == Verdict::Apply {
        state.apply(key, Stamp(1), None);
    }
}

#[test]
fn a_change_is_made_only_if_the_key_is_as_expected() {
    let mut state = State::default();
    assert_eq!(set(&mut state, b"topic", Expected::Version(1), b"x"), None);
    assert_eq!(set(&mut state, b"topic", Expected::Absent, b"cats"), Some(1));
    assert_eq!(set(&mut state, b"topic", Expected::Absent, b"dogs"), None);
    let change = Change { key: b"topic", expected: Expected::Version(7), data: None };
    let Verdict::Conflict(Some(current)) = state.judge(&change, ROOM) else { panic!() };
    assert_eq!((current.version, current.data), (1, Some(&b"cats"[..])));
    assert_eq!(set(&mut state, b"topic", Expected::Version(1), b"dogs"), Some(2));
    assert_eq!(set(&mut state, b"topic", Expected::Any, b"owls"), Some(3));
    delete(&mut state, b"topic");
    assert_eq!(state.get(b"topic"), None);
    let change = Change { key: b"topic", expected: Expected::Version(4), data: Some(b"x") };
    assert_eq!(state.judge(&change, ROOM), Verdict::Conflict(None), "deleted is absent");
    assert_eq!(set(&mut state, b"topic", Expected::Absent, b"cats"), Some(5));
    state.invariants();
}

#[test]
fn deleting_what_is_not_there_changes_nothing() {
    let state = State::default();
    let change = Change { key: b"none", expected: Expected::Any, data: None };
    assert_eq!(state.judge(&change, ROOM), Verdict::Nothing);
    let change = Change { key: b"none", expected: Expected::Absent, data: None };
    assert_eq!(state.judge(&change, ROOM), Verdict::Nothing);
}

#[test]
fn limits_of_keys_and_bytes_are_kept_and_shrinking_is_allowed() {
    let mut state = State::default();
    for n in 0..STATE_KEYS_MAX as u32 {
        assert!(set(&mut state, &n.to_le_bytes(), Expected::Any, b"v").is_some());
    }
    let one_more = Change { key: b"one more", expected: Expected::Any, data: Some(b"") };
    assert_eq!(state.judge(&one_more, ROOM), Verdict::Refused(Limit::Keys));
    let key = 0u32.to_le_bytes();
    let longer = Change { key: &key, expected: Expected::Any, data: Some(b"vv") };
    assert_eq!(state.judge(&longer, state.bytes()), Verdict::Refused(Limit::Bytes));
    assert_eq!(state.judge(&longer, state.bytes() + 1), Verdict::Apply);
    let shorter = Change { key: &key, expected: Expected::Any, data: Some(b"") };
    assert_eq!(state.judge(&shorter, 10), Verdict::Apply);
    state.invariants();
}

#[test]
fn tombstones_are_bounded_and_who_missed_a_forgotten_one_gets_a_snapshot() {
    let mut state = State::default();
    set(&mut state, b"stays", Expected::Any, &[0; 100_000]).unwrap();
    for n in 0..2 * STATE_TOMBSTONES_MAX as u32 {
        set(&mut state, &n.to_le_bytes(), Expected::Any, b"v").unwrap();
        delete(&mut state, &n.to_le_bytes());
        state.invariants();
    }
    assert_eq!(state.horizon(), 1 + 2 * STATE_TOMBSTONES_MAX as u64);
    assert_eq!(state.form(state.horizon() - 1), Form::Snapshot);
    assert_eq!(state.form(state.horizon()), Form::Deltas);
    assert_eq!(state.form(state.version()), Form::UpToDate);
    assert_eq!(state.form(state.version() + 1), Form::Snapshot, "of another life");
}

#[test]
fn the_smaller_of_deltas_and_snapshot_is_chosen() {
    let mut state = State::default();
    set(&mut state, b"a", Expected::Any, &[1; 200]).unwrap();
    for n in 0..20u32 {
        set(&mut state, &n.to_le_bytes(), Expected::Any, b"").unwrap();
        delete(&mut state, &n.to_le_bytes());
    }
    assert_eq!(state.form(0), Form::Snapshot, "tombstones are larger than what is left");
    assert_eq!(state.form(state.version() - 2), Form::Deltas);
}

/// A client that applies what [`State::form`] says has what the server has, whatever it knew.
#[test]
fn random_changes_and_a_client_that_syncs_now_and_then() {
    for seed in 0..30 {
        let mut rng = Rng(seed);
        let mut state = State::default();
        let mut model: BTreeMap<Vec<u8>, (u64, Vec<u8>)> = BTreeMap::new();
        let mut clients: Vec<(u64, BTreeMap<Vec<u8>, u64>)> = vec![(0, BTreeMap::new()); 4];
        let keys = if seed % 2 == 0 { 40 } else { 3_000 };
        for _ in 0..4_000 {
            let key = (rng.below(keys) as u32).to_le_bytes();
            let known = model.get(&key[..]).map(|(version, _)| *version);
            let expected = match rng.below(4) {
                0 => Expected::Absent,
                1 => Expected::Version(known.unwrap_or(1)),
                2 => Expected::Version(rng.below(state.version() + 2)),
                _ => Expected::Any,
            };
            let data = (rng.below(2) == 0).then(|| vec![7; rng.below(30) as usize]);
            let holds = match expected {
                Expected::Any => true,
                Expected::Absent => known.is_none(),
                Expected::Version(version) => known == Some(version),
            };
            let change = Change { key: &key, expected, data: data.as_deref() };
            match state.judge(&change, ROOM) {
                Verdict::Conflict(current) => {
                    assert!(!holds);
                    assert_eq!(current.map(|entry| entry.version), known);
                }
                Verdict::Nothing => assert!(holds && known.is_none() && data.is_none()),
                Verdict::Refused(_) => assert!(model.len() >= STATE_KEYS_MAX),
                Verdict::Apply => {
                    assert!(holds);
                    let version = state.apply(&key, Stamp(1), data.as_deref());
                    match data {
                        Some(data) => model.insert(key.to_vec(), (version, data)),
                        None => model.remove(&key[..]),
                    };
                }
            }
            if rng.below(50) == 0 {
                let at = rng.below(4) as usize;
                sync(&state, &mut clients[at]);
                let want: BTreeMap<_, _> =
                    model.iter().map(|(key, (version, _))| (key.clone(), *version)).collect();
                assert_eq!(clients[at].1, want, "seed {seed}");
            }
        }
        state.invariants();
        let mut again = State::default();
        again.raise(state.horizon());
        for _ in 0..2 {
            state.after(0).for_each(|entry| again.restore(&entry));
        }
        again.invariants();
        assert_eq!((again.version(), again.horizon()), (state.version(), state.horizon()));
        assert!(again.after(0).eq(state.after(0)), "what is restored is what was there");
    }
}

fn sync(state: &State, (known, have): &mut (u64, BTreeMap<Vec<u8>, u64>)) {
    let form = state.form(*known);
    let after = if form == Form::Snapshot { 0 } else { *known };
    if form == Form::Snapshot {
        have.clear();
    }
    for entry in state.after(after) {
        match entry.data {
            Some(_) => drop(have.insert(entry.key.to_vec(), entry.version)),
            None => drop(have.remove(entry.key)),
        }
    }
    *known = state.version();
}
