//! Rounding to bf16 at random, from numbers that depend on nothing but the run's seed, the parameter, the update and the element.

use half::bf16;

/// A number of this run, parameter and update, for rounding at random.
pub(super) fn seed(run: u64, name: &str, step: u64) -> u64 {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(hash ^ mixed(step ^ mixed(run)))
}

/// `SplitMix64`'s output function (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
#[inline]
pub(super) fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One of the two neighbors in bf16, each as often as the number is near to it.
#[inline]
pub(super) fn rounded(x: f32, random: u16) -> bf16 {
    if x.is_finite() {
        bf16::from_bits((x.to_bits().wrapping_add(u32::from(random)) >> 16) as u16)
    } else {
        bf16::from_f32(x)
    }
}
