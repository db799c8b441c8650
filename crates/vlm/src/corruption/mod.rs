//! Images spoiled on purpose: what a visual preference term sees instead of the image.
//!
//! mDPO (arXiv:2406.11839) crops, VCD (arXiv:2311.16922), POVID, `SeVa`, `CHiP` and TARS add diffusion noise, OPA-DPO masks, V-DPO blanks,
//! STIC (arXiv:2405.19716) changes colors or takes resolution away. In several released programs the policy and the reference see two different
//! corruptions of one image, because each forward pass draws anew; here a corruption is a function of [`Draw`], so that both see the same.
//!
//! In a recipe a corruption is a table named after it: `corruption.crop = { min_area = 0.01, max_area = 0.2 }`. Every parameter has a
//! default, that of the paper where one uses it.
//!
//! ```
//! use diptych_vlm::corruption::{Corruption, Draw};
//!
//! let image = image::RgbImage::from_fn(32, 24, |x, y| image::Rgb([8 * x as u8, 10 * y as u8, 0]));
//! let crop = Corruption::Crop(Default::default());
//! let draw = Draw { seed: 0, record: 17, image: 0, epoch: 2 };
//! let spoiled = crop.apply(&image, draw);
//! assert_eq!(spoiled.dimensions(), image.dimensions());
//! assert_eq!(spoiled, crop.apply(&image, draw));
//! assert_ne!(spoiled, crop.apply(&image, Draw { epoch: 3, ..draw }));
//! ```

mod blank;
mod blur;
mod color_jitter;
mod crop;
mod diffusion_noise;
mod fill;
mod low_resolution;
mod mask;
mod patch_shuffle;
mod rotate;
#[cfg(test)]
mod tests;

use diptych_tensor::random::{Generator, Stream, generator};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use self::blank::Blank;
pub use self::blur::Blur;
pub use self::color_jitter::ColorJitter;
pub use self::crop::Crop;
pub use self::diffusion_noise::{DiffusionNoise, NUM_NOISE_STEPS, noise_scales};
pub use self::fill::Fill;
pub use self::low_resolution::LowResolution;
pub use self::mask::Mask;
pub use self::patch_shuffle::PatchShuffle;
pub use self::rotate::Rotate;

/// A way to spoil an image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// Gaussian noise of a step of VCD's schedule.
    DiffusionNoise(DiffusionNoise),
    /// A small random part, blown up.
    Crop(Crop),
    /// A Gaussian blur.
    Blur(Blur),
    /// Turned about its center.
    Rotate(Rotate),
    /// Other brightness, contrast, saturation and hue.
    ColorJitter(ColorJitter),
    /// A share of its pixels or patches covered.
    Mask(Mask),
    /// Its patches in another order.
    PatchShuffle(PatchShuffle),
    /// One color.
    Blank(Blank),
    /// Made small and brought back to its size.
    LowResolution(LowResolution),
}

/// What the random choices of a corruption depend on, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draw {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the record.
    pub record: u64,
    /// Number of the image in its record.
    pub image: u64,
    /// The epoch: a record's image is spoiled differently each time it comes.
    pub epoch: u64,
}

impl Draw {
    fn generator(self) -> Generator {
        let mut rng = generator(self.seed, Stream::Corruption, self.epoch, self.record);
        rng.set_stream(self.image);
        rng
    }
}

impl Corruption {
    /// The names in recipes, in the order of the variants.
    pub const NAMES: [&str; 9] = [
        "diffusion_noise",
        "crop",
        "blur",
        "rotate",
        "color_jitter",
        "mask",
        "patch_shuffle",
        "blank",
        "low_resolution",
    ];

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DiffusionNoise(_) => "diffusion_noise",
            Self::Crop(_) => "crop",
            Self::Blur(_) => "blur",
            Self::Rotate(_) => "rotate",
            Self::ColorJitter(_) => "color_jitter",
            Self::Mask(_) => "mask",
            Self::PatchShuffle(_) => "patch_shuffle",
            Self::Blank(_) => "blank",
            Self::LowResolution(_) => "low_resolution",
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first that is out of its range, by the name of corruption and parameter: `crop.max_area`.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::DiffusionNoise(noise) => noise.validate(),
            Self::Crop(crop) => crop.validate(),
            Self::Blur(blur) => blur.validate(),
            Self::Rotate(rotate) => rotate.validate(),
            Self::ColorJitter(jitter) => jitter.validate(),
            Self::Mask(mask) => mask.validate(),
            Self::PatchShuffle(shuffle) => shuffle.validate(),
            Self::Blank(_) => Ok(()),
            Self::LowResolution(low) => low.validate(),
        }
    }

    /// The spoiled image, of the same size. An image without pixels stays as it is. Parameters are to be
    /// [valid](Self::validate); others are brought into their range.
    pub fn apply(&self, image: &RgbImage, draw: Draw) -> RgbImage {
        if image.width() == 0 || image.height() == 0 {
            return image.clone();
        }
        let rng = &mut draw.generator();
        match self {
            Self::DiffusionNoise(noise) => noise.apply(image, rng),
            Self::Crop(crop) => crop.apply(image, rng),
            Self::Blur(blur) => blur.apply(image),
            Self::Rotate(rotate) => rotate.apply(image, rng),
            Self::ColorJitter(jitter) => jitter.apply(image, rng),
            Self::Mask(mask) => mask.apply(image, rng),
            Self::PatchShuffle(shuffle) => shuffle.apply(image, rng),
            Self::Blank(blank) => blank.apply(image),
            Self::LowResolution(low) => low.apply(image),
        }
    }
}

fn out_of_range(key: &str, found: &dyn std::fmt::Debug, expected: &str) -> Error {
    Error::Setting {
        key: key.to_owned(),
        found: format!("{found:?}"),
        expected: expected.to_owned(),
    }
}

/// A number from 0 to 255 as a channel's value, the nearest.
fn to_channel(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}
