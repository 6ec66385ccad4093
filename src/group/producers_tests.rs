#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;

use super::*;

const LIMITS: ProducerLimits = ProducerLimits { window: 4, producers_max: 3, ttl_ms: 1_000 };

fn id(n: u8) -> ProducerId {
    [n; 16]
}

/// A group that takes what it is given, and syncs at once unless told otherwise.
#[derive(Default)]
struct Group {
    producers: Producers,
    head: u64,
    synced: Seq,
    now_ms: u64,
}

impl Group {
    fn judge(&mut self, producer: u8, member: &str, producer_seq: u64) -> Verdict {
        let producer = id(producer);
        let attempt = attempt(&producer, member, producer_seq, self.now_ms);
        self.producers.judge(attempt, self.synced, &LIMITS)
    }

    fn publish(&mut self, producer: u8, producer_seq: u64) -> Result<u64, Unacceptable> {
        let member = format!("member-{producer}");
        match self.judge(producer, &member, producer_seq) {
            Verdict::Fresh(slot) => {
                self.head += 1;
                let producer = id(producer);
                let attempt = attempt(&producer, &member, producer_seq, self.now_ms);
                self.producers.accept(slot, attempt, (Seq(self.head), Epoch(7)), &LIMITS);
                self.synced = Seq(self.head);
                Ok(self.head)
            }
            Verdict::Duplicate { seq, epoch } => {
                assert_eq!(epoch, Epoch(7));
                Ok(seq.0)
            }
            Verdict::Refused(why) => Err(why),
        }
    }
}

fn attempt<'a>(
    producer: &'a ProducerId,
    member: &'a str,
    producer_seq: u64,
    now_ms: u64,
) -> Attempt<'a> {
    Attempt { producer, member: member.as_bytes(), producer_seq, now_ms }
}

#[test]
fn a_number_that_has_a_place_keeps_it() {
    let mut group = Group::default();
    assert_eq!(group.publish(1, 1), Ok(1));
    assert_eq!(group.publish(2, 1), Ok(2));
    assert_eq!(group.publish(1, 2), Ok(3));
    assert_eq!(group.publish(1, 1), Ok(1));
    assert_eq!(group.publish(1, 2), Ok(3));
    assert_eq!(group.publish(2, 1), Ok(2));
    assert_eq!(group.head, 3);
}

#[test]
fn numbers_are_contiguous_and_begin_at_one() {
    let mut group = Group::default();
    assert_eq!(group.publish(1, 2), Err(Unacceptable::Unknown));
    assert_eq!(group.publish(1, 0), Err(Unacceptable::Unknown));
    assert_eq!(group.publish(1, 1), Ok(1));
    assert_eq!(group.publish(1, 3), Err(Unacceptable::Gap { expected: 2 }));
    assert_eq!(group.publish(1, u64::MAX), Err(Unacceptable::Gap { expected: 2 }));
    assert_eq!(group.publish(1, 0), Err(Unacceptable::TooOld { oldest: 1 }));
    assert_eq!(group.publish(1, 2), Ok(2));
}

#[test]
fn what_is_older_than_the_window_is_refused_and_never_taken_again() {
    let mut group = Group::default();
    for n in 1..=10 {
        assert_eq!(group.publish(1, n), Ok(n));
    }
    assert_eq!(group.publish(1, 6), Err(Unacceptable::TooOld { oldest: 7 }));
    assert_eq!(group.publish(1, 1), Err(Unacceptable::TooOld { oldest: 7 }));
    for n in 7..=10 {
        assert_eq!(group.publish(1, n), Ok(n));
    }
}

#[test]
fn a_producer_belongs_to_the_member_that_used_it_first() {
    let mut group = Group::default();
    assert_eq!(group.publish(1, 1), Ok(1));
    for producer_seq in [1, 2, 9] {
        let verdict = group.judge(1, "another", producer_seq);
        assert_eq!(verdict, Verdict::Refused(Unacceptable::Taken));
    }
}

