//! The most memory that a differentiable tail holds, counted by the allocator of this program.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diptych_diffusion::pipeline::{Checkpointing, Denoiser, Guided, Pipeline};
use diptych_diffusion::sampler::{SamplerConfig, SamplerKind, SamplerNoise};
use diptych_diffusion::shapes_pipeline::{ShapesPipelineConfig, initialize};
use diptych_diffusion::trajectory::Walk;
use diptych_diffusion::{Conditioning, NetworkOptions};
use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_tensor::random::Stream;
use diptych_tensor::{DType, Device, backward};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

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

/// The most bytes that were held at once beyond those held before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed).saturating_sub(before)
}

#[test]
fn a_checkpointed_tail_grows_by_its_latents_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let sizes = ShapesPipelineConfig {
        image_size: 32,
        ..ShapesPipelineConfig::smallest()
    };
    initialize(&path, &sizes, &["red"], 0).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
    };
    let pipeline = Pipeline::load(&path, None, &options).unwrap();
    let prompts = ["red"; 4];
    let conditional = pipeline.text.encode(&prompts).unwrap();
    let unconditional = Conditioning::new(conditional.encoder_hidden_states.zeros_like().unwrap());
    let model = PipelineDir::open(&path).unwrap();
    let (denoiser, params) = Denoiser::load(&model, &options, Trainable::All, None).unwrap();
    let denoiser = Arc::new(denoiser);
    let network = Guided::new(denoiser.clone(), &unconditional, &conditional, 3.0).unwrap();
    let config = SamplerConfig {
        eta: 1.0,
        ..SamplerConfig::new(SamplerKind::Ddim, 8)
    };
    let sampler = config.prepare(denoiser.schedule()).unwrap();
    let walk = Walk {
        sampler: &sampler,
        network: &network,
        noise: SamplerNoise {
            seed: 0,
            stream: Stream::Sampler,
            set: 0,
        },
        images: &[0, 1, 2, 3],
        latent_shape: denoiser.latent_shape().unwrap(),
    };
    let peak = |num_steps: usize, checkpointing| {
        peak_of(|| {
            let mut state = walk.start().unwrap();
            walk.advance(&mut state, 8 - num_steps).unwrap();
            let tail = walk.tail(state, 8, checkpointing).unwrap().unwrap();
            let gradients = backward(&tail.latents.sqr().unwrap().sum_all().unwrap(), &params).unwrap();
            gradients.ensure_complete(&params).unwrap();
        })
    };
    // The first run fills what is made once.
    peak(1, Checkpointing::On);
    let [one, four, eight] = [1, 4, 8].map(|num_steps| peak(num_steps, Checkpointing::On));
    let kept = peak(8, Checkpointing::Off);
    println!("peak bytes: 1 step {one}, 4 steps {four}, 8 steps {eight}; 8 steps kept {kept}");
    let latents: usize = 4 * 4 * walk.latent_shape.iter().product::<usize>();
    // Inputs of both halves of guidance, predictions, and what the sampler's arithmetic keeps of each, forwards and backwards.
    let of_a_step = 40 * latents;
    assert!(four <= one + 3 * of_a_step, "{one} {four}");
    assert!(eight <= one + 7 * of_a_step, "{one} {eight}");
    assert!(10 * eight <= 15 * one, "half more than a single step: {one} {eight}");
    assert!(kept > 3 * eight, "the count sees activations: {eight} {kept}");
}
