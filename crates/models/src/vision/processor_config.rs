//! `preprocessor_config.json`: every key is honored or refused.

use std::path::Path;

use serde_json::{Value, json};

use super::processor::{CLIP_MEAN, CLIP_STD, ImageProcessor, Resize};
use super::resample::Filter;
use crate::config_json::{ConfigFile, read_json};
use crate::{Error, Result};

impl ImageProcessor {
    /// Reads `preprocessor_config.json`, or the `image_processor` of a `processor_config.json`.
    ///
    /// # Errors
    /// [`Error::MissingFile`] when neither is there, and as [`Self::from_json`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (whole, nested) = (dir.join("preprocessor_config.json"), dir.join("processor_config.json"));
        if whole.is_file() {
            return Self::from_json(read_json(&whole)?, &whole);
        }
        if nested.is_file()
            && let Some(section) = read_json(&nested)?.get("image_processor")
        {
            return Self::from_json(section.clone(), &nested);
        }
        let names = [
            "preprocessor_config.json",
            "processor_config.json with `image_processor`",
        ];
        Err(Error::MissingFile {
            path: dir.to_owned(),
            expected: names.map(str::to_owned).to_vec(),
        })
    }

    /// Reads the content of a `preprocessor_config.json`; `path` is for messages. Missing keys have the defaults of transformers'
    /// `CLIPImageProcessor`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, [`Error::UnknownConfigKey`] for a key that is not known.
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let file = ConfigFile::from_value(path.as_ref(), value)?;
        let kinds = [
            "CLIPImageProcessor",
            "CLIPImageProcessorFast",
            "CLIPImageProcessorPil",
            "CLIPFeatureExtractor",
        ];
        for key in ["image_processor_type", "feature_extractor_type"] {
            file.only(key, &kinds.map(|kind| json!(kind)))?;
        }
        file.only("do_convert_rgb", &[json!(true)])?;
        file.only("do_pad", &[json!(false)])?;
        file.only("data_format", &[json!("channels_first")])?;
        file.only("default_to_square", &[json!(false)])?;
        file.any(&[
            "processor_class",
            "return_tensors",
            "disable_grouping",
            "device",
            "input_data_format",
        ]);
        let resize = read_resize(&file)?;
        let resize = file.flag("do_resize", true)?.then_some(resize);
        let crop = read_crop(&file)?;
        let crop = file.flag("do_center_crop", true)?.then_some(crop);
        let factor = file.number("rescale_factor", 1.0 / 255.0)?;
        let does_rescale = file.flag("do_rescale", true)?;
        let (mean, std) = (
            read_channels(&file, "image_mean", CLIP_MEAN)?,
            read_channels(&file, "image_std", CLIP_STD)?,
        );
        if std.contains(&0.0) {
            return Err(file.error("image_std", "three numbers other than 0"));
        }
        let does_normalize = file.flag("do_normalize", true)?;
        let filter = read_filter(&file)?;
        file.finish()?;
        Ok(Self {
            resize,
            filter,
            crop,
            rescale_factor: if does_rescale { factor } else { 1.0 },
            mean: if does_normalize { mean } else { [0.0; 3] },
            std: if does_normalize { std } else { [1.0; 3] },
            ..Self::clip(224)
        })
    }
}

/// `size`: one number is the shorter side, as is `shortest_edge`.
fn read_resize(file: &ConfigFile) -> Result<Resize> {
    if file.value("size").is_some_and(Value::is_u64) {
        return Ok(Resize::ShortestEdge(file.count("size", 224)?));
    }
    let Some(size) = file.section("size")? else {
        return Ok(Resize::ShortestEdge(224));
    };
    let (edge, height, width) = (
        size.optional_count("shortest_edge")?,
        size.optional_count("height")?,
        size.optional_count("width")?,
    );
    size.finish()?;
    match (edge, height, width) {
        (Some(edge), None, None) => Ok(Resize::ShortestEdge(edge)),
        (None, Some(height), Some(width)) => Ok(Resize::Exact([height, width])),
        _ => Err(file.error("size", "`shortest_edge`, or `height` and `width`")),
    }
}

/// `crop_size`: one number is both sides.
fn read_crop(file: &ConfigFile) -> Result<[usize; 2]> {
    if file.value("crop_size").is_some_and(Value::is_u64) {
        let side = file.count("crop_size", 224)?;
        return Ok([side, side]);
    }
    let Some(size) = file.section("crop_size")? else {
        return Ok([224, 224]);
    };
    let sides = [size.count("height", 224)?, size.count("width", 224)?];
    size.finish()?;
    Ok(sides)
}

fn read_channels(file: &ConfigFile, key: &str, default: [f64; 3]) -> Result<[f64; 3]> {
    let Some(value) = file.value(key) else {
        return Ok(default);
    };
    let numbers: Option<Vec<f64>> = value
        .as_array()
        .and_then(|items| items.iter().map(Value::as_f64).collect());
    numbers
        .and_then(|numbers| <[f64; 3]>::try_from(numbers).ok())
        .ok_or_else(|| file.error(key, "a list of three numbers"))
}

fn read_filter(file: &ConfigFile) -> Result<Filter> {
    match file.value("resample").map(Value::as_u64) {
        None | Some(Some(3)) => Ok(Filter::Bicubic),
        Some(Some(2)) => Ok(Filter::Bilinear),
        Some(Some(1)) => Ok(Filter::Lanczos),
        Some(_) => Err(file.error("resample", "3 (bicubic), 2 (bilinear) or 1 (Lanczos)")),
    }
}
