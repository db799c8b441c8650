//! What the fused kernels share: numbers, vector loops, matrix products, operands and threads.

mod float;
mod lanes;
mod matmul;
mod operand;
mod parallel;
mod reduce;
mod wide;

pub(super) use float::{Float, on_float};
pub(super) use lanes::{LANES, Lanes, Steps, lane_products};
pub(super) use matmul::{Accumulate, Matrix, MatrixMut, Threads, matmul};
pub(super) use operand::{Operand, Path, from_parts, output, path, shape_error};
pub(super) use parallel::{Shared, chunked, chunked_rows, piece_rows};
pub(super) use reduce::{add_all, dot_centered, sum, sum_rows, sum_squares};
pub(super) use wide::wide;
