//! Fitting one object to the pixels of a window.

use super::raster::Raster;
use super::segment::Component;
use super::template::{Bounds, Pose, Templates};
use crate::{Color, Shape, Size};

/// Smallest and largest box that is considered, as shares of the image side.
const EXTENTS: [f32; 2] = [0.16, 0.62];
/// Blurs tried first; the refinement moves between them.
const BLURS: [f32; 3] = [1.0, 2.4, 4.2];
/// Strongest blur considered.
const MAX_BLUR: f32 = 7.0;
/// Shapes that are refined after the first look.
const FINALISTS: usize = 3;
/// Cost of a box that is neither small nor large, per squared logarithm of the ratio: at equal fit, the world's own sizes
/// win.
const SIZE_PRIOR: f32 = 0.4;
/// Cost of a color off the palette, per squared distance in units of 128. It tells a blurred ring from a pale disc.
const COLOR_PRIOR: f32 = 0.06;
/// Cost of blur, per squared logarithm: a sharp explanation wins over a blurred one that fits as well.
const BLUR_PRIOR: f32 = 0.004;

/// Differences from the background in a rectangle, with the weight of every pixel.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) bounds: Bounds,
    /// Row by row: difference in red, green and blue, and weight 0 or 1. The difference is 0 where the weight is.
    values: Vec<[f32; 4]>,
    /// Sum of squared differences without what noise contributes.
    pub(super) energy: f32,
    /// Variance of the noise, summed over the channels.
    variance: f32,
    /// Shorter side of the image.
    side: f32,
    /// Color of the background.
    ground: [f32; 3],
}

/// A pose with how well it explains a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fit {
    pub(super) pose: Pose,
    /// Difference of the object's color from the background.
    pub(super) color: [f32; 3],
    /// Energy that is explained, in variances of the noise.
    pub(super) significance: f32,
    /// Share of the window's energy that is explained.
    pub(super) share: f32,
    /// `share` less the cost of an unlikely size: what fits are ranked by.
    pub(super) merit: f32,
}

impl Window {
    /// The part of an image in `bounds`, seen against a background color; pixels that do not `count` are left out.
    pub(super) fn new(
        raster: &Raster,
        ground: [f32; 3],
        bounds: Bounds,
        mut counts: impl FnMut(usize, usize) -> bool,
    ) -> Self {
        let mut values = Vec::with_capacity((bounds.right - bounds.left) * (bounds.bottom - bounds.top));
        for y in bounds.top..bounds.bottom {
            for x in bounds.left..bounds.right {
                let [r, g, b] = raster.at(x, y);
                let value = [r - ground[0], g - ground[1], b - ground[2], 1.0];
                values.push(if counts(x, y) { value } else { [0.0; 4] });
            }
        }
        let variance = 3.0 * raster.noise * raster.noise;
        let mut window = Self {
            bounds,
            values,
            energy: 0.0,
            variance,
            side: raster.side(),
            ground,
        };
        window.measure();
        window
    }

    fn measure(&mut self) {
        let (mut energy, mut weight) = (0.0, 0.0);
        for [r, g, b, w] in &self.values {
            energy += r * r + g * g + b * b;
            weight += w;
        }
        self.energy = (energy - self.variance * weight).max(0.1 * energy);
    }

    /// Takes an object out of the window (`sign` -1), or puts it back (`sign` 1).
    pub(super) fn add(&mut self, templates: &Templates, fit: &Fit, sign: f32) {
        let (bounds, width) = (self.bounds, self.bounds.right - self.bounds.left);
        templates
            .get(fit.pose.shape)
            .cover(&fit.pose, &bounds, |x, y, coverage| {
                let value = &mut self.values[(y - bounds.top) * width + x - bounds.left];
                for channel in 0..3 {
                    value[channel] += sign * value[3] * coverage * fit.color[channel];
                }
            });
        self.measure();
    }

    /// Shorter side of the image, in pixels.
    pub(super) fn side(&self) -> f32 {
        self.side
    }

    /// Difference from the background at a pixel of the window.
    pub(super) fn at(&self, x: usize, y: usize) -> [f32; 3] {
        let width = self.bounds.right - self.bounds.left;
        let [r, g, b, _] = self.values[(y - self.bounds.top) * width + x - self.bounds.left];
        [r, g, b]
    }

    /// Explains the window by an object in one pose, with the color of least squares.
    pub(super) fn fit(&self, templates: &Templates, pose: Pose) -> Fit {
        let (bounds, width) = (self.bounds, self.bounds.right - self.bounds.left);
        let (mut dot, mut norm) = ([0.0_f32; 3], 1e-6_f32);
        templates.get(pose.shape).cover(&pose, &bounds, |x, y, coverage| {
            let [r, g, b, w] = self.values[(y - bounds.top) * width + x - bounds.left];
            dot[0] += coverage * r;
            dot[1] += coverage * g;
            dot[2] += coverage * b;
            norm += coverage * coverage * w;
        });
        let gain = dot.iter().map(|d| d * d).sum::<f32>() / norm - self.variance;
        let share = (gain / self.energy.max(1e-6)).clamp(0.0, 1.0);
        let extent = pose.extent / self.side;
        let unlikely = (extent / Size::nearest(extent).extent()).ln();
        let color = dot.map(|d| d / norm);
        let rgb = [0, 1, 2].map(|channel| self.ground[channel] + color[channel]);
        let off = Color::nearest(rgb).1 / 128.0;
        let softness = pose.blur.ln();
        let cost = SIZE_PRIOR * unlikely * unlikely + COLOR_PRIOR * off * off + BLUR_PRIOR * softness * softness;
        let merit = share - cost;
        let significance = gain / self.variance.max(1.0);
        Fit {
            pose,
            color,
            significance,
            share,
            merit,
        }
    }

