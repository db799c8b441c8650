//! Numbers in eight bits, with one scale a block. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022,
//! arXiv:2110.02861, section 2; the maps are those of bitsandbytes' `create_dynamic_map`.
//!
//! A number is the largest magnitude of its block times an entry of a map of 256 numbers in `[-1, 1]`. The map is denser near zero:
//! seven decades from 1e-7 to 1, each with twice as many entries as the one below, and zero.

use std::sync::LazyLock;

/// Decades of a map.
const DECADES: usize = 7;

/// Entries in rising order, and the middles between them.
#[derive(Debug)]
pub(crate) struct Map {
    values: [f32; 256],
    middles: [f32; 255],
}

/// For numbers of either sign.
pub(crate) static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(Signs::Both));
/// For numbers that are not negative.
pub(crate) static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(Signs::Positive));

#[derive(Clone, Copy, PartialEq, Eq)]
enum Signs {
    Both,
    Positive,
}

impl Map {
    fn new(signs: Signs) -> Self {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            // The middles of so many equal pieces of 0.1 to 1.
            let pieces = match signs {
                Signs::Both => 1 << decade,
                Signs::Positive => 2 << decade,
            };
            let scale = 10f64.powi(decade as i32 - (DECADES as i32 - 1));
            for piece in 0..pieces {
                let middle = 0.1 + 0.9 * (f64::from(piece) + 0.5) / f64::from(pieces);
                values.push((scale * middle) as f32);
                if signs == Signs::Both {
                    values.push((-scale * middle) as f32);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|i| values[i]);
        Self {
            middles: std::array::from_fn(|i| (values[i] + values[i + 1]) * 0.5),
            values,
        }
    }

    pub(crate) fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }

    /// The code of zero.
    pub(crate) fn zero(&self) -> u8 {
        self.code(0.0)
    }

    /// The nearest entry; NaN becomes the smallest one.
    pub(crate) fn code(&self, x: f32) -> u8 {
        let mut code = 0usize;
        // As many middles lie below x: the bits of that count from the highest on.
        for bit in [128, 64, 32, 16, 8, 4, 2, 1] {
            if x > self.middles[code + bit - 1] {
                code += bit;
            }
        }
        code as u8
    }

    /// The nearest entry of the same sign: a small first moment keeps its direction.
    pub(crate) fn code_of_sign(&self, x: f32) -> u8 {
        let code = self.code(x);
        if x == 0.0 || self.value(code).is_sign_negative() == x.is_sign_negative() {
            code
        } else if x > 0.0 {
            code.saturating_add(1)
        } else {
            code.saturating_sub(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_nearest_entries() {
        for map in [&*SIGNED, &*UNSIGNED] {
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]));
            for code in 0..=255u8 {
                assert_eq!(map.code(map.value(code)), code);
            }
            for i in -1200..1200 {
                let x = i as f32 * 0.001;
                let distance = |entry: f32| (entry - x).abs();
                let nearest = map
                    .values
                    .iter()
                    .fold(f32::INFINITY, |least, &entry| least.min(distance(entry)));
                assert!(distance(map.value(map.code(x))) <= nearest + 1e-7, "{x}");
            }
        }
        assert_eq!(
            (SIGNED.value(SIGNED.zero()), UNSIGNED.value(UNSIGNED.zero())),
            (0.0, 0.0)
        );
        assert_eq!((SIGNED.value(255), UNSIGNED.value(255)), (1.0, 1.0));
    }

    #[test]
    fn signs_are_kept() {
        for x in [1e-9f32, -1e-9, 0.3, -0.3, -1.0] {
            let found = SIGNED.value(SIGNED.code_of_sign(x));
            assert!(found * x > 0.0 || found == 0.0 && x > 0.0, "{x} {found}");
        }
    }
}
