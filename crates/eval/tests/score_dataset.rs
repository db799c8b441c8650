//! Datasets scored into files, whole, interrupted and resumed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use diptych_data::{
    Dataset, ImageCaption, ImagePair, ImageSource, Layout, RankedImages, ScoredImage, write_captions, write_pairs,
};
use diptych_eval::{
    Agreement, AgreementTies, Error, Judge, JudgeOptions, LoadedJudge, ScoredDataset, ScoringJudge, journal_path,
    labelled_pairs, score_dataset,
};
use diptych_shapes::{Example, SceneConfig, Split, render};

const HASH: &str = "judge one";

fn examples(count: u64) -> Vec<Example> {
    (0..count)
        .map(|index| Example::generate(1, index, Split::Train, &SceneConfig::default()).unwrap())
        .collect()
}

fn captions(folder: &Path, count: u64) -> PathBuf {
    let path = folder.join("captions.jsonl");
    let caption = |(index, example): (usize, &Example)| {
        let image = ImageSource::from_image(&render(&example.scene, 32)).unwrap();
        ImageCaption::new(format!("row {index}"), &example.caption, image)
    };
    let rows: Vec<ImageCaption> = examples(count).iter().enumerate().map(caption).collect();
    write_captions(&path, &rows).unwrap();
    path
}

fn load(path: &Path) -> Dataset {
    Dataset::load(&[path.to_owned()], Layout::Auto).unwrap()
}

fn verifier() -> LoadedJudge {
    Judge::Verifier.load(&JudgeOptions::default()).unwrap()
}

fn score(dataset: &Dataset, hash: &str, out: &Path, stop_after: usize) -> Result<ScoredDataset, Error> {
    let judge = verifier();
    let scoring = ScoringJudge {
        judge: &judge,
        hash,
        batch_size: 2,
    };
    score_dataset(dataset, scoring, out, |done, _| {
        if done >= stop_after {
            Err(Error::NoScores)
        } else {
            Ok(())
        }
    })
}

#[test]
fn an_interrupted_file_is_finished_and_equals_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = load(&captions(folder.path(), 7));
    let (whole, resumed) = (folder.path().join("whole.jsonl"), folder.path().join("resumed.jsonl"));
    let all = score(&dataset, HASH, &whole, usize::MAX).unwrap();
    assert_eq!((all.rows.len(), all.num_kept), (7, 0));
    assert!(all.rows.iter().all(|row| row.score == Some(1.0)));
    assert_eq!(all.rows[3].id, "row 3");

    assert!(matches!(score(&dataset, HASH, &resumed, 4), Err(Error::NoScores)));
    assert!(!resumed.exists());
    // The process ended in the middle of a line.
    let journal = journal_path(&resumed);
    let mut text = fs::read_to_string(&journal).unwrap();
    assert_eq!(text.lines().count(), 4);
    text.truncate(text.len() - 20);
    fs::write(&journal, text).unwrap();
    let rest = score(&dataset, HASH, &resumed, usize::MAX).unwrap();
    assert_eq!((rest.rows.len(), rest.num_kept), (7, 3));
    assert_eq!(fs::read(&resumed).unwrap(), fs::read(&whole).unwrap());
    assert!(!journal.exists());

    // Once more changes nothing; another judge is refused; a changed record is scored again.
    assert_eq!(score(&dataset, HASH, &whole, usize::MAX).unwrap().num_kept, 7);
    let message = score(&dataset, "judge two", &whole, usize::MAX)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("whole.jsonl") && message.contains("`verifier`"),
        "{message}"
    );
    let Dataset::Captions(mut rows) = dataset else {
        unreachable!("captions were written")
    };
    rows[2].prompt = "a small red star".to_owned();
    rows.truncate(5);
    let changed = score(&Dataset::Captions(rows), HASH, &whole, usize::MAX).unwrap();
    assert_eq!((changed.rows.len(), changed.num_kept), (5, 4));
    assert_eq!(changed.rows[2].prompt, "a small red star");
}

