//! The golden files of the benchmarks in a folder, and what is compared with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diptych_eval::hallucination::{
    AmberDimension, AmberWords, Lemmatizer, NounSource, ObjectTruth, ObjectVocabulary, PopeFiles, Scored, SynonymRules,
    captioned_images, score_amber, score_pope,
};
use serde_json::Value;
use tempfile::TempDir;

/// The golden files, each where its name says.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) expected: Value,
}

impl Place {
    pub(crate) fn new() -> Self {
        let text = include_str!("../../../../tests/golden/hallucination/cases.json");
        let mut golden: Value = serde_json::from_str(text).unwrap();
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            expected: golden["expected"].take(),
        };
        let files = golden["files"].as_object().unwrap();
        assert_eq!(files.len(), 21);
        for (name, content) in files {
            match content {
                Value::String(text) => place.write(name, text),
                rows if name.rsplit('.').next() == Some("jsonl") => place.write(name, &lines(rows.as_array().unwrap())),
                other => place.write(name, &other.to_string()),
            };
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn vocabulary(&self, rules: SynonymRules) -> ObjectVocabulary {
        ObjectVocabulary::read(&self.path("synonyms.txt"), rules).unwrap()
    }

    pub(crate) fn chair_truth(&self, vocabulary: &ObjectVocabulary) -> ObjectTruth {
        let images = captioned_images(&self.path("chair_answers.jsonl")).unwrap();
        let (instances, captions) = ([self.path("instances.json")], [self.path("captions.json")]);
        ObjectTruth::from_coco(&instances, &captions, &images, vocabulary, &Lemmatizer::PatternRules).unwrap()
    }

    pub(crate) fn amber(&self, answers: &str, dimensions: &[AmberDimension]) -> diptych_eval::Result<Scored> {
        let vectors = self.path("vectors.txt");
        let (relation, safe) = (self.path("relation.json"), self.path("safe_words.txt"));
        let words = AmberWords::read(&relation, &safe, Some(&vectors), 0.8)?;
        let annotations = self.path("amber_annotations.json");
        let images = BTreeMap::from([(31, "one.jpg".to_owned()), (32, "one.jpg".to_owned())]);
        score_amber(
            &self.path(answers),
            &annotations,
            &words,
            &NounSource::Stored,
            dimensions,
            &images,
        )
    }

    pub(crate) fn pope(&self, setting: &str, answers: &str) -> diptych_eval::Result<Scored> {
        score_pope(&[PopeFiles {
            setting: setting.to_owned(),
            questions: &self.path(&format!("pope_{setting}.jsonl")),
            answers: &self.path(answers),
        }])
    }
}

pub(crate) fn lines(rows: &[Value]) -> String {
    rows.iter()
        .fold(String::new(), |text, row| text + &row.to_string() + "\n")
}

/// Compares every number, and that there are so many.
pub(crate) fn assert_metrics(scored: &Scored, expected: &Value, count: usize) {
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), count);
    for (name, value) in expected {
        match (scored.tally.value(name), value.as_f64()) {
            (Some(found), Some(value)) => assert!((found - value).abs() < 1e-9, "{name}: {found}, expected {value}"),
            (found, value) => assert_eq!(found, value, "{name}"),
        }
    }
}

pub(crate) fn message<T>(result: diptych_eval::Result<T>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}
