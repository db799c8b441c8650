//! The palette: colors of objects and of backgrounds.
//!
//! Any two entries are at least 95 apart in RGB (0 to 255 per channel), so a nearest-color decision stands up to noise of
//! a few tens per channel; a test pins the distance.

use crate::named::named;

named! {
    /// Color of an object.
    pub enum Color as "color" {
        /// (215, 25, 35)
        Red = "red",
        /// (40, 165, 60)
        Green = "green",
        /// (40, 80, 225)
        Blue = "blue",
        /// (250, 225, 40)
        Yellow = "yellow",
        /// (140, 35, 190)
        Purple = "purple",
        /// (250, 130, 10)
        Orange = "orange",
        /// (50, 205, 225)
        Cyan = "cyan",
        /// (250, 130, 190)
        Pink = "pink",
    }
}

named! {
    /// Color of a background. None of them is a color of objects.
    pub enum Background as "background" {
        /// (255, 255, 255)
        White = "white",
        /// (128, 128, 128)
        Gray = "gray",
        /// (12, 12, 12)
        Black = "black",
        /// (100, 62, 30)
        Brown = "brown",
    }
}

impl Color {
    /// Red, green and blue, 0 to 255.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [215, 25, 35],
            Self::Green => [40, 165, 60],
            Self::Blue => [40, 80, 225],
            Self::Yellow => [250, 225, 40],
            Self::Purple => [140, 35, 190],
            Self::Orange => [250, 130, 10],
            Self::Cyan => [50, 205, 225],
            Self::Pink => [250, 130, 190],
        }
    }

    /// The nearest color of objects and its distance, Euclidean in RGB.
    pub fn nearest(rgb: [f32; 3]) -> (Self, f32) {
        nearest(Self::ALL, Self::rgb, rgb)
    }
}

impl Background {
    /// Red, green and blue, 0 to 255.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::White => [255, 255, 255],
            Self::Gray => [128, 128, 128],
            Self::Black => [12, 12, 12],
            Self::Brown => [100, 62, 30],
        }
    }

    /// The nearest background and its distance, Euclidean in RGB.
    pub fn nearest(rgb: [f32; 3]) -> (Self, f32) {
        nearest(Self::ALL, Self::rgb, rgb)
    }
}

/// Euclidean distance of two colors, 0 to 441.7.
pub(crate) fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    let [r, g, b] = [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
    (r * r + g * g + b * b).sqrt()
}

fn nearest<T: Copy>(members: &[T], rgb_of: impl Fn(T) -> [u8; 3], rgb: [f32; 3]) -> (T, f32) {
    let mut best = (members[0], f32::INFINITY);
    for &member in members {
        let distance = distance(rgb_of(member).map(f32::from), rgb);
        if distance < best.1 {
            best = (member, distance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_palette_is_well_separated() {
        let mut palette: Vec<[u8; 3]> = Color::ALL.iter().map(|c| c.rgb()).collect();
        palette.extend(Background::ALL.iter().map(|b| b.rgb()));
        assert_eq!(palette.len(), 12);
        for (i, a) in palette.iter().enumerate() {
            for b in &palette[..i] {
                let distance = distance(a.map(f32::from), b.map(f32::from));
                assert!(distance >= 95.0, "{a:?} and {b:?} are {distance} apart");
            }
        }
    }

    #[test]
    fn every_color_is_nearest_to_itself() {
        for &color in Color::ALL {
            assert_eq!(Color::nearest(color.rgb().map(f32::from)), (color, 0.0));
        }
        for &background in Background::ALL {
            assert_eq!(Background::nearest(background.rgb().map(f32::from)), (background, 0.0));
        }
    }

    #[test]
    fn names_round_trip() {
        for &color in Color::ALL {
            assert_eq!(color.name().parse::<Color>(), Ok(color));
            assert_eq!(serde_json::to_string(&color).unwrap(), format!("\"{color}\""));
        }
        assert!("mauve".parse::<Color>().unwrap_err().to_string().contains("mauve"));
    }
}
