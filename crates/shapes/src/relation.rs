//! Where two objects stand to each other.

use crate::named::named;

named! {
    /// Position of one object relative to another.
    pub enum Relation as "relation" {
        /// The first center lies to the left.
        Left = "left of",
        /// The first center lies to the right.
        Right = "right of",
        /// The first center lies higher.
        Above = "above",
        /// The first center lies lower.
        Below = "below",
    }
}

/// A relation holds when the centers are at least this far apart along its axis, as a share of the image side.
pub const RELATION_MARGIN: f32 = 0.1;
/// Captions and questions only speak of relations that are this clear, twice the margin.
pub(crate) const CLEAR_MARGIN: f32 = 0.2;

impl Relation {
    /// The relation seen from the other object.
    pub const fn inverse(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }

    /// How far the first center lies in the direction of the relation from the second; negative when opposite.
    pub fn offset(self, first: [f32; 2], second: [f32; 2]) -> f32 {
        match self {
            Self::Left => second[0] - first[0],
            Self::Right => first[0] - second[0],
            Self::Above => second[1] - first[1],
            Self::Below => first[1] - second[1],
        }
    }

    /// Whether the relation holds, by [`RELATION_MARGIN`].
    pub fn holds(self, first: [f32; 2], second: [f32; 2]) -> bool {
        self.offset(first, second) >= RELATION_MARGIN
    }

    /// The relation along the axis on which the centers are further apart, when it is clear enough to speak of.
    pub fn between(first: [f32; 2], second: [f32; 2]) -> Option<Self> {
        let mut best = Self::Left;
        for &relation in Self::ALL {
            if relation.offset(first, second) > best.offset(first, second) {
                best = relation;
            }
        }
        (best.offset(first, second) >= CLEAR_MARGIN).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_follow_the_dominant_axis() {
        assert_eq!(Relation::between([0.2, 0.5], [0.7, 0.6]), Some(Relation::Left));
        assert_eq!(Relation::between([0.7, 0.6], [0.2, 0.5]), Some(Relation::Right));
        assert_eq!(Relation::between([0.5, 0.2], [0.6, 0.8]), Some(Relation::Above));
        assert_eq!(Relation::between([0.6, 0.8], [0.5, 0.2]), Some(Relation::Below));
        assert_eq!(Relation::between([0.5, 0.5], [0.6, 0.6]), None);
    }

    #[test]
    fn the_inverse_holds_from_the_other_side() {
        for &relation in Relation::ALL {
            assert_eq!(relation.inverse().inverse(), relation);
            assert_eq!(
                relation.offset([0.1, 0.3], [0.6, 0.9]),
                relation.inverse().offset([0.6, 0.9], [0.1, 0.3])
            );
        }
        assert!(Relation::Left.holds([0.2, 0.5], [0.31, 0.5]));
        assert!(!Relation::Left.holds([0.2, 0.5], [0.29, 0.5]));
    }
}
