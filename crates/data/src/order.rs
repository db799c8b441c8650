//! The order records are visited in.

use rand::Rng;

/// The numbers `0..len` in a random order: Fisher and Yates' shuffle, from the last place to the first.
///
/// The algorithm is written out here so that a seed gives the same order for ever, whatever the `rand` crate changes
/// in its own shuffle: each step draws `next_u64` and rejects the values that would favor small numbers.
///
/// ```
/// use rand::SeedableRng;
/// let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
/// let mut order = diptych_data::shuffled_indices(&mut rng, 5);
/// order.sort_unstable();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// ```
pub fn shuffled_indices(rng: &mut impl Rng, len: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        indices.swap(last, below(rng, last as u64 + 1) as usize);
    }
    indices
}

/// A uniform integer in `0..bound`.
fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    let unfair = u64::MAX - u64::MAX % bound;
    loop {
        let drawn = rng.next_u64();
        if drawn < unfair {
            return drawn % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_index_once_and_reproducible() {
        let shuffled = |seed| shuffled_indices(&mut ChaCha8Rng::seed_from_u64(seed), 1000);
        let mut sorted = shuffled(1);
        assert_eq!(sorted, shuffled(1));
        assert_ne!(sorted, shuffled(2));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert!(shuffled_indices(&mut rng, 0).is_empty());
        assert_eq!(shuffled_indices(&mut rng, 1), [0]);
    }

    #[test]
    fn every_permutation_of_three_is_equally_likely() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..60_000 {
            *counts.entry(shuffled_indices(&mut rng, 3)).or_insert(0_i64) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Expectation 10,000 each, standard deviation 91: five of them.
        for (order, count) in counts {
            assert!((count - 10_000).abs() < 460, "{order:?}: {count}");
        }
    }
}
