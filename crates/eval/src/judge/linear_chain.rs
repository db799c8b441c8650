//! A head of linear layers without activations, as two of the published judges have it.

use diptych_models::layers::{Linear, LinearConfig};
use diptych_models::{Builder, Error as ModelError};
use diptych_tensor::{Tensor, Weights};

use crate::error::{Error, Result};

/// Places of the linear layers; between them were dropouts.
const PLACES: [usize; 5] = [0, 2, 4, 6, 7];

/// `layers.{0,2,4,6,7}`, one behind the other, to one number.
#[derive(Debug)]
pub(super) struct LinearChain {
    layers: Vec<Linear>,
}

impl LinearChain {
    /// The chain at the builder's place, `prefix` in the weight file. Widths come from the file; the first must be `width`, the last 1.
    pub(super) fn load(builder: &Builder<'_>, weights: &Weights, prefix: &str, width: usize) -> Result<Self> {
        let mut layers = Vec::with_capacity(PLACES.len());
        let mut from = width;
        for (index, place) in PLACES.iter().enumerate() {
            let name = format!("{prefix}layers.{place}.weight");
            let shape = weights.shape(&name).unwrap_or_default();
            let is_last = index + 1 == PLACES.len();
            let to = match *shape {
                [to, found] if found == from && (!is_last || to == 1) => to,
                _ => {
                    let outputs = if is_last { "1" } else { "any" };
                    return Err(Error::JudgeSetup {
                        path: weights.origin().to_owned(),
                        found: format!("`{name}` of shape {shape:?}"),
                        expected: format!("({outputs}, {from}): a head for features of width {width}"),
                    });
                }
            };
            layers.push(Linear::load(
                &builder.child(format!("layers.{place}")),
                LinearConfig::new(from, to),
            )?);
            from = to;
        }
        Ok(Self { layers })
    }

    /// (B, D) to (B).
    pub(super) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let run = || -> diptych_tensor::Result<Tensor> {
            let mut x = features.clone();
            for layer in &self.layers {
                x = layer.forward(&x)?;
            }
            Ok(x.squeeze(1)?)
        };
        Ok(run().map_err(ModelError::from)?)
    }
}
