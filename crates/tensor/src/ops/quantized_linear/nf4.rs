//! Four bits: the levels of `NormalFloat`, and blocks of codes.
//!
//! The levels are those of Dettmers et al., arXiv:2305.14314, appendix E: quantiles of a normal distribution at equal steps, eight for
//! the negative side and nine for the positive one, both with zero, brought to `[-1, 1]`.

use super::scales::Scales;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 64;

/// What the codes stand for, before scaling.
#[expect(clippy::excessive_precision, reason = "levels as published")]
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// Between them.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] + LEVELS[i + 1]) * 0.5;
        i += 1;
    }
    middles
};

/// Below this a block counts as zeros: its reciprocal would not be finite.
const SMALLEST: f32 = 1e-38;

/// The nearest level of a number from -1 to 1.
fn code(x: f32) -> u8 {
    let mut code = 0usize;
    // As many middles lie below x: the bits of that count from the highest on.
    for bit in [8, 4, 2, 1] {
        if x > MIDDLES[code + bit - 1] {
            code += bit;
        }
    }
    code as u8
}

/// Writes the codes of a block, two a byte, and says its scale; NaN where a number is not finite.
pub(super) fn encode(block: &[f32], codes: &mut [u8]) -> f32 {
    if block.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let scale = block.iter().fold(0f32, |most, x| most.max(x.abs()));
    let factor = 1.0 / scale.max(SMALLEST);
    for (two, codes) in block.chunks(2).zip(codes) {
        let second = two.get(1).map_or(0, |x| code(x * factor));
        *codes = code(two[0] * factor) << 4 | second;
    }
    scale
}

/// The numbers that the codes from `start` on stand for.
pub(super) fn decode(codes: &[u8], start: usize, scales: &Scales, out: &mut [f32]) {
    let end = start + out.len();
    let (mut at, mut rest) = (start, out);
    while at < end {
        let stop = end.min((at / BLOCK + 1) * BLOCK);
        let (part, next) = rest.split_at_mut(stop - at);
        part_of_block(codes, at, scales.get(at / BLOCK), part);
        (at, rest) = (stop, next);
    }
}

/// The same within one block.
fn part_of_block(codes: &[u8], start: usize, scale: f32, out: &mut [f32]) {
    if start % 2 == 1
        && let Some((first, rest)) = out.split_first_mut()
    {
        *first = LEVELS[usize::from(codes[start / 2] & 15)] * scale;
        whole_bytes(&codes[start / 2 + 1..], scale, rest);
    } else {
        whole_bytes(&codes[start / 2..], scale, out);
    }
}

fn whole_bytes(codes: &[u8], scale: f32, out: &mut [f32]) {
    let codes = &codes[..out.len().div_ceil(2)];
    let done = fast(codes, scale, out);
    portable(&codes[done / 2..], scale, &mut out[done..]);
}

