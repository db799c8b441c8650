//! `GenEval`'s questions, asked about the shapes world, where the answer is known.
//!
//! Ghosh et al., "`GenEval`: An Object-Focused Framework for Evaluating Text-to-Image Alignment", NeurIPS 2023 Datasets and Benchmarks,
//! arXiv:2310.11513. Six kinds of prompts, each image right or wrong; a kind's score is the share of right images, the total is the mean
//! of the kinds. What stands in for the object detector is the verifier of the shapes world.

use std::collections::BTreeSet;
use std::fmt;

use diptych_shapes::{ClaimKind, Color, Relation, Report, Shape, Verifier};
use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::bootstrap::{quantile, resampled_means};
use crate::error::{Error, Result};
use crate::win_rate::{Estimate, estimate};

/// A kind of prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenevalCategory {
    /// "a circle".
    SingleObject,
    /// "a circle and a star".
    TwoObjects,
    /// "three rings".
    Counting,
    /// "a red circle".
    Colors,
    /// "a circle left of a star".
    Position,
    /// "a red circle and a blue star".
    AttributeBinding,
}

impl GenevalCategory {
    /// Every kind, in the order of the paper's tables.
    pub const ALL: [Self; 6] = [
        Self::SingleObject,
        Self::TwoObjects,
        Self::Counting,
        Self::Colors,
        Self::Position,
        Self::AttributeBinding,
    ];

    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleObject => "single_object",
            Self::TwoObjects => "two_objects",
            Self::Counting => "counting",
            Self::Colors => "colors",
            Self::Position => "position",
            Self::AttributeBinding => "attribute_binding",
        }
    }

    fn draw(self, rng: &mut ChaCha8Rng) -> String {
        let shapes = two_of(Shape::ALL, rng);
        let colors = two_of(Color::ALL, rng);
        let [first, second] = shapes.map(|shape| with_article(shape.name()));
        match self {
            Self::SingleObject => first,
            Self::TwoObjects => format!("{first} and {second}"),
            Self::Counting => {
                let number = ["two", "three", "four"][rng.random_range(0..3_usize)];
                format!("{number} {}", shapes[0].plural())
            }
            Self::Colors => with_article(&format!("{} {}", colors[0], shapes[0])),
            Self::Position => {
                let relation = Relation::ALL[rng.random_range(0..Relation::ALL.len())];
                format!("{first} {relation} {second}")
            }
            Self::AttributeBinding => {
                let object = |index: usize| with_article(&format!("{} {}", colors[index], shapes[index]));
                format!("{} and {}", object(0), object(1))
            }
        }
    }
}

fn two_of<T: Copy>(all: &[T], rng: &mut ChaCha8Rng) -> [T; 2] {
    let mut all = all.to_vec();
    all.shuffle(rng);
    [all[0], all[1]]
}

fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {words}")
}

/// A prompt and its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenevalPrompt {
    /// The kind.
    pub category: GenevalCategory,
    /// The prompt, a caption of the shapes world.
    pub prompt: String,
}

/// Draws that may in a row repeat a prompt before a kind counts as exhausted.
const MAX_REPEATS: usize = 500;

/// Up to `per_category` different prompts of each kind; a kind that has fewer, such as that of single objects, gives all it has. They
/// depend on `seed` alone.
pub fn geneval_prompts(seed: u64, per_category: usize) -> Vec<GenevalPrompt> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut prompts = Vec::new();
    for category in GenevalCategory::ALL {
        let (mut seen, mut repeats) = (BTreeSet::new(), 0);
        while seen.len() < per_category && repeats < MAX_REPEATS {
            let prompt = category.draw(&mut rng);
            repeats += 1;
            if seen.insert(prompt.clone()) {
                repeats = 0;
                prompts.push(GenevalPrompt { category, prompt });
            }
        }
    }
    prompts
}

/// What the verifier says about one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenevalAnswer {
    /// Everything that the prompt names is there as it says; when counting, nothing else is. `GenEval`'s rule.
    pub is_correct: bool,
    /// That, and nothing else is there for any kind of prompt.
    pub is_complete: bool,
}

/// Judges the images of prompts: `images_per_prompt` of the first, then of the second, ….
///
/// # Errors
/// [`Error::Ungroupable`] unless there are so many images for each prompt; [`Error::Unjudged`] for a prompt that is no caption.
pub fn geneval_answers(
    prompts: &[GenevalPrompt],
    images: &[RgbImage],
    images_per_prompt: usize,
) -> Result<Vec<GenevalAnswer>> {
    if images_per_prompt == 0 || images.len() != prompts.len() * images_per_prompt {
        return Err(Error::Ungroupable {
            len: images.len(),
            images_per_prompt,
        });
    }
    let verifier = Verifier::new();
    let judged = images.iter().enumerate().map(|(index, image)| {
        let GenevalPrompt { category, prompt } = &prompts[index / images_per_prompt];
        let report = verifier.check(prompt, image).map_err(|source| Error::Unjudged {
            judge: "shapes-geneval",
            index,
            prompt: prompt.clone(),
            source,
        })?;
        Ok(answer(*category, &report))
    });
    judged.collect()
}

