//! Where the prompts come from that images to learn from are made for.

use std::path::PathBuf;

use diptych_shapes::{Example, SceneConfig, Split};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::read_prompts;

/// Prompts for images to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "a recipe has one of them")]
pub enum PromptSource {
    /// The different prompts of the data.
    Data {},
    /// Those of a file: one a line, or `.jsonl` rows with `prompt`.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Captions of the shapes world's training split, never the same example twice.
    Scenes(Box<SceneConfig>),
}

impl Default for PromptSource {
    fn default() -> Self {
        Self::Data {}
    }
}

/// Prompts to take some of.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptPool {
    /// These, and no others.
    Known(Vec<String>),
    /// As many captions as are asked for.
    Scenes {
        /// Source of the captions.
        seed: u64,
        /// What they describe.
        scenes: Box<SceneConfig>,
    },
}

impl PromptSource {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`Error::Shapes`](crate::Error::Shapes) for scenes that cannot be drawn.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Data {} | Self::File { .. } => Ok(()),
            Self::Scenes(scenes) => Ok(scenes.validate()?),
        }
    }

    /// Opens the source. `of_data` gives the prompts of the data, in their order; `seed` is the source of captions.
    ///
    /// # Errors
    /// A file that cannot be read or has no prompts; what `of_data` fails with.
    pub fn open<E: From<crate::Error>>(
        &self,
        seed: u64,
        of_data: impl FnOnce() -> std::result::Result<Vec<String>, E>,
    ) -> std::result::Result<PromptPool, E> {
        Ok(match self {
            Self::Data {} => PromptPool::Known(different(of_data()?)),
            Self::File { path } => PromptPool::Known(different(read_prompts(path)?)),
            Self::Scenes(scenes) => PromptPool::Scenes {
                seed,
                scenes: scenes.clone(),
            },
        })
    }
}

impl PromptPool {
    /// How many there are; `None` where there is no end.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Known(prompts) => Some(prompts.len()),
            Self::Scenes { .. } => None,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The prompts at these places.
    ///
    /// # Errors
    /// [`Error::Shapes`](crate::Error::Shapes) for scenes without captions of the training split.
    ///
    /// # Panics
    /// For a place at or beyond [`PromptPool::len`].
    pub fn at(&self, places: &[usize]) -> Result<Vec<String>> {
        let prompts = places.iter();
        match self {
            Self::Known(known) => Ok(prompts.map(|&place| known[place].clone()).collect()),
            Self::Scenes { seed, scenes } => prompts
                .map(|&place| Ok(Example::generate(*seed, place as u64, Split::Train, scenes)?.caption))
                .collect(),
        }
    }
}

/// The first of every prompt, in their order.
fn different(prompts: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    prompts
        .into_iter()
        .filter(|prompt| seen.insert(prompt.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use diptych_shapes::Claims;

    use super::*;

    #[test]
    fn pools_are_what_their_sources_say() {
        let of_data = || Ok::<_, crate::Error>(["b", "a", "b"].map(str::to_owned).to_vec());
        let pool = PromptSource::default().open(0, of_data).unwrap();
        assert_eq!(
            (pool.len(), pool.at(&[1, 0]).unwrap()),
            (Some(2), vec!["a".into(), "b".into()])
        );

        let scenes = PromptSource::Scenes(Box::default());
        scenes.validate().unwrap();
        let pool = scenes.open(3, of_data).unwrap();
        let captions = pool.at(&[0, 1, 2]).unwrap();
        assert_eq!((pool.len(), captions.len()), (None, 3));
        for caption in &captions {
            assert_eq!(Split::of(&Claims::parse(caption).unwrap()), Split::Train, "{caption}");
        }
        assert_eq!(pool.at(&[2]).unwrap(), captions[2..]);

        let path = tempfile::tempdir().unwrap();
        let file = path.path().join("prompts.txt");
        std::fs::write(&file, "x\ny\nx\n").unwrap();
        let pool = PromptSource::File { path: file }.open(0, of_data).unwrap();
        assert_eq!(pool, PromptPool::Known(vec!["x".into(), "y".into()]));
    }
}
