//! The valid names nearest to a wrong one, for error messages.

/// The (at most three) candidates nearest to `name` by edit distance, nearest first.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|candidate| (strsim::levenshtein(name, candidate), candidate))
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

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name_comes_first() {
        assert_eq!(nearest("to_qq", ["conv_in", "to_out", "to_q"])[0], "to_q");
    }
}
