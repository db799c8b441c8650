//! Questions about a scene, with exact answers.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::claims::Group;
use crate::error::{Error, Result};
use crate::named::named;
use crate::scene::{Object, Scene, pick};
use crate::{Background, Color, Relation, Shape, Size};

named! {
    /// What a question asks for.
    pub enum QuestionKind as "question kind" {
        /// "is there a red circle": yes or no. The absent object is often adversarial: its color and its shape occur,
        /// though not together.
        Existence = "existence",
        /// "how many circles are there": zero to four.
        Count = "count",
        /// "what color is the circle".
        Color = "color",
        /// "what shape is the red object".
        Shape = "shape",
        /// "what size is the red circle".
        Size = "size",
        /// "is the red circle left of the blue star": yes or no.
        Relation = "relation",
        /// "what color is the background".
        Background = "background",
    }
}

/// The answer to a question; written and read as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Answer {
    /// "yes"
    Yes,
    /// "no"
    No,
    /// "zero" to "four"
    Count(usize),
    /// A color of objects.
    Color(Color),
    /// A shape.
    Shape(Shape),
    /// A size.
    Size(Size),
    /// A background.
    Background(Background),
}

const COUNTS: [&str; 5] = ["zero", "one", "two", "three", "four"];
const ANSWERS: &[&str] = &[
    "yes",
    "no",
    "a count from zero to four",
    "a color",
    "a shape",
    "a size",
    "a background",
];

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Count(count) => COUNTS.get(*count).copied().unwrap_or("many"),
            Self::Color(color) => color.name(),
            Self::Shape(shape) => shape.name(),
            Self::Size(size) => size.name(),
            Self::Background(background) => background.name(),
        })
    }
}

impl FromStr for Answer {
    type Err = Error;

    /// Reads an answer. Case, surrounding spaces and a final period do not matter.
    fn from_str(text: &str) -> Result<Self> {
        let word = text.trim().trim_end_matches('.').to_lowercase();
        let yes_no = match word.as_str() {
            "yes" => Some(Self::Yes),
            "no" => Some(Self::No),
            _ => None,
        };
        let count = || COUNTS.iter().position(|&count| count == word).map(Self::Count);
        yes_no
            .or_else(count)
            .or_else(|| Color::from_name(&word).map(Self::Color))
            .or_else(|| Shape::from_name(&word).map(Self::Shape))
            .or_else(|| Size::from_name(&word).map(Self::Size))
            .or_else(|| Background::from_name(&word).map(Self::Background))
            .ok_or(Error::UnknownName {
                kind: "answer",
                found: word,
                expected: ANSWERS,
            })
    }
}

impl From<Answer> for String {
    fn from(answer: Answer) -> Self {
        answer.to_string()
    }
}

impl TryFrom<String> for Answer {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What is asked for.
    pub kind: QuestionKind,
    /// The question, in lower case and without a question mark.
    pub text: String,
    /// The answer, which holds for the scene.
    pub answer: Answer,
}

impl Scene {
    /// One question of every kind that the scene allows, and two about existence: one answered yes, one answered no.
    ///
    /// "The red circle" is only asked about when there is exactly one.
    pub fn questions(&self, rng: &mut impl Rng) -> Vec<Question> {
        let mut questions: Vec<Question> = [present(self, rng), absent(self, rng)].into_iter().flatten().collect();
        for &kind in QuestionKind::ALL {
            if kind != QuestionKind::Existence {
                questions.extend(self.question(rng, kind));
            }
        }
        questions
    }

    /// A question of one kind, or none when the scene has no object that it could be asked about.
    pub fn question(&self, rng: &mut impl Rng, kind: QuestionKind) -> Option<Question> {
        match kind {
            QuestionKind::Existence if rng.random_bool(0.5) => present(self, rng),
            QuestionKind::Existence => absent(self, rng),
            QuestionKind::Count => Some(count(self, rng)),
            QuestionKind::Color | QuestionKind::Shape | QuestionKind::Size => attribute(self, rng, kind),
            QuestionKind::Relation => relation(self, rng),
            QuestionKind::Background => Some(Question {
                kind,
                text: "what color is the background".to_owned(),
                answer: Answer::Background(self.background),
            }),
        }
    }

    fn count(&self, group: &Group) -> usize {
        self.objects.iter().filter(|object| group.describes(object)).count()
    }
}

fn any(color: Option<Color>, shape: Option<Shape>) -> Group {
    Group {
        count: 1,
        size: None,
        color,
        shape,
    }
}

