//! A learned number for every distance between two tokens and every head, added to the scores of all layers.
//!
//! T tokens, H heads.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::T5Config;
use crate::{Builder, Init, Result};

/// transformers' `relative_attention_bias`, of the first layer and read by all.
#[derive(Debug)]
pub(super) struct PositionBias {
    /// (buckets, H).
    weight: Tensor,
    num_buckets: usize,
    max_distance: usize,
}

impl PositionBias {
    pub(super) fn load(builder: &Builder<'_>, config: &T5Config) -> Result<Self> {
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(Self {
            weight: builder.get("weight", &shape, Init::Normal { std })?,
            num_buckets: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
        })
    }

    /// What is added to the scores of texts of `len` tokens: (1, H, T, T).
    pub(super) fn forward(&self, len: usize) -> TensorResult<Tensor> {
        let bucket = |i: usize| {
            let (query, key) = (i / len, i % len);
            bucket(query, key, self.num_buckets, self.max_distance)
        };
        let buckets: Vec<u32> = (0..len * len).map(bucket).collect();
        let buckets = Tensor::from_vec(buckets, (len, len), self.weight.device())?;
        let bias_tth = ops::embedding(&buckets, &self.weight)?;
        Ok(bias_tth.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }
}

/// The bucket of a query's distance to a key: half of them for keys behind the query, and of each half the first half for single distances,
/// the rest for ranges that grow with their logarithm. In f32, as transformers computes it: at the edges of ranges rounding decides.
fn bucket(query: usize, key: usize, num_buckets: usize, max_distance: usize) -> u32 {
    let half = num_buckets / 2;
    let (exact, distance) = (half / 2, query.abs_diff(key));
    let within = if distance < exact {
        distance
    } else {
        let octaves = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
        (exact + (octaves * (half - exact) as f32) as usize).min(half - 1)
    };
    (within + if key > query { half } else { 0 }) as u32
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// Values of transformers' `T5Attention._relative_position_bucket`, printed for 32 buckets up to distance 128.
    #[test]
    fn buckets_are_those_of_transformers() {
        let changes: Vec<(usize, u32)> = (0..600)
            .map(|distance| (distance, bucket(600, 600 - distance, 32, 128)))
            .fold(Vec::new(), |mut changes: Vec<(usize, u32)>, (distance, bucket)| {
                if changes.last().is_none_or(|&(_, last)| last != bucket) {
                    changes.push((distance, bucket));
                }
                changes
            });
        let expected = EXPECTED_CHANGES;
        assert_eq!(changes, expected);
        for distance in 1..600 {
            assert_eq!(bucket(0, distance, 32, 128), 16 + bucket(distance, 0, 32, 128));
        }
    }

    /// The distance at which each bucket begins.
    const EXPECTED_CHANGES: [(usize, u32); 16] = [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
        (6, 6),
        (7, 7),
        (8, 8),
        (12, 9),
        (16, 10),
        (23, 11),
        (32, 12),
        (46, 13),
        (64, 14),
        (91, 15),
    ];
}
