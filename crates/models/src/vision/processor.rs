//! From an image to the pixels a vision network reads: resize, crop, normalize.
//!
//! B batch, Y x X pixels.

use std::ops::Range;

use diptych_tensor::{Device, Result as TensorResult, Tensor};
use image::RgbImage;

use super::resample::{Filter, Resized, resize_rounded_part, resize_tensor_part};
use crate::{Error, Result};

/// Mean of each channel over the images that CLIP was trained on.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel over the images that CLIP was trained on.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// The size an image is brought to before it is cropped, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side to this length; the longer in proportion, rounded down.
    ShortestEdge(usize),
    /// The shorter side to this length; both in proportion, rounded to the nearest, halves up.
    ShortestEdgeNearest(usize),
    /// The longer side to this length, then zeros around it up to a square.
    LongestEdgePadded(usize),
    /// Height and width, whatever the proportions.
    Exact([usize; 2]),
}

/// What happens to a crop whose place is half a pixel off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CropRounding {
    /// Towards the corner: transformers.
    Down,
    /// To the even of the two: torchvision.
    HalfToEven,
}

/// How pixels are resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeArithmetic {
    /// On 8-bit pixels, rounded, as PIL. Where pixels are tensors, in floating point and clamped to `[0, 1]` after each pass: what an
    /// 8-bit resize would give without its rounding.
    Rounded,
    /// In floating point on pixels in `[0, 1]`; what overshoots at edges stays.
    Float,
    /// In floating point, clamped to `[0, 1]`.
    FloatClamped,
}

/// The steps from an image to a network's pixels, as a `preprocessor_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// The size before the crop; none leaves the image as it is.
    pub resize: Option<Resize>,
    /// The filter of the resize.
    pub filter: Filter,
    /// Where and how the resize rounds.
    pub arithmetic: ResizeArithmetic,
    /// Height and width of the centered part that is kept, zeros around images that are smaller; none keeps all.
    pub crop: Option<[usize; 2]>,
    /// Where a crop begins.
    pub crop_rounding: CropRounding,
    /// What 8-bit values are multiplied with.
    pub rescale_factor: f64,
    /// Subtracted from each channel after that.
    pub mean: [f64; 3],
    /// What each channel is then divided by.
    pub std: [f64; 3],
}

