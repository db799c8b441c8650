//! Measures how often the verifier reads a scene exactly right: clean, blurred and noisy renders at several sizes.
//!
//! ```text
//! cargo run --release -p diptych-shapes --example measure_verifier [number of scenes]
//! ```
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::time::{Duration, Instant};

use diptych_shapes::{Object, ReadObject, Reading, Scene, SceneConfig, Verifier, render};
use image::RgbImage;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SIZES: [u32; 5] = [32, 48, 64, 96, 128];
const BLURS: [f32; 3] = [0.5, 1.0, 1.5];
const NOISES: [f32; 4] = [5.0, 10.0, 20.0, 40.0];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let num_scenes: u64 = std::env::args().nth(1).map_or(Ok(2000), |number| number.parse())?;
    let verifier = Verifier::new();
    println!(
        "{num_scenes} scenes per row; percent. Attributes are those of objects found within 0.1 of their place.\n"
    );
    println!("| image | size | exact | background | count | found | shape | color | size | us/read |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for size in SIZES {
        measure("clean", size, num_scenes, &verifier, |image, _| image)?;
    }
    for size in SIZES {
        for sigma in BLURS {
            measure(&format!("blur {sigma} px"), size, num_scenes, &verifier, |image, _| {
                blur(&image, sigma)
            })?;
        }
    }
    for size in SIZES {
        for sigma in NOISES {
            measure(&format!("noise {sigma}"), size, num_scenes, &verifier, |image, rng| {
                noise(image, sigma, rng)
            })?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    exact: u64,
    background: u64,
    count: u64,
    objects: u64,
    found: u64,
    shape: u64,
    color: u64,
    size: u64,
    times: Vec<Duration>,
}

fn measure(
    name: &str,
    size: u32,
    num_scenes: u64,
    verifier: &Verifier,
    spoil: impl Fn(RgbImage, &mut ChaCha8Rng) -> RgbImage,
) -> Result<(), diptych_shapes::Error> {
    let mut tally = Tally::default();
    // Not the scenes that the verifier was tuned on, which have small seeds.
    for seed in 1_000_000..1_000_000 + num_scenes {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let scene = Scene::sample(&mut rng, &SceneConfig::default())?;
        let image = spoil(render(&scene, size), &mut rng);
        let start = Instant::now();
        let reading = verifier.read(&image);
        tally.times.push(start.elapsed());
        tally.add(&scene, &reading);
    }
    // The median: the machine may be busy with other things as well.
    tally.times.sort_unstable();
    let median = tally.times.get(tally.times.len() / 2).copied().unwrap_or_default();
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    println!(
        "| {name} | {size} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        percent(tally.exact, num_scenes),
        percent(tally.background, num_scenes),
        percent(tally.count, num_scenes),
        percent(tally.found, tally.objects),
        percent(tally.shape, tally.found),
        percent(tally.color, tally.found),
        percent(tally.size, tally.found),
        median.as_micros(),
    );
    Ok(())
}

impl Tally {
    fn add(&mut self, scene: &Scene, reading: &Reading) {
        let background = reading.background == Some(scene.background);
        let count = reading.objects.len() == scene.objects.len();
        let (mut exact, mut found) = (background && count, 0);
        for object in &scene.objects {
            let Some(read) = reading.objects.iter().find(|read| is_near(read, object)) else {
                exact = false;
                continue;
            };
            let right = [
                read.shape == object.shape,
                read.color == object.color,
                read.size == object.size,
            ];
            found += 1;
            self.shape += u64::from(right[0]);
            self.color += u64::from(right[1]);
            self.size += u64::from(right[2]);
            exact &= right.iter().all(|&right| right);
        }
        self.objects += scene.objects.len() as u64;
        self.found += found;
        self.background += u64::from(background);
        self.count += u64::from(count);
        self.exact += u64::from(exact);
    }
}

fn is_near(read: &ReadObject, object: &Object) -> bool {
    (0..2).all(|axis| (read.center[axis] - object.center[axis]).abs() < 0.1)
}

/// Gaussian blur; pixels beyond the border repeat the last.
fn blur(image: &RgbImage, sigma: f32) -> RgbImage {
    let reach = (4.0 * sigma).ceil() as i64;
    let kernel: Vec<f32> = (-reach..=reach)
        .map(|k| (-0.5 * (k as f32 / sigma).powi(2)).exp())
        .collect();
    let total: f32 = kernel.iter().sum();
    let pass = |image: &RgbImage, dx: i64, dy: i64| {
        RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let mut sum = [0.0; 3];
            for (weight, k) in kernel.iter().zip(-reach..=reach) {
                let u = (i64::from(x) + dx * k).clamp(0, i64::from(image.width()) - 1) as u32;
                let v = (i64::from(y) + dy * k).clamp(0, i64::from(image.height()) - 1) as u32;
                for (sum, value) in sum.iter_mut().zip(image.get_pixel(u, v).0) {
                    *sum += weight * f32::from(value);
                }
            }
            image::Rgb(sum.map(|sum| (sum / total).round() as u8))
        })
    };
    pass(&pass(image, 1, 0), 0, 1)
}

/// Gaussian noise, clipped to 0 and 255.
fn noise(mut image: RgbImage, sigma: f32, rng: &mut ChaCha8Rng) -> RgbImage {
    for pixel in image.pixels_mut() {
        for value in &mut pixel.0 {
            // Box-Muller.
            let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
            let deviate = radius * (std::f32::consts::TAU * rng.random::<f32>()).cos();
            *value = (f32::from(*value) + sigma * deviate).round().clamp(0.0, 255.0) as u8;
        }
    }
    image
}
