//! How often a judge ranks two images as people did.

use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::bootstrap::resampled_ratios;
use crate::error::{Error, Result};
use crate::win_rate::{Estimate, estimate};

/// What becomes of pairs that people could not decide, and of those the judge cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgreementTies {
    /// Pairs that people called a tie are left out; a judge's tie on another counts one half.
    #[default]
    Skip,
    /// Three outcomes: on a tie the judge is right only with a tie, and one half right otherwise; a judge's tie on a decided pair counts
    /// one half. Kirstain et al., arXiv:2305.01569, section 4.
    Half,
    /// Three outcomes, right or wrong.
    Strict,
}

impl AgreementTies {
    /// The names.
    pub const NAMES: [&'static str; 3] = ["skip", "half", "strict"];
}

impl fmt::Display for AgreementTies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Half => "half",
            Self::Strict => "strict",
        })
    }
}

impl std::str::FromStr for AgreementTies {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownAgreementTies`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "skip" => Ok(Self::Skip),
            "half" => Ok(Self::Half),
            "strict" => Ok(Self::Strict),
            _ => Err(Error::UnknownAgreementTies {
                found: name.to_owned(),
                expected: &Self::NAMES,
            }),
        }
    }
}

/// A pair as people and as a judge see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledPair {
    /// The record it is of. Pairs of one list of images stand next to each other and are resampled together: they are not independent.
    pub record: usize,
    /// Whether people called it a tie; else they prefer the chosen image.
    pub is_tie: bool,
    /// The judge's score of the chosen image less that of the rejected one.
    pub margin: f64,
}

/// Agreement of a judge with labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Pairs that count.
    pub num_pairs: usize,
    /// Labels that are ties, counted or not.
    pub num_label_ties: usize,
    /// Pairs, of those that count, on which the judge's scores are no further apart than the tie margin.
    pub num_judge_ties: usize,
    /// Share of agreement with its bootstrap interval.
    pub accuracy: Estimate,
    /// What became of ties.
    pub ties: AgreementTies,
    /// Scores no further apart than this are a judge's tie.
    pub tie_margin: f64,
}

impl Agreement {
    /// Agreement over all pairs; none when no pair counts.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a margin that is not finite; [`Error::InvalidConfig`] for 0 `bootstrap_samples`.
    pub fn of(
        pairs: &[LabelledPair],
        ties: AgreementTies,
        tie_margin: f64,
        (seed, bootstrap_samples): (u64, usize),
    ) -> Result<Option<Self>> {
        if let Some(index) = pairs.iter().position(|pair| !pair.margin.is_finite()) {
            return Err(Error::NotFinite {
                side: "chosen less rejected",
                index,
                value: pairs[index].margin,
            });
        }
        if bootstrap_samples == 0 {
            return Err(Error::InvalidConfig {
                key: "bootstrap_samples",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        let counted: Vec<&LabelledPair> = pairs
            .iter()
            .filter(|pair| ties != AgreementTies::Skip || !pair.is_tie)
            .collect();
        if counted.is_empty() {
            return Ok(None);
        }
        let is_judge_tie = |pair: &LabelledPair| pair.margin.abs() <= tie_margin;
        let credit = |pair: &&LabelledPair| match (pair.is_tie, is_judge_tie(pair)) {
            (true, true) => 1.0,
            (true, false) | (false, true) if ties != AgreementTies::Strict => 0.5,
            (true, false) | (false, true) => 0.0,
            (false, false) => f64::from(u8::from(pair.margin > 0.0)),
        };
        let credits: Vec<f64> = counted.iter().map(credit).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let by_record: Vec<(f64, usize)> = counted
            .chunk_by(|pair, next| pair.record == next.record)
            .scan(credits.as_slice(), |rest, pairs| {
                let (own, behind) = rest.split_at(pairs.len());
                *rest = behind;
                Some((own.iter().sum(), own.len()))
            })
            .collect();
        let means = resampled_ratios(&by_record, bootstrap_samples, &mut rng);
        Ok(Some(Self {
            num_pairs: counted.len(),
            num_label_ties: pairs.iter().filter(|pair| pair.is_tie).count(),
            num_judge_ties: counted.iter().filter(|pair| is_judge_tie(pair)).count(),
            accuracy: estimate(&credits, means),
            ties,
            tie_margin,
        }))
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { mean, low, high } = self.accuracy;
        write!(
            f,
            "agrees with {:.1} % [{:.1}, {:.1}] of {} labels ({} ties among all labels, policy {}; {} ties of the judge)",
            100.0 * mean,
            100.0 * low,
            100.0 * high,
            self.num_pairs,
            self.num_label_ties,
            self.ties,
            self.num_judge_ties
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_as_the_policy_says() {
        let pair = |is_tie, margin| LabelledPair {
            record: 0,
            is_tie,
            margin,
        };
        // Right, wrong, undecided, a tie seen as such, a tie decided.
        let pairs = [
            pair(false, 2.0),
            pair(false, -1.0),
            pair(false, 0.1),
            pair(true, 0.0),
            pair(true, 3.0),
        ];
        let of = |ties| Agreement::of(&pairs, ties, 0.1, (0, 200)).unwrap().unwrap();
        let expected = [
            (AgreementTies::Skip, 3, 1.5 / 3.0),
            (AgreementTies::Half, 5, 3.0 / 5.0),
            (AgreementTies::Strict, 5, 2.0 / 5.0),
        ];
        for (ties, num_pairs, accuracy) in expected {
            let found = of(ties);
            assert_eq!((found.num_pairs, found.num_label_ties), (num_pairs, 2));
            assert!((found.accuracy.mean - accuracy).abs() < 1e-12, "{found}");
            assert!(found.accuracy.low <= accuracy && accuracy <= found.accuracy.high);
            assert_eq!(ties.to_string().parse::<AgreementTies>().unwrap(), ties);
        }
        assert_eq!(
            (
                of(AgreementTies::Skip).num_judge_ties,
                of(AgreementTies::Half).num_judge_ties
            ),
            (1, 2)
        );
        assert!(
            Agreement::of(&pairs[3..], AgreementTies::Skip, 0.0, (0, 10))
                .unwrap()
                .is_none()
        );
        let nan = Agreement::of(&[pair(false, f64::NAN)], AgreementTies::Skip, 0.0, (0, 10));
        assert!(matches!(nan, Err(Error::NotFinite { index: 0, .. })));
        assert!(
            "halve"
                .parse::<AgreementTies>()
                .unwrap_err()
                .to_string()
                .contains("skip, half, strict")
        );
    }

    #[test]
    fn pairs_of_one_list_are_no_independent_evidence() {
        let width = |pairs: &[LabelledPair]| {
            let found = Agreement::of(pairs, AgreementTies::Skip, 0.0, (0, 500))
                .unwrap()
                .unwrap();
            found.accuracy.high - found.accuracy.low
        };
        // The same verdicts: alike within each list of nine images, so ten pieces of evidence and not 360.
        let lists: Vec<LabelledPair> = (0..360)
            .map(|index| LabelledPair {
                record: index / 36,
                is_tie: false,
                margin: if index / 36 % 2 == 0 { 1.0 } else { -1.0 },
            })
            .collect();
        let apart: Vec<LabelledPair> = lists
            .iter()
            .enumerate()
            .map(|(record, pair)| LabelledPair { record, ..*pair })
            .collect();
        let ratio = width(&lists) / width(&apart);
        // The square root of 36, by chance more or less.
        assert!((4.0..9.0).contains(&ratio), "{ratio}");
    }
}
