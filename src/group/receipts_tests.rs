#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;

fn asked(seq: u64, percent: u8) -> Asked {
    Asked { seq: Seq(seq), epoch: Epoch(1), percent, sender: 0, producer_seq: seq }
}

fn settle(receipts: &mut Receipts, published: u64) -> Vec<(u64, u32, u32)> {
    let mut out = Vec::new();
    receipts.settle(Seq(published), &mut out);
    out.iter().map(|f| (f.asked.seq.0, f.acked, f.members)).collect()
}

/// A member as a naive reader sees it.
#[derive(Clone, Copy, Debug)]
struct Naive {
    joined_at: u64,
    acked: u64,
}

impl Naive {
    fn position(self) -> Seq {
        Seq(self.joined_at.max(self.acked) + 1)
    }
}

/// Counts by looking at every member.
fn count(members: &[Naive], seq: u64) -> (u32, u32) {
    let of: Vec<_> = members.iter().filter(|m| m.joined_at < seq).collect();
    (of.iter().filter(|m| m.acked >= seq).count() as u32, of.len() as u32)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn receipts_agree_with_a_scan_of_all_members() {
    let seeds = std::env::var("FANFARE_SEED").map_or((1, 40), |seed| {
        let seed: u64 = seed.parse().unwrap();
        (seed, seed + 1)
    });
    for seed in seeds.0..seeds.1 {
        println!("FANFARE_SEED={seed}");
        one_run(seed);
    }
}

fn one_run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut receipts = Receipts::default();
    let mut members: Vec<Naive> = Vec::new();
    let mut waiting: BTreeMap<u64, u8> = BTreeMap::new();
    let (mut head, mut published) = (0, 0);
    let percents = [100, 100, 100, 50, 90, 1, 99, 33];
    for step in 0..1_500 {
        let mut out = Vec::new();
        match random.below(20) {
            0 | 1 => {
                let acked = random.below(head + 1);
                let member = Naive { joined_at: head, acked: acked.min(published) };
                members.push(member);
                receipts.member_in(Seq(head), member.position());
            }
            2 if !members.is_empty() => {
                let at = random.below(members.len() as u64) as usize;
                let member = members.swap_remove(at);
                receipts.member_out(Seq(member.joined_at), member.position());
            }
            3..=7 => {
                head += 1;
                let percent = percents[random.below(8) as usize];
                if random.below(2) == 0 && receipts.may_ask(percent, 200).is_ok() {
                    receipts.ask(asked(head, percent));
                    waiting.insert(head, percent);
                }
            }
            8..=10 => published = head,
            11 if random.below(20) == 0 => {
                let first_kept = random.below(published + 1);
                receipts.expire(Seq(first_kept), &mut out);
                for settled in std::mem::take(&mut out) {
                    let seq = settled.asked.seq.0;
                    assert!(seq < first_kept, "step {step}");
                    assert_eq!((settled.acked, settled.members), count(&members, seq));
                    waiting.remove(&seq).unwrap();
                }
                assert!(waiting.keys().all(|seq| *seq >= first_kept));
            }
            _ if !members.is_empty() => {
                let at = random.below(members.len() as u64) as usize;
                let before = members[at];
                let to = match random.below(3) {
                    0 => published,
                    _ => before.acked + random.below(published - before.acked.min(published) + 1),
                };
                let after = Naive { acked: before.acked.max(to.min(published)), ..before };
                members[at] = after;
                receipts.moved(before.position(), after.position());
            }
            _ => {}
        }
        receipts.settle(Seq(published), &mut out);
        let full: Vec<u64> = waiting
            .iter()
            .filter(|(seq, _)| **seq <= published)
            .filter(|(seq, _)| {
                let (acked, of) = count(&members, **seq);
                acked == of
            })
            .map(|(seq, _)| *seq)
            .collect();
        assert!(full.iter().all(|seq| out.iter().any(|f| f.asked.seq.0 == *seq)), "step {step}");
        if random.below(4) == 0 {
            receipts.sweep(Seq(published), &mut out);
            for (&seq, &percent) in &waiting {
                let (acked, of) = count(&members, seq);
                let due = seq <= published && reached(percent, acked, of);
                let came = out.iter().any(|f| f.asked.seq.0 == seq);
                assert_eq!(due, came, "step {step}, seq {seq}, {percent} percent");
            }
        }
        for settled in out {
            let seq = settled.asked.seq.0;
            let percent = waiting.remove(&seq).unwrap();
            assert_eq!(percent, settled.asked.percent);
            assert_eq!((settled.acked, settled.members), count(&members, seq), "step {step}");
            assert!(reached(percent, settled.acked, settled.members) && seq <= published);
        }
        let left: Vec<_> = receipts.waiting().map(|a| a.seq.0).collect();
        assert_eq!(left, waiting.keys().copied().collect::<Vec<_>>(), "step {step}");
        assert_eq!(receipts.len(), waiting.len());
        assert_eq!(receipts.oldest().map(|s| s.0), waiting.keys().next().copied());
        assert!(receipts.pending.len() <= 2 * receipts.len() + DONE_KEPT + 1);
    }
}

