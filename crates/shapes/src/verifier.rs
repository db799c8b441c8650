//! Reading a scene back from pixels, by analysis through synthesis.

mod explain;
mod fit;
mod raster;
mod segment;
mod template;

use image::RgbImage;
use serde::Serialize;

use crate::color::distance;
use crate::error::Result;
use crate::report::Report;
use crate::scene::Scene;
use crate::{Background, Claims, Color, Shape, Size};

use raster::Raster;
use template::Templates;

/// Images smaller than this along either axis hold nothing that could be told apart.
const MIN_SIDE: u32 = 8;

/// One object as read from pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReadObject {
    /// The best-fitting outline.
    pub shape: Shape,
    /// The nearest color.
    pub color: Color,
    /// The nearest size.
    pub size: Size,
    /// Center of its box, x right and y down, as shares of the width and the height.
    pub center: [f32; 2],
    /// Share of what sets the object's pixels apart from the background (in squared color difference, noise taken out)
    /// that an object of this shape explains, 0 to 1. Clean renders reach 0.95 and more; a blob of no shape stays below 0.8.
    pub confidence: f32,
    /// Measured side of its box as a share of the image side.
    pub extent: f32,
    /// Measured color, 0 to 255; least squares can overshoot a little.
    pub rgb: [f32; 3],
}

/// A scene as read from pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// The background; none when no background color covers a good part of the image.
    pub background: Option<Background>,
    /// Distance (RGB, 0 to 441) of the measured background color from the palette's; 0 without a background.
    pub background_distance: f32,
    /// The objects; those that stand out most, by area and contrast, come first.
    pub objects: Vec<ReadObject>,
}

impl From<&Scene> for Reading {
    /// What a perfect reader would see.
    fn from(scene: &Scene) -> Self {
        let objects = scene.objects.iter().map(|object| ReadObject {
            shape: object.shape,
            color: object.color,
            size: object.size,
            center: object.center,
            confidence: 1.0,
            extent: object.size.extent(),
            rgb: object.color.rgb().map(f32::from),
        });
        Self {
            background: Some(scene.background),
            background_distance: 0.0,
            objects: objects.collect(),
        }
    }
}

/// Reads scenes from images and judges captions by them. Build it once: it holds tables of the shapes (1.2 MiB).
///
/// # Method
/// Analysis through synthesis:
///
/// 1. Images whose longer side exceeds 64 px are averaged down to 64; the noise level is estimated.
/// 2. Every pixel votes for the nearest color of the palette; the background with the most votes wins, and its true
///    color is the mean of its pixels.
/// 3. Pixels that differ from it form connected components; specks are dropped.
/// 4. To each component, every shape is fitted over position, size and blur: the coverage that the renderer would
///    produce is correlated with the difference from the background, and the best explanation of the pixels
///    wins. The fit gives the color as well, as the least-squares color under the coverage, which neither antialiased
///    edges nor blur pull towards the background.
/// 5. A component that no single object explains is taken apart, best explanation first: touching objects
///    are told apart by shape and color.
#[derive(Debug, Clone)]
pub struct Verifier {
    templates: Templates,
}

impl Default for Verifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Verifier {
    /// Prepares the tables, in about a hundredth of a second.
    pub fn new() -> Self {
        Self {
            templates: Templates::new(),
        }
    }

    /// Reads an image of any size. Images under 8 px along an axis read as a background without objects.
    pub fn read(&self, image: &RgbImage) -> Reading {
        if image.width() == 0 || image.height() == 0 {
            return Reading {
                background: None,
                background_distance: 0.0,
                objects: Vec::new(),
            };
        }
        let raster = Raster::new(image);
        let ground = segment::ground(&raster);
        let background_distance = ground
            .background
            .map_or(0.0, |background| distance(background.rgb().map(f32::from), ground.rgb));
        let objects = if image.width().min(image.height()) < MIN_SIDE {
            Vec::new()
        } else {
            explain::objects(&self.templates, &raster, &ground)
        };
        Reading {
            background: ground.background,
            background_distance,
            objects,
        }
    }

    /// How well an image shows what a caption claims, in `[0, 1]`: [`Report::score`] of [`Verifier::check`].
    ///
    /// # Errors
    /// As [`Claims::parse`].
    ///
    /// # Example
    /// ```
    /// use diptych_shapes::{Example, SceneConfig, Split, Verifier, render};
    ///
    /// let example = Example::generate(0, 0, Split::Train, &SceneConfig::default())?;
    /// let score = Verifier::new().score(&example.caption, &render(&example.scene, 32))?;
    /// assert_eq!(score, 1.0);
    /// # Ok::<(), diptych_shapes::Error>(())
    /// ```
    pub fn score(&self, caption: &str, image: &RgbImage) -> Result<f64> {
        Ok(self.check(caption, image)?.score())
    }

    /// Every claim of a caption and whether it holds in an image.
    ///
    /// # Errors
    /// As [`Claims::parse`].
    pub fn check(&self, caption: &str, image: &RgbImage) -> Result<Report> {
        // The caption is parsed first: reading pixels is the expensive part.
        let claims = Claims::parse(caption)?;
        Ok(Report::new(&claims, &self.read(image)))
    }
}
