//! Which tokens of two answers were changed, as RLHF-V weighs them.
//!
//! Yu et al., "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human Feedback", CVPR 2024,
//! arXiv:2312.00849, section 3.2 (dense DPO): tokens of the segments that a human corrected weigh `gamma`, all others 1. Reference code:
//! RLHF-V/RLAIF-V `utils/diff_lib.py`, `get_diff_ids`, on Python's `difflib.SequenceMatcher` with its defaults.
//!
//! Two rules of that code that the paper does not state, and that are kept: tokens that were only put in or only taken out weigh 1,
//! since nothing stands against them on the other side; and in a longer answer of 200 tokens or more, tokens that make up more than
//! 1 % of it begin no match (`autojunk`).

use std::collections::BTreeMap;
use std::ops::Range;

/// From this many tokens on, frequent ones begin no match.
const POPULAR_FROM: usize = 200;

/// Matches shorter than this are no matches, in the reference code.
pub const MIN_MATCH_LEN: usize = 3;

/// Ranges of `before` and of `after` that stand for each other and differ: what lies between matches of at least `min_match_len` tokens,
/// where neither side of it is empty. The first range of one list belongs to the first of the other, and so on.
///
/// The order of the arguments matters where several matches are as long: the reference code gives the rejected answer first.
///
/// ```
/// use diptych_data::{MIN_MATCH_LEN, changed_tokens};
///
/// let (rejected, chosen) = ([1, 2, 3, 7, 4, 5, 6], [1, 2, 3, 8, 9, 4, 5, 6]);
/// assert_eq!(changed_tokens(&rejected, &chosen, MIN_MATCH_LEN), (vec![3..4], vec![3..5]));
/// // What was only put in stands against nothing.
/// assert_eq!(changed_tokens(&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 9, 4, 5, 6], MIN_MATCH_LEN), (vec![], vec![]));
/// ```
pub fn changed_tokens(before: &[u32], after: &[u32], min_match_len: usize) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let end = Match {
        before: before.len(),
        after: after.len(),
        len: 0,
    };
    let mut at = Match::default();
    let (mut in_before, mut in_after) = (Vec::new(), Vec::new());
    let kept = matches(before, after)
        .into_iter()
        .filter(|found| found.len >= min_match_len);
    for next in kept.chain([end]) {
        let gaps = (at.before + at.len..next.before, at.after + at.len..next.after);
        if !gaps.0.is_empty() && !gaps.1.is_empty() {
            in_before.push(gaps.0);
            in_after.push(gaps.1);
        }
        at = next;
    }
    (in_before, in_after)
}

/// Weights of the tokens of a chosen and a rejected answer: `weight` for what was changed, 1 for the rest; as many as there are tokens.
pub fn changed_token_weights(chosen: &[u32], rejected: &[u32], weight: f32) -> [Vec<f32>; 2] {
    let (in_rejected, in_chosen) = changed_tokens(rejected, chosen, MIN_MATCH_LEN);
    let weights = |len: usize, changed: Vec<Range<usize>>| {
        let mut weights = vec![1.0; len];
        for range in changed {
            weights[range].fill(weight);
        }
        weights
    };
    [weights(chosen.len(), in_chosen), weights(rejected.len(), in_rejected)]
}

/// Tokens that are the same on both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    before: usize,
    after: usize,
    len: usize,
}

/// The matches in order, none of them next to each other on both sides: `SequenceMatcher.get_matching_blocks` without its last one.
fn matches(before: &[u32], after: &[u32]) -> Vec<Match> {
    let places = places(after);
    let mut found = Vec::new();
    let mut open = vec![(0..before.len(), 0..after.len())];
    while let Some((a, b)) = open.pop() {
        let best = longest(before, after, &places, &a, &b);
        if best.len == 0 {
            continue;
        }
        found.push(best);
        for (a, b) in [
            (a.start..best.before, b.start..best.after),
            (best.before + best.len..a.end, best.after + best.len..b.end),
        ] {
            if !a.is_empty() && !b.is_empty() {
                open.push((a, b));
            }
        }
    }
    found.sort_unstable();
    let mut joined: Vec<Match> = Vec::new();
    for next in found {
        match joined.last_mut() {
            Some(last) if last.before + last.len == next.before && last.after + last.len == next.after => {
                last.len += next.len;
            }
            _ => joined.push(next),
        }
    }
    joined
}

/// Where each token stands, but for those that are too frequent to begin a match.
fn places(tokens: &[u32]) -> BTreeMap<u32, Vec<usize>> {
    let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, token) in tokens.iter().enumerate() {
        places.entry(*token).or_default().push(at);
    }
    if tokens.len() >= POPULAR_FROM {
        let most = tokens.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    places
}

/// The longest match within two ranges; of several the one that begins first in `before`, then in `after`. Frequent tokens may lengthen it.
fn longest(
    before: &[u32],
    after: &[u32],
    places: &BTreeMap<u32, Vec<usize>>,
    a: &Range<usize>,
    b: &Range<usize>,
) -> Match {
    let mut best = Match {
        before: a.start,
        after: b.start,
        len: 0,
    };
    // Lengths of the matches that end at the token of `before` looked at last, by their end in `after`.
    let mut lens: BTreeMap<usize, usize> = BTreeMap::new();
    for i in a.clone() {
        let mut next = BTreeMap::new();
        let at = places.get(&before[i]).map_or([].as_slice(), Vec::as_slice);
        for &j in at.iter().filter(|j| b.contains(j)) {
            let len = 1 + j.checked_sub(1).and_then(|end| lens.get(&end)).copied().unwrap_or(0);
            next.insert(j, len);
            if len > best.len {
                best = Match {
                    before: i + 1 - len,
                    after: j + 1 - len,
                    len,
                };
            }
        }
        lens = next;
    }
    while best.before > a.start && best.after > b.start && before[best.before - 1] == after[best.after - 1] {
        best.before -= 1;
        best.after -= 1;
        best.len += 1;
    }
    while best.before + best.len < a.end
        && best.after + best.len < b.end
        && before[best.before + best.len] == after[best.after + best.len]
    {
        best.len += 1;
    }
    best
}
