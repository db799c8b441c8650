//! POPE and CHAIR about scenes of the shapes world, whose truth is known.
//!
//! Objects are shapes, or shapes of a color. POPE's questions come from
//! [`build_pope_questions`](super::build_pope_questions): an adversarial object is one that often occurs with what is asked about. A
//! caption's objects are those its [`Claims`] name; CHAIR's sums are then the same as for photographs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use diptych_shapes::{Claims, Color, Example, Object, Scene, SceneConfig, Shape, Split};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::chair::{ChairCounts, chair_tally};
use super::pope_questions::{ImageObjects, PopeConfig};
use super::report::Scored;
use super::rows::{RowFile, stored_row};
use crate::error::Result;

/// What counts as an object of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapesNaming {
    /// "circle": 8 objects.
    Shape,
    /// "red circle": a shape in each color.
    ColoredShape,
}

/// A scene and the name of its image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapesScene {
    /// Name of the image.
    pub image: String,
    /// What is in it.
    pub scene: Scene,
}

/// The scenes of the first examples of a split, named by their numbers: those that `diptych data shapes` draws.
///
/// # Errors
/// Those of [`Example::generate`].
pub fn shapes_scenes(seed: u64, split: Split, num: usize, config: &SceneConfig) -> Result<Vec<ShapesScene>> {
    let scenes = (0..num as u64).map(|index| {
        let example = Example::generate(seed, index, split, config)?;
        Ok(ShapesScene {
            image: index.to_string(),
            scene: example.scene,
        })
    });
    scenes.collect()
}

/// Reads scenes: rows with `image` and `scene`.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::StoredRow`](crate::Error::StoredRow).
pub fn read_shapes_scenes(path: &Path) -> Result<Vec<ShapesScene>> {
    let file = RowFile::read(path)?;
    let read = file.rows.iter().map(|row| {
        let image = file.text(row, &["image"])?.to_owned();
        let scene = row.get("scene").cloned().unwrap_or_default();
        let scene = serde_json::from_value(scene).map_err(|source| file.error(row, format!("`scene`: {source}")))?;
        Ok(ShapesScene { image, scene })
    });
    read.collect()
}

/// What POPE's questions are built from. Objects come in the order of the scene, each once.
pub fn shapes_image_objects(scenes: &[ShapesScene], naming: ShapesNaming) -> Vec<ImageObjects> {
    let named = scenes.iter().map(|ShapesScene { image, scene }| {
        let mut objects: Vec<String> = Vec::new();
        for object in &scene.objects {
            let name = naming.name(object);
            if !objects.contains(&name) {
                objects.push(name);
            }
        }
        ImageObjects {
            image: image.clone(),
            objects,
        }
    });
    named.collect()
}

/// Questions in the words of the shapes world, "is there a red circle", about one object of each image that is there and one that
/// is not.
pub fn shapes_pope_config(seed: u64) -> PopeConfig {
    PopeConfig {
        objects_per_image: 1,
        template: "is there a {}".to_owned(),
        seed,
        ..PopeConfig::default()
    }
}

/// CHAIR over captions of scenes: rows with `image` (or `image_id`, `id`) and `caption` (or `answer`, `text`). What is no caption of the
/// grammar is searched for objects word by word, and counted in a note.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row, a scene that comes twice, and an image
/// without a scene.
pub fn score_shapes_chair(captions: &Path, scenes: &Path, naming: ShapesNaming) -> Result<Scored> {
    let truth = scenes_by_image(scenes)?;
    let file = RowFile::read(captions)?;
    let mut tally = chair_tally();
    let (mut rows, mut num_unreadable) = (Vec::new(), 0_usize);
    for row in &file.rows {
        let image = file.id(row, &["image", "image_id", "id"])?;
        let caption = file.text(row, &["caption", "answer", "text"])?;
        let unknown = || file.error(row, format!("image {image:?} is not among the scenes"));
        let scene = truth.get(&image).ok_or_else(unknown)?;
        let claims = Claims::parse(caption);
        num_unreadable += usize::from(claims.is_err());
        let mentions = claims.map_or_else(
            |_| mentions_in_words(caption, naming),
            |claims| mentions_in_claims(&claims, naming),
        );
        let (there, hallucinated): (Vec<&Mention>, Vec<&Mention>) = mentions
            .iter()
            .partition(|mention| scene.objects.iter().any(|object| mention.describes(object)));
        let kinds: BTreeSet<String> = scene.objects.iter().map(|object| naming.name(object)).collect();
        let recalled: BTreeSet<String> = there
            .iter()
            .map(|mention| mention.name())
            .filter(|name| kinds.contains(name))
            .collect();
        let counts = ChairCounts {
            hallucinated: hallucinated.len(),
            mentions: mentions.len(),
            recalled: recalled.len(),
            objects: kinds.len(),
        };
        counts.add_to(&mut tally, &image);
        rows.push(json!({
            "image": image, "caption": caption, "ground_truth": kinds,
            "mentioned": mentions.iter().map(Mention::name).collect::<Vec<_>>(),
            "hallucinated": hallucinated.iter().map(|mention| mention.name()).collect::<Vec<_>>(),
        }));
    }
    let mut notes = Vec::new();
    if num_unreadable > 0 {
        notes.push(format!(
            "{num_unreadable} captions are not of the grammar of the shapes world; their objects were found word by word"
        ));
    }
    Ok(Scored {
        benchmark: "shapes-chair",
        tally,
        notes,
        rows,
    })
}

