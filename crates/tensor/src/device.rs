//! Where tensors live and in which precision networks compute.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A device as users write it: `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU this program was built for and finds, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
    /// The Metal device.
    Metal,
}

impl DeviceChoice {
    /// The device itself.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is absent, or this program was built without the feature it needs.
    pub fn resolve(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(first_gpu().unwrap_or(Device::Cpu)),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => {
                if !candle_core::utils::cuda_is_available() {
                    return Err(self.not_built("cuda"));
                }
                Device::new_cuda(index).map_err(|error| self.unusable(&error))
            }
            Self::Metal => {
                if !candle_core::utils::metal_is_available() {
                    return Err(self.not_built("metal"));
                }
                Device::new_metal(0).map_err(|error| self.unusable(&error))
            }
        }
    }

    fn not_built(self, feature: &str) -> Error {
        Error::Device {
            device: self.to_string(),
            reason: format!("this program was built without it; build with `--features {feature}`"),
        }
    }

    fn unusable(self, error: &candle_core::Error) -> Error {
        Error::Device {
            device: self.to_string(),
            reason: error.to_string(),
        }
    }
}

fn first_gpu() -> Option<Device> {
    if candle_core::utils::cuda_is_available() {
        Device::new_cuda(0).ok()
    } else if candle_core::utils::metal_is_available() {
        Device::new_metal(0).ok()
    } else {
        None
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::Device {
                    device: text.to_owned(),
                    reason: "expected auto, cpu, cuda[:n] or metal".into(),
                }),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// The number format of frozen weights and activations. Trainable parameters are f32 masters in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Precision {
    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn an_absent_device_says_what_to_do() {
        if !candle_core::utils::cuda_is_available() {
            let message = DeviceChoice::Cuda(0).resolve().unwrap_err().to_string();
            assert!(message.contains("--features cuda"), "{message}");
        }
        assert!(DeviceChoice::Cpu.resolve().unwrap().is_cpu());
    }
}
