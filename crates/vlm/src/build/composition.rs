//! Several images as one: side by side with numbers, or one in the middle of another.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::speaker::PatchGrid;

/// Several images as one, and where one of them is in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Composed {
    /// A square, of which no processor cuts anything off.
    pub(super) image: RgbImage,
    /// Left, top, right and bottom of the image that is asked about, as shares of the side.
    pub(super) target: [f64; 4],
}

/// Rows and columns of so many images; none for a number that makes no full rows.
pub(super) fn grid(num: usize) -> Option<[u32; 2]> {
    match num {
        2 => Some([1, 2]),
        3 => Some([1, 3]),
        4 => Some([2, 2]),
        6 => Some([2, 3]),
        9 => Some([3, 3]),
        _ => None,
    }
}

/// Images in rows from the left, each in the upper left corner of a square cell, with its number above it.
pub(super) fn collage(images: &[RgbImage], [rows, columns]: [u32; 2], target: usize, cell: u32) -> Composed {
    // Of the published 448 pixels, 40; and room for a digit.
    let margin = (cell * 40 / 448).max(DIGIT_ROWS + 2);
    let width = columns * cell + (columns - 1) * margin;
    let height = rows * (cell + margin);
    let side = width.max(height);
    let mut canvas = RgbImage::from_pixel(side, side, Rgb([255; 3]));
    let [left, top] = [(side - width) / 2, (side - height) / 2];
    let mut place = [0.0; 4];
    for (number, image) in images.iter().enumerate() {
        let (row, column) = (number as u32 / columns, number as u32 % columns);
        let x = left + column * (cell + margin);
        let y = top + row * (cell + margin) + margin;
        let fitted = fitted(image, cell);
        imageops::replace(&mut canvas, &fitted, i64::from(x), i64::from(y));
        draw_digit(&mut canvas, number + 1, [x, y - margin], (margin - 2) / DIGIT_ROWS);
        if number == target {
            let ends = [x, y, x + fitted.width(), y + fitted.height()];
            place = ends.map(|end| f64::from(end) / f64::from(side));
        }
    }
    Composed {
        image: canvas,
        target: place,
    }
}

/// One image in the middle of another, whose middle it covers; it takes up to `share` of the side.
pub(super) fn picture_in_picture(front: &RgbImage, back: &RgbImage, share: f64) -> Composed {
    let side = back.width().max(back.height());
    let mut canvas = covering(back, side);
    let front = fitted(front, ((f64::from(side) * share) as u32).max(1));
    let [x, y] = [(side - front.width()) / 2, (side - front.height()) / 2];
    imageops::replace(&mut canvas, &front, i64::from(x), i64::from(y));
    let ends = [x, y, x + front.width(), y + front.height()];
    Composed {
        image: canvas,
        target: ends.map(|end| f64::from(end) / f64::from(side)),
    }
}

/// The patches whose middle is in a part of an image.
pub(super) fn patches_in(grid: PatchGrid, [left, top, right, bottom]: [f64; 4]) -> Vec<usize> {
    let middle = |at: usize, count: usize| (at as f64 + 0.5) / count as f64;
    let is_inside = |at: &usize| {
        let (x, y) = (
            middle(at % grid.columns, grid.columns),
            middle(at / grid.columns, grid.rows),
        );
        left <= x && x < right && top <= y && y < bottom
    };
    let places = (0..grid.rows * grid.columns).filter(is_inside);
    places.map(|at| grid.first + at).collect()
}

/// The image with its longer side at so many pixels.
fn fitted(image: &RgbImage, side: u32) -> RgbImage {
    let longer = f64::from(image.width().max(image.height()));
    let scaled = |length: u32| ((f64::from(length) * f64::from(side) / longer) as u32).max(1);
    imageops::resize(
        image,
        scaled(image.width()),
        scaled(image.height()),
        FilterType::Lanczos3,
    )
}

