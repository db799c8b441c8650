//! Rows and prompts that were seen before.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::LintRule;
use crate::text::rows::RowParts;
use crate::{CharSpan, Text};

/// First half of a SHA-256: enough to tell rows apart, small enough to keep for millions.
type Key = [u8; 16];

/// What a row and its prompt are known by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    row: Key,
    prompt: Option<Key>,
}

/// Where something was first seen.
#[derive(Debug, Clone)]
struct Seen {
    split: String,
    row: usize,
    id: String,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    rows: BTreeMap<Key, Seen>,
    prompts: BTreeMap<Key, Seen>,
}

impl Digests {
    pub(super) fn of(parts: &RowParts) -> Self {
        let mut hash = Sha256::new();
        let prompt = parts.prompt.map(|prompt| {
            let mut hash = Sha256::new();
            feed(&mut hash, prompt, &[]);
            for image in parts.images {
                hash.update(image.place());
                hash.update([0]);
            }
            key(hash)
        });
        hash.update(prompt.unwrap_or_default());
        for part in &parts.completions {
            feed(&mut hash, part.text, part.spans);
        }
        for image in parts.images.iter().chain(parts.rejected_images.unwrap_or_default()) {
            hash.update(image.place());
            hash.update([0]);
        }
        for image in parts.other_images.unwrap_or_default() {
            hash.update("other");
            hash.update(image.place());
            hash.update([0]);
        }
        if let Some(rationale) = parts.rationale {
            hash.update("rationale");
            hash.update(rationale);
        }
        Self { row: key(hash), prompt }
    }
}

impl Duplicates {
    /// What a row repeats; it is known from now on.
    pub(super) fn check(&mut self, split: &str, row: usize, id: &str, digests: &Digests) -> Vec<(LintRule, String)> {
        let here = || Seen {
            split: split.to_owned(),
            row,
            id: id.to_owned(),
        };
        let mut found = Vec::new();
        let before = self.rows.get(&digests.row).cloned();
        if let Some(first) = &before {
            let rule = if first.split == split {
                LintRule::DuplicateRow
            } else {
                LintRule::SharedRow
            };
            found.push((rule, format!("the same as {first}")));
        } else {
            self.rows.insert(digests.row, here());
        }
        if let Some(prompt) = digests.prompt {
            match self.prompts.get(&prompt) {
                // One prompt may well have several pairs, and a row that is the same was already reported.
                Some(first) if first.split != split && before.is_none() => {
                    found.push((LintRule::SharedPrompt, format!("the same prompt as {first}")));
                }
                Some(_) => {}
                None => drop(self.prompts.insert(prompt, here())),
            }
        }
        found
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record `{}` (row {} of {})", self.id, self.row, self.split)
    }
}

/// Feeds a text so that no two different ones look alike.
fn feed(hash: &mut Sha256, text: &Text, spans: &[CharSpan]) {
    let json = match text {
        Text::Plain(text) => serde_json::to_vec(text),
        Text::Messages(messages) => serde_json::to_vec(messages),
        Text::Ids(ids) => serde_json::to_vec(&("ids", ids)),
    };
    hash.update(json.expect("texts are strings, numbers and JSON values"));
    for span in spans {
        hash.update(format!("{}..{} {}", span.start, span.end, span.weight));
    }
    hash.update([0]);
}

fn key(hash: Sha256) -> Key {
    let digest = hash.finalize();
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}
