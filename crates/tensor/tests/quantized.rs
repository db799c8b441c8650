//! Weights in few bits, against bitsandbytes and against the same weights dequantized as a whole.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;

use diptych_tensor::ops::{quantized_linear, quantized_linear_composed};
use diptych_tensor::{DType, Device, Error, Nf4Config, Quantization, QuantizedMatrix, Tensor, Var, random};
use serde_json::{Value, json};

const GOLDEN: &str = include_str!("../../../tests/golden/quantization.json");
const NF4: Quantization = Quantization::Nf4(Nf4Config { double: false });
const DOUBLE: Quantization = Quantization::Nf4(Nf4Config { double: true });
const ALL: [Quantization; 3] = [NF4, DOUBLE, Quantization::Int8];

/// The operations also run on reused, unclean memory.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

fn golden(section: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    golden[section].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn size(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

/// The generator's weight, exact in f64.
fn weight(rows: usize, cols: usize) -> Tensor {
    let uniform = |i: u64, step: u64| ((i * step + 12345) % (1 << 32)) as f64 / f64::from(1u32 << 31) / 2.0 - 0.5;
    let steps = [2_654_435_761, 2_246_822_519, 3_266_489_917, 668_265_263];
    let number = |i: u64| {
        let sum: f64 = steps.iter().map(|step| uniform(i, *step)).sum();
        let outlier = if i % 211 == 7 { 4.0 } else { 1.0 };
        (sum * outlier * 0.5f64.powi((i / cols as u64 % 3) as i32)) as f32
    };
    let data: Vec<f32> = (0..(rows * cols) as u64).map(number).collect();
    Tensor::from_vec(data, (rows, cols), &Device::Cpu).unwrap()
}

fn wave(shape: &[usize], phase: f64) -> Tensor {
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|i: usize| (i as f64 * 0.7 + phase).sin() as f32)
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn normal(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    let mut rng = random::generator(0, random::Stream::Init, 0, seed);
    let data = random::normal_vec(&mut rng, shape.iter().product());
    let tensor = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, in parts of the largest expected number.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0f64, |most, (x, y)| most.max((x - y).abs())) / largest
}

fn every(numbers: &[f64], step: usize) -> Vec<f64> {
    numbers.iter().step_by(step).copied().collect()
}

/// The result, and the gradients of x and bias of its product with `dy`.
fn pulled_back(
    op: impl Fn(&Tensor, Option<&Tensor>) -> diptych_tensor::Result<Tensor>,
    x: &Tensor,
    bias: Option<&Tensor>,
    dy: &Tensor,
) -> Vec<Vec<f64>> {
    let x = Var::from_tensor(x).unwrap();
    let bias = bias.map(|bias| Var::from_tensor(bias).unwrap());
    let y = op(x.as_tensor(), bias.as_ref().map(Var::as_tensor)).unwrap();
    let gradients = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |var: &Var| values(gradients.get(var).unwrap());
    let mut found = vec![values(&y), of(&x)];
    found.extend(bias.as_ref().map(of));
    found
}

/// The quantiles that the paper states, computed by the generator in f64, are the levels.
#[test]
fn levels_are_quantiles_of_a_normal_distribution() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let levels = numbers(&golden["levels"]);
    assert_eq!(levels.len(), 16);
    let block: Vec<f32> = levels.iter().cycle().take(64).map(|level| *level as f32).collect();
    let weight = Tensor::from_vec(block, (1, 64), &Device::Cpu).unwrap();
    let matrix = QuantizedMatrix::quantize(&weight, NF4).unwrap();
    let packed: Vec<u8> = (0..8u8).map(|i| (2 * i) << 4 | (2 * i + 1)).cycle().take(32).collect();
    assert_eq!(matrix.codes(), packed);
    let found = values(&matrix.dequantize().unwrap());
    assert!(difference(&found, &values(&weight)) < 3e-7);
}

