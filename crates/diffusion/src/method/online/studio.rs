//! Where trajectories are sampled and scored: the networks, the prompts and the transitions.
//!
//! Shape letters: N latents, C channels, Y x X spatial.

use std::collections::BTreeMap;
use std::sync::Arc;

use diptych_models::vae::AutoencoderKl;
use diptych_tensor::random::{Generator, Stream, generator, normal_vec};
use diptych_tensor::{DType, Device, Tensor, checkpoint};
use diptych_train::{Item, MicroBatch};
use rand::Rng;

use super::kept::Move;
use super::reward::{Reward, checked};
use super::transition::Transitions;
use crate::method::offline_pairs::Reference;
use crate::method::trained::TrainedDenoiser;
use crate::pipeline::{Conditioning, Denoiser, PromptEmbeddings};
use crate::tensors::{cast, doubled, host_f64};
use crate::{Error, Result};

/// Distinct prompts, and what the denoiser is told about each.
#[derive(Debug)]
pub(super) struct PromptSet {
    pub(super) ids: Vec<String>,
    pub(super) texts: Vec<String>,
    pub(super) embeddings: PromptEmbeddings,
    /// Row of each prompt.
    pub(super) rows: Vec<usize>,
    /// Row of the empty prompt, with guidance.
    pub(super) empty: Option<usize>,
}

/// Everything that samples and scores.
#[derive(Debug)]
pub(super) struct Studio {
    pub(super) policy: TrainedDenoiser,
    pub(super) reference: Reference,
    pub(super) vae: Arc<AutoencoderKl>,
    pub(super) reward: Arc<dyn Reward>,
    pub(super) prompts: PromptSet,
    pub(super) transitions: Transitions,
    pub(super) guidance_scale: f64,
    /// (C, Y, X).
    pub(super) latent_shape: [usize; 3],
}

/// A transition to be scored: of which prompt, at which step, between which kept latents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    pub(super) record: usize,
    pub(super) step: usize,
    pub(super) at: Move,
}

/// The guided prediction of one network, free of the studio so that a recomputed segment can own it.
#[derive(Debug, Clone)]
pub(super) struct Predictor {
    denoiser: Arc<Denoiser>,
    guidance_scale: f64,
    /// N examples; with guidance those of the empty prompt before them, 2N.
    conditioning: Conditioning,
}

impl Predictor {
    /// Predictions for N latents at one timestep each, (N, C, Y, X) in f32: `unconditional + scale (conditional − unconditional)`.
    pub(super) fn predict(&self, latents: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        if self.guidance_scale <= 1.0 {
            let prediction = self.denoiser.predict(latents, timesteps, &self.conditioning)?;
            return Ok(cast(&prediction, DType::F32)?);
        }
        let both = self
            .denoiser
            .predict(&doubled(latents)?, &timesteps.repeat(2), &self.conditioning)?;
        let combine = || -> diptych_tensor::Result<Tensor> {
            let both = both.to_dtype(DType::F32)?;
            let unconditional = both.narrow(0, 0, timesteps.len())?;
            let conditional = both.narrow(0, timesteps.len(), timesteps.len())?;
            Ok((&unconditional + ((conditional - &unconditional)? * self.guidance_scale)?)?)
        };
        Ok(combine()?)
    }
}

impl Studio {
    pub(super) fn device(&self) -> &Device {
        self.policy.denoiser.device()
    }

    /// The policy's predictions for these prompts.
    pub(super) fn predictor(&self, records: &[usize]) -> Result<Predictor> {
        self.predictor_of(&self.policy.denoiser, records, self.guidance_scale)
    }

