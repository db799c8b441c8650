//! Which scenes and captions are drawn.

use serde::{Deserialize, Serialize};

use crate::caption::CaptionConfig;
use crate::companions::Companions;
use crate::error::{Error, Result};
use crate::scene::MAX_OBJECTS;
use crate::{Background, Color, Shape, Size};

/// The distribution of scenes and captions. Every field has a default: all of the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SceneConfig {
    /// Fewest objects of a scene, from 1. Default 1.
    pub min_objects: usize,
    /// Most objects of a scene, up to [`MAX_OBJECTS`]. Default 4.
    pub max_objects: usize,
    /// Shapes in use.
    pub shapes: Vec<Shape>,
    /// Colors in use.
    pub colors: Vec<Color>,
    /// Sizes in use.
    pub sizes: Vec<Size>,
    /// Backgrounds in use.
    pub backgrounds: Vec<Background>,
    /// Probability that an object looks exactly like an earlier one of its scene, which gives captions something to
    /// count. In `[0, 1]`; default 0.25.
    pub repeat: f64,
    /// Objects that come together. Default none.
    pub companions: Companions,
    /// How captions are written.
    pub captions: CaptionConfig,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            min_objects: 1,
            max_objects: MAX_OBJECTS,
            shapes: Shape::ALL.to_vec(),
            colors: Color::ALL.to_vec(),
            sizes: Size::ALL.to_vec(),
            backgrounds: Background::ALL.to_vec(),
            repeat: 0.25,
            companions: Companions::default(),
            captions: CaptionConfig::default(),
        }
    }
}

impl SceneConfig {
    /// Checks ranges, and that lists are neither empty nor repetitive.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first field that does not hold.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_OBJECTS).contains(&self.min_objects) {
            return Err(invalid("min_objects", &self.min_objects, "1 to 4"));
        }
        if !(self.min_objects..=MAX_OBJECTS).contains(&self.max_objects) {
            return Err(invalid("max_objects", &self.max_objects, "min_objects to 4"));
        }
        check_list("shapes", &self.shapes)?;
        check_list("colors", &self.colors)?;
        check_list("sizes", &self.sizes)?;
        check_list("backgrounds", &self.backgrounds)?;
        if !(0.0..=1.0).contains(&self.repeat) {
            return Err(invalid("repeat", &self.repeat, "a probability, 0 to 1"));
        }
        self.companions.validate(&self.shapes, &self.colors, self.max_objects)?;
        self.captions.validate()
    }
}

pub(crate) fn invalid(field: &'static str, found: &dyn std::fmt::Debug, expected: &'static str) -> Error {
    Error::InvalidConfig {
        field,
        found: format!("{found:?}"),
        expected,
    }
}

fn check_list<T: PartialEq + std::fmt::Debug>(field: &'static str, members: &[T]) -> Result<()> {
    let repeats = (1..members.len()).any(|i| members[..i].contains(&members[i]));
    if members.is_empty() || repeats {
        return Err(invalid(field, &members, "at least one member, each once"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CaptionOrder;

    #[test]
    fn the_default_is_valid_and_round_trips() {
        let config = SceneConfig::default();
        config.validate().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<SceneConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<SceneConfig>("{}").unwrap(), config);
    }

    #[test]
    fn unknown_fields_and_names_are_refused() {
        assert!(serde_json::from_str::<SceneConfig>(r#"{"min_object": 1}"#).is_err());
        assert!(serde_json::from_str::<SceneConfig>(r#"{"shapes": ["blob"]}"#).is_err());
        assert!(serde_json::from_str::<SceneConfig>(r#"{"captions": {"plane": 1.0}}"#).is_err());
    }

    #[test]
    fn each_bad_value_is_named() {
        type Spoil = fn(&mut SceneConfig);
        let bad: [(&str, Spoil); 16] = [
            ("min_objects", |c| c.min_objects = 0),
            ("max_objects", |c| c.max_objects = 5),
            ("max_objects", |c| (c.min_objects, c.max_objects) = (3, 2)),
            ("shapes", |c| c.shapes.clear()),
            ("colors", |c| c.colors.push(Color::Red)),
            ("repeat", |c| c.repeat = f64::NAN),
            ("companions.share", |c| c.companions.share = 1.1),
            ("companions.together", |c| c.companions.together = -0.1),
            ("companions.lookalike", |c| {
                (c.companions.lookalike, c.shapes) = (0.5, vec![Shape::Star]);
            }),
            ("companions.rules", |c| c.companions.share = 0.5),
            ("max_objects", |c| {
                c.max_objects = 1;
                c.companions.rules = vec![["red circle", "blue square"].map(|kind| kind.parse().unwrap())];
            }),
            ("captions.plain", |c| c.captions.plain = -1.0),
            ("captions.order", |c| c.captions.order = CaptionOrder::Palette),
            ("captions.background", |c| c.captions.background = 1.5),
            ("captions.mislabel", |c| c.captions.mislabel = f64::NAN),
            ("captions", |c| {
                c.captions = CaptionConfig {
                    counting: 0.0,
                    plain: 0.0,
                    sized: 0.0,
                    spatial: 0.0,
                    detailed: 0.0,
                    background: 0.0,
                    order: CaptionOrder::Shuffled,
                    mislabel: 0.0,
                }
            }),
        ];
        for (field, spoil) in bad {
            let mut config = SceneConfig::default();
            spoil(&mut config);
            match config.validate() {
                Err(Error::InvalidConfig { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
