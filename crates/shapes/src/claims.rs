//! What a caption claims, as data.

mod parse;
mod write;

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::{Background, Color, Object, Relation, Shape, Size};

pub use parse::vocabulary;

/// The most words of a caption written by this crate.
pub const MAX_WORDS: usize = 24;

/// Objects that look alike, as far as a caption says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// How many there are, from 1.
    pub count: usize,
    /// Their size, where claimed.
    pub size: Option<Size>,
    /// Their color, where claimed.
    pub color: Option<Color>,
    /// Their shape, where claimed.
    pub shape: Option<Shape>,
}

impl Group {
    /// Whether an object is as the group says.
    pub fn describes(&self, object: &Object) -> bool {
        self.size.is_none_or(|size| size == object.size)
            && self.color.is_none_or(|color| color == object.color)
            && self.shape.is_none_or(|shape| shape == object.shape)
    }
}

/// The claim that the only object of one group stands in a relation to the only object of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationClaim {
    /// Index of the group that is, say, on the left.
    pub subject: usize,
    /// The relation.
    pub relation: Relation,
    /// Index of the other group.
    pub object: usize,
}

/// All that a caption claims. [`Claims::parse`] reads a caption; `to_string` writes the caption back.
///
/// The grammar, in lower-case words:
///
/// ```text
/// caption    = clause { "and" clause } [ "on" "a" BACKGROUND "background" ]
/// clause     = group [ relation group ]                      both groups of a relation count one object
/// group      = number [ size ] [ color ] noun
/// number     = "a" | "an" | "one" | "two" | "three" | "four"
/// size       = "small" | "large"
/// noun       = SHAPE | SHAPES | "object" | "objects"
/// relation   = "left of" | "right of" | "above" | "below"
/// ```
///
/// A caption is a complete inventory: it claims that there is nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claims {
    // Private, so that what cannot be written as a caption cannot be built: a relation joins neighboring groups.
    pub(crate) groups: Vec<Group>,
    pub(crate) relations: Vec<RelationClaim>,
    pub(crate) background: Option<Background>,
}

impl Claims {
    /// Reads a caption. Case, surplus spaces and a final period do not matter.
    ///
    /// # Errors
    /// [`Error::UnknownWord`], [`Error::UnexpectedWord`] and [`Error::UnexpectedEnd`] name the word that does not fit
    /// the grammar; [`Error::TooManyObjects`] when more is claimed than a scene holds.
    ///
    /// # Example
    /// ```
    /// use diptych_shapes::{Claims, Color, Shape};
    ///
    /// let claims = Claims::parse("two red circles and a small star on a gray background")?;
    /// assert_eq!(claims.num_objects(), 3);
    /// assert_eq!(claims.groups()[0].color, Some(Color::Red));
    /// assert_eq!(claims.groups()[1].shape, Some(Shape::Star));
    /// assert_eq!(claims.to_string(), "two red circles and a small star on a gray background");
    /// # Ok::<(), diptych_shapes::Error>(())
    /// ```
    pub fn parse(caption: &str) -> Result<Self> {
        parse::parse(caption)
    }

    /// Groups in the order of the caption.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Relations in the order of the caption.
    pub fn relations(&self) -> &[RelationClaim] {
        &self.relations
    }

    /// The background, where claimed.
    pub fn background(&self) -> Option<Background> {
        self.background
    }

    /// Objects claimed in all.
    pub fn num_objects(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }
}

impl FromStr for Claims {
    type Err = Error;

    fn from_str(caption: &str) -> Result<Self> {
        Self::parse(caption)
    }
}