#[test]
fn only_a_producer_that_is_idle_makes_room_and_the_longest_idle_one_first() {
    let mut group = Group::default();
    for producer in 1..=3 {
        group.now_ms += 10;
        group.publish(producer, 1).unwrap();
    }
    let full = Err(Unacceptable::TooMany { producers_max: 3 });
    assert_eq!(group.publish(4, 1), full);
    group.now_ms = 1_010;
    assert_eq!(group.publish(4, 1), full, "exactly the time is not longer than it");
    // A duplicate is a sign of life too.
    assert_eq!(group.publish(1, 1), Ok(1));
    group.now_ms = 1_021;
    assert_eq!(group.publish(4, 1), Ok(4));
    assert_eq!(group.publish(2, 2), Err(Unacceptable::Unknown), "it was the longest idle");
    assert_eq!(group.publish(1, 2), Ok(5));
    assert_eq!(group.producers.len(), 3);
}

#[test]
fn a_producer_whose_message_is_not_on_disk_is_never_forgotten() {
    let mut group = Group::default();
    for producer in 1..=3 {
        group.publish(producer, 1).unwrap();
    }
    group.now_ms = 1_000_000;
    group.synced = Seq(0);
    assert_eq!(group.publish(4, 1), Err(Unacceptable::TooMany { producers_max: 3 }));
    group.synced = Seq(1);
    assert_eq!(group.publish(4, 1), Ok(4));
}

#[test]
fn what_is_saved_is_what_the_disk_has() {
    let mut group = Group::default();
    group.publish(1, 1).unwrap();
    group.publish(1, 2).unwrap();
    group.publish(2, 1).unwrap();
    group.publish(1, 3).unwrap();
    let saved: Vec<_> = group.producers.to_state(Seq(2)).collect();
    assert_eq!(saved.len(), 1, "producer 2 has nothing on disk");
    assert_eq!((saved[0].0, saved[0].1.last), (id(1), 2));
    assert_eq!(saved[0].1.window, [(Seq(1), Epoch(7)), (Seq(2), Epoch(7))]);
    // Nothing of the window may be left and the number is known nevertheless.
    for n in 4..=20 {
        group.publish(1, n).unwrap();
    }
    let saved: Vec<_> = group.producers.to_state(Seq(2)).collect();
    assert_eq!(saved[0].1.last, 16);
    assert!(saved[0].1.window.is_empty());
}

#[test]
fn what_is_restored_answers_as_before_and_may_exceed_a_lowered_limit() {
    let mut group = Group::default();
    for (producer, n) in [(1, 1), (2, 1), (3, 1), (2, 2), (1, 2), (1, 3), (1, 4), (1, 5)] {
        group.publish(producer, n).unwrap();
    }
    let limits = ProducerLimits { window: 2, producers_max: 2, ttl_ms: 1_000 };
    let mut producers = Producers::default();
    producers.restore(group.producers.to_state(group.synced), 500, &limits);
    assert_eq!(producers.len(), 3);
    let mut judge = |producer: u8, n, now_ms| {
        let member = format!("member-{producer}");
        producers.judge(attempt(&id(producer), &member, n, now_ms), Seq(8), &limits)
    };
    assert_eq!(judge(1, 5, 501), Verdict::Duplicate { seq: Seq(8), epoch: Epoch(7) });
    assert_eq!(judge(1, 3, 501), Verdict::Refused(Unacceptable::TooOld { oldest: 4 }));
    assert_eq!(judge(2, 1, 501), Verdict::Duplicate { seq: Seq(2), epoch: Epoch(7) });
    assert!(matches!(judge(3, 2, 501), Verdict::Fresh(_)));
    // Its time began when it was restored.
    assert!(matches!(judge(9, 1, 1_500), Verdict::Refused(_)));
    assert!(matches!(judge(9, 1, 1_501), Verdict::Fresh(_)), "producer 3 is idle");
}

#[test]
fn saved_windows_that_contradict_themselves_are_not_used() {
    let mut producers = Producers::default();
    let window = [(Seq(1), Epoch(1)), (Seq(2), Epoch(1))].into();
    let long = ProducerState { member: b"m"[..].into(), last: 1, window };
    let end = ProducerState { last: u64::MAX, ..long.clone() };
    let none = ProducerState::default();
    producers.restore([(id(1), long), (id(2), end), (id(3), none)], 0, &LIMITS);
    assert!(producers.is_empty());
}

/// The same rules without any structure: every message that was ever taken, by name.
#[derive(Default)]
struct Naive {
    taken: BTreeMap<(u8, u64), Seq>,
    last: BTreeMap<u8, u64>,
    used: BTreeMap<u8, u64>,
    head: u64,
}

