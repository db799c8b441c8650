//! The recipes by name, and what each of them asks for.

use std::ops::Range;
use std::path::Path;

use diptych_train::Reporter;
use serde::{Deserialize, Serialize};

use super::embedder::Embedder;
use super::llava_hound::{self, LlavaHound};
use super::mia_dpo::MiaDpo;
use super::re_align::{MaskCompletion, ReAlign};
use super::retrieval::{self, Gallery};
use super::rlaif_v::RlaifV;
use super::self_correction::{AnswerCheck, SelfCorrection};
use super::seva::Seva;
use super::stic::Stic;
use super::temple::Temple;
use super::tpo::Tpo;
use super::workshop::{Outcome, Workshop};
use super::{BuildConfig, Journal};
use crate::Result;
use crate::clip::Clip;

/// How pairs are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildRecipe {
    /// The answer to an image against that to the image with noise.
    Seva(Seva),
    /// A careful description against an imagined one, or one of a spoiled image.
    Stic(Stic),
    /// An answer against itself with segments completed under a similar image.
    ReAlign(ReAlign),
    /// An answer about one of several images against what the model says without looking at it.
    MiaDpo(MiaDpo),
    /// The answer to a video against that to the video with its frames disturbed.
    Temple(Temple),
    /// The right one of a first and a second answer against the wrong one.
    SelfCorrection(SelfCorrection),
    /// Of several answers those with fewer refuted claims against the others.
    RlaifV(RlaifV),
    /// An answer with the best that was said on each topic against the same with the worst.
    Tpo(Tpo),
    /// Answers that a reader of a caption finds good against those that it does not.
    LlavaHound(LlavaHound),
}

