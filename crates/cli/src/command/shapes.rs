//! `diptych data shapes`: captioned images of the embedded world.

use std::path::Path;

use anyhow::Context as _;
use diptych_data::{ImageCaption, ImageSource, write_captions};
use diptych_shapes::{Example, SceneConfig, Split, render};

use crate::arguments::{ShapesArguments, SplitName};
use crate::failure::usage;
use crate::output::{create_parent, print};

/// The sizes at which the verifier was measured.
const SIZES: std::ops::RangeInclusive<u32> = 32..=128;

pub(crate) fn run(arguments: &ShapesArguments) -> anyhow::Result<()> {
    if !SIZES.contains(&arguments.size) {
        return Err(usage(format!("--size is {}, expected 32 to 128", arguments.size)));
    }
    if arguments.num == 0 {
        return Err(usage("--num is 0, expected at least 1"));
    }
    let mut scenes = read_scenes(arguments.scenes.as_deref())?;
    if let Some(probability) = arguments.mislabel {
        scenes.captions.mislabel = probability;
        scenes
            .validate()
            .map_err(|error| usage(format!("--mislabel: {error}")))?;
    }
    let split = match arguments.split {
        SplitName::Train => Split::Train,
        SplitName::HeldOut => Split::HeldOut,
    };
    let records = (0..arguments.num)
        .map(|index| {
            let example = Example::generate(arguments.seed, index as u64, split, &scenes)?;
            let image = ImageSource::from_image(&render(&example.scene, arguments.size))?;
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
