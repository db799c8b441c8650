//! Other images of a record's own, for a preference between them.

use diptych_data::ImageSource;
use diptych_llm::Result;
use diptych_llm::method::{Spoil, SpoilKey};
use diptych_models::vlm::{ProcessedImage, VlmImageProcessor};
use diptych_tensor::Tensor;

use crate::corruption::{Corruption, Draw};

/// Images spoiled by a corruption: noise is added to what the tower reads, as the published programs do, so that it is as strong for an
/// image of any size; everything else is done to the image before it is processed.
#[derive(Debug)]
pub(crate) struct Corrupted(pub(crate) Corruption);

impl Spoil for Corrupted {
    fn spoil(&self, image: &ImageSource, processor: &VlmImageProcessor, key: SpoilKey) -> Result<ProcessedImage> {
        let draw = Draw {
            seed: key.seed,
            record: key.record,
            image: key.image,
            epoch: key.epoch,
        };
        let image = image.decode()?;
        let Corruption::DiffusionNoise(noise) = &self.0 else {
            return Ok(processor.process(&self.0.apply(&image, draw))?);
        };
        let processed = processor.process(&image)?;
        let noisy = || -> diptych_tensor::Result<Tensor> {
            let mut pixels = processed.pixels.flatten_all()?.to_vec1::<f32>()?;
            noise.apply_to_pixels(&mut pixels, draw);
            Ok(Tensor::from_vec(
                pixels,
                processed.pixels.shape(),
                processed.pixels.device(),
            )?)
        };
        Ok(ProcessedImage {
            pixels: noisy()?,
            layout: processed.layout,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_models::vision::ImageProcessor;
    use diptych_models::vlm::{ImageProcessorKind, MAX_IMAGE_PIXELS};
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::corruption::{DiffusionNoise, noise_scales};

    #[test]
    fn noise_is_as_strong_on_large_images_as_on_small_ones() {
        let processor = VlmImageProcessor {
            kind: ImageProcessorKind::OneSize {
                processor: ImageProcessor::clip(32),
                pad: None,
            },
            max_image_pixels: MAX_IMAGE_PIXELS,
        };
        let key = SpoilKey {
            seed: 0,
            record: 0,
            image: 0,
            epoch: 0,
        };
        let [_, expected] = noise_scales(500);
        let corrupted = Corrupted(Corruption::DiffusionNoise(DiffusionNoise::default()));
        for side in [32, 256] {
            // Its mean in every channel after CLIP's normalization is about 0.
            let image = RgbImage::from_pixel(side, side, Rgb([123, 117, 104]));
            let image = ImageSource::from_image(&image).unwrap();
            let pixels = corrupted.spoil(&image, &processor, key).unwrap().pixels;
            let values: Vec<f32> = pixels.flatten_all().unwrap().to_vec1().unwrap();
            let power = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((power.sqrt() / expected - 1.0).abs() < 0.05, "{side}: {}", power.sqrt());
        }
    }
}
