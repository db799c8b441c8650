//! An image's patches in another order.

use image::{GenericImage as _, RgbImage, imageops};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::out_of_range;
use crate::error::Result;

/// Patches longer than any image that is read.
const MAX_PATCH: u32 = 16_384;

/// Permutes whole patches, so that every pixel is still there and nothing stands where it stood with the rest: each order but the
/// image's own is equally likely. What is left of whole patches at the right and the bottom stays, and so does an image of fewer than two
/// patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PatchShuffle {
    /// Side of a patch in pixels, from 1. Default 14, a patch of CLIP-L/14.
    pub patch: u32,
}

impl Default for PatchShuffle {
    fn default() -> Self {
        Self { patch: 14 }
    }
}

impl PatchShuffle {
    pub(super) fn validate(self) -> Result<()> {
        check_patch("patch_shuffle.patch", self.patch)
    }

    pub(super) fn apply(self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let patch = self.patch.max(1);
        let columns = (image.width() / patch) as usize;
        let count = columns * (image.height() / patch) as usize;
        let mut shuffled = image.clone();
        if count < 2 {
            return shuffled;
        }
        let own: Vec<usize> = (0..count).collect();
        let mut order = own.clone();
        while order == own {
            order.shuffle(rng);
        }
        let corner = |place: usize| ((place % columns) as u32 * patch, (place / columns) as u32 * patch);
        for (to, from) in order.into_iter().enumerate() {
            let ((left, top), (to_left, to_top)) = (corner(from), corner(to));
            let part = imageops::crop_imm(image, left, top, patch, patch);
            shuffled
                .copy_from(&*part, to_left, to_top)
                .expect("whole patches lie in the image");
        }
        shuffled
    }
}

/// Checks the side of a patch.
pub(super) fn check_patch(key: &str, patch: u32) -> Result<()> {
    if (1..=MAX_PATCH).contains(&patch) {
        return Ok(());
    }
    Err(out_of_range(key, &patch, "pixels, 1 to 16384"))
}
