//! Attention to vectors that stand for a user, beside the attention to the text.
//!
//! Dang et al., "Personalized Preference Fine-tuning of Diffusion Models" (PPD), CVPR 2025, arXiv:2501.06655: every cross attention gets a second
//! pair of keys and values, of a user's embedding, as in Ye et al., "IP-Adapter", arXiv:2308.06721, Eq. 4 and 5:
//!
//! ```text
//! out = to_out(attend(q, k(text), v(text)) + attend(q, k'(user), v'(user)))
//! ```
//!
//! Neither `k'` nor `v'` has a bias, so that a user of zeros, and a `v'` of zeros, change nothing.
//!
//! The file has IP-Adapter's names of these layers, `ip_adapter.N.to_k_ip.weight` and `.to_v_ip.weight` with N = 1, 3, 5, … over the cross attentions of the
//! down blocks, the up blocks and the middle. What projects an image there (`image_proj`) is not in it: users come as vectors.
//!
//! B batch, T pixels, S vectors of a user, D width.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_tensor::{DType, Device, Params, Result as TensorResult, Tensor, Weights, ops, save_tensors};

use super::UNet2DConditionModel;
use crate::{Error, Init, Result};

/// A cross attention of a network: its name, and the width of its keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossAttention {
    /// As diffusers names it, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn2`.
    pub path: String,
    /// Width of keys and values.
    pub dim: usize,
}

/// Keys and values of users at every cross attention of a network.
#[derive(Debug, Clone)]
pub struct UserAttention {
    layers: BTreeMap<String, Projections>,
    /// Names of the layers in the order of IP-Adapter's numbers.
    order: Vec<String>,
    dim: usize,
}

/// Weights of one layer, (out, dim) each.
#[derive(Debug, Clone)]
struct Projections {
    to_k: Tensor,
    to_v: Tensor,
}

/// Where the weights are made.
#[derive(Debug, Clone)]
pub struct UserAttentionOptions {
    /// Where they live.
    pub device: Device,
    /// Type of weights that are not trained; f64 also of those that are.
    pub dtype: DType,
    /// Seed of initial keys.
    pub seed: u64,
}

const FIRST: usize = 1;

fn file_name(number: usize, weight: &str) -> String {
    format!("ip_adapter.{}.{weight}.weight", FIRST + 2 * number)
}

impl UserAttention {
    /// New weights for users of width `dim`, which are trained: random keys, values of zero, so that the network is what it was.
    ///
    /// # Errors
    /// [`Error::UserAttention`] for a network without cross attention, or users without a width.
    pub fn fresh(network: &UNet2DConditionModel, dim: usize, options: &UserAttentionOptions) -> Result<(Self, Params)> {
        if dim == 0 {
            return Err(Error::UserAttention {
                problem: "users have no width".into(),
            });
        }
        let weight = |layer: &CrossAttention, name: &str| -> Result<Tensor> {
            let init = match name {
                "to_k_ip" => Init::kaiming_uniform(dim),
                _ => Init::Zeros,
            };
            let path = format!("{}.processor.{name}.weight", layer.path);
            Ok(init.tensor(
                &[layer.dim, dim],
                master(options.dtype),
                &options.device,
                (options.seed, &path),
            )?)
        };
        Self::trained(network, dim, weight)
    }

    /// The weights of a file, which are trained from there.
    ///
    /// # Errors
    /// [`Error::UserAttention`] when it was made for another network; tensors that are missing or damaged.
    pub fn start(
        network: &UNet2DConditionModel,
        path: &Path,
        options: &UserAttentionOptions,
    ) -> Result<(Self, Params)> {
        let of_file = Self::load(network, path, options, master(options.dtype))?;
        let dim = of_file.dim;
        Self::trained(network, dim, |layer, name| {
            let projections = &of_file.layers[&layer.path];
            Ok(match name {
                "to_k_ip" => projections.to_k.clone(),
                _ => projections.to_v.clone(),
            })
        })
    }

    /// The weights of a file, frozen.
    ///
    /// # Errors
    /// As [`UserAttention::start`].
    pub fn frozen(network: &UNet2DConditionModel, path: &Path, options: &UserAttentionOptions) -> Result<Self> {
        Self::load(network, path, options, options.dtype)
    }

