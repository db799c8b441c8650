//! `diptych data shapes`: captioned images of the embedded world, or its scenes as text.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Context as _;
use diptych_data::{ImageCaption, ImageSource, write_captions};
use diptych_shapes::{COMPLETION_START, Example, SceneConfig, Split, TextExample, render};
use diptych_tensor::files;
use serde::Serialize;

use crate::arguments::{ShapesArguments, ShapesKind, SplitName};
use crate::command::shapes_vlm::{self, Pictures};
use crate::failure::usage;
use crate::output::{create_parent, print};

/// The sizes at which the verifier was measured.
const SIZES: std::ops::RangeInclusive<u32> = 32..=128;
const DEFAULT_SIZE: u32 = 32;

/// One line of a file, in TRL's layout.
#[derive(Serialize)]
#[serde(untagged)]
enum TextRow {
    Pair {
        prompt: String,
        chosen: String,
        rejected: String,
        id: String,
    },
    Completion {
        prompt: String,
        completion: String,
    },
    Prompt {
        prompt: String,
    },
}

pub(crate) fn run(arguments: &ShapesArguments) -> anyhow::Result<()> {
    refuse_unread(arguments)?;
    if arguments.num == 0 {
        return Err(usage("--num is 0, expected at least 1"));
    }
    let scenes = read_scenes(arguments.scenes.as_deref())?;
    let split = match arguments.split {
        SplitName::Train => Split::Train,
        SplitName::HeldOut => Split::HeldOut,
    };
    match arguments.kind {
        ShapesKind::Images => write_images(arguments, split, scenes),
        ShapesKind::Pairs | ShapesKind::Sft | ShapesKind::Prompts => write_texts(arguments, split, &scenes),
        ShapesKind::VlmSft | ShapesKind::VlmPrompts => {
            let pictures = Pictures {
                seed: arguments.seed,
                split,
                num: arguments.num,
                world: &scenes,
                size: picture_size(arguments)?,
            };
            shapes_vlm::write(arguments, &pictures)
        }
    }
}

/// An option that the kind does not read is a mistake of the user's, and not to be passed over.
fn refuse_unread(arguments: &ShapesArguments) -> anyhow::Result<()> {
    let ShapesArguments { kind, mislabeled, .. } = arguments;
    let has_false = *kind == ShapesKind::Pairs || mislabeled.is_some();
    let has_pictures = matches!(kind, ShapesKind::Images | ShapesKind::VlmSft | ShapesKind::VlmPrompts);
    let options = [
        (
            "--size",
            arguments.size.is_some(),
            has_pictures,
            "--kind images, vlm-sft and vlm-prompts",
        ),
        (
            "--questions",
            arguments.questions.is_some(),
            *kind == ShapesKind::VlmPrompts,
            "--kind vlm-prompts",
        ),
        (
            "--mislabel",
            arguments.mislabel.is_some(),
            *kind == ShapesKind::Images,
            "--kind images",
        ),
        (
            "--mislabeled",
            mislabeled.is_some(),
            *kind == ShapesKind::Sft,
            "--kind sft",
        ),
        (
            "--mistakes",
            arguments.mistakes.is_some(),
            has_false,
            "--kind pairs, or --mislabeled",
        ),
    ];
    match options
        .into_iter()
        .find(|(_, is_given, is_read, _)| *is_given && !is_read)
    {
        Some((option, _, _, expected)) => Err(usage(format!("{option} is only for {expected}"))),
        None => Ok(()),
    }
}

fn picture_size(arguments: &ShapesArguments) -> anyhow::Result<u32> {
    let size = arguments.size.unwrap_or(DEFAULT_SIZE);
    if SIZES.contains(&size) {
        return Ok(size);
    }
    Err(usage(format!("--size is {size}, expected 32 to 128")))
}

fn write_images(arguments: &ShapesArguments, split: Split, mut scenes: SceneConfig) -> anyhow::Result<()> {
    let size = picture_size(arguments)?;
    if let Some(probability) = arguments.mislabel {
        scenes.captions.mislabel = probability;
        scenes
            .validate()
            .map_err(|error| usage(format!("--mislabel: {error}")))?;
    }
    let records = (0..arguments.num)
        .map(|index| {
            let example = Example::generate(arguments.seed, index as u64, split, &scenes)?;
            let image = ImageSource::from_image(&render(&example.scene, size))?;
            Ok(ImageCaption::new(index.to_string(), example.caption, image))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    create_parent(&arguments.out)?;
    write_captions(&arguments.out, &records)?;
    print(format!(
        "wrote {} captioned images to {}",
        records.len(),
        arguments.out.display()
    ))
}

fn write_texts(arguments: &ShapesArguments, split: Split, scenes: &SceneConfig) -> anyhow::Result<()> {
    if let Some(share) = arguments.mislabeled
        && !(0.0..=1.0).contains(&share)
    {
        return Err(usage(format!("--mislabeled is {share}, expected 0 to 1")));
    }
    let mut lines = Vec::new();
    for index in 0..arguments.num {
        let example = TextExample::generate(arguments.seed, index as u64, split, scenes)?;
        serde_json::to_writer(&mut lines, &text_row(arguments, example, scenes)?)?;
        lines.push(b'\n');
    }
    create_parent(&arguments.out)?;
    files::write_file(&arguments.out, &lines)?;
    let what = match arguments.kind {
        ShapesKind::Images | ShapesKind::VlmSft | ShapesKind::VlmPrompts => "captioned images",
        ShapesKind::Pairs => "preference pairs",
        ShapesKind::Sft => "completions",
        ShapesKind::Prompts => "prompts",
    };
    print(format!("wrote {} {what} to {}", arguments.num, arguments.out.display()))
}

fn text_row(arguments: &ShapesArguments, example: TextExample, scenes: &SceneConfig) -> anyhow::Result<TextRow> {
    let num_mistakes = arguments.mistakes.unwrap_or(NonZeroUsize::MIN);
    Ok(match arguments.kind {
        ShapesKind::Pairs => {
            let rejected = example.distractor(num_mistakes, scenes)?.claims;
            TextRow::Pair {
                chosen: example.completion(),
                rejected: format!("{COMPLETION_START}{rejected}"),
                id: example.index.to_string(),
                prompt: example.prompt,
            }
        }
        ShapesKind::Sft => TextRow::Completion {
            completion: example.mislabeled_completion(arguments.mislabeled.unwrap_or(0.0), num_mistakes, scenes)?,
            prompt: example.prompt,
        },
        _ => TextRow::Prompt { prompt: example.prompt },
    })
}

/// The scenes a file describes; all of the world without one.
pub(crate) fn read_scenes(path: Option<&Path>) -> anyhow::Result<SceneConfig> {
    let Some(path) = path else {
        return Ok(SceneConfig::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let scenes: SceneConfig = toml::from_str(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?;
    scenes
        .validate()
        .map_err(|error| usage(format!("{}: {error}", path.display())))?;
    Ok(scenes)
}
