//! Pairs that something is wrong with, on purpose.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych::data::{ImagePair, ImageSource, write_pairs};
use diptych::shapes::{Color, Example, SceneConfig, Shape, Split, Verifier, render};
use diptych::tensor::files::write_file;
use diptych::tensor::random::{Stream, generator, uniform_vec};
use serde_json::{Map, Value};

use crate::comparison::Data;

/// The share of pairs whose sides are exchanged.
const FLIPPED: f32 = 0.3;
/// As many as the checkpoint makes, about.
const NUM_RENDERED: u64 = 320;
/// Source of the scenes; the checkpoint's own pairs and the evaluations have others.
const SEED: u64 = 77;
/// Pixels a side.
const SIZE: u32 = 32;

/// The file of the pairs, made from those of the checkpoint if it is not there.
pub(crate) fn path_of(data: Data, own: &Path, scenes: &SceneConfig, out: &Path) -> anyhow::Result<PathBuf> {
    let path = match data {
        Data::Own => return Ok(own.to_owned()),
        Data::Flipped => out.join("flipped.jsonl"),
        Data::Rendered => out.join("rendered.jsonl"),
    };
    if !path.is_file() {
        match data {
            Data::Own => {}
            Data::Flipped => flip(own, &path)?,
            Data::Rendered => render_pairs(&path, scenes)?,
        }
    }
    Ok(path)
}

/// The same pairs, the sides of some of them exchanged with their scores.
fn flip(own: &Path, path: &Path) -> anyhow::Result<()> {
    let own = std::fs::read_to_string(own)?;
    let mut rows: Vec<Map<String, Value>> = own
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the pairs of the checkpoint")?;
    let draws = uniform_vec(&mut generator(SEED, Stream::Noise, 0, 0), 0.0, 1.0, rows.len());
    for (row, _) in rows.iter_mut().zip(draws).filter(|(_, draw)| *draw < FLIPPED) {
        for [chosen, rejected] in [["chosen_image", "rejected_image"], ["chosen_score", "rejected_score"]] {
            let sides = [chosen, rejected].map(|key| row.remove(key).context(key));
            let [was_chosen, was_rejected] = sides;
            row.insert(rejected.to_owned(), was_chosen?);
            row.insert(chosen.to_owned(), was_rejected?);
        }
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
