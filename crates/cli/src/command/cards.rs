//! Cards: what is known of public datasets and models, and the section of a recipe that reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych_train::{DataConfig, ModelConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `datasets/*.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatasetCard {
    pub(crate) name: String,
    summary: String,
    /// Where it lies: an address, or a directory of this repository.
    source: String,
    paper: Option<String>,
    license: String,
    /// What its records are.
    records: String,
    /// How it comes to the paths of `data`.
    download: Option<String>,
    size: String,
    /// Rows of each split.
    splits: BTreeMap<String, u64>,
    columns: Vec<String>,
    /// How rows without a preference look.
    ties: String,
    defects: Vec<String>,
    /// The section of a recipe.
    pub(crate) data: DataConfig,
}

/// `models/*.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelCard {
    pub(crate) name: String,
    summary: String,
    source: String,
    license: String,
    /// Whether its license must be accepted before it can be downloaded.
    gated: bool,
    /// Of the pipeline, or the architecture.
    class: String,
    download: Option<String>,
    /// Side of the images that it was made for, in pixels.
    resolution: Option<u32>,
    /// Layers that adapters are usually put on.
    adapter_targets: Vec<String>,
    notes: Vec<String>,
    /// The section of a recipe.
    pub(crate) model: ModelConfig,
}

/// What a listing shows of a card.
pub(crate) trait Card: DeserializeOwned {
    /// One line.
    fn row(&self, word: &str) -> [String; 4];

    /// Everything.
    fn text(&self) -> String;
}

impl Card for DatasetCard {
    fn row(&self, word: &str) -> [String; 4] {
        [
            word.to_owned(),
            self.data.layout.to_string(),
            self.records.clone(),
            self.summary.clone(),
        ]
    }

    fn text(&self) -> String {
        let splits: Vec<String> = self.splits.iter().map(|(name, num)| format!("{name} {num}")).collect();
        let mut text = lines(&[
            (&self.name, &self.summary),
            ("source", &self.source),
            ("paper", self.paper.as_deref().unwrap_or_default()),
            ("license", &self.license),
            ("records", &self.records),
            ("size", &self.size),
            ("splits", &splits.join(", ")),
            ("columns", &self.columns.join(", ")),
            ("ties", &self.ties),
            ("get it", self.download.as_deref().unwrap_or_default()),
        ]);
        for defect in &self.defects {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  note       {defect}");
        }
        text
    }
}

impl Card for ModelCard {
    fn row(&self, word: &str) -> [String; 4] {
        let resolution = self.resolution.map(|side| format!("{side} pixels"));
        [
            word.to_owned(),
            self.class.clone(),
            resolution.unwrap_or_default(),
            self.summary.clone(),
        ]
    }

    fn text(&self) -> String {
        let condition = if self.gated {
            "; must be accepted at the source"
        } else {
            ""
        };
        let license = format!("{}{condition}", self.license);
        let mut text = lines(&[
            (&self.name, &self.summary),
            ("source", &self.source),
            ("license", &license),
            ("class", &self.class),
            ("adapters", &self.adapter_targets.join(", ")),
            ("get it", self.download.as_deref().unwrap_or_default()),
            ("path", &self.model.path.display().to_string()),
        ]);
        for note in &self.notes {
            let _ = writeln!(text, "  note       {note}");
        }
        text
    }
}

/// The first pair as a heading, the others that say something below it.
fn lines(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (number, (word, value)) in pairs.iter().enumerate() {
        let _ = match (number, value.is_empty()) {
            (0, _) => writeln!(text, "{word}: {value}"),
            (_, true) => Ok(()),
            (_, false) => writeln!(text, "  {word:10} {value}"),
        };
    }
    text
}

/// The cards of a directory with the words that they are called by, in the order of these; and the path of each.
pub(crate) fn read<C: Card>(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf, C)>> {
    let mut cards = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let card = toml::from_str(&text).with_context(|| format!("{} is no card", path.display()))?;
        let word = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        cards.push((word, path, card));
    }
    cards.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(cards)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use diptych_data::{DataFiles, Layout};

    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// A card with a key, a policy or a layout that there is none of does not parse.
    #[test]
    fn every_dataset_has_a_layout_and_those_of_the_repository_are_what_they_say() {
        let cards = read::<DatasetCard>(&root().join("datasets")).unwrap();
        assert_eq!(cards.len(), 18);
        let mut num_here = 0;
        for (word, _, card) in &cards {
            assert_ne!(card.data.layout, Layout::Auto, "{word}");
            assert!(
                card.splits.values().all(|num| *num > 0) && !card.columns.is_empty(),
                "{word}"
            );
            assert!(card.text().contains(&card.license), "{word}");
            if card.source.starts_with("datasets/") {
                let paths: Vec<PathBuf> = card.data.path.as_slice().iter().map(|path| root().join(path)).collect();
                let files = DataFiles::find(&paths, card.data.layout).unwrap();
                assert_eq!(files.records().to_string(), card.records, "{word}");
                let text = std::fs::read_to_string(&files.files()[0]).unwrap();
                assert_eq!(text.lines().count() as u64, card.splits["train"], "{word}");
                let row: BTreeMap<String, serde_json::Value> =
                    serde_json::from_str(text.lines().next().unwrap()).unwrap();
                let keys: BTreeSet<&String> = row.keys().collect();
                assert_eq!(keys, card.columns.iter().collect(), "{word}");
                num_here += 1;
            } else {
                assert!(card.source.starts_with("https://") && card.download.is_some(), "{word}");
            }
        }
        assert_eq!(num_here, 3);
    }

    #[test]
    fn every_model_says_where_it_is_from_and_those_of_the_repository_are_what_they_say() {
        let cards = read::<ModelCard>(&root().join("models")).unwrap();
        assert_eq!(cards.len(), 12);
        let mut num_here = 0;
        for (word, _, card) in &cards {
            assert!(
                !card.adapter_targets.is_empty() && card.text().contains(&card.name),
                "{word}"
            );
            if !card.source.starts_with("models/") {
                assert!(card.source.starts_with("https://huggingface.co/"), "{word}");
                let of_card = Path::new("models").join(word);
                assert_eq!(card.model.path, of_card, "{word}");
                continue;
            }
            let directory = root().join(&card.model.path);
            let file = ["model_index.json", "config.json"].map(|name| directory.join(name));
            let file = file.iter().find(|path| path.is_file()).unwrap();
            let said = std::fs::read_to_string(file).unwrap();
            assert!(said.contains(&format!("\"{}\"", card.class)), "{word}");
            num_here += 1;
        }
        assert_eq!(num_here, 3);
    }
}
