//! Places of tokens, and latents as tokens.
//!
//! B batch, S text tokens, T image tokens, C channels, Y x X spatial, K head dimension.

use diptych_tensor::{Device, Result as TensorResult, Tensor};

use crate::dit::Rope;
use crate::{Error, Result};

/// Base of the rotations' frequencies.
const THETA: f64 = 10_000.0;

/// Coordinates of every token: diffusers' `txt_ids` and `img_ids`, behind each other.
#[derive(Debug, Clone, PartialEq)]
pub struct FluxPositions {
    text_len: usize,
    coordinates: Vec<[f64; 3]>,
}

impl FluxPositions {
    /// Text at the origin, and an image of `height` x `width` tokens (half as many as latents) at (0, row, column): what diffusers' pipelines
    /// use.
    pub fn text_and_image(text_len: usize, (height, width): (usize, usize)) -> Self {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| [0.0, y as f64, x as f64]));
        Self {
            text_len,
            coordinates: std::iter::repeat_n([0.0; 3], text_len).chain(places).collect(),
        }
    }

    /// Any coordinates of text and image tokens.
    pub fn new(text: &[[f64; 3]], image: &[[f64; 3]]) -> Self {
        Self {
            text_len: text.len(),
            coordinates: [text, image].concat(),
        }
    }

    /// Number of text tokens.
    pub fn text_len(&self) -> usize {
        self.text_len
    }

    /// Number of image tokens.
    pub fn image_len(&self) -> usize {
        self.coordinates.len() - self.text_len
    }

    /// The rotations, with so many channels of a head for each coordinate. Computed in f64, as diffusers does.
    pub(super) fn rope(&self, axes: [usize; 3], device: &Device) -> TensorResult<Rope> {
        let half = axes.iter().sum::<usize>() / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for token in &self.coordinates {
            for (place, dim) in token.iter().zip(axes) {
                for i in 0..dim / 2 {
                    let angle = place * THETA.powf(-((2 * i) as f64) / dim as f64);
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        let table = |values| Tensor::from_vec(values, (self.coordinates.len(), half), device);
        Ok(Rope {
            cos: table(cos)?,
            sin: table(sin)?,
        })
    }
}

/// Latents as tokens: squares of 2 x 2 become one token of four times as many channels, channels first. diffusers' `_pack_latents`.
///
/// # Shape
/// (B, C, Y, X) to (B, Y/2 X/2, 4 C).
///
/// # Errors
/// [`Error::Shape`] when a side is odd.
pub fn pack_latents(latents: &Tensor) -> Result<Tensor> {
    let [batch, channels, height, width] = match *latents.dims() {
        [b, c, y, x] if y > 0 && x > 0 && y.is_multiple_of(2) && x.is_multiple_of(2) => [b, c, y, x],
        _ => {
            return Err(Error::Shape {
                what: "latents",
                found: latents.dims().to_vec(),
                expected: "(B, C, Y, X) with even Y and X".into(),
            });
        }
    };
    let pack = || -> TensorResult<Tensor> {
        Ok(latents
            .reshape(&[batch, channels, height / 2, 2, width / 2, 2][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((batch, height / 2 * (width / 2), 4 * channels))?)
    };
    Ok(pack()?)
}

/// What [`pack_latents`] packed: diffusers' `_unpack_latents`, with the size of the latents.
///
/// # Shape
/// (B, Y/2 X/2, 4 C) to (B, C, Y, X).
///
/// # Errors
/// [`Error::Shape`] when the tokens are not those of such latents.
pub fn unpack_latents(tokens: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (rows, columns) = (height / 2, width / 2);
    let [batch, channels] = match *tokens.dims() {
        [b, t, c] if t == rows * columns && c.is_multiple_of(4) => [b, c / 4],
        _ => {
            return Err(Error::Shape {
                what: "packed latents",
                found: tokens.dims().to_vec(),
                expected: format!("(B, {}, 4 C)", rows * columns),
            });
        }
    };
    let unpack = || -> TensorResult<Tensor> {
        Ok(tokens
            .reshape(&[batch, rows, columns, channels, 2, 2][..])?
            .permute([0, 3, 1, 4, 2, 5])?
            .contiguous()?
            .reshape((batch, channels, height, width))?)
    };
    Ok(unpack()?)
}
