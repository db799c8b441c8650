//! Pixels to tensors and back, and grids of images.

use std::path::Path;

use diptych_tensor::{Device, Tensor};
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

use crate::tensors::host_f32;
use crate::{Error, Result};

/// Smallest side of a tile in a grid, pixels: smaller images are enlarged so that a person can see them.
const MIN_TILE: u32 = 128;
/// Gap between tiles, pixels.
const GUTTER: u32 = 8;

/// Images as a tensor in `[-1, 1]`.
///
/// # Shape
/// (B, 3, Y, X), f32.
///
/// # Errors
/// [`Error::Shape`] when the sizes differ.
pub fn to_tensor(images: &[RgbImage], device: &Device) -> Result<Tensor> {
    let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
    let (x, y) = (width as usize, height as usize);
    let mut values = Vec::with_capacity(images.len() * 3 * y * x);
    for image in images {
        if image.dimensions() != (width, height) {
            return Err(Error::Shape {
                name: "image".into(),
                found: vec![image.height() as usize, image.width() as usize],
                expected: vec![y, x],
            });
        }
        for channel in 0..3 {
            values.extend(image.pixels().map(|pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0));
        }
    }
    Ok(pixels(values, (images.len(), 3, y, x), device)?)
}

fn pixels(values: Vec<f32>, shape: (usize, usize, usize, usize), device: &Device) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Images from a tensor in `[-1, 1]`; values outside are clipped.
///
/// # Shape
/// (B, 3, Y, X).
///
/// # Errors
/// [`Error::Shape`] for a tensor that is not (B, 3, Y, X), [`Error::PixelsNotFinite`], or tensor operations.
pub fn from_tensor(images_bcyx: &Tensor) -> Result<Vec<RgbImage>> {
    let &[_, 3, y, x] = images_bcyx.dims() else {
        let expected = vec![images_bcyx.dims().first().copied().unwrap_or(1), 3, 1, 1];
        return Err(Error::Shape {
            name: "images".into(),
            found: images_bcyx.dims().to_vec(),
            expected,
        });
    };
    let values = host_f32(images_bcyx)?;
    let plane = y * x;
    // As a byte, a NaN would be black and an infinity black or white: an image that looks like one.
    let is_broken = |planes: &[f32]| planes.iter().any(|value| !value.is_finite());
    if let Some(index) = values.chunks_exact(3 * plane).position(is_broken) {
        return Err(Error::PixelsNotFinite { index });
    }
    Ok(values
        .chunks_exact(3 * plane)
        .map(|planes| {
            RgbImage::from_fn(x as u32, y as u32, |column, row| {
                let at = row as usize * x + column as usize;
                Rgb([0, 1, 2].map(|channel| to_byte(planes[channel * plane + at])))
            })
        })
        .collect())
}

/// As `diffusers` rounds: `[-1, 1]` to `[0, 1]`, clipped, times 255, to the nearest.
fn to_byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// One row a prompt, one column a variant (before, after), on a light ground. Tiny images are enlarged without smoothing.
pub fn grid(rows: &[Vec<RgbImage>]) -> RgbImage {
    let (width, height) = rows.iter().flatten().next().map_or((1, 1), RgbImage::dimensions);
    let factor = MIN_TILE.div_ceil(width.min(height).max(1)).max(1);
    let (tile_width, tile_height) = (width * factor, height * factor);
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let span = |count: u32, tile: u32| GUTTER + count * (tile + GUTTER);
    let mut canvas = RgbImage::from_pixel(
        span(num_columns, tile_width),
        span(rows.len() as u32, tile_height),
        Rgb([240; 3]),
    );
    for (row, images) in rows.iter().enumerate() {
        for (column, image) in images.iter().enumerate() {
            let tile = resize(image, tile_width, tile_height, FilterType::Nearest);
            let (left, top) = (span(column as u32, tile_width), span(row as u32, tile_height));
            overlay(&mut canvas, &tile, i64::from(left), i64::from(top));
        }
    }
    canvas
}

/// Writes an image; the format follows the file's extension.
///
/// # Errors
/// [`Error::WriteImage`] naming the file.
pub fn save(image: &RgbImage, path: &Path) -> Result<()> {
    image.save(path).map_err(|source| Error::WriteImage {
        path: path.to_path_buf(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_survive_the_round_trip() {
        let image = RgbImage::from_fn(4, 3, |x, y| Rgb([(x * 60) as u8, (y * 80) as u8, 255 - (x * y) as u8]));
        let tensor = to_tensor(&[image.clone(), image.clone()], &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [2, 3, 3, 4]);
        assert_eq!(from_tensor(&tensor).unwrap(), [image.clone(), image]);
    }

    /// They used to become black pixels.
    #[test]
    fn pixels_that_are_not_finite_are_no_image() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut values = vec![0.5_f32; 2 * 3 * 4];
            values[12 + 7] = value;
            let tensor = Tensor::from_vec(values, (2, 3, 2, 2), &Device::Cpu).unwrap();
            let error = from_tensor(&tensor).unwrap_err();
            assert!(matches!(error, Error::PixelsNotFinite { index: 1 }), "{error}");
        }
    }

    #[test]
    fn images_of_two_sizes_are_refused() {
        let images = [RgbImage::new(4, 4), RgbImage::new(4, 5)];
        assert!(matches!(to_tensor(&images, &Device::Cpu), Err(Error::Shape { .. })));
    }

    #[test]
    fn grids_enlarge_tiny_images_and_keep_their_place() {
        let red = RgbImage::from_pixel(32, 32, Rgb([255, 0, 0]));
        let blue = RgbImage::from_pixel(32, 32, Rgb([0, 0, 255]));
        let sheet = grid(&[vec![red.clone(), blue.clone()], vec![blue, red]]);
        assert_eq!(sheet.dimensions(), (2 * 128 + 3 * 8, 2 * 128 + 3 * 8));
        assert_eq!(sheet.get_pixel(20, 20).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(8 + 128 + 8 + 5, 20).0, [0, 0, 255]);
        assert_eq!(sheet.get_pixel(20, 8 + 128 + 8 + 5).0, [0, 0, 255]);
    }
}
