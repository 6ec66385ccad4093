//! What it costs to look whether a publish was sent before: once per message, on the path of
//! all publishes of a shard.

use divan::{Bencher, counter::ItemsCount};
use fanfare::group::{Attempt, ProducerLimits, Producers, Verdict};
use fanfare::position::{Epoch, ProducerId, Seq};

const PUBLISHES: u64 = 10_000;
const LIMITS: ProducerLimits =
    ProducerLimits { window: 1024, producers_max: 64 * 1024, ttl_ms: 600_000 };

fn main() {
    divan::main();
}

/// A group in which so many producers publish in turn, with full windows.
struct Group {
    producers: Producers,
    ids: Vec<ProducerId>,
    last: Vec<u64>,
    head: u64,
}

impl Group {
    fn of(producers: usize) -> Self {
        let id = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            id
        };
        let ids: Vec<_> = (0..producers).map(id).collect();
        let mut group =
            Self { producers: Producers::default(), last: vec![0; ids.len()], ids, head: 0 };
        for turn in 0..producers.max(20_000) {
            group.publish(turn % producers);
        }
        group
    }

    fn publish(&mut self, n: usize) {
        self.last[n] += 1;
        let place = self.judge(n, self.last[n]);
        assert!(place.is_none(), "it was not sent before");
    }

    fn judge(&mut self, n: usize, producer_seq: u64) -> Option<Seq> {
        let producer = &self.ids[n];
        let attempt = Attempt { producer, member: b"member-0017", producer_seq, now_ms: self.head };
        match self.producers.judge(attempt, Seq(self.head), &LIMITS) {
            Verdict::Fresh(slot) => {
                self.head += 1;
                self.producers.accept(slot, attempt, (Seq(self.head), Epoch(1)), &LIMITS);
                None
            }
            Verdict::Duplicate { seq, .. } => Some(seq),
            Verdict::Refused(_) => Some(Seq(0)),
        }
    }
}

#[divan::bench(args = [1, 8, 9, 1_000, 50_000])]
fn new_publishes(bencher: Bencher<'_, '_>, producers: usize) {
    let mut group = Group::of(producers);
    bencher.counter(ItemsCount::new(PUBLISHES)).bench_local(|| {
        for turn in 0..PUBLISHES as usize {
            group.publish(turn % producers);
        }
    });
}

#[divan::bench(args = [1, 1_000])]
fn publishes_sent_again(bencher: Bencher<'_, '_>, producers: usize) {
    let mut group = Group::of(producers);
    bencher.counter(ItemsCount::new(PUBLISHES)).bench_local(|| {
        for turn in 0..PUBLISHES as usize {
            let n = turn % producers;
            let again = group.last[n] - turn as u64 % 8;
            divan::black_box(group.judge(n, again));
        }
    });
}
