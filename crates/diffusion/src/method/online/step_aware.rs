//! Pairs of candidates for one step, ranked by the clean images that they promise.
//!
//! Liang et al., "Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization" (SPO),
//! CVPR 2025, arXiv:2406.04314. From the latents of a step several candidates are drawn; the best and the worst make a pair where
//! the judge is sure enough, and the trajectory goes on from a random one. With a step-aware judge this is SPO; with one of finished
//! images it is the stepwise ranking of TailorPO (Ren et al., ICLR 2025, arXiv:2502.01667), and with `gradient_guidance` TailorPO-G. Which
//! candidate their trajectories go on from is for `continue_from` to say: any, as in SPO, or the best.

use std::collections::BTreeMap;
use std::sync::Arc;

use diptych_tensor::Tensor;
use diptych_tensor::random::{Generator, Stream, generator};
use diptych_train::{Item, MicroBatch};
use rand::Rng;

use super::Collected;
use super::config::{Continuation, StepAwareConfig};
use super::kept::{Kept, Move, TransitionPair, nothing};
use super::pair_step::{reward_metrics, weighted};
use super::reward_guidance::{self, Pushed};
use super::studio::{Studio, each, gather, joined};
use crate::Result;
use crate::pipeline::{Denoiser, Guided};
use crate::sampler::Transition;
use crate::trajectory::State;

/// What is found while sampling.
#[derive(Debug, Default)]
struct Found {
    pool: Vec<Tensor>,
    num_latents: usize,
    pairs: Vec<TransitionPair>,
    scores: Vec<f64>,
    /// How far candidates were pushed.
    moves: Vec<f64>,
    num_branches: usize,
    num_kept: usize,
}

impl Found {
    /// Puts latents into the pool and says where the first one is.
    fn push(&mut self, latents: Tensor) -> usize {
        let first = self.num_latents;
        self.num_latents += latents.dims()[0];
        self.pool.push(latents);
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
        Party::new(studio, config, batch, items).walk(&mut found)?;
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
    let mut means = reward_metrics(&found.scores);
    if config.gradient_guidance.is_some() && !found.moves.is_empty() {
        means.insert("guidance", weighted(&found.moves));
    }
    Ok(Collected {
        kept: Kept::new(batch, latents, found.pairs),
        weighted: means,
        totals,
    })
}

/// Prompts that are sampled together.
struct Party<'a> {
    studio: &'a Studio,
    config: &'a StepAwareConfig,
    batch: &'a MicroBatch,
    items: &'a [Item],
    images: Vec<u64>,
    records: Vec<usize>,
    /// Which candidate each prompt's trajectory goes on from.
    choices: Vec<Generator>,
}

/// Candidates drawn from the same latents, those of a prompt one behind the other.
struct Branch {
    /// Latents that the candidates begin with, (N, C, Y, X).
    start: Tensor,
    first_step: usize,
    /// Latents after each transition, (N candidates, C, Y, X).
    latents: Vec<Tensor>,
    /// The transitions behind the last ones; none when they are finished.
    next: Option<Transition>,
    scores: Vec<f64>,
}

impl<'a> Party<'a> {
    fn new(studio: &'a Studio, config: &'a StepAwareConfig, batch: &'a MicroBatch, items: &'a [Item]) -> Self {
        // The noise of an optimizer step's trajectories has the candidate in these bits, and there are fewer candidates than that.
        let word = batch.first_step() | u64::from(u8::MAX) << 32;
        let choice = |item: &Item| generator(batch.seed, Stream::Rollout, word, item.position);
        Self {
            studio,
            config,
            batch,
            items,
            images: items.iter().map(|item| item.position).collect(),
            records: items.iter().map(|item| item.index).collect(),
            choices: items.iter().map(choice).collect(),
        }
    }

