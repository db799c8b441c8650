//! Byte-pair vocabularies in CLIP's form, learned from a text corpus.

use std::collections::{BTreeMap, BTreeSet};

/// Marks the last symbol of a word.
pub(super) const END_OF_WORD: &str = "</w>";

/// The 256 printable characters that stand for bytes, in the order of `OpenAI`'s `bytes_to_unicode`: the printable bytes first, then
/// the others, which are moved up past 255.
pub(super) fn byte_characters() -> Vec<char> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let moved = (0..256u32)
        .filter(|byte| !printable(byte))
        .enumerate()
        .map(|(i, _)| 256 + i as u32);
    (0..256u32)
        .filter(printable)
        .chain(moved)
        .filter_map(char::from_u32)
        .collect()
}

/// Learns up to `num_merges` merges from words with their counts: the most frequent pair first, ties in the order of the symbols.
///
/// Stops early when every word is one symbol.
pub(super) fn learn_merges(words: &BTreeMap<String, u64>, num_merges: usize) -> Vec<(String, String)> {
    let mut splits: Vec<(Vec<String>, u64)> = words.iter().map(|(word, &count)| (split(word), count)).collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (symbols, count) in &splits {
            for pair in symbols.windows(2) {
                *pairs.entry((&pair[0], &pair[1])).or_default() += count;
            }
        }
        // Counts compare first; among equals the first pair in the map's order wins.
        let best = pairs.iter().rev().max_by_key(|(_, count)| **count);
        let Some((&(left, right), _)) = best else { break };
        let merge = (left.to_owned(), right.to_owned());
        for (symbols, _) in &mut splits {
            *symbols = apply(symbols, &merge);
        }
        merges.push(merge);
    }
    merges
}

/// The vocabulary of `merges`: bytes, bytes that end a word, merged symbols, then the two special tokens.
pub(super) fn vocabulary(merges: &[(String, String)], specials: [&str; 2]) -> BTreeMap<String, u32> {
    let bytes = byte_characters();
    let symbols = bytes
        .iter()
        .map(char::to_string)
        .chain(bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}")))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain(specials.map(str::to_owned));
    let mut seen = BTreeSet::new();
    // Two merges can make the same symbol; it has one id.
    symbols.filter(|symbol| seen.insert(symbol.clone())).zip(0..).collect()
}

fn split(word: &str) -> Vec<String> {
    let mut symbols: Vec<String> = word.chars().map(String::from).collect();
    if let Some(last) = symbols.last_mut() {
        last.push_str(END_OF_WORD);
    }
    symbols
}

fn apply(symbols: &[String], (left, right): &(String, String)) -> Vec<String> {
    let mut merged = Vec::with_capacity(symbols.len());
    let mut i = 0;
    while i < symbols.len() {
        if symbols[i] == *left && symbols.get(i + 1) == Some(right) {
            merged.push(format!("{left}{right}"));
            i += 2;
        } else {
            merged.push(symbols[i].clone());
            i += 1;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_in_openais_order() {
        let characters = byte_characters();
        assert_eq!(characters.len(), 256);
        assert_eq!(characters.iter().collect::<BTreeSet<_>>().len(), 256);
        // Spot values of CLIP's published vocab.json: "!" is 0, "a" is 64, the moved byte 0 is 188 and the space is 220.
        assert_eq!(
            (characters[0], characters[64], characters[188], characters[220]),
            ('!', 'a', 'Ā', 'Ġ')
        );
    }

    #[test]
    fn the_most_frequent_pair_is_merged_first() {
        let words = [("low", 5), ("lower", 2), ("newest", 6)]
            .map(|(word, count)| (word.to_owned(), count))
            .into();
        let merges = learn_merges(&words, 3);
        // "w e" occurs 2 + 6 times, "l o" 5 + 2 times; then five pairs of "newest" are tied at 6, "e we" before the others.
        let pair = |left: &str, right: &str| (left.to_owned(), right.to_owned());
        assert_eq!(merges, [pair("w", "e"), pair("l", "o"), pair("e", "we")]);
        // we, lo; low</w>; lo+we, lowe+r</w>; four more for the six symbols of "newest" that "we" leaves five of.
        assert_eq!(learn_merges(&words, 1000).len(), 2 + 1 + 2 + 4);
    }
}
