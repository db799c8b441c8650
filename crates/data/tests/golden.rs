//! Reading what Pillow, torch and Python's safetensors wrote: see `fixtures/generate.py`.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

use std::path::{Path, PathBuf};

use diptych_data::{Dataset, ImageSource, Layout, RecordKind, resize_and_crop};
use image::RgbImage;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn assert_close(image: &RgbImage, expected: &Value, tolerance: u8, name: &str) {
    let size = [image.width(), image.height()];
    assert_eq!(serde_json::to_value(size).unwrap(), expected["size"], "{name}");
    let values = expected["rgb"].as_array().unwrap();
    assert_eq!(values.len(), image.as_raw().len(), "{name}");
    let furthest = image
        .as_raw()
        .iter()
        .zip(values)
        .map(|(a, b)| a.abs_diff(b.as_u64().unwrap() as u8))
        .max()
        .unwrap();
    assert!(furthest <= tolerance, "{name}: differs by {furthest}");
}

#[test]
fn images_decode_as_pillow_decodes_them() {
    let expected = expected();
    let images = expected["images"].as_object().unwrap();
    assert_eq!(images.len(), 9);
    for (name, expected) in images {
        let image = ImageSource::Path(fixtures().join("images").join(name))
            .decode()
            .unwrap();
        // PNG is exact but for the rounding of transparency; JPEG leaves decoders some freedom.
        let tolerance = match name.as_str() {
            name if name.contains(".jpg") => 4,
            name if name.contains("a.png") => 1,
            _ => 0,
        };
        assert_close(&image, expected, tolerance, name);
    }
}

#[test]
fn resizing_is_pillows_lanczos_over_a_centered_crop() {
    let source = ImageSource::Path(fixtures().join("images/resize.png"))
        .decode()
        .unwrap();
    let expected = expected();
    let cases = expected["resizes"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let side = |at: usize| case["size"][at].as_u64().unwrap() as u32;
        let image = resize_and_crop(&source, side(0), side(1)).unwrap();
        assert_close(&image, case, 2, &format!("{}x{}", side(0), side(1)));
    }
}

#[test]
fn preference_rows_in_every_spelling() {
    let path = fixtures().join("preference.jsonl");
    let Dataset::Pairs(pairs) = Dataset::load(&[path], Layout::Auto).unwrap() else {
        panic!("a preference dataset")
    };
    let images = fixtures().join("images");
    let embedded = ImageSource::Bytes(std::fs::read(images.join("rgba.png")).unwrap().into());

    let found: Vec<(&str, &str)> = pairs
        .iter()
        .map(|pair| (pair.id.as_str(), pair.prompt.as_str()))
        .collect();
    // Blank lines stand between the rows: ids are line numbers.
    assert_eq!(
        found,
        [
            ("preference.jsonl:1", "a red square"),
            ("second", "une étoile, “two” 星"),
            ("3", "")
        ]
    );
    let scores: Vec<_> = pairs
        .iter()
        .map(|pair| (pair.chosen_score, pair.rejected_score))
        .collect();
    assert_eq!(scores, [(None, None), (Some(0.75), Some(-1.0)), (None, None)]);
    assert_eq!(pairs[0].chosen, ImageSource::Path(images.join("rgb.png")));
    assert_eq!(pairs[1].chosen, embedded);
    assert_eq!(pairs[1].rejected, ImageSource::Path(images.join("photo.jpg")));
    assert_eq!(pairs[2].chosen, embedded);
    let (_, turned) = pairs[2].decode().unwrap();
    assert_eq!(
        turned.dimensions(),
        (12, 16),
        "EXIF orientation 6 swaps the sides of 16x12"
    );
}

