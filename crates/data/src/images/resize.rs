//! Images of any size brought to the size a model is trained at.

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::error::{Error, Result};
use crate::images::image_source::MAX_IMAGE_SIDE;

/// The largest centered part of the image with the aspect ratio of `width` to `height`, scaled to that size in pixels.
///
/// The scaling filter is Lanczos' with three lobes, stretched by the factor when shrinking, so that fine detail is
/// averaged and does not alias (as PIL's `LANCZOS`). An image that already has the size comes back untouched, bit for
/// bit. Cropping comes first, so no pixel outside the crop leaks into its border.
///
/// # Errors
/// [`Error::ImageSize`] when the image is empty, or a side asked for is 0 or longer than [`MAX_IMAGE_SIDE`].
pub fn resize_and_crop(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_width, from_height) = image.dimensions();
    for (width, height) in [(from_width, from_height), (width, height)] {
        if !(1..=MAX_IMAGE_SIDE).contains(&width) || !(1..=MAX_IMAGE_SIDE).contains(&height) {
            return Err(Error::ImageSize {
                width,
                height,
                max: MAX_IMAGE_SIDE,
            });
        }
    }
    if (from_width, from_height) == (width, height) {
        return Ok(image.clone());
    }
    let (x, y, crop_width, crop_height) = centered_crop(from_width, from_height, width, height);
    let crop = imageops::crop_imm(image, x, y, crop_width, crop_height);
    if (crop_width, crop_height) == (width, height) {
        return Ok(crop.to_image());
    }
    Ok(imageops::resize(&*crop, width, height, FilterType::Lanczos3))
}

/// Left, top, width and height of the part that [`resize_and_crop`] keeps: the largest centered one with the aspect ratio
/// `width : height`, in pixels of the image it is taken from.
pub fn centered_crop(from_width: u32, from_height: u32, width: u32, height: u32) -> (u32, u32, u32, u32) {
    let scaled = |length: u32, by: u32, over: u32| {
        let rounded = (u64::from(length) * u64::from(by) + u64::from(over) / 2) / u64::from(over);
        (rounded as u32).max(1)
    };
    let crop_width = from_width.min(scaled(from_height, width, height));
    let crop_height = from_height.min(scaled(from_width, height, width));
    (
        (from_width - crop_width) / 2,
        (from_height - crop_height) / 2,
        crop_width,
        crop_height,
    )
}
