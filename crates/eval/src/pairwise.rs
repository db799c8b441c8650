//! Judges that are shown two images and name the better one.
//!
//! Such judges, language models above all, favor a place. So each pair is asked for in both orders; a side wins when it is named both
//! times, and everything else is a tie. How often the first place is named says how far the judge can be trusted.
//! Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", NeurIPS 2023, arXiv:2306.05685, section 3.4.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::bootstrap::resampled_means;
use crate::error::{Error, Result};
use crate::win_rate::{Estimate, estimate};

/// What a judge says about two images shown one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The image shown first is better.
    First,
    /// The image shown second is better.
    Second,
    /// Neither.
    Tie,
}

/// Which of the two models' images is shown first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShownFirst {
    /// The base model's.
    Base,
    /// The aligned model's.
    Aligned,
}

/// A judge of pairs.
pub trait PairwiseJudge {
    /// The verdict on the pair of images of one record, in one order.
    ///
    /// # Errors
    /// Whatever keeps the judge from answering; [`Error::NotJudged`] for a record it does not know.
    fn verdict(&self, id: &str, shown_first: ShownFirst) -> Result<Verdict>;
}

/// Verdicts that were given elsewhere, from a JSONL file with `id`, `shown_first` (`base` or `aligned`) and `verdict` (`first`,
/// `second` or `tie`).
#[derive(Debug, Clone)]
pub struct StoredVerdicts {
    path: PathBuf,
    verdicts: BTreeMap<(String, ShownFirst), Verdict>,
    ids: Vec<String>,
}

