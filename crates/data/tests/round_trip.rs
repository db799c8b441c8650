//! What is written is read back the same.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

use std::path::Path;

use diptych_data::{
    Dataset, Error, HostTensor, ImageCaption, ImagePair, ImageSource, LatentPairs, LatentTensors, Layout,
    write_captions, write_latent_pairs, write_pairs,
};
use image::{Rgb, RgbImage};

fn image(seed: u8) -> ImageSource {
    let image = RgbImage::from_fn(9, 7, |x, y| Rgb([seed, x as u8 * 20, y as u8 * 30]));
    ImageSource::from_image(&image).unwrap()
}

fn latents(num_records: usize) -> LatentTensors {
    let tensor = |shape: &[usize], offset: f32| {
        let shape: Vec<usize> = std::iter::once(num_records).chain(shape.iter().copied()).collect();
        let len = shape.iter().product::<usize>();
        HostTensor::new(shape, (0..len).map(|i| i as f32 / 3.0 + offset).collect()).unwrap()
    };
    LatentTensors {
        latents_chosen: tensor(&[4, 2, 2], 0.0),
        latents_rejected: tensor(&[4, 2, 2], 0.5),
        encoder_hidden_states: tensor(&[3, 5], 1.0),
        pooled: None,
        time_ids: None,
        noise: Some(tensor(&[4, 2, 2], -7.0)),
        timesteps: Some((0..num_records as u32).map(|i| i * 111).collect()),
        chosen_score: Some(tensor(&[], 2.0)),
        rejected_score: Some(tensor(&[], -2.0)),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn pairs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    let mut pairs = vec![
        ImagePair::new("a", "a \"quoted\"\nprompt\u{2028}", image(1), image(2)),
        ImagePair::new("b", "", image(3), image(3)),
    ];
    pairs[0].chosen_score = Some(0.1 + 0.2);
    pairs[0].rejected_score = Some(-1e-300);
    pairs[1].user_id = Some("ann \"7\"".to_owned());
    std::fs::write(&path, "old contents").unwrap();
    write_pairs(&path, &pairs).unwrap();
    assert_eq!(
        Dataset::load(std::slice::from_ref(&path), Layout::Auto).unwrap(),
        Dataset::Pairs(pairs.clone())
    );
    assert_eq!(entries(folder.path()), ["pairs.jsonl"]);

    // Images by path are embedded on the way.
    let file = folder.path().join("one.png");
    std::fs::write(&file, pairs[0].chosen.encoded().unwrap()).unwrap();
    let by_path = ImagePair {
        chosen: ImageSource::Path(file),
        ..pairs[0].clone()
    };
    write_pairs(&path, &[by_path]).unwrap();
    assert_eq!(
        Dataset::load(&[path], Layout::Preference).unwrap(),
        Dataset::Pairs(vec![pairs[0].clone()])
    );
}

#[test]
fn captions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("captions.jsonl");
    let captions = vec![
        ImageCaption::new("1", "one", image(1)),
        ImageCaption::new("2", "two", image(2)),
    ];
    write_captions(&path, &captions).unwrap();
    assert_eq!(
        Dataset::load(&[path], Layout::Auto).unwrap(),
        Dataset::Captions(captions)
    );
}

#[test]
fn latent_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("latents");
    let pairs = LatentPairs::new(latents(5)).unwrap();
    assert_eq!(pairs.record_id(3), "3");
    std::fs::create_dir(&output).unwrap();
    write_latent_pairs(&output, &pairs, 2).unwrap();
    let shards = ["shard-00000-of-00003", "shard-00001-of-00003", "shard-00002-of-00003"];
    assert_eq!(entries(&output), shards.map(|name| format!("{name}.safetensors")));
    assert_eq!(entries(folder.path()), ["latents"]);
    let Dataset::LatentPairs(read) = Dataset::load(std::slice::from_ref(&output), Layout::Auto).unwrap() else {
        panic!()
    };
    assert_eq!(read.tensors(), pairs.tensors());
    assert_eq!(read.record_id(4), "shard-00002-of-00003.safetensors:0");

    assert!(matches!(
        write_latent_pairs(&output, &pairs, 2),
        Err(Error::OutputExists { .. })
    ));
    assert_eq!(entries(&output).len(), 3);
}

#[test]
fn nothing_is_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, "before").unwrap();
    let good = ImagePair::new("good", "x", image(1), image(2));
    let nan = ImagePair {
        chosen_score: Some(f64::NAN),
        id: "nan".to_owned(),
        ..good.clone()
    };
    let gone = ImagePair {
        rejected: ImageSource::Path("no/such.png".into()),
        id: "gone".to_owned(),
        ..good.clone()
    };
    for (bad, expected) in [
        (nan, "record `nan` cannot be written: `chosen_score`"),
        (gone, "record `gone`, `rejected_image`"),
    ] {
        let message = write_pairs(&path, &[good.clone(), bad]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
    }
    let unnamed = ImagePair {
        id: String::new(),
        ..good.clone()
    };
    assert!(
        write_pairs(&path, &[unnamed])
            .unwrap_err()
            .to_string()
            .contains("id is empty")
    );
    assert!(matches!(write_pairs(&path, &[]), Err(Error::NothingToWrite { .. })));
    assert!(matches!(
        write_pairs(&folder.path().join("no/folder.jsonl"), &[good]),
        Err(Error::Io { .. })
    ));
    assert!(matches!(write_captions(&path, &[]), Err(Error::NothingToWrite { .. })));
    assert_eq!(entries(folder.path()), ["pairs.jsonl"]);

    // A file stands where a folder has to go.
    let pairs = LatentPairs::new(latents(2)).unwrap();
    assert!(matches!(write_latent_pairs(&path, &pairs, 2), Err(Error::Io { .. })));
    assert!(matches!(
        write_latent_pairs(&path.join("below"), &pairs, 2),
        Err(Error::Io { .. })
    ));
    assert_eq!(entries(folder.path()), ["pairs.jsonl"]);
}
