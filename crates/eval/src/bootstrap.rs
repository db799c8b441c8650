//! Resampling: how much a mean would change with other prompts, and whether a difference could be luck.

use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

/// Up to this many pairs, all sign patterns are tried instead of a sample of them.
const MAX_EXACT_PAIRS: usize = 16;

/// Means of each of `columns` over the same resampled rows, `samples` times: result `[column][sample]`.
///
/// The columns belong together row by row (a prompt's base score, aligned score and difference), so a row is drawn as a
/// whole: the paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13).
pub(crate) fn resampled_means<const COLUMNS: usize>(
    columns: [&[f64]; COLUMNS],
    samples: usize,
    rng: &mut ChaCha8Rng,
) -> [Vec<f64>; COLUMNS] {
    let len = columns[0].len();
    let mut means = [const { Vec::new() }; COLUMNS];
    for _ in 0..samples {
        let mut sums = [0.0; COLUMNS];
        for _ in 0..len {
            let row = rng.random_range(0..len as u64) as usize;
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum += column[row];
            }
        }
        for (means, sum) in means.iter_mut().zip(sums) {
            means.push(sum / len as f64);
        }
    }
    means
}

/// The mean over all parts, where the sum and the number of parts of a row stay together, `samples` times.
pub(crate) fn resampled_ratios(rows: &[(f64, usize)], samples: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut resample = || {
        let (mut sum, mut num) = (0.0, 0);
        for _ in rows {
            let (of_row, parts) = rows[rng.random_range(0..rows.len() as u64) as usize];
            sum += of_row;
            num += parts;
        }
        sum / num as f64
    };
    (0..samples).map(|_| resample()).collect()
}

/// The value below which the fraction `q` of `sorted` lies, interpolated linearly as `numpy.percentile` does.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// Two-sided p-value of the paired permutation test on the mean: the share of sign patterns that give a mean at least
/// as far from 0 as the one seen, if base and aligned were interchangeable.
///
/// All patterns for up to [`MAX_EXACT_PAIRS`] pairs; else `samples` random ones, where (count + 1) / (samples + 1) is
/// never 0 (Phipson and Smyth, 2010, arXiv:1603.05766).
pub(crate) fn sign_flip_p_value(differences: &[f64], samples: usize, rng: &mut ChaCha8Rng) -> f64 {
    let len = differences.len();
    let seen = differences.iter().sum::<f64>().abs();
    // Sums of the same values in another order must count as equal.
    let threshold = seen - 1e-9 * differences.iter().map(|difference| difference.abs()).sum::<f64>();
    let flipped = |is_flipped: &mut dyn FnMut(usize) -> bool| {
        let signed = differences
            .iter()
            .enumerate()
            .map(|(i, value)| if is_flipped(i) { -value } else { *value });
        signed.sum::<f64>().abs() >= threshold
    };
    if len <= MAX_EXACT_PAIRS {
        let patterns = 1_u32 << len;
        let count = (0..patterns)
            .filter(|pattern| flipped(&mut |i| pattern >> i & 1 == 1))
            .count();
        return count as f64 / f64::from(patterns);
    }
    let mut bits = 0;
    let mut draw = |i: usize| {
        if i.is_multiple_of(64) {
            bits = rng.next_u64();
        }
        bits >> (i % 64) & 1 == 1
    };
    let count = (0..samples).filter(|_| flipped(&mut draw)).count();
    (count + 1) as f64 / (samples + 1) as f64
}