fn portable(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (&byte, out) in codes.iter().zip(out.chunks_mut(2)) {
        out[0] = LEVELS[usize::from(byte >> 4)] * scale;
        if let Some(out) = out.get_mut(1) {
            *out = LEVELS[usize::from(byte & 15)] * scale;
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fast(_: &[u8], _: f32, _: &mut [f32]) -> usize {
    0
}

/// Decodes sixteens with vectors of eight numbers, if the processor has them, and says how many numbers that were.
#[cfg(target_arch = "x86_64")]
fn fast(codes: &[u8], scale: f32, out: &mut [f32]) -> usize {
    use std::arch::x86_64::{
        __m128i, _mm_and_si128, _mm_loadl_epi64, _mm_set1_epi8, _mm_srli_epi16, _mm_srli_si128, _mm_unpacklo_epi8,
        _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepu8_epi32, _mm256_loadu_ps, _mm256_mul_ps,
        _mm256_permutevar8x32_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    };

    const GROUP: usize = 16;

    #[target_feature(enable = "avx2")]
    fn run(codes: &[[u8; GROUP / 2]], scale: f32, out: &mut [[f32; GROUP]]) {
        #[expect(unsafe_code, reason = "vectors are read and written through pointers")]
        // SAFETY: eight levels are read at each half of the sixteen.
        let [low, high] = [0, 8].map(|half| unsafe { _mm256_loadu_ps(LEVELS.as_ptr().add(half)) });
        let scale = _mm256_set1_ps(scale);
        let four_bits = _mm_set1_epi8(15);
        for (codes, out) in codes.iter().zip(out) {
            #[expect(unsafe_code, reason = "vectors are read and written through pointers")]
            // SAFETY: a group has eight bytes.
            let bytes: __m128i = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
            let first = _mm_and_si128(_mm_srli_epi16::<4>(bytes), four_bits);
            let second = _mm_and_si128(bytes, four_bits);
            let codes = _mm_unpacklo_epi8(first, second);
            for (half, codes) in [codes, _mm_srli_si128::<8>(codes)].into_iter().enumerate() {
                let codes = _mm256_cvtepu8_epi32(codes);
                // The permutation looks at three bits; the fourth, moved to the sign, says from which half.
                let from_low = _mm256_permutevar8x32_ps(low, codes);
                let from_high = _mm256_permutevar8x32_ps(high, codes);
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let levels = _mm256_blendv_ps(from_low, from_high, is_high);
                #[expect(unsafe_code, reason = "vectors are read and written through pointers")]
                // SAFETY: a group has two halves of eight numbers.
                unsafe {
                    _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), _mm256_mul_ps(levels, scale));
                }
            }
        }
    }

    if !std::arch::is_x86_feature_detected!("avx2") {
        return 0;
    }
    let (out, _) = out.as_chunks_mut::<GROUP>();
    let (codes, _) = codes.as_chunks::<{ GROUP / 2 }>();
    #[expect(unsafe_code, reason = "a function compiled for a CPU feature")]
    // SAFETY: the feature was just detected.
    unsafe {
        run(codes, scale, out);
    }
    out.len().min(codes.len()) * GROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales(len: usize) -> Scales {
        Scales::Full((0..len).map(|i| 0.3 + i as f32).collect())
    }

    #[test]
    fn codes_are_those_of_the_nearest_levels() {
        assert!(LEVELS.windows(2).all(|two| two[0] < two[1]));
        for (i, &level) in LEVELS.iter().enumerate() {
            assert_eq!(usize::from(code(level)), i);
        }
        for i in -1000..=1000 {
            let x = i as f32 * 0.001;
            let distance = |level: f32| (level - x).abs();
            let nearest = LEVELS
                .iter()
                .fold(f32::INFINITY, |least, &level| least.min(distance(level)));
            assert!(distance(LEVELS[usize::from(code(x))]) <= nearest + 1e-7, "{x}");
        }
    }

    /// Any part of a matrix, whether it begins and ends in the middle of a byte, of a vector or of a block.
    #[test]
    fn parts_are_those_of_the_whole() {
        let codes: Vec<u8> = (0..200u32).map(|i| (i * 73 % 256) as u8).collect();
        let scales = scales(7);
        let whole: Vec<f32> = (0..400)
            .map(|i| {
                let byte = codes[i / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                LEVELS[usize::from(code)] * scales.get(i / BLOCK)
            })
            .collect();
        for start in [0, 1, 2, 15, 16, 63, 64, 65, 127, 300] {
            for len in [0, 1, 2, 3, 15, 16, 17, 32, 33, 64, 65, 100] {
                let mut found = vec![f32::NAN; len];
                decode(&codes, start, &scales, &mut found);
                assert_eq!(found, whole[start..start + len], "{start} {len}");
            }
        }
    }

    #[test]
    fn vectors_give_the_same_bits() {
        let codes: Vec<u8> = (0..=255).collect();
        let (mut one, mut other) = (vec![0f32; 512], vec![0f32; 512]);
        whole_bytes(&codes, 0.37, &mut one);
        portable(&codes, 0.37, &mut other);
        assert_eq!(one, other);
    }

    #[test]
    fn blocks_of_zeros_and_of_tiny_numbers_are_kept() {
        let mut codes = [0u8; 2];
        for block in [[0.0; 3], [1e-42, -1e-42, 0.0]] {
            let scale = encode(&block, &mut codes);
            let mut found = [f32::NAN; 3];
            decode(&codes, 0, &Scales::Full(vec![scale]), &mut found);
            for (found, expected) in found.iter().zip(block) {
                assert!((found - expected).abs() < 1e-41, "{found} {expected}");
            }
        }
        for x in [f32::NAN, f32::NEG_INFINITY] {
            assert!(!encode(&[0.1, x, 0.2], &mut codes).is_finite());
        }
    }
}
