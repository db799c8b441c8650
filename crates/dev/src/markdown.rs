//! The little of Markdown that the documents are checked by.

/// The lines of the section with this heading, up to the next heading of its level or above, with their numbers.
pub(crate) fn section<'a>(text: &'a str, heading: &str) -> Vec<(usize, &'a str)> {
    let level = heading.chars().take_while(|c| *c == '#').count();
    numbered(text)
        .skip_while(|(_, line)| line.trim_end() != heading)
        .skip(1)
        .take_while(|(_, line)| {
            let hashes = line.chars().take_while(|c| *c == '#').count();
            hashes == 0 || hashes > level
        })
        .collect()
}

/// The cells of the table rows among some lines, without the heading and the rule below it.
pub(crate) fn rows<'a>(lines: impl IntoIterator<Item = (usize, &'a str)>) -> Vec<(usize, Vec<&'a str>)> {
    let mut rows = Vec::new();
    let mut is_body = false;
    for (number, line) in lines {
        let Some(inner) = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            is_body = false;
            continue;
        };
        if inner.chars().all(|c| matches!(c, '-' | '|' | ':' | ' ')) {
            is_body = true;
        } else if is_body {
            rows.push((number, inner.split('|').map(str::trim).collect()));
        }
    }
    rows
}

/// What stands between single backticks.
pub(crate) fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Lines with their numbers, from 1.
pub(crate) fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_table_of_a_section() {
        let text = "# A\n\n| no |\n|---|\n| no |\n\n## B\n\n| k | v |\n|---|:-:|\n| `a` | b `c` |\n\n### deeper\n\n## C\n| x |\n|---|\n| y |\n";
        let rows = rows(section(text, "## B"));
        assert_eq!(rows, [(11, vec!["`a`", "b `c`"])]);
        assert_eq!(code_spans("b `c` d `e`"), ["c", "e"]);
    }
}
