//! Which of several scored images become pairs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which images of a prompt are chosen and rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairRule {
    /// The best against the worst: the clearest difference, often of quality rather than of what the prompt asks for.
    #[default]
    Worst,
    /// The best against the best one that is at least the margin worse: a hard negative, which differs in little else.
    Closest,
    /// The best against any worse one.
    Random,
    /// Every two images, the better chosen: k images with different scores give k(k − 1)/2 pairs.
    All,
}

impl PairRule {
    /// The names of the rules, in the order of the variants.
    pub const NAMES: [&'static str; 4] = ["worst", "closest", "random", "all"];

    /// The name in recipes and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worst => "worst",
            Self::Closest => "closest",
            Self::Random => "random",
            Self::All => "all",
        }
    }
}

impl fmt::Display for PairRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PairRule {
    type Err = String;

    /// # Errors
    /// The name is none of [`PairRule::NAMES`]; the message says which was found and which are expected.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let rules = [Self::Worst, Self::Closest, Self::Random, Self::All];
        let known = rules.into_iter().find(|rule| rule.name() == name);
        known.ok_or_else(|| format!("unknown rule `{name}`; expected one of {}", Self::NAMES.join(", ")))
    }
}

/// A rule and how far apart two scores must be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairSelection {
    /// Which images become pairs.
    pub rule: PairRule,
    /// How much lower the rejected score must be, at least 0. Equal scores are never a pair.
    pub min_margin: f64,
}

impl PairSelection {
    /// Places of the chosen and the rejected score of each pair; the earlier of two equal scores comes first. No pair where no
    /// two scores are far enough apart. `draw(n)` is a number below `n`.
    pub fn select(&self, scores: &[f64], mut draw: impl FnMut(usize) -> usize) -> Vec<(usize, usize)> {
        let is_worse = |better: usize, worse: usize| {
            let margin = scores[better] - scores[worse];
            margin > 0.0 && margin >= self.min_margin
        };
        // A sort that keeps the order of equals: the earlier wins a tie.
        let mut places: Vec<usize> = (0..scores.len()).collect();
        places.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        if self.rule == PairRule::All {
            let pairs = places.iter().enumerate().flat_map(|(number, &better)| {
                let rest = &places[number + 1..];
                rest.iter().map(move |&worse| (better, worse))
            });
            return pairs.filter(|&(better, worse)| is_worse(better, worse)).collect();
        }
        let Some(&best) = places.first() else { return Vec::new() };
        let worse: Vec<usize> = places.iter().copied().filter(|&place| is_worse(best, place)).collect();
        let lowest = worse.last().map(|&place| scores[place]);
        let rejected = match self.rule {
            PairRule::Worst => worse.iter().copied().find(|&place| Some(scores[place]) == lowest),
            PairRule::Closest => worse.first().copied(),
            PairRule::Random if worse.is_empty() => None,
            PairRule::Random => worse.get(draw(worse.len())).copied(),
            PairRule::All => None,
        };
        rejected.map(|rejected| (best, rejected)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f64; 6] = [0.5, 0.9, 0.1, 0.9, 0.1, 0.8];

    fn select(scores: &[f64], rule: PairRule, min_margin: f64) -> Vec<(usize, usize)> {
        PairSelection { rule, min_margin }.select(scores, |below| below - 1)
    }

    #[test]
    fn the_best_and_a_worse_one_are_kept_and_close_calls_are_not() {
        assert_eq!(select(&SCORES, PairRule::Worst, 0.2), [(1, 2)]);
        assert_eq!(select(&SCORES, PairRule::Closest, 0.2), [(1, 0)]);
        assert_eq!(select(&SCORES, PairRule::Closest, 0.0), [(1, 5)]);
        assert_eq!(select(&SCORES, PairRule::Closest, 0.7), [(1, 2)]);
        assert_eq!(select(&SCORES, PairRule::Random, 0.2), [(1, 4)], "the last of 0, 2, 4");
        for rule in [PairRule::Worst, PairRule::Closest, PairRule::Random, PairRule::All] {
            assert!(select(&[0.5, 0.6], rule, 0.2).is_empty());
            assert!(select(&[0.5, 0.5], rule, 0.0).is_empty());
            assert!(select(&[], rule, 0.0).is_empty());
        }
    }

    #[test]
    fn all_pairs_are_every_two_scores_that_differ_enough() {
        let pairs = select(&SCORES, PairRule::All, 0.0);
        // 15 pairs of six, less the two of equal scores.
        assert_eq!(pairs.len(), 13);
        assert!(pairs.iter().all(|&(better, worse)| SCORES[better] > SCORES[worse]));
        assert_eq!(select(&SCORES, PairRule::All, 0.75), [(1, 2), (1, 4), (3, 2), (3, 4)]);
    }

    #[test]
    fn rules_are_read_by_the_name_they_are_written_with() {
        for name in PairRule::NAMES {
            assert_eq!(name.parse::<PairRule>().unwrap().to_string(), name);
        }
        assert!(
            "best"
                .parse::<PairRule>()
                .unwrap_err()
                .contains("worst, closest, random, all")
        );
    }
}