    fn walk(mut self, found: &mut Found) -> Result<()> {
        let num_steps = self.studio.sampler.num_steps();
        let network = self.studio.policy_for(&self.records)?;
        let mut state = {
            let walk = self.studio.walk(&network, self.batch, &self.images);
            let mut state = walk.start()?;
            walk.advance(&mut state, self.config.start_step)?;
            state
        };
        let mut transition = self
            .studio
            .walk(&network, self.batch, &self.images)
            .transition(&mut state)?;
        while state.step_idx < num_steps {
            let end = (state.step_idx + self.config.inner_steps).min(num_steps);
            let branch = self.branch(&state, &transition, end)?;
            let ranked = self.ranked(&branch);
            let pushed = self.pushed(&branch, &ranked)?;
            self.keep_pairs(&branch, &ranked, pushed.as_ref(), found)?;
            let picks = self.picks(&ranked);
            let latents = gather(&branch.latents[branch.latents.len() - 1], picks.iter().copied())?;
            state = State::new(latents, end);
            if let Some(next) = &branch.next {
                transition = rows(next, &picks)?;
            }
            if let Some(pushed) = pushed.filter(|_| self.config.continue_from == Continuation::Best) {
                state = State::new(replaced(&state.latents, &ranked, &pushed.latents)?, end);
                if end < num_steps {
                    let walk = self.studio.walk(&network, self.batch, &self.images);
                    transition = walk.transition(&mut state)?;
                }
            }
        }
        Ok(())
    }

    /// Which candidate each prompt's trajectory goes on from, as a row of all candidates.
    fn picks(&mut self, ranked: &[Ranked]) -> Vec<usize> {
        let candidates = usize::from(self.config.candidates);
        let drawn = self.choices.iter_mut().enumerate();
        let mut picks: Vec<usize> = drawn
            .map(|(place, rng)| place * candidates + rng.random_range(0..candidates))
            .collect();
        match self.config.continue_from {
            Continuation::Random => {}
            Continuation::Best => ranked.iter().for_each(|pair| picks[pair.place] = pair.sides[0]),
        }
        picks
    }

    /// The better candidates, pushed along the gradient of the reward where the recipe asks for it.
    fn pushed(&self, branch: &Branch, ranked: &[Ranked]) -> Result<Option<Pushed>> {
        // Where no noise is added no pair is learned from.
        let Some(guidance) = self
            .config
            .gradient_guidance
            .filter(|_| self.is_learned(branch.first_step))
        else {
            return Ok(None);
        };
        if ranked.is_empty() {
            return Ok(None);
        }
        let records: Vec<usize> = ranked.iter().map(|pair| self.records[pair.place]).collect();
        let latents = gather(&branch.latents[0], ranked.iter().map(|pair| pair.sides[0]))?;
        reward_guidance::push(self.studio, guidance, &records, &latents, branch.first_step).map(Some)
    }

    /// Whether a step adds noise, so that its pairs have densities.
    fn is_learned(&self, step: usize) -> bool {
        self.studio.sampler.std(step) > 0.0
    }

    /// Draws candidates from `transition` on, up to step `end`, and has the clean images that they promise judged.
    fn branch(&self, state: &State, transition: &Transition, end: usize) -> Result<Branch> {
        let candidates = usize::from(self.config.candidates);
        let studio = self.studio;
        let records = each(&self.records, candidates);
        let network = studio.policy_for(&records)?;
        let places = each(&(0..self.items.len()).collect::<Vec<_>>(), candidates);
        let mut transition = rows(transition, &places)?;
        let (mut latents, mut next) = (Vec::new(), None);
        for step in state.step_idx..end {
            let after = transition.sample(self.noise(step)?.as_ref())?;
            latents.push(after.clone());
            next = None;
            if step + 1 < studio.sampler.num_steps() {
                transition = self.transition(&network, after, step + 1)?;
                next = Some(transition.clone());
            }
        }
        let clean = match &next {
            Some(transition) => &transition.clean,
            None => &latents[latents.len() - 1],
        };
        let scores = studio.host_rewards(&records, clean, studio.timestep(end))?;
        Ok(Branch {
            start: state.latents.clone(),
            first_step: state.step_idx,
            latents,
            next,
            scores,
        })
    }

    fn transition(&self, network: &Guided<Arc<Denoiser>>, latents: Tensor, step: usize) -> Result<Transition> {
        // Their noise is drawn here, a candidate at a time, so that the walk's own images do not matter.
        let images = each(&self.images, usize::from(self.config.candidates));
        let walk = self.studio.walk(network, self.batch, &images);
        walk.transition(&mut State::new(latents, step))
    }

