//! Claims to captions.

use std::fmt;

use super::{Claims, Group};
use crate::{Color, Size};

/// Counts as captions write them; the article stands for one.
pub(super) const NUMBERS: [&str; 3] = ["two", "three", "four"];

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.groups.iter().enumerate() {
            if index > 0 {
                match self.relations.iter().find(|claim| claim.object == index) {
                    Some(claim) => write!(f, " {} ", claim.relation)?,
                    None => f.write_str(" and ")?,
                }
            }
            group.fmt(f)?;
        }
        if let Some(background) = self.background {
            write!(f, " on a {background} background")?;
        }
        Ok(())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = match (self.shape, self.count) {
            (Some(shape), 1) => shape.name(),
            (Some(shape), _) => shape.plural(),
            (None, 1) => "object",
            (None, _) => "objects",
        };
        let adjectives = [self.size.map(Size::name), self.color.map(Color::name)];
        let adjectives = adjectives.into_iter().flatten();
        let first = adjectives.clone().next().unwrap_or(noun);
        f.write_str(match self.count {
            1 if first.starts_with(['a', 'e', 'i', 'o', 'u']) => "an",
            1 => "a",
            count => NUMBERS.get(count.wrapping_sub(2)).copied().unwrap_or("many"),
        })?;
        for adjective in adjectives {
            write!(f, " {adjective}")?;
        }
        write!(f, " {noun}")
    }
}
