//! Inspection: counts that can be checked by eye, and every problem in one pass.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

use std::path::Path;

use diptych_data::{Inspection, Layout, MAX_PROBLEMS, Severity, inspect};
use image::{Rgb, RgbImage};

fn save(folder: &Path, name: &str, side: u32, red: u8) {
    RgbImage::from_pixel(side, side, Rgb([red, 0, 0]))
        .save(folder.join(name))
        .unwrap();
}

fn messages(inspection: &Inspection, severity: Severity) -> Vec<&str> {
    let problems = inspection
        .problems
        .iter()
        .filter(|problem| problem.severity == severity);
    problems
        .map(|problem| {
            problem
                .message
                .split_once("row ")
                .map_or(problem.message.as_str(), |(_, rest)| rest)
        })
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn rows_with_problems() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "a.png", 4, 1);
    save(folder.path(), "b.png", 4, 2);
    save(folder.path(), "c.png", 6, 3);
    std::fs::write(folder.path().join("broken.png"), "no image").unwrap();
    let rows = [
        r#"{"prompt": "one", "chosen_image": "a.png", "rejected_image": "b.png", "id": "x", "chosen_score": 1, "rejected_score": 0.5}"#,
        r#"{"prompt": "one", "chosen_image": "a.png", "rejected_image": "a.png", "id": "x"}"#,
        r#"{"prompt": "  ", "chosen_image": "a.png", "rejected_image": "c.png", "chosen_score": 0, "rejected_score": 2}"#,
        r#"{"prompt": "two words", "chosen_image": "a.png", "rejected_image": "broken.png", "chosen_score": 1}"#,
        r#"{"prompt": 5, "chosen_image": "a.png", "rejected_image": "b.png"}"#,
        "not json",
    ];
    std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let found = inspect(&[folder.path().to_path_buf()], Layout::Auto).unwrap();

    assert_eq!(
        (found.layout, found.num_records, found.num_good_records),
        (Layout::Preference, 6, 3)
    );
    let fields: Vec<_> = found
        .fields
        .iter()
        .map(|field| (field.name.as_str(), field.num_present))
        .collect();
    let expected = [
        ("prompt", 5),
        ("chosen_image", 5),
        ("rejected_image", 5),
        ("id", 2),
        ("chosen_score", 3),
        ("rejected_score", 2),
    ];
    assert_eq!(fields, expected);
    assert_eq!(found.fields[0].kinds, [("number", 1), ("string", 4)].into());
    let sizes: Vec<_> = found
        .image_sizes
        .iter()
        .map(|size| (size.width, size.height, size.num_images))
        .collect();
    assert_eq!(sizes, [(4, 4, 6), (6, 6, 1)]);
    let prompts = found.prompts.unwrap();
    assert_eq!((prompts.num_distinct, prompts.num_duplicates), (3, 1));
    assert_eq!(
        (
            prompts.min_chars,
            prompts.mean_chars,
            prompts.max_chars,
            prompts.max_words
        ),
        (2, 4.25, 9, 2)
    );
    let scores = found.score_margins.unwrap();
    assert_eq!(
        (scores.num_scored, scores.min, scores.mean, scores.max),
        (2, -2.0, -0.75, 0.5)
    );
    assert_eq!((found.num_duplicate_ids, found.num_identical_pairs), (1, 1));
    // Wrong rows are covered by the hash of their file.
    assert_eq!(found.sha256.as_ref().map(String::len), Some(64));
    assert_eq!(found.previews.len(), 3);
    assert_eq!(found.previews[0].id, "x");

    let errors = messages(&found, Severity::Error);
    assert_eq!(errors.len(), 3);
    assert!(
        errors[0].starts_with("4: `rejected_image`: ") && errors[0].contains("broken.png"),
        "{}",
        errors[0]
    );
    assert!(
        errors[1].starts_with("5: `prompt`: found the number 5"),
        "{}",
        errors[1]
    );
    assert!(errors[2].starts_with("6: not one JSON object a line"), "{}", errors[2]);
    let warnings = messages(&found, Severity::Warning);
    let expected = [
        "2: an earlier record has the id `x`, too",
        "2: chosen and rejected image are the same, pixel for pixel",
        "3: the prompt is empty",
        "3: chosen_score 0 is below rejected_score 2",
        "3: chosen is 4x4, rejected is 6x6",
        "4: only one of chosen_score and rejected_score is given",
    ];
    assert_eq!(warnings, expected);

    let text = found.to_string();
    for expected in [
        "preference layout, 6 records in 1 file(s), 3 of them good",
        "images: 6 of 4x4, 1 of 6x6",
        "3 error(s), 6 warning(s)",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["layout"], "preference");
    assert_eq!(json["problems"][0]["severity"], "warning");
}

#[test]
fn a_clean_dataset_and_its_hash() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let found = inspect(&[fixtures.join("image_caption.jsonl")], Layout::Auto).unwrap();
    assert_eq!(
        (found.num_records, found.num_good_records, found.problems.len()),
        (2, 2, 0)
    );
    assert_eq!(found.sha256.as_ref().map(String::len), Some(64));
    assert_eq!(found.score_margins, None);
}

#[test]
fn latents() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/latents");
    let found = inspect(std::slice::from_ref(&fixtures), Layout::Auto).unwrap();
    assert_eq!(
        (found.layout, found.num_records, found.num_good_records),
        (Layout::LatentPairs, 3, 3)
    );
    assert_eq!(found.tensors.len(), 7);
    assert_eq!(found.tensors[0].shape, [3, 4, 2, 3]);
    let expected: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures.join("../expected.json")).unwrap()).unwrap();
    for tensor in &found.tensors {
        let values: Vec<f64> = expected["latents"][tensor.name]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap())
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((tensor.mean - mean).abs() < 1e-9, "{}", tensor.name);
        assert!((tensor.std - variance.sqrt()).abs() < 1e-6, "{}", tensor.name);
        assert_eq!(tensor.max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    }
    assert!(
        found.to_string().contains("latents_chosen         (3, 4, 2, 3): mean"),
        "{found}"
    );

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        fixtures.join("shard-0.safetensors"),
        folder.path().join("a.safetensors"),
    )
    .unwrap();
    std::fs::write(folder.path().join("b.safetensors"), "short").unwrap();
    let found = inspect(&[folder.path().to_path_buf()], Layout::Auto).unwrap();
    assert_eq!((found.num_good_records, found.num_errors), (2, 1));
    assert!(
        found.problems[0]
            .message
            .contains("b.safetensors: not a complete safetensors file")
    );
}

#[test]
fn problems_are_counted_beyond_those_kept_and_emptiness_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"prompt\": \"\"}\n".repeat(MAX_PROBLEMS + 7)).unwrap();
    let found = inspect(std::slice::from_ref(&path), Layout::Preference).unwrap();
    assert_eq!(
        (found.problems.len(), found.num_errors),
        (MAX_PROBLEMS, MAX_PROBLEMS + 7)
    );
    assert!(found.to_string().contains("… and 7 more\n107 error(s)"), "{found}");
    std::fs::write(&path, "\n").unwrap();
    let found = inspect(&[path], Layout::Preference).unwrap();
    assert!(found.problems[0].message.contains("the dataset is empty"));
}
