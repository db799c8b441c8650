//! Ranked rows, labelled images and prompts in our own names.

use std::path::PathBuf;

use diptych_data::{Dataset, Layout, OnError, PairRule, PairSelection, ReadPolicy, RecordKind, inspect};

use crate::{failure, jpeg, read};

/// A folder with three images and a file of rows.
fn rows(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..3 {
        std::fs::write(folder.path().join(format!("{number}.jpg")), jpeg(80 * number)).unwrap();
    }
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    (folder, path)
}

const RANKED: &str = r#"{"prompt": "p", "id": "r", "responses": [{"image": "0.jpg", "score": 0.5}, {"score": 2, "image": "1.jpg"}, {"image": "2.jpg", "score": -1}]}"#;

#[test]
fn ranked_rows_are_lists_and_become_pairs_by_a_rule() {
    let (_folder, path) = rows(&[RANKED]);
    let (dataset, _) = read(&path, Layout::Auto, ReadPolicy::default()).unwrap();
    let Dataset::Ranked(lists) = &dataset else {
        panic!("{:?}", dataset.records())
    };
    assert_eq!(lists[0].ranking(), [1, 0, 2]);
    assert_eq!(lists[0].decode().unwrap().len(), 3);
    let copy = path.with_file_name("copy.jsonl");
    diptych_data::write_ranked(&copy, lists).unwrap();
    let Dataset::Ranked(again) = read(&copy, Layout::Auto, ReadPolicy::default()).unwrap().0 else {
        panic!("lists")
    };
    assert_eq!(again[0].decode().unwrap(), lists[0].decode().unwrap());
    assert_eq!(
        (&again[0].id, &again[0].prompt, again[0].ranking()),
        (&lists[0].id, &lists[0].prompt, lists[0].ranking())
    );
    let pairs = |rule, min_margin| {
        let selection = PairSelection { rule, min_margin };
        match dataset
            .clone()
            .into_pairs(&selection, |record, below| record.min(below - 1))
        {
            Dataset::Pairs(pairs) => pairs
                .into_iter()
                .map(|pair| (pair.id, pair.chosen_score.unwrap(), pair.rejected_score.unwrap()))
                .collect::<Vec<_>>(),
            other => panic!("{:?}", other.records()),
        }
    };
    let pair = |id: &str, chosen, rejected| (id.to_owned(), chosen, rejected);
    assert_eq!(pairs(PairRule::Worst, 0.0), [pair("r", 2.0, -1.0)]);
    assert_eq!(pairs(PairRule::Closest, 0.0), [pair("r", 2.0, 0.5)]);
    assert_eq!(pairs(PairRule::Random, 2.0), [pair("r", 2.0, -1.0)]);
    let all = [pair("r", 2.0, 0.5), pair("r#1", 2.0, -1.0), pair("r#2", 0.5, -1.0)];
    assert_eq!(pairs(PairRule::All, 0.0), all);
    assert!(pairs(PairRule::All, 3.5).is_empty());
}

#[test]
fn labelled_images_and_prompts() {
    let (_folder, path) = rows(&[
        r#"{"prompt": "p", "image": "0.jpg", "label": true, "score": 0.5}"#,
        r#"{"prompt": "q", "image": "1.jpg", "label": false}"#,
    ]);
    let (dataset, _) = read(&path, Layout::Auto, ReadPolicy::default()).unwrap();
    let Dataset::Labels(labels) = &dataset else {
        panic!("{:?}", dataset.records())
    };
    assert_eq!((labels[0].label, labels[0].score), (true, Some(0.5)));
    assert_eq!((labels[1].label, labels[1].score), (false, None));
    let found = inspect(&[path], Layout::Unpaired).unwrap();
    assert_eq!(
        (found.records, found.num_desirable, found.num_undesirable),
        (RecordKind::ImageLabel, 1, 1)
    );

    let (_folder, path) = rows(&[r#"{"prompt": "p"}"#, r#"{"prompt": "q", "id": 7}"#]);
    let (dataset, _) = read(&path, Layout::Auto, ReadPolicy::default()).unwrap();
    assert_eq!(
        (dataset.records(), dataset.prompts()),
        (RecordKind::ImagePrompt, vec!["p", "q"])
    );
}

#[test]
fn rows_that_are_wrong_are_named_and_skipped_only_where_that_is_asked_for() {
    let cases = [
        (
            r#"{"prompt": "p", "responses": [{"image": "0.jpg", "score": 1}]}"#,
            "two or more",
        ),
        (
            r#"{"prompt": "p", "responses": [{"image": "0.jpg"}, {"image": "1.jpg", "score": 1}]}"#,
            "missing key `responses[0].score`",
        ),
        (
            r#"{"prompt": "p", "responses": [{"image": "0.jpg", "score": "1"}, {"image": "1.jpg", "score": 1}]}"#,
            "`responses[0].score`: found the string \"1\"",
        ),
        (
            r#"{"prompt": "p", "responses": [{"image": "0.jpg", "scor": 1}, {"image": "1.jpg", "score": 1}]}"#,
            "did you mean `score`?",
        ),
        (
            r#"{"prompt": "p", "responses": [{"image": "../0.jpg", "score": 1}, {"image": "1.jpg", "score": 1}]}"#,
            "leads out of the folder",
        ),
    ];
    let skip = ReadPolicy {
        on_error: OnError::Skip,
        ..ReadPolicy::default()
    };
    for (row, expected) in cases {
        let (_folder, path) = rows(&[RANKED, row]);
        let message = failure(&path, Layout::Ranked);
        assert!(message.contains("row 2: ") && message.contains(expected), "{message}");
        let (dataset, report) = read(&path, Layout::Ranked, skip).unwrap();
        assert_eq!((dataset.len(), report.num_rows, report.num_unreadable), (1, 2, 1));
        assert_eq!(report.unreadable, [message]);
    }
    let (_folder, path) = rows(&[cases[0].0]);
    let message = read(&path, Layout::Ranked, skip).unwrap_err().to_string();
    assert!(
        message.contains("no record is left: 1 rows: 0 records; skipped 1 unreadable"),
        "{message}"
    );
}
