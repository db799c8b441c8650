//! What a clone costs, and what the root shows.

use crate::repo::Repo;
use crate::tidy::Violation;

const MIB: u64 = 1 << 20;
const ROOT_ENTRIES: usize = 18;
const FILE_BYTES: u64 = 2 * MIB;
/// Directories of large files, with what each may weigh in all.
const DIRECTORIES: &[(&str, u64)] = &[("models/", 16 * MIB), ("datasets/", 16 * MIB)];
/// Where a single file may be larger than [`FILE_BYTES`].
const LARGE_FILES: &[&str] = &["models/", "datasets/"];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut root: Vec<&str> = repo
        .files
        .iter()
        .filter_map(|file| file.path.split('/').next())
        .collect();
    root.retain(|entry| !entry.starts_with('.'));
    root.dedup();
    if root.len() > ROOT_ENTRIES {
        let message = format!(
            "the root has {} entries, at most {ROOT_ENTRIES}: {}",
            root.len(),
            root.join(" ")
        );
        found.push(Violation::error(".", None, message));
    }
    for file in &repo.files {
        let may_be_large = LARGE_FILES.iter().any(|under| file.path.starts_with(under));
        if file.num_bytes > FILE_BYTES && !may_be_large {
            let message = format!(
                "{:.1} MiB; at most 2 MiB outside models/ and datasets/",
                in_mib(file.num_bytes)
            );
            found.push(Violation::error(&*file.path, None, message));
        }
    }
    for (directory, limit) in DIRECTORIES {
        let num_bytes = repo
            .files
            .iter()
            .filter(|file| file.path.starts_with(directory))
            .map(|file| file.num_bytes)
            .sum::<u64>();
        if num_bytes > *limit {
            let message = format!("{:.1} MiB in all, at most {}", in_mib(num_bytes), limit / MIB);
            found.push(Violation::error(*directory, None, message));
        }
    }
    found
}

fn in_mib(num_bytes: u64) -> f64 {
    num_bytes as f64 / MIB as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::File;

    fn num_found(files: &[(&str, u64)]) -> usize {
        let files = files.iter().map(|(path, num_bytes)| File {
            path: (*path).to_owned(),
            num_bytes: *num_bytes,
            text: None,
        });
        let repo = Repo {
            files: files.collect(),
            ..Repo::default()
        };
        check(&repo).len()
    }

    #[test]
    fn large_files_fail() {
        assert_eq!(num_found(&[("crates/a/b.bin", 2 * MIB)]), 0);
        assert_eq!(num_found(&[("crates/a/b.bin", 2 * MIB + 1)]), 1);
        assert_eq!(num_found(&[("models/b.bin", 8 * MIB)]), 0);
        assert_eq!(
            num_found(&[("models/b.bin", 8 * MIB), ("models/c.bin", 8 * MIB + 1)]),
            1
        );
    }

    #[test]
    fn a_full_root_fails() {
        let names: Vec<String> = (0..19).map(|index| format!("{index:02}.md")).collect();
        let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        assert_eq!(num_found(&files[..18]), 0);
        assert_eq!(num_found(&files), 1);
    }
}
