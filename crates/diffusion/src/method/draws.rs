//! The random part of a training step. Every number is a function of (seed, step, place in the step's batch).

use std::ops::Range;

use diptych_data::HostTensor;
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{Device, Tensor};
use diptych_train::MicroBatch;
use rand::Rng;

use super::records::Latents;
use crate::{Result, denoising};

/// How a step draws its noise, timesteps and dropped prompts.
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    pub(crate) timesteps: Range<u32>,
    pub(crate) prompt_dropout: f64,
    /// (C, Y, X) of the latents.
    pub(crate) latent_shape: [usize; 3],
    /// Noise and timesteps of each record, to replay another trainer's run.
    pub(crate) given_noise: Option<HostTensor>,
    pub(crate) given_timesteps: Option<Vec<u32>>,
}

impl Draws {
    /// One timestep a record.
    pub(crate) fn timesteps(&self, batch: &MicroBatch) -> Vec<u32> {
        let draw = |position| {
            generator(batch.seed, Stream::Timesteps, batch.step, position).random_range(self.timesteps.clone())
        };
        match &self.given_timesteps {
            Some(given) => batch.items.iter().map(|item| given[item.index]).collect(),
            None => batch.items.iter().map(|item| draw(item.position)).collect(),
        }
    }

    /// One noise a record, (B, C, Y, X) in f32.
    pub(crate) fn noise(&self, batch: &MicroBatch, device: &Device) -> diptych_tensor::Result<Tensor> {
        if let Some(given) = &self.given_noise {
            let rows: Vec<usize> = batch.items.iter().map(|item| item.index).collect();
            let (shape, values) = given.gather(&rows).into_parts();
            return Ok(Tensor::from_vec(values, shape, device)?);
        }
        let positions: Vec<u64> = batch.items.iter().map(|item| item.position).collect();
        denoising::noise(
            batch.seed,
            Stream::Noise,
            batch.step,
            &positions,
            &self.latent_shape,
            device,
        )
    }

    /// Whether each record's prompt is replaced by the empty one.
    pub(crate) fn dropped(&self, batch: &MicroBatch) -> Vec<bool> {
        let draw = |position| generator(batch.seed, Stream::PromptDropout, batch.step, position).random::<f64>();
        batch
            .items
            .iter()
            .map(|item| self.prompt_dropout > 0.0 && draw(item.position) < self.prompt_dropout)
            .collect()
    }

    /// Latents of one or more sides of each record; a record's sides are drawn one after the other, so that they differ.
    pub(crate) fn latents(&self, batch: &MicroBatch, sides: &[&Latents], device: &Device) -> Result<Vec<Tensor>> {
        let rows: Vec<usize> = batch.items.iter().map(|item| item.index).collect();
        let len: usize = self.latent_shape.iter().product();
        let draws: Vec<Vec<f32>> = batch
            .items
            .iter()
            .map(|item| {
                let mut rng = generator(batch.seed, Stream::Posterior, batch.step, item.position);
                let is_sampled = sides.iter().any(|side| side.is_sampled());
                normal_vec(&mut rng, if is_sampled { sides.len() * len } else { 0 })
            })
            .collect();
        let gather = |(place, side): (usize, &&Latents)| {
            let own: Vec<f32> = if side.is_sampled() {
                draws
                    .iter()
                    .flat_map(|draws| &draws[place * len..(place + 1) * len])
                    .copied()
                    .collect()
            } else {
                Vec::new()
            };
            Ok(side.gather(&rows, &own, device)?)
        };
        sides.iter().enumerate().map(gather).collect()
    }
}
