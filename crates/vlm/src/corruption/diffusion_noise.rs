//! Diffusion noise, as VCD adds it to images.
//!
//! Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding", CVPR 2024,
//! arXiv:2311.16922; reference code: `add_diffusion_noise` of DAMO-NLP-SG/VCD, which POVID, `SeVa`, `CHiP` and TARS took over.
//!
//! ```text
//! beta_t = sigmoid(-6 + 12 t / 999) (0.005 - 0.00001) + 0.00001,   t = 0 .. 999
//! x_t = sqrt(a_t) x + sqrt(1 - a_t) n,   a_t = product of 1 - beta up to t
//! ```
//!
//! x are pixels after CLIP's normalization. The schedule is not that of Stable Diffusion.

use diptych_tensor::random::normal_vec;
use image::RgbImage;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{Draw, out_of_range, to_channel};
use crate::error::Result;

/// Steps of the schedule.
pub const NUM_NOISE_STEPS: u32 = 1000;

/// CLIP's normalization.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Noise of one step.
///
/// On an image of 8 bits a channel, what leaves 0 to 255 is cut off and the rest rounded. A processor that shrinks the image afterwards averages
/// the noise away: bring images to the tower's size first, or use [`Self::apply_to_pixels`], which is what the published programs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionNoise {
    /// Step of the schedule, 0 (next to nothing) to 999. Default 500; `SeVa` also uses 800.
    pub step: u32,
}

impl Default for DiffusionNoise {
    fn default() -> Self {
        Self { step: 500 }
    }
}

impl DiffusionNoise {
    pub(super) fn validate(self) -> Result<()> {
        if self.step < NUM_NOISE_STEPS {
            return Ok(());
        }
        Err(out_of_range("diffusion_noise.step", &self.step, "0 to 999"))
    }

    /// Adds the noise to pixels that a processor has normalized, in any order of dimensions.
    pub fn apply_to_pixels(&self, pixels: &mut [f32], draw: Draw) {
        let [keep, add] = noise_scales(self.step);
        let noise = normal_vec(&mut draw.generator(), pixels.len());
        for (pixel, noise) in pixels.iter_mut().zip(noise) {
            *pixel = (keep * f64::from(*pixel) + add * f64::from(noise)) as f32;
        }
    }

    pub(super) fn apply(self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let [keep, add] = noise_scales(self.step);
        let mut noisy = image.clone();
        let noise = normal_vec(rng, noisy.len());
        for (place, (value, noise)) in noisy.iter_mut().zip(noise).enumerate() {
            let (mean, std) = (MEAN[place % 3], STD[place % 3]);
            let x = (f64::from(*value) / 255.0 - mean) / std;
            let x = keep * x + add * f64::from(noise);
            *value = to_channel((x * std + mean) * 255.0);
        }
        noisy
    }
}

/// What the image and the noise are multiplied with at a step: the square roots of `a_t` and of `1 - a_t`. Steps beyond the last are
/// the last.
pub fn noise_scales(step: u32) -> [f64; 2] {
    let last = f64::from(NUM_NOISE_STEPS - 1);
    let kept: f64 = (0..=step.min(NUM_NOISE_STEPS - 1))
        .map(|t| {
            let at = 12.0 * f64::from(t) / last - 6.0;
            1.0 - ((0.5e-2 - 1e-5) / (1.0 + (-at).exp()) + 1e-5)
        })
        .product();
    [kept.sqrt(), (1.0 - kept).sqrt()]
}
