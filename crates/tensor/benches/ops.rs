//! Times of the operations that training spends its time in, forward alone and forward with backward.
//!
//! `cargo bench -p diptych-tensor --bench ops [-- NAME]` prints the best of several runs in milliseconds.
#![expect(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use diptych_tensor::ops::{
    self, AttentionConfig, AttentionMask, Conv2dConfig, GroupedAttentionConfig, Segment, TokenLogpsConfig, VisibleKeys,
};
use diptych_tensor::{Nf4Config, Quantization, QuantizedMatrix, Result, random};

/// As in the `diptych` binary.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

fn tensor(shape: &[usize]) -> Result<Tensor> {
    let mut rng = random::generator(0, random::Stream::Init, 0, shape.iter().sum::<usize>() as u64);
    let data = random::normal_vec(&mut rng, shape.iter().product());
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// The best of several runs, in milliseconds.
fn best(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 2 || (begin.elapsed().as_secs_f64() < 1.0 && runs < 50) {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
        runs += 1;
    }
    Ok(best)
}

/// Forward; forward and backward to the first operand; forward and backward to all operands.
fn measure(name: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    if std::env::args()
        .skip(1)
        .any(|filter| !filter.starts_with("--") && !name.contains(&filter))
    {
        return Ok(());
    }
    let operands: Vec<Tensor> = shapes.iter().map(|shape| tensor(shape)).collect::<Result<_>>()?;
    let forward = best(|| op(&operands).map(drop))?;
    let vars: Vec<Var> = operands
        .iter()
        .map(Var::from_tensor)
        .collect::<candle_core::Result<_>>()?;
    let all: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut first = operands.clone();
    first[0] = all[0].clone();
    let step = |operands: &[Tensor]| -> Result<()> {
        op(operands)?.sum_all()?.backward()?;
        Ok(())
    };
    let input = best(|| step(&first))?;
    let every = best(|| step(&all))?;
    println!("{name:44} {forward:8.2} {input:8.2} {every:8.2}");
    Ok(())
}

fn conv2d(b: usize, c: usize, o: usize, y: usize, k: usize, stride: usize) -> Result<()> {
    let config = Conv2dConfig { stride, padding: k / 2 };
    measure(
        &format!("conv2d {b}x{c}->{o}@{y} {k}x{k} stride {stride}"),
        &[&[b, c, y, y], &[o, c, k, k], &[o]],
        |x| ops::conv2d(&x[0], &x[1], Some(&x[2]), config),
    )
}

fn attention(b: usize, h: usize, t: usize, s: usize, k: usize) -> Result<()> {
    let config = AttentionConfig {
        scale: 1.0 / (k as f64).sqrt(),
        mask: AttentionMask::None,
    };
    let (q, kv) = ([b, t, h * k], [b, s, h * k]);
    measure(&format!("attention {b}x{h}x{t}x{s} d{k}"), &[&q, &kv, &kv], |x| {
        ops::attention_packed(&x[0], &x[1], &x[2], h, config)
    })
}

fn main() -> Result<()> {
    println!(
        "{:44} {:>8} {:>8} {:>8}",
        "ms, best of several", "forward", "+ dx", "+ all"
    );
    network()?;
    convolutions()?;
    others()?;
    quantized()?;
    decoders()
}

/// Ten blocks of a small network, to see the operations beside each other.
fn network() -> Result<()> {
    measure(
        "net",
        &[
            &[4, 64, 32, 32],
            &[64, 64, 3, 3],
            &[64],
            &[256, 64],
            &[64, 64],
            &[512, 64],
            &[64, 256],
        ],
        |x| {
            let c = Conv2dConfig { stride: 1, padding: 1 };
            let mut y = x[0].clone();
            for _ in 0..10 {
                let h = ops::group_norm_silu(&y, &x[2], &x[2], 32, 1e-5)?;
                let h = ops::conv2d(&h, &x[1], Some(&x[2]), c)?;
                let h = ops::group_norm_silu(&h, &x[2], &x[2], 32, 1e-5)?;
                let h = (ops::conv2d(&h, &x[1], Some(&x[2]), c)? + &y)?;
                let t = h.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
                let n = ops::layer_norm(&t, &x[2], &x[2], 1e-5)?;
                let (q, k, v) = (
                    ops::linear(&n, &x[4], None)?,
                    ops::linear(&n, &x[4], None)?,
                    ops::linear(&n, &x[4], None)?,
                );
                let a = ops::attention_packed(
                    &q,
                    &k,
                    &v,
                    4,
                    AttentionConfig {
                        scale: 0.25,
                        mask: AttentionMask::None,
                    },
                )?;
                let t = (t + ops::linear(&a, &x[4], None)?)?;
                let n = ops::layer_norm(&t, &x[2], &x[2], 1e-5)?;
                let f = ops::linear(&ops::geglu(&ops::linear(&n, &x[5], None)?)?, &x[6], None)?;
                y = ((t + f)?.transpose(1, 2)?.contiguous()?.reshape(x[0].dims())? * 0.5)?;
            }
            Ok(y)
        },
    )
}

fn convolutions() -> Result<()> {
    conv2d(1, 320, 320, 32, 3, 1)?;
    conv2d(4, 320, 320, 32, 3, 1)?;
    conv2d(1, 320, 320, 64, 3, 1)?;
    conv2d(1, 640, 640, 16, 3, 1)?;
    conv2d(4, 1280, 1280, 8, 3, 1)?;
    conv2d(1, 1280, 1280, 8, 3, 1)?;
    conv2d(1, 320, 320, 32, 3, 2)?;
    conv2d(1, 320, 320, 32, 1, 1)?;
    conv2d(8, 32, 32, 16, 3, 1)?;
    conv2d(8, 64, 64, 16, 3, 1)?;
    conv2d(1, 128, 128, 128, 3, 1)?;
    conv2d(1, 4, 320, 32, 3, 1)?;
    conv2d(8, 3, 32, 32, 3, 1)?;
    conv2d(8, 32, 3, 32, 3, 1)?;
    Ok(())
}

fn others() -> Result<()> {
    attention(1, 8, 1024, 1024, 40)?;
    attention(1, 8, 4096, 77, 40)?;
    attention(8, 4, 256, 16, 16)?;
    attention(8, 4, 256, 256, 16)?;
    attention(1, 1, 1024, 1024, 512)?;
    measure("linear 1024x1024x1024", &[&[1024, 1024], &[1024, 1024], &[1024]], |x| {
        ops::linear(&x[0], &x[1], Some(&x[2]))
    })?;
    measure("linear 1024x320->2560", &[&[1024, 320], &[2560, 320], &[2560]], |x| {
        ops::linear(&x[0], &x[1], Some(&x[2]))
    })?;
    measure("linear 77x768->320", &[&[77, 768], &[320, 768]], |x| {
        ops::linear(&x[0], &x[1], None)
    })?;
    measure("linear 2x320->1280", &[&[2, 320], &[1280, 320], &[1280]], |x| {
        ops::linear(&x[0], &x[1], Some(&x[2]))
    })?;
    measure("linear 1024x320->4 (adapter)", &[&[1024, 320], &[4, 320]], |x| {
        ops::linear(&x[0], &x[1], None)
    })?;
    measure("linear 1024x4->320 (adapter)", &[&[1024, 4], &[320, 4]], |x| {
        ops::linear(&x[0], &x[1], None)
    })?;
    let channels: &[usize] = &[320];
    measure(
        "group_norm_silu 4x320@32",
        &[&[4, 320, 32, 32], channels, channels],
        |x| ops::group_norm_silu(&x[0], &x[1], &x[2], 32, 1e-5),
    )?;
    measure("layer_norm 4096x320", &[&[4096, 320], channels, channels], |x| {
        ops::layer_norm(&x[0], &x[1], &x[2], 1e-5)
    })?;
    measure("geglu 4096x2560", &[&[4096, 2560]], |x| ops::geglu(&x[0]))?;
    measure("gelu 8M", &[&[8, 1024, 1024]], |x| ops::gelu(&x[0]))?;
    measure("silu 8M", &[&[8, 1024, 1024]], |x| ops::silu(&x[0]))?;
    measure("softmax 8M", &[&[8, 1024, 1024]], |x| ops::softmax(&x[0]))?;
    measure("upsample 4x320@16", &[&[4, 320, 16, 16]], |x| {
        ops::upsample_nearest2d(&x[0], 2)
    })?;
    Ok(())
}

/// A layer of a frozen decoder in f32, and in few bits: a batch of tokens, and one token.
fn quantized() -> Result<()> {
    for (tokens, from, to) in [(512, 2048, 2048), (512, 2048, 5632), (512, 5632, 2048), (1, 2048, 5632)] {
        let (x, weight): ([usize; 2], _) = ([tokens, from], tensor(&[to, from])?);
        measure(&format!("linear {tokens}x{from}->{to} f32"), &[&x], |x| {
            ops::linear(&x[0], &weight, None)
        })?;
        for (name, quantization) in [
            ("nf4", Quantization::Nf4(Nf4Config { double: false })),
            ("nf4 double", Quantization::Nf4(Nf4Config { double: true })),
            ("int8", Quantization::Int8),
        ] {
            let matrix = Arc::new(QuantizedMatrix::quantize(&weight, quantization)?);
            measure(&format!("linear {tokens}x{from}->{to} {name}"), &[&x], |x| {
                ops::quantized_linear(&x[0], &matrix, None)
            })?;
        }
    }
    Ok(())
}

/// Sizes of a small language model: four rows of 384 tokens, width 512, 8 heads of width 64, 32000 words.
fn decoders() -> Result<()> {
    let (b, t, width, inner) = (4, 384, 512, 1408);
    measure("rms_norm 4x384x512", &[&[b, t, width], &[width]], |x| {
        ops::rms_norm(&x[0], &x[1], 1e-6)
    })?;
    let angles = tensor(&[t, 32])?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    measure("rope 4x384 8x64", &[&[b, t, width]], |x| {
        ops::rope(&x[0], 8, &cos, &sin)
    })?;
    let hidden: &[usize] = &[b, t, inner];
    measure("swiglu 4x384x1408", &[hidden, hidden], |x| ops::swiglu(&x[0], &x[1]))?;
    measure("geglu_tanh 4x384x1408", &[hidden, hidden], |x| {
        ops::geglu_tanh(&x[0], &x[1])
    })?;
    let prefix = vec![Segment {
        prefix_len: 128,
        branch_lens: vec![128, 128],
    }];
    let causal = VisibleKeys::causal(b, t, t)?;
    for (name, visible, num_kv_heads, softcap) in [
        ("causal 8/8", causal.clone(), 8, None),
        ("causal 8/2", causal.clone(), 2, None),
        ("causal 8/2 cap", causal.clone(), 2, Some(50.0)),
        ("window 64 8/2", causal.windowed(64)?, 2, None),
        ("shared prefix 8/2", VisibleKeys::packed(t, &vec![prefix; b])?, 2, None),
    ] {
        let config = GroupedAttentionConfig {
            num_heads: 8,
            num_kv_heads,
            scale: 0.125,
            softcap,
        };
        let kv = [b, t, num_kv_heads * 64];
        measure(
            &format!("attention_grouped 4x384 {name}"),
            &[&[b, t, width], &kv, &kv],
            |x| ops::attention_grouped(&x[0], &x[1], &x[2], &visible, config),
        )?;
    }
    let targets = Tensor::from_vec((0..512).map(|i| i * 61).collect::<Vec<u32>>(), 512, &Device::Cpu)?;
    let (shapes, config): ([&[usize]; 2], _) = ([&[512, width], &[32000, width]], TokenLogpsConfig::default());
    measure("token_logps 512x512x32000", &shapes, |x| {
        ops::token_logps(&x[0], &x[1], &targets, config)
    })?;
    measure("token_logps 512x512x32000 statistics", &shapes, |x| {
        Ok(ops::token_logps_and_statistics(&x[0], &x[1], &targets, config)?.0)
    })?;
    let half = |x: &Tensor| x.to_dtype(DType::BF16);
    let weight = half(&tensor(&[32000, width])?)?;
    measure("token_logps 512x512x32000 frozen bf16", &[&[512, width]], |x| {
        ops::token_logps(&half(&x[0])?, &weight, &targets, config)
    })?;
    measure("token_logps 512x512x32000 composed", &shapes, |x| {
        ops::token_logps_composed(&x[0], &x[1], &targets, config)
    })
}