#[test]
fn image_caption_rows() {
    let path = fixtures().join("image_caption.jsonl");
    let dataset = Dataset::load(&[path], Layout::Auto).unwrap();
    assert_eq!((dataset.records(), dataset.len()), (RecordKind::ImageCaption, 2));
    assert_eq!(
        [dataset.record_id(0), dataset.record_id(1)],
        ["a", "image_caption.jsonl:2"]
    );
    let Dataset::Captions(captions) = dataset else {
        panic!("an image-caption dataset")
    };
    assert_eq!(captions[1].prompt, "two");
    assert_eq!(captions[1].decode().unwrap().dimensions(), (16, 12));
}

#[test]
fn latent_shards_of_every_float_type() {
    let dataset = Dataset::load(&[fixtures().join("latents")], Layout::Auto).unwrap();
    assert_eq!((dataset.records(), dataset.len()), (RecordKind::LatentPair, 3));
    assert_eq!(dataset.record_id(2), "shard-1.safetensors:0");
    let Dataset::LatentPairs(pairs) = dataset else {
        panic!("a latent-pairs dataset")
    };
    let expected = expected();
    let values = |name: &str| -> Vec<f64> {
        expected["latents"][name]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap())
            .collect()
    };
    let tensors = pairs.tensors();
    assert_eq!(tensors.floats().len(), 6);
    for (name, tensor) in tensors.floats() {
        let found: Vec<f64> = tensor.data().iter().map(|value| f64::from(*value)).collect();
        assert_eq!(found, values(name), "{name}");
    }
    assert_eq!(tensors.latents_chosen.shape(), [3, 4, 2, 3]);
    assert_eq!(tensors.encoder_hidden_states.shape(), [3, 5, 8]);
    let timesteps: Vec<f64> = tensors
        .timesteps
        .as_ref()
        .unwrap()
        .iter()
        .map(|value| f64::from(*value))
        .collect();
    assert_eq!(timesteps, values("timesteps"));
    let gathered = tensors.latents_rejected.gather(&[2, 0]);
    assert_eq!(gathered.shape(), [2, 4, 2, 3]);
    assert_eq!(gathered.record(0), tensors.latents_rejected.record(2));
    assert_eq!(gathered.record(1), tensors.latents_rejected.record(0));
}

#[test]
fn hashes_are_of_contents_and_not_of_places() {
    let files = diptych_data::DataFiles::find(&[fixtures().join("image_caption.jsonl")], Layout::Auto).unwrap();
    let hash = files.content_hash().unwrap();
    assert_eq!(hash.num_image_files, 1);

    // The same by other means: the bytes as written by the generator, hashed by hand.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(fixtures().join(from), folder.path().join(to)).unwrap();
    copy("image_caption.jsonl", "renamed.jsonl");
    copy("images/rgb.png", "images/rgb.png");
    let moved = || {
        let files = diptych_data::DataFiles::find(&[folder.path().to_path_buf()], Layout::Auto).unwrap();
        files.content_hash().unwrap()
    };
    assert_eq!(moved().sha256, hash.sha256);
    // Another image behind the same name is another dataset.
    std::fs::copy(fixtures().join("images/gray.png"), folder.path().join("images/rgb.png")).unwrap();
    assert_ne!(moved().sha256, hash.sha256);
    assert_eq!(moved().files[0].sha256, hash.files[0].sha256);
}

#[test]
fn images_of_text_are_in_the_hash() {
    let folder = tempfile::tempdir().unwrap();
    let place = |from: &str| std::fs::copy(fixtures().join("images").join(from), folder.path().join("a.png")).unwrap();
    place("rgb.png");
    let row = r#"{"prompt": "<image>What is it?", "chosen": "A cup.", "rejected": "A cat.", "images": ["a.png"]}"#;
    std::fs::write(folder.path().join("pairs.jsonl"), row).unwrap();
    let hash = || {
        let files = diptych_data::DataFiles::find(&[folder.path().join("pairs.jsonl")], Layout::Auto).unwrap();
        files.content_hash().unwrap()
    };
    let before = hash();
    assert_eq!(before.num_image_files, 1);
    place("gray.png");
    assert_ne!(hash().sha256, before.sha256);
    assert_eq!(hash().files[0].sha256, before.files[0].sha256);
}
