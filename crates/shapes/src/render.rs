//! Scenes to pixels.

use image::{Rgb, RgbImage};

use crate::scene::{Object, Scene};

/// Samples per pixel and axis.
const SAMPLES: u32 = 8;

/// Renders a scene as a square of `size` by `size` pixels.
///
/// Edges are antialiased: a pixel's coverage is counted on 8 x 8 samples and blends the color of the object over the
/// background. The result depends on the scene and the size alone, to the last bit, on every machine.
pub fn render(scene: &Scene, size: u32) -> RgbImage {
    let mut image = RgbImage::from_pixel(size, size, Rgb(scene.background.rgb()));
    for object in &scene.objects {
        draw(&mut image, object);
    }
    image
}

fn draw(image: &mut RgbImage, object: &Object) {
    let size = image.width();
    let [columns, rows] = object
        .center
        .map(|center| pixels_of(center, object.size.extent(), size));
    for y in rows {
        for x in columns.clone() {
            let hits = hits_of_pixel(object, x, y, size);
            let pixel = image.get_pixel_mut(x, y);
            for (channel, color) in pixel.0.iter_mut().zip(object.color.rgb()) {
                *channel = blend(*channel, color, hits);
            }
        }
    }
}

/// Pixels along one axis that the box of an object reaches.
fn pixels_of(center: f32, extent: f32, size: u32) -> std::ops::Range<u32> {
    let pixels = size as f32;
    let low = ((center - extent / 2.0) * pixels).floor().clamp(0.0, pixels);
    let high = ((center + extent / 2.0) * pixels).ceil().clamp(0.0, pixels);
    low as u32..high as u32
}

/// Samples of the pixel that lie in the object, of `SAMPLES * SAMPLES`.
fn hits_of_pixel(object: &Object, x: u32, y: u32, size: u32) -> u32 {
    let [cx, cy] = object.center;
    // From shares of the image side to the box of the shape, -1 to 1.
    let scale = 2.0 / object.size.extent();
    let grid = (size * SAMPLES) as f32;
    let at = |pixel: u32, sample: u32| ((pixel * SAMPLES + sample) as f32 + 0.5) / grid;
    let mut hits = 0;
    for j in 0..SAMPLES {
        let v = (at(y, j) - cy) * scale;
        for i in 0..SAMPLES {
            hits += u32::from(object.shape.contains((at(x, i) - cx) * scale, v));
        }
    }
    hits
}

/// Integer blend with rounding.
fn blend(under: u8, over: u8, hits: u32) -> u8 {
    let total = SAMPLES * SAMPLES;
    let sum = u32::from(over) * hits + u32::from(under) * (total - hits);
    // At most 255: a weighted mean of two bytes.
    ((sum + total / 2) / total) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, Color, Shape, Size};

    fn one(shape: Shape) -> Scene {
        let object = Object {
            shape,
            color: Color::Red,
            size: Size::Large,
            center: [0.5, 0.5],
        };
        Scene {
            background: Background::White,
            objects: vec![object],
        }
    }

    #[test]
    fn coverage_sums_to_the_area() {
        let size = 64;
        let image = render(&one(Shape::Circle), size);
        // Blue falls from 255 to 35 where the circle covers.
        let covered: f64 = image.pixels().map(|p| (255.0 - f64::from(p.0[2])) / 220.0).sum();
        let radius = 0.43 * f64::from(size) / 2.0;
        let area = std::f64::consts::PI * radius * radius;
        assert!((covered - area).abs() < 0.01 * area, "{covered} instead of {area}");
    }

    #[test]
    fn inside_is_pure_and_outside_untouched() {
        for &shape in Shape::ALL {
            let image = render(&one(shape), 64);
            assert_eq!(image.get_pixel(0, 0).0, [255; 3]);
            let middle = if shape == Shape::Ring {
                [255; 3]
            } else {
                Color::Red.rgb()
            };
            assert_eq!(image.get_pixel(32, 32).0, middle, "{shape}");
        }
    }

    #[test]
    fn any_size_renders() {
        for size in [0, 1, 2, 7, 33, 200] {
            assert_eq!(render(&one(Shape::Star), size).dimensions(), (size, size));
        }
    }
}
