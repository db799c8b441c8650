//! How a frozen matrix is kept in few bits.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CpuStorage, Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::int8;
use super::nf4::{self, BLOCK};
use super::scales::{Scales, coded_bytes};
use crate::{Error, Result};

/// Blocks that are quantized in one piece.
const BLOCKS: usize = 256;

/// How the weights of frozen linear layers are kept: `model.quantization` of a recipe, `"nf4"`, `{ nf4 = { double = true } }` or
/// `"int8"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// 4-bit `NormalFloat`: Dettmers et al., "`QLoRA`: Efficient Finetuning of Quantized LLMs", `NeurIPS` 2023, arXiv:2305.14314, section 3.
    /// 64 numbers that follow each other share a scale, their largest magnitude, and each is the nearest of 16 levels times that:
    /// quantiles of a normal distribution, zero among them. 4.5 bits a number. The bytes are those of bitsandbytes
    /// (`load_in_4bit`, `bnb_4bit_quant_type = "nf4"`).
    Nf4(Nf4Config),
    /// Signed whole numbers of 8 bits with one scale a row, a 127th of its largest magnitude, as bitsandbytes keeps the weights of
    /// `load_in_8bit`; activations are not quantized, so that no column needs to be taken out. 8 bits a number and 32 a row.
    Int8,
}

/// Settings of [`Quantization::Nf4`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nf4Config {
    /// Whether the scales are quantized in their turn, to 8 bits in blocks of 256 around their mean (`bnb_4bit_use_double_quant`):
    /// 4.13 bits a number in all.
    pub double: bool,
}

impl Quantization {
    /// `nf4`, `nf4 with double quantization` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4(Nf4Config { double: false }) => "nf4",
            Self::Nf4(Nf4Config { double: true }) => "nf4 with double quantization",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of each array that a matrix of this size is kept in.
    pub fn array_bytes(self, rows: usize, cols: usize) -> Vec<usize> {
        let len = rows * cols;
        match self {
            Self::Nf4(Nf4Config { double }) => {
                let blocks = len.div_ceil(BLOCK);
                let mut arrays = vec![len.div_ceil(2)];
                if double {
                    arrays.extend(coded_bytes(blocks));
                } else {
                    arrays.push(blocks * size_of::<f32>());
                }
                arrays
            }
            Self::Int8 => vec![len, rows * size_of::<f32>()],
        }
    }
}

impl<'de> Deserialize<'de> for Quantization {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        const NAMES: &[&str] = &["nf4", "int8"];
        struct Named;

