//! The most memory that operations hold at once, counted by the allocator of this program.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use diptych_tensor::ops::{self, GroupedAttentionConfig, TokenLogpsConfig, VisibleKeys};
use diptych_tensor::{Nf4Config, Quantization, QuantizedMatrix, random};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Tests of this program count one at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: every request goes to the system unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result, and the most bytes that were held at once beyond those held before.
fn peak_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = random::generator(0, random::Stream::Init, 0, seed);
    let data = random::normal_vec(&mut rng, shape.iter().product());
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// The logits of 1024 rows and 32768 words would be 128 MiB.
#[test]
fn token_logps_hold_a_fraction_of_the_logits() {
    let _turn = TURN.lock().unwrap();
    let (n, d, v) = (1024, 64, 32768);
    let logits_bytes = n * v * 4;
    let (hidden, weight) = (tensor(&[n, d], 1), tensor(&[v, d], 2));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 31).collect();
    let targets = Tensor::from_vec(targets, n, &Device::Cpu).unwrap();
    let config = TokenLogpsConfig::default();
    let (_, composed) = peak_of(|| ops::token_logps_composed(&hidden, &weight, &targets, config).unwrap());
    assert!(composed > logits_bytes, "the count sees the logits: {composed}");
    for dtype in [DType::F32, DType::BF16] {
        let (hidden, weight) = (hidden.to_dtype(dtype).unwrap(), weight.to_dtype(dtype).unwrap());
        for tracked in [false, true] {
            let hidden = Var::from_tensor(&hidden).unwrap();
            let weight_var = Var::from_tensor(&weight).unwrap();
            let weight = if tracked { weight_var.as_tensor() } else { &weight };
            let (logps, forward) = peak_of(|| {
                ops::token_logps_and_statistics(hidden.as_tensor(), weight, &targets, config)
                    .unwrap()
                    .0
            });
            let (_, backward) = peak_of(|| logps.sum_all().unwrap().backward().unwrap());
            // The gradient of the weight is 8 MiB in f32, and its copy in bf16 is 4 MiB.
            let gradient = if tracked { v * d * 6 } else { 0 };
            let bound = logits_bytes / 8;
            assert!(forward < bound, "forward {dtype:?}: {forward} bytes");
            assert!(
                backward < bound + gradient,
                "backward {dtype:?} {tracked}: {backward} bytes"
            );
        }
    }
}

/// The scores of 4 heads, 2048 queries and 2048 keys would be 64 MiB.
#[test]
fn grouped_attention_holds_a_fraction_of_the_scores() {
    let _turn = TURN.lock().unwrap();
    let (heads, t) = (4, 2048);
    let visible = VisibleKeys::causal(1, t, t).unwrap();
    let config = GroupedAttentionConfig {
        num_heads: heads,
        num_kv_heads: 2,
        scale: 0.25,
        softcap: Some(30.0),
    };
    let operands = [
        tensor(&[1, t, heads * 16], 1),
        tensor(&[1, t, 32], 2),
        tensor(&[1, t, 32], 3),
    ];
    let vars: Vec<Var> = operands.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let (_, bytes) = peak_of(|| {
        let out = ops::attention_grouped(&vars[0], &vars[1], &vars[2], &visible, config).unwrap();
        out.sum_all().unwrap().backward().unwrap()
    });
    assert!(bytes < heads * t * t * 4 / 4, "{bytes} bytes");
}

/// In f32 the weight of 2048 x 2048 numbers is 16 MiB.
#[test]
fn a_quantized_weight_never_exists_as_a_whole_in_another_form() {
    const MIB: usize = 1 << 20;
    let _turn = TURN.lock().unwrap();
    let (n, d) = (64, 2048);
    let (weight, x) = (tensor(&[d, d], 1), tensor(&[n, d], 2));
    let weight = weight.to_dtype(DType::BF16).unwrap();
    let threads = rayon::current_num_threads();
    for (quantization, bytes) in [
        (Quantization::Nf4(Nf4Config { double: true }), 9 * MIB / 4),
        (Quantization::Int8, 17 * MIB / 4),
    ] {
        let (matrix, loading) = peak_of(|| Arc::new(QuantizedMatrix::quantize(&weight, quantization).unwrap()));
        assert!(matrix.num_bytes() <= bytes && loading <= bytes + MIB, "{loading} bytes");
        let x = Var::from_tensor(&x).unwrap();
        let (y, forward) = peak_of(|| ops::quantized_linear(x.as_tensor(), &matrix, None).unwrap());
        // Result, a tile and packed operands in each thread.
        let bound = n * d * 4 + threads * 3 * MIB;
        assert!(forward <= bound, "forward: {forward} bytes, {threads} threads");
        let loss = y.sum_all().unwrap();
        let (_, backward) = peak_of(|| loss.backward().unwrap());
        // Gradients of the result and of x, and the sums that candle makes of them.
        assert!(
            backward <= 6 * n * d * 4 + threads * 3 * MIB,
            "backward: {backward} bytes"
        );
    }
}
