//! From components to objects.

use super::ReadObject;
use super::fit::{Fit, Window};
use super::raster::Raster;
use super::segment::{Component, Ground, components};
use super::template::{Bounds, Pose, Templates};
use crate::scene::MAX_OBJECTS;
use crate::{Color, Shape, Size};

/// A component of which one object explains this share is that object.
const GOOD: f32 = 0.9;
/// Several objects must explain this much more than one does.
const SPLIT_GAIN: f32 = 0.05;
/// Smallest share of a component's energy that a further object of it must explain.
const MIN_PART: f32 = 0.08;
/// Smallest and strongest leftovers that are looked at: this share of the component's strongest difference.
const LEFTOVER: f32 = 0.4;
/// Pixels around a component that its window takes in.
const PAD: usize = 3;
/// Smallest object, as a share of the image side: half of a small one.
const MIN_EXTENT: f32 = 0.145;

/// Smallest difference of an object from the background: half of the least in the palette.
const MIN_CONTRAST: f32 = 48.0;
/// Least energy of an object in variances of the noise: chance alone, over all poses, reaches about a third of it.
const MIN_SIGNIFICANCE: f32 = 20.0;

/// The objects of an image, those that stand out most first.
pub(super) fn objects(templates: &Templates, raster: &Raster, ground: &Ground) -> Vec<ReadObject> {
    let found = components(raster.width, &ground.foreground);
    // Which component a pixel belongs to, from 1; windows leave out the pixels of others and those around them.
    let mut owner = vec![0_usize; raster.pixels.len()];
    for (index, component) in found.iter().enumerate() {
        for &pixel in component {
            owner[pixel] = index + 1;
        }
    }
    let mut fits = Vec::new();
    for (index, component) in found.iter().enumerate() {
        let mut window = window(raster, ground, &owner, index + 1, component);
        fits.extend(explain(templates, &mut window, component, raster.width));
    }
    let size = [raster.width as f32, raster.height as f32];
    fits.retain(|(fit, _)| {
        let inside = (0.0..size[0]).contains(&fit.pose.x) && (0.0..size[1]).contains(&fit.pose.y);
        let visible = square(fit.color) >= MIN_CONTRAST * MIN_CONTRAST && fit.significance >= MIN_SIGNIFICANCE;
        inside && visible && fit.pose.extent >= MIN_EXTENT * raster.side()
    });
    fits.sort_by(|(a, _), (b, _)| b.significance.total_cmp(&a.significance));
    fits.iter()
        .map(|(fit, share)| read(fit, *share, ground.rgb, size, raster.side()))
        .collect()
}

fn read(fit: &Fit, share: f32, ground: [f32; 3], [width, height]: [f32; 2], side: f32) -> ReadObject {
    let rgb = [0, 1, 2].map(|channel| ground[channel] + fit.color[channel]);
    let extent = fit.pose.extent / side;
    ReadObject {
        shape: fit.pose.shape,
        color: Color::nearest(rgb).0,
        size: Size::nearest(extent),
        center: [fit.pose.x / width, fit.pose.y / height],
        confidence: share,
        extent,
        rgb,
    }
}

fn window(raster: &Raster, ground: &Ground, owner: &[usize], own: usize, component: &Component) -> Window {
    let (width, height) = (raster.width, raster.height);
    let mut bounds = Bounds::of(component, width);
    bounds.left = bounds.left.saturating_sub(PAD);
    bounds.top = bounds.top.saturating_sub(PAD);
    bounds.right = (bounds.right + PAD).min(width);
    bounds.bottom = (bounds.bottom + PAD).min(height);
    let foreign = |x: usize, y: usize| {
        let near = |v: usize, end: usize| v.saturating_sub(1)..(v + 2).min(end);
        near(y, height).any(|v| near(x, width).any(|u| ![0, own].contains(&owner[v * width + u])))
    };
    Window::new(raster, ground.rgb, bounds, |x, y| {
        owner[y * width + x] == own || !foreign(x, y)
    })
}

/// One object, or several when those explain the window clearly better; with the share each is confident of.
fn explain(templates: &Templates, window: &mut Window, component: &Component, width: usize) -> Vec<(Fit, f32)> {
    let single = window.best(templates, component, width);
    if single.share >= GOOD {
        return vec![(single, single.share)];
    }
    let (parts, share) = take_apart(templates, window, component, width);
    if parts.len() > 1 && share >= single.share + SPLIT_GAIN {
        return parts.into_iter().map(|fit| (fit, share)).collect();
    }
    vec![(single, single.share)]
}