impl StoredVerdicts {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::StoredRow`] for a row that is wrong or says again what an earlier one said; [`Error::NotJudged`] for a
    /// record that was asked about in one order only; [`Error::NoScores`] for an empty file.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Id {
            Text(String),
            Number(i64),
        }
        #[derive(Deserialize)]
        struct Row {
            id: Id,
            shown_first: ShownFirst,
            verdict: Verdict,
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        let (mut verdicts, mut ids) = (BTreeMap::new(), Vec::new());
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let error = |reason: String| Error::StoredRow {
                path: path.to_owned(),
                row: index + 1,
                reason,
            };
            let row: Row = serde_json::from_str(line).map_err(|source| error(source.to_string()))?;
            let id = match row.id {
                Id::Text(id) => id,
                Id::Number(id) => id.to_string(),
            };
            let other = match row.shown_first {
                ShownFirst::Base => ShownFirst::Aligned,
                ShownFirst::Aligned => ShownFirst::Base,
            };
            if !verdicts.contains_key(&(id.clone(), other)) {
                ids.push(id.clone());
            }
            if verdicts.insert((id.clone(), row.shown_first), row.verdict).is_some() {
                return Err(error(format!(
                    "id {id:?} was judged in this order in an earlier row already"
                )));
            }
        }
        let stored = Self {
            path: path.to_owned(),
            verdicts,
            ids,
        };
        for id in &stored.ids {
            for order in [ShownFirst::Base, ShownFirst::Aligned] {
                stored.verdict(id, order)?;
            }
        }
        if stored.ids.is_empty() {
            return Err(Error::NoScores);
        }
        Ok(stored)
    }

    /// Every record, in the order of the file.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }
}

impl PairwiseJudge for StoredVerdicts {
    fn verdict(&self, id: &str, shown_first: ShownFirst) -> Result<Verdict> {
        self.verdicts
            .get(&(id.to_owned(), shown_first))
            .copied()
            .ok_or_else(|| Error::NotJudged {
                path: self.path.clone(),
                id: id.to_owned(),
                shown_first,
            })
    }
}

/// The outcome of asking a judge about every pair in both orders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwappedOutcome {
    /// Number of pairs.
    pub n: usize,
    /// Pairs where the aligned model's image is named in both orders, or once beside a tie.
    pub wins: usize,
    /// All others.
    pub ties: usize,
    /// The same for the base model's.
    pub losses: usize,
    /// Wins plus half the ties, over all pairs.
    pub win_rate: Estimate,
    /// Share of pairs whose two verdicts name different images.
    pub inconsistent: Estimate,
    /// How often the first place is named less how often the second is, over all verdicts: 0 for a fair judge, 1 for one that always
    /// names the first place.
    pub position_bias: Estimate,
    /// Resamples behind the intervals.
    pub bootstrap_samples: usize,
    /// Source of the resamples.
    pub seed: u64,
}

impl SwappedOutcome {
    /// Asks about every record in both orders. Records are resampled as a whole, both verdicts of each.
    ///
    /// # Errors
    /// Those of the judge; [`Error::NoScores`] without records; [`Error::InvalidConfig`] for 0 `bootstrap_samples`.
    pub fn ask(judge: &impl PairwiseJudge, ids: &[String], seed: u64, bootstrap_samples: usize) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::NoScores);
        }
        if bootstrap_samples == 0 {
            return Err(Error::InvalidConfig {
                key: "bootstrap_samples",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        let (mut values, mut conflicts, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let base_first = judge.verdict(id, ShownFirst::Base)?;
            let aligned_first = judge.verdict(id, ShownFirst::Aligned)?;
            // For the aligned image in each order, and for the first place.
            let (one, other) = (-first_place(base_first), first_place(aligned_first));
            let sum = one + other;
            values.push(if sum == 0.0 {
                0.5
            } else {
                f64::from(u8::from(sum > 0.0))
            });
            conflicts.push(f64::from(u8::from(one * other < 0.0)));
            places.push(f64::midpoint(first_place(base_first), first_place(aligned_first)));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [value_means, conflict_means, place_means] =
            resampled_means([&values, &conflicts, &places], bootstrap_samples, &mut rng);
        let count = |wanted: f64| values.iter().filter(|value| **value == wanted).count();
        Ok(Self {
            n: ids.len(),
            wins: count(1.0),
            ties: count(0.5),
            losses: count(0.0),
            win_rate: estimate(&values, value_means),
            inconsistent: estimate(&conflicts, conflict_means),
            position_bias: estimate(&places, place_means),
            bootstrap_samples,
            seed,
        })
    }
}

/// 1 when the first place is named, -1 for the second.
fn first_place(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::First => 1.0,
        Verdict::Second => -1.0,
        Verdict::Tie => 0.0,
    }
}

impl fmt::Display for SwappedOutcome {
    /// The table an evaluation ends with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |estimate: &Estimate| {
            format!(
                "{:.1} % [{:.1}, {:.1}]",
                100.0 * estimate.mean,
                100.0 * estimate.low,
                100.0 * estimate.high
            )
        };
        writeln!(f, "win rate       {}", percent(&self.win_rate))?;
        writeln!(f, "win/tie/loss   {}/{}/{}", self.wins, self.ties, self.losses)?;
        writeln!(f, "inconsistent   {}", percent(&self.inconsistent))?;
        let bias = &self.position_bias;
        writeln!(
            f,
            "position bias  {:+.3} [{:+.3}, {:+.3}]",
            bias.mean, bias.low, bias.high
        )?;
        write!(f, "n              {} pairs, each in both orders", self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names the aligned image for ids from "w", the base image for those from "l", always the first place for those from "f".
    struct Rule;

    impl PairwiseJudge for Rule {
        fn verdict(&self, id: &str, shown_first: ShownFirst) -> Result<Verdict> {
            let is_aligned_first = shown_first == ShownFirst::Aligned;
            let names_first = match &id[..1] {
                "w" => is_aligned_first,
                "l" => !is_aligned_first,
                "f" => true,
                "h" if is_aligned_first => true,
                _ => return Ok(Verdict::Tie),
            };
            Ok(if names_first { Verdict::First } else { Verdict::Second })
        }
    }

    #[test]
    fn a_place_that_is_favored_gives_ties_and_a_bias() {
        let ids = ["w1", "w2", "l1", "f1", "f2", "f3", "t1", "h1"].map(str::to_owned);
        let outcome = SwappedOutcome::ask(&Rule, &ids, 1, 500).unwrap();
        // A verdict for the aligned image beside a tie counts.
        assert_eq!((outcome.wins, outcome.ties, outcome.losses), (3, 4, 1));
        assert!((outcome.win_rate.mean - 5.0 / 8.0).abs() < 1e-12);
        assert!((outcome.inconsistent.mean - 3.0 / 8.0).abs() < 1e-12);
        // Three pairs name the first place twice, and one half the time.
        assert!((outcome.position_bias.mean - 3.5 / 8.0).abs() < 1e-12);
        assert!(outcome.win_rate.low < outcome.win_rate.mean && outcome.win_rate.mean < outcome.win_rate.high);
        assert!(outcome.to_string().contains("position bias  +0.438"), "{outcome}");
        let all_first = SwappedOutcome::ask(&Rule, &["f1".to_owned()], 1, 10).unwrap();
        assert_eq!((all_first.position_bias.mean, all_first.win_rate.mean), (1.0, 0.5));
    }

    #[test]
    fn stored_verdicts_are_read_and_wrong_rows_named() {
        let folder = tempfile::tempdir().unwrap();
        let read = |rows: &str| {
            let path = folder.path().join("verdicts.jsonl");
            std::fs::write(&path, rows).unwrap();
            StoredVerdicts::read(&path)
        };
        let row = |id: &str, order: &str, verdict: &str| {
            format!("{{\"id\": {id}, \"shown_first\": \"{order}\", \"verdict\": \"{verdict}\"}}\n")
        };
        let both = row("7", "base", "second") + "\n" + &row("7", "aligned", "first");
        let stored = read(&both).unwrap();
        let outcome = SwappedOutcome::ask(&stored, stored.ids(), 0, 10).unwrap();
        assert_eq!((outcome.n, outcome.wins), (1, 1));
        for (rows, expected) in [
            (
                both.clone() + &row("7", "base", "tie"),
                "verdicts.jsonl, row 4: id \"7\"",
            ),
            (row("\"a\"", "base", "first"), "id \"a\" with the aligned image first"),
            (row("1", "left", "first"), "row 1: unknown variant `left`"),
            (row("1", "base", "better"), "unknown variant `better`"),
            (row("1.5", "base", "first"), "row 1"),
            (String::new(), "no scores"),
        ] {
            let message = read(&rows).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
