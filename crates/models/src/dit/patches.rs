//! Images as tokens: patches with their place in the image.
//!
//! B batch, C channels, Y x X spatial, P patch size, D width.

use diptych_tensor::{DType, Device, Result as TensorResult, Tensor};

use crate::layers::{Conv2d, Conv2dConfig};
use crate::{Builder, Error, Result};

/// What a [`PatchEmbed`] looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PatchEmbedConfig {
    pub(crate) patch_size: usize,
    pub(crate) in_channels: usize,
    pub(crate) dim: usize,
    pub(crate) positions: PositionTable,
}

/// Where the sinusoids of a patch's place come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PositionTable {
    /// The middle of a square table of `side` patches, whose positions are spread over `base` of them: Stable Diffusion 3. The table is part of
    /// published weight files.
    Cropped { side: usize, base: f64 },
    /// Positions spread over `base` patches in a column and in a row, whatever their number, and divided by `scale`: `PixArt`.
    Interpolated { base: f64, scale: f64 },
}

/// diffusers' `PatchEmbed`: a strided convolution, and a fixed vector for every place.
#[derive(Debug)]
pub(crate) struct PatchEmbed {
    proj: Conv2d,
    /// The weight file's table, (1, side side, D).
    table: Option<Tensor>,
    config: PatchEmbedConfig,
}

impl PatchEmbed {
    pub(crate) fn load(builder: &Builder<'_>, config: PatchEmbedConfig) -> Result<Self> {
        let PatchEmbedConfig {
            patch_size,
            in_channels,
            dim,
            positions,
        } = config;
        let conv = Conv2dConfig::new(in_channels, dim, patch_size)
            .stride(patch_size)
            .padding(0);
        let table = match positions {
            PositionTable::Cropped { side, .. } => builder.buffer("pos_embed", &[1, side * side, dim])?,
            PositionTable::Interpolated { .. } => None,
        };
        Ok(Self {
            proj: Conv2d::load(&builder.child("proj"), conv)?,
            table,
            config,
        })
    }

    /// The weight file's table of positions, (1, side side, D).
    pub(crate) fn table(&self) -> Option<Tensor> {
        self.table.clone()
    }

    /// (B, C, Y, X) to (B, Y/P X/P, D).
    ///
    /// # Errors
    /// [`Error::Shape`] when the patches do not fill the image, or when it is larger than the table.
    pub(crate) fn forward(&self, image_bcyx: &Tensor) -> Result<Tensor> {
        let (height, width) = self.patches(image_bcyx)?;
        let tokens = || -> TensorResult<Tensor> {
            let tokens = self
                .proj
                .forward(image_bcyx)?
                .flatten_from(2)?
                .transpose(1, 2)?
                .contiguous()?;
            let positions = self.positions((height, width), &tokens)?;
            Ok(tokens.broadcast_add(&positions)?)
        };
        Ok(tokens()?)
    }

    /// Patches in a column and in a row.
    fn patches(&self, image: &Tensor) -> Result<(usize, usize)> {
        let patch = self.config.patch_size;
        let limit = match self.config.positions {
            PositionTable::Cropped { side, .. } => side * patch,
            PositionTable::Interpolated { .. } => usize::MAX,
        };
        let fits = |size: usize| size > 0 && size.is_multiple_of(patch) && size <= limit;
        match *image.dims() {
            [_, channels, height, width] if channels == self.config.in_channels && fits(height) && fits(width) => {
                Ok((height / patch, width / patch))
            }
            _ => {
                let up_to = if limit < usize::MAX {
                    format!(" up to {limit}")
                } else {
                    String::new()
                };
                Err(Error::Shape {
                    what: "sample",
                    found: image.dims().to_vec(),
                    expected: format!(
                        "(B, {}, Y, X), Y and X multiples of {patch}{up_to}",
                        self.config.in_channels
                    ),
                })
            }
        }
    }

    /// The vectors of an image's places, (1, Y/P X/P, D), in the type of the tokens.
    fn positions(&self, (height, width): (usize, usize), tokens: &Tensor) -> TensorResult<Tensor> {
        let dim = self.config.dim;
        let places = match (&self.table, self.config.positions) {
            (Some(table), PositionTable::Cropped { side, .. }) => table
                .reshape((side, side, dim))?
                .narrow(0, (side - height) / 2, height)?
                .narrow(1, (side - width) / 2, width)?
                .contiguous()?
                .reshape((1, height * width, dim))?,
            (None, PositionTable::Cropped { side, base }) => {
                let at = |len: usize| spread((side - len) / 2, len, [side as f64 / base, 1.0]);
                sincos_2d(&at(height), &at(width), dim, tokens.device())?
            }
            (_, PositionTable::Interpolated { base, scale }) => {
                let at = |len: usize| spread(0, len, [len as f64 / base, scale]);
                sincos_2d(&at(height), &at(width), dim, tokens.device())?
            }
        };
        Ok(places.to_dtype(tokens.dtype())?)
    }
}

/// The positions `start..start + len`, divided by both factors, in f32 as diffusers divides them.
fn spread(start: usize, len: usize, factors: [f64; 2]) -> Vec<f32> {
    let divided = |i| i as f32 / factors[0] as f32 / factors[1] as f32;
    (start..start + len).map(divided).collect()
}

/// diffusers' `get_2d_sincos_pos_embed`: half of each vector for the column, half for the row, each sines before cosines. (1, Y X, D) in f32.
fn sincos_2d(rows: &[f32], columns: &[f32], dim: usize, device: &Device) -> TensorResult<Tensor> {
    let quarter = dim / 4;
    let frequencies: Vec<f64> = (0..quarter)
        .map(|i| 10_000f64.powf(-(i as f64) / quarter as f64))
        .collect();
    let mut values = Vec::with_capacity(rows.len() * columns.len() * dim);
    for row in rows {
        for column in columns {
            for &place in [column, row] {
                let angle = |frequency: &f64| f64::from(place) * frequency;
                values.extend(frequencies.iter().map(|frequency| angle(frequency).sin() as f32));
                values.extend(frequencies.iter().map(|frequency| angle(frequency).cos() as f32));
            }
        }
    }
    Ok(Tensor::from_vec(values, (1, rows.len() * columns.len(), dim), device)?.to_dtype(DType::F32)?)
}

/// Patches (B, Y/P X/P, P P C), channels last, to an image (B, C, Y, X).
pub(crate) fn unpatchify(
    tokens: &Tensor,
    (height, width): (usize, usize),
    patch: usize,
    channels: usize,
) -> TensorResult<Tensor> {
    let batch = tokens.dim(0)?;
    let (rows, columns) = (height / patch, width / patch);
    Ok(tokens
        .reshape(&[batch, rows, columns, patch, patch, channels][..])?
        .permute([0, 5, 1, 3, 2, 4])?
        .contiguous()?
        .reshape((batch, channels, height, width))?)
}
