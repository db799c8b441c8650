//! Links between documents lead somewhere.

use regex::Regex;

use crate::markdown::numbered;
use crate::repo::Repo;
use crate::tidy::Violation;

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a valid pattern");
    let mut found = Vec::new();
    for (path, text) in repo.texts("", ".md") {
        for (number, line) in numbered(text) {
            for target in link.captures_iter(line) {
                let target = target[1].split('#').next().unwrap_or_default().to_owned();
                let is_local = !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
                if is_local && !repo.contains(&resolved(path, &target)) {
                    found.push(Violation::error(
                        path,
                        number,
                        format!("the link to `{target}` leads nowhere"),
                    ));
                }
            }
        }
    }
    found
}

/// The path from the root that a link in a document means.
fn resolved(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_links_fail() {
        let target = ("docs/b.md", "");
        let good = "[b](b.md#part) [c](../docs/) [d](https://example.org/x) [e](#here)";
        assert!(check(&Repo::of(&[("docs/a.md", good), target])).is_empty());
        assert_eq!(check(&Repo::of(&[("docs/a.md", "[b](docs/b.md)"), target])).len(), 1);
    }
}
