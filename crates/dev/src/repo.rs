//! The files of this repository: tracked ones, and new ones that git does not ignore.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// A file, by its path from the root with `/` between the parts.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) num_bytes: u64,
    /// The content, unless it is binary or larger than any source file.
    pub(crate) text: Option<String>,
}

/// The repository as it is on disk when a command starts.
#[derive(Debug, Default)]
pub(crate) struct Repo {
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<File>,
}

/// Files above this size are weighed but not read.
const MAX_TEXT_BYTES: u64 = 4 << 20;

impl Repo {
    /// Reads the repository that holds this crate.
    pub(crate) fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .canonicalize()
            .context("the directory that this program was built in is gone; build it again with `cargo dev`")?;
        let mut paths = match listed_by_git(&root) {
            Some(paths) => paths,
            None => walked(&root)?,
        };
        paths.sort();
        paths.dedup();
        let mut files = Vec::new();
        for path in paths {
            // A path that git lists but that is gone is a deletion not yet committed.
            if let Ok(metadata) = fs::metadata(root.join(&path))
                && metadata.is_file()
            {
                let num_bytes = metadata.len();
                let text = (num_bytes <= MAX_TEXT_BYTES)
                    .then(|| fs::read_to_string(root.join(&path)).ok())
                    .flatten();
                files.push(File { path, num_bytes, text });
            }
        }
        Ok(Self { root, files })
    }

    /// The content of one text file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }

    /// Whether a file or a directory of this path exists.
    pub(crate) fn contains(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.files.iter().any(|file| {
            file.path
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// Text files below a directory (`""`: all) with this ending, as `(path, content)`.
    pub(crate) fn texts<'a>(&'a self, under: &'a str, ending: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |file| file.path.starts_with(under) && file.path.ends_with(ending))
            .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    /// Names of the directories in `crates/`, which are the crates.
    pub(crate) fn crates(&self) -> Vec<&str> {
        self.files
            .iter()
            .filter_map(|file| file.path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml"))
            .filter(|name| !name.contains('/'))
            .collect()
    }

    /// A repository of these text files, for the tests of the rules.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| File {
                path: (*path).to_owned(),
                num_bytes: text.len() as u64,
                text: Some((*text).to_owned()),
            })
            .collect();
        Self {
            root: PathBuf::new(),
            files,
        }
    }
}

/// Tracked and not ignored paths, or nothing where this is not a git checkout.
fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        // A container's checkout may belong to another user; reading the list is harmless.
        .args([
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .ok()
        .filter(|output| output.status.success() && !output.stdout.is_empty())?;
    let listing = String::from_utf8(output.stdout).ok()?;
    Some(listing.split_terminator('\0').map(str::to_owned).collect())
}

/// Every path of an unpacked archive, without what building and running leave there.
fn walked(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = format!("{directory}{}", entry.file_name().to_string_lossy());
            if !entry.file_type()?.is_dir() {
                paths.push(path);
            } else if !matches!(path.as_str(), ".git" | "target" | "runs") {
                directories.push(path + "/");
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_this_repository() {
        let repo = Repo::open().unwrap();
        assert!(repo.text("Cargo.toml").unwrap().contains("[workspace]"));
        assert!(repo.crates().contains(&"dev"));
        assert!(repo.contains("crates/dev/src"));
        assert!(!repo.contains("crates/dev/sr"));
        assert!(!repo.contains("target"));
    }

    #[test]
    fn walking_finds_what_git_lists() {
        let root = Repo::open().unwrap().root;
        let walked = walked(&root).unwrap();
        assert!(walked.contains(&"crates/dev/src/repo.rs".to_owned()));
        assert!(
            !walked
                .iter()
                .any(|path| path.starts_with("target/") || path.starts_with(".git/"))
        );
    }
}
