//! Stored pairs: the score of an image is minus one half of its denoising error, or of its consistency distance.
//!
//! Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", CVPR 2024, arXiv:2311.12908, Eq. 14. One
//! timestep is shared by the two images of a pair and by policy and reference, and so is one noise unless the recipe says
//! otherwise; the two images go through the denoiser as one batch, chosen first. The objective is free: with `dpo` this is
//! Diffusion-DPO, with `mapo` MaPO; with `labels = "swapped"` it trains the negative model of Diffusion-NPO.
//!
//! Two conventions of beta are in print. The loss of the authors' script is `-log s(-½ beta ((mw - ml) - (rw - rl)))` of mean
//! squared errors, ours with the score `-½ mse`; the research script of `diffusers` for Stable Diffusion 1 and 2 leaves the one half out. Its
//! `beta_dpo = 2500` is `beta = 5000` here.
//!
//! Shape letters: B pairs, C channels, Y x X spatial, T tokens, D width.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_core::{Objective, PairLogps, pair_metrics};
use diptych_tensor::{Device, Params, Tensor, Weights};
use diptych_train::{Item, Method, MicroBatch, StepOutput};

use super::consistency::{Consistency, ConsistencyTarget};
use super::curriculum::Curriculum;
use super::denoising_records::DenoisingRecords;
use super::inverted_noise::InvertedNoise;
use super::records::Latents;
use super::reference::{Reference, save_state};
use super::scoring::{DenoisingInput, ImagePlace, Scored, with_judge_scores};
use super::shift::RewardShift;
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::pipeline::{Conditioning, Denoiser};
use crate::tensors::{doubled, host_f64};
use crate::{Error, Result};

/// The method `offline_pairs`.
#[derive(Debug)]
pub struct OfflinePairs {
    pub(crate) policy: TrainedDenoiser,
    pub(crate) reference: Reference,
    pub(crate) objective: Objective,
    pub(crate) records: DenoisingRecords,
    pub(crate) rejected: Latents,
    pub(crate) noise: NoiseSource,
    /// Where errors are consistency distances, how they are computed.
    pub(crate) consistency: Option<Arc<Consistency>>,
    /// A judge's scores of the chosen and of the rejected image of each record, where the objective needs them.
    pub(crate) judge_scores: Option<Vec<[f64; 2]>>,
    pub(crate) curriculum: Option<Curriculum>,
    pub(crate) shift: RewardShift,
    pub(crate) showcase: Option<Showcase>,
}

/// Where the noise of the two images of a pair comes from.
#[derive(Debug)]
pub(crate) enum NoiseSource {
    /// One draw for both.
    Shared,
    /// One draw each.
    Independent,
    /// Each image under the policy.
    Inverted(InvertedNoise),
}

impl OfflinePairs {
    /// The images of a batch, 2B: chosen ones, then rejected ones.
    pub(super) fn input(&self, batch: &MicroBatch) -> Result<DenoisingInput> {
        let denoiser = &self.policy.denoiser;
        let device = denoiser.device();
        let draws = &self.records.draws;
        let latents = stacked(&draws.latents(batch, &[&self.records.latents, &self.rejected], device)?)?;
        let mut timesteps = draws.timesteps(batch).repeat(2);
        let conditioning = self.records.conditioning(batch, device)?.repeat(2)?;
        if let Some(consistency) = &self.consistency {
            timesteps = consistency.rounded(&timesteps);
        }
        let noise = match &self.noise {
            NoiseSource::Shared => doubled(&draws.noise(batch, device)?)?,
            NoiseSource::Independent => {
                let of_side = |side| draws.noise(&spread(batch, side), device);
                stacked(&[of_side(0)?, of_side(1)?])?
            }
            NoiseSource::Inverted(inverted) => {
                timesteps = inverted.rounded(&timesteps);
                inverted.of(denoiser, &latents, &timesteps, &conditioning)?
            }
        };
        match &self.consistency {
            None => DenoisingInput::new(denoiser, &latents, &noise, &timesteps, conditioning),
            Some(rule) => self.consistent(rule, batch, (&latents, &noise), timesteps, conditioning),
        }
    }

    /// The same images with those one step of the solver earlier.
    fn consistent(
        &self,
        rule: &Arc<Consistency>,
        batch: &MicroBatch,
        (latents, noise): (&Tensor, &Tensor),
        timesteps: Vec<f32>,
        conditioning: Conditioning,
    ) -> Result<DenoisingInput> {
        let unprompted = self.records.unprompted(batch, self.policy.denoiser.device())?;
        let unprompted = unprompted.map(|one| one.repeat(2)).transpose()?;
        let told = (conditioning, unprompted.as_ref());
        rule.input((latents, noise), timesteps, told, |earlier, conditioning| {
            match rule.target {
                ConsistencyTarget::Own => Ok(None),
                ConsistencyTarget::Reference => {
                    let clean = |network: &Denoiser| earlier.clean_of(network, conditioning);
                    self.reference.ask(&self.policy, clean)
                }
            }
        })
    }

