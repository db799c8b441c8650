//! Curriculum-DPO: pairs that are easy to tell apart first, harder ones joining them.
//!
//! Croitoru et al., "Curriculum Direct Preference Optimization for Diffusion and Consistency Models", CVPR 2025, arXiv:2405.13637. Pairs are
//! sorted by the gap between their images; the pool of a step holds those with the largest gaps, and grows to all pairs in
//! `num_chunks` stages. Every place of a step draws a pair of the pool, all alike, from (seed, step, place) alone.
//!
//! The released code (CroitoruAlin/Curriculum-DPO `data/dataset_factory.py`) has `no_chunks` thresholds, of which the first is the largest
//! gap itself and gives no stage: its 6 are `num_chunks = 5` here. It takes labels from the scores; here they are the data's, and a pair whose scores
//! contradict its label is among the hardest.

use std::collections::BTreeMap;

use diptych_tensor::random::{Stream, generator};
use rand::Rng;

use super::config::{CurriculumConfig, GapKind, Pools};

/// Which pairs a step draws from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curriculum {
    /// Records from the largest gap to the smallest; equal gaps in the order of the data.
    order: Vec<usize>,
    /// How many of them each stage draws from.
    pool_sizes: Vec<usize>,
    update_every: u64,
}

/// What a pair's difficulty is read from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoredPair<'a> {
    pub(crate) prompt: &'a str,
    /// A judge's scores of the chosen and of the rejected image.
    pub(crate) scores: [f64; 2],
}

