//! Pairs of candidates for one step, ranked by the clean images that they promise.
//!
//! Liang et al., "Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization" (SPO),
//! CVPR 2025, arXiv:2406.04314. From the latents of a step several candidates are drawn; the best and the worst make a pair where
//! the judge is sure enough, and the trajectory goes on from a random one. With a step-aware judge this is SPO; with one of finished
//! images it is the stepwise ranking of TailorPO (Ren et al., ICLR 2025, arXiv:2502.01667).

use std::collections::BTreeMap;

use diptych_tensor::Tensor;
use diptych_train::{Item, MicroBatch};

use super::Collected;
use super::config::StepAwareConfig;
use super::kept::{Kept, Move, TransitionPair, nothing};
use super::pair_step::reward_metrics;
use super::studio::{Dice, Studio, each, gather, joined};
use crate::Result;

/// What is found while sampling.
#[derive(Debug, Default)]
struct Found {
    pool: Vec<Tensor>,
    num_latents: usize,
    pairs: Vec<TransitionPair>,
    scores: Vec<f64>,
    num_branches: usize,
    num_kept: usize,
}

impl Found {
    /// Puts latents into the pool and says where the first one is.
    fn push(&mut self, latents: &Tensor) -> usize {
        let first = self.num_latents;
        self.num_latents += latents.dims()[0];
        self.pool.push(latents.clone());
        first
    }
}

/// Goes through a trajectory of each prompt of the effective batch and ranks candidates on the way.
pub(super) fn collect(
    studio: &Studio,
    config: &StepAwareConfig,
    batch: &MicroBatch,
) -> Result<Collected<TransitionPair>> {
    let mut found = Found::default();
    for items in batch.step_items.chunks(batch.items.len().max(1)) {
        walk(studio, config, batch, items, &mut found)?;
    }
    let latents = if found.pairs.is_empty() {
        nothing(studio.device())?
    } else {
        joined(&found.pool)?
    };
    let totals = BTreeMap::from([
        ("pairs", found.num_kept as f64),
        ("unsure", (found.num_branches - found.num_kept) as f64),
    ]);
    Ok(Collected {
        kept: Kept::new(batch, latents, found.pairs),
        weighted: reward_metrics(&found.scores),
        totals,
    })
}

fn walk(
    studio: &Studio,
    config: &StepAwareConfig,
    batch: &MicroBatch,
    items: &[Item],
    found: &mut Found,
) -> Result<()> {
    let records: Vec<usize> = items.iter().map(|item| item.index).collect();
    let transitions = &studio.transitions;
    let mut dice = Dice::new(studio, batch, items);
    let mut current = dice.normal(1)?;
    let mut prediction = studio.predict_detached(&records, &current, 0)?;
    let mut step = 0;
    while step < transitions.num_steps() {
        if step < config.start_step {
            let steps = vec![step; records.len()];
            let mean = transitions.mean(&prediction, &steps, &current)?;
            current = transitions.sample(&mean, &steps, &dice.normal(1)?)?;
            step += 1;
            if step < transitions.num_steps() {
                prediction = studio.predict_detached(&records, &current, step)?;
            }
            continue;
        }
        let end = (step + config.inner_steps).min(transitions.num_steps());
        let branch = Branch::draw(studio, config, &records, (&current, &prediction), step..end, &mut dice)?;
        branch.keep_pairs(studio, config, items, found)?;
        let picked = dice.choice(config.candidates);
        let picked = picked.iter().enumerate().map(|(place, pick)| place * config.candidates + pick);
        let picked: Vec<usize> = picked.collect();
        current = gather(&branch.latents[branch.latents.len() - 1], picked.iter().copied())?;
        if let Some(of_candidates) = &branch.prediction {
            prediction = gather(of_candidates, picked.iter().copied())?;
        }
        step = end;
    }
    Ok(())
}

/// Candidates drawn from the same latents, those of a prompt one behind the other.
struct Branch {
    first_step: usize,
    /// Latents the candidates begin with, (N, C, Y, X).
    start: Tensor,
    /// Latents after each transition, (N candidates, C, Y, X).
    latents: Vec<Tensor>,
    /// Predictions for the last ones; none when they are finished.
    prediction: Option<Tensor>,
    scores: Vec<f64>,
}