impl ImageProcessor {
    /// CLIP's, as transformers has it: the shorter side to `size` with PIL's bicubic filter, the middle, normalized.
    pub fn clip(size: usize) -> Self {
        Self {
            resize: Some(Resize::ShortestEdge(size)),
            filter: Filter::Bicubic,
            arithmetic: ResizeArithmetic::Rounded,
            crop: Some([size, size]),
            crop_rounding: CropRounding::Down,
            rescale_factor: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// CLIP's, as torchvision does it in the programs of `OpenAI`, LAION and `ImageReward`: half pixels at a crop go to the even side.
    pub fn torchvision_clip(size: usize) -> Self {
        Self {
            crop_rounding: CropRounding::HalfToEven,
            ..Self::clip(size)
        }
    }

    /// Height and width of what comes out, where it is the same for every image.
    pub fn output_size(&self) -> Option<[usize; 2]> {
        match self.resize {
            Some(Resize::LongestEdgePadded(edge)) => Some([edge, edge]),
            Some(Resize::Exact(size)) => self.crop.or(Some(size)),
            _ => self.crop,
        }
    }

    /// That of the step-aware preference model's authors: the shorter side to `size` with a bicubic filter that skips pixels, in floating
    /// point.
    pub fn step_aware(size: usize) -> Self {
        Self {
            resize: Some(Resize::ShortestEdgeNearest(size)),
            filter: Filter::BicubicAliased,
            arithmetic: ResizeArithmetic::FloatClamped,
            ..Self::torchvision_clip(size)
        }
    }

    /// The pixels of images, all of which must come out at one size.
    ///
    /// # Shape
    /// (B, 3, Y, X) in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] without images, for one without pixels, or when sizes differ.
    pub fn images(&self, images: &[RgbImage], device: &Device) -> Result<Tensor> {
        let each = images
            .iter()
            .map(|image| self.image(image))
            .collect::<Result<Vec<_>>>()?;
        let Some(first) = each.first() else {
            return Err(shape_error(&[0], "at least one image"));
        };
        if let Some(other) = each.iter().find(|other| other.dims() != first.dims()) {
            return Err(shape_error(other.dims(), &format!("all of shape {:?}", first.dims())));
        }
        let pixels = Tensor::cat(&each, 0).map_err(diptych_tensor::Error::from)?;
        Ok(self
            .normalize(&pixels)
            .and_then(|pixels| Ok(pixels.to_device(device)?))?)
    }

    /// One image up to the crop: (1, 3, Y, X), 0 to 255.
    fn image(&self, image: &RgbImage) -> Result<Tensor> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        if width == 0 || height == 0 {
            return Err(shape_error(&[height, width], "at least one pixel along each side"));
        }
        if self.arithmetic != ResizeArithmetic::Rounded {
            let pixels = (to_tensor(image)? / 255.0).map_err(diptych_tensor::Error::from)?;
            return Ok(self.shaped(&pixels).and_then(|pixels| Ok((pixels * 255.0)?))?);
        }
        let size = self.target(width, height);
        let resized = if size == (width, height) {
            to_tensor(image)?
        } else {
            to_tensor(&resize_rounded_part(image, &self.kept(size), self.filter))?
        };
        Ok(self.framed(&resized)?)
    }

    /// The same for pixels in `[0, 1]` of any size, in floating point and differentiable: what is rounded to 8 bits for images is not
    /// rounded here.
    ///
    /// # Shape
    /// (B, 3, Y, X) to (B, 3, Y', X').
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes.
    pub fn pixels(&self, pixels_bcyx: &Tensor) -> Result<Tensor> {
        match *pixels_bcyx.dims() {
            [_, 3, height, width] if height > 0 && width > 0 => {}
            ref found => return Err(shape_error(found, "(B, 3, Y, X) with at least one pixel")),
        }
        let shaped = self.shaped(pixels_bcyx)?;
        Ok(self.normalize(&(shaped * 255.0).map_err(diptych_tensor::Error::from)?)?)
    }

    /// Resized in floating point and cropped.
    fn shaped(&self, pixels_bcyx: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = pixels_bcyx.dims4()?;
        let size = self.target(width, height);
        let to = if size == (width, height) {
            Resized::whole(size)
        } else {
            self.kept(size)
        };
        let x = match self.arithmetic {
            ResizeArithmetic::Float => resize_tensor_part(pixels_bcyx, &to, self.filter)?,
            ResizeArithmetic::FloatClamped => in_range(&resize_tensor_part(pixels_bcyx, &to, self.filter)?)?,
            // PIL keeps to the range after each pass.
            ResizeArithmetic::Rounded => {
                let wide = Resized {
                    height,
                    rows: 0..height,
                    ..to.clone()
                };
                let tall = Resized {
                    width: to.columns.len(),
                    columns: 0..to.columns.len(),
                    ..to
                };
                let x = in_range(&resize_tensor_part(pixels_bcyx, &wide, self.filter)?)?;
                in_range(&resize_tensor_part(&x, &tall, self.filter)?)?
            }
        };
        self.framed(&x)
    }

    /// What a crop leaves of an image of this width and height: the rest is never computed, which for a long thin image would be gigabytes.
    fn kept(&self, (width, height): (usize, usize)) -> Resized {
        let [rows, columns] = match self.crop_size() {
            Some([to_height, to_width]) => [self.middle(height, to_height), self.middle(width, to_width)],
            None => [0..height, 0..width],
        };
        Resized {
            width,
            height,
            columns,
            rows,
        }
    }

    /// The middle `to` of `from` pixels, or all of fewer.
    fn middle(&self, from: usize, to: usize) -> Range<usize> {
        let Some(doubled) = from.checked_sub(to) else {
            return 0..from;
        };
        let start = match self.crop_rounding {
            CropRounding::Down => doubled / 2,
            CropRounding::HalfToEven => (doubled as f64 / 2.0).round_ties_even() as usize,
        };
        start..start + to
    }

    /// Height and width of the frame.
    fn crop_size(&self) -> Option<[usize; 2]> {
        match self.resize {
            Some(Resize::LongestEdgePadded(edge)) => Some([edge, edge]),
            _ => self.crop,
        }
    }

    /// Width and height after the resize.
    fn target(&self, width: usize, height: usize) -> (usize, usize) {
        let (short, long) = (width.min(height), width.max(height));
        match self.resize {
            None => (width, height),
            Some(Resize::Exact([to_height, to_width])) => (to_width, to_height),
            Some(Resize::ShortestEdge(edge)) => {
                let longer = (edge as f64 * long as f64 / short as f64) as usize;
                if width <= height {
                    (edge, longer)
                } else {
                    (longer, edge)
                }
            }
            Some(Resize::ShortestEdgeNearest(edge)) => {
                let scale = edge as f64 / short as f64;
                let scaled = |side: usize| ((side as f64 * scale + 0.5) as usize).max(1);
                (scaled(width), scaled(height))
            }
            Some(Resize::LongestEdgePadded(edge)) => {
                let scale = edge as f64 / long as f64;
                let scaled = |side: usize| ((side as f64 * scale).round_ties_even() as usize).max(1);
                (scaled(width), scaled(height))
            }
        }
    }

    /// Zeros around what is too small, and the middle of what is too large.
    fn framed(&self, x: &Tensor) -> TensorResult<Tensor> {
        let mut x = x.clone();
        let Some(crop) = self.crop_size() else { return Ok(x) };
        let does_pad_evenly =
            matches!(self.resize, Some(Resize::LongestEdgePadded(_))) || self.crop_rounding == CropRounding::HalfToEven;
        for (dim, to) in [(2, crop[0]), (3, crop[1])] {
            let from = x.dim(dim)?;
            if from < to {
                // transformers puts the odd row of zeros before the image, torchvision behind it.
                let before = if does_pad_evenly {
                    (to - from) / 2
                } else {
                    (to - from).div_ceil(2)
                };
                x = x.pad_with_zeros(dim, before, to - from - before)?;
            } else {
                x = x.narrow(dim, self.middle(from, to).start, to)?;
            }
        }
        Ok(x.contiguous()?)
    }

    /// 0 to 255 to a network's range.
    fn normalize(&self, x: &Tensor) -> TensorResult<Tensor> {
        let channels = |values: [f64; 3]| -> TensorResult<Tensor> {
            let values = Tensor::from_vec(values.to_vec(), (1, 3, 1, 1), &Device::Cpu)?;
            Ok(values.to_dtype(x.dtype())?.to_device(x.device())?)
        };
        let x = (x * self.rescale_factor)?.broadcast_sub(&channels(self.mean)?)?;
        Ok(x.broadcast_mul(&channels(self.std.map(f64::recip))?)?)
    }
}

/// Clamped to `[0, 1]`. A hair is left on both sides: in an even white area, rounding alone puts pixels beyond 1 or not, and would
/// take the gradient of half of them.
fn in_range(x: &Tensor) -> TensorResult<Tensor> {
    const HAIR: f64 = 1e-5;
    Ok(x.clamp(-HAIR, 1.0 + HAIR)?)
}

fn shape_error(found: &[usize], expected: &str) -> Error {
    Error::Shape {
        what: "pixels",
        found: found.to_vec(),
        expected: expected.to_owned(),
    }
}

/// (1, 3, Y, X), 0 to 255, in f32.
fn to_tensor(image: &RgbImage) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values: Vec<f32> = image.as_raw().iter().copied().map(f32::from).collect();
    let tensor = || -> TensorResult<Tensor> {
        let pixels_byxc = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?;
        Ok(pixels_byxc.permute((0, 3, 1, 2))?.contiguous()?)
    };
    Ok(tensor()?)
}
