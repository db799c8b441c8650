//! Randomness of samplers: every number is a function of (seed, stream, set, image, step, candidate), so that neither the batch
//! that an image is computed in nor what else is sampled changes it.

use diptych_tensor::random::Stream;
use diptych_tensor::{Device, Tensor};

use crate::denoising;

/// Where the noise of a set of images comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerNoise {
    /// The run's seed.
    pub seed: u64,
    /// What the images are for.
    pub stream: Stream,
    /// Which of several sets of images: a round, an optimizer step. Sets of one seed and stream share no noise.
    pub set: u32,
}

impl SamplerNoise {
    /// Standard normal latents to begin with.
    ///
    /// # Shape
    /// `shape` is that of one image, (C, Y, X); the result is (B, C, Y, X) in f32, one of `images` a row.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn initial(&self, images: &[u64], shape: &[usize], device: &Device) -> diptych_tensor::Result<Tensor> {
        denoising::noise(self.seed, self.stream, u64::from(self.set), images, shape, device)
    }

    /// Fresh noise of a step; `candidate` tells apart several draws of one state, the trajectory itself is 0.
    ///
    /// # Shape
    /// As [`SamplerNoise::initial`].
    ///
    /// # Errors
    /// As [`SamplerNoise::initial`].
    pub fn of_step(
        &self,
        step_idx: usize,
        candidate: u8,
        images: &[u64],
        shape: &[usize],
        device: &Device,
    ) -> diptych_tensor::Result<Tensor> {
        // The set in the low half, then the candidate, then the step from 1 on: 0 there is the initial noise.
        let word = u64::from(self.set) | u64::from(candidate) << 32 | (step_idx as u64 + 1) << 40;
        denoising::noise(self.seed, self.stream, word, images, shape, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::host_f32;

    #[test]
    fn every_part_of_the_key_changes_the_noise_and_the_batch_does_not() {
        let draw = |noise: SamplerNoise, step: Option<(usize, u8)>, images: &[u64]| {
            let drawn = match step {
                Some((step, candidate)) => noise.of_step(step, candidate, images, &[1, 2, 2], &Device::Cpu),
                None => noise.initial(images, &[1, 2, 2], &Device::Cpu),
            };
            host_f32(&drawn.unwrap()).unwrap()
        };
        let base = SamplerNoise {
            seed: 1,
            stream: Stream::Sampler,
            set: 2,
        };
        let different = [
            draw(base, None, &[3]),
            draw(base, Some((0, 0)), &[3]),
            draw(base, Some((1, 0)), &[3]),
            draw(base, Some((0, 1)), &[3]),
            draw(base, Some((0, 0)), &[4]),
            draw(SamplerNoise { set: 3, ..base }, Some((0, 0)), &[3]),
            draw(SamplerNoise { seed: 2, ..base }, Some((0, 0)), &[3]),
        ];
        for (i, a) in different.iter().enumerate() {
            assert!(different[i + 1..].iter().all(|b| a != b), "{i}");
        }
        let together = draw(base, Some((5, 1)), &[3, 9]);
        assert_eq!(
            together,
            [draw(base, Some((5, 1)), &[3]), draw(base, Some((5, 1)), &[9])].concat()
        );
    }
}