impl Branch {
    fn draw(
        studio: &Studio,
        config: &StepAwareConfig,
        records: &[usize],
        (start, prediction): (&Tensor, &Tensor),
        range: std::ops::Range<usize>,
        dice: &mut Dice,
    ) -> Result<Self> {
        let transitions = &studio.transitions;
        let many = each(records, config.candidates);
        let places = each(&(0..records.len()).collect::<Vec<_>>(), config.candidates);
        let mut current = gather(start, places.iter().copied())?;
        let mut prediction = gather(prediction, places.into_iter())?;
        let mut latents = Vec::new();
        let end = range.end;
        let first_step = range.start;
        for step in range {
            let steps = vec![step; many.len()];
            let mean = transitions.mean(&prediction, &steps, &current)?;
            current = transitions.sample(&mean, &steps, &dice.normal(config.candidates)?)?;
            latents.push(current.clone());
            if step + 1 < transitions.num_steps() {
                prediction = studio.predict_detached(&many, &current, step + 1)?;
            }
        }
        let is_finished = end == transitions.num_steps();
        let clean = if is_finished {
            current
        } else {
            transitions.clean(&prediction, &vec![end; many.len()], &current)?
        };
        let scores = studio.host_rewards(&many, &clean, transitions.timestep(end))?;
        Ok(Self {
            first_step,
            start: start.clone(),
            latents,
            prediction: (!is_finished).then_some(prediction),
            scores,
        })
    }

    fn keep_pairs(&self, studio: &Studio, config: &StepAwareConfig, items: &[Item], found: &mut Found) -> Result<()> {
        found.scores.extend_from_slice(&self.scores);
        found.num_branches += items.len();
        let ranked: Vec<(usize, [usize; 2])> = (0..items.len())
            .filter_map(|place| {
                let first = place * config.candidates;
                let scores = &self.scores[first..first + config.candidates];
                let [best, worst] = best_and_worst(scores, config.threshold)?;
                Some((place, [first + best, first + worst]))
            })
            .collect();
        if ranked.is_empty() {
            return Ok(());
        }
        found.num_kept += ranked.len();
        // Of the candidates only the ranked ones are needed again: first their common starts, then both sides after every transition.
        let mut from = found.push(&gather(&self.start, ranked.iter().map(|(place, _)| *place))?);
        for (offset, latents) in self.latents.iter().enumerate() {
            let to = found.push(&gather(latents, ranked.iter().flat_map(|(_, sides)| *sides))?);
            let step = self.first_step + offset;
            if studio.transitions.is_random(step) {
                found.pairs.extend(ranked.iter().enumerate().map(|(at, (place, sides))| {
                    let side = |side: usize| Move {
                        from: if offset == 0 { from + at } else { from + 2 * at + side },
                        to: to + 2 * at + side,
                    };
                    TransitionPair {
                        position: items[*place].position,
                        step,
                        chosen: side(0),
                        rejected: side(1),
                        scores: sides.map(|candidate| self.scores[candidate]),
                    }
                }));
            }
            from = to;
        }
        Ok(())
    }
}

/// Places of the best and the worst score, where the softmax of the two differs by more than `threshold`.
fn best_and_worst(scores: &[f64], threshold: f64) -> Option<[usize; 2]> {
    let mut best = 0;
    let mut worst = 0;
    for (place, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = place;
        }
        if *score < scores[worst] {
            worst = place;
        }
    }
    // The difference of a softmax over two scores is a hyperbolic tangent of half their difference.
    let gap = (0.5 * (scores[best] - scores[worst])).tanh();
    (gap > threshold).then_some([best, worst])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of the published code: softmax over the two scores, then their difference.
    #[test]
    fn a_pair_needs_a_sure_judge() {
        let softmax_gap = |a: f64, b: f64| (a.exp() - b.exp()) / (a.exp() + b.exp());
        let scores = [20.1, 20.9, 20.3, 20.2];
        let gap = softmax_gap(20.9, 20.1);
        assert_eq!(best_and_worst(&scores, gap - 1e-9), Some([1, 0]));
        assert_eq!(best_and_worst(&scores, gap + 1e-9), None);
        assert_eq!(best_and_worst(&[1.0, 1.0, 1.0], 0.0), None);
        assert_eq!(best_and_worst(&[500.0, -500.0], 0.99), Some([0, 1]));
        assert_eq!(best_and_worst(&[0.0, 1.0, 1.0, 0.0], 0.3), Some([1, 0]));
    }
}
