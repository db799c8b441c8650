//! The documents that everyone looks for are there, with the parts that are written to.

use crate::repo::Repo;
use crate::tidy::Violation;

/// Document, and a line that it must have.
const DOCUMENTS: &[(&str, &str)] = &[
    ("README.md", "cargo test --workspace"),
    ("ARCHITECTURE.md", "## Invariants"),
    ("CONTRIBUTING.md", "cargo dev check"),
    ("CHANGELOG.md", "## Unreleased"),
    ("CHANGELOG.md", "### Numerics"),
    ("LICENSE-MIT", "Permission is hereby granted"),
    ("LICENSE-APACHE", "Apache License"),
    (".ci/run", "cargo test --workspace"),
];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    DOCUMENTS
        .iter()
        .filter(|(path, part)| !repo.text(path).is_some_and(|text| text.contains(part)))
        .map(|(path, part)| Violation::error(*path, None, format!("missing, or without `{part}`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_document_fails() {
        assert_eq!(check(&Repo::of(&[])).len(), DOCUMENTS.len());
        let mut documents = DOCUMENTS.to_vec();
        for (path, part) in &mut documents {
            if *path == "CHANGELOG.md" {
                *part = "## Unreleased\n### Numerics\n";
            }
        }
        assert!(check(&Repo::of(&documents)).is_empty());
    }
}