fn present(scene: &Scene, rng: &mut impl Rng) -> Option<Question> {
    if scene.objects.is_empty() {
        return None;
    }
    let object = pick(rng, &scene.objects);
    let group = any(Some(object.color), Some(object.shape));
    Some(Question {
        kind: QuestionKind::Existence,
        text: format!("is there {group}"),
        answer: Answer::Yes,
    })
}

/// Asks for what is not there: where possible, a color and a shape that both occur but not together, or an object that
/// differs from a present one in a single attribute.
fn absent(scene: &Scene, rng: &mut impl Rng) -> Option<Question> {
    let (mut mixed, mut near, mut far) = (Vec::new(), Vec::new(), Vec::new());
    for &color in Color::ALL {
        for &shape in Shape::ALL {
            let has_color = scene.objects.iter().any(|object| object.color == color);
            let has_shape = scene.objects.iter().any(|object| object.shape == shape);
            let group = any(Some(color), Some(shape));
            if scene.count(&group) > 0 {
                continue;
            }
            match (has_color, has_shape) {
                (true, true) => mixed.push(group),
                (false, false) => far.push(group),
                _ => near.push(group),
            }
        }
    }
    let adversarial = rng.random_bool(0.75);
    let mut choices = if adversarial {
        [mixed, near, far]
    } else {
        [far, near, mixed]
    }
    .into_iter();
    let choice = choices.find(|choice| !choice.is_empty())?;
    let text = format!("is there {}", pick(rng, &choice));
    Some(Question {
        kind: QuestionKind::Existence,
        text,
        answer: Answer::No,
    })
}

/// Asks for a number; sometimes of something that is not there.
fn count(scene: &Scene, rng: &mut impl Rng) -> Question {
    let (color, shape) = if scene.objects.is_empty() || rng.random_bool(0.15) {
        (pick(rng, Color::ALL), pick(rng, Shape::ALL))
    } else {
        let object = pick(rng, &scene.objects);
        (object.color, object.shape)
    };
    let group = match rng.random_range(0..4) {
        0 => any(None, None),
        1 => any(Some(color), None),
        2 => any(None, Some(shape)),
        _ => any(Some(color), Some(shape)),
    };
    let noun = group.shape.map_or("objects", Shape::plural);
    let text = match group.color {
        Some(color) => format!("how many {color} {noun} are there"),
        None => format!("how many {noun} are there"),
    };
    Question {
        kind: QuestionKind::Count,
        text,
        answer: Answer::Count(scene.count(&group)),
    }
}

/// Asks for the color, shape or size of an object that the rest of its look singles out.
fn attribute(scene: &Scene, rng: &mut impl Rng, kind: QuestionKind) -> Option<Question> {
    let name = |object: &Object| match kind {
        QuestionKind::Color => any(None, Some(object.shape)),
        QuestionKind::Shape => any(Some(object.color), None),
        _ => any(Some(object.color), Some(object.shape)),
    };
    let objects: Vec<&Object> = scene
        .objects
        .iter()
        .filter(|object| scene.count(&name(object)) == 1)
        .collect();
    if objects.is_empty() {
        return None;
    }
    let object = pick(rng, &objects);
    let answer = match kind {
        QuestionKind::Color => Answer::Color(object.color),
        QuestionKind::Shape => Answer::Shape(object.shape),
        _ => Answer::Size(object.size),
    };
    Some(Question {
        kind,
        text: format!("what {kind} is {}", definite(&name(object))),
        answer,
    })
}

/// Asks for a relation, true or false with equal odds. False ones are the exact opposite of a clear relation.
fn relation(scene: &Scene, rng: &mut impl Rng) -> Option<Question> {
    let name = |object: &Object| any(Some(object.color), Some(object.shape));
    let mut choices = Vec::new();
    for first in scene.objects.iter().filter(|object| scene.count(&name(object)) == 1) {
        for second in scene.objects.iter().filter(|object| scene.count(&name(object)) == 1) {
            if let Some(relation) = Relation::between(first.center, second.center) {
                choices.push((first, relation, second));
            }
        }
    }
    if choices.is_empty() {
        return None;
    }
    let (first, relation, second) = pick(rng, &choices);
    let (relation, answer) = if rng.random_bool(0.5) {
        (relation, Answer::Yes)
    } else {
        (relation.inverse(), Answer::No)
    };
    let text = format!("is {} {relation} {}", definite(&name(first)), definite(&name(second)));
    Some(Question {
        kind: QuestionKind::Relation,
        text,
        answer,
    })
}

/// "the red circle" for "a red circle".
fn definite(group: &Group) -> String {
    let indefinite = group.to_string();
    format!("the {}", indefinite.split_once(' ').map_or("object", |(_, rest)| rest))
}
