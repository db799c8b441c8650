//! What a change leaves behind by accident.

use regex::Regex;

use crate::markdown::numbered;
use crate::repo::Repo;
use crate::tidy::Violation;

/// Ending of the files, pattern, and what to do instead.
const LEFTOVERS: &[(&str, &str, &str)] = &[
    ("", r"\b(TODO|FIXME|XXX)\b", "do it, or open an issue"),
    (".rs", r"\bdbg!\s*\(", "a debugging line"),
    (
        "",
        r#"(^|[\s"'`(=:\[])/(home|root|Users|tmp|work|mnt|var/folders)/"#,
        "a path of one machine",
    ),
    (
        ".rs",
        r"^\s*//[/!]\s*```.*\bignore\b",
        "examples compile: use `no_run` or make it run",
    ),
    (
        ".rs",
        r"^\s*//\s*(pub |use |fn |let |mod |#\[)[^`]*[;{\]]\s*$",
        "code in a comment",
    ),
    ("", r"^(<{7}|>{7}|={7})( |$)", "a merge conflict"),
];

/// This file, which names them.
const SELF: &str = "crates/dev/src/tidy/leftovers.rs";

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for (ending, pattern, advice) in LEFTOVERS {
        let pattern = Regex::new(pattern).expect("a valid pattern");
        for (path, text) in repo.texts("", ending) {
            // Vocabularies and golden values are data, in which any letters may stand together.
            if path == SELF
                || path == "Cargo.lock"
                || path.ends_with(".json")
                || path.ends_with(".jsonl")
                || path.ends_with(".txt")
            {
                continue;
            }
            for (number, line) in numbered(text) {
                if let Some(leftover) = pattern.find(line) {
                    let message = format!("`{}`: {advice}", leftover.as_str().trim());
                    found.push(Violation::error(path, number, message));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_fail() {
        for line in [
            "// TODO: later",
            "dbg!(x);",
            "let path = \"/home/somebody/x\";",
            "cp /tmp/a b",
            "/// ```rust,ignore",
            "    // let x = 1;",
            "<<<<<<< ours",
        ] {
            assert_eq!(check(&Repo::of(&[("crates/a/src/b.rs", line)])).len(), 1, "{line}");
        }
        for line in [
            "// Let x be 1;",
            "let s = \"a/tmp/b\";",
            "/// ```no_run",
            "// use `f(x);`",
        ] {
            assert!(check(&Repo::of(&[("crates/a/src/b.rs", line)])).is_empty(), "{line}");
        }
    }
}