    fn trained(
        network: &UNet2DConditionModel,
        dim: usize,
        weight: impl Fn(&CrossAttention, &str) -> Result<Tensor>,
    ) -> Result<(Self, Params)> {
        let mut params = Params::new();
        let mut place = |layer: &CrossAttention, name: &str| -> Result<Tensor> {
            let tensor = weight(layer, name)?;
            Ok(params.insert(format!("{}.processor.{name}.weight", layer.path), &tensor)?)
        };
        let own = Self::of(network, dim, |layer| {
            Ok(Projections {
                to_k: place(layer, "to_k_ip")?,
                to_v: place(layer, "to_v_ip")?,
            })
        })?;
        Ok((own, params))
    }

    fn of(
        network: &UNet2DConditionModel,
        dim: usize,
        mut projections: impl FnMut(&CrossAttention) -> Result<Projections>,
    ) -> Result<Self> {
        let found = network.cross_attentions();
        if found.is_empty() {
            return Err(Error::UserAttention {
                problem: "the network has no cross attention".into(),
            });
        }
        let layers = found.iter().map(|layer| Ok((layer.path.clone(), projections(layer)?)));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            order: found.into_iter().map(|layer| layer.path).collect(),
            dim,
        })
    }

    fn load(network: &UNet2DConditionModel, path: &Path, options: &UserAttentionOptions, dtype: DType) -> Result<Self> {
        let weights = Weights::open(path)?;
        let num_layers = network.cross_attentions().len();
        let dim = match weights.shape(&file_name(0, "to_k_ip")) {
            Some([_, dim]) if weights.names().count() == 2 * num_layers => *dim,
            _ => {
                let problem = format!(
                    "{} has {} tensors; the network's {num_layers} cross attentions have two each, from `{}` on",
                    path.display(),
                    weights.names().count(),
                    file_name(0, "to_k_ip")
                );
                return Err(Error::UserAttention { problem });
            }
        };
        let mut number = 0;
        Self::of(network, dim, |layer| {
            let read = |weight| {
                let name = file_name(number, weight);
                weights.get(&name, &[layer.dim, dim], dtype, &options.device)
            };
            let projections = Projections {
                to_k: read("to_k_ip")?,
                to_v: read("to_v_ip")?,
            };
            number += 1;
            Ok(projections)
        })
    }

    /// Width of users.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Weights under the names of the file.
    ///
    /// # Errors
    /// Tensor operations.
    pub fn tensors(&self) -> TensorResult<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (number, path) in self.order.iter().enumerate() {
            let Projections { to_k, to_v } = &self.layers[path];
            for (name, weight) in [("to_k_ip", to_k), ("to_v_ip", to_v)] {
                tensors.insert(file_name(number, name), weight.detach().to_dtype(DType::F32)?);
            }
        }
        Ok(tensors)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(save_tensors(path, &self.tensors()?, &BTreeMap::new())?)
    }

    /// Tensors of a file under the names of parameters.
    ///
    /// # Errors
    /// As [`UserAttention::start`].
    pub fn parameters_of(&self, path: &Path) -> Result<BTreeMap<String, Tensor>> {
        let weights = Weights::open(path)?;
        let mut tensors = BTreeMap::new();
        for (number, layer) in self.order.iter().enumerate() {
            let own = &self.layers[layer];
            for (name, weight) in [("to_k_ip", &own.to_k), ("to_v_ip", &own.to_v)] {
                let file_name = file_name(number, name);
                let tensor = weights.get(&file_name, weight.dims(), weight.dtype(), weight.device())?;
                tensors.insert(format!("{layer}.processor.{name}.weight"), tensor);
            }
        }
        Ok(tensors)
    }

    /// Keys and values of users, (B, S, dim) to (B, S, D) each, at a cross attention.
    pub(super) fn keys_and_values(&self, path: &str, users_bsd: &Tensor) -> TensorResult<Option<(Tensor, Tensor)>> {
        let Some(layer) = self.layers.get(path) else {
            return Ok(None);
        };
        let project = |weight: &Tensor| ops::linear(users_bsd, &weight.to_dtype(users_bsd.dtype())?, None);
        Ok(Some((project(&layer.to_k)?, project(&layer.to_v)?)))
    }
}

/// Type of trained masters.
fn master(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

impl UNet2DConditionModel {
    /// The network's cross attentions in the order of diffusers' attention processors: down blocks, up blocks, the middle.
    pub fn cross_attentions(&self) -> Vec<CrossAttention> {
        let down = self.down_blocks.iter().flat_map(super::blocks::DownBlock::transformers);
        let up = self.up_blocks.iter().flat_map(super::blocks::UpBlock::transformers);
        let middle = self.mid_block.iter().filter_map(super::blocks::MidBlock::transformer);
        down.chain(up)
            .chain(middle)
            .flat_map(super::transformer::Transformer2D::cross_attentions)
            .collect()
    }
}