impl Naive {
    fn publish(
        &mut self,
        producer: u8,
        n: u64,
        now_ms: u64,
        synced: Seq,
        limits: &ProducerLimits,
    ) -> Result<Seq, Unacceptable> {
        let Some(&last) = self.last.get(&producer) else {
            if n != 1 {
                return Err(Unacceptable::Unknown);
            }
            if self.last.len() >= limits.producers_max {
                let producers_max = limits.producers_max;
                let full = Err(Unacceptable::TooMany { producers_max });
                let Some((&idle, &used)) = self.used.iter().min_by_key(|(id, used)| {
                    // Those that were restored together go in the order of their messages.
                    (**used, self.taken[&(**id, self.last[*id])])
                }) else {
                    return full;
                };
                if now_ms - used <= limits.ttl_ms || self.taken[&(idle, self.last[&idle])] > synced
                {
                    return full;
                }
                self.last.remove(&idle);
                self.used.remove(&idle);
                self.taken.retain(|(of, _), _| *of != idle);
            }
            return Ok(self.take(producer, 1, now_ms));
        };
        let oldest = (last + 1).saturating_sub(limits.window as u64).max(1);
        match n {
            _ if n > last + 1 => Err(Unacceptable::Gap { expected: last + 1 }),
            _ if n == last + 1 => Ok(self.take(producer, n, now_ms)),
            _ if n < oldest => Err(Unacceptable::TooOld { oldest }),
            _ => {
                self.used.insert(producer, now_ms);
                Ok(self.taken[&(producer, n)])
            }
        }
    }

    fn take(&mut self, producer: u8, n: u64, now_ms: u64) -> Seq {
        self.head += 1;
        self.taken.insert((producer, n), Seq(self.head));
        self.last.insert(producer, n);
        self.used.insert(producer, now_ms);
        Seq(self.head)
    }
}

#[test]
fn random_publishes_are_judged_as_by_a_plain_list_of_all_messages() {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("TEST_SEED").map_or(clock, |seed| seed.parse().unwrap());
    eprintln!("TEST_SEED={seed}");
    let mut state = seed;
    let mut random = move |bound: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    };
    for round in 0..200 {
        let limits = ProducerLimits {
            window: 1 + random(6) as usize,
            producers_max: 1 + random(20) as usize,
            ttl_ms: 1 + random(100),
        };
        let producers_used = 1 + random(30);
        let mut producers = Producers::default();
        let mut naive = Naive::default();
        let mut next: BTreeMap<u8, u64> = BTreeMap::new();
        let (mut now_ms, mut synced) = (0, Seq(0));
        for step in 0..2_000 {
            // Time goes up with each step, so that the order of use is never a tie.
            now_ms += 1 + random(8);
            if random(4) > 0 {
                synced = Seq(naive.head);
            }
            let producer = random(producers_used) as u8;
            let near = next.entry(producer).or_insert(1);
            let n = match random(10) {
                0..6 => *near,
                6 => near.saturating_sub(random(8)),
                7 => *near + random(3),
                8 => 1,
                _ => random(5),
            };
            let expected = naive.publish(producer, n, now_ms, synced, &limits);
            let id = id(producer);
            let attempt = attempt(&id, "member", n, now_ms);
            let judged = match producers.judge(attempt, synced, &limits) {
                Verdict::Fresh(slot) => {
                    producers.accept(slot, attempt, (Seq(naive.head), Epoch(1)), &limits);
                    Ok(Seq(naive.head))
                }
                Verdict::Duplicate { seq, .. } => Ok(seq),
                Verdict::Refused(why) => Err(why),
            };
            assert_eq!(judged, expected, "round {round}, step {step}: {producer} sent {n}");
            if judged.is_ok() && n == *near {
                *near += 1;
            } else if judged == Err(Unacceptable::Unknown) {
                *near = 1;
            }
            assert!(producers.len() <= limits.producers_max);
            if random(300) == 0 {
                let mut restored = Producers::default();
                restored.restore(producers.to_state(Seq(naive.head)), now_ms, &limits);
                naive.used.values_mut().for_each(|used| *used = now_ms);
                producers = restored;
            }
        }
    }
}