/// Where a caption names some of the objects that it mentions, as a row of [`score_shapes_chair`] calls them ("red circle"): places in
/// bytes, in order.
pub fn mention_spans(caption: &str, names: &[String]) -> Vec<Range<usize>> {
    let lower = caption.to_ascii_lowercase();
    let mut words: Vec<Range<usize>> = Vec::new();
    for (at, letter) in lower.char_indices().filter(|(_, letter)| letter.is_alphabetic()) {
        let end = at + letter.len_utf8();
        match words.last_mut() {
            Some(word) if word.end == at => word.end = end,
            _ => words.push(at..end),
        }
    }
    let mut spans = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let len = names.iter().filter_map(|name| {
            let parts: Vec<&str> = name.split(' ').collect();
            let here = words.get(start..start + parts.len())?;
            let is_here = here
                .iter()
                .zip(&parts)
                .all(|(word, part)| is_form_of(&lower[word.clone()], part));
            is_here.then_some(parts.len())
        });
        let len = len.max().unwrap_or(0);
        if len > 0 {
            spans.push(words[start].start..words[start + len - 1].end);
        }
        start += len.max(1);
    }
    spans
}

/// A word, or the plural of a noun of the shapes world.
fn is_form_of(word: &str, name: &str) -> bool {
    let plural = Shape::ALL
        .iter()
        .find(|shape| shape.name() == name)
        .map(|shape| shape.plural());
    word == name || plural == Some(word) || (name == "object" && word == "objects")
}

fn scenes_by_image(path: &Path) -> Result<BTreeMap<String, Scene>> {
    let mut scenes = BTreeMap::new();
    for (index, ShapesScene { image, scene }) in read_shapes_scenes(path)?.into_iter().enumerate() {
        if scenes.contains_key(&image) {
            let reason = format!("image {image:?} has a scene in an earlier row already");
            return Err(stored_row(path, index + 1, reason));
        }
        scenes.insert(image, scene);
    }
    Ok(scenes)
}

impl ShapesNaming {
    /// The name of an object.
    pub fn name(self, object: &Object) -> String {
        match self {
            Self::Shape => object.shape.to_string(),
            Self::ColoredShape => format!("{} {}", object.color, object.shape),
        }
    }
}

/// What a caption says is there.
struct Mention {
    color: Option<Color>,
    shape: Option<Shape>,
}

impl Mention {
    /// None where nothing is said that the naming tells apart: "two objects".
    fn of(naming: ShapesNaming, color: Option<Color>, shape: Option<Shape>) -> Option<Self> {
        let color = color.filter(|_| naming == ShapesNaming::ColoredShape);
        (color.is_some() || shape.is_some()).then_some(Self { color, shape })
    }

    fn describes(&self, object: &Object) -> bool {
        self.color.is_none_or(|color| color == object.color) && self.shape.is_none_or(|shape| shape == object.shape)
    }

    fn name(&self) -> String {
        let shape = self.shape.map_or("object", Shape::name);
        self.color
            .map_or_else(|| shape.to_owned(), |color| format!("{color} {shape}"))
    }
}

fn mentions_in_claims(claims: &Claims, naming: ShapesNaming) -> Vec<Mention> {
    let mentions = claims
        .groups()
        .iter()
        .filter_map(|group| Mention::of(naming, group.color, group.shape));
    mentions.collect()
}

/// Nouns that name shapes, with the color right before them.
fn mentions_in_words(caption: &str, naming: ShapesNaming) -> Vec<Mention> {
    let caption = caption.to_lowercase();
    let words: Vec<&str> = caption
        .split(|letter: char| !letter.is_alphabetic())
        .filter(|word| !word.is_empty())
        .collect();
    let mentions = words.iter().enumerate().filter_map(|(place, word)| {
        let shape = Shape::ALL
            .iter()
            .copied()
            .find(|shape| [shape.name(), shape.plural()].contains(word));
        let is_noun = shape.is_some() || ["object", "objects"].contains(word);
        let color = place.checked_sub(1).and_then(|before| Color::from_name(words[before]));
        if is_noun {
            Mention::of(naming, color, shape)
        } else {
            None
        }
    });
    mentions.collect()
}
