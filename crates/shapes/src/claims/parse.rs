//! Captions to claims: one function per rule of the grammar.

use super::write::NUMBERS;
use super::{Claims, Group, RelationClaim};
use crate::error::{Error, Result};
use crate::scene::MAX_OBJECTS;
use crate::{Background, Color, Relation, Shape, Size};

const NUMBER: &str = "a number: a, an, one, two, three or four";

/// Every word that captions use, in a fixed order, each once.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = vec!["a", "an", "one"];
    words.extend(NUMBERS);
    words.extend(Size::NAMES);
    words.extend(Color::NAMES);
    for shape in Shape::ALL {
        words.extend([shape.name(), shape.plural()]);
    }
    words.extend([
        "object",
        "objects",
        "left",
        "right",
        "of",
        "above",
        "below",
        "and",
        "on",
        "background",
    ]);
    words.extend(Background::NAMES);
    words
}

pub(super) fn parse(caption: &str) -> Result<Claims> {
    let caption = caption.trim().to_lowercase();
    let mut words = Words {
        words: caption.trim_end_matches('.').split_whitespace().collect(),
        at: 0,
    };
    let mut claims = Claims {
        groups: Vec::new(),
        relations: Vec::new(),
        background: None,
    };
    loop {
        clause(&mut words, &mut claims)?;
        match words.peek() {
            Some("and") => words.at += 1,
            Some("on") => {
                words.at += 1;
                claims.background = Some(background(&mut words)?);
                match words.peek() {
                    None => break,
                    Some(_) => return Err(words.misfit("the end of the caption")),
                }
            }
            None => break,
            Some(_) => return Err(words.misfit("a relation, \"and\", \"on\" or the end of the caption")),
        }
    }
    let found = claims.num_objects();
    if found > MAX_OBJECTS {
        return Err(Error::TooManyObjects {
            found,
            limit: MAX_OBJECTS,
        });
    }
    Ok(claims)
}

fn clause(words: &mut Words<'_>, claims: &mut Claims) -> Result<()> {
    claims.groups.push(group(words, Number::Any)?);
    let subject = claims.groups.len() - 1;
    let relation = match words.peek() {
        Some("left") => Relation::Left,
        Some("right") => Relation::Right,
        Some("above") => Relation::Above,
        Some("below") => Relation::Below,
        _ => return Ok(()),
    };
    if claims.groups[subject].count != 1 {
        return Err(words.misfit("\"and\" or \"on\": a relation joins single objects"));
    }
    words.at += 1;
    if matches!(relation, Relation::Left | Relation::Right) {
        words.take("of", "\"of\"")?;
    }
    claims.groups.push(group(words, Number::Single)?);
    claims.relations.push(RelationClaim {
        subject,
        relation,
        object: subject + 1,
    });
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Any,
    Single,
}

fn group(words: &mut Words<'_>, number: Number) -> Result<Group> {
    let count = match words.peek() {
        Some("a" | "an" | "one") => 1,
        Some(word) => match NUMBERS.iter().position(|&number| number == word) {
            Some(_) if number == Number::Single => return Err(words.misfit("a or an: a relation joins single objects")),
            Some(index) => index + 2,
            None => return Err(words.misfit(NUMBER)),
        },
        None => return Err(words.misfit(NUMBER)),
    };
    words.at += 1;
    let size = words.take_named(Size::from_name);
    let color = words.take_named(Color::from_name);
    let shape = noun(words, count)?;
    Ok(Group {
        count,
        size,
        color,
        shape,
    })
}

/// A shape, or none for "object".
fn noun(words: &mut Words<'_>, count: usize) -> Result<Option<Shape>> {
    let expected = if count == 1 {
        "a size, a color or a shape"
    } else {
        "a size, a color or a shape in the plural"
    };
    let Some(word) = words.peek() else {
        return Err(words.misfit(expected));
    };
    let mut nouns = Shape::ALL
        .iter()
        .map(|&shape| (Some(shape), shape.name(), shape.plural()));
    let mut object = std::iter::once((None, "object", "objects"));
    let fits = |(_, one, many): &(Option<Shape>, &str, &str)| word == if count == 1 { *one } else { *many };
    match nouns.find(fits).or_else(|| object.find(fits)) {
        Some((shape, _, _)) => {
            words.at += 1;
            Ok(shape)
        }
        None => Err(words.misfit(expected)),
    }
}

