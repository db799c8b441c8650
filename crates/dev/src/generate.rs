//! What is written by a program: `PAPERS.md`, and the tables between markers in `README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use regex::Regex;

use crate::objective::{self, Objective};
use crate::repo::Repo;
use crate::source::{is_test_path, module_doc};
use crate::tidy::Violation;

/// A document, and what it should contain or why that cannot be said.
type Generated = (&'static str, Result<String, String>);

/// Writes what is out of date; what cannot be written is reported.
pub(crate) fn write(repo: &Repo) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for (path, content) in documents(repo) {
        match content {
            Ok(content) if repo.text(path) != Some(content.as_str()) => {
                fs::write(repo.root.join(path), content).with_context(|| format!("cannot write {path}"))?;
            }
            Ok(_) => {}
            Err(reason) => found.push(Violation::error(path, None, reason)),
        }
    }
    Ok(found)
}

/// What is out of date.
pub(crate) fn stale(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, content) in documents(repo) {
        match content {
            Ok(content) if repo.text(path) == Some(content.as_str()) => {}
            Ok(_) => found.push(Violation::error(path, None, "out of date; run `cargo dev generate`")),
            Err(reason) => found.push(Violation::error(path, None, reason)),
        }
    }
    found
}

fn documents(repo: &Repo) -> Vec<Generated> {
    let readme = match repo.text("README.md") {
        Some(text) => between_markers(text, "objectives", &objective_table(&objective::all(repo))),
        None => Err("missing".into()),
    };
    vec![("PAPERS.md", Ok(papers(repo))), ("README.md", readme)]
}

/// The text with what stands between `<!-- generated: NAME -->` and `<!-- end generated -->` replaced.
fn between_markers(text: &str, name: &str, content: &str) -> Result<String, String> {
    let start = format!("<!-- generated: {name} -->\n");
    let end = "<!-- end generated -->";
    let (before, rest) = text
        .split_once(&start)
        .ok_or_else(|| format!("no line `{}`", start.trim()))?;
    let (_, after) = rest
        .split_once(end)
        .ok_or_else(|| format!("no line `{end}` after `{}`", start.trim()))?;
    Ok(format!("{before}{start}\n{content}\n{end}{after}"))
}

fn objective_table(objectives: &[Objective]) -> String {
    let mut table =
        "| `[objective.NAME]` | objective | compares | needs | papers |\n|---|---|---|---|---|\n".to_owned();
    for objective in objectives {
        let papers: Vec<String> = arxiv_ids(&objective.paper).iter().map(|id| arxiv_link(id)).collect();
        writeln!(
            table,
            "| [`{}`]({}) | {} | {} | {} | {} |",
            objective.name,
            objective.path,
            objective.title,
            objective.kind,
            objective.needs.join(", "),
            papers.join(", "),
        )
        .expect("writing to a string");
    }
    table
}

fn papers(repo: &Repo) -> String {
    let mut text =
        "<!-- Written by `cargo dev generate` from the documentation of the files named here. -->\n\n# Papers\n\n\
        What is implemented, after which paper and equation, where, and what differs.\n\n## Objectives\n"
            .to_owned();
    for objective in objective::all(repo) {
        let Objective {
            name,
            title,
            paper,
            formula,
            convention,
            path,
            ..
        } = &objective;
        write!(
            text,
            "\n### {title}: `{name}`\n\n{paper}\n\n{formula}\n\n{convention}\n\n"
        )
        .expect("writing to a string");
        text.push_str(&sources(repo, path, &format!("[objective.{name}]")));
    }
    text.push_str("\n## Methods\n");
    for (name, path, source) in methods(repo) {
        let description = module_doc(source).join("\n");
        // What follows is about the code.
        let description = description.split("Shape letters").next().unwrap_or_default().trim_end();
        write!(text, "\n### `{name}`\n\n{description}\n\n").expect("writing to a string");
        text.push_str(&sources(repo, path, &format!("[method.{name}]")));
    }
    text.push_str("\n## Every paper cited in the code\n\n| arXiv | files |\n|---|---|\n");
    for (id, paths) in citations(repo) {
        let files: Vec<String> = paths.iter().map(|path| format!("[{path}]({path})")).collect();
        writeln!(text, "| {} | {} |", arxiv_link(&id), files.join(", ")).expect("writing to a string");
    }
    text
}

