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
pub(super) use matmul::{Accumulate, Matrix, MatrixMut, Threads, matmul, product};
pub(super) use operand::{Operand, Path, from_parts, gradient, output, path, shape_error};
pub(super) use parallel::{Shared, chunked_rows, filled, filled_pieces, filled_rows, piece_rows, zeros};
pub(crate) use reduce::sum_of_squares;
pub(super) use reduce::{BLOCK, add, add_all, folded, sum, sum_pairs, sum_rows, sum_terms};
pub(crate) use wide::wide;
