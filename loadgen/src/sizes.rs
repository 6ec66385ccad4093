//! Sizes of groups as real rooms have them, and who is in which.

use serde::Serialize;

/// Groups of very different sizes: that of rank k has `largest` / k^s members, with an s such that
/// the last one has `smallest`.
pub struct Zipf {
    /// Number of groups.
    pub groups: u32,
    /// Members to draw from.
    pub members: u32,
    /// Members of the last group.
    pub smallest: u32,
    /// Members of the first.
    pub largest: u32,
    /// By this number who is in which group is drawn.
    pub seed: u64,
}

/// What was drawn, for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drawn {
    law: &'static str,
    seed: u64,
    largest: u32,
    median: u32,
    smallest: u32,
    memberships: u64,
}

impl std::fmt::Display for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} to {} members, median {}, {} memberships, seed {}",
            self.law, self.smallest, self.largest, self.median, self.memberships, self.seed
        )
    }
}

impl Zipf {
    /// Sizes by rank, the largest first.
    pub fn sizes(&self) -> Vec<u32> {
        let (largest, smallest) = (f64::from(self.largest), f64::from(self.smallest));
        let last = f64::from(self.groups.max(2));
        let exponent = (largest / smallest).ln() / last.ln();
        let of = |rank: u32| (largest / f64::from(rank).powf(exponent)).round() as u32;
        (1..=self.groups).map(|rank| of(rank).clamp(self.smallest, self.largest)).collect()
    }

    /// The groups of each member, ascending, and what that looks like. Which group has which size is
    /// drawn too: groups are published to in turn, and in the order of their sizes all that is much
    /// would come at once.
    pub fn draw(&self) -> (Vec<Vec<u32>>, Drawn) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut members: Vec<u32> = (0..self.members).collect();
        let mut groups_of = vec![Vec::new(); self.members as usize];
        let by_rank = self.sizes();
        let mut sizes = by_rank.clone();
        random.shuffle(&mut sizes);
        for (group, size) in (0..).zip(&sizes) {
            // The start of a shuffle: each member at most once.
            for i in 0..*size as usize {
                members.swap(i, random.usize(i..self.members as usize));
                groups_of[members[i] as usize].push(group);
            }
        }
        let drawn = Drawn {
            law: "zipf",
            seed: self.seed,
            largest: self.largest,
            median: by_rank[by_rank.len() / 2],
            smallest: by_rank[by_rank.len() - 1],
            memberships: sizes.iter().map(|size| u64::from(*size)).sum(),
        };
        (groups_of, drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMS: Zipf =
        Zipf { groups: 1000, members: 10_000, smallest: 2, largest: 10_000, seed: 7 };

    #[test]
    fn sizes_go_from_largest_to_smallest_and_most_are_small() {
        let sizes = ROOMS.sizes();
        assert_eq!((sizes[0], sizes[999]), (10_000, 2));
        assert!(sizes.is_sorted_by(|a, b| a >= b));
        assert!(sizes.iter().filter(|size| **size <= 20).count() > 800);
    }

    #[test]
    fn nobody_is_in_a_group_twice_and_everybody_in_the_largest() {
        let (groups_of, drawn) = ROOMS.draw();
        assert!(groups_of.iter().all(|groups| groups.is_sorted_by(|a, b| a < b)));
        let in_all = |group| groups_of.iter().all(|groups| groups.contains(group));
        assert_eq!(groups_of[0].iter().filter(|group| in_all(group)).count(), 1);
        let all: usize = groups_of.iter().map(Vec::len).sum();
        assert_eq!(all as u64, drawn.memberships);
    }

    #[test]
    fn large_groups_are_not_next_to_each_other() {
        let (groups_of, _) = ROOMS.draw();
        let mut sizes = vec![0; 1_000];
        groups_of.iter().flatten().for_each(|group| sizes[*group as usize] += 1);
        let large: Vec<usize> = (0..1_000).filter(|group| sizes[*group] >= 1_000).collect();
        assert!(large.len() > 5, "{large:?}");
        assert!(large.windows(2).filter(|pair| pair[1] - pair[0] < 10).count() < 3, "{large:?}");
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        assert_eq!(ROOMS.draw(), ROOMS.draw());
        assert_ne!(ROOMS.draw().0, Zipf { seed: 8, ..ROOMS }.draw().0);
    }
}
