//! Supervised fine-tuning: the denoising loss of Ho et al. (arXiv:2006.11239, Eq. 14) on captioned images or on the chosen
//! side of pairs. The loss is the plain mean squared error, as `diffusers`' training scripts report it. With `error.consistency` it is the
//! consistency distance of Luo et al., "Latent Consistency Models" (arXiv:2310.04378, Algorithm 1), which makes a consistency model of a
//! diffusion model; the network to agree with is the trained one itself, without the paper's moving average.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_core::{Objective, Responses};
use diptych_tensor::Params;
use diptych_train::{Method, MicroBatch, StepOutput};

use super::consistency::Consistency;
use super::denoising_records::DenoisingRecords;
use super::scoring::DenoisingInput;
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::tensors::{host_f64, negated};
use crate::{Error, Result};

/// The method `sft`.
#[derive(Debug)]
pub struct Sft {
    pub(crate) policy: TrainedDenoiser,
    pub(crate) objective: Objective,
    pub(crate) records: DenoisingRecords,
    /// Where errors are consistency distances, how they are computed.
    pub(crate) consistency: Option<Arc<Consistency>>,
    pub(crate) showcase: Option<Showcase>,
}

impl Method for Sft {
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

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let denoiser = &self.policy.denoiser;
        let device = denoiser.device();
        let draws = &self.records.draws;
        let latents = draws.latents(batch, &[&self.records.latents], device)?;
        let noise = draws.noise(batch, device)?;
        let timesteps = draws.timesteps(batch);
        let conditioning = self
            .records
            .conditioning_with(self.policy.text.as_ref(), batch, device)?;
        let (input, name) = match &self.consistency {
            None => {
                let input = DenoisingInput::new(denoiser, &latents[0], &noise, &timesteps, conditioning)?;
                (input, "mse/chosen")
            }
            Some(rule) => {
                let unprompted = self.records.unprompted(batch, device)?;
                let told = (conditioning, unprompted.as_ref());
                let timesteps = rule.rounded(&timesteps);
                let input = rule.input((&latents[0], &noise), timesteps, told, |_, _| Ok(None))?;
                (input, "consistency/chosen")
            }
        };
        let errors = input.errors(denoiser)?;
        let metrics = BTreeMap::from([(name, host_f64(&errors)?), ("timesteps/mean", input.timesteps())]);
        // With this objective alone the score is minus the error, not minus half of it.
        Ok(StepOutput::new(
            self.objective.chosen_losses(&Responses::new(negated(&errors)?))?,
            metrics,
        ))
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
