//! Randomness without a state: every number is a function of (seed, stream, step, example).
//!
//! A generator is made where numbers are needed and thrown away. So a draw does not depend on the device, the batch
//! size, the number of threads, or on how often a run was stopped and resumed. Numbers are drawn on the host.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// What the numbers are for. Streams never share numbers. The tags are part of the file format of runs: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Initial values of parameters.
    Init = 1,
    /// The order of records in an epoch.
    Order = 2,
    /// Noise added to clean latents.
    Noise = 3,
    /// Diffusion timesteps.
    Timesteps = 4,
    /// Which prompts are replaced by the empty prompt.
    PromptDropout = 5,
    /// Samples from the autoencoder's posterior.
    Posterior = 6,
    /// Initial latents and transition noise of a sampler.
    Sampler = 7,
    /// Tokens chosen by a language model: step is the number of the token behind the prompt.
    Tokens = 8,
    /// Records that a method draws itself, rather than take them in the order of an epoch.
    Records = 16,
    /// Trajectories sampled to learn from: their initial latents, then the noise of their transitions.
    Rollout = 17,
    /// Which images of a ranked list become pairs: example is the number of the list.
    Pairs = 24,
    /// Which records are mirrored: example is the number of the record, or tells its prompt.
    Mirror = 25,
    /// How an image is spoiled on purpose: step is the epoch, example the number of the record.
    Corruption = 26,
    /// Which tokens of a text are masked or replaced on purpose, and by what: step is the epoch, example the number of the record.
    Perturbation = 27,
    /// What rounds of training draw: step is the round, example says what for.
    Rounds = 64,
}

/// Where the numbers of one [`generator`] come from.
pub type Generator = ChaCha8Rng;

/// The generator of one (seed, stream, step, example).
///
/// ```
/// use diptych_tensor::random::{Stream, generator, normal_vec};
/// let first = normal_vec(&mut generator(0, Stream::Noise, 7, 3), 4);
/// let again = normal_vec(&mut generator(0, Stream::Noise, 7, 3), 4);
/// assert_eq!(first, again);
/// assert_ne!(first, normal_vec(&mut generator(0, Stream::Noise, 7, 4), 4));
/// ```
pub fn generator(seed: u64, stream: Stream, step: u64, example: u64) -> Generator {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, stream as u64, step, example]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// `len` draws of the standard normal distribution.
pub fn normal_vec(rng: &mut impl Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.sample(StandardNormal)).collect()
}

/// `len` draws, uniform in `[low, high)`.
pub fn uniform_vec(rng: &mut impl Rng, low: f32, high: f32, len: usize) -> Vec<f32> {
    (0..len).map(|_| low + (high - low) * rng.random::<f32>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_key_changes_the_numbers() {
        let draw = |seed, stream, step, example| generator(seed, stream, step, example).random::<u64>();
        let base = draw(1, Stream::Noise, 2, 3);
        assert_eq!(base, draw(1, Stream::Noise, 2, 3));
        for other in [
            draw(2, Stream::Noise, 2, 3),
            draw(1, Stream::Timesteps, 2, 3),
            draw(1, Stream::Noise, 3, 3),
            draw(1, Stream::Noise, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    /// A change of these numbers changes every run: it is a break, to be made on purpose.
    #[test]
    fn numbers_are_pinned() {
        let mut rng = generator(0, Stream::Noise, 1, 0);
        assert_eq!(rng.random::<u64>(), 13004067721789103655);
        // The normal draws too: they come from another crate's algorithm.
        let normal = normal_vec(&mut generator(0, Stream::Noise, 1, 0), 3);
        assert_eq!(
            normal.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            [1_064_377_548, 1_063_623_479, 1_068_700_033]
        );
    }

    #[test]
    fn normal_draws_have_mean_zero_and_unit_variance() {
        let draws = normal_vec(&mut generator(5, Stream::Sampler, 0, 0), 200_000);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }
}
