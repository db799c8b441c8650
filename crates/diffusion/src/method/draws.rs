//! The random part of a training step. Every number is a function of (seed, step, place in the step's batch).

use diptych_data::HostTensor;
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{Device, Tensor};
use diptych_train::MicroBatch;
use rand::Rng;

use super::records::Latents;
use super::timesteps::TimestepDraw;
use crate::{Result, denoising};

/// How a step draws its noise, timesteps and dropped prompts.
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    pub(crate) timesteps: TimestepDraw,
    pub(crate) prompt_dropout: f64,
    /// (C, Y, X) of the latents.
    pub(crate) latent_shape: [usize; 3],
    /// Noise and timesteps of each record, to replay another trainer's run.
    pub(crate) given_noise: Option<HostTensor>,
    pub(crate) given_timesteps: Option<Vec<u32>>,
}

impl Draws {
    /// One timestep a record, as the denoiser is told it.
    pub(crate) fn timesteps(&self, batch: &MicroBatch) -> Vec<f32> {
        let draw = |position| {
            self.timesteps
                .draw(&mut generator(batch.seed, Stream::Timesteps, batch.step, position))
        };
        match &self.given_timesteps {
            Some(given) => batch.items.iter().map(|item| given[item.index] as f32).collect(),
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use diptych_train::Item;

    use super::*;
    use crate::tensors::host_f32;

    const NUM: usize = 4000;

    fn draws(prompt_dropout: f64, timesteps: Range<u32>) -> Draws {
        Draws {
            timesteps: TimestepDraw::Uniform(timesteps),
            prompt_dropout,
            latent_shape: [1, 1, 1],
            given_noise: None,
            given_timesteps: None,
        }
    }

    fn batch(step: u64) -> MicroBatch {
        let items = (0..NUM).map(|index| Item {
            index,
            position: index as u64,
        });
        MicroBatch::whole(0, step, items.collect())
    }

    #[test]
    fn prompts_are_dropped_as_often_as_asked() {
        for probability in [0.0, 0.25, 1.0] {
            let dropped = draws(probability, 0..1000).dropped(&batch(1));
            let share = dropped.iter().filter(|&&dropped| dropped).count() as f64 / NUM as f64;
            if [0.0, 1.0].contains(&probability) {
                assert_eq!(share, probability);
            }
            // Four standard deviations of the share.
            assert!((share - probability).abs() < 0.028, "{share} for {probability}");
        }
    }

    #[test]
    fn timesteps_cover_the_range_evenly_and_change_with_the_step() {
        let draws = draws(0.0, 200..700);
        let [first, second] = [1, 2].map(|step| draws.timesteps(&batch(step)));
        assert_ne!(first, second);
        for timesteps in [first, second] {
            let mut parts = [0; 5];
            for timestep in timesteps {
                assert!(
                    (200.0..700.0).contains(&timestep) && timestep.fract() == 0.0,
                    "{timestep}"
                );
                parts[(timestep as usize - 200) / 100] += 1;
            }
            // A fifth of 4000 each, give or take four standard deviations.
            assert!(parts.iter().all(|count: &i32| (count - 800).abs() < 102), "{parts:?}");
        }
    }

    #[test]
    fn the_sides_of_a_pair_are_sampled_apart() {
        let side = Latents::standard_normal(NUM);
        let draws = draws(0.0, 0..1000);
        let sides = draws.latents(&batch(1), &[&side, &side], &Device::Cpu).unwrap();
        let [chosen, rejected] = [0, 1].map(|place| host_f32(&sides[place]).unwrap());
        let mean_product =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / NUM as f64;
        // Unit variance each, no correlation between them: within four standard deviations.
        assert!((mean_product(&chosen, &chosen) - 1.0).abs() < 0.09);
        assert!(mean_product(&chosen, &rejected).abs() < 0.064);
    }
}