fn answer(category: GenevalCategory, report: &Report) -> GenevalAnswer {
    let is_complete = report.holds();
    let mut named = report
        .claims
        .iter()
        .filter(|claim| claim.kind != ClaimKind::NothingElse);
    let is_there = named.all(|claim| claim.holds);
    GenevalAnswer {
        is_correct: is_there && (is_complete || category != GenevalCategory::Counting),
        is_complete,
    }
}

/// The score of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenevalScore {
    /// The kind.
    pub category: GenevalCategory,
    /// Prompts.
    pub num_prompts: usize,
    /// Images.
    pub num_images: usize,
    /// Share of correct images; prompts are resampled with all their images.
    pub correct: Estimate,
    /// Share of complete ones.
    pub complete: Estimate,
}

/// The benchmark's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenevalTable {
    /// A row a kind.
    pub categories: Vec<GenevalScore>,
    /// The mean of the kinds' shares of correct images.
    pub overall: Estimate,
    /// Resamples behind the intervals.
    pub bootstrap_samples: usize,
    /// Source of the resamples.
    pub seed: u64,
}

impl GenevalTable {
    /// The table of answers in the order of [`geneval_answers`].
    ///
    /// # Errors
    /// [`Error::Ungroupable`], [`Error::NoScores`], and [`Error::InvalidConfig`] for 0 `bootstrap_samples`.
    pub fn of(
        prompts: &[GenevalPrompt],
        answers: &[GenevalAnswer],
        seed: u64,
        bootstrap_samples: usize,
    ) -> Result<Self> {
        if prompts.is_empty() || answers.is_empty() {
            return Err(Error::NoScores);
        }
        if !answers.len().is_multiple_of(prompts.len()) {
            return Err(Error::Ungroupable {
                len: answers.len(),
                images_per_prompt: answers.len() / prompts.len(),
            });
        }
        if bootstrap_samples == 0 {
            return Err(Error::InvalidConfig {
                key: "bootstrap_samples",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        let images_per_prompt = answers.len() / prompts.len();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut categories, mut totals) = (Vec::new(), vec![0.0; bootstrap_samples]);
        for category in GenevalCategory::ALL {
            let groups = prompts.iter().zip(answers.chunks(images_per_prompt));
            let groups: Vec<&[GenevalAnswer]> = groups
                .filter(|(prompt, _)| prompt.category == category)
                .map(|(_, answers)| answers)
                .collect();
            if groups.is_empty() {
                continue;
            }
            let (correct, complete) = (
                share_of(&groups, |answer| answer.is_correct),
                share_of(&groups, |answer| answer.is_complete),
            );
            let [correct_means, complete_means] = resampled_means([&correct, &complete], bootstrap_samples, &mut rng);
            for (total, mean) in totals.iter_mut().zip(&correct_means) {
                *total += mean;
            }
            categories.push(GenevalScore {
                category,
                num_prompts: groups.len(),
                num_images: groups.len() * images_per_prompt,
                correct: estimate(&correct, correct_means),
                complete: estimate(&complete, complete_means),
            });
        }
        let count = categories.len() as f64;
        for total in &mut totals {
            *total /= count;
        }
        totals.sort_by(f64::total_cmp);
        let overall = Estimate {
            mean: categories.iter().map(|score| score.correct.mean).sum::<f64>() / count,
            low: quantile(&totals, 0.025),
            high: quantile(&totals, 0.975),
        };
        Ok(Self {
            categories,
            overall,
            bootstrap_samples,
            seed,
        })
    }
}

/// For each prompt, the share of its images for which `holds`.
fn share_of(groups: &[&[GenevalAnswer]], holds: fn(&GenevalAnswer) -> bool) -> Vec<f64> {
    let share =
        |group: &&[GenevalAnswer]| group.iter().filter(|answer| holds(answer)).count() as f64 / group.len() as f64;
    groups.iter().map(share).collect()
}

impl fmt::Display for GenevalTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |estimate: &Estimate| {
            let Estimate { mean, low, high } = estimate;
            format!("{:>5.1} [{:>5.1}, {:>5.1}]", 100.0 * mean, 100.0 * low, 100.0 * high)
        };
        writeln!(
            f,
            "{:<18} | {:<22} | {:<22} | prompts | images",
            "category", "correct, %", "and nothing else, %"
        )?;
        for score in &self.categories {
            writeln!(
                f,
                "{:<18} | {:<22} | {:<22} | {:>7} | {:>6}",
                score.category.name(),
                percent(&score.correct),
                percent(&score.complete),
                score.num_prompts,
                score.num_images
            )?;
        }
        write!(f, "{:<18} | {}", "overall", percent(&self.overall))
    }
}