    /// Predictions of a network for these prompts.
    pub(super) fn predictor_of(&self, denoiser: &Arc<Denoiser>, records: &[usize], scale: f64) -> Result<Predictor> {
        let prompts = &self.prompts;
        let mut rows = Vec::with_capacity(2 * records.len());
        if scale > 1.0 {
            let empty = prompts.empty.ok_or(Error::MissingComponent {
                action: "guidance",
                component: "text_encoder",
            })?;
            rows.resize(records.len(), empty);
        }
        rows.extend(records.iter().map(|&record| prompts.rows[record]));
        let factor = self.vae.downscale();
        let image_size = [self.latent_shape[1] * factor, self.latent_shape[2] * factor];
        let conditioning = prompts.embeddings.gather(&rows, self.device())?;
        Ok(Predictor {
            denoiser: denoiser.clone(),
            guidance_scale: scale,
            conditioning: denoiser.sized(conditioning, image_size)?,
        })
    }

    /// The policy's predictions without a graph.
    pub(super) fn predict_detached(&self, records: &[usize], latents: &Tensor, step: usize) -> Result<Tensor> {
        let timesteps = vec![self.transitions.timestep(step); records.len()];
        Ok(self.predictor(records)?.predict(latents, &timesteps)?.detach())
    }

    /// Rewards of N latents of clean images, (N,), with a graph where the latents have one and the reward is differentiable.
    pub(super) fn rewards(&self, records: &[usize], clean: &Tensor, timestep: f32) -> Result<Tensor> {
        let prompts: Vec<&str> = records
            .iter()
            .map(|&record| self.prompts.texts[record].as_str())
            .collect();
        let pixels = self.decode(clean)?;
        checked(
            &*self.reward,
            self.reward.rewards(&prompts, &pixels, timestep)?,
            records.len(),
        )
    }

    /// The same on the host.
    pub(super) fn host_rewards(&self, records: &[usize], clean: &Tensor, timestep: f32) -> Result<Vec<f64>> {
        Ok(host_f64(&self.rewards(records, &clean.detach(), timestep)?)?)
    }

    /// Pixels in `[-1, 1]` of N scaled latents.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = cast(&self.vae.unscale(latents)?, self.vae.dtype())?;
        let pixels = self.vae.decode(&latents)?;
        let clamp = || -> diptych_tensor::Result<Tensor> { Ok(pixels.to_dtype(DType::F32)?.clamp(-1.0, 1.0)?) };
        Ok(clamp()?)
    }

    /// Means of N transitions under the policy, differentiable, (N, C, Y, X). Transitions that begin at the same latents share a prediction;
    /// at most `at_once` predictions keep their activations, others compute them again in the backward pass.
    pub(super) fn policy_means(&self, latents: &Tensor, visits: &[Visit], at_once: usize) -> Result<Tensor> {
        self.means(&self.policy.denoiser, latents, visits, at_once)
    }

    /// The same under the reference, without a graph; `None` without a reference.
    pub(super) fn reference_means(&self, latents: &Tensor, visits: &[Visit], at_once: usize) -> Result<Option<Tensor>> {
        let answer = |denoiser: &Arc<Denoiser>| self.means(denoiser, latents, visits, at_once);
        Ok(self.of_reference(answer)?.map(|means| means.detach()))
    }

    /// What `answer` gives for the network that the policy is compared with.
    pub(super) fn of_reference(&self, answer: impl FnOnce(&Arc<Denoiser>) -> Result<Tensor>) -> Result<Option<Tensor>> {
        match &self.reference {
            Reference::None => Ok(None),
            Reference::Frozen(denoiser) => answer(denoiser).map(Some),
            Reference::AdapterOff => {
                let _off = self.policy.denoiser.adapter_switch().disable();
                // Cut off here: a recomputed segment would run with the adapter on.
                Ok(Some(answer(&self.policy.denoiser)?.detach()))
            }
        }
    }

    fn means(&self, denoiser: &Arc<Denoiser>, latents: &Tensor, visits: &[Visit], at_once: usize) -> Result<Tensor> {
        // One prediction for all transitions from the same latents.
        let mut places: BTreeMap<(usize, usize, usize), usize> = BTreeMap::new();
        let mut starts = Vec::new();
        let places: Vec<u32> = visits
            .iter()
            .map(|visit| {
                let place = places.entry((visit.record, visit.step, visit.at.from)).or_insert_with(|| {
                    starts.push(*visit);
                    starts.len() - 1
                });
                *place as u32
            })
            .collect();
        let at_once = at_once.max(1);
        let means = starts
            .chunks(at_once)
            .map(|chunk| self.means_of(denoiser, latents, chunk, starts.len() > at_once))
            .collect::<Result<Vec<_>>>()?;
        let select = || -> diptych_tensor::Result<Tensor> {
            let means = Tensor::cat(&means, 0)?;
            let places = Tensor::from_vec(places, visits.len(), means.device())?;
            Ok(means.index_select(&places, 0)?)
        };
        Ok(select()?)
    }

    fn means_of(&self, denoiser: &Arc<Denoiser>, latents: &Tensor, visits: &[Visit], recompute: bool) -> Result<Tensor> {
        let records: Vec<usize> = visits.iter().map(|visit| visit.record).collect();
        let steps: Vec<usize> = visits.iter().map(|visit| visit.step).collect();
        let starts = gather(latents, visits.iter().map(|visit| visit.at.from))?;
        let predictor = self.predictor_of(denoiser, &records, self.guidance_scale)?;
        let transitions = self.transitions.clone();
        let timesteps: Vec<f32> = steps.iter().map(|&step| transitions.timestep(step)).collect();
        let mean = move |latents: &Tensor| -> Result<Tensor> {
            let prediction = predictor.predict(latents, &timesteps)?;
            transitions.mean(&prediction, &steps, latents)
        };
        if recompute {
            recomputed(&[&starts], move |inputs| mean(&inputs[0]))
        } else {
            mean(&starts)
        }
    }
}

