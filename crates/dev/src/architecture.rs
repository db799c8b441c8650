//! `ARCHITECTURE.md` is checked against the tree: it names every crate and no ghost, every path in it exists, and every
//! invariant names the test or the rule that keeps it.

use regex::Regex;

use crate::markdown::{code_spans, numbered, rows, section};
use crate::repo::Repo;
use crate::tidy::{self, Violation};

/// The document.
pub(crate) const DOCUMENT: &str = "ARCHITECTURE.md";

/// Parts of `cargo dev` that an invariant may be kept by.
const COMMANDS: &[&str] = &[
    "cargo dev arrows",
    "cargo dev check",
    "cargo dev generate --check",
    "cargo dev golden --check",
    "cargo dev tidy",
];

/// A row of the table of crates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrateRow<'a> {
    pub(crate) line: usize,
    /// Directory in `crates/`.
    pub(crate) name: &'a str,
    /// Crates it depends on directly, by directory.
    pub(crate) depends_on: Vec<&'a str>,
    /// Beginnings of package names that must not be anywhere in its tree.
    pub(crate) never: Vec<&'a str>,
}

/// The table of crates: name, what it holds, depends on, never in its tree.
pub(crate) fn crate_rows(document: &str) -> Vec<CrateRow<'_>> {
    rows(section(document, "## Crates"))
        .into_iter()
        .filter_map(|(line, cells)| {
            let [name, _, depends_on, never] = cells[..] else {
                return None;
            };
            Some(CrateRow {
                line,
                name: code_spans(name).first().copied()?,
                depends_on: code_spans(depends_on),
                never: code_spans(never),
            })
        })
        .collect()
}

/// Ghosts and gaps.
pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let Some(document) = repo.text(DOCUMENT) else {
        return vec![Violation::error(DOCUMENT, None, "missing")];
    };
    let mut found = crates(repo, document);
    found.extend(paths(repo, document));
    found.extend(invariants(repo, document));
    found
}

fn crates(repo: &Repo, document: &str) -> Vec<Violation> {
    let rows = crate_rows(document);
    let crates = repo.crates();
    let mut found = Vec::new();
    for name in &crates {
        if !rows.iter().any(|row| row.name == *name) {
            found.push(Violation::error(
                DOCUMENT,
                None,
                format!("crates/{name} is not in the table of crates"),
            ));
        }
    }
    for row in &rows {
        for name in row.depends_on.iter().chain([&row.name]) {
            if !crates.contains(name) {
                found.push(Violation::error(
                    DOCUMENT,
                    row.line,
                    format!("there is no crate `{name}`"),
                ));
            }
        }
    }
    found
}

fn paths(repo: &Repo, document: &str) -> Vec<Violation> {
    let path = Regex::new(r"^(crates|tests|examples|models|datasets|\.ci|\.cargo)/[\w./-]*$").expect("a valid pattern");
    numbered(document)
        .flat_map(|(number, line)| code_spans(line).into_iter().map(move |span| (number, span)))
        .filter(|(_, span)| path.is_match(span) && !repo.contains(span))
        .map(|(number, span)| Violation::error(DOCUMENT, number, format!("there is no `{span}`")))
        .collect()
}

/// The table of invariants: number, statement, kept by.
fn invariants(repo: &Repo, document: &str) -> Vec<Violation> {
    let rows = rows(section(document, "## Invariants"));
    let mut found = Vec::new();
    if rows.is_empty() {
        found.push(Violation::error(DOCUMENT, None, "no table under `## Invariants`"));
    }
    for (index, (line, cells)) in rows.into_iter().enumerate() {
        let [number, _, kept_by] = cells[..] else {
            found.push(Violation::error(
                DOCUMENT,
                line,
                "an invariant is a number, a statement and what keeps it",
            ));
            continue;
        };
        if number != (index + 1).to_string() {
            found.push(Violation::error(
                DOCUMENT,
                line,
                format!("invariant {number} should be {}", index + 1),
            ));
        }
        let keepers = code_spans(kept_by);
        if keepers.is_empty() {
            found.push(Violation::error(
                DOCUMENT,
                line,
                format!("nothing keeps invariant {number}"),
            ));
        }
        for keeper in keepers {
            if let Err(reason) = exists(repo, keeper) {
                found.push(Violation::error(
                    DOCUMENT,
                    line,
                    format!("invariant {number}: `{keeper}`: {reason}"),
                ));
            }
        }
    }
    found
}