#[test]
fn nf4_is_that_of_bitsandbytes() {
    let cases = golden("nf4");
    for case in &cases {
        let (rows, cols, step) = (size(case, "rows"), size(case, "cols"), size(case, "every"));
        let name = format!("{rows} x {cols}, double {}, {}", case["double"], case["dtype"]);
        let dtype = match case["dtype"].as_str().unwrap() {
            "float32" => DType::F32,
            "bfloat16" => DType::BF16,
            "float16" => DType::F16,
            other => panic!("{other}"),
        };
        let is_double = case["double"].as_bool().unwrap();
        let quantization = Quantization::Nf4(Nf4Config { double: is_double });
        let weight = weight(rows, cols).to_dtype(dtype).unwrap();
        let matrix = Arc::new(QuantizedMatrix::quantize(&weight, quantization).unwrap());
        assert_eq!(matrix.num_bytes(), size(case, "num_bytes"), "{name}");
        // Of an odd number of codes the last byte has one more, which stands for nothing.
        let codes = matrix.codes();
        let num = if rows * cols % 2 == 0 {
            codes.len()
        } else {
            codes.len() - 1
        };
        if let Some(expected) = case.get("codes") {
            let expected: Vec<u8> = numbers(expected).iter().map(|code| *code as u8).collect();
            assert_eq!(codes[..num], expected[..num], "{name}");
            assert_eq!(codes[codes.len() - 1] >> 4, expected[codes.len() - 1] >> 4, "{name}");
        }
        if num == codes.len() {
            let sum: u64 = (0u64..)
                .zip(&codes)
                .map(|(i, code)| u64::from(*code) * (i % 251 + 1))
                .sum();
            assert_eq!(sum, case["code_sum"].as_u64().unwrap(), "{name}");
        }
        let found = every(&values(&matrix.dequantize().unwrap()), step);
        // Sums of scales are taken in another order for their mean.
        let tolerance = if is_double { 2e-6 } else { 2e-7 };
        let difference_of = |found: &[f64], key: &str| difference(found, &numbers(&case[key]));
        let apart = difference_of(&found, "values");
        assert!(apart < tolerance, "{name}: values, {apart}");
        let op = |x: &Tensor, bias: Option<&Tensor>| quantized_linear(x, &matrix, bias);
        let results = pulled_back(op, &wave(&[3, cols], 0.2), None, &wave(&[3, rows], 1.0));
        let y: Vec<f64> = results[0].iter().take(24).copied().collect();
        // A mean that is rounded otherwise moves all scales alike, and with them every term of a sum.
        let tolerance = if is_double { 2e-5 } else { 2e-6 };
        let apart = [difference_of(&y, "y"), difference_of(&every(&results[1], 13), "dx")];
        assert!(
            apart.iter().all(|apart| *apart < tolerance),
            "{name}: product and gradient, {apart:?}"
        );
    }
    assert_eq!(cases.len(), 8);
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let cases = golden("int8");
    for case in &cases {
        let weight = weight(size(case, "rows"), size(case, "cols"));
        let matrix = QuantizedMatrix::quantize(&weight.to_dtype(DType::F16).unwrap(), Quantization::Int8).unwrap();
        let expected: Vec<u8> = numbers(&case["codes"])
            .iter()
            .map(|code| (*code as i8).cast_unsigned())
            .collect();
        assert_eq!(matrix.codes(), expected);
        let found = values(&matrix.dequantize().unwrap());
        assert!(difference(&found, &numbers(&case["values"])) < 2e-7);
    }
    assert_eq!(cases.len(), 1);
}