/// The file, and the recipes that have this table.
fn sources(repo: &Repo, path: &str, table: &str) -> String {
    let recipes: Vec<String> = repo
        .texts("examples/recipes/", ".toml")
        .filter(|(_, text)| text.lines().any(|line| line.starts_with(table)))
        .map(|(recipe, _)| format!("[{recipe}]({recipe})"))
        .collect();
    if recipes.is_empty() {
        format!("File: [{path}]({path}).\n")
    } else {
        format!("File: [{path}]({path}). Recipes: {}.\n", recipes.join(", "))
    }
}

/// Name, path and source of the methods, and of the terms that may stand beside one: files in a modality's `src/method/` that its
/// `config.rs` describes under their name, or whose name is an optional table of a method of any modality.
fn methods(repo: &Repo) -> Vec<(String, &str, &str)> {
    let tables: BTreeMap<&str, String> = repo
        .texts("crates/", ".rs")
        .filter(|(path, _)| path.ends_with("/src/method/config.rs") || path.ends_with("/src/method.rs"))
        .flat_map(|(_, config)| tables(config))
        .collect();
    repo.texts("crates/", ".rs")
        .filter_map(|(path, source)| {
            let (modality, file) = path.split_once("/src/method/")?;
            // Methods that share a folder are known by the file alone.
            let name = file.strip_suffix(".rs")?.rsplit('/').next()?;
            let config = repo.text(&format!("{modality}/src/method/config.rs"))?;
            if config.contains(&format!("\"{name}\",")) {
                return Some((name.to_owned(), path, source));
            }
            Some((format!("{}.{name}", tables.get(name)?), path, source))
        })
        .collect()
}

/// The optional tables of the methods that a configuration describes, each with the name of its method.
fn tables(config: &str) -> Vec<(&str, String)> {
    let part = Regex::new(r"pub struct (\w+)Config \{|pub (\w+): Option<").expect("a valid pattern");
    let capital = Regex::new(r"([a-z])([A-Z])").expect("a valid pattern");
    let mut method = String::new();
    let mut tables = Vec::new();
    for found in part.captures_iter(config) {
        if let Some(name) = found.get(1) {
            method = capital.replace_all(name.as_str(), "${1}_$2").to_lowercase();
        } else if let Some(table) = found.get(2).filter(|_| config.contains(&format!("\"{method}\","))) {
            tables.push((table.as_str(), method.clone()));
        }
    }
    tables
}

/// arXiv identifiers in the sources, with the files that cite them.
fn citations(repo: &Repo) -> BTreeMap<String, BTreeSet<&str>> {
    let mut citations: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in repo.texts("crates/", ".rs") {
        if path.starts_with("crates/dev/") || is_test_path(path) {
            continue;
        }
        for id in arxiv_ids(text) {
            citations.entry(id).or_default().insert(path);
        }
    }
    citations
}

/// Identifiers after `arXiv:`, once each, in the order of the text.
fn arxiv_ids(text: &str) -> Vec<String> {
    let pattern = Regex::new(r"arXiv:\s*(\d{4}\.\d{4,5})").expect("a valid pattern");
    let mut ids: Vec<String> = Vec::new();
    for found in pattern.captures_iter(text) {
        if !ids.iter().any(|id| *id == found[1]) {
            ids.push(found[1].to_owned());
        }
    }
    ids
}

