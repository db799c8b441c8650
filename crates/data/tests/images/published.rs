//! Published layouts against rows that pyarrow, Pillow and `datasets` wrote.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_data::{DataFiles, Dataset, ImageSource, Layout, LeftOut, ReadPolicy, TiePolicy, inspect};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{golden, read};

#[derive(Deserialize)]
struct Expected {
    layout: Layout,
    records: Vec<Record>,
    left_out: BTreeMap<String, usize>,
    ties: usize,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    prompt: String,
    images: Vec<String>,
    #[serde(default)]
    scores: Vec<f64>,
    label: Option<bool>,
    id: Option<String>,
}

/// The files of the golden data that this build reads.
fn expected() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    let mut files: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    assert_eq!(files.len(), 8);
    if cfg!(not(feature = "parquet")) {
        files.retain(|name, _| Path::new(name).extension() != Some("parquet".as_ref()));
        assert_eq!(files.len(), 4);
    }
    files
}

fn name(image: &ImageSource) -> String {
    let hash = Sha256::digest(image.encoded().unwrap());
    format!("{:016x}", u64::from_be_bytes(std::array::from_fn(|at| hash[at])))
}

fn records(dataset: &Dataset) -> Vec<Record> {
    let record = |prompt: &str, images: &[&ImageSource]| Record {
        prompt: prompt.to_owned(),
        images: images.iter().map(|image| name(image)).collect(),
        scores: vec![],
        label: None,
        id: None,
    };
    match dataset {
        Dataset::Pairs(pairs) => {
            let of = |pair: &diptych_data::ImagePair| record(&pair.prompt, &[&pair.chosen, &pair.rejected]);
            pairs.iter().map(of).collect()
        }
        Dataset::Ranked(lists) => {
            let of = |list: &diptych_data::RankedImages| Record {
                scores: list.responses.iter().map(|response| response.score).collect(),
                ..record(
                    &list.prompt,
                    &list
                        .responses
                        .iter()
                        .map(|response| &response.image)
                        .collect::<Vec<_>>(),
                )
            };
            lists.iter().map(of).collect()
        }
        Dataset::Labels(labels) => {
            let of = |label: &diptych_data::ImageLabel| Record {
                scores: label.score.into_iter().collect(),
                label: Some(label.label),
                ..record(&label.prompt, &[&label.image])
            };
            labels.iter().map(of).collect()
        }
        Dataset::Prompts(prompts) => {
            let of = |prompt: &diptych_data::ImagePrompt| Record {
                id: Some(prompt.id.clone()),
                ..record(&prompt.prompt, &[])
            };
            prompts.iter().map(of).collect()
        }
        other => panic!("{:?}", other.records()),
    }
}

fn named(left_out: &BTreeMap<LeftOut, usize>) -> BTreeMap<String, usize> {
    let name = |reason: &LeftOut| serde_json::to_value(reason).unwrap().as_str().unwrap().to_owned();
    left_out.iter().map(|(reason, count)| (name(reason), *count)).collect()
}

#[test]
fn published_files_read_as_published_by_name_and_by_detection() {
    for (file, expected) in expected() {
        for layout in [Layout::Auto, expected.layout] {
            let files = DataFiles::find(&[golden(&file)], layout).unwrap();
            assert_eq!(files.layout(), expected.layout, "{file}");
            let (dataset, report) = Dataset::read_with(&files, ReadPolicy::default()).unwrap();
            assert_eq!(records(&dataset), expected.records, "{file}");
            assert_eq!(named(&report.left_out), expected.left_out, "{file}");
            assert_eq!(report.num_records, expected.records.len(), "{file}");
        }
    }
}

#[test]
fn every_image_of_a_published_file_decodes_and_inspection_counts_the_same() {
    for (file, expected) in expected() {
        let found = inspect(&[golden(&file)], Layout::Auto).unwrap();
        assert_eq!(found.num_errors, 0, "{file}: {found}");
        // The images of a list that lie in rows of their own are looked at one by one.
        let mut left_out = named(&found.left_out);
        left_out.extend(
            expected
                .left_out
                .get_key_value("single")
                .map(|(key, count)| (key.clone(), *count)),
        );
        assert_eq!(left_out, expected.left_out, "{file}");
        assert!(found.sha256.is_some(), "{file}");
    }
}

#[test]
fn ties_follow_the_policy() {
    let with = |ties| ReadPolicy {
        ties,
        ..ReadPolicy::default()
    };
    let mut num_with_ties = 0;
    for (file, expected) in expected() {
        let path = golden(&file);
        let (dropped, _) = read(&path, Layout::Auto, with(TiePolicy::Drop)).unwrap();
        let (both, report) = read(&path, Layout::Auto, with(TiePolicy::Both)).unwrap();
        assert_eq!(both.len(), dropped.len() + 2 * expected.ties, "{file}");
        assert_eq!(report.left_out.get(&LeftOut::Tie), None, "{file}");
        let failed = read(&path, Layout::Auto, with(TiePolicy::Fail));
        if expected.ties == 0 {
            failed.unwrap();
            continue;
        }
        num_with_ties += 1;
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("row 3: neither side is preferred"), "{message}");
        if let Dataset::Pairs(pairs) = both {
            let swapped = pairs.iter().position(|pair| pair.id.ends_with("#swapped")).unwrap();
            let (tie, other) = (&pairs[swapped - 1], &pairs[swapped]);
            assert_eq!(
                (name(&tie.chosen), name(&tie.rejected)),
                (name(&other.rejected), name(&other.chosen))
            );
            assert_eq!(tie.user_id, other.user_id);
        }
    }
    assert_eq!(num_with_ties, if cfg!(feature = "parquet") { 3 } else { 1 });
}

/// A published archive's own file names images from the root of the dataset, far above the folder that it lies in.
#[test]
fn columns_that_nothing_reads_are_told() {
    let found = inspect(
        &[golden("image_reward_db/images/train/train_1/train_1.json")],
        Layout::Auto,
    )
    .unwrap();
    let ignored = [
        "classification",
        "image_amount_in_total",
        "overall_rating",
        "image_text_alignment_rating",
        "fidelity_rating",
    ];
    assert_eq!(found.ignored_keys, ignored);
}
