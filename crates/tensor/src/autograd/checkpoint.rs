//! Gradient checkpointing: a segment's activations are dropped after the forward pass and computed again in the
//! backward pass. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.

use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result as CandleResult, Shape,
    Storage, Tensor, Var,
};

use super::{PASS, take_parameters};
use crate::{Error, Result};

type Segment = Arc<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// Computes `segment(inputs)` without keeping what is inside it; the backward pass computes it again.
///
/// Values and gradients are those of calling `segment` directly. Trainable parameters inside the segment get their
/// gradients when the pass is started by [`backward`](super::backward). When neither the inputs nor parameters inside are
/// tracked, nothing is kept and nothing will be computed again.
///
/// # Errors
/// Those of `segment`, and [`Error::Operand`] unless there are one to three inputs.
pub fn checkpoint(
    inputs: &[&Tensor],
    segment: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let output = segment(&detached)?;
    let trains_inside = output.track_op();
    if !trains_inside && !inputs.iter().any(|input| input.track_op()) {
        return Ok(output);
    }
    let recompute = Recompute {
        segment: Arc::new(segment),
        output: Mutex::new(Some(output.detach())),
    };
    drop(output);
    match inputs {
        // Parameters inside need a tracked operation to be reached, also where no input is tracked.
        [x, ..] if !inputs.iter().any(|input| input.track_op()) => {
            let mut tracked: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
            tracked[0] = Var::from_tensor(x)?.into_inner();
            apply(&tracked.iter().collect::<Vec<_>>(), recompute)
        }
        _ => apply(inputs, recompute),
    }
}

fn apply(inputs: &[&Tensor], recompute: Recompute) -> Result<Tensor> {
    match inputs {
        [x] => Ok(x.apply_op1(recompute)?),
        [x, y] => Ok(x.apply_op2(y, recompute)?),
        [x, y, z] => Ok(x.apply_op3(y, z, recompute)?),
        _ => Err(Error::Operand {
            op: "checkpoint",
            what: "number of inputs",
            found: inputs.len().to_string(),
            expected: "1 to 3".into(),
        }),
    }
}

struct Recompute {
    segment: Segment,
    /// Taken by the forward call, so that the graph does not hold the values twice.
    output: Mutex<Option<Tensor>>,
}

impl Recompute {
    /// The output, contiguous and alone in its storage, with the storage that candle asks the operation for.
    fn take_output(&self) -> CandleResult<Tensor> {
        let taken = self.output.lock().ok().and_then(|mut output| output.take());
        match taken {
            Some(output) => output.force_contiguous(),
            None => candle_core::bail!("checkpoint: the forward pass of a segment ran twice"),
        }
    }

    /// Runs the segment again and pulls `gradient` back through it.
    fn pull_back<const N: usize>(&self, inputs: [&Tensor; N], gradient: &Tensor) -> CandleResult<[Option<Tensor>; N]> {
        let fresh = inputs
            .iter()
            .map(|input| {
                if input.track_op() {
                    Ok(Var::from_tensor(input)?.into_inner())
                } else {
                    Ok(input.detach())
                }
            })
            .collect::<CandleResult<Vec<Tensor>>>()?;
        let output = (self.segment)(&fresh)?;
        let mut store = (output * gradient)?.sum_all()?.backward()?;
        PASS.with_borrow_mut(|pass| -> CandleResult<()> {
            let Some(pass) = pass else { return Ok(()) };
            for (name, gradient) in take_parameters(&mut store, &pass.params) {
                pass.add(name, gradient)?;
            }
            Ok(())
        })?;
        Ok(std::array::from_fn(|i| {
            store.remove(&fresh[i]).map(|gradient| gradient.detach())
        }))
    }

    fn on_cpu(&self) -> CandleResult<(CpuStorage, Shape)> {
        let output = self.take_output()?;
        match &*output.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), output.shape().clone())),
            _ => Err(moved()),
        }
    }

    fn on_cuda(&self) -> CandleResult<(CudaStorage, Shape)> {
        let output = self.take_output()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, output.shape().clone())),
            _ => Err(moved()),
        }
    }

    fn on_metal(&self) -> CandleResult<(MetalStorage, Shape)> {
        let output = self.take_output()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => Ok((storage.try_clone(layout)?, output.shape().clone())),
            _ => Err(moved()),
        }
    }
}

