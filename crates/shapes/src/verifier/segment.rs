//! Background and connected components.

use super::raster::Raster;
use crate::color::distance;
use crate::{Background, Color};

/// The background must get at least this share of all votes.
const MIN_VOTES: f32 = 0.2;
/// Pixels at least this far from the background (RGB) are foreground: half of the least distance in the palette.
const THRESHOLD: f32 = 48.0;
/// Components smaller than this share of the image are specks; the smallest object covers 0.027.
const MIN_AREA: f32 = 0.007;
/// Components beyond this number, the smallest ones, are not looked at: no scene has as many.
const MAX_COMPONENTS: usize = 12;

/// The background as it is in the image.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    pub(super) background: Option<Background>,
    /// Its measured color.
    pub(super) rgb: [f32; 3],
    /// For every pixel, whether it is foreground.
    pub(super) foreground: Vec<bool>,
}

/// Finds the background.
pub(super) fn ground(raster: &Raster) -> Ground {
    let smooth = raster.smoothed();
    let labels: Vec<Label> = smooth.pixels.iter().map(|&pixel| label(pixel)).collect();
    let mut votes = [0_usize; Background::ALL.len() + Color::ALL.len()];
    for &label in &labels {
        votes[label] += 1;
    }
    let best = |range: std::ops::Range<usize>| range.rev().max_by_key(|&label| votes[label]).unwrap_or(0);
    let backgrounds = 0..Background::ALL.len();
    let mut winner = best(backgrounds.clone());
    let background = if votes[winner] as f32 >= MIN_VOTES * labels.len() as f32 {
        Some(Background::ALL[winner])
    } else {
        winner = best(0..votes.len());
        None
    };
    let members = |raster: &Raster, keep: &dyn Fn(usize) -> bool| -> Vec<[f32; 3]> {
        (0..labels.len())
            .filter(|&index| keep(index))
            .map(|index| raster.pixels[index])
            .collect()
    };
    let rough = median(&members(&smooth, &|index| labels[index] == winner));
    let threshold = THRESHOLD.max(4.0 * smooth.noise);
    // Noise clipped at 0 and 255 is lopsided; fits compare with the mean, so the mean is the background that counts.
    let close = members(raster, &|index| distance(smooth.pixels[index], rough) < threshold / 2.0);
    let rgb = if close.is_empty() { rough } else { mean(&close) };
    let foreground = smooth
        .pixels
        .iter()
        .map(|&pixel| distance(pixel, rgb) >= threshold)
        .collect();
    Ground {
        background,
        rgb,
        foreground,
    }
}

/// Index into the backgrounds, followed by the colors.
type Label = usize;

fn label(pixel: [f32; 3]) -> Label {
    let (background, to_background) = Background::nearest(pixel);
    let (color, to_color) = Color::nearest(pixel);
    if to_background <= to_color {
        background as usize
    } else {
        Background::ALL.len() + color as usize
    }
}

fn median(pixels: &[[f32; 3]]) -> [f32; 3] {
    [0, 1, 2].map(|channel| {
        let mut values: Vec<f32> = pixels.iter().map(|pixel| pixel[channel]).collect();
        let middle = values.len() / 2;
        if values.is_empty() {
            0.0
        } else {
            *values.select_nth_unstable_by(middle, f32::total_cmp).1
        }
    })
}

fn mean(pixels: &[[f32; 3]]) -> [f32; 3] {
    [0, 1, 2].map(|channel| pixels.iter().map(|pixel| pixel[channel]).sum::<f32>() / pixels.len() as f32)
}

/// Pixels connected along edges or corners, by index.
pub(super) type Component = Vec<usize>;

/// The components of a mask that are no specks, largest first.
pub(super) fn components(width: usize, mask: &[bool]) -> Vec<Component> {
    let mut free = mask.to_vec();
    let smallest = (MIN_AREA * mask.len() as f32).max(4.0) as usize;
    let mut found = Vec::new();
    for start in 0..mask.len() {
        if free[start] {
            let component = flood(width, &mut free, start);
            if component.len() >= smallest {
                found.push(component);
            }
        }
    }
    found.sort_by_key(|component| std::cmp::Reverse(component.len()));
    found.truncate(MAX_COMPONENTS);
    found
}

/// Takes the component of `start` out of the mask.
fn flood(width: usize, free: &mut [bool], start: usize) -> Component {
    let height = free.len() / width;
    free[start] = false;
    let mut component = vec![start];
    let mut next = 0;
    while let Some(&index) = component.get(next) {
        next += 1;
        let (x, y) = (index % width, index / width);
        for v in y.saturating_sub(1)..(y + 2).min(height) {
            for u in x.saturating_sub(1)..(x + 2).min(width) {
                let neighbor = v * width + u;
                if free[neighbor] {
                    free[neighbor] = false;
                    component.push(neighbor);
                }
            }
        }
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_join_corners_and_drop_specks() {
        let picture = [
            "##......", //
            "##......", "..##....", "..##....", "......#.", "........", "####....", "####....",
        ];
        let mask: Vec<bool> = picture.iter().flat_map(|row| row.bytes().map(|b| b == b'#')).collect();
        let sizes: Vec<usize> = components(8, &mask).iter().map(Vec::len).collect();
        assert_eq!(sizes, [8, 8]);
    }
}
