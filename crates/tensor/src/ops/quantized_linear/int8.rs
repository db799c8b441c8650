//! Whole numbers of eight bits, one scale a row.

use crate::ops::kernel::wide;

/// Codes reach from minus this to this.
const LARGEST: f32 = 127.0;

/// Writes the codes of a row and says what they are to be multiplied by; NaN or an infinity where a number is not finite.
pub(super) fn encode(row: &[f32], codes: &mut [i8]) -> f32 {
    if row.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    // Of a row of subnormal numbers the quotient would be infinite.
    let factor = LARGEST / largest.max(f32::MIN_POSITIVE);
    for (code, x) in codes.iter_mut().zip(row) {
        *code = (x * factor).round_ties_even() as i8;
    }
    largest / LARGEST
}

/// The numbers that codes of one row stand for.
pub(super) fn decode(codes: &[i8], scale: f32, out: &mut [f32]) {
    scaled(codes, scale, out);
}

wide! {
    fn scaled<>(codes: &[i8], scale: f32, out: &mut [f32]) {
        for (&code, out) in codes.iter().zip(out) {
            *out = f32::from(code) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_within_half_a_step_of_what_its_code_stands_for() {
        let row: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32 * 0.03 - 1.5).collect();
        let (mut codes, mut found) = ([0i8; 100], [0f32; 100]);
        let scale = encode(&row, &mut codes);
        decode(&codes, scale, &mut found);
        for (found, expected) in found.iter().zip(&row) {
            assert!((found - expected).abs() <= 0.5001 * scale, "{found} {expected}");
        }
        assert!(codes.contains(&-127) || codes.contains(&127));
    }

    #[test]
    fn rows_of_zeros_and_of_tiny_numbers_are_kept() {
        let mut codes = [1i8; 3];
        assert_eq!((encode(&[0.0; 3], &mut codes), codes), (0.0, [0; 3]));
        let scale = encode(&[1e-42, -1e-42, 0.0], &mut codes);
        assert!(scale.is_finite());
        for x in [f32::NAN, f32::INFINITY] {
            assert!(!encode(&[0.5, x, 0.5], &mut codes).is_finite());
        }
    }
}