impl Curriculum {
    /// A curriculum over at least one pair.
    pub(crate) fn new(config: &CurriculumConfig, pairs: &[ScoredPair<'_>]) -> Self {
        let gaps = match config.by {
            GapKind::ScoreGap => pairs.iter().map(|pair| pair.scores[0] - pair.scores[1]).collect(),
            GapKind::RankGap => rank_gaps(pairs),
        };
        let mut order: Vec<usize> = (0..gaps.len()).collect();
        order.sort_by(|&a, &b| gaps[b].total_cmp(&gaps[a]));
        let sorted: Vec<f64> = order.iter().map(|&record| gaps[record]).collect();
        Self {
            pool_sizes: pool_sizes(config, &sorted),
            order,
            update_every: config.update_every,
        }
    }

    /// How many pairs step `step`, from 1, draws from.
    pub(crate) fn pool_size(&self, step: u64) -> usize {
        let stage = (step.saturating_sub(1) / self.update_every) as usize;
        self.pool_sizes[stage.min(self.pool_sizes.len() - 1)]
    }

    /// The record of a place in a step's batch.
    pub(crate) fn choose(&self, seed: u64, step: u64, position: u64) -> usize {
        let mut rng = generator(seed, Stream::Records, step, position);
        self.order[rng.random_range(0..self.pool_size(step))]
    }
}

/// Sizes of the pools, one a stage, the last of which is everything.
fn pool_sizes(config: &CurriculumConfig, descending: &[f64]) -> Vec<usize> {
    let (num, chunks) = (descending.len(), config.num_chunks as usize);
    let (largest, smallest) = (descending[0], descending[num - 1]);
    let size = |stage: usize| match config.pools {
        _ if stage == chunks => num,
        Pools::EqualGaps => {
            let threshold = largest - (largest - smallest) * (stage as f64 / chunks as f64);
            descending.partition_point(|&gap| gap >= threshold)
        }
        Pools::EqualCounts => (num * stage / chunks).max(1),
    };
    (1..=chunks).map(size).collect()
}

/// By how many places the chosen image stands above the rejected one among all images of the prompt; images with the same score
/// stand in one place.
fn rank_gaps(pairs: &[ScoredPair<'_>]) -> Vec<f64> {
    let mut scores: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for pair in pairs {
        scores.entry(pair.prompt).or_default().extend(pair.scores);
    }
    for of_prompt in scores.values_mut() {
        of_prompt.sort_by(|a, b| b.total_cmp(a));
        of_prompt.dedup();
    }
    let place = |prompt: &str, score: f64| scores[prompt].partition_point(|&better| better > score) as f64;
    pairs
        .iter()
        .map(|pair| place(pair.prompt, pair.scores[1]) - place(pair.prompt, pair.scores[0]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [[f64; 2]; 5] = [[0.9, 0.8], [1.0, 0.0], [0.2, 0.6], [0.7, 0.2], [0.55, 0.2]];

    fn pairs() -> Vec<ScoredPair<'static>> {
        SCORES.map(|scores| ScoredPair { prompt: "a", scores }).to_vec()
    }

    fn config(by: GapKind, pools: Pools, num_chunks: u32) -> CurriculumConfig {
        CurriculumConfig {
            by,
            pools,
            num_chunks,
            update_every: 10,
        }
    }

    #[test]
    fn the_largest_gaps_come_first_and_the_rest_joins_them() {
        let curriculum = Curriculum::new(&config(GapKind::ScoreGap, Pools::EqualGaps, 4), &pairs());
        // Gaps 1, 0.5, 0.35, 0.1, -0.4; thresholds 0.65, 0.3, -0.05, -0.4.
        assert_eq!(curriculum.order, [1, 3, 4, 0, 2]);
        let sizes = [1, 10, 11, 21, 31, 41, 1000].map(|step| curriculum.pool_size(step));
        assert_eq!(sizes, [1, 1, 3, 4, 5, 5, 5]);
        let counts = Curriculum::new(&config(GapKind::ScoreGap, Pools::EqualCounts, 2), &pairs());
        assert_eq!([1, 11].map(|step| counts.pool_size(step)), [2, 5]);
        let uniform = Curriculum::new(&config(GapKind::ScoreGap, Pools::EqualGaps, 1), &pairs());
        assert_eq!(uniform.pool_size(1), 5);
    }

    /// `np.linspace(min, max, 6)[::-1]`, of which stage i has the pairs at or above threshold i + 1.
    #[test]
    fn pools_are_those_of_the_released_code() {
        let gaps: Vec<f64> = (0..40).map(|i| (f64::from(i) * 0.618_034).fract()).collect();
        let pairs: Vec<_> = gaps
            .iter()
            .map(|&gap| ScoredPair {
                prompt: "a",
                scores: [gap, 0.0],
            })
            .collect();
        let curriculum = Curriculum::new(&config(GapKind::ScoreGap, Pools::EqualGaps, 5), &pairs);
        let (low, high) = gaps
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), &gap| (low.min(gap), high.max(gap)));
        for stage in 0..4_u64 {
            let threshold = low + (high - low) * (4 - stage) as f64 / 5.0;
            let expected = gaps.iter().filter(|&&gap| gap >= threshold).count();
            assert_eq!(curriculum.pool_size(10 * stage + 1), expected, "{stage}");
        }
        assert_eq!(curriculum.pool_size(41), 40);
    }

    #[test]
    fn ranks_are_those_of_a_prompt() {
        let pair = |prompt, scores| ScoredPair { prompt, scores };
        let pairs = [
            pair("a", [0.9, 0.1]),
            pair("a", [0.5, 0.1]),
            pair("a", [0.9, 0.5]),
            pair("b", [100.0, 1.0]),
            pair("b", [1.0, 1.0]),
            pair("b", [1.0, 100.0]),
        ];
        assert_eq!(rank_gaps(&pairs), [2.0, 1.0, 1.0, 1.0, 0.0, -1.0]);
    }

    #[test]
    fn draws_depend_on_seed_step_and_place_and_stay_in_the_pool() {
        let curriculum = Curriculum::new(&config(GapKind::ScoreGap, Pools::EqualGaps, 4), &pairs());
        let draw = |seed, step| -> Vec<usize> { (0..400).map(|place| curriculum.choose(seed, step, place)).collect() };
        assert_eq!(draw(0, 15), draw(0, 15));
        assert_ne!(draw(0, 15), draw(0, 16));
        assert_ne!(draw(0, 15), draw(1, 15));
        for record in 0..5 {
            let share = draw(0, 15).iter().filter(|&&drawn| drawn == record).count();
            if [1, 3, 4].contains(&record) {
                // A third of 400, give or take four standard deviations.
                assert!((95..=171).contains(&share), "{record}: {share}");
            } else {
                assert_eq!(share, 0, "{record}");
            }
        }
    }
}
