//! The prompts two models are compared on.

use std::collections::BTreeSet;
use std::path::Path;

use diptych_data::{DataFiles, Dataset, Layout, ReadPolicy, TiePolicy};
use diptych_shapes::{Example, SceneConfig, Split};
use serde::Deserialize;

use crate::error::{Error, Result};

/// Examples looked at for each caption wanted, before giving up on finding another different one.
const EXAMPLES_PER_PROMPT: usize = 50;

/// `n` different captions of the shapes world that occur in no training split, in the order of their examples.
///
/// # Errors
/// [`Error::Shapes`] for scenes that cannot be drawn; [`Error::TooFewCaptions`] when the scenes have fewer captions
/// than `n`.
pub fn held_out_prompts(seed: u64, n: usize, scenes: &SceneConfig) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut prompts = Vec::with_capacity(n);
    for index in 0..n.saturating_mul(EXAMPLES_PER_PROMPT) {
        if prompts.len() == n {
            break;
        }
        let caption = Example::generate(seed, index as u64, Split::HeldOut, scenes)?.caption;
        if seen.insert(caption.clone()) {
            prompts.push(caption);
        }
    }
    if prompts.len() < n {
        return Err(Error::TooFewCaptions {
            found: prompts.len(),
            wanted: n,
        });
    }
    Ok(prompts)
}

/// Prompts from a file, by the end of its name:
/// - `.jsonl`, `.ndjson`: the `prompt` of each row; other keys are for others;
/// - `.json`: a list of texts, as `HPSv2` publishes its prompts, or data of any layout of images or prompts, as SPO's;
/// - `.parquet`: data of any layout of images or prompts;
/// - anything else: one a line.
///
/// Blank lines are passed over.
///
/// # Errors
/// [`Error::Io`], also for a file that is not UTF-8; [`Error::PromptRow`] with the row; [`Error::Data`] for data that no layout
/// fits; [`Error::NoPrompts`].
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let prompts = match extension.to_str() {
        Some("jsonl" | "ndjson") => prompts_of_rows(path)?,
        Some("json") => match serde_json::from_str::<Vec<String>>(&text_of(path)?) {
            Ok(prompts) => prompts.into_iter().filter(|prompt| !prompt.trim().is_empty()).collect(),
            Err(_) => prompts_of_data(path)?,
        },
        Some("parquet") => prompts_of_data(path)?,
        _ => text_of(path)?
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    if prompts.is_empty() {
        return Err(Error::NoPrompts {
            path: path.to_path_buf(),
        });
    }
    Ok(prompts)
}

fn text_of(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        source,
    })
}

fn prompts_of_rows(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Row {
        prompt: String,
    }

    let text = text_of(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let row = serde_json::from_str::<Row>(line).map_err(|error| Error::PromptRow {
                path: path.to_path_buf(),
                row: index + 1,
                reason: error.to_string(),
            })?;
            Ok(row.prompt)
        })
        .collect()
}

/// The different prompts, those of ties too: published pairs have many of one prompt, and nothing but the prompts is wanted.
fn prompts_of_data(path: &Path) -> Result<Vec<String>> {
    let files = DataFiles::find(&[path.to_path_buf()], Layout::Auto)?;
    let policy = ReadPolicy {
        ties: TiePolicy::Keep,
        ..ReadPolicy::default()
    };
    let (dataset, report) = Dataset::read_with(&files, policy)?;
    if !report.is_complete() {
        tracing::warn!("{}: {report}", path.display());
    }
    let mut seen = BTreeSet::new();
    let different = dataset.prompts().into_iter().filter(|prompt| seen.insert(*prompt));
    Ok(different.map(str::to_owned).collect())
}

/// The first `num` prompts of a file, or all of them. A file with fewer is not what was meant.
///
/// # Errors
/// As [`read_prompts`]; [`Error::TooFewPrompts`].
pub fn read_first_prompts(path: &Path, num: Option<usize>) -> Result<Vec<String>> {
    let mut prompts = read_prompts(path)?;
    match num {
        Some(wanted) if wanted > prompts.len() => Err(Error::TooFewPrompts {
            path: path.to_path_buf(),
            found: prompts.len(),
            wanted,
        }),
        _ => {
            prompts.truncate(num.unwrap_or(usize::MAX));
            Ok(prompts)
        }
    }
}

#[cfg(test)]
mod tests {
    use diptych_shapes::Claims;

    use super::*;

    #[test]
    fn held_out_captions_are_different_held_out_and_reproducible() {
        let scenes = SceneConfig::default();
        let prompts = held_out_prompts(3, 256, &scenes).unwrap();
        assert_eq!(prompts.len(), 256);
        assert_eq!(prompts.iter().collect::<BTreeSet<_>>().len(), 256);
        for prompt in &prompts {
            assert_eq!(Split::of(&Claims::parse(prompt).unwrap()), Split::HeldOut, "{prompt}");
        }
        assert_eq!(prompts[..16], held_out_prompts(3, 16, &scenes).unwrap());
        assert_ne!(prompts[..16], held_out_prompts(4, 16, &scenes).unwrap());
        assert!(held_out_prompts(0, 0, &scenes).unwrap().is_empty());
    }

    #[test]
    fn files_of_lines_and_of_rows() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let lines = write("prompts.txt", b"a red star\n\n  two blue rings \r\n");
        assert_eq!(read_prompts(&lines).unwrap(), ["a red star", "two blue rings"]);
        let rows = write(
            "prompts.jsonl",
            b"{\"prompt\": \"a\", \"chosen_image\": \"x.png\"}\n\n{\"prompt\": \"b\"}\n",
        );
        assert_eq!(read_prompts(&rows).unwrap(), ["a", "b"]);

        assert_eq!(read_first_prompts(&lines, None).unwrap().len(), 2);
        assert_eq!(read_first_prompts(&lines, Some(1)).unwrap(), ["a red star"]);
        let message = read_first_prompts(&lines, Some(3)).unwrap_err().to_string();
        assert!(
            message.contains("prompts.txt: found 2 prompts, 3 were asked for"),
            "{message}"
        );

        let list = write("prompts.json", b"[\"a red star, large\", \"two blue rings\"]");
        assert_eq!(read_prompts(&list).unwrap(), ["a red star, large", "two blue rings"]);
        let data = write(
            "4k_training_prompts.json",
            b"[{\"caption\": \"a cat\"}, {\"caption\": \"a dog\"}]",
        );
        assert_eq!(read_prompts(&data).unwrap(), ["a cat", "a dog"]);
        let other = write("other.json", b"[{\"text_of_it\": \"a cat\"}]");
        let message = read_prompts(&other).unwrap_err().to_string();
        assert!(message.contains("other.json"), "{message}");

        let bad = write("bad.jsonl", b"{\"prompt\": \"a\"}\n\n{\"prompt\": 3}\n");
        let message = read_prompts(&bad).unwrap_err().to_string();
        assert!(message.contains("bad.jsonl, row 3: invalid type: integer"), "{message}");
        let empty = write("empty.txt", b"\n  \n");
        assert!(matches!(read_prompts(&empty), Err(Error::NoPrompts { .. })));
        let binary = write("binary.txt", b"\xff\xfe");
        assert!(read_prompts(&binary).unwrap_err().to_string().contains("UTF-8"));
        assert!(matches!(
            read_prompts(&folder.path().join("none.txt")),
            Err(Error::Io { .. })
        ));
    }
}
