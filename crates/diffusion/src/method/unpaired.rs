//! Images that were each judged good or bad: no two of them need share a prompt.
//!
//! Li et al., "Aligning Diffusion Models by Optimizing Human Utility", NeurIPS 2024, arXiv:2404.04465 (Diffusion-KTO). Each image
//! has a timestep and a noise of its own, shared by policy and reference. The objective is free: with `kto` this is Diffusion-KTO, with
//! `dso_dro` the direct reward optimization of DSO.
//!
//! The baseline that `kto` subtracts is by default the mean log-ratio of the micro batch's own images, as in the released code; with
//! `baseline = "mismatched"`, that of the same noisy images under the prompts of others, its `bce_offset = "original"`. The code's `beta_dpo` is of
//! squared errors: its 1000 is `beta = 2000` here. Its reference under other prompts is computed with the adapter on; ours is the reference.
//!
//! Shape letters: B images, C channels, Y x X spatial.

use std::path::{Path, PathBuf};

use diptych_core::{Objective, Responses, UnpairedLogps, unpaired_metrics};
use diptych_tensor::random::{Stream, generator};
use diptych_tensor::{Params, Weights};
use diptych_train::{Item, Method, MicroBatch, StepOutput};
use rand::Rng;

use super::config::Baseline;
use super::denoising_records::DenoisingRecords;
use super::reference::{Reference, save_state};
use super::scoring::{DenoisingInput, ImagePlace, Scored, with_judge_scores};
use super::shift::RewardShift;
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::pipeline::Conditioning;
use crate::{Error, Result};

/// The method `unpaired`.
#[derive(Debug)]
pub struct Unpaired {
    pub(crate) policy: TrainedDenoiser,
    pub(crate) reference: Reference,
    pub(crate) objective: Objective,
    pub(crate) records: DenoisingRecords,
    /// A number for each record's prompt: records of one prompt have one.
    pub(crate) prompts: Vec<usize>,
    /// Whether each record's image is desirable.
    pub(crate) labels: Vec<bool>,
    /// A judge's score of each record's image, where the objective needs it.
    pub(crate) judge_scores: Option<Vec<f64>>,
    /// What the objective subtracts, where it subtracts anything.
    pub(crate) baseline: Option<Baseline>,
    pub(crate) balance: Option<Balance>,
    pub(crate) shift: RewardShift,
    pub(crate) showcase: Option<Showcase>,
}

/// Draws of desirable and undesirable records at a given ratio, from (seed, step, place) alone.
#[derive(Debug)]
pub(crate) struct Balance {
    desirable: Vec<usize>,
    undesirable: Vec<usize>,
    positive_ratio: f64,
}

impl Balance {
    /// `None` when one of the two has no record to draw from.
    pub(crate) fn new(labels: &[bool], positive_ratio: f64) -> Option<Self> {
        let of = |label| (0..labels.len()).filter(|&record| labels[record] == label).collect();
        let (desirable, undesirable): (Vec<usize>, Vec<usize>) = (of(true), of(false));
        let is_possible = !desirable.is_empty() && !undesirable.is_empty();
        is_possible.then_some(Self {
            desirable,
            undesirable,
            positive_ratio,
        })
    }

    fn choose(&self, seed: u64, step: u64, position: u64) -> usize {
        let mut rng = generator(seed, Stream::Records, step, position);
        let records = if rng.random::<f64>() < self.positive_ratio {
            &self.desirable
        } else {
            &self.undesirable
        };
        records[rng.random_range(0..records.len())]
    }
}

impl Unpaired {
    fn input(&self, batch: &MicroBatch) -> Result<DenoisingInput> {
        let denoiser = &self.policy.denoiser;
        let device = denoiser.device();
        let draws = &self.records.draws;
        let latents = draws.latents(batch, &[&self.records.latents], device)?;
        let noise = draws.noise(batch, device)?;
        let timesteps = draws.timesteps(batch);
        let conditioning = self.records.conditioning(batch, device)?;
        DenoisingInput::new(denoiser, &latents[0], &noise, &timesteps, conditioning)
    }

    fn score(&self, batch: &MicroBatch, input: &DenoisingInput) -> Result<Scored> {
        let places: Vec<ImagePlace> = batch
            .items
            .iter()
            .map(|item| ImagePlace {
                record: item.index,
                image: 0,
            })
            .collect();
        Scored::new(&self.policy, &self.reference, input, &places)
    }

