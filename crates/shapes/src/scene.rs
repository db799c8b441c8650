//! What is in a picture: a background and one to four objects.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::config::SceneConfig;
use crate::error::Result;
use crate::layout;
use crate::{Background, Color, Shape, Size};

/// The most objects a scene holds.
pub const MAX_OBJECTS: usize = 4;

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Fill.
    pub color: Color,
    /// Size.
    pub size: Size,
    /// Center of its box, x right and y down, as shares of the image side.
    pub center: [f32; 2],
}

/// A background and its objects, in no particular order. Objects neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Color behind the objects.
    pub background: Background,
    /// The objects.
    pub objects: Vec<Object>,
}

impl Scene {
    /// Draws a scene.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when [`SceneConfig::validate`] fails.
    pub fn sample(rng: &mut impl Rng, config: &SceneConfig) -> Result<Self> {
        config.validate()?;
        let background = pick(rng, &config.backgrounds);
        let mut num_objects = rng.random_range(config.min_objects..=config.max_objects);
        let mut looks: Vec<(Shape, Color, Size)> = Vec::with_capacity(num_objects);
        let beginning = config.companions.draw(rng, &config.shapes);
        let absent = beginning.as_ref().and_then(|beginning| beginning.absent);
        for kind in beginning
            .into_iter()
            .flat_map(|beginning| [Some(beginning.object), beginning.second])
        {
            looks.extend(kind.map(|kind| (kind.shape, kind.color, pick(rng, &config.sizes))));
        }
        num_objects = num_objects.max(looks.len());
        while looks.len() < num_objects {
            let look = if !looks.is_empty() && rng.random_bool(config.repeat) {
                // Independent draws would hardly ever agree, and there would be nothing to count.
                looks[rng.random_range(0..looks.len())]
            } else {
                (
                    pick(rng, &config.shapes),
                    pick(rng, &config.colors),
                    pick(rng, &config.sizes),
                )
            };
            if absent.is_none_or(|kind| (kind.shape, kind.color) != (look.0, look.1)) {
                looks.push(look);
            }
        }
        let extents: Vec<f32> = looks.iter().map(|(_, _, size)| size.extent()).collect();
        let centers = layout::place(rng, &extents);
        let objects = looks
            .into_iter()
            .zip(centers)
            .map(|((shape, color, size), center)| Object {
                shape,
                color,
                size,
                center,
            })
            .collect();
        Ok(Self { background, objects })
    }
}

/// One of the members, each equally likely; the slice is not empty.
pub(crate) fn pick<T: Copy>(rng: &mut impl Rng, members: &[T]) -> T {
    members[rng.random_range(0..members.len())]
}
