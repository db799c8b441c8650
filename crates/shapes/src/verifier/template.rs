//! Coverage of pixels by shapes at any position, size and blur, from summed-area tables.

use crate::Shape;

/// Texels along a side of a shape's box.
const TEXELS: usize = 192;
const ROW: usize = TEXELS + 1;

/// How an object lies in the image, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    pub(super) shape: Shape,
    pub(super) x: f32,
    pub(super) y: f32,
    /// Side of the box.
    pub(super) extent: f32,
    /// Side of the square over which coverage is averaged: 1 is a sharp, antialiased render. Blur of deviation s adds its
    /// variance to that of the pixel: the square root of 1 + 12 s^2.
    pub(super) blur: f32,
}

/// What a correlation needs to know of one shape.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// `sums[y * ROW + x]` counts the texels inside the shape above and left of the corner (x, y).
    sums: Vec<u32>,
    /// Share of the box that is covered.
    pub(super) area: f32,
    /// Center of mass relative to the center of the box, in sides of the box.
    pub(super) centroid: [f32; 2],
}

#[derive(Debug, Clone)]
pub(super) struct Templates(Vec<Template>);

impl Templates {
    pub(super) fn new() -> Self {
        Self(Shape::ALL.iter().map(|&shape| Template::new(shape)).collect())
    }

    pub(super) fn get(&self, shape: Shape) -> &Template {
        // `ALL` lists the members in the order of their discriminants.
        &self.0[shape as usize]
    }
}

impl Template {
    fn new(shape: Shape) -> Self {
        let mut sums = vec![0; ROW * ROW];
        let (mut count, mut moment) = (0_u32, [0.0_f64; 2]);
        for y in 0..TEXELS {
            let mut row = 0;
            for x in 0..TEXELS {
                let at = |texel: usize| (texel as f32 + 0.5) / TEXELS as f32 - 0.5;
                if shape.contains(2.0 * at(x), 2.0 * at(y)) {
                    row += 1;
                    count += 1;
                    moment[0] += f64::from(at(x));
                    moment[1] += f64::from(at(y));
                }
                sums[(y + 1) * ROW + x + 1] = sums[y * ROW + x + 1] + row;
            }
        }
        Self {
            sums,
            area: count as f32 / (TEXELS * TEXELS) as f32,
            centroid: moment.map(|sum| (sum / f64::from(count)) as f32),
        }
    }

    /// Calls `visit(x, y, coverage)` for every pixel of a window that the posed shape touches.
    pub(super) fn cover(&self, pose: &Pose, window: &Bounds, mut visit: impl FnMut(usize, usize, f32)) {
        let columns = Intervals::new(pose.x, pose, window.left, window.right);
        let rows = Intervals::new(pose.y, pose, window.top, window.bottom);
        let texels = pose.blur * TEXELS as f32 / pose.extent;
        let norm = 1.0 / (texels * texels);
        for (y, top, bottom) in rows.iter() {
            let (above, below) = (&self.sums[top * ROW..][..ROW], &self.sums[bottom * ROW..][..ROW]);
            for (x, left, right) in columns.iter() {
                // Wrapping: the partial differences may be negative, the total never is.
                let inside = below[right]
                    .wrapping_sub(below[left])
                    .wrapping_sub(above[right].wrapping_sub(above[left]));
                visit(x, y, inside as f32 * norm);
            }
        }
    }
}

/// The raster has at most this many pixels along a side.
const MAX_PIXELS: usize = super::raster::MAX_SIDE;

/// Texels that the pixels along one axis average over.
struct Intervals {
    first: usize,
    len: usize,
    /// First texel and the one after the last, for `len` pixels from `first` on.
    texels: [(usize, usize); MAX_PIXELS],
}

impl Intervals {
    /// For pixels from `low` to `high` that reach the box around `center`.
    fn new(center: f32, pose: &Pose, low: usize, high: usize) -> Self {
        let half = 0.5 * (pose.extent + pose.blur);
        let first = ((center - half - 0.5).floor().max(0.0) as usize).clamp(low, high);
        let last = ((center + half + 0.5).ceil().max(0.0) as usize).clamp(first, high);
        let scale = TEXELS as f32 / pose.extent;
        let texel = |position: f32| {
            let texel = (position - center) * scale + TEXELS as f32 * 0.5;
            (texel.clamp(0.0, TEXELS as f32) + 0.5) as usize
        };
        let mut intervals = Self {
            first,
            len: (last - first).min(MAX_PIXELS),
            texels: [(0, 0); MAX_PIXELS],
        };
        for offset in 0..intervals.len {
            let middle = (first + offset) as f32 + 0.5;
            intervals.texels[offset] = (texel(middle - pose.blur * 0.5), texel(middle + pose.blur * 0.5));
        }
        intervals
    }

    fn iter(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.texels[..self.len]
            .iter()
            .enumerate()
            .map(|(offset, &(low, high))| (self.first + offset, low, high))
    }
}

/// A rectangle of pixels; right and bottom are exclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) right: usize,
    pub(super) bottom: usize,
}

impl Bounds {
    /// The box of pixels given by index.
    pub(super) fn of(pixels: &[usize], width: usize) -> Self {
        let mut bounds = Self {
            left: usize::MAX,
            top: usize::MAX,
            right: 0,
            bottom: 0,
        };
        for &index in pixels {
            let (x, y) = (index % width, index / width);
            bounds.left = bounds.left.min(x);
            bounds.top = bounds.top.min(y);
            bounds.right = bounds.right.max(x + 1);
            bounds.bottom = bounds.bottom.max(y + 1);
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, Color, Object, Scene, Size, render};

    #[test]
    fn coverage_agrees_with_the_renderer() {
        let templates = Templates::new();
        for &shape in Shape::ALL {
            for (&size, center) in Size::ALL.iter().zip([[0.31, 0.52], [0.47, 0.44]]) {
                let scene = Scene {
                    background: Background::White,
                    objects: vec![Object {
                        shape,
                        color: Color::Red,
                        size,
                        center,
                    }],
                };
                let image = render(&scene, 32);
                let pose = Pose {
                    shape,
                    x: center[0] * 32.0,
                    y: center[1] * 32.0,
                    extent: size.extent() * 32.0,
                    blur: 1.0,
                };
                let mut worst: f32 = 0.0;
                let window = Bounds {
                    left: 0,
                    top: 0,
                    right: 32,
                    bottom: 32,
                };
                templates.get(shape).cover(&pose, &window, |x, y, coverage| {
                    let rendered = (255.0 - f32::from(image.get_pixel(x as u32, y as u32).0[2])) / 220.0;
                    worst = worst.max((coverage - rendered).abs());
                });
                assert!(worst < 0.1, "{shape} {size}: {worst}");
            }
        }
    }

    #[test]
    fn blur_keeps_the_mass() {
        let templates = Templates::new();
        let window = Bounds {
            left: 0,
            top: 0,
            right: 48,
            bottom: 48,
        };
        for &shape in Shape::ALL {
            let template = templates.get(shape);
            for blur in [1.0, 2.0, 5.0] {
                let pose = Pose {
                    shape,
                    x: 24.2,
                    y: 23.7,
                    extent: 17.0,
                    blur,
                };
                let mut mass = 0.0;
                template.cover(&pose, &window, |_, _, coverage| mass += coverage);
                let expected = template.area * 17.0 * 17.0;
                assert!(
                    (mass - expected).abs() < 0.03 * expected,
                    "{shape}, blur {blur}: {mass} and {expected}"
                );
            }
        }
    }
}
