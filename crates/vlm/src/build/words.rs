//! Words of answers: which of them mean something, and how alike two texts are.

use std::collections::BTreeMap;
use std::ops::Range;

/// Words that say nothing of a picture by themselves.
const EMPTY_WORDS: &[&str] = &[
    "a", "about", "above", "after", "all", "also", "an", "and", "another", "any", "are", "around", "as", "at", "be",
    "been", "behind", "being", "below", "beside", "between", "both", "but", "by", "can", "could", "do", "does", "each",
    "either", "few", "for", "from", "had", "has", "have", "he", "her", "here", "him", "his", "if", "in", "into", "is",
    "it", "its", "just", "may", "might", "more", "most", "much", "near", "next", "no", "nor", "not", "of", "off", "on",
    "or", "other", "our", "out", "over", "own", "several", "she", "should", "so", "some", "such", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "through", "to", "too", "under", "up",
    "very", "was", "we", "were", "what", "when", "where", "which", "while", "who", "will", "with", "would", "yes",
    "you", "your", "image", "picture", "photo", "scene", "shows", "show", "appears", "seems", "overall",
];

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// In small letters.
    pub(super) text: String,
    /// Its characters (Unicode scalar values) in the text.
    pub(super) chars: Range<usize>,
}

impl Word {
    /// Whether it may name something that a picture shows.
    pub(super) fn has_content(&self) -> bool {
        !EMPTY_WORDS.contains(&self.text.as_str())
    }
}

/// The words of a text: runs of letters, digits, hyphens and apostrophes.
pub(super) fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut is_inside = false;
    for (at, letter) in text.chars().enumerate() {
        let is_part = letter.is_alphanumeric() || (is_inside && ['-', '\'', '’'].contains(&letter));
        if is_part && !is_inside {
            words.push(Word {
                text: String::new(),
                chars: at..at,
            });
        }
        if is_part && let Some(word) = words.last_mut() {
            word.text.extend(letter.to_lowercase());
            word.chars.end = at + 1;
        }
        is_inside = is_part;
    }
    words
}

/// The cosine of two texts as counts of words and of pairs of neighboring words; 1 for the same words in the same order, 0 for none in common.
pub(super) fn similarity(first: &str, second: &str) -> f64 {
    let [first, second] = [counts(first), counts(second)];
    let product: f64 = first
        .iter()
        .filter_map(|(part, count)| Some(count * second.get(part)?))
        .sum();
    let norm = |counts: &BTreeMap<String, f64>| counts.values().map(|count| count * count).sum::<f64>().sqrt();
    let norms = norm(&first) * norm(&second);
    if norms > 0.0 { product / norms } else { 0.0 }
}

fn counts(text: &str) -> BTreeMap<String, f64> {
    let words = words(text);
    let mut counts = BTreeMap::new();
    for word in &words {
        *counts.entry(word.text.clone()).or_insert(0.0) += 1.0;
    }
    for pair in words.windows(2) {
        *counts
            .entry(format!("{} {}", pair[0].text, pair[1].text))
            .or_insert(0.0) += 1.0;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_their_places() {
        let found = words("A red-brown dog’s ball, 2.5 m. ");
        let texts: Vec<&str> = found.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(texts, ["a", "red-brown", "dog’s", "ball", "2", "5", "m"]);
        assert_eq!(found[3].chars, 18..22);
        let content: Vec<bool> = found.iter().map(Word::has_content).collect();
        assert_eq!(content, [false, true, true, true, true, true, true]);
        assert!(words(" .,!").is_empty());
    }

    #[test]
    fn likeness_is_the_cosine_of_counts() {
        assert!((similarity("a red dog", "A red dog.") - 1.0).abs() < 1e-12);
        assert!(similarity("a red dog", "two cats").abs() < 1e-12);
        // a, red, dog, "a red", "red dog" against a, red, cat, "a red", "red cat": 3 of 5 in common.
        assert!((similarity("a red dog", "a red cat") - 0.6).abs() < 1e-12);
        assert!(similarity("", "a").abs() < 1e-12);
    }
}
