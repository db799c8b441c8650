//! Stored pairs: the score of an image is minus one half of its denoising error.
//!
//! Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", CVPR 2024, arXiv:2311.12908, Eq. 14. One
//! timestep and one noise are shared by the two images of a pair and by policy and reference, and the two images go
//! through the denoiser as one batch, chosen first. The objective is free: with `dpo` this is Diffusion-DPO, with `mapo` MaPO.
//!
//! Shape letters: B pairs, C channels, Y x X spatial, T tokens, D width.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_core::{Objective, PairLogps, pair_metrics};
use diptych_tensor::{Params, Tensor};
use diptych_train::{Method, MicroBatch, StepOutput};

use super::denoising_records::DenoisingRecords;
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::pipeline::{Conditioning, Denoiser};
use crate::tensors::{doubled, host_f64};
use crate::{Error, Result, denoising};

/// What the policy is compared with.
#[derive(Debug)]
pub(crate) enum Reference {
    /// Nothing.
    None,
    /// The policy with its adapter switched off.
    AdapterOff,
    /// A copy of the network the run started from.
    Frozen(Box<Denoiser>),
}

/// The method `offline_pairs`.
#[derive(Debug)]
pub struct OfflinePairs {
    pub(crate) policy: TrainedDenoiser,
    pub(crate) reference: Reference,
    pub(crate) objective: Objective,
    pub(crate) records: DenoisingRecords,
    pub(crate) rejected: super::records::Latents,
    pub(crate) showcase: Option<Showcase>,
}

/// Denoising errors of the two sides, (B,) each.
struct SideErrors {
    chosen: Tensor,
    rejected: Tensor,
}

impl OfflinePairs {
    fn errors(denoiser: &Denoiser, input: &PairInput) -> Result<SideErrors> {
        let prediction = denoiser.predict(&input.noisy_latents, &input.timesteps, &input.conditioning)?;
        let errors = denoising::denoising_errors(&prediction, &input.target)?;
        let (chosen, rejected) = halves(&errors)?;
        Ok(SideErrors { chosen, rejected })
    }

    /// Errors of the reference, without a graph.
    fn reference_errors(&self, input: &PairInput) -> Result<Option<SideErrors>> {
        let errors = match &self.reference {
            Reference::None => return Ok(None),
            Reference::Frozen(denoiser) => Self::errors(denoiser, input)?,
            Reference::AdapterOff => {
                let _off = self.policy.denoiser.adapter_switch().disable();
                Self::errors(&self.policy.denoiser, input)?
            }
        };
        Ok(Some(SideErrors {
            chosen: errors.chosen.detach(),
            rejected: errors.rejected.detach(),
        }))
    }

    fn input(&self, batch: &MicroBatch) -> Result<PairInput> {
        let device = self.policy.denoiser.device();
        let draws = &self.records.draws;
        let sides = draws.latents(batch, &[&self.records.latents, &self.rejected], device)?;
        let latents = stacked(&sides)?;
        let noise = doubled(&draws.noise(batch, device)?)?;
        let timesteps = draws.timesteps(batch).repeat(2);
        let schedule = self.policy.denoiser.schedule();
        Ok(PairInput {
            noisy_latents: schedule.add_noise(&latents, &noise, &timesteps)?,
            target: schedule.target(&latents, &noise, &timesteps)?,
            timesteps,
            conditioning: self.records.conditioning(batch, device)?.repeat(2)?,
        })
    }
}

/// What the denoiser sees of a batch: chosen images, then rejected ones, 2B in all.
struct PairInput {
    noisy_latents: Tensor,
    target: Tensor,
    timesteps: Vec<f32>,
    conditioning: Conditioning,
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

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let input = self.input(batch)?;
        let reference = self.reference_errors(&input)?;
        let policy = Self::errors(&self.policy.denoiser, &input)?;
        let mut logps = PairLogps::new(denoising::scores(&policy.chosen)?, denoising::scores(&policy.rejected)?);
        let mut metrics = BTreeMap::from([
            ("mse/chosen", host_f64(&policy.chosen)?),
            ("mse/rejected", host_f64(&policy.rejected)?),
            (
                "timesteps/mean",
                input.timesteps[..batch.items.len()]
                    .iter()
                    .map(|&t| f64::from(t))
                    .collect(),
            ),
        ]);
        if let Some(errors) = &reference {
            logps = logps.with_reference(denoising::scores(&errors.chosen)?, denoising::scores(&errors.rejected)?);
            metrics.insert("mse/reference_chosen", host_f64(&errors.chosen)?);
            metrics.insert("mse/reference_rejected", host_f64(&errors.rejected)?);
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

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        self.showcase
            .as_ref()
            .map(|showcase| showcase.write(&self.policy, stem))
            .transpose()
    }
}

/// (2B,) to two (B,).
fn halves(errors: &Tensor) -> diptych_tensor::Result<(Tensor, Tensor)> {
    let batch = errors.elem_count() / 2;
    Ok((errors.narrow(0, 0, batch)?, errors.narrow(0, batch, batch)?))
}

fn stacked(sides: &[Tensor]) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::cat(sides, 0)?)
}