/// Objects taken out of the window one by one, and the share of its energy that they explain together.
fn take_apart(templates: &Templates, window: &mut Window, component: &Component, width: usize) -> (Vec<Fit>, f32) {
    let total = window.energy;
    let strongest = component
        .iter()
        .map(|&index| square(window.at(index % width, index / width)))
        .fold(0.0, f32::max);
    let mut parts: Vec<Fit> = Vec::new();
    let mut left = component.clone();
    while parts.len() < MAX_OBJECTS + 1 {
        let fit = search(templates, window, &left, width);
        if fit.share * window.energy < MIN_PART * total {
            break;
        }
        window.add(templates, &fit, -1.0);
        parts.push(fit);
        left.retain(|&index| square(window.at(index % width, index / width)) >= LEFTOVER * LEFTOVER * strongest);
        if left.len() < component.len() / 20 {
            break;
        }
    }
    // Each once more, now that the others are known.
    for _ in 0..2 {
        for part in &mut parts {
            window.add(templates, part, 1.0);
            *part = reconsider(templates, window, *part);
            window.add(templates, part, -1.0);
        }
    }
    (parts, 1.0 - window.energy / total.max(1e-6))
}

/// The best object anywhere on the given pixels.
fn search(templates: &Templates, window: &Window, pixels: &Component, width: usize) -> Fit {
    let mut best: Option<Fit> = None;
    // A grid over their box, not the pixels themselves: the middle of a ring is not one of them.
    let bounds = Bounds::of(pixels, width);
    let step = (window.side() / 16.0).max(1.0);
    let along = |low: usize, high: usize| {
        (0..)
            .map(move |k| low as f32 + (k as f32 + 0.5) * step)
            .take_while(move |at| *at < high as f32)
    };
    let rows = along(bounds.top, bounds.bottom);
    for (x, y) in rows.flat_map(|y| along(bounds.left, bounds.right).map(move |x| (x, y))) {
        for &shape in Shape::ALL {
            for &size in Size::ALL {
                let extent = size.extent() * window.side();
                let pose = Pose {
                    shape,
                    x,
                    y,
                    extent,
                    // The grid misses a center by half a step; blur forgives it.
                    blur: step,
                };
                let fit = window.fit(templates, pose);
                if best.is_none_or(|best| fit.merit > best.merit) {
                    best = Some(fit);
                }
            }
        }
    }
    let start = best.unwrap_or_else(|| {
        let bounds = window.bounds;
        let (x, y) = (
            (bounds.left + bounds.right) as f32 / 2.0,
            (bounds.top + bounds.bottom) as f32 / 2.0,
        );
        window.fit(
            templates,
            Pose {
                shape: Shape::Circle,
                x,
                y,
                extent: Size::Small.extent() * window.side(),
                blur: 1.0,
            },
        )
    });
    reconsider(templates, window, start)
}

/// Every shape in the place of a fit, refined.
fn reconsider(templates: &Templates, window: &Window, fit: Fit) -> Fit {
    let [dx, dy] = templates
        .get(fit.pose.shape)
        .centroid
        .map(|offset| offset * fit.pose.extent);
    let mut best = window.refine(templates, window.fit(templates, fit.pose), 0.7);
    for &shape in Shape::ALL {
        if shape == fit.pose.shape {
            continue;
        }
        let template = templates.get(shape);
        let extent = fit.pose.extent * (templates.get(fit.pose.shape).area / template.area).sqrt();
        let [ox, oy] = template.centroid.map(|offset| offset * extent);
        let pose = Pose {
            shape,
            x: fit.pose.x + dx - ox,
            y: fit.pose.y + dy - oy,
            extent,
            ..fit.pose
        };
        let start = window.fit(templates, pose);
        if start.merit > best.merit - 0.1 {
            let refined = window.refine(templates, start, 0.7);
            if refined.merit > best.merit {
                best = refined;
            }
        }
    }
    best
}

fn square([r, g, b]: [f32; 3]) -> f32 {
    r * r + g * g + b * b
}