/// Sizes below, at and beyond those of blocks, tiles and tasks; in f64 the products are equal to rounding, so that a tile in the wrong
/// place would be seen. In bf16 the composed form rounds the weight too.
#[test]
fn products_are_those_of_the_dequantized_weight() {
    let sizes = [
        (1, 1, 1),
        (3, 7, 33),
        (2, 16, 64),
        (5, 130, 100),
        (4, 1030, 65),
        (3, 40, 2100),
        (2, 1200, 300),
        (1, 300, 4160),
    ];
    let mut num = 0;
    for (n, rows, cols) in sizes {
        for quantization in ALL {
            let weight = normal(&[rows, cols], 1, DType::F32);
            let matrix = Arc::new(QuantizedMatrix::quantize(&weight, quantization).unwrap());
            for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 3e-6), (DType::BF16, 0.05)] {
                let (x, dy) = (normal(&[n, cols], 2, dtype), normal(&[n, rows], 3, dtype));
                for bias in [None, Some(normal(&[rows], 4, dtype))] {
                    let run = |op: fn(&Tensor, &Arc<QuantizedMatrix>, Option<&Tensor>) -> _| {
                        pulled_back(|x, bias| op(x, &matrix, bias), &x, bias.as_ref(), &dy)
                    };
                    let (found, expected) = (run(quantized_linear), run(quantized_linear_composed));
                    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let difference = difference(found, expected);
                        assert!(
                            difference <= tolerance,
                            "{n} {rows} {cols} {quantization:?} {dtype:?} {i}: {difference}"
                        );
                        num += 1;
                    }
                }
            }
        }
    }
    assert_eq!(num, 8 * 3 * 3 * 5);
}

/// The slope of a loss in f64 is what the gradient says.
#[test]
fn gradients_are_slopes() {
    let matrix = Arc::new(QuantizedMatrix::quantize(&normal(&[20, 70], 1, DType::F32), DOUBLE).unwrap());
    let x = normal(&[2, 3, 70], 2, DType::F64);
    let loss = |x: &Tensor| {
        quantized_linear(x, &matrix, None)
            .unwrap()
            .sin()
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let var = Var::from_tensor(&x).unwrap();
    let gradients = loss(var.as_tensor()).backward().unwrap();
    let direction = normal(&[2, 3, 70], 3, DType::F64);
    let slope = (gradients.get(&var).unwrap() * &direction).unwrap().sum_all().unwrap();
    let at = |by: f64| {
        loss(&(&x + (&direction * by).unwrap()).unwrap())
            .to_scalar::<f64>()
            .unwrap()
    };
    let step = 1e-5;
    let expected = (at(step) - at(-step)) / (2.0 * step);
    let slope = slope.to_scalar::<f64>().unwrap();
    assert!(
        (slope - expected).abs() < 1e-7 * expected.abs().max(1.0),
        "{slope} {expected}"
    );
}

/// How far a product is from the one with the weight as it was: the paper's levels are made for normally distributed numbers.
#[test]
fn products_are_near_those_of_the_weight() {
    let (weight, x) = (normal(&[256, 512], 1, DType::F32), normal(&[16, 512], 2, DType::F32));
    let exact = values(&x.matmul(&weight.t().unwrap()).unwrap());
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (quantization, low, high) in [(NF4, 0.08, 0.1), (DOUBLE, 0.08, 0.1), (Quantization::Int8, 0.005, 0.01)] {
        let matrix = Arc::new(QuantizedMatrix::quantize(&weight, quantization).unwrap());
        let found = values(&quantized_linear(&x, &matrix, None).unwrap());
        let apart: Vec<f64> = found.iter().zip(&exact).map(|(x, y)| x - y).collect();
        let error = norm(&apart) / norm(&exact);
        assert!((low..high).contains(&error), "{quantization:?}: {error}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let weight = normal(&[700, 1100], 1, DType::F32);
    let (x, dy) = (normal(&[50, 1100], 2, DType::F32), normal(&[50, 700], 3, DType::F32));
    for quantization in ALL {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let matrix = Arc::new(QuantizedMatrix::quantize(&weight, quantization).unwrap());
                let op = |x: &Tensor, bias: Option<&Tensor>| quantized_linear(x, &matrix, bias);
                (matrix.codes(), pulled_back(op, &x, None, &dy))
            })
        };
        let one = on(1);
        for threads in [2, 3, 5] {
            assert_eq!(on(threads), one, "{quantization:?} on {threads} threads");
        }
    }
}

