//! The numeric ground of Diptych: devices, precision, counter-based randomness, ordered parameters, backward passes,
//! gradient checkpointing, differentiable operations, optimizers whose state can be saved, and safetensors files.
//!
//! candle supplies storage, kernels and a tape. What it lacks for training is closed here, once:
//!
//! | module | what it adds |
//! |---|---|
//! | [`autograd`] | gradients of trainable parameters only, detached and complete; recomputation of segments |
//! | [`device`] | one place that turns `auto`, `cpu`, `cuda:0` … into a device |
//! | [`files`] | files and directories that appear whole or not at all |
//! | [`memory`] | a global allocator that keeps large blocks between training steps |
//! | [`ops`] | operations with a fused and a composed form; a frozen operand costs no gradient |
//! | [`optim`] | AdamW in one pass with moments in 32, 16 or 8 bits, Adafactor, clipping, schedules, moving averages |
//! | [`params`] | trainable parameters in a fixed order, by name |
//! | [`random`] | every number is a function of (seed, stream, step, example) |
//! | [`thread`] | a thread with a stack deep enough for a deep graph |
//! | [`weights`] | safetensors files, single or sharded, read tensor by tensor |
//!
//! Other crates of the workspace take candle's types from here, so that there is one version of them.

pub mod autograd;
pub mod device;
mod error;
pub mod files;
pub mod memory;
pub mod ops;
pub mod optim;
pub mod params;
pub mod random;
pub mod thread;
pub mod weights;

pub use autograd::{CheckpointPolicy, Gradients, backward, checkpoint};
pub use candle_core::{D, DType, Device, Error as OperationError, IndexOp, Shape, Tensor, Var};
pub use device::{DeviceChoice, Precision};
pub use error::{Error, Result};
pub use ops::quantized_linear::{Nf4Config, Quantization, QuantizedMatrix};
pub use params::Params;
pub use weights::{Weights, save_tensors};