#[test]
fn a_restart_counts_members_in_again_and_goes_on() {
    let mut receipts = Receipts::default();
    for (seq, percent) in [(3, 100), (5, 50), (9, 50)] {
        receipts.restore(asked(seq, percent));
    }
    for acked in [2, 4, 9, 9] {
        receipts.member_in(Seq(0), Seq(acked + 1));
    }
    assert_eq!(settle(&mut receipts, 9), [(5, 2, 4), (9, 2, 4)]);
    receipts.moved(Seq(3), Seq(4));
    assert_eq!(settle(&mut receipts, 9), [(3, 4, 4)]);
    assert!(receipts.is_empty());
}

#[test]
fn nothing_is_complete_before_it_is_published() {
    let mut receipts = Receipts::default();
    receipts.ask(asked(1, 100));
    receipts.ask(asked(2, 50));
    assert_eq!(settle(&mut receipts, 0), []);
    assert_eq!(settle(&mut receipts, 1), [(1, 0, 0)]);
    assert_eq!(settle(&mut receipts, 2), [(2, 0, 0)]);
}

#[test]
fn at_most_eight_shares_and_max_receipts_wait_at_a_time() {
    let mut receipts = Receipts::default();
    receipts.member_in(Seq(0), Seq(1));
    for share in 1..=SHARES_MAX as u8 {
        receipts.may_ask(share, 100).unwrap();
        receipts.ask(asked(u64::from(share), share));
    }
    assert_eq!(receipts.may_ask(77, 100), Err(ReceiptRefused::TooManyShares));
    assert_eq!(receipts.may_ask(3, 100), Ok(()));
    assert_eq!(receipts.may_ask(100, 100), Ok(()));
    assert_eq!(receipts.may_ask(100, 8), Err(ReceiptRefused::TooMany));
    receipts.moved(Seq(1), Seq(9));
    assert_eq!(settle(&mut receipts, 8).len(), 8);
    assert_eq!(receipts.may_ask(77, 1), Ok(()));
}

/// 100,000 members, 1,000 of them online: what an acknowledgement costs does not depend on
/// how many members there are, and a broadcast with a receipt does not look at them.
#[test]
fn a_receipt_over_a_hundred_thousand_members_looks_at_none_of_them() {
    let mut work = Vec::new();
    for offline in [0, 99_000] {
        let mut receipts = Receipts::default();
        for _ in 0..1_000 + offline {
            receipts.member_in(Seq(0), Seq(1));
        }
        receipts.work.set(0);
        let mut out = Vec::new();
        for seq in 1..=4_000 {
            receipts.ask(asked(seq, if seq % 2 == 0 { 100 } else { 1 }));
            receipts.settle(Seq(seq), &mut out);
        }
        assert_eq!(receipts.work.get(), 0, "asking looks at nothing");
        for member in 0..1_000 {
            for seq in (0..4_000).step_by(400) {
                receipts.moved(Seq(seq + 1), Seq(seq + 401));
                receipts.settle(Seq(4_000), &mut out);
            }
            let acks = 10 * (member + 1);
            // Halving among 4,000 twice per acknowledgement and once per receipt.
            let (work, bound) = (receipts.work.get(), acks * 30 + 4_000 * 15);
            assert!(work <= bound, "{work} steps for {acks} acknowledgements");
        }
        let complete = if offline == 0 { 4_000 } else { 2_000 };
        assert_eq!(out.len(), complete, "1 percent of 100,000 are online");
        work.push(receipts.work.get());
    }
    assert!(work[1] <= work[0] * 2, "{work:?}");
}
