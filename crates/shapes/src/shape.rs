//! The shapes and sizes of objects.

use crate::named::named;

named! {
    /// Outline of an object. Shapes are upright: there is no rotation, so a square is never a diamond.
    pub enum Shape as "shape" {
        /// A disc.
        Circle = "circle",
        /// An axis-aligned square.
        Square = "square",
        /// A triangle, tip up.
        Triangle = "triangle",
        /// A square standing on a corner.
        Diamond = "diamond",
        /// A five-pointed star, tip up.
        Star = "star",
        /// A plus sign.
        Cross = "cross",
        /// A disc with a hole.
        Ring = "ring",
        /// A heart, tip down.
        Heart = "heart",
    }
}

named! {
    /// Size of an object.
    pub enum Size as "size" {
        /// Box of 0.29 of the image side (9.3 px at 32).
        Small = "small",
        /// Box of 0.43 of the image side (13.8 px at 32).
        Large = "large",
    }
}

impl Size {
    /// Side of the square box that holds the object, as a share of the image side.
    pub const fn extent(self) -> f32 {
        match self {
            Self::Small => 0.29,
            Self::Large => 0.43,
        }
    }

    /// The size whose extent is nearest on a logarithmic scale: the border is the geometric mean, 0.353.
    pub fn nearest(extent: f32) -> Self {
        if extent * extent < Self::Small.extent() * Self::Large.extent() {
            Self::Small
        } else {
            Self::Large
        }
    }
}

/// Corners of the star, tip up: outer radius 1, inner radius 0.45, every 36 degrees clockwise from the tip.
/// Written out so that rendering needs no trigonometry and is the same to the last bit everywhere.
const STAR: [[f32; 2]; 10] = [
    [0.0, -1.0],
    [0.264_503_4, -0.364_057_63],
    [0.951_056_5, -0.309_017],
    [0.427_975_42, 0.139_057_64],
    [0.587_785_24, 0.809_017],
    [0.0, 0.45],
    [-0.587_785_24, 0.809_017],
    [-0.427_975_42, 0.139_057_64],
    [-0.951_056_5, -0.309_017],
    [-0.264_503_4, -0.364_057_63],
];

impl Shape {
    /// The plural used in captions.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Diamond => "diamonds",
            Self::Star => "stars",
            Self::Cross => "crosses",
            Self::Ring => "rings",
            Self::Heart => "hearts",
        }
    }

    /// Whether a point lies in the shape, in the coordinates of its box: both axes from -1 to 1, y down.
    pub fn contains(self, x: f32, y: f32) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 1.0,
            // A square that filled its box would look larger than a circle of the same size.
            Self::Square => x.abs() <= 0.86 && y.abs() <= 0.86,
            Self::Triangle => y <= 0.85 && (y + 0.95) >= 1.8 * x.abs(),
            Self::Diamond => x.abs() + y.abs() <= 1.0,
            Self::Star => star_contains(x, y),
            Self::Cross => x.abs().max(y.abs()) <= 0.96 && x.abs().min(y.abs()) <= 0.32,
            Self::Ring => (0.3..=1.0).contains(&(x * x + y * y)),
            Self::Heart => {
                // (u^2 + v^2 - 1)^3 <= u^2 v^3, a heart about 2.3 wide and high whose box is centered at v = 0.12.
                let (u, v) = (1.14 * x, 0.12 - 1.12 * y);
                let ball = u * u + v * v - 1.0;
                ball * ball * ball <= u * u * v * v * v
            }
        }
    }
}

/// Even-odd rule over the edges of [`STAR`].
fn star_contains(x: f32, y: f32) -> bool {
    let mut inside = false;
    let mut previous = STAR[STAR.len() - 1];
    for corner in STAR {
        let [[x0, y0], [x1, y1]] = [previous, corner];
        if (y0 > y) != (y1 > y) && x < (x1 - x0) * (y - y0) / (y1 - y0) + x0 {
            inside = !inside;
        }
        previous = corner;
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: i32 = 400;

    /// Share of the box that the shape covers, and the box of its points.
    fn measure(shape: Shape) -> (f32, [f32; 4]) {
        let (mut hits, mut bounds) = (0, [f32::MAX, f32::MAX, f32::MIN, f32::MIN]);
        for row in -STEPS..STEPS {
            for column in -STEPS..STEPS {
                let (x, y) = (
                    (column as f32 + 0.5) * 1.2 / STEPS as f32,
                    (row as f32 + 0.5) * 1.2 / STEPS as f32,
                );
                if shape.contains(x, y) {
                    hits += 1;
                    bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x), bounds[3].max(y)];
                }
            }
        }
        (hits as f32 * 1.44 / (4 * STEPS * STEPS) as f32, bounds)
    }

    #[test]
    fn shapes_stay_in_their_box_and_nearly_fill_it() {
        for &shape in Shape::ALL {
            let (_, [left, top, right, bottom]) = measure(shape);
            assert!(
                left >= -1.0 && top >= -1.0 && right <= 1.0 && bottom <= 1.0,
                "{shape} leaves its box"
            );
            assert!(
                right - left >= 1.7 && bottom - top >= 1.7,
                "{shape} is small: {left} {top} {right} {bottom}"
            );
            assert!((left + right).abs() < 0.02, "{shape} is not symmetric");
            assert!((top + bottom).abs() < 0.2, "{shape} is far off center: {top} {bottom}");
        }
    }

    #[test]
    fn areas_match_geometry() {
        // Exact areas over the area 4 of the box; the star is half the cross product sum, 5 r R sin 36.
        let expected = [
            (Shape::Circle, std::f32::consts::PI / 4.0),
            (Shape::Square, 0.86 * 0.86),
            (Shape::Triangle, 1.8 * 1.0 / 4.0),
            (Shape::Diamond, 0.5),
            (Shape::Star, 5.0 * 0.45 * 0.587_785_24 / 4.0),
            (Shape::Cross, (4.0 * 0.96 * 0.64 - 0.64 * 0.64) / 4.0),
            (Shape::Ring, std::f32::consts::PI * 0.7 / 4.0),
        ];
        for (shape, area) in expected {
            assert!(
                (measure(shape).0 - area).abs() < 0.003,
                "{shape}: {} instead of {area}",
                measure(shape).0
            );
        }
    }

    #[test]
    fn size_border_is_the_geometric_mean() {
        assert_eq!(Size::nearest(0.352), Size::Small);
        assert_eq!(Size::nearest(0.354), Size::Large);
        for &size in Size::ALL {
            assert_eq!(Size::nearest(size.extent()), size);
        }
    }
}
