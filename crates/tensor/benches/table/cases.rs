//! The operations of the table, with what they have to multiply, read and write.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape};
use diptych_tensor::ops::{self, AttentionConfig, AttentionMask, Conv2dConfig, TokenLogpsConfig};
use diptych_tensor::optim::{AdamW, AdamWConfig};
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{Device, Params, Result as TensorResult, Tensor, backward};
use rayon::prelude::*;

use crate::blocks;

/// One run of an operation.
pub(crate) type Run = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// What PyTorch is asked to do.
pub(crate) struct Job {
    pub(crate) op: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) backward: bool,
}

/// A row of the table.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) job: Job,
    /// Multiplications and additions of its products of matrices.
    pub(crate) flops: f64,
    /// Bytes of operands, results and gradients.
    pub(crate) bytes: f64,
    /// Makes the operands and the run.
    pub(crate) prepare: Box<dyn Fn() -> anyhow::Result<Run> + Send + Sync>,
}

/// All rows.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![matmul(1024)];
    for (b, c, y, k) in [
        (1, 320, 32, 3),
        (2, 640, 16, 3),
        (32, 48, 8, 3),
        (32, 96, 4, 3),
        (1, 320, 32, 1),
        (32, 48, 8, 1),
    ] {
        cases.extend([conv2d(b, c, y, k, false), conv2d(b, c, y, k, true)]);
    }
    for (b, h, t, s, k) in [(1, 8, 1024, 1024, 40), (1, 8, 1024, 77, 40), (32, 4, 64, 64, 12)] {
        cases.extend([attention(b, h, t, s, k, false), attention(b, h, t, s, k, true)]);
    }
    for (rows, inputs, outputs) in [(1024, 320, 2560), (2048, 48, 384)] {
        cases.extend([
            linear(rows, inputs, outputs, false),
            linear(rows, inputs, outputs, true),
        ]);
    }
    cases.extend(elementwise());
    cases.extend(norms());
    cases.extend(of_decoders());
    cases.push(adamw(4_800_000));
    cases.push(blocks::resnet_case(1, 320, 32, 1280));
    cases.push(blocks::transformer_case(1, 320, 32, 8));
    cases
}

