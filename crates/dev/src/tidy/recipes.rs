//! A recipe says what it reproduces, on what, how long, with which command, and what came out.

use regex::Regex;

use crate::repo::Repo;
use crate::tidy::Violation;

const LABELS: &[&str] = &["Reproduces:", "Hardware:", "Run:", "Result:"];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let duration = Regex::new(r"\d\s*(s|min|minutes|h|hours)\b").expect("a valid pattern");
    let number = Regex::new(r"(?s)Result:.*(\d|not run yet)").expect("a valid pattern");
    let mut found = Vec::new();
    for (path, text) in repo.texts("examples/recipes/", ".toml") {
        // Scene settings and the like, which recipes refer to, lie beside them.
        if !text.lines().any(|line| line.starts_with("modality")) {
            continue;
        }
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let header = header.join("\n");
        let mut missing = |what: &str| {
            found.push(Violation::error(
                path,
                1,
                format!("the comment at the top has no {what}"),
            ));
        };
        for label in LABELS.iter().filter(|label| !header.contains(**label)) {
            missing(&format!("`{label}`"));
        }
        if !header.contains(path) {
            missing("command that names this file");
        }
        if !duration.is_match(&header) {
            missing("time that it takes, as in `5 min`");
        }
        if header.contains("Result:") && !number.is_match(&header) {
            missing("number in its result, nor `not run yet`");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# Reproduces: x. Hardware: 2 cores, 4 min.\n# Run: diptych train examples/recipes/a.toml\n\
        # Result: +0.12\nmodality = \"x\"\n";

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(&Repo::of(&[(path, text)]))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_header_is_complete() {
        let path = "examples/recipes/a.toml";
        assert_eq!(messages(path, HEADER), [""; 0]);
        for (from, to, what) in [
            ("Reproduces:", "", "`Reproduces:`"),
            ("Hardware:", "", "`Hardware:`"),
            ("Run:", "", "`Run:`"),
            ("Result:", "", "`Result:`"),
            ("a.toml", "b.toml", "command"),
            ("4 min", "TIME", "time"),
            ("+0.12", "RESULT", "number"),
        ] {
            let found = messages(path, &HEADER.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
        }
        assert_eq!(messages(path, &format!("seed = 0\n{HEADER}")).len(), LABELS.len() + 2);
    }

    #[test]
    fn what_recipes_refer_to_needs_no_header() {
        assert_eq!(messages("examples/recipes/scenes.toml", "max_objects = 4\n"), [""; 0]);
    }
}
