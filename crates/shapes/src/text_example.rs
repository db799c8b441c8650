//! Reproducible prompts with their captions, for language models.

use std::num::NonZeroUsize;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::claims::Claims;
use crate::config::{SceneConfig, invalid};
use crate::distractor::Distractor;
use crate::error::{Error, Result};
use crate::example::{ATTEMPTS, Purpose, Split, generator};
use crate::listing::COMPLETION_START;
use crate::scene::Scene;

/// A scene as text, with a true caption.
///
/// In the training split neither the caption nor a distractor of it is [held out](Split::of), nor is the
/// [scene](Split::of_scene); in the held-out split scene and caption both are. So what a model is evaluated on, it has not
/// seen: neither the objects of the scene in other places, nor the caption. (A distractor of a held-out example may be any
/// caption.)
#[derive(Debug, Clone, PartialEq)]
pub struct TextExample {
    /// The seed it was generated from.
    pub seed: u64,
    /// Number of the example in its split, from 0.
    pub index: u64,
    /// The split of scene and caption.
    pub split: Split,
    /// The scene, [on the places](Scene::on_places) of its listing.
    pub scene: Scene,
    /// [`Scene::prompt`].
    pub prompt: String,
    /// What is true of the scene.
    pub caption: Claims,
}

impl TextExample {
    /// The example with this number. Depends on the arguments alone; examples can be made in any order.
    ///
    /// Style and mention of the background are drawn before the scene, so that the split does not change how often
    /// each occurs.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a configuration that does not [`validate`](SceneConfig::validate) or mislabels, since
    /// captions are true here; [`Error::SplitExhausted`] when it allows so few scenes that none belongs to the split.
    ///
    /// # Example
    /// ```
    /// use diptych_shapes::{SceneConfig, Split, TextExample};
    ///
    /// let example = TextExample::generate(0, 0, Split::HeldOut, &SceneConfig::default())?;
    /// assert!(example.prompt.ends_with(" caption:"));
    /// assert!(example.scene.truth(&example.completion()).is_true());
    /// # Ok::<(), diptych_shapes::Error>(())
    /// ```
    pub fn generate(seed: u64, index: u64, split: Split, world: &SceneConfig) -> Result<Self> {
        world.validate()?;
        if world.captions.mislabel > 0.0 {
            let expected = "0: captions of text examples are true, false ones are made from them";
            return Err(invalid("captions.mislabel", &world.captions.mislabel, expected));
        }
        let mut rng = generator(seed, index, split, Purpose::TextExample);
        let style = world.captions.style(&mut rng);
        let mentions_background = world.captions.mentions_background(&mut rng);
        for _ in 0..ATTEMPTS {
            let scene = Scene::sample(&mut rng, world)?.on_places()?;
            let background = mentions_background.then_some(scene.background);
            let mut caption = scene.describe(&mut rng, style, background);
            world.captions.arrange(&mut caption);
            if Split::of(&caption) == split && Split::of_scene(&scene) == split {
                let prompt = scene.prompt()?;
                return Ok(Self {
                    seed,
                    index,
                    split,
                    scene,
                    prompt,
                    caption,
                });
            }
        }
        Err(exhausted(split))
    }

    /// The true caption as a language model is to write it, after [`COMPLETION_START`].
    pub fn completion(&self) -> String {
        completion(&self.caption)
    }

    /// A false caption for the same prompt, always the same one.
    ///
    /// # Errors
    /// As [`Distractor::draw`]; [`Error::SplitExhausted`] when none may be trained on.
    pub fn distractor(&self, num_mistakes: NonZeroUsize, world: &SceneConfig) -> Result<Distractor> {
        self.draw_distractor(&mut self.generator(), num_mistakes, world)
    }

    /// The completion, or with this probability the one of a false caption: what a model is trained on that is to be
    /// imperfect. Whether it is false depends on the example alone, and what is false at a lower probability stays false
    /// at a higher one.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for what is no probability; else as [`TextExample::distractor`].
    pub fn mislabeled_completion(
        &self,
        probability: f64,
        num_mistakes: NonZeroUsize,
        world: &SceneConfig,
    ) -> Result<String> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(invalid("mislabeled", &probability, "a probability, 0 to 1"));
        }
        let mut rng = self.generator();
        if rng.random::<f64>() < probability {
            let distractor = self.draw_distractor(&mut rng, num_mistakes, world)?;
            Ok(completion(&distractor.claims))
        } else {
            Ok(self.completion())
        }
    }

    fn generator(&self) -> ChaCha8Rng {
        generator(self.seed, self.index, self.split, Purpose::Distractor)
    }

    fn draw_distractor(
        &self,
        rng: &mut ChaCha8Rng,
        num_mistakes: NonZeroUsize,
        world: &SceneConfig,
    ) -> Result<Distractor> {
        for _ in 0..ATTEMPTS {
            let distractor = Distractor::draw(rng, &self.scene, &self.caption, num_mistakes, world)?;
            if self.split == Split::HeldOut || Split::of(&distractor.claims) == Split::Train {
                return Ok(distractor);
            }
        }
        Err(exhausted(self.split))
    }
}

/// A caption as the completion of a prompt.
fn completion(claims: &Claims) -> String {
    format!("{COMPLETION_START}{claims}")
}

fn exhausted(split: Split) -> Error {
    Error::SplitExhausted {
        split: split.name(),
        attempts: ATTEMPTS,
    }
}
