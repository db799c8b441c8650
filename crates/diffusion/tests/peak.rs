//! The most memory that a gradient through the sampler holds at once, counted by the allocator of this program.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diptych_data::{ImageCaption, ImageSource, write_captions};
use diptych_diffusion::shapes_pipeline::{ShapesPipelineConfig, initialize};
use diptych_diffusion::{Diffusion, Reward, prepare_with_reward};
use diptych_tensor::{Tensor, backward};
use diptych_train::{Item, Method, MicroBatch, Recipe, Reporter};

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

#[derive(Debug)]
struct Brightness;

impl Reward for Brightness {
    fn name(&self) -> &'static str {
        "brightness"
    }

    fn is_differentiable(&self) -> bool {
        true
    }

    fn rewards(&self, _: &[&str], pixels: &Tensor, _: f32) -> diptych_diffusion::Result<Tensor> {
        let mean = || -> diptych_tensor::Result<Tensor> { Ok(pixels.flatten_from(1)?.mean(1)?) };
        Ok(mean()?)
    }
}

/// Most bytes beyond those before of a step and its backward pass, with a gradient through the last `tail` of ten steps.
fn peak(directory: &std::path::Path, tail: usize) -> usize {
    let path = directory.join("recipe.toml");
    let text = format!(
        "modality = \"diffusion\"\nrun.device = \"cpu\"\nmodel.path = \"model\"\ndata.path = \"captions.jsonl\"\nobjective.sft = {{}}\n\
         [method.direct_reward]\nrollout = {{ steps = 10, guidance_scale = 2.0 }}\ngradient.last = {{ steps = {tail} }}\n\
         [train]\nsteps = 1\nsample_every = 0\n"
    );
    std::fs::write(&path, text).unwrap();
    let recipe: Recipe<Diffusion> = Recipe::read(&path, &[]).unwrap();
    let method = prepare_with_reward(&recipe, Arc::new(Brightness), &mut Reporter::silent()).unwrap();
    let item = |index| Item {
        index,
        position: index as u64,
    };
    let batch = MicroBatch::whole(0, 1, vec![item(0), item(1)]);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let loss = method.step(&batch).unwrap().losses.mean_all().unwrap();
    let gradients = backward(&loss, method.params()).unwrap();
    assert!(gradients.global_norm().unwrap() > 0.0);
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn a_gradient_through_ten_steps_holds_little_more_than_through_one() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = ShapesPipelineConfig {
        image_size: 32,
        unet_channels: vec![32, 64],
        ..ShapesPipelineConfig::smallest()
    };
    initialize(&directory.path().join("model"), &sizes, &["red", "blue"], 0).unwrap();
    let image = ImageSource::from_image(&image::RgbImage::new(32, 32)).unwrap();
    let captions = ["red", "blue"].map(|prompt| ImageCaption::new(prompt, prompt, image.clone()));
    write_captions(&directory.path().join("captions.jsonl"), &captions).unwrap();
    let [one, ten] = [1, 10].map(|tail| peak(directory.path(), tail));
    println!(
        "one step {one} bytes, ten steps {ten} bytes: {:.2} times",
        ten as f64 / one as f64
    );
    assert!(ten as f64 <= 1.5 * one as f64, "{ten} bytes against {one}");
}