fn arxiv_link(id: &str) -> String {
    format!("[{id}](https://arxiv.org/abs/{id})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::tests::{DPO, MOD};

    fn repo(readme: &'static str) -> Repo {
        Repo::of(&[
            ("README.md", readme),
            ("crates/core/src/objective/dpo.rs", DPO),
            ("crates/core/src/objective/mod.rs", MOD),
            (
                "crates/x/src/method/offline_pairs.rs",
                "//! Pairs.\n//!\n//! Wallace, arXiv:2311.12908.\n//!\n//! Shape letters: B.\n",
            ),
            (
                "crates/x/src/method/config.rs",
                "const DESCRIPTIONS: D = [(\"offline_pairs\", \"pairs\")];",
            ),
            // Another modality's table, which a file of the first computes.
            (
                "crates/y/src/method.rs",
                "const DESCRIPTIONS: D = [(\n\"offline_pairs\",\n\"pairs\")];\n\
                 pub struct OfflinePairsConfig {\n    pub other_images: Option<OtherImagesConfig>,\n}\n\
                 pub struct OtherImagesConfig {\n    pub engine: Option<u8>,\n}\n",
            ),
            (
                "crates/x/src/method/other_images.rs",
                "//! Other images.\n//!\n//! Wang, arXiv:2406.11839.\n",
            ),
            ("crates/x/src/method/engine.rs", "//! What all methods do.\n"),
            (
                "examples/recipes/a.toml",
                "[method.offline_pairs]\n[method.offline_pairs.other_images]\n[objective.dpo]\nbeta = 1.0\n",
            ),
        ])
    }

    #[test]
    fn papers_name_file_equation_and_recipe() {
        let papers = papers(&repo(""));
        for part in [
            "### Direct: `dpo`\n\nSomebody, arXiv:2305.18290, Eq. 7.\n\n    L = h\n\nSums. Differences: none.",
            "File: [crates/core/src/objective/dpo.rs](crates/core/src/objective/dpo.rs). Recipes: [examples/recipes/a.toml]",
            "### `offline_pairs`\n\nPairs.\n\nWallace, arXiv:2311.12908.\n\nFile: ",
            "| [2311.12908](https://arxiv.org/abs/2311.12908) | [crates/x/src/method/offline_pairs.rs]",
            "### `offline_pairs.other_images`\n\nOther images.\n\nWang, arXiv:2406.11839.\n\nFile: \
             [crates/x/src/method/other_images.rs](crates/x/src/method/other_images.rs). Recipes: [examples/recipes/a.toml]",
        ] {
            assert!(papers.contains(part), "{part}\n---\n{papers}");
        }
        assert!(!papers.contains("What all methods do"), "{papers}");
    }

    #[test]
    fn a_table_is_put_between_markers_and_stays() {
        let readme = "a\n<!-- generated: objectives -->\nold\n<!-- end generated -->\nb\n";
        let table = objective_table(&objective::all(&repo("")));
        let once = between_markers(readme, "objectives", &table).unwrap();
        assert!(once.contains(
            "| [`dpo`](crates/core/src/objective/dpo.rs) | Direct | pairs | reference, judge scores | [2305.18290]"
        ));
        assert!(once.starts_with("a\n") && once.ends_with("-->\nb\n") && !once.contains("old"));
        assert_eq!(between_markers(&once, "objectives", &table).unwrap(), once);
    }

    #[test]
    fn what_is_stale_or_unmarked_fails() {
        assert_eq!(stale(&repo("no markers")).len(), 2);
        let messages: Vec<String> = stale(&repo("no markers")).iter().map(ToString::to_string).collect();
        assert!(messages[0].contains("cargo dev generate") && messages[1].contains("<!-- generated: objectives -->"));
    }

    #[test]
    fn methods_of_this_repository_are_found() {
        let repo = Repo::open().unwrap();
        let names: Vec<String> = methods(&repo).into_iter().map(|(name, _, _)| name).collect();
        let has = |name: &str| names.iter().any(|found| found == name);
        assert!(
            has("offline_pairs") && has("offline_pairs.image_preference") && !has("config") && !has("engine"),
            "{names:?}"
        );
    }
}