/// The middle of an image as a square of so many pixels.
fn covering(image: &RgbImage, side: u32) -> RgbImage {
    let shorter = image.width().min(image.height());
    let [x, y] = [(image.width() - shorter) / 2, (image.height() - shorter) / 2];
    let middle = imageops::crop_imm(image, x, y, shorter, shorter).to_image();
    imageops::resize(&middle, side, side, FilterType::Lanczos3)
}

/// Rows of a digit.
const DIGIT_ROWS: u32 = 7;

/// The digits from 0, each row five dots from the highest bit.
const DIGITS: [[u8; DIGIT_ROWS as usize]; 10] = [
    [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
    [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
    [0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111],
    [0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110],
    [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
    [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
    [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
    [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
    [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
    [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
];

/// A digit in black, each dot a square of `dot` pixels, at least one.
fn draw_digit(canvas: &mut RgbImage, digit: usize, [left, top]: [u32; 2], dot: u32) {
    let dot = dot.max(1);
    for (row, dots) in DIGITS[digit % 10].iter().enumerate() {
        for column in (0..5).filter(|column| dots >> (4 - column) & 1 == 1) {
            for (x, y) in (0..dot).flat_map(|x| (0..dot).map(move |y| (x, y))) {
                let place = (left + column * dot + x, top + row as u32 * dot + y);
                if let Some(pixel) = canvas.get_pixel_mut_checked(place.0, place.1) {
                    *pixel = Rgb([0; 3]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: u32, height: u32, value: u8) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb([value, 10, 10]))
    }

    #[test]
    fn the_target_is_where_it_is_said_to_be() {
        for num in [2, 3, 4, 6, 9] {
            let images: Vec<RgbImage> = (0..num)
                .map(|value| plain(40, 20 + value as u32, 100 + value as u8))
                .collect();
            for target in 0..num {
                let made = collage(&images, grid(num).unwrap(), target, 64);
                let side = f64::from(made.image.width());
                assert_eq!(made.image.width(), made.image.height());
                let [left, top, right, bottom] = made.target;
                let at = |x: f64, y: f64| made.image.get_pixel((x * side) as u32, (y * side) as u32).0[0];
                let (x, y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
                assert_eq!(at(x, y), 100 + target as u8, "{target} of {num}");
                // Inside of its edges it is itself, outside white or a digit.
                assert_eq!(at(left + 1.0 / side, bottom - 1.5 / side), 100 + target as u8);
                assert_ne!(at(left + 1.0 / side, bottom + 1.0 / side), 100 + target as u8);
            }
        }
        assert_eq!((grid(1), grid(5), grid(10)), (None, None, None));
    }

    #[test]
    fn a_picture_stands_in_the_middle_of_another() {
        let made = picture_in_picture(&plain(30, 60, 200), &plain(100, 50, 50), 0.7);
        assert_eq!(made.image.dimensions(), (100, 100));
        let [left, top, right, bottom] = made.target;
        assert!(
            (bottom - top - 0.7).abs() < 0.011 && (right - left - 0.35).abs() < 0.011,
            "{:?}",
            made.target
        );
        assert_eq!(
            (made.image.get_pixel(50, 50).0[0], made.image.get_pixel(10, 50).0[0]),
            (200, 50)
        );
    }

    #[test]
    fn patches_are_those_inside() {
        let grid = PatchGrid {
            first: 1,
            rows: 4,
            columns: 4,
        };
        assert_eq!(patches_in(grid, [0.0, 0.0, 0.5, 0.5]), [1, 2, 5, 6]);
        assert_eq!(patches_in(grid, [0.25, 0.25, 0.75, 0.75]), [6, 7, 10, 11]);
        assert_eq!(patches_in(grid, [0.0, 0.0, 1.0, 1.0]).len(), 16);
    }

    #[test]
    fn digits_differ() {
        let drawn = |digit| {
            let mut canvas = RgbImage::from_pixel(10, 14, Rgb([255; 3]));
            draw_digit(&mut canvas, digit, [0, 0], 2);
            canvas
        };
        for first in 0..10 {
            assert!((0..first).all(|second| drawn(first) != drawn(second)));
        }
    }
}