/// Adds numbers that normals are drawn for, so that no two operands are alike.
pub(crate) fn normal(shape: &[usize], example: u64) -> anyhow::Result<Tensor> {
    let values = normal_vec(&mut generator(0, Stream::Noise, 0, example), shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Copies by all threads.
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    let pieces = to.par_chunks_mut(1 << 18).zip(from.par_chunks(1 << 18));
    pieces.for_each(|(to, from)| to.copy_from_slice(from));
}

/// Passes a given gradient back: what follows an operation in the middle of a network.
struct Continued(Tensor);

impl CustomOp1 for Continued {
    fn name(&self) -> &'static str {
        "continued"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// The result for a run that goes forward only, or forward and then back to all of `params`.
pub(crate) fn run_of(
    params: Params,
    is_backward: Pass,
    op: impl Fn() -> TensorResult<Tensor> + Send + 'static,
) -> anyhow::Result<Run> {
    if is_backward == Pass::Forward {
        return Ok(Box::new(move || {
            op()?;
            Ok(())
        }));
    }
    let gradient = normal(op()?.dims(), 99)?;
    Ok(Box::new(move || {
        let loss = op()?.apply_op1(Continued(gradient.clone()))?;
        let gradients = backward(&loss, &params)?;
        gradients.ensure_complete(&params)?;
        Ok(())
    }))
}

/// How far a run goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    Both,
}

type Op = fn(&[Tensor], &[usize]) -> TensorResult<Tensor>;

/// What a row is about, beside the function that computes it.
struct Sketch {
    name: String,
    op: &'static str,
    shape: Vec<usize>,
    operands: Vec<Vec<usize>>,
    /// Elements of operands that a forward pass reads and that a backward pass reads; all of them unless said otherwise.
    read: Option<[usize; 2]>,
    /// Elements of the result.
    result: usize,
    /// Of one forward pass.
    flops: f64,
}

/// A row for an operation on `operands`; a backward pass computes the gradients of all of them.
fn case(sketch: Sketch, pass: Pass, op: Op) -> Case {
    let Sketch {
        name,
        op: peer,
        shape,
        operands,
        read,
        result,
        flops,
    } = sketch;
    let elements: usize = operands.iter().map(|operand| operand.iter().product::<usize>()).sum();
    let [read, read_again] = read.unwrap_or([elements; 2]);
    // Back: operands and the gradient of the result are read, gradients of operands are written.
    let (flops, elements) = match pass {
        Pass::Forward => (flops, read + result),
        Pass::Both => (3.0 * flops, read + result + read_again + result + elements),
    };
    let job = Job {
        op: peer,
        shape: shape.clone(),
        backward: pass == Pass::Both,
    };
    let prepare = move || {
        let shape = shape.clone();
        let mut params = Params::new();
        let mut tensors = Vec::new();
        for (i, operand) in operands.iter().enumerate() {
            let value = normal(operand, i as u64)?;
            tensors.push(match pass {
                Pass::Forward => value,
                Pass::Both => params.insert(format!("operand{i}"), &value)?,
            });
        }
        run_of(params, pass, move || op(&tensors, &shape))
    };
    Case {
        name: format!(
            "{name}{}",
            if pass == Pass::Both {
                ", forward and backward"
            } else {
                ""
            }
        ),
        job,
        flops,
        bytes: 4.0 * elements as f64,
        prepare: Box::new(prepare),
    }
}

fn pass(is_backward: bool) -> Pass {
    if is_backward { Pass::Both } else { Pass::Forward }
}

pub(crate) fn matmul(n: usize) -> Case {
    let sketch = Sketch {
        name: format!("matmul {n}³"),
        op: "matmul",
        shape: vec![n],
        operands: vec![vec![n, n], vec![n, n]],
        read: None,
        result: n * n,
        flops: 2.0 * (n * n * n) as f64,
    };
    case(sketch, Pass::Forward, |x, _| Ok(x[0].matmul(&x[1])?))
}

fn conv2d(b: usize, c: usize, y: usize, k: usize, is_backward: bool) -> Case {
    let sketch = Sketch {
        name: format!("conv2d {k}×{k}, {b}×{c}@{y}"),
        op: "conv2d",
        shape: vec![b, c, c, y, k],
        operands: vec![vec![b, c, y, y], vec![c, c, k, k], vec![c]],
        read: None,
        result: b * c * y * y,
        flops: 2.0 * (b * y * y * c * c * k * k) as f64,
    };
    case(sketch, pass(is_backward), |x, shape| {
        let config = Conv2dConfig {
            stride: 1,
            padding: shape[4] / 2,
        };
        ops::conv2d(&x[0], &x[1], Some(&x[2]), config)
    })
}

fn attention(b: usize, h: usize, t: usize, s: usize, k: usize, is_backward: bool) -> Case {
    let sketch = Sketch {
        name: format!("attention {b}×{h}×{t}×{s}, head width {k}"),
        op: "attention",
        shape: vec![b, h, t, s, k],
        operands: vec![vec![b, t, h * k], vec![b, s, h * k], vec![b, s, h * k]],
        read: None,
        result: b * t * h * k,
        flops: 4.0 * (b * h * t * s * k) as f64,
    };
    case(sketch, pass(is_backward), |x, shape| {
        let config = AttentionConfig {
            scale: 1.0 / (shape[4] as f64).sqrt(),
            mask: AttentionMask::None,
        };
        ops::attention_packed(&x[0], &x[1], &x[2], shape[1], config)
    })
}

fn linear(rows: usize, inputs: usize, outputs: usize, is_backward: bool) -> Case {
    let sketch = Sketch {
        name: format!("linear {rows}×{inputs}→{outputs}"),
        op: "linear",
        shape: vec![rows, inputs, outputs],
        operands: vec![vec![rows, inputs], vec![outputs, inputs], vec![outputs]],
        read: None,
        result: rows * outputs,
        flops: 2.0 * (rows * inputs * outputs) as f64,
    };
    case(sketch, pass(is_backward), |x, _| ops::linear(&x[0], &x[1], Some(&x[2])))
}

/// A row of an operation without products of matrices, forward alone and with its gradients.
fn plain(name: &str, op: &'static str, shape: &[usize], operands: &[&[usize]], result: usize, run: Op) -> [Case; 2] {
    [Pass::Forward, Pass::Both].map(|pass| {
        let sketch = Sketch {
            name: name.to_owned(),
            op,
            shape: shape.to_vec(),
            operands: operands.iter().map(|operand| operand.to_vec()).collect(),
            read: None,
            result,
            flops: 0.0,
        };
        case(sketch, pass, run)
    })
}

fn elementwise() -> Vec<Case> {
    let large: &[usize] = &[8, 1024, 1024];
    let count = large.iter().product();
    let unary = |name: &str, op, result, run| plain(&format!("{name} 8×1024×1024"), op, large, &[large], result, run);
    let mut cases = Vec::new();
    cases.extend(unary("softmax", "softmax", count, |x, _| ops::softmax(&x[0])));
    cases.extend(unary("gelu", "gelu", count, |x, _| ops::gelu(&x[0])));
    cases.extend(unary("silu", "silu", count, |x, _| ops::silu(&x[0])));
    cases.extend(unary("exp", "exp", count, |x, _| Ok(x[0].exp()?)));
    cases.extend(unary("sum of the last dimension", "sum", count / 1024, |x, _| {
        Ok(x[0].sum(2)?)
    }));
    cases.extend(unary("transposed copy", "transpose", count, |x, _| {
        Ok(x[0].transpose(1, 2)?.contiguous()?)
    }));
    let (rows, width) = (4096, 2560);
    cases.extend(plain(
        "geglu 4096×2560",
        "geglu",
        &[rows, width],
        &[&[rows, width]],
        rows * width / 2,
        |x, _| ops::geglu(&x[0]),
    ));
    let wide: &[usize] = &[1536, 1408];
    cases.extend(plain(
        "swiglu 1536×1408",
        "swiglu",
        wide,
        &[wide, wide],
        1536 * 1408,
        |x, _| ops::swiglu(&x[0], &x[1]),
    ));
    cases
}

fn norms() -> Vec<Case> {
    let mut cases = Vec::new();
    for (b, c, y, groups) in [(4, 320, 32, 32), (32, 48, 8, 16)] {
        let name = format!("group norm and silu {b}×{c}@{y}");
        let x: &[usize] = &[b, c, y, y];
        let shape = [b, c, y, groups];
        cases.extend(plain(
            &name,
            "group_norm_silu",
            &shape,
            &[x, &[c], &[c]],
            b * c * y * y,
            |x, shape| ops::group_norm_silu(&x[0], &x[1], &x[2], shape[3], 1e-5),
        ));
    }
    for (rows, width) in [(4096, 320), (2048, 48)] {
        let (x, result): (&[usize], _) = (&[rows, width], rows * width);
        let name = format!("layer norm {rows}×{width}");
        cases.extend(plain(
            &name,
            "layer_norm",
            x,
            &[x, &[width], &[width]],
            result,
            |x, _| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5),
        ));
    }
    let (rows, width) = (1536, 512);
    let x: &[usize] = &[rows, width];
    cases.extend(plain(
        "rms norm 1536×512",
        "rms_norm",
        x,
        &[x, &[width]],
        rows * width,
        |x, _| ops::rms_norm(&x[0], &x[1], 1e-6),
    ));
    cases
}

