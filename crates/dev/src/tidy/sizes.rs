//! Files and functions that a reader can hold in mind. Tests do not count.

use crate::repo::Repo;
use crate::source::{Keep, functions, is_test_path, line_of, mask, test_lines};
use crate::tidy::Violation;

const FILE_LINES: usize = 400;
const FILE_LINES_HARD: usize = 600;
/// Clippy warns above 60 lines of code; an `#[expect]` with a reason may go up to this.
const FUNCTION_LINES_HARD: usize = 100;
const LIB_LINES: usize = 100;

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    repo.texts("", ".rs")
        .filter(|(path, _)| !is_test_path(path))
        .flat_map(|(path, text)| {
            let code = mask(text, Keep::Code);
            let is_test = test_lines(&code);
            let mut found = long_functions(path, &code, &is_test);
            found.extend(long_file(path, &is_test));
            found
        })
        .collect()
}

fn long_file(path: &str, is_test: &[bool]) -> Option<Violation> {
    let num_lines = is_test.iter().filter(|is_test| !**is_test).count();
    if path.ends_with("/lib.rs") && num_lines > LIB_LINES {
        let message = format!("{num_lines} lines; lib.rs is a table of contents of at most {LIB_LINES}");
        return Some(Violation::error(path, None, message));
    }
    let message = format!("{num_lines} lines without tests; at most {FILE_LINES}, never above {FILE_LINES_HARD}");
    if num_lines > FILE_LINES_HARD {
        Some(Violation::error(path, None, message))
    } else if num_lines > FILE_LINES {
        Some(Violation::warning(path, None, message))
    } else {
        None
    }
}

fn long_functions(path: &str, code: &str, is_test: &[bool]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, body) in functions(code) {
        let line = line_of(code, body.start);
        let num_lines = code[body].lines().filter(|line| !line.trim().is_empty()).count();
        if num_lines > FUNCTION_LINES_HARD && !is_test[line - 1] {
            let message = format!("fn {name} has {num_lines} lines of code; at most {FUNCTION_LINES_HARD}");
            found.push(Violation::error(path, line, message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<bool> {
        check(&Repo::of(&[(path, text)]))
            .iter()
            .map(Violation::is_error)
            .collect()
    }

    #[test]
    fn long_files_warn_and_then_fail() {
        let lines = |n: usize| "const A: u8 = 0;\n".repeat(n);
        assert!(found("crates/a/src/b.rs", &lines(400)).is_empty());
        assert_eq!(found("crates/a/src/b.rs", &lines(401)), [false]);
        assert_eq!(found("crates/a/src/b.rs", &lines(601)), [true]);
        assert_eq!(found("crates/a/src/lib.rs", &lines(101)), [true]);
    }

    #[test]
    fn tests_do_not_count() {
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "    const A: u8 = 0;\n".repeat(900)
        );
        assert!(found("crates/a/src/b.rs", &tests).is_empty());
        assert!(found("crates/a/tests/b.rs", &"const A: u8 = 0;\n".repeat(900)).is_empty());
    }

    #[test]
    fn long_functions_fail() {
        let function = |n: usize| format!("fn f() {{\n{}}}\n", "    call(); // why\n    // a comment\n".repeat(n));
        assert!(found("crates/a/src/b.rs", &function(100)).is_empty());
        assert_eq!(found("crates/a/src/b.rs", &function(101)), [true]);
    }
}
