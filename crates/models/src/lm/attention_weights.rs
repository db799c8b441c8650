//! What tokens attend to, read from one layer.
//!
//! Training and generation never hold these numbers; they are computed again for the few tokens that are asked about.
//!
//! Q queries that are read, T tokens, H heads, G key heads, K head width.

use diptych_tensor::ops::VisibleKeys;
use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use super::{CausalLm, LmInput};
use crate::{Error, Result};

/// Queries whose weights are computed together: it bounds the scores of all heads.
const TOGETHER: usize = 64;

impl CausalLm {
    /// The attention of some tokens of one row at a layer, as the mean over its heads: transformers' `output_attentions` of that layer, averaged
    /// over the dimension of heads.
    ///
    /// # Shape
    /// `embeddings` (1, T, D) with the `input` that they belong to; `queries` are places in the row; the result is (Q, T), f32, each row with a sum of
    /// one.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than one row or a place beyond its end; [`Error::GenerationSetting`] for a layer that the network does not have;
    /// as [`forward_embeddings`](Self::forward_embeddings).
    pub fn attention_weights(
        &self,
        embeddings: &Tensor,
        input: &LmInput,
        layer: usize,
        queries: &[usize],
    ) -> Result<Tensor> {
        self.check_embeddings(embeddings, input)?;
        let tokens = input.visible.queries();
        let is_place = |query: &usize| *query < tokens;
        if input.visible.batch() != 1 || queries.is_empty() || !queries.iter().all(is_place) {
            return Err(Error::Shape {
                what: "queries",
                found: queries.to_vec(),
                expected: format!("places below {tokens} in one row, found {} rows", input.visible.batch()),
            });
        }
        let contexts = self.contexts(input.rotary_positions(), &input.visible)?;
        let mut x = embeddings.detach();
        for (index, (layer_at, context)) in self.layers.iter().zip(contexts).enumerate() {
            if index < layer {
                x = layer_at.forward(&x, &context, None)?.detach();
                continue;
            }
            let [q, k] = layer_at.queries_and_keys(&x, &context)?;
            let parts = queries
                .chunks(TOGETHER)
                .map(|part| weights(layer_at.heads(), [&q, &k], &context.visible, part))
                .collect::<TensorResult<Vec<_>>>()?;
            return Ok(Tensor::cat(&parts, 0).map_err(diptych_tensor::Error::from)?);
        }
        Err(Error::GenerationSetting {
            key: "layer",
            found: layer.to_string(),
            expected: "a layer of the network, counted from 0",
        })
    }
}

/// (Q, T) weights of some queries, the mean over heads.
fn weights(
    heads: ops::GroupedAttentionConfig,
    [q, k]: [&Tensor; 2],
    visible: &VisibleKeys,
    queries: &[usize],
) -> TensorResult<Tensor> {
    let (groups, tokens, count) = (heads.num_kv_heads, visible.keys(), queries.len());
    let each = heads.num_heads / groups;
    let places: Vec<u32> = queries.iter().map(|query| *query as u32).collect();
    let places = Tensor::from_vec(places, count, q.device())?;
    let width = k.dim(2)? / groups;
    // (1, Q, H K) to (G, H/G Q, K): the heads of a group compare with one set of keys.
    let q_gmk = q
        .index_select(&places, 1)?
        .to_dtype(DType::F32)?
        .reshape((count, groups, each, width))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((groups, each * count, width))?;
    let k_gkt = k
        .to_dtype(DType::F32)?
        .reshape((tokens, groups, width))?
        .permute((1, 2, 0))?
        .contiguous()?;
    let scores = (q_gmk.matmul(&k_gkt)? * heads.scale)?;
    let scores = match heads.softcap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let scores_hqt = scores.reshape((heads.num_heads, count, tokens))?;
    let mut hidden = vec![f32::NEG_INFINITY; count * tokens];
    for (row, query) in queries.iter().enumerate() {
        for range in visible.row(0, *query) {
            hidden[row * tokens..(row + 1) * tokens][range].fill(0.0);
        }
    }
    let hidden_qt = Tensor::from_vec(hidden, (1, count, tokens), q.device())?;
    Ok(ops::softmax(&scores_hqt.broadcast_add(&hidden_qt)?)?.mean(0)?.detach())
}
