//! Which crate may know which: the table in `ARCHITECTURE.md` against `cargo tree`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::architecture::{CrateRow, DOCUMENT, crate_rows};
use crate::repo::Repo;
use crate::tidy::Violation;

/// Differences between the table and the manifests.
pub(crate) fn violations(repo: &Repo) -> Result<Vec<Violation>> {
    let rows = crate_rows(repo.text(DOCUMENT).unwrap_or_default());
    ensure!(!rows.is_empty(), "{DOCUMENT} has no table under `## Crates`");
    let mut found = Vec::new();
    for row in &rows {
        let package = package(repo, row.name)?;
        found.extend(wrong_arrows(repo, row, &tree(repo, &package, &["--depth", "1"])?)?);
        found.extend(banned(row, &tree(repo, &package, &[])?));
    }
    Ok(found)
}

/// Direct dependencies among our crates that differ from the row.
fn wrong_arrows(repo: &Repo, row: &CrateRow<'_>, direct: &[String]) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for name in repo.crates() {
        let is_there = direct[1..].contains(&package(repo, name)?);
        let is_written = row.depends_on.contains(&name);
        if is_there && !is_written {
            let message = format!("`{}` depends on `{name}`, which its row does not allow", row.name);
            found.push(Violation::error(DOCUMENT, row.line, message));
        } else if is_written && !is_there {
            let message = format!("`{}` does not depend on `{name}`; take it out of its row", row.name);
            found.push(Violation::error(DOCUMENT, row.line, message));
        }
    }
    Ok(found)
}

/// Packages anywhere in the tree that the row bans.
fn banned(row: &CrateRow<'_>, tree: &[String]) -> Vec<Violation> {
    let is_banned = |package: &&String| row.never.iter().any(|beginning| package.starts_with(beginning));
    let mut packages: Vec<&String> = tree[1..].iter().filter(is_banned).collect();
    packages.sort();
    packages.dedup();
    packages
        .into_iter()
        .map(|package| {
            Violation::error(
                DOCUMENT,
                row.line,
                format!("`{}` must not have {package} in its tree", row.name),
            )
        })
        .collect()
}

/// The package name in a crate's manifest.
fn package(repo: &Repo, name: &str) -> Result<String> {
    let path = format!("crates/{name}/Cargo.toml");
    let manifest = repo.text(&path).with_context(|| format!("there is no {path}"))?;
    let line = manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    Ok(line.with_context(|| format!("{path} has no name"))?.to_owned())
}

/// Package names of `cargo tree`, the package itself first.
fn tree(repo: &Repo, package: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--package",
            package,
        ])
        .args(arguments)
        .current_dir(&repo.root)
        .output()
        .context("cannot run cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree --package {package}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let listing = String::from_utf8(output.stdout)?;
    let names = listing.lines().filter_map(|line| line.split(' ').next());
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo() -> Repo {
        Repo::of(&[
            ("crates/a/Cargo.toml", "[package]\nname = \"diptych-a\"\n"),
            ("crates/b/Cargo.toml", "[package]\nname = \"diptych-b\"\n"),
        ])
    }

    fn row(depends_on: &'static str) -> CrateRow<'static> {
        CrateRow {
            line: 1,
            name: "b",
            depends_on: depends_on.split_whitespace().collect(),
            never: vec!["candle"],
        }
    }

    fn names(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_arrow_that_is_not_written_fails() {
        let direct = names("diptych-b diptych-a serde");
        assert!(wrong_arrows(&repo(), &row("a"), &direct).unwrap().is_empty());
        assert_eq!(wrong_arrows(&repo(), &row(""), &direct).unwrap().len(), 1);
        assert_eq!(
            wrong_arrows(&repo(), &row("a"), &names("diptych-b serde"))
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn a_banned_package_fails() {
        assert!(banned(&row(""), &names("diptych-b serde")).is_empty());
        assert_eq!(
            banned(&row(""), &names("diptych-b candle-core candle-core gemm")).len(),
            1
        );
    }

    #[test]
    fn reads_cargo_tree() {
        let repo = Repo::open().unwrap();
        let tree = tree(&repo, "diptych-dev", &["--depth", "1"]).unwrap();
        assert_eq!(tree[0], "diptych-dev");
        assert!(tree.contains(&"regex".to_owned()));
    }
}
