//! Initial values of parameters, as PyTorch's layers set them.

use diptych_tensor::{DType, Device, Tensor, random};

/// How a parameter starts when no checkpoint provides it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One number everywhere.
    Constant {
        /// The number.
        value: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// PyTorch's default for the weight and the bias of linear and convolution layers: `kaiming_uniform_(a = sqrt(5))`, which is
    /// uniform in plus or minus `1 / sqrt(fan_in)`.
    pub fn kaiming_uniform(fan_in: usize) -> Self {
        Self::Uniform {
            bound: 1.0 / (fan_in.max(1) as f64).sqrt(),
        }
    }

    /// A tensor of this distribution. Its values depend on `seed` and `name` alone, so the order in which a network is built does
    /// not matter.
    pub(crate) fn tensor(
        self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
        (seed, name): (u64, &str),
    ) -> diptych_tensor::Result<Tensor> {
        let len: usize = shape.iter().product();
        let values: Vec<f32> = match self {
            Self::Zeros => vec![0.0; len],
            Self::Ones => vec![1.0; len],
            Self::Constant { value } => vec![value as f32; len],
            Self::Uniform { bound } => {
                let mut rng = random::generator(seed, random::Stream::Init, name_tag(name), 0);
                random::uniform_vec(&mut rng, -bound as f32, bound as f32, len)
            }
            Self::Normal { std } => {
                let mut rng = random::generator(seed, random::Stream::Init, name_tag(name), 0);
                let mut values = random::normal_vec(&mut rng, len);
                for value in &mut values {
                    *value *= std as f32;
                }
                values
            }
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)?)
    }
}

/// A stable number for a parameter's name: FNV-1a, 64 bits.
fn name_tag(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published test vectors of FNV-1a.
    #[test]
    fn name_tags_are_fnv_1a() {
        assert_eq!(name_tag(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_tag("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(name_tag("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let device = Device::Cpu;
        let values = |init: Init| -> Vec<f32> {
            init.tensor(&[100, 200], DType::F32, &device, (7, "x"))
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        let std = |values: &[f32]| (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt();
        let uniform = values(Init::kaiming_uniform(25));
        assert!(uniform.iter().all(|v| v.abs() <= 0.2));
        assert!((std(&uniform) - 0.2 / 3f64.sqrt()).abs() < 2e-3);
        assert!((std(&values(Init::Normal { std: 0.02 })) - 0.02).abs() < 5e-4);
    }
}
