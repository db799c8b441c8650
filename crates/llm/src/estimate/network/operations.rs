//! Operations and their buffers.

use super::super::shadow::{Fused, Pull, Shadow, Tape};
use super::super::sizes::BatchSizes;
use super::WIDE;

/// `x weight^T + bias`, with parameters in the type of the input, and all of them widened for the kernel; a weight that is no tensor, a
/// quantized one, is read in the buffers of the threads.
pub(super) fn product(
    tape: &Tape,
    x: &Shadow,
    weight: Option<&Shadow>,
    bias: Option<&Shadow>,
    (from, to): (usize, usize),
) -> Shadow {
    let like = |parameter: &Shadow| tape.cast(&tape.cast(parameter, x.width()), WIDE);
    let (wide, weight, bias) = (tape.cast(x, WIDE), weight.map(like), bias.map(like));
    let rows = x.elements() / from;
    let flat = Tape::view(&wide);
    let flop = 2.0 * (rows * from * to) as f64;
    let fused = Fused {
        elements: rows * to,
        forward_flop: flop,
        // Of a bias beside a quantized weight it is nothing to speak of.
        backward_flop: [flop, if weight.is_some() { flop } else { 0.0 }],
        ..Fused::default()
    };
    let operands: Vec<&Shadow> = std::iter::once(&flat).chain(&weight).chain(&bias).collect();
    let y = tape.fused(fused, &operands);
    tape.cast(&Tape::view(&y), x.width())
}

pub(super) fn rms_norm(tape: &Tape, x: &Shadow, weight: &Shadow) -> Shadow {
    let weight = tape.cast(weight, x.width());
    pointwise(tape, &[x, &weight])
}

/// One of our operations whose result is as large as its first operand.
pub(super) fn pointwise(tape: &Tape, operands: &[&Shadow]) -> Shadow {
    let wide: Vec<Shadow> = operands.iter().map(|operand| tape.cast(operand, WIDE)).collect();
    let fused = Fused {
        elements: operands[0].elements(),
        ..Fused::default()
    };
    let y = tape.fused(fused, &wide.iter().collect::<Vec<_>>());
    tape.cast(&y, operands[0].width())
}

pub(super) fn add(tape: &Tape, a: &Shadow, b: &Shadow) -> Shadow {
    tape.candle(Pull::View, a.elements(), &[a, b])
}

/// Sums of key and value gradients that the tasks of attention's backward pass hold (see `ops/attention/kernel.rs`).
pub(super) fn attention_buffers((heads, kv_heads, head_dim): (usize, usize, usize), sizes: BatchSizes) -> usize {
    const MIN_TASKS: usize = 8;
    let key_units = (sizes.rows * kv_heads).max(1);
    let group = heads / kv_heads;
    let tile_rows = ((512 << 10) / WIDE / sizes.row_len.max(1)).clamp(16, 64);
    let segments = MIN_TASKS
        .div_ceil(key_units)
        .min(group * sizes.row_len.div_ceil(tile_rows));
    2 * segments * key_units * sizes.row_len * head_dim * WIDE
}

/// Buffers of `token_logps` (see `ops/token_logps/kernel.rs`).
pub(super) struct LogpsBuffers {
    pub(super) segments: usize,
    pub(super) rows_in_flight: usize,
    /// Partial gradients of the weight.
    pub(super) weight_gradient: usize,
}

impl LogpsBuffers {
    pub(super) fn of(count: usize, width: usize, vocabulary: usize) -> Self {
        const BLOCK: usize = 1024;
        const TASKS: usize = 16;
        const BUDGET: usize = 32 << 20;
        let chunk_rows = (BUDGET / (TASKS * width * WIDE)).clamp(32, 256);
        let blocks = vocabulary.div_ceil(BLOCK);
        let segments = TASKS.min(blocks);
        let chunks = count.div_ceil(chunk_rows);
        let gradient = vocabulary * width * WIDE;
        let parts = (TASKS / blocks).min(BUDGET / gradient.max(1)).min(chunks).max(1);
        Self {
            segments,
            rows_in_flight: count.min(chunk_rows * (TASKS / segments)),
            weight_gradient: if parts == 1 { 0 } else { parts * gradient },
        }
    }
}