        impl<'de> Visitor<'de> for Named {
            type Value = Quantization;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`nf4`, `{ nf4 = { double = true } }` or `int8`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> std::result::Result<Quantization, E> {
                match name {
                    "nf4" => Ok(Quantization::Nf4(Nf4Config::default())),
                    "int8" => Ok(Quantization::Int8),
                    other => Err(de::Error::unknown_variant(other, NAMES)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Quantization, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Empty {}

                let Some(name) = map.next_key::<String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let found = match name.as_str() {
                    "nf4" => Quantization::Nf4(map.next_value()?),
                    "int8" => {
                        let Empty {} = map.next_value()?;
                        Quantization::Int8
                    }
                    other => return Err(de::Error::unknown_variant(other, NAMES)),
                };
                match map.next_key::<String>()? {
                    None => Ok(found),
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }

        deserializer.deserialize_any(Named)
    }
}

/// A frozen matrix in few bits, row after row.
pub struct QuantizedMatrix {
    rows: usize,
    cols: usize,
    data: Data,
}

enum Data {
    /// Two codes a byte, the first one in the higher bits; blocks go on from one row to the next.
    Nf4 { codes: Vec<u8>, scales: Scales },
    /// One scale a row.
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} in {}", self.rows, self.cols, self.quantization().name())
    }
}

impl QuantizedMatrix {
    /// Quantizes a matrix on the CPU, of f64, f32, f16 or bf16. No copy of it in another type is made.
    ///
    /// # Errors
    /// [`Error::Operand`] for a tensor that is no matrix, of another type or device, or with a number that is not finite.
    pub fn quantize(weight: &Tensor, quantization: Quantization) -> Result<Self> {
        let operand = |what, found: String, expected: &str| Error::Operand {
            op: "quantize",
            what,
            found,
            expected: expected.to_owned(),
        };
        let &[rows, cols] = weight.dims() else {
            let found = format!("{:?}", weight.dims());
            return Err(operand("shape of the weight", found, "a matrix"));
        };
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::RequiresContiguous { op: "quantize" }.into());
        };
        let numbers = match &*storage {
            Storage::Cpu(CpuStorage::F64(data)) => Numbers::F64(&data[start..end]),
            Storage::Cpu(CpuStorage::F32(data)) => Numbers::F32(&data[start..end]),
            Storage::Cpu(CpuStorage::F16(data)) => Numbers::F16(&data[start..end]),
            Storage::Cpu(CpuStorage::BF16(data)) => Numbers::Bf16(&data[start..end]),
            Storage::Cpu(_) => {
                let found = format!("{:?}", weight.dtype());
                return Err(operand("type of the weight", found, "F64, F32, F16 or BF16"));
            }
            _ => return Err(operand("device of the weight", "another one".into(), "the CPU")),
        };
        let data = match quantization {
            Quantization::Nf4(config) => quantize_nf4(numbers, rows * cols, config),
            Quantization::Int8 => quantize_int8(numbers, rows, cols),
        };
        data.map(|data| Self { rows, cols, data })
            .ok_or_else(|| operand("weight", "NaN or an infinity".into(), "finite numbers"))
    }

    /// Rows: the width of the layer's result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of the layer's input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What it is kept in.
    pub fn quantization(&self) -> Quantization {
        match &self.data {
            Data::Nf4 { scales, .. } => Quantization::Nf4(Nf4Config {
                double: matches!(scales, Scales::Coded { .. }),
            }),
            Data::Int8 { .. } => Quantization::Int8,
        }
    }

    /// Bytes of all its arrays.
    pub fn num_bytes(&self) -> usize {
        match &self.data {
            Data::Nf4 { codes, scales } => codes.len() + scales.num_bytes(),
            Data::Int8 { codes, scales } => codes.len() + scales.len() * size_of::<f32>(),
        }
    }

    /// The codes as they are kept: for `nf4` two a byte, for `int8` one, as its two's complement.
    pub fn codes(&self) -> Vec<u8> {
        match &self.data {
            Data::Nf4 { codes, .. } => codes.clone(),
            Data::Int8 { codes, .. } => codes.iter().map(|code| code.cast_unsigned()).collect(),
        }
    }

    /// The numbers that the codes stand for, (rows, columns) in f32.
    ///
    /// # Errors
    /// [`Error::Candle`] when there is no memory for them.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut numbers = vec![0.0f32; self.rows * self.cols];
        if self.cols > 0 {
            let piece = (BLOCKS * BLOCK).div_ceil(self.cols);
            numbers
                .par_chunks_mut(piece * self.cols)
                .enumerate()
                .for_each(|(i, out)| {
                    let rows = i * piece..i * piece + out.len() / self.cols;
                    self.read(rows, 0..self.cols, out);
                });
        }
        Ok(Tensor::from_vec(numbers, (self.rows, self.cols), &Device::Cpu)?)
    }

    /// Writes a block of the matrix, row after row.
    pub(super) fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        if cols.is_empty() {
            return;
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
            let start = row * self.cols + cols.start;
            match &self.data {
                Data::Nf4 { codes, scales } => nf4::decode(codes, start, scales, out),
                Data::Int8 { codes, scales } => int8::decode(&codes[start..start + out.len()], scales[row], out),
            }
        }
    }
}

/// The numbers of a tensor.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Numbers<'_> {
    fn read(self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::F64(data) => out.iter_mut().zip(&data[range]).for_each(|(out, &x)| *out = x as f32),
            Self::F32(data) => out.copy_from_slice(&data[range]),
            Self::F16(data) => data[range].convert_to_f32_slice(out),
            Self::Bf16(data) => data[range].convert_to_f32_slice(out),
        }
    }
}

/// None where a number is not finite.
fn quantize_nf4(numbers: Numbers<'_>, len: usize, config: Nf4Config) -> Option<Data> {
    let mut codes = vec![0u8; len.div_ceil(2)];
    let mut scales = vec![0f32; len.div_ceil(BLOCK)];
    let is_finite = AtomicBool::new(true);
    let pieces = codes
        .par_chunks_mut(BLOCKS * BLOCK / 2)
        .zip(scales.par_chunks_mut(BLOCKS));
    pieces.enumerate().for_each(|(piece, (codes, scales))| {
        let mut buffer = [0f32; BLOCK];
        for (block, (codes, scale)) in codes.chunks_mut(BLOCK / 2).zip(scales).enumerate() {
            let start = (piece * BLOCKS + block) * BLOCK;
            let buffer = &mut buffer[..BLOCK.min(len - start)];
            numbers.read(start, buffer);
            *scale = nf4::encode(buffer, codes);
            if !scale.is_finite() {
                is_finite.store(false, Ordering::Relaxed);
            }
        }
    });
    let scales = Scales::new(scales, config.double);
    is_finite.into_inner().then_some(Data::Nf4 { codes, scales })
}

/// None where a number is not finite.
fn quantize_int8(numbers: Numbers<'_>, rows: usize, cols: usize) -> Option<Data> {
    let mut codes = vec![0i8; rows * cols];
    let mut scales = vec![0f32; rows];
    let is_finite = AtomicBool::new(true);
    let of_rows = codes.par_chunks_mut(cols.max(1)).zip(&mut scales);
    of_rows.enumerate().for_each_init(
        || vec![0f32; cols],
        |buffer, (row, (codes, scale))| {
            numbers.read(row * cols, buffer);
            *scale = int8::encode(buffer, codes);
            if !scale.is_finite() {
                is_finite.store(false, Ordering::Relaxed);
            }
        },
    );
    is_finite.into_inner().then_some(Data::Int8 { codes, scales })
}