impl BuildRecipe {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 9] = [
        "seva",
        "stic",
        "re_align",
        "mia_dpo",
        "temple",
        "self_correction",
        "rlaif_v",
        "tpo",
        "llava_hound",
    ];

    /// The name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Seva(_) => Self::NAMES[0],
            Self::Stic(_) => Self::NAMES[1],
            Self::ReAlign(_) => Self::NAMES[2],
            Self::MiaDpo(_) => Self::NAMES[3],
            Self::Temple(_) => Self::NAMES[4],
            Self::SelfCorrection(_) => Self::NAMES[5],
            Self::RlaifV(_) => Self::NAMES[6],
            Self::Tpo(_) => Self::NAMES[7],
            Self::LlavaHound(_) => Self::NAMES[8],
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for the first that is out of its range or has no use.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Seva(recipe) => recipe.validate(),
            Self::Stic(recipe) => recipe.validate(),
            Self::ReAlign(recipe) => recipe.validate(),
            Self::MiaDpo(recipe) => recipe.validate(),
            Self::Temple(recipe) => recipe.validate(),
            Self::SelfCorrection(recipe) => recipe.validate(),
            Self::RlaifV(recipe) => recipe.validate(),
            Self::Tpo(recipe) => recipe.validate(),
            Self::LlavaHound(recipe) => recipe.validate(),
        }
    }

    /// What the answers of the published programs were sampled at.
    pub fn temperature(&self) -> f64 {
        match self {
            Self::Seva(_) | Self::ReAlign(_) | Self::MiaDpo(_) | Self::SelfCorrection(_) => 0.0,
            Self::Stic(_) => 0.2,
            Self::Temple(_) | Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_) => 0.7,
        }
    }

    /// Whether several answers to one prompt are compared, which must differ.
    pub(super) fn samples_answers(&self) -> bool {
        matches!(self, Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_))
    }

    /// Whether a judge may be another model than the one that answers.
    pub(super) fn takes_judge(&self) -> bool {
        match self {
            Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_) => true,
            Self::SelfCorrection(recipe) => recipe.check == AnswerCheck::Judge,
            Self::Seva(_) | Self::Stic(_) | Self::ReAlign(_) | Self::MiaDpo(_) | Self::Temple(_) => false,
        }
    }

    /// Whether similar images are looked for.
    pub(super) fn takes_embedder(&self) -> bool {
        matches!(self, Self::ReAlign(_))
    }

    /// Whether rows may show several images, and so the frames of videos.
    pub(super) fn takes_frames(&self) -> bool {
        !matches!(self, Self::ReAlign(_) | Self::MiaDpo(_))
    }

    /// Why the model that answers is asked nothing but the rows' own prompts, so that no format is needed; none where it is asked more.
    /// Where nobody else judges it is also the judge.
    pub(super) fn asks_rows_alone(&self, has_judge: bool) -> Option<&'static str> {
        let prompts = "this recipe asks the prompts of the rows as they are";
        match self {
            Self::Seva(_) | Self::Temple(_) => Some(prompts),
            Self::MiaDpo(_) => Some("this recipe asks the prompts of the rows, with words put before their questions"),
            Self::ReAlign(recipe) if recipe.completion == MaskCompletion::InPlace => {
                Some("answers that are completed in place stay behind the prompts of the rows")
            }
            Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_) if has_judge => {
                Some("the judge alone is asked in other words, by a format of its own")
            }
            Self::Stic(_)
            | Self::ReAlign(_)
            | Self::SelfCorrection(_)
            | Self::RlaifV(_)
            | Self::Tpo(_)
            | Self::LlavaHound(_) => None,
        }
    }

    /// The words between which a judge decides; none where nobody judges.
    fn verdicts(&self) -> Vec<&str> {
        match self {
            Self::SelfCorrection(recipe) if recipe.check == AnswerCheck::Judge => SelfCorrection::VERDICTS.to_vec(),
            Self::RlaifV(RlaifV { claims, .. }) | Self::Tpo(Tpo { claims, .. }) => claims.verdicts().to_vec(),
            Self::LlavaHound(recipe) => recipe.scale(),
            Self::Seva(_)
            | Self::Stic(_)
            | Self::ReAlign(_)
            | Self::MiaDpo(_)
            | Self::Temple(_)
            | Self::SelfCorrection(_) => Vec::new(),
        }
    }

    /// What the recipe needs to know before the first row is asked about.
    pub(super) fn prepare(
        &self,
        config: &BuildConfig,
        shop: &mut Workshop<'_>,
        journal: &Journal,
        reporter: &mut Reporter<'_>,
    ) -> Result<()> {
        // Words that cannot be told apart show here and not after the first answers.
        shop.judge().check_words(&self.verdicts())?;
        match self {
            Self::Seva(_)
            | Self::Stic(_)
            | Self::Temple(_)
            | Self::SelfCorrection(_)
            | Self::RlaifV(_)
            | Self::Tpo(_) => {}
            Self::MiaDpo(recipe) => {
                retrieval::require(self.name(), shop.different_images().len(), recipe.num_images)?;
            }
            Self::LlavaHound(recipe) => shop.captions = llava_hound::read_captions(&recipe.captions)?,
            Self::ReAlign(_) => {
                let gallery = gallery(config, shop, journal.folder(), reporter)?;
                retrieval::require(self.name(), gallery.len(), 2)?;
                shop.gallery = Some(gallery);
            }
        }
        Ok(())
    }

    /// What becomes of some rows.
    pub(super) fn make(&self, shop: &Workshop<'_>, rows: Range<usize>) -> Result<Vec<Outcome>> {
        let one_by_one = |outcome: &dyn Fn(usize) -> Result<Outcome>| rows.clone().map(outcome).collect();
        match self {
            Self::Seva(recipe) => recipe.make(shop, rows),
            Self::Stic(recipe) => recipe.make(shop, rows),
            Self::MiaDpo(recipe) => recipe.make(shop, rows),
            Self::ReAlign(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
            Self::Temple(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
            Self::SelfCorrection(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
            Self::RlaifV(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
            Self::Tpo(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
            Self::LlavaHound(recipe) => one_by_one(&|row| recipe.outcome(shop, row)),
        }
    }
}

fn gallery(config: &BuildConfig, shop: &Workshop<'_>, folder: &Path, reporter: &mut Reporter<'_>) -> Result<Gallery> {
    let network = &config.answers.network;
    let embedder = match &config.embedder {
        Some(path) => Embedder::Clip(Box::new(Clip::load(path, &network.device, network.dtype)?)),
        None => Embedder::Tower(shop.speaker),
    };
    Gallery::open(shop, &embedder, folder, reporter)
}
