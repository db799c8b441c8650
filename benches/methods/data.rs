//! Pairs that something is wrong with, on purpose.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych::data::{ImagePair, ImageSource, write_pairs};
use diptych::shapes::{Color, Example, SceneConfig, Shape, Split, Verifier, render};
use diptych::tensor::files::write_file;
use diptych::tensor::random::{Stream, generator, normal_vec, uniform_vec};
use serde_json::{Map, Value};

use crate::comparison::Data;

/// Deviation of what is added to each score: three of ten pairs then stand the wrong way around.
const NOISE: f64 = 0.65;
/// As many as the checkpoint makes, about.
const NUM_RENDERED: u64 = 320;
/// Source of the scenes; the checkpoint's own pairs and the evaluations have others.
const SEED: u64 = 77;
/// Pixels a side.
const SIZE: u32 = 32;

/// The file of the pairs; those that are not the checkpoint's own are made anew from these.
pub(crate) fn path_of(data: Data, own: &Path, scenes: &SceneConfig, out: &Path) -> anyhow::Result<PathBuf> {
    match data {
        Data::Own => Ok(own.to_owned()),
        Data::Noisy => {
            let path = out.join("noisy.jsonl");
            judge_noisily(own, &path)?;
            Ok(path)
        }
        Data::Rendered => {
            let path = out.join("rendered.jsonl");
            render_pairs(&path, scenes)?;
            Ok(path)
        }
    }
}

/// The same pairs as a judge sees them whose scores are wrong by chance. It is wrong most often where images are nearly as good as each other,
/// and its own scores, which are all that is written, say by how much it prefers one.
fn judge_noisily(own: &Path, path: &Path) -> anyhow::Result<()> {
    let own = std::fs::read_to_string(own)?;
    let mut rows: Vec<Map<String, Value>> = own
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the pairs of the checkpoint")?;
    let noise = normal_vec(&mut generator(SEED, Stream::Noise, 0, 0), 2 * rows.len());
    for (row, noise) in rows.iter_mut().zip(noise.chunks_exact(2)) {
        let score = |key: &str, noise: f32| -> anyhow::Result<f64> {
            let score = row.get(key).and_then(Value::as_f64).with_context(|| key.to_owned())?;
            Ok(score + NOISE * f64::from(noise))
        };
        let [chosen, rejected] = [score("chosen_score", noise[0])?, score("rejected_score", noise[1])?];
        if chosen < rejected {
            let [was_chosen, was_rejected] = ["chosen_image", "rejected_image"].map(|key| row.remove(key).context(key));
            row.insert("rejected_image".to_owned(), was_chosen?);
            row.insert("chosen_image".to_owned(), was_rejected?);
        }
        row.insert("chosen_score".to_owned(), chosen.max(rejected).into());
        row.insert("rejected_score".to_owned(), chosen.min(rejected).into());
    }
    let lines: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(write_file(path, lines.join("\n").as_bytes())?)
}

/// A picture of what the caption says over one in which one object has another color or shape.
fn render_pairs(path: &Path, scenes: &SceneConfig) -> anyhow::Result<()> {
    let verifier = Verifier::new();
    let mut pairs = Vec::new();
    for index in 0..NUM_RENDERED {
        let example = Example::generate(SEED, index, Split::Train, scenes)?;
        let mut wrong = example.scene.clone();
        let draws = uniform_vec(&mut generator(SEED, Stream::Noise, 1, index), 0.0, 1.0, 3);
        let pick = |len: usize, draw: f32| ((draw * len as f32) as usize).min(len - 1);
        let place = pick(wrong.objects.len(), draws[0]);
        let object = &mut wrong.objects[place];
        if draws[1] < 0.5 {
            object.color = Color::ALL[pick(Color::ALL.len(), draws[2])];
        } else {
            object.shape = Shape::ALL[pick(Shape::ALL.len(), draws[2])];
        }
        let [chosen, rejected] = [&example.scene, &wrong].map(|scene| render(scene, SIZE));
        let score = |image| verifier.score(&example.caption, image);
        let (chosen_score, rejected_score) = (score(&chosen)?, score(&rejected)?);
        if rejected_score < chosen_score {
            pairs.push(ImagePair {
                chosen_score: Some(chosen_score),
                rejected_score: Some(rejected_score),
                ..ImagePair::new(
                    index.to_string(),
                    example.caption,
                    ImageSource::from_image(&chosen)?,
                    ImageSource::from_image(&rejected)?,
                )
            });
        }
    }
    Ok(write_pairs(path, &pairs)?)
}
