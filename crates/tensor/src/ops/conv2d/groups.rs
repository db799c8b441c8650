//! Columns that are multiplied together, and the gradients of such groups.

use std::ops::Range;

use super::geometry::Geometry;
use crate::ops::kernel::{Float, Matrix};

/// Positions of one tile of a backward pass.
pub(super) const BLOCK_POSITIONS: usize = 1024;

/// `len` split into equal pieces of at most `max`, rounded up to a multiple of eight.
pub(super) fn piece(len: usize, max: usize) -> usize {
    let pieces = len.div_ceil(max.max(1)).max(1);
    len.div_ceil(pieces).next_multiple_of(8)
}

/// `0..len` in pieces of `piece`; the last one may be shorter.
pub(super) fn pieces(len: usize, piece: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..len.div_ceil(piece.max(1))).map(move |i| i * piece..((i + 1) * piece).min(len))
}

/// Columns that are multiplied together: positions of one image, or several whole images.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) images: Range<usize>,
    pub(super) positions: Range<usize>,
}

impl Group {
    pub(super) fn len(&self) -> usize {
        self.images.len() * self.positions.len()
    }
}

/// All columns, at most `max` in a group where that is possible.
pub(super) fn groups(g: &Geometry, max: usize) -> Vec<Group> {
    let positions = g.positions();
    let together = (max.min(2 * BLOCK_POSITIONS) / positions.max(1)).min(g.images);
    if together > 1 {
        return pieces(g.images, together)
            .map(|images| Group {
                images,
                positions: 0..positions,
            })
            .collect();
    }
    let tile = piece(positions, max);
    let of_image = |image| {
        pieces(positions, tile).map(move |positions| Group {
            images: image..image + 1,
            positions,
        })
    };
    (0..g.images).flat_map(of_image).collect()
}

/// Adds `joint` (O, images x P) to the images of `y` (B, O, P).
pub(super) fn scatter<T: Float>(g: &Geometry, joint: &[T], group: &Group, y: &mut [T]) {
    let (positions, outputs) = (g.positions(), g.outputs);
    for (i, image) in group.images.clone().enumerate() {
        let image = &mut y[image * outputs * positions..(image + 1) * outputs * positions];
        for (y, joint) in image.chunks_exact_mut(positions).zip(joint.chunks_exact(group.len())) {
            for (y, &x) in y.iter_mut().zip(&joint[i * positions..]) {
                *y += x;
            }
        }
    }
}

/// dY of a group as a matrix (O, columns): a view of one image, or several images gathered.
pub(super) enum GroupGradient<'a, T> {
    Image(&'a [T]),
    Gathered(Vec<T>),
}

impl<'a, T: Float> GroupGradient<'a, T> {
    pub(super) fn of(g: &Geometry, group: &Group, dy: &'a [T]) -> Self {
        let (positions, outputs) = (g.positions(), g.outputs);
        if group.images.len() == 1 {
            return Self::Image(&dy[group.images.start * outputs * positions + group.positions.start..]);
        }
        let mut gathered = Vec::with_capacity(outputs * group.len());
        for o in 0..outputs {
            for image in group.images.clone() {
                gathered.extend_from_slice(&dy[(image * outputs + o) * positions..][..positions]);
            }
        }
        Self::Gathered(gathered)
    }

    pub(super) fn matrix(&self, g: &Geometry, group: &Group) -> Matrix<'_, T> {
        match self {
            Self::Image(dy) => Matrix::rows(dy, g.positions()),
            Self::Gathered(dy) => Matrix::rows(dy, group.len()),
        }
    }
}

/// Runs of groups with the same images: tiles of one image add to the same planes, so they belong to one task.
pub(super) fn same_images(groups: &[Group]) -> Vec<Range<usize>> {
    let mut sets: Vec<Range<usize>> = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        match sets.last_mut() {
            Some(set) if groups[set.start].images == group.images => set.end = i + 1,
            _ => sets.push(i..i + 1),
        }
    }
    sets
}
