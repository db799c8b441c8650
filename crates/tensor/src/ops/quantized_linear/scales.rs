//! Scales of blocks, as they are or in eight bits.

use crate::optim::blockwise::SIGNED;

/// Scales that share one of their own.
const BLOCK: usize = 256;

/// One scale a block.
pub(super) enum Scales {
    Full(Vec<f32>),
    /// A scale is an entry of the signed map of [`blockwise`](crate::optim::blockwise), times the scale of its block, beyond the mean.
    Coded {
        codes: Vec<u8>,
        scales: Vec<f32>,
        mean: f32,
    },
}

/// Bytes of the arrays of so many scales in eight bits.
pub(super) fn coded_bytes(len: usize) -> [usize; 2] {
    [len, len.div_ceil(BLOCK) * size_of::<f32>()]
}

impl Scales {
    pub(super) fn new(scales: Vec<f32>, is_coded: bool) -> Self {
        if is_coded {
            Self::coded(&scales)
        } else {
            Self::Full(scales)
        }
    }

    fn coded(full: &[f32]) -> Self {
        let sum: f64 = full.iter().map(|&scale| f64::from(scale)).sum();
        let mean = (sum / full.len().max(1) as f64) as f32;
        let mut codes = Vec::with_capacity(full.len());
        let mut scales = Vec::with_capacity(full.len().div_ceil(BLOCK));
        for block in full.chunks(BLOCK) {
            let largest = block.iter().fold(0f32, |most, &scale| most.max((scale - mean).abs()));
            let factor = 1.0 / largest.max(f32::MIN_POSITIVE);
            codes.extend(block.iter().map(|&scale| SIGNED.code((scale - mean) * factor)));
            scales.push(largest);
        }
        Self::Coded { codes, scales, mean }
    }

    pub(super) fn get(&self, block: usize) -> f32 {
        match self {
            Self::Full(scales) => scales[block],
            Self::Coded { codes, scales, mean } => SIGNED.value(codes[block]) * scales[block / BLOCK] + mean,
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::Full(scales) => size_of_val(scales.as_slice()),
            Self::Coded { codes, scales, .. } => codes.len() + size_of_val(scales.as_slice()),
        }
    }
}