/// Whether what keeps an invariant is there: `cargo dev ..`, `tidy: RULE`, `PATH::TEST` or `PATH: TEXT`.
fn exists(repo: &Repo, keeper: &str) -> Result<(), String> {
    if COMMANDS.contains(&keeper) {
        return Ok(());
    }
    if let Some(rule) = keeper.strip_prefix("tidy: ") {
        return if tidy::has_rule(rule) {
            Ok(())
        } else {
            Err("there is no such rule".into())
        };
    }
    let (path, is_there, part) = match (keeper.split_once("::"), keeper.split_once(": ")) {
        (Some((path, function)), _) => (path, has_test as fn(&str, &str) -> bool, function),
        (None, Some((path, text))) => (path, has_text as fn(&str, &str) -> bool, text),
        (None, None) => return Err("neither a command, a `tidy: RULE`, a `PATH::TEST` nor a `PATH: TEXT`".into()),
    };
    let text = repo.text(path).ok_or_else(|| format!("there is no {path}"))?;
    if is_there(text, part) {
        Ok(())
    } else {
        Err(format!("{path} has no such test or text"))
    }
}

fn has_text(text: &str, part: &str) -> bool {
    text.contains(part)
}

/// Whether a function of this name is a test that runs.
fn has_test(text: &str, name: &str) -> bool {
    let Some(position) = text.find(&format!("fn {name}(")) else {
        return false;
    };
    let attributes: Vec<&str> = text[..position]
        .lines()
        .rev()
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| line.trim().starts_with(['#', '/']))
        .map(str::trim)
        .collect();
    attributes.contains(&"#[test]") && !attributes.iter().any(|attribute| attribute.starts_with("#[ignore"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "## Crates\n\n| crate | holds | depends on | never in its tree |\n|---|---|---|---|\n\
        | `a` | x | | `candle` |\n| `b` | x | `a` | |\n\n`crates/a/src/x.rs`\n\n## Invariants\n\n| | what | kept by |\n|---|---|---|\n\
        | 1 | x | `crates/a/src/x.rs::holds`, `tidy: sizes` |\n| 2 | y | `cargo dev arrows`, `Cargo.toml: unsafe_code` |\n";

    fn found(document: &str) -> Vec<String> {
        let repo = Repo::of(&[
            (DOCUMENT, document),
            ("Cargo.toml", "unsafe_code = \"deny\""),
            ("crates/a/Cargo.toml", ""),
            (
                "crates/a/src/x.rs",
                "#[test]\n/// Why.\nfn holds() {}\n\nfn not_a_test() {}\n\n#[test]\n#[ignore = \"slow\"]\nfn not_run() {}",
            ),
            ("crates/b/Cargo.toml", ""),
        ]);
        check(&repo).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_the_table_of_crates() {
        let rows = crate_rows(GOOD);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].name, &rows[0].never[..]), ("a", &["candle"][..]));
        assert_eq!((rows[1].name, &rows[1].depends_on[..]), ("b", &["a"][..]));
    }

    #[test]
    fn a_true_document_passes() {
        assert_eq!(found(GOOD), [""; 0]);
    }

    #[test]
    fn gaps_and_ghosts_fail() {
        for (from, to, message) in [
            ("| `b` | x | `a` | |\n", "", "crates/b is not in the table"),
            ("| `b` | x | `a` |", "| `b` | x | `c` |", "no crate `c`"),
            (
                "\n`crates/a/src/x.rs`\n",
                "\n`crates/a/src/y.rs`\n",
                "no `crates/a/src/y.rs`",
            ),
            ("::holds", "::held", "no such test"),
            ("::holds", "::not_a_test", "no such test"),
            ("::holds", "::not_run", "no such test"),
            ("tidy: sizes", "tidy: size", "no such rule"),
            ("Cargo.toml: unsafe_code", "Cargo.toml: safer_code", "no such test"),
            ("| 2 | y", "| 3 | y", "should be 2"),
            (
                "`crates/a/src/x.rs::holds`, `tidy: sizes`",
                "hope",
                "nothing keeps invariant 1",
            ),
            ("`cargo dev arrows`", "`hope`", "neither a command"),
        ] {
            let found = found(&GOOD.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(message), "{message}: {found:?}");
        }
        assert!(check(&Repo::of(&[]))[0].is_error());
    }
}