    /// Log-ratios that the divergence of policy from reference is estimated from.
    fn mismatched(&self, batch: &MicroBatch, input: &DenoisingInput, own: &Responses) -> Result<Option<Responses>> {
        match self.baseline {
            None => Ok(None),
            Some(Baseline::BatchMean) => Ok(Some(Responses {
                policy: own.policy.detach(),
                ..own.clone()
            })),
            Some(Baseline::Mismatched) => {
                let rows: Vec<usize> = (0..batch.items.len()).map(|at| self.mismatch(batch, at)).collect();
                let own = input.conditioning();
                let conditioning = Conditioning {
                    // Sizes and crops are the image's, not the prompt's.
                    time_ids: own.time_ids.clone(),
                    ..own.gather(&rows)?
                };
                let scored = self.score(batch, &input.with_conditioning(conditioning))?;
                Ok(Some(scored.detached().responses()?))
            }
        }
    }

    /// The nearest place before `at`, the last standing before the first, that has another prompt; the nearest where all have the same.
    fn mismatch(&self, batch: &MicroBatch, at: usize) -> usize {
        let num = batch.items.len();
        let before = |distance: usize| (at + num - distance) % num;
        let prompt = |place: usize| self.prompts[batch.items[place].index];
        let is_other = |place: &usize| prompt(*place) != prompt(at);
        (1..num).map(before).find(is_other).unwrap_or_else(|| before(1))
    }
}

impl Method for Unpaired {
    type Error = Error;

    fn params(&self) -> &Params {
        &self.policy.params
    }

    fn num_records(&self) -> usize {
        self.records.ids.len()
    }

    fn record_id(&self, index: usize) -> String {
        self.records.ids[index].clone()
    }

    fn choose(&self, seed: u64, step: u64, item: Item) -> usize {
        match &self.balance {
            Some(balance) => balance.choose(seed, step, item.position),
            None => item.index,
        }
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let input = self.input(batch)?;
        let scored = self.score(batch, &input)?;
        let judge_scores = self
            .judge_scores
            .as_ref()
            .map(|scores| batch.items.iter().map(|item| scores[item.index]).collect());
        let responses = with_judge_scores(scored.responses()?, judge_scores)?;
        let labels: Vec<bool> = batch.items.iter().map(|item| self.labels[item.index]).collect();
        let mut logps = UnpairedLogps::new(responses, labels);
        logps.mismatched = self.mismatched(batch, &input, &logps.responses)?;
        logps.reward_shift = self.shift.of(&self.objective, batch, &[&logps.responses])?;
        let output = self.objective.unpaired_losses(&logps)?;
        let mut metrics = unpaired_metrics(&logps, &output)?;
        metrics.insert("timesteps/mean", input.timesteps());
        let (errors, reference_errors) = scored.host()?;
        let of_label = |values: &[f64], label| -> Vec<f64> {
            let labelled = values.iter().zip(&logps.labels);
            labelled
                .filter(|(_, own)| **own == label)
                .map(|(value, _)| *value)
                .collect()
        };
        metrics.insert("mse/chosen", of_label(&errors, true));
        metrics.insert("mse/rejected", of_label(&errors, false));
        if let Some(errors) = reference_errors {
            metrics.insert("mse/reference_chosen", of_label(&errors, true));
            metrics.insert("mse/reference_rejected", of_label(&errors, false));
        }
        Ok(StepOutput::new(output.losses, metrics))
    }

    fn save(&self, directory: &Path) -> Result<()> {
        self.policy.save(directory)
    }

    fn save_final(&self, directory: &Path) -> Result<()> {
        self.policy.save_final(directory)
    }

    fn load(&self, directory: &Path) -> Result<()> {
        self.policy.restore(directory)
    }

    fn after_step(&self, step: u64) -> Result<()> {
        self.shift.commit();
        self.reference.after_step(&self.policy.params, step)
    }

    fn save_state(&self, path: &Path) -> Result<bool> {
        let mut tensors = self.reference.state()?;
        tensors.extend(self.shift.state()?);
        save_state(path, &tensors)
    }

    fn load_state(&self, path: &Path) -> Result<()> {
        let weights = Weights::open(path)?;
        self.reference.restore(&weights)?;
        self.shift.restore(&weights)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        self.showcase
            .as_ref()
            .map(|showcase| showcase.write(&self.policy, stem))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_drawn_at_the_ratio_asked_for_and_evenly() {
        let labels = [true, false, false, true, false];
        let balance = Balance::new(&labels, 0.8).unwrap();
        let drawn: Vec<usize> = (0..4000).map(|place| balance.choose(0, 3, place)).collect();
        let count = |record| drawn.iter().filter(|&&other| other == record).count() as f64;
        // Four standard deviations of each count: 1600 of 4000, and 267.
        for (record, expected, bound) in [
            (0, 1600.0, 124.0),
            (3, 1600.0, 124.0),
            (1, 266.7, 64.0),
            (4, 266.7, 64.0),
        ] {
            assert!((count(record) - expected).abs() < bound, "{record}: {}", count(record));
        }
        assert_eq!(drawn[7], balance.choose(0, 3, 7));
        assert!(Balance::new(&[true, true], 0.5).is_none());
    }
}
