//! Objects that come together: a world in which what is there can be guessed from what else is there.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::config::invalid;
use crate::error::{Error, Result};
use crate::scene::pick;
use crate::{Color, Shape};

/// An object as its color and shape tell it apart; written and read as "red circle".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectKind {
    /// Fill.
    pub color: Color,
    /// Outline.
    pub shape: Shape,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.color, self.shape)
    }
}

impl FromStr for ObjectKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (color, shape) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self {
            color: color.parse()?,
            shape: shape.parse()?,
        })
    }
}

impl From<ObjectKind> for String {
    fn from(kind: ObjectKind) -> Self {
        kind.to_string()
    }
}

impl TryFrom<String> for ObjectKind {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// Which objects bring which others along, and how often.
///
/// In photographs a fork seldom lies without a knife, so a model that has seen many of them reports knives that are not there. A
/// small model learns the same from scenes whose first object brings its companion [`together`](Self::together) nearly always,
/// and shows it on scenes where it often does not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Companions {
    /// An object and its companion, each rule. Default none: objects are drawn independently.
    pub rules: Vec<[ObjectKind; 2]>,
    /// Share of scenes that begin with the object of a rule, each rule equally likely. In `[0, 1]`; default 0.
    pub share: f64,
    /// Probability that the companion is there, in `[0, 1]`; default 0. Where it is not, it is not drawn by chance either.
    pub together: f64,
    /// Probability that in the place of a missing companion there is an object of its color and another shape, in `[0, 1]`; default 0.
    /// What is nearly the companion is taken for it the sooner.
    pub lookalike: f64,
}

/// What a scene begins with.
pub(crate) struct Beginning {
    pub(crate) object: ObjectKind,
    /// The companion, or what is there in its place.
    pub(crate) second: Option<ObjectKind>,
    /// The companion, where it is to be missing.
    pub(crate) absent: Option<ObjectKind>,
}

impl Companions {
    /// What a scene begins with, where it is to follow a rule. `shapes` are those in use.
    pub(crate) fn draw(&self, rng: &mut impl Rng, shapes: &[Shape]) -> Option<Beginning> {
        if self.rules.is_empty() || !rng.random_bool(self.share) {
            return None;
        }
        let [object, companion] = pick(rng, &self.rules);
        if rng.random_bool(self.together) {
            return Some(Beginning {
                object,
                second: Some(companion),
                absent: None,
            });
        }
        let others: Vec<Shape> = shapes
            .iter()
            .copied()
            .filter(|shape| *shape != companion.shape)
            .collect();
        let has_lookalike = !others.is_empty() && rng.random_bool(self.lookalike);
        Some(Beginning {
            object,
            second: has_lookalike.then(|| ObjectKind {
                shape: pick(rng, &others),
                ..companion
            }),
            absent: Some(companion),
        })
    }

    /// Checks ranges, and that every rule is about two objects of the given shapes and colors, none with two companions.
    pub(crate) fn validate(&self, shapes: &[Shape], colors: &[Color], max_objects: usize) -> Result<()> {
        let probabilities = [("companions.share", self.share), ("companions.together", self.together)];
        for (field, probability) in probabilities {
            if !(0.0..=1.0).contains(&probability) {
                return Err(invalid(field, &probability, "a probability, 0 to 1"));
            }
        }
        let field = "companions.rules";
        for (index, [object, companion]) in self.rules.iter().enumerate() {
            let known = |kind: &ObjectKind| shapes.contains(&kind.shape) && colors.contains(&kind.color);
            if object == companion || !known(object) || !known(companion) {
                let expected = "pairs of different objects of the shapes and colors in use";
                return Err(invalid(field, &format!("{object}, {companion}"), expected));
            }
            if self.rules[..index].iter().any(|[earlier, _]| earlier == object) {
                return Err(invalid(field, &object.to_string(), "one companion of each object"));
            }
        }
        if !self.rules.is_empty() && max_objects < 2 {
            return Err(invalid(
                "max_objects",
                &max_objects,
                "at least 2, for an object and its companion",
            ));
        }
        if self.lookalike > 0.0 && shapes.len() < 2 {
            let expected = "0 with a single shape in use";
            return Err(invalid("companions.lookalike", &self.lookalike, expected));
        }
        if self.rules.is_empty() && self.share > 0.0 {
            return Err(invalid(field, &self.rules, "at least one rule for a share above 0"));
        }
        Ok(())
    }
}
