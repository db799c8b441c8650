//! Where objects go: apart from each other and from the border.

use rand::Rng;

/// Distance of every box from the border of the image, as a share of its side.
const EDGE: f32 = 0.02;
/// Distance of two boxes along at least one axis: 2.5 px at 32, so that a line of clean background stays between them.
const GAP: f32 = 0.08;
/// Layouts drawn freely before falling back to one object per quarter of the image.
const ATTEMPTS: usize = 64;

/// Centers for boxes of the given sides (at most four), in the same order.
pub(crate) fn place(rng: &mut impl Rng, extents: &[f32]) -> Vec<[f32; 2]> {
    for _ in 0..ATTEMPTS {
        let mut centers: Vec<[f32; 2]> = Vec::with_capacity(extents.len());
        for &extent in extents {
            let (low, high) = (EDGE + extent / 2.0, 1.0 - EDGE - extent / 2.0);
            centers.push([rng.random_range(low..=high), rng.random_range(low..=high)]);
        }
        if are_apart(&centers, extents) {
            return centers;
        }
    }
    place_in_quarters(rng, extents)
}

/// One object per quarter: four large boxes fit in no other way.
fn place_in_quarters(rng: &mut impl Rng, extents: &[f32]) -> Vec<[f32; 2]> {
    let mut quarters = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];
    for last in (1..quarters.len()).rev() {
        quarters.swap(last, rng.random_range(0..=last));
    }
    let mut centers = Vec::with_capacity(extents.len());
    for (&extent, quarter) in extents.iter().zip(quarters) {
        let (low, high) = (EDGE + extent / 2.0, 0.5 - GAP / 2.0 - extent / 2.0);
        // The second half of an axis mirrors the first, so that the wide margin is always in the middle.
        let along = |half: f32, offset: f32| if half == 0.0 { offset } else { 1.0 - offset };
        let (x, y) = (rng.random_range(low..=high), rng.random_range(low..=high));
        centers.push([along(quarter[0], x), along(quarter[1], y)]);
    }
    centers
}

fn are_apart(centers: &[[f32; 2]], extents: &[f32]) -> bool {
    (1..centers.len()).all(|i| {
        (0..i).all(|j| {
            let needed = extents[i].midpoint(extents[j]) + GAP;
            (0..2).any(|axis| (centers[i][axis] - centers[j][axis]).abs() >= needed)
        })
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::Size;

    #[test]
    fn boxes_are_apart_and_inside() {
        let (small, large) = (Size::Small.extent(), Size::Large.extent());
        let cases: [&[f32]; 6] = [
            &[small],
            &[large, large],
            &[large, small, large],
            &[small; 4],
            &[large; 4],
            &[large, large, large, small],
        ];
        for (case, extents) in cases.into_iter().enumerate() {
            for seed in 0..200 {
                let centers = place(&mut ChaCha8Rng::seed_from_u64(seed), extents);
                assert_eq!(centers.len(), extents.len());
                // The quarters leave the gap up to rounding.
                let shrunk: Vec<f32> = extents.iter().map(|e| e - 1e-5).collect();
                assert!(are_apart(&centers, &shrunk), "case {case}, seed {seed}: {centers:?}");
                for (center, extent) in centers.iter().zip(extents) {
                    for &c in center {
                        let clear = (c - extent / 2.0).min(1.0 - c - extent / 2.0);
                        assert!(clear >= EDGE - 1e-5, "case {case}, seed {seed}: {center:?}");
                    }
                }
            }
        }
    }
}