#[test]
fn a_frozen_input_has_no_graph() {
    let matrix = Arc::new(QuantizedMatrix::quantize(&normal(&[8, 64], 1, DType::F32), NF4).unwrap());
    let y = quantized_linear(&normal(&[2, 64], 2, DType::F32), &matrix, None).unwrap();
    assert!(!y.track_op());
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |result: Result<Tensor, Error>, expected: &str| match result {
        Err(Error::Operand { what, .. }) => assert_eq!(what, expected),
        other => panic!("{expected}: {other:?}"),
    };
    let matrix = Arc::new(QuantizedMatrix::quantize(&normal(&[8, 64], 1, DType::F32), NF4).unwrap());
    let x = normal(&[2, 64], 2, DType::F32);
    refused(
        quantized_linear(&normal(&[2, 63], 2, DType::F32), &matrix, None),
        "shape of x",
    );
    refused(
        quantized_linear(&x, &matrix, Some(&normal(&[7], 3, DType::F32))),
        "shape of bias",
    );
    refused(
        quantized_linear(&x, &matrix, Some(&normal(&[8], 3, DType::F64))),
        "dtype",
    );
    refused(
        quantized_linear(&x.to_dtype(DType::U8).unwrap(), &matrix, None),
        "operands",
    );
    let quantize = |weight: &Tensor, expected: &str| {
        for quantization in ALL {
            match QuantizedMatrix::quantize(weight, quantization) {
                Err(Error::Operand { what, .. }) => assert_eq!(what, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    };
    quantize(&normal(&[8], 1, DType::F32), "shape of the weight");
    quantize(
        &Tensor::zeros((2, 2), DType::U32, &Device::Cpu).unwrap(),
        "type of the weight",
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        quantize(&Tensor::new(&[[0.5, bad], [0.1, 0.2]], &Device::Cpu).unwrap(), "weight");
    }
}

#[test]
fn formats_are_read_and_written_as_in_recipes() {
    let read = |value: Value| serde_json::from_value::<Quantization>(value);
    for (value, expected) in [
        (json!("nf4"), NF4),
        (json!({ "nf4": {} }), NF4),
        (json!({ "nf4": { "double": true } }), DOUBLE),
        (json!("int8"), Quantization::Int8),
        (json!({ "int8": {} }), Quantization::Int8),
    ] {
        assert_eq!(read(value).unwrap(), expected);
        let written = serde_json::to_value(expected).unwrap();
        assert_eq!(read(written).unwrap(), expected);
    }
    for (value, said) in [
        (json!("fp4"), "unknown variant `fp4`, expected `nf4` or `int8`"),
        (
            json!({ "nf4": { "doubled": true } }),
            "unknown field `doubled`, expected `double`",
        ),
        (json!({ "int8": { "block": 64 } }), "unknown field `block`"),
        (json!({ "nf4": {}, "int8": {} }), "invalid length 2"),
        (json!({}), "invalid length 0"),
        (json!(8), "invalid type: integer `8`"),
    ] {
        let error = read(value).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// What a plan counts is what is held.
#[test]
fn bytes_are_known_beforehand() {
    for quantization in ALL {
        for (rows, cols) in [(1, 1), (3, 5), (100, 640), (33, 1000)] {
            let matrix = QuantizedMatrix::quantize(&normal(&[rows, cols], 1, DType::F32), quantization).unwrap();
            let planned: usize = quantization.array_bytes(rows, cols).iter().sum();
            assert_eq!(matrix.num_bytes(), planned, "{quantization:?} {rows} {cols}");
            assert_eq!(matrix.quantization(), quantization);
            assert_eq!([matrix.rows(), matrix.cols()], [rows, cols]);
        }
    }
    // 4.5, 4.127 and 8 bits a number.
    let bits = |quantization: Quantization| {
        let bytes: usize = quantization.array_bytes(4096, 4096).iter().sum();
        8.0 * bytes as f64 / f64::from(4096 * 4096)
    };
    assert!((bits(NF4) - 4.5).abs() < 1e-9 && (bits(DOUBLE) - 4.126_953).abs() < 1e-6);
    assert!((bits(Quantization::Int8) - 8.007_812).abs() < 1e-6);
}
