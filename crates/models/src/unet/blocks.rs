//! The denoiser's blocks: down, middle and up.
//!
//! B batch, C channels, Y x X spatial.

use std::sync::Arc;

use diptych_tensor::autograd::BlockCounter;
use diptych_tensor::{Result as TensorResult, Tensor, checkpoint};

use super::transformer::{Transformer2D, TransformerConfig};
use super::users::UserAttention;
use super::{BlockDepth, DownBlockType, MidBlockType, UNet2DConditionConfig, UpBlockType};
use crate::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::{AdapterSwitch, Builder, Result};

/// What is the same for every block of one forward pass.
pub(super) struct Pass {
    /// SiLU of the time embedding, (B, D): every residual block wants it.
    pub(super) time_silu: Tensor,
    /// Text, (B, T, D).
    pub(super) text: Tensor,
    /// Who the image is for, where the network is told.
    pub(super) users: Option<Users>,
    /// Residual blocks and transformers, as they come.
    pub(super) blocks: BlockCounter,
    /// The switch whose state a recomputed block must run in.
    pub(super) switch: AdapterSwitch,
}

/// Users of a batch and how the network attends to them.
#[derive(Debug, Clone)]
pub(super) struct Users {
    pub(super) attention: Arc<UserAttention>,
    /// (B, S, dim) in the type of the activations.
    pub(super) vectors: Tensor,
}

impl Pass {
    /// Runs `f` on `x` and the pass's `context`, recomputing it in the backward pass if so asked.
    fn run<M: Send + Sync + 'static>(
        &self,
        module: &Arc<M>,
        (x, context): (&Tensor, &Tensor),
        f: impl Fn(&M, &Tensor, &Tensor) -> TensorResult<Tensor> + Send + Sync + 'static,
    ) -> TensorResult<Tensor> {
        if !self.blocks.recomputes_next() {
            return f(module, x, context);
        }
        let (module, switch, enabled) = (module.clone(), self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x, context], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            f(&module, &inputs[0], &inputs[1])
        })
    }

    fn resnet(&self, resnet: &Arc<ResnetBlock2D>, x: &Tensor) -> TensorResult<Tensor> {
        self.run(resnet, (x, &self.time_silu), |resnet, x, time| {
            resnet.forward(x, Some(time))
        })
    }

    fn attention(&self, attention: &Arc<Transformer2D>, x: &Tensor) -> TensorResult<Tensor> {
        let users = self.users.clone();
        self.run(attention, (x, &self.text), move |attention, x, text| {
            attention.forward(x, text, users.as_ref())
        })
    }
}

/// What the blocks of one level look like.
#[derive(Debug, Clone)]
pub(super) struct BlockConfig {
    num_layers: usize,
    /// Whether this is the last (coarsest) or the first (finest) level, beyond which there is no change of resolution.
    is_coarsest: bool,
    is_finest: bool,
    downsample_padding: usize,
    resnet: ResnetConfig,
    transformer: TransformerConfig,
    depth: BlockDepth,
}

/// Where a level's block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// On the way down, or in the middle.
    Down,
    /// On the way up.
    Up,
}

impl BlockConfig {
    pub(super) fn new(config: &UNet2DConditionConfig, (way, level): (Way, usize), time_dim: usize) -> Self {
        let channels = config.block_out_channels[level];
        let depth = match (way, &config.reverse_transformer_layers_per_block) {
            (Way::Up, Some(depths)) => &depths[config.block_out_channels.len() - 1 - level],
            (Way::Up, None) | (Way::Down, _) => &config.transformer_layers_per_block[level],
        };
        Self {
            num_layers: config.layers_per_block[level],
            is_coarsest: level + 1 == config.block_out_channels.len(),
            is_finest: level == 0,
            downsample_padding: config.downsample_padding,
            resnet: ResnetConfig {
                in_channels: channels,
                out_channels: channels,
                time_dim: Some(time_dim),
                num_groups: config.norm_num_groups,
                eps: config.norm_eps,
                output_scale: 1.0,
            },
            transformer: TransformerConfig {
                channels,
                num_heads: config.attention_head_dim[level],
                num_layers: depth.of_layer(0),
                text_dim: config.cross_attention_dim[level],
                num_groups: config.norm_num_groups,
                use_linear_projection: config.use_linear_projection,
                upcast_attention: config.upcast_attention,
            },
            depth: depth.clone(),
        }
    }

    /// The residual blocks with these input channels, and as many transformers if the block attends.
    fn layers(&self, builder: &Builder<'_>, inputs: &[usize], attends: bool) -> Result<Vec<Layer>> {
        let layer = |(i, &in_channels): (usize, &usize)| {
            let resnet = ResnetConfig {
                in_channels,
                ..self.resnet
            };
            let transformer = TransformerConfig {
                num_layers: self.depth.of_layer(i),
                ..self.transformer
            };
            let attention =
                || Transformer2D::load(&builder.child(format!("attentions.{i}")), transformer).map(Arc::new);
            Ok(Layer {
                resnet: Arc::new(ResnetBlock2D::load(&builder.child(format!("resnets.{i}")), resnet)?),
                attention: attends.then(attention).transpose()?,
            })
        };
        inputs.iter().enumerate().map(layer).collect()
    }
}

