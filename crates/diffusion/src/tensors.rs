//! Small tensor operations of several files: to the host, to another type, doubled.

use diptych_data::HostTensor;
use diptych_tensor::{DType, Device, Result, Tensor};

/// Every value in f32, in row-major order.
pub(crate) fn host_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor
        .detach()
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?)
}

/// Every value in f64, in row-major order.
pub(crate) fn host_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor
        .detach()
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1()?)
}

/// A tensor of the data on a device.
pub(crate) fn from_host(tensor: HostTensor, device: &Device) -> Result<Tensor> {
    let (shape, values) = tensor.into_parts();
    Ok(Tensor::from_vec(values, shape, device)?)
}

pub(crate) fn negated(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.neg()?)
}

/// A batch behind itself: (2B, ..).
pub(crate) fn doubled(tensor: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[tensor, tensor], 0)?)
}

pub(crate) fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(tensor.to_dtype(dtype)?)
}
