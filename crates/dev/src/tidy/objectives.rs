//! An objective is one file, one word, one documented unit.

use crate::objective::{self, DIRECTORY, Objective};
use crate::repo::Repo;
use crate::tidy::Violation;

/// Headings in the order of the file.
const HEADINGS: &[&str] = &[
    "//! # Paper",
    "//! # Formula",
    "//! # Convention",
    "/// # Shape",
    "/// # Errors",
    "/// # Example",
];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    let objectives = objective::all(repo);
    for objective in &objectives {
        found.extend(headings(repo, objective));
        found.extend(golden(repo, objective));
        if !objective.convention.contains("Differences") {
            let message =
                "the convention does not say how the formula differs from reference code (`Differences: ...`)";
            found.push(Violation::error(&*objective.path, None, message));
        }
        if objective.title.is_empty() {
            found.push(Violation::error(
                &*objective.path,
                None,
                "no `title: \"...\"` in its INFO",
            ));
        }
    }
    for (path, _) in repo.texts(DIRECTORY, ".rs") {
        if !path.ends_with("/mod.rs") && !objectives.iter().any(|objective| objective.path == path) {
            let message = "not named in `objectives!`; the file, the TOML key and the golden file are one word";
            found.push(Violation::error(path, None, message));
        }
    }
    found
}

fn headings(repo: &Repo, objective: &Objective) -> Option<Violation> {
    let Some(text) = repo.text(&objective.path) else {
        let message = format!("objective `{}` has no file of its name", objective.name);
        return Some(Violation::error(&*objective.path, None, message));
    };
    let mut lines = text.lines();
    // Searching on from the heading before it also checks the order.
    let missing = HEADINGS
        .iter()
        .find(|heading| !lines.any(|line| line.trim() == **heading))?;
    let message = format!(
        "heading `{missing}` is missing or out of order: {}",
        HEADINGS.join(", ")
    );
    Some(Violation::error(&*objective.path, None, message))
}

fn golden(repo: &Repo, objective: &Objective) -> Option<Violation> {
    let golden = format!("tests/golden/objectives/{}.json", objective.name);
    let message = format!("no golden file {golden}");
    (!repo.contains(&golden)).then(|| Violation::error(&*objective.path, None, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::tests::{DPO, MOD};

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        check(&Repo::of(files)).iter().map(ToString::to_string).collect()
    }

    const GOLDEN: (&str, &str) = ("tests/golden/objectives/dpo.json", "{}");
    const FILE: &str = "crates/core/src/objective/dpo.rs";
    const SET: (&str, &str) = ("crates/core/src/objective/mod.rs", MOD);

    #[test]
    fn a_complete_objective_passes() {
        assert_eq!(messages(&[SET, (FILE, DPO), GOLDEN]), [""; 0]);
    }

    #[test]
    fn a_missing_part_fails() {
        assert!(messages(&[SET, (FILE, DPO)])[0].contains("no golden file"));
        assert!(messages(&[SET, GOLDEN])[0].contains("no file of its name"));
        for heading in HEADINGS {
            let text = DPO.replacen(heading, "//!", 1);
            assert!(
                messages(&[SET, (FILE, &text), GOLDEN])[0].contains(heading),
                "{heading}"
            );
        }
        let text = DPO.replace("Differences", "Else");
        assert!(messages(&[SET, (FILE, &text), GOLDEN])[0].contains("differs"));
    }

    #[test]
    fn headings_have_an_order() {
        let text = DPO
            .replace("# Paper", "# X")
            .replace("# Formula", "# Paper")
            .replace("# X", "# Formula");
        assert_eq!(messages(&[SET, (FILE, &text), GOLDEN]).len(), 1);
    }

    #[test]
    fn a_file_outside_the_set_fails() {
        let stray = ("crates/core/src/objective/ipo.rs", DPO);
        assert!(messages(&[SET, (FILE, DPO), GOLDEN, stray])[0].contains("objectives!"));
    }
}
