//! A file is named after what is in it; a drawer for everything is not a name.

use crate::repo::Repo;
use crate::tidy::Violation;

const DRAWERS: &[&str] = &["base", "common", "helper", "helpers", "misc", "util", "utils"];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in &repo.files {
        let is_source = file.path.ends_with(".rs") || file.path.ends_with(".py");
        for part in file.path.split('/').filter(|_| is_source) {
            let stem = part.split('.').next().unwrap_or(part);
            if DRAWERS.contains(&stem) {
                let message = format!("`{stem}` says nothing; name the thing that is in it");
                found.push(Violation::error(&*file.path, None, message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawers_fail() {
        for path in [
            "crates/a/src/utils.rs",
            "crates/a/src/common/x.rs",
            "tests/golden/helpers.py",
        ] {
            assert_eq!(check(&Repo::of(&[(path, "")])).len(), 1, "{path}");
        }
        assert!(check(&Repo::of(&[("crates/a/src/base64_image.rs", "")])).is_empty());
    }
}