/// [`checkpoint`] for work of this crate.
pub(super) fn recomputed(
    inputs: &[&Tensor],
    work: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    Ok(checkpoint(inputs, move |inputs| {
        work(inputs).map_err(|error| match error {
            Error::Tensor(error) => error,
            other => diptych_tensor::Error::from(diptych_tensor::OperationError::wrap(other)),
        })
    })?)
}

/// Rows of a tensor, in this order.
pub(super) fn gather(tensor: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    let select = || -> diptych_tensor::Result<Tensor> {
        let len = rows.len();
        Ok(tensor.index_select(&Tensor::from_vec(rows, len, tensor.device())?, 0)?)
    };
    Ok(select()?)
}

/// Tensors one behind the other.
pub(super) fn joined(tensors: &[Tensor]) -> Result<Tensor> {
    let cat = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::cat(tensors, 0)?) };
    Ok(cat()?)
}

/// Every record's own source of noise: what one draws does not depend on the others.
pub(super) struct Dice {
    rngs: Vec<Generator>,
    latent_shape: [usize; 3],
    device: Device,
}

impl Dice {
    pub(super) fn new(studio: &Studio, batch: &MicroBatch, items: &[Item]) -> Self {
        let rng = |item: &Item| generator(batch.seed, Stream::Rollout, batch.first_step(), item.position);
        Self {
            rngs: items.iter().map(rng).collect(),
            latent_shape: studio.latent_shape,
            device: studio.device().clone(),
        }
    }

    /// Standard normal latents, `each` of them for every record: (N each, C, Y, X), those of a record one behind the other.
    pub(super) fn normal(&mut self, each: usize) -> Result<Tensor> {
        let [channels, y, x] = self.latent_shape;
        let rngs = &mut self.rngs;
        let num = rngs.len() * each;
        let values: Vec<f32> = rngs
            .iter_mut()
            .flat_map(|rng| normal_vec(rng, each * channels * y * x))
            .collect();
        let tensor = || -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::from_vec(values, (num, channels, y, x), &self.device)?)
        };
        Ok(tensor()?)
    }

    /// A number from 0 to below `end` for every record.
    pub(super) fn choice(&mut self, end: usize) -> Vec<usize> {
        self.rngs.iter_mut().map(|rng| rng.random_range(0..end)).collect()
    }
}

/// Every row `times` times, one behind the other.
pub(super) fn each(records: &[usize], times: usize) -> Vec<usize> {
    records
        .iter()
        .flat_map(|&record| std::iter::repeat_n(record, times))
        .collect()
}
