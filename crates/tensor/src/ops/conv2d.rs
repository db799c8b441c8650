//! Two-dimensional convolution (cross-correlation, as PyTorch's `conv2d`), with groups and dilation of one.
//!
//! The CPU kernels unfold tiles of the input into columns and multiply matrices; `kernel` says how each pass is tiled. Three by
//! three weights with stride 1 are applied by Winograd's algorithm where that takes less time, and to small images directly; `winograd`
//! and `direct` say how.

mod direct;
mod geometry;
mod groups;
mod kernel;
mod winograd;

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result as CandleResult, Shape, Storage,
    Tensor,
};

use self::geometry::Geometry;
use super::kernel::{Operand, Path, from_parts, gradient, on_float, output, path};
use crate::Result;

const OP: &str = "conv2d";

/// Stride and zero padding of a convolution, the same in both directions and on both sides.
///
/// Asymmetric padding is the caller's: `Tensor::pad_with_zeros` before a convolution without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Distance of two output positions, in input pixels; at least 1.
    pub stride: usize,
    /// Rows and columns of zeros on each side.
    pub padding: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0 }
    }
}

/// Convolution of `x` with `weight`, plus `bias`.
///
/// A frozen weight or bias costs no gradient, nor does an untracked input, on any device: the operation is one node that
/// computes the gradients of its tracked operands only. Beside the result the CPU kernels use at most some tens of MiB.
///
/// # Shape
/// `x` `(B, C, Y, X)`, `weight` `(O, C, ky, kx)`, `bias` `(O)`; the result is `(B, O, (Y + 2p - ky) / s + 1, ...)`.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for shapes, dtypes or a stride that do not fit, or a kernel larger than the padded input.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let geometry = Geometry::of(x, weight, bias, config)?;
    let mut operands = vec![x, weight];
    operands.extend(bias);
    let precomputed = match path(OP, &operands)? {
        Path::Widened(dtype) => {
            let widen = |tensor: &Tensor| tensor.to_dtype(DType::F32);
            let bias = bias.map(widen).transpose()?;
            return Ok(conv2d(&widen(x)?, &widen(weight)?, bias.as_ref(), config)?.to_dtype(dtype)?);
        }
        Path::Fused => None,
        Path::Composed => {
            let (x, weight) = (x.detach().contiguous()?, weight.detach().contiguous()?);
            let y = x.conv2d(&weight, config.padding, config.stride, 1, 1)?;
            Some(with_bias(y, bias.map(Tensor::detach).as_ref())?)
        }
    };
    let op = Conv2d {
        geometry,
        config,
        precomputed: Mutex::new(precomputed),
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        None => x.apply_op2(&weight, op)?,
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op)?,
    })
}

/// [`conv2d`] in candle's primitives.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let geometry = Geometry::of(x, weight, bias, config)?;
    // Padded and cropped to what the windows reach: candle's backward pass fails where rows and columns are left over.
    let Conv2dConfig { stride, padding } = config;
    let reached = |out_len: usize, k: usize| (out_len - 1) * stride + k;
    let (height, width) = (
        reached(geometry.out_height, geometry.ky),
        reached(geometry.out_width, geometry.kx),
    );
    let padded = x
        .pad_with_zeros(2, padding, padding)?
        .pad_with_zeros(3, padding, padding)?;
    let cropped = padded.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?;
    with_bias(cropped.conv2d(&weight.contiguous()?, 0, stride, 1, 1)?, bias)
}

fn with_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match bias {
        None => y,
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
    })
}

struct Conv2d {
    geometry: Geometry,
    config: Conv2dConfig,
    /// Result of the forward pass on a device without a kernel of ours, until it is taken.
    precomputed: Mutex<Option<Tensor>>,
}

impl Conv2d {
    fn cpu(
        &self,
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(x.0.dtype(), OP, T => {
            let (x, weight) = (from_parts::<T>(x.0, x.1)?, from_parts::<T>(weight.0, weight.1)?);
            let bias = bias.map(|(storage, layout)| from_parts::<T>(storage, layout)).transpose()?;
            Ok(output(kernel::forward(&self.geometry, x, weight, bias), self.geometry.output_shape()))
        })
    }

    /// Hands the precomputed result to `take`, which copies the storage of its device.
    fn device<S>(&self, copy: impl Fn(&Storage, &Layout) -> CandleResult<S>) -> CandleResult<(S, Shape)> {
        let taken = self
            .precomputed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let Some(result) = taken else {
            return Err(candle_core::Error::Msg("conv2d was applied twice".into()));
        };
        let result = result.contiguous()?;
        let (storage, layout) = result.storage_and_layout();
        Ok((copy(&storage, layout)?, self.geometry.output_shape()))
    }