#[derive(Debug)]
struct Layer {
    resnet: Arc<ResnetBlock2D>,
    attention: Option<Arc<Transformer2D>>,
}

impl Layer {
    fn forward(&self, x: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let x = pass.resnet(&self.resnet, x)?;
        match &self.attention {
            Some(attention) => pass.attention(attention, &x),
            None => Ok(x),
        }
    }
}

/// `DownBlock2D` or `CrossAttnDownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock {
    pub(super) fn load(
        builder: &Builder<'_>,
        kind: DownBlockType,
        in_channels: usize,
        config: &BlockConfig,
    ) -> Result<Self> {
        let mut inputs = vec![config.resnet.out_channels; config.num_layers];
        inputs[0] = in_channels;
        let (channels, padding) = (config.resnet.out_channels, config.downsample_padding);
        let downsampler = || Downsample2D::load(&builder.child("downsamplers.0"), channels, padding);
        Ok(Self {
            layers: config.layers(builder, &inputs, kind == DownBlockType::CrossAttnDownBlock2D)?,
            downsampler: (!config.is_coarsest).then(downsampler).transpose()?,
        })
    }

    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer2D> {
        self.layers.iter().filter_map(|layer| layer.attention.as_deref())
    }

    /// Also pushes what the up blocks will want: the output of every layer, and the smaller map.
    pub(super) fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, pass: &Pass) -> TensorResult<Tensor> {
        for layer in &self.layers {
            x = layer.forward(&x, pass)?;
            skips.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D`, which is its first residual block alone.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Arc<ResnetBlock2D>,
    rest: Option<(Arc<Transformer2D>, Arc<ResnetBlock2D>)>,
}

impl MidBlock {
    pub(super) fn load(
        builder: &Builder<'_>,
        kind: MidBlockType,
        config: &BlockConfig,
        output_scale: f64,
    ) -> Result<Self> {
        let resnet = |i| {
            let config = ResnetConfig {
                output_scale,
                ..config.resnet
            };
            ResnetBlock2D::load(&builder.child(format!("resnets.{i}")), config).map(Arc::new)
        };
        let rest = || -> Result<_> {
            let attention = Transformer2D::load(&builder.child("attentions.0"), config.transformer)?;
            Ok((Arc::new(attention), resnet(1)?))
        };
        Ok(Self {
            first: resnet(0)?,
            rest: match kind {
                MidBlockType::UNetMidBlock2DCrossAttn => Some(rest()?),
                MidBlockType::UNetMidBlock2D => None,
            },
        })
    }

    pub(super) fn transformer(&self) -> Option<&Transformer2D> {
        self.rest.as_ref().map(|(attention, _)| &**attention)
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let x = pass.resnet(&self.first, x)?;
        match &self.rest {
            Some((attention, resnet)) => pass.resnet(resnet, &pass.attention(attention, &x)?),
            None => Ok(x),
        }
    }
}

/// `UpBlock2D` or `CrossAttnUpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Upsample2D>,
}

impl UpBlock {
    /// `previous` channels come from the block below, `skip` channels from the last of the skips.
    pub(super) fn load(
        builder: &Builder<'_>,
        kind: UpBlockType,
        (previous, skip): (usize, usize),
        config: &BlockConfig,
    ) -> Result<Self> {
        let channels = config.resnet.out_channels;
        let num_layers = config.num_layers + 1;
        let input = |i| (if i == 0 { previous } else { channels }) + if i + 1 == num_layers { skip } else { channels };
        let inputs: Vec<usize> = (0..num_layers).map(input).collect();
        let upsampler = || Upsample2D::load(&builder.child("upsamplers.0"), channels);
        Ok(Self {
            layers: config.layers(builder, &inputs, kind == UpBlockType::CrossAttnUpBlock2D)?,
            upsampler: (!config.is_finest).then(upsampler).transpose()?,
        })
    }

    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer2D> {
        self.layers.iter().filter_map(|layer| layer.attention.as_deref())
    }

    pub(super) fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, pass: &Pass) -> TensorResult<Tensor> {
        for layer in &self.layers {
            // The down blocks push exactly as many skips as the up blocks take; load() gave both the same configuration.
            x = match skips.pop() {
                Some(skip) => Tensor::cat(&[&x, &skip], 1)?,
                None => x,
            };
            x = layer.forward(&x, pass)?;
        }
        match &self.upsampler {
            Some(upsampler) => {
                let size = skips
                    .last()
                    .map(Tensor::dims4)
                    .transpose()?
                    .map(|(_, _, height, width)| (height, width));
                upsampler.forward(&x, size)
            }
            None => Ok(x),
        }
    }
}