    pub(super) fn score(&self, batch: &MicroBatch, input: &DenoisingInput) -> Result<Scored> {
        let places: Vec<ImagePlace> = (0..2)
            .flat_map(|image| {
                batch.items.iter().map(move |item| ImagePlace {
                    record: item.index,
                    image,
                })
            })
            .collect();
        Scored::new(&self.policy, &self.reference, input, &places)
    }

    /// What the errors of the chosen and of the rejected images are logged as, the policy's and the reference's.
    fn error_names(&self) -> [(&'static str, &'static str); 2] {
        match &self.consistency {
            None => [
                ("mse/chosen", "mse/reference_chosen"),
                ("mse/rejected", "mse/reference_rejected"),
            ],
            Some(_) => [
                ("consistency/chosen", "consistency/reference_chosen"),
                ("consistency/rejected", "consistency/reference_rejected"),
            ],
        }
    }

    /// Everything the objective may ask for.
    fn logps(&self, batch: &MicroBatch, input: &DenoisingInput, sides: &[Scored; 2]) -> Result<PairLogps> {
        let scores = |side: usize| {
            let scores = self.judge_scores.as_ref()?;
            Some(batch.items.iter().map(|item| scores[item.index][side]).collect())
        };
        let chosen = with_judge_scores(sides[0].responses()?, scores(0))?;
        let rejected = with_judge_scores(sides[1].responses()?, scores(1))?;
        let mut logps = PairLogps::of(chosen, rejected);
        logps.reward_shift = self
            .shift
            .of(&self.objective, batch, &[&logps.chosen, &logps.rejected])?;
        if self.objective.requirements().prompt_distances {
            let rows: Vec<usize> = (0..batch.items.len()).collect();
            let conditioning = input.conditioning().gather(&rows)?;
            logps.prompt_distances = Some(prompt_distances(&conditioning, self.policy.denoiser.device())?);
        }
        Ok(logps)
    }
}

/// The same records with places of their own for the two sides of each, so that they draw apart.
fn spread(batch: &MicroBatch, side: u64) -> MicroBatch {
    let items = batch.items.iter().map(|item| Item {
        index: item.index,
        position: 2 * item.position + side,
    });
    MicroBatch::whole(batch.seed, batch.step, items.collect())
}

/// Cosine distances of B prompts, `(B, B)`: of their pooled vectors where the denoiser is given such, else of the means of their
/// tokens' vectors.
fn prompt_distances(conditioning: &Conditioning, device: &Device) -> Result<Tensor> {
    let batch = conditioning.batch_size();
    let vectors = match &conditioning.pooled {
        Some(pooled) => host_f64(pooled)?,
        None => host_f64(&token_means(&conditioning.encoder_hidden_states)?)?,
    };
    let width = vectors.len() / batch.max(1);
    let vector = |row: usize| &vectors[row * width..(row + 1) * width];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let distance = |i: usize, j: usize| {
        let (a, b) = (vector(i), vector(j));
        let norms = (dot(a, a) * dot(b, b)).sqrt();
        // Two prompts without a direction are alike.
        if norms > 0.0 {
            (1.0 - dot(a, b) / norms) as f32
        } else {
            0.0
        }
    };
    let distances: Vec<f32> = (0..batch)
        .flat_map(|i| (0..batch).map(move |j| distance(i, j)))
        .collect();
    let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::from_vec(distances, (batch, batch), device)?) };
    Ok(tensor()?)
}

/// (B, T, D) to (B, D).
fn token_means(states_btd: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok(states_btd.to_dtype(diptych_tensor::DType::F32)?.mean(1)?)
}

impl Method for OfflinePairs {
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

    fn buckets(&self) -> Option<Vec<usize>> {
        self.records.buckets.clone()
    }

    fn choose(&self, seed: u64, step: u64, item: Item) -> usize {
        match &self.curriculum {
            Some(curriculum) => curriculum.choose(seed, step, item.position),
            None => item.index,
        }
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let input = self.input(batch)?;
        let scored = self.score(batch, &input)?;
        let len = batch.items.len();
        let sides = [scored.narrow(0, len)?, scored.narrow(len, len)?];
        let logps = self.logps(batch, &input, &sides)?;
        let mut metrics = BTreeMap::from([("timesteps/mean", input.timesteps()[..len].to_vec())]);
        for (side, (name, reference_name)) in sides.iter().zip(self.error_names()) {
            let (errors, reference_errors) = side.host()?;
            metrics.insert(name, errors);
            if let Some(errors) = reference_errors {
                metrics.insert(reference_name, errors);
            }
        }
        if let Some(curriculum) = &self.curriculum {
            metrics.insert("curriculum/pool", vec![curriculum.pool_size(batch.step) as f64; len]);
        }
        let output = self.objective.pair_losses(&logps)?;
        metrics.extend(pair_metrics(&logps, &output)?);
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

fn stacked(sides: &[Tensor]) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::cat(sides, 0)?)
}