    fn cuda(&self) -> CandleResult<(CudaStorage, Shape)> {
        self.device(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => Err(candle_core::Error::Msg("conv2d: result on another device".into())),
        })
    }

    fn metal(&self) -> CandleResult<(MetalStorage, Shape)> {
        self.device(|storage, layout| match storage {
            Storage::Metal(storage) => storage.try_clone(layout),
            _ => Err(candle_core::Error::Msg("conv2d: result on another device".into())),
        })
    }

    /// Gradients of x, weight and bias.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> CandleResult<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        if !x.device().is_cpu() {
            let bias_tracked = bias.is_some_and(Tensor::track_op);
            let dx = x.track_op().then(|| self.composed_dx(weight, &grad)).transpose()?;
            let dw = weight.track_op().then(|| self.composed_dw(x, &grad)).transpose()?;
            return Ok([dx, dw, bias_tracked.then(|| grad.sum((0, 2, 3))).transpose()?]);
        }
        let geometry = &self.geometry;
        let [x_operand, weight_operand, grad_operand] = [x, weight, &grad].map(Operand::of);
        on_float!(x.dtype(), OP, T => {
            let dy = grad_operand.slice::<T>()?;
            let input = |weight: &[T]| kernel::backward_input(geometry, weight, dy);
            let dx = x.track_op().then(|| weight_operand.slice().map(input)).transpose()?;
            let dx = gradient(dx, x)?;
            let of_weight = |x: &[T]| kernel::backward_weight(geometry, x, dy);
            let dw = weight.track_op().then(|| x_operand.slice().map(of_weight)).transpose()?;
            let dw = gradient(dw, weight)?;
            let db = match bias.filter(|bias| bias.track_op()) {
                None => None,
                Some(bias) => gradient(Some(kernel::backward_bias(geometry, dy)), bias)?,
            };
            Ok([dx, dw, db])
        })
    }

    fn composed_dx(&self, weight: &Tensor, grad: &Tensor) -> CandleResult<Tensor> {
        let Geometry {
            height,
            width,
            ky,
            kx,
            out_height,
            out_width,
            ..
        } = self.geometry;
        let Conv2dConfig { stride, padding } = self.config;
        // Rows and columns at the end that no window reached.
        let rest = |len: usize, out_len: usize, k: usize| len + 2 * padding - ((out_len - 1) * stride + k);
        let (rest_y, rest_x) = (rest(height, out_height, ky), rest(width, out_width, kx));
        let rest = rest_y.max(rest_x);
        let dx = grad.conv_transpose2d(&weight.detach(), padding, rest, stride, 1)?;
        dx.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()
    }

    fn composed_dw(&self, x: &Tensor, grad: &Tensor) -> CandleResult<Tensor> {
        let Conv2dConfig { stride, padding } = self.config;
        let (x, grad) = (
            x.detach().transpose(0, 1)?.contiguous()?,
            grad.transpose(0, 1)?.contiguous()?,
        );
        let dw = x.conv2d(&grad, padding, 1, stride, 1)?.transpose(0, 1)?;
        dw.narrow(2, 0, self.geometry.ky)?
            .narrow(3, 0, self.geometry.kx)?
            .contiguous()
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu((s1, l1), (s2, l2), None)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.gradients(x, weight, None, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.gradients(x, weight, Some(bias), grad)?;
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// The gradients of devices without a kernel of ours are plain tensor operations: they are compared here, on the CPU.
    #[test]
    fn gradients_of_other_devices_equal_the_kernels() {
        let table = [
            ([2, 3, 5, 6], [4, 3, 3, 3], 1, 1),
            ([1, 2, 8, 9], [3, 2, 3, 3], 2, 0),
            ([1, 2, 7, 7], [3, 2, 3, 3], 2, 1),
            ([1, 2, 9, 9], [2, 2, 4, 3], 3, 2),
            ([2, 3, 4, 4], [2, 3, 1, 1], 1, 0),
        ];
        let ramp = |shape: &[usize]| {
            let data = (0..shape.iter().product())
                .map(|i: usize| (i as f64 * 0.37).sin())
                .collect::<Vec<_>>();
            Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
        };
        for (x, weight, stride, padding) in table {
            let config = Conv2dConfig { stride, padding };
            let (x, weight) = (ramp(&x), ramp(&weight));
            let geometry = Geometry::of(&x, &weight, None, config).unwrap();
            let grad = ramp(geometry.output_shape().dims());
            let op = Conv2d {
                geometry,
                config,
                precomputed: Mutex::new(None),
            };
            let operands = [&x, &weight, &grad].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap());
            let dx = kernel::backward_input(&geometry, &operands[1], &operands[2]);
            let dw = kernel::backward_weight(&geometry, &operands[0], &operands[2]);
            for (found, expected) in [(op.composed_dx(&weight, &grad), dx), (op.composed_dw(&x, &grad), dw)] {
                let found = found.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                assert_eq!(found.len(), expected.len());
                assert!(
                    found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12),
                    "{geometry:?}"
                );
            }
        }
    }
}
