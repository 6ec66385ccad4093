//! The wake-up protocol under all interleavings that the memory model allows. Run with
//!
//! ```text
//! RUSTFLAGS="--cfg fanfare_loom" cargo test --release --test loom_wake
//! ```
#![cfg(fanfare_loom)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

#[path = "../src/mesh/wake.rs"]
mod wake;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use wake::Sleeper;

/// What a shard and its producers share. One counter stands for each ring: rtrb publishes an
/// entry by a Release store of its tail, which the consumer reads by an Acquire load. The
/// latch stands for the ring of the kernel, which keeps a wake-up that comes before the sleep.
struct Shared<S> {
    sleeper: S,
    pushed: Vec<AtomicUsize>,
    latch: Mutex<Latch>,
    changed: Condvar,
}

#[derive(Default)]
struct Latch {
    woken: bool,
    producers_done: usize,
}

/// The protocol, so that broken variants can be put in its place.
trait Protocol: Send + Sync + 'static {
    const LOOKS_AGAIN: bool = true;
    fn prepare(&self);
    fn woken(&self);
    fn notify(&self) -> bool;
}

impl Protocol for Sleeper {
    fn prepare(&self) {
        Self::prepare(self);
    }
    fn woken(&self) {
        Self::woken(self);
    }
    fn notify(&self) -> bool {
        Self::notify(self)
    }
}

/// One shard that handles every message and sleeps in between, and producers that push `each`.
/// A shard that sleeps while all producers are done and nobody woke it has lost a wake-up.
fn run<S: Protocol>(producers: usize, each: usize, new: impl Fn() -> S + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let shared = Arc::new(Shared {
            sleeper: new(),
            pushed: (0..producers).map(|_| AtomicUsize::new(0)).collect(),
            latch: Mutex::new(Latch::default()),
            changed: Condvar::new(),
        });
        for ring in 0..producers {
            let shared = shared.clone();
            thread::spawn(move || {
                for count in 1..=each {
                    shared.pushed[ring].store(count, Ordering::Release);
                    if shared.sleeper.notify() {
                        shared.latch.lock().unwrap().woken = true;
                        shared.changed.notify_one();
                    }
                }
                shared.latch.lock().unwrap().producers_done += 1;
                shared.changed.notify_one();
            });
        }

        let look = || shared.pushed.iter().map(|n| n.load(Ordering::Acquire)).sum::<usize>();
        let mut handled = look();
        while handled < producers * each {
            shared.sleeper.prepare();
            let seen = if S::LOOKS_AGAIN { look() } else { handled };
            if seen == handled {
                let mut latch = shared.latch.lock().unwrap();
                while !latch.woken && latch.producers_done < producers {
                    latch = shared.changed.wait(latch).unwrap();
                }
                let woken = std::mem::take(&mut latch.woken);
                drop(latch);
                assert!(woken, "a message is left behind");
            }
            shared.sleeper.woken();
            handled = look();
        }
    });
}

#[test]
fn no_message_is_left_behind_by_one_producer() {
    run(1, 2, Sleeper::new);
}

#[test]
fn no_message_is_left_behind_by_two_producers() {
    run(2, 1, Sleeper::new);
}

/// The other direction: a producer sleeps since its ring is full, and the consumer that makes
/// room wakes it. `looks_after_pop` says when the consumer looks whether the ring was full.
fn run_full(looks_after_pop: bool) {
    const CAPACITY: usize = 2;
    const MESSAGES: usize = CAPACITY + 1;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let shared = Arc::new(Shared {
            sleeper: Sleeper::new(),
            pushed: vec![AtomicUsize::new(0)],
            latch: Mutex::new(Latch::default()),
            changed: Condvar::new(),
        });
        let popped = Arc::new(AtomicUsize::new(0));
        let (other, other_popped) = (shared.clone(), popped.clone());
        thread::spawn(move || {
            let (shared, popped) = (other, other_popped);
            for count in 1..=2 {
                let slots = || shared.pushed[0].load(Ordering::Acquire) - (count - 1);
                let before = slots();
                if before == 0 {
                    break;
                }
                popped.store(count, Ordering::Release);
                fence(Ordering::SeqCst);
                let was_full =
                    if looks_after_pop { slots() >= CAPACITY } else { before == CAPACITY };
                if was_full && shared.sleeper.notify() {
                    shared.latch.lock().unwrap().woken = true;
                    shared.changed.notify_one();
                }
            }
            shared.latch.lock().unwrap().producers_done += 1;
            shared.changed.notify_one();
        });

        for count in 1..=MESSAGES {
            let is_full = || count - 1 - popped.load(Ordering::Acquire) == CAPACITY;
            while is_full() {
                shared.sleeper.prepare();
                if is_full() {
                    let mut latch = shared.latch.lock().unwrap();
                    while !latch.woken && latch.producers_done == 0 {
                        latch = shared.changed.wait(latch).unwrap();
                    }
                    let woken = std::mem::take(&mut latch.woken);
                    drop(latch);
                    if !woken {
                        // The consumer is done: either it left the ring full, or it made room
                        // and did not say so.
                        assert!(is_full(), "a producer is left asleep");
                        return;
                    }
                }
                shared.sleeper.woken();
            }
            shared.pushed[0].store(count, Ordering::Release);
        }
    });
}

#[test]
fn no_producer_is_left_asleep_when_there_is_room() {
    run_full(true);
}

#[test]
#[should_panic(expected = "a producer is left asleep")]
fn a_look_before_the_pop_leaves_a_producer_asleep() {
    run_full(false);
}

/// The protocol with parts left out.
struct Broken<const SLEEPER_FENCE: bool, const PRODUCER_FENCE: bool, const LOOKS_AGAIN: bool> {
    asleep: AtomicBool,
}

impl<const A: bool, const B: bool, const C: bool> Broken<A, B, C> {
    fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }
}

impl<const A: bool, const B: bool, const C: bool> Protocol for Broken<A, B, C> {
    const LOOKS_AGAIN: bool = C;
    fn prepare(&self) {
        self.asleep.swap(true, Ordering::Relaxed);
        if A {
            fence(Ordering::SeqCst);
        }
    }
    fn woken(&self) {
        self.asleep.swap(false, Ordering::Relaxed);
    }
    fn notify(&self) -> bool {
        if B {
            fence(Ordering::SeqCst);
        }
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

#[test]
fn the_variant_with_nothing_left_out_passes() {
    run(1, 2, Broken::<true, true, true>::new);
}

#[test]
#[should_panic(expected = "a message is left behind")]
fn without_the_fence_of_the_sleeper_a_wake_up_is_lost() {
    run(1, 1, Broken::<false, true, true>::new);
}

#[test]
#[should_panic(expected = "a message is left behind")]
fn without_the_fence_of_the_producer_a_wake_up_is_lost() {
    run(1, 1, Broken::<true, false, true>::new);
}

#[test]
#[should_panic(expected = "a message is left behind")]
fn without_the_second_look_a_wake_up_is_lost() {
    run(1, 1, Broken::<true, true, false>::new);
}