fn moved() -> candle_core::Error {
    candle_core::Error::Msg("checkpoint: the segment moved its output to another device".into())
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        self.on_metal()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> CandleResult<Option<Tensor>> {
        let [x] = self.pull_back([x], gradient)?;
        Ok(x)
    }
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        self.on_metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.pull_back([x, y], gradient)?;
        Ok((x, y))
    }
}

impl CustomOp3 for Recompute {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
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
        self.on_cuda()
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
        self.on_metal()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.pull_back([x, y, z], gradient)?;
        Ok((x, y, z))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Params, backward};

    /// Gradients of Σ (tanh(x·w) + y)² for each way the three can be tracked, with and without recomputation.
    fn gradients(recompute: bool, track: [bool; 3]) -> Vec<Vec<f64>> {
        let mut params = Params::new();
        let values: [&[f64]; 3] = [&[0.3, -0.7, 1.1], &[0.5, 0.2, -0.4], &[1.0, -2.0, 0.1]];
        let tensors: Vec<Tensor> = ["x", "y", "w"]
            .iter()
            .zip(values)
            .zip(track)
            .map(|((name, value), track)| {
                let tensor = Tensor::new(value, &Device::Cpu).unwrap();
                if track {
                    params.insert(*name, &tensor).unwrap()
                } else {
                    tensor
                }
            })
            .collect();
        let w = tensors[2].clone();
        let segment = move |inputs: &[Tensor]| Ok(((&inputs[0] * &w)?.tanh()? + &inputs[1])?);
        // One operation before the segment, so that its inputs are not the parameters themselves.
        let inputs = [(&tensors[0] * 2.0).unwrap(), tensors[1].neg().unwrap()];
        let hidden = if recompute {
            checkpoint(&[&inputs[0], &inputs[1]], segment).unwrap()
        } else {
            segment(&inputs).unwrap()
        };
        let found = backward(&hidden.sqr().unwrap().sum_all().unwrap(), &params).unwrap();
        found.ensure_complete(&params).unwrap();
        found.iter().map(|(_, gradient)| gradient.to_vec1().unwrap()).collect()
    }

    #[test]
    fn gradients_equal_those_without_recomputation() {
        let mut cases = 0;
        for mask in 1..8u8 {
            let track = std::array::from_fn(|bit| mask & (1 << bit) != 0);
            assert_eq!(gradients(true, track), gradients(false, track), "{track:?}");
            cases += 1;
        }
        assert_eq!(cases, 7);
    }

    #[test]
    fn nothing_is_kept_where_nothing_trains() {
        let x = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let y = checkpoint(&[&x], |inputs| Ok(inputs[0].sqr()?)).unwrap();
        assert!(!y.track_op());
        assert_eq!(y.to_vec1::<f32>().unwrap(), [1., 4.]);
    }

    #[test]
    fn segments_may_be_nested() {
        let mut params = Params::new();
        let w = params
            .insert("w", &Tensor::new(&[3f64], &Device::Cpu).unwrap())
            .unwrap();
        let x = Tensor::new(&[2f64], &Device::Cpu).unwrap();
        let y = checkpoint(&[&x], move |outer| {
            let w = w.clone();
            let inner = checkpoint(&[&outer[0]], move |inner| Ok((&inner[0] * &w)?))?;
            Ok(inner.sqr()?)
        })
        .unwrap();
        let found = backward(&y.sum_all().unwrap(), &params).unwrap();
        assert_eq!(found.get("w").unwrap().to_vec1::<f64>().unwrap(), [24.0]);
    }

    #[test]
    fn four_inputs_are_refused() {
        let x = Params::new()
            .insert("x", &Tensor::new(1f32, &Device::Cpu).unwrap())
            .unwrap();
        assert!(checkpoint(&[&x, &x, &x, &x], |inputs| Ok(inputs[0].clone())).is_err());
    }
}