    /// The best single object for a component, whose pixels lie in the window.
    pub(super) fn best(&self, templates: &Templates, component: &Component, image_width: usize) -> Fit {
        let mass = self.mass(component, image_width);
        let mut firsts: Vec<Fit> = Shape::ALL
            .iter()
            .map(|&shape| self.first_look(templates, shape, &mass))
            .collect();
        firsts.sort_by(|a, b| b.merit.total_cmp(&a.merit));
        let refined = firsts
            .iter()
            .take(FINALISTS)
            .map(|fit| self.refine(templates, *fit, 0.5));
        refined.max_by(|a, b| a.merit.total_cmp(&b.merit)).unwrap_or(firsts[0])
    }

    /// Where a shape must lie to have the mass and the center of mass of what is seen.
    fn first_look(&self, templates: &Templates, shape: Shape, mass: &Mass) -> Fit {
        let template = templates.get(shape);
        let natural = self.clamp_extent((mass.area / template.area).sqrt());
        // Blur pales the core that the mass is counted in, so the natural size can be too large: the world's own are tried.
        let known = Size::ALL.iter().map(|size| size.extent() * self.side);
        let extents = known
            .filter(|extent| (0.6..1.3).contains(&(extent / natural)))
            .chain([natural]);
        let poses = extents.flat_map(|extent| {
            let [dx, dy] = template.centroid.map(|offset| offset * extent);
            BLURS.map(|blur| Pose {
                shape,
                x: mass.x - dx,
                y: mass.y - dy,
                extent,
                blur,
            })
        });
        let fits = poses.map(|pose| self.fit(templates, pose));
        let first = Pose {
            shape,
            x: mass.x,
            y: mass.y,
            extent: natural,
            blur: BLURS[0],
        };
        fits.max_by(|a, b| a.merit.total_cmp(&b.merit))
            .unwrap_or_else(|| self.fit(templates, first))
    }

    fn clamp_extent(&self, extent: f32) -> f32 {
        extent.clamp(EXTENTS[0] * self.side, EXTENTS[1] * self.side)
    }

    /// Climbs from a fit along position, extent and blur, in steps from `step` pixels down.
    pub(super) fn refine(&self, templates: &Templates, start: Fit, step: f32) -> Fit {
        let mut best = start;
        for halving in [1.0, 0.5, 0.25] {
            let moves: [fn(&mut Pose, f32); 8] = [
                |pose, step| pose.x += step,
                |pose, step| pose.x -= step,
                |pose, step| pose.y += step,
                |pose, step| pose.y -= step,
                |pose, step| pose.extent *= 1.0 + 0.12 * step,
                |pose, step| pose.extent /= 1.0 + 0.12 * step,
                |pose, step| pose.blur *= 1.0 + 0.5 * step,
                |pose, step| pose.blur /= 1.0 + 0.5 * step,
            ];
            for _ in 0..2 {
                let before = best.merit;
                for change in moves {
                    let mut pose = best.pose;
                    change(&mut pose, step * halving);
                    pose.extent = self.clamp_extent(pose.extent);
                    pose.blur = pose.blur.clamp(1.0, MAX_BLUR);
                    let fit = self.fit(templates, pose);
                    if fit.merit > best.merit {
                        best = fit;
                    }
                }
                if best.merit - before < 1e-3 {
                    break;
                }
            }
        }
        best
    }

    /// Area and center of a component, every pixel weighted by how much of the component's color it has.
    fn mass(&self, component: &Component, image_width: usize) -> Mass {
        let difference = |index: usize| self.at(index % image_width, index / image_width);
        let square = |[r, g, b]: [f32; 3]| r * r + g * g + b * b;
        let mut squares: Vec<f32> = component.iter().map(|&index| square(difference(index))).collect();
        let at = squares.len() * 4 / 5;
        let strong = *squares.select_nth_unstable_by(at, f32::total_cmp).1;
        // The mean over the inner pixels: edges are mixed with the background.
        let (mut core, mut count) = ([0.0; 3], 0.0);
        for &index in component {
            let value = difference(index);
            if square(value) >= 0.5 * strong {
                core.iter_mut().zip(value).for_each(|(sum, v)| *sum += v);
                count += 1.0;
            }
        }
        let core = core.map(|sum| sum / f32::max(count, 1.0));
        let norm = square(core).max(1.0);
        let mut mass = Mass {
            area: 0.0,
            x: 0.0,
            y: 0.0,
        };
        for y in self.bounds.top..self.bounds.bottom {
            for x in self.bounds.left..self.bounds.right {
                let [r, g, b] = self.at(x, y);
                let alpha = ((r * core[0] + g * core[1] + b * core[2]) / norm).clamp(-0.5, 1.5);
                mass.area += alpha;
                mass.x += alpha * (x as f32 + 0.5);
                mass.y += alpha * (y as f32 + 0.5);
            }
        }
        if mass.area < 1.0 {
            let middle = |low: usize, high: usize| (low + high) as f32 / 2.0;
            let Bounds {
                left,
                top,
                right,
                bottom,
            } = self.bounds;
            return Mass {
                area: component.len() as f32,
                x: middle(left, right),
                y: middle(top, bottom),
            };
        }
        Mass {
            area: mass.area,
            x: mass.x / mass.area,
            y: mass.y / mass.area,
        }
    }
}

struct Mass {
    area: f32,
    x: f32,
    y: f32,
}
