//! The rules of the house that no compiler knows. One file a rule; each has a test that shows it failing.

mod budget;
mod documents;
mod leftovers;
mod links;
mod names;
mod objectives;
mod recipes;
mod sizes;
mod words;

use std::fmt;

use crate::architecture;
use crate::repo::Repo;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Warning,
    Error,
}

/// One place where a rule does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    severity: Severity,
    path: String,
    line: Option<usize>,
    message: String,
}

impl Violation {
    /// A finding that fails the check.
    pub(crate) fn error(path: impl Into<String>, line: impl Into<Option<usize>>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            path: path.into(),
            line: line.into(),
            message: message.into(),
        }
    }

    /// A finding that is only shown.
    pub(crate) fn warning(path: impl Into<String>, line: impl Into<Option<usize>>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(path, line, message)
        }
    }

    /// Whether this fails the check.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}", self.path)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A rule, by the name that `ARCHITECTURE.md` may refer to as `tidy: NAME`.
type Rule = (&'static str, fn(&Repo) -> Vec<Violation>);

/// Every rule.
const RULES: &[Rule] = &[
    ("sizes", sizes::check),
    ("names", names::check),
    ("words", words::check),
    ("objectives", objectives::check),
    ("recipes", recipes::check),
    ("leftovers", leftovers::check),
    ("budget", budget::check),
    ("documents", documents::check),
    ("links", links::check),
    ("architecture", architecture::check),
];

/// Whether there is a rule of this name.
pub(crate) fn has_rule(name: &str) -> bool {
    RULES.iter().any(|(rule, _)| *rule == name)
}

/// Everything the rules find, each message ending with its rule's name.
pub(crate) fn violations(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, check) in RULES {
        found.extend(check(repo).into_iter().map(|violation| Violation {
            message: format!("{} [{name}]", violation.message),
            ..violation
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_like_a_compilers() {
        let error = Violation::error("a.rs", 3, "too long");
        assert_eq!(error.to_string(), "error: a.rs:3: too long");
        let warning = Violation::warning("b.rs", None, "long");
        assert_eq!(warning.to_string(), "warning: b.rs: long");
        assert!(error.is_error() && !warning.is_error());
    }

    #[test]
    fn rules_have_unique_names() {
        assert!(has_rule("sizes") && !has_rule("size"));
        for (index, (name, _)) in RULES.iter().enumerate() {
            assert!(RULES[..index].iter().all(|(other, _)| other != name));
        }
    }
}
