//! What rounds came to.

use std::fmt;
use std::path::PathBuf;

use diptych_eval::WinRate;
use diptych_train::Summary;
use serde::{Deserialize, Serialize};

use super::place::RoundBeginning;

/// What a run of several rounds came to.
#[derive(Debug, Clone)]
pub struct RoundsOutcome {
    /// As in `summary.json`.
    pub summary: RoundsSummary,
    /// The directory.
    pub output: PathBuf,
}

/// `summary.json` of a run of several rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundsSummary {
    /// Whether the run was stopped before the end of its last round.
    pub stopped: bool,
    /// Mean score of the initial policy on held-out prompts, where they are asked for.
    pub initial_score: Option<f64>,
    /// The rounds that are done.
    pub rounds: Vec<RoundSummary>,
}

/// What one round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// Who did what.
    pub beginning: RoundBeginning,
    /// What was made to train on.
    pub made: MadeRecords,
    /// Of the training.
    pub training: Summary,
    /// The round's policy against the initial one on held-out prompts, where they are asked for.
    pub against_initial: Option<WinRate>,
    /// The same against the policy of the round before.
    pub against_previous: Option<WinRate>,
}

/// What a round made to train on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeRecords {
    /// Prompts.
    pub num_prompts: usize,
    /// Sampled images.
    pub num_images: usize,
    /// Pairs, or captioned images with those of the data among them.
    pub num_records: usize,
    /// What the judge gave the sampled images on average, where there is one.
    pub mean_score: Option<f64>,
}

impl fmt::Display for RoundsSummary {
    /// The table a run ends with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "round | records | sampled score | held-out score | against initial: difference, 95 % interval, win rate | against previous"
        )?;
        if let Some(score) = self.initial_score {
            writeln!(f, "{:>5} | {:>7} | {:>13} | {score:>14.4} |", 0, "", "")?;
        }
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
        for round in &self.rounds {
            write!(
                f,
                "{:>5} | {:>7} | {:>13} | {:>14}",
                round.beginning.round,
                round.made.num_records,
                number(round.made.mean_score),
                number(round.against_initial.as_ref().map(|rate| rate.aligned.mean)),
            )?;
            for rate in [&round.against_initial, &round.against_previous].into_iter().flatten() {
                let difference = rate.difference;
                write!(
                    f,
                    " | {:+.4} [{:+.4}, {:+.4}] {:.1} %",
                    difference.mean,
                    difference.low,
                    difference.high,
                    100.0 * rate.win_rate
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