/// Sizes of a small language model: four rows of 384 tokens, width 512, 8 heads of width 64, 32000 words.
fn of_decoders() -> Vec<Case> {
    let (b, t, h, k) = (4, 384, 8, 64);
    let (width, words, rows) = (h * k, 32000, 512);
    let x: &[usize] = &[b, t, width];
    let mut cases = Vec::new();
    cases.extend(plain(
        "rope 4×384, 8 heads",
        "rope",
        &[b, t, h, k],
        &[x],
        b * t * width,
        |x, shape| {
            let angles = Tensor::arange(0f32, (shape[1] * shape[3] / 2) as f32, &Device::Cpu)?;
            let angles = angles.reshape((shape[1], shape[3] / 2))?;
            ops::rope(&x[0], shape[2], &angles.cos()?, &angles.sin()?)
        },
    ));
    for is_backward in [false, true] {
        let sketch = Sketch {
            name: format!("token log-probabilities {rows}×{width}×{words}"),
            op: "token_logps",
            shape: vec![rows, width, words],
            operands: vec![vec![rows, width], vec![words, width]],
            read: None,
            result: rows,
            flops: 2.0 * (rows * width * words) as f64,
        };
        cases.push(case(sketch, pass(is_backward), |x, shape| {
            let targets: Vec<u32> = (0..shape[0]).map(|i| (i * 61 % shape[2]) as u32).collect();
            let targets = Tensor::from_vec(targets, shape[0], &Device::Cpu)?;
            ops::token_logps(&x[0], &x[1], &targets, TokenLogpsConfig::default())
        }));
    }
    // The rows that are used, and their indices; back, only the indices.
    let ids = 1536;
    cases.extend([Pass::Forward, Pass::Both].map(|pass| {
        let sketch = Sketch {
            name: format!("embedding {ids} of {words}×{width}"),
            op: "embedding",
            shape: vec![ids, words, width],
            operands: vec![vec![words, width]],
            read: Some([ids * (width + 1), ids]),
            result: ids * width,
            flops: 0.0,
        };
        case(sketch, pass, |x, shape| {
            let ids: Vec<u32> = (0..shape[0]).map(|i| (i * 7919 % shape[1]) as u32).collect();
            ops::embedding(&Tensor::from_vec(ids, shape[0], &Device::Cpu)?, &x[0])
        })
    }));
    cases
}

fn adamw(count: usize) -> Case {
    let prepare = move || -> anyhow::Result<Run> {
        let mut params = Params::new();
        let parameter = params.insert("parameter", &normal(&[count], 0)?)?;
        let loss = parameter.apply_op1(Continued(normal(&[count], 1)?))?;
        let gradients = backward(&loss, &params)?;
        let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
        Ok(Box::new(move || Ok(optimizer.step(&params, &gradients, 1e-4)?)))
    };
    Case {
        name: format!("AdamW {:.1} M", count as f64 / 1e6),
        job: Job {
            op: "adamw",
            shape: vec![count],
            backward: false,
        },
        flops: 0.0,
        // Parameter and both moments are read and written, the gradient is read.
        bytes: 4.0 * 7.0 * count as f64,
        prepare: Box::new(prepare),
    }
}