fn background(words: &mut Words<'_>) -> Result<Background> {
    words.take("a", "\"a\"")?;
    let expected = "a background: white, gray, black or brown";
    let background = words
        .take_named(Background::from_name)
        .ok_or_else(|| words.misfit(expected))?;
    words.take("background", "\"background\"")?;
    Ok(background)
}

/// The words of a caption and how far they have been read.
struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self, word: &str, expected: &'static str) -> Result<()> {
        if self.peek() != Some(word) {
            return Err(self.misfit(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn take_named<T>(&mut self, from_name: impl Fn(&str) -> Option<T>) -> Option<T> {
        let named = self.peek().and_then(from_name);
        self.at += usize::from(named.is_some());
        named
    }

    /// The error for the next word, or for the missing one.
    fn misfit(&self, expected: &'static str) -> Error {
        let position = self.at + 1;
        match self.peek() {
            None => Error::UnexpectedEnd {
                after: self.words.last().copied().unwrap_or_default().to_owned(),
                expected,
            },
            Some(word) if vocabulary().contains(&word) => Error::UnexpectedWord {
                word: word.to_owned(),
                position,
                expected,
            },
            Some(word) => Error::UnknownWord {
                word: word.to_owned(),
                position,
                expected,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_caption_is_understood() {
        let claims =
            Claims::parse("A small red circle left of an orange star and two  blue objects on a black background.");
        let claims = claims.unwrap();
        let group = |count, size, color, shape| Group {
            count,
            size,
            color,
            shape,
        };
        assert_eq!(
            claims.groups(),
            [
                group(1, Some(Size::Small), Some(Color::Red), Some(Shape::Circle)),
                group(1, None, Some(Color::Orange), Some(Shape::Star)),
                group(2, None, Some(Color::Blue), None),
            ]
        );
        assert_eq!(
            claims.relations(),
            [RelationClaim {
                subject: 0,
                relation: Relation::Left,
                object: 1
            }]
        );
        assert_eq!(claims.background(), Some(Background::Black));
        assert_eq!(
            claims.to_string(),
            "a small red circle left of an orange star and two blue objects on a black background"
        );
    }

    #[test]
    fn malformed_captions_name_the_word() {
        let cases = [
            ("a red blob", "blob", 3),
            ("red circle", "red", 1),
            ("a red circle or a star", "or", 4),
            ("two circle", "circle", 2),
            ("a circles", "circles", 2),
            ("a red small circle", "small", 3),
            ("a circle left a star", "a", 4),
            ("two circles left of a star", "left", 3),
            ("a circle left of two stars", "two", 5),
            ("a circle on a red background", "red", 5),
            ("a circle on a white background and a star", "and", 7),
            ("a circle above a star below a ring", "below", 6),
            ("five circles", "five", 1),
        ];
        let mut checked = 0;
        for (caption, bad, at) in cases {
            match Claims::parse(caption) {
                Err(Error::UnknownWord { word, position, .. } | Error::UnexpectedWord { word, position, .. }) => {
                    assert_eq!((word.as_str(), position), (bad, at), "{caption}");
                }
                other => panic!("{caption}: {other:?}"),
            }
            checked += 1;
        }
        assert_eq!(checked, 13);
    }

    #[test]
    fn unknown_and_misplaced_words_differ() {
        assert!(matches!(Claims::parse("a red blob"), Err(Error::UnknownWord { .. })));
        assert!(matches!(Claims::parse("a red and"), Err(Error::UnexpectedWord { .. })));
        for (caption, after) in [
            ("", ""),
            ("a", "a"),
            ("a red", "red"),
            ("a star and", "and"),
            ("a star on", "on"),
        ] {
            match Claims::parse(caption) {
                Err(Error::UnexpectedEnd { after: found, .. }) => assert_eq!(found, after),
                other => panic!("{caption:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_more_than_four_objects() {
        assert!(Claims::parse("four circles").is_ok());
        let error = Claims::parse("three circles and two stars").unwrap_err();
        assert_eq!(error, Error::TooManyObjects { found: 5, limit: 4 });
    }

    #[test]
    fn the_vocabulary_is_small_and_without_repeats() {
        let words = vocabulary();
        assert_eq!(words.len(), 46);
        assert!((1..words.len()).all(|i| !words[..i].contains(&words[i])));
    }
}
