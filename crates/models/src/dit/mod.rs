//! What diffusion transformers have in common: patches, conditions, modulation and joint attention.
//!
//! Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv:2212.09748; the joint streams of text and image
//! are those of Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024, arXiv:2403.03206.

mod attention;
mod block;
mod conditions;
mod modulation;
mod patches;

use std::sync::Arc;

use diptych_tensor::{Result as TensorResult, Tensor, checkpoint};

pub(crate) use self::attention::{Attention, AttentionConfig, Rope, Streams};
pub(crate) use self::block::{FeedForward, JointBlock, JointBlockConfig};
pub(crate) use self::conditions::{CombinedEmbedding, ProjectionActivation, TextProjection, TimestepEmbedding};
pub(crate) use self::modulation::{AdaLayerNormContinuous, Modulation, PlainNorm, modulated};
pub(crate) use self::patches::{PatchEmbed, PatchEmbedConfig, PositionTable, unpatchify};
use crate::{AdapterSwitch, Error, Result};

/// Epsilon of every norm in these networks.
pub(crate) const EPS: f64 = 1e-6;

/// Runs a block on the joint stream `x` (B, S + T, D) and the `condition` (B, ...), recomputing it in the backward pass if `checkpointing`
/// has the switch whose state it must then run in.
pub(crate) fn run_block<M: Send + Sync + 'static>(
    checkpointing: Option<&AdapterSwitch>,
    module: &Arc<M>,
    (x, condition): (&Tensor, &Tensor),
    f: impl Fn(&M, &Tensor, &Tensor) -> TensorResult<Tensor> + Send + Sync + 'static,
) -> TensorResult<Tensor> {
    let Some(switch) = checkpointing else {
        return f(module, x, condition);
    };
    let (module, switch, enabled) = (module.clone(), switch.clone(), switch.is_enabled());
    checkpoint(&[x, condition], move |inputs| {
        let _as_in_the_forward_pass = switch.set(enabled);
        f(&module, &inputs[0], &inputs[1])
    })
}

/// Checks a tensor's shape; `None` stands for a dimension of any size above zero, which is then returned.
pub(crate) fn expect_shape(what: &'static str, tensor: &Tensor, expected: &[Option<usize>]) -> Result<Vec<usize>> {
    let fits = tensor.rank() == expected.len()
        && tensor
            .dims()
            .iter()
            .zip(expected)
            .all(|(&found, expected)| match expected {
                Some(expected) => found == *expected,
                None => found > 0,
            });
    if fits {
        return Ok(tensor.dims().to_vec());
    }
    let names = expected
        .iter()
        .map(|dim| dim.map_or("any".to_owned(), |dim| dim.to_string()));
    Err(Error::Shape {
        what,
        found: tensor.dims().to_vec(),
        expected: format!("({})", names.collect::<Vec<_>>().join(", ")),
    })
}