    /// Fresh noise of a step for every candidate, those of a prompt one behind the other; none where the step adds none.
    fn noise(&self, step: usize) -> Result<Option<Tensor>> {
        let studio = self.studio;
        if studio.sampler.std(step) == 0.0 {
            return Ok(None);
        }
        let source = Studio::noise(self.batch);
        let of_candidate =
            |candidate| source.of_step(step, candidate, &self.images, &studio.latent_shape, studio.device());
        let noise: Vec<Tensor> = (0..self.config.candidates)
            .map(of_candidate)
            .collect::<diptych_tensor::Result<_>>()?;
        let num = self.images.len();
        let order = (0..num).flat_map(|place| (0..noise.len()).map(move |candidate| candidate * num + place));
        gather(&joined(&noise)?, order).map(Some)
    }

    /// The best and the worst candidate of each prompt about which the judge is sure.
    fn ranked(&self, branch: &Branch) -> Vec<Ranked> {
        let candidates = usize::from(self.config.candidates);
        let ranked = |place| {
            let first = place * candidates;
            let scores = &branch.scores[first..first + candidates];
            let [best, worst] = best_and_worst(scores, self.config.threshold)?;
            let sides = [first + best, first + worst];
            Some(Ranked { place, sides })
        };
        (0..self.items.len()).filter_map(ranked).collect()
    }

    /// Keeps pairs, the better candidates as they were pushed.
    fn keep_pairs(&self, branch: &Branch, ranked: &[Ranked], pushed: Option<&Pushed>, found: &mut Found) -> Result<()> {
        found.scores.extend_from_slice(&branch.scores);
        found.num_branches += self.items.len();
        if ranked.is_empty() {
            return Ok(());
        }
        if let Some(pushed) = pushed {
            found.moves.extend_from_slice(&pushed.moves);
        }
        found.num_kept += ranked.len();
        // Of the candidates only the ranked ones are needed again: first their common starts, then both sides after every transition.
        let mut from = found.push(gather(&branch.start, ranked.iter().map(|pair| pair.place))?);
        for (offset, latents) in branch.latents.iter().enumerate() {
            let sides = gather(latents, ranked.iter().flat_map(|pair| pair.sides))?;
            let to = found.push(match pushed {
                None => sides,
                Some(pushed) => with_pushed(&sides, &pushed.latents)?,
            });
            let step = branch.first_step + offset;
            if self.is_learned(step) {
                found
                    .pairs
                    .extend(ranked.iter().enumerate().map(|(at, Ranked { place, sides })| {
                        let side = |side: usize| Move {
                            from: if offset == 0 { from + at } else { from + 2 * at + side },
                            to: to + 2 * at + side,
                        };
                        TransitionPair {
                            position: self.items[*place].position,
                            step,
                            chosen: side(0),
                            rejected: side(1),
                            scores: sides.map(|candidate| branch.scores[candidate]),
                        }
                    }));
            }
            from = to;
        }
        Ok(())
    }
}

/// The best and the worst candidate of a prompt.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    /// Place of the prompt among those that are sampled together.
    place: usize,
    /// Rows of the two among all candidates.
    sides: [usize; 2],
}

/// Latents of pairs, (2N, C, Y, X), the better ones replaced by what they were pushed to, (N, C, Y, X).
fn with_pushed(sides: &Tensor, pushed: &Tensor) -> Result<Tensor> {
    let num = pushed.dims()[0];
    let order = (0..num).flat_map(|pair| [2 * num + pair, 2 * pair + 1]);
    gather(&joined(&[sides.clone(), pushed.clone()])?, order)
}

/// Latents of all prompts, those of ranked ones replaced by what their better candidates were pushed to.
fn replaced(latents: &Tensor, ranked: &[Ranked], pushed: &Tensor) -> Result<Tensor> {
    let num = latents.dims()[0];
    let mut order: Vec<usize> = (0..num).collect();
    for (at, pair) in ranked.iter().enumerate() {
        order[pair.place] = num + at;
    }
    gather(&joined(&[latents.clone(), pushed.clone()])?, order.into_iter())
}

/// Some examples of a batch of distributions.
fn rows(transition: &Transition, rows: &[usize]) -> Result<Transition> {
    Ok(Transition {
        mean: gather(&transition.mean, rows.iter().copied())?,
        clean: gather(&transition.clean, rows.iter().copied())?,
        stds: rows.iter().map(|&row| transition.stds[row]).collect(),
    })
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
