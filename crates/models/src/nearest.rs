//! The valid names nearest to a wrong one, for error messages.

/// The (at most three) candidates nearest to `name` by edit distance, nearest first.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .collect();
    scored.sort_unstable();
    scored.dedup();
    scored
        .into_iter()
        .take(3)
        .map(|(_, candidate)| candidate.to_owned())
        .collect()
}

/// ": nearest names: a, b" or nothing, to be put behind a message.
pub(crate) fn hint(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; nearest names: {}", names.join(", "))
    }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{edit_distance, nearest};

    #[test]
    fn distances_are_levenshteins() {
        let cases = [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("to_q", "to_q", 0),
            ("to_k", "to_q", 1),
        ];
        for (a, b, distance) in cases {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_comes_first() {
        assert_eq!(nearest("to_qq", ["conv_in", "to_out", "to_q"])[0], "to_q");
    }
}