#[test]
fn pairs_agree_with_their_labels() {
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(6);
    let pictures: Vec<ImageSource> = examples
        .iter()
        .map(|example| ImageSource::from_image(&render(&example.scene, 32)).unwrap())
        .collect();
    // Labels: right, right, wrong, a tie of two like pictures, and two without scores.
    let pairs: Vec<ImagePair> = (0..6)
        .map(|index| {
            let (own, other) = (pictures[index].clone(), pictures[(index + 1) % 6].clone());
            let (chosen, rejected) = match index {
                2 => (other, own),
                3 => (own.clone(), own),
                _ => (own, other),
            };
            let mut pair = ImagePair::new(index.to_string(), &examples[index].caption, chosen, rejected);
            let scores = [
                Some((5.0, 1.0)),
                Some((2.0, 1.0)),
                Some((3.0, 1.0)),
                Some((1.0, 1.0)),
                None,
                None,
            ][index];
            (pair.chosen_score, pair.rejected_score) = (scores.map(|s| s.0), scores.map(|s| s.1));
            pair
        })
        .collect();
    let path = folder.path().join("pairs.jsonl");
    write_pairs(&path, &pairs).unwrap();
    let scored = score(&load(&path), HASH, &folder.path().join("out.jsonl"), usize::MAX).unwrap();
    let labelled = labelled_pairs(&scored.rows);
    assert_eq!(labelled.len(), 6);
    let agreement = |ties| Agreement::of(&labelled, ties, 0.0, (0, 100)).unwrap().unwrap();
    let skipped = agreement(AgreementTies::Skip);
    assert_eq!((skipped.num_pairs, skipped.num_label_ties), (5, 1));
    assert!((skipped.accuracy.mean - 4.0 / 5.0).abs() < 1e-12, "{skipped}");
    assert!((agreement(AgreementTies::Strict).accuracy.mean - 5.0 / 6.0).abs() < 1e-12);
}

/// Every two images of a list are a pair, oriented by the list's own scores.
#[test]
fn ranked_lists_agree_pair_by_pair() {
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(2);
    let picture = |index: usize| ImageSource::from_image(&render(&examples[index].scene, 32)).unwrap();
    let response = |image: ImageSource, score| ScoredImage { image, score };
    let list = RankedImages {
        id: "list".to_owned(),
        prompt: examples[0].caption.clone(),
        // Wrong first, then right, then right as well.
        responses: vec![
            response(picture(1), 3.0),
            response(picture(0), 2.0),
            response(picture(0), 2.0),
        ],
    };
    let dataset = Dataset::Ranked(vec![list]);
    let scored = score(&dataset, HASH, &folder.path().join("out.jsonl"), usize::MAX).unwrap();
    let ids: Vec<&str> = scored.rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["list#0", "list#1", "list#2"]);
    let pairs = labelled_pairs(&scored.rows);
    let judged: Vec<(bool, bool)> = pairs.iter().map(|pair| (pair.is_tie, pair.margin < 0.0)).collect();
    assert_eq!(judged, [(false, true), (false, true), (true, false)]);
    let none = score(&Dataset::Prompts(vec![]), HASH, &folder.path().join("none.jsonl"), 1).unwrap_err();
    assert!(none.to_string().contains("have no images to judge"), "{none}");
}

#[test]
fn images_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.png");
    render(&examples(1)[0].scene, 32).save(&image).unwrap();
    let rows = folder.path().join("rows.jsonl");
    fs::write(
        &rows,
        "{\"id\": \"x\", \"prompt\": \"a star\", \"image\": \"image.png\"}\n",
    )
    .unwrap();
    let dataset = load(&rows);
    fs::remove_file(&image).unwrap();
    let out = folder.path().join("out.jsonl");
    let message = score(&dataset, HASH, &out, usize::MAX).unwrap_err().to_string();
    assert!(message.contains("image.png"), "{message}");
    fs::write(&image, b"no picture").unwrap();
    let message = score(&dataset, HASH, &out, usize::MAX).unwrap_err().to_string();
    assert!(
        message.contains("record \"x\"") && message.contains("neither PNG"),
        "{message}"
    );
    fs::write(journal_path(&out), "{}\n").unwrap();
    let message = score(&dataset, HASH, &out, usize::MAX).unwrap_err().to_string();
    assert!(message.contains("row 1: not a row of scores"), "{message}");
}
