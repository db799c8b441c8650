//! A recipe says what it reproduces, on what, how long, with which command, and what came out.

use crate::repo::Repo;
use crate::tidy::Violation;

const LABELS: &[&str] = &["Reproduces:", "Hardware:", "Time:", "Run:", "Result:"];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in repo.texts("examples/recipes/", ".toml") {
        // Scene settings and the like, which recipes refer to, lie beside them.
        if !text.lines().any(|line| line.starts_with("modality")) {
            continue;
        }
        let header: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        for label in LABELS.iter().filter(|label| !header.contains(**label)) {
            found.push(Violation::error(
                path,
                1,
                format!("the comment at the top has no `{label}`"),
            ));
        }
        if !header.contains(path) {
            found.push(Violation::error(
                path,
                1,
                format!("the command at the top does not name {path}"),
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_complete() {
        let path = "examples/recipes/a.toml";
        let header = "# Reproduces: x. Hardware: y. Time: z.\n# Run: diptych train examples/recipes/a.toml\n# Result: w\nmodality = \"x\"\n";
        assert!(check(&Repo::of(&[(path, header)])).is_empty());
        for label in LABELS {
            assert_eq!(
                check(&Repo::of(&[(path, &header.replace(label, ""))])).len(),
                1,
                "{label}"
            );
        }
        let copied = ("examples/recipes/b.toml", header);
        assert_eq!(check(&Repo::of(&[copied])).len(), 1);
        assert!(check(&Repo::of(&[("examples/recipes/scenes.toml", "max_objects = 4\n")])).is_empty());
        let late = format!("seed = 0\n{header}");
        assert_eq!(check(&Repo::of(&[(path, &late)])).len(), LABELS.len() + 1);
    }
}
