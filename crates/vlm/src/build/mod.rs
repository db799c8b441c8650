//! Preference data that a vision-language model makes of itself: its own answers become pairs, without people and, but for a judge that may be another local model, without help from outside.
//!
//! | recipe | chosen | rejected |
//! |---|---|---|
//! | [`Seva`] | the answer to the image | the answer to the image with noise |
//! | [`Stic`] | the answer to a careful request | the answer to a request to imagine, or to a spoiled image |
//! | [`ReAlign`] | the row's answer | the same with segments completed under a similar image |
//! | [`MiaDpo`] | the row's answer, about one of several images | the model's answer where it looked elsewhere |
//! | [`Temple`] | the answer to a video | the answer to the video with its frames disturbed |
//! | [`SelfCorrection`] | the right one of a first and a second answer | the wrong one |
//! | [`RlaifV`] | of several answers one with fewer refuted claims | one with more |
//! | [`Tpo`] | an answer with the best claim on each topic | the same with the worst |
//! | [`LlavaHound`] | an answer that agrees with a caption | one that does not |
//!
//! A build is a function of model, rows and settings; what is random depends on seed and row. It is kept on disk as it goes: a stopped build goes
//! on where it was, and the result appears whole or not at all. Rows that give no pair are counted by reason.

mod claims;
mod composition;
mod embedder;
mod identity;
mod journal;
mod llava_hound;
mod mia_dpo;
mod pointing;
mod problem;
mod re_align;
mod report;
mod retrieval;
mod rlaif_v;
mod self_correction;
mod seva;
mod skip;
mod source;
mod speaker;
mod stic;
mod temple;
mod tpo;
mod words;
mod workshop;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use diptych_data::{DataFiles, Layout, OnError, PairRows};
use diptych_tensor::files::write_file;
use diptych_tensor::random::{Stream, generator};
use diptych_train::Reporter;
use rand::seq::index::sample;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::claims::{ClaimSettings, ClaimSplit};
use self::embedder::{Clip, Embedder};
use self::journal::{Entry, Journal, StagedRow};
pub use self::llava_hound::LlavaHound;
pub use self::mia_dpo::{MiaDpo, MultiImage};
pub use self::problem::BuildProblem;
pub use self::re_align::{MaskCompletion, ReAlign};
pub use self::report::BuildReport;
use self::retrieval::Gallery;
pub use self::rlaif_v::{Lengths, RlaifV};
pub use self::self_correction::{AnswerCheck, SelfCorrection};
pub use self::seva::Seva;
pub use self::skip::Skip;
use self::source::read_sources;
use self::speaker::Speaker;
pub use self::stic::{Stic, SticRequests};
pub use self::temple::{Disturbance, RejectedFrames, Temple};
pub use self::tpo::Tpo;
use self::workshop::{Outcome, Purpose, Workshop};
use crate::answers::{AnswerSettings, PromptFormat};
use crate::{Error, Result};

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
    /// [`Error::Setting`] for the first that is out of its range.
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
    fn samples_answers(&self) -> bool {
        matches!(self, Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_))
    }

    /// What the recipe needs to know of all rows before the first is asked about.
    fn prepare(
        &self,
        config: &BuildConfig,
        shop: &mut Workshop<'_>,
        folder: &Path,
        reporter: &mut Reporter<'_>,
    ) -> Result<()> {
        match self {
            Self::Seva(_)
            | Self::Stic(_)
            | Self::Temple(_)
            | Self::SelfCorrection(_)
            | Self::RlaifV(_)
            | Self::Tpo(_) => {}
            Self::MiaDpo(recipe) => recipe.prepare(shop)?,
            Self::LlavaHound(recipe) => shop.captions = llava_hound::read_captions(&recipe.captions)?,
            Self::ReAlign(_) => {
                let embedder = match &config.embedder {
                    Some(path) => Embedder::Clip(Box::new(Clip::open(path, &config.answers.network)?)),
                    None => Embedder::Tower(shop.speaker),
                };
                let gallery = Gallery::open(shop, &embedder, folder, reporter)?;
                retrieval::require(self.name(), gallery.len(), 2)?;
                shop.gallery = Some(gallery);
            }
        }
        Ok(())
    }

    /// Whether a judge may be another model than the one that answers.
    fn takes_judge(&self) -> bool {
        match self {
            Self::RlaifV(_) | Self::Tpo(_) | Self::LlavaHound(_) => true,
            Self::SelfCorrection(recipe) => recipe.check == AnswerCheck::Judge,
            Self::Seva(_) | Self::Stic(_) | Self::ReAlign(_) | Self::MiaDpo(_) | Self::Temple(_) => false,
        }
    }

    fn make(&self, shop: &Workshop<'_>, rows: Range<usize>) -> Result<Vec<Outcome>> {
        match self {
            Self::Seva(recipe) => recipe.make(shop, rows),
            Self::Stic(recipe) => recipe.make(shop, rows),
            Self::ReAlign(recipe) => recipe.make(shop, rows),
            Self::MiaDpo(recipe) => recipe.make(shop, rows),
            Self::Temple(recipe) => recipe.make(shop, rows),
            Self::SelfCorrection(recipe) => recipe.make(shop, rows),
            Self::RlaifV(recipe) => recipe.make(shop, rows),
            Self::Tpo(recipe) => recipe.make(shop, rows),
            Self::LlavaHound(recipe) => recipe.make(shop, rows),
        }
    }
}

/// What is built, of what, and where.
#[derive(Debug, Clone)]
pub struct BuildConfig {
    /// How pairs are made.
    pub recipe: BuildRecipe,
    /// The rows: prompts that show images, in any layout of text; some recipes need their answers too.
    pub data: Vec<PathBuf>,
    /// How the rows are laid out.
    pub layout: Layout,
    /// The first rows only.
    pub max_rows: Option<usize>,
    /// Rows that cannot be used end the build, or are counted.
    pub on_error: OnError,
    /// A vision-language model in transformers' layout.
    pub model: PathBuf,
    /// Its adapter.
    pub adapter: Option<PathBuf>,
    /// Another vision-language model that judges, where the recipe asks for judgments; by default the model itself.
    pub judge: Option<PathBuf>,
    /// A CLIP in transformers' layout that says which images are alike, where the recipe looks for similar ones; by default the model's own tower does.
    pub embedder: Option<PathBuf>,
    /// Frames of a video that rows have as a list of frames, at most: evenly spaced ones.
    pub max_frames: Option<usize>,
    /// How words become a prompt; by default by the model's chat template.
    pub format: Option<PromptFormat>,
    /// How answers are sampled, with the seed of everything that is random.
    pub answers: AnswerSettings,
    /// No more pairs than these: a random part of those that were made.
    pub max_pairs: Option<usize>,
    /// The JSON lines file to write, in the `preference` layout; its images lie in `images/` beside it.
    pub out: PathBuf,
}

/// Builds preference data, or goes on with what is done of it in `OUT.building/`.
///
/// # Errors
/// Settings out of range, a model that is no vision-language model, rows that cannot be used where these are not passed over;
/// [`BuildProblem::OtherBuild`] when another build was begun there; [`BuildProblem::NothingBuilt`]; a stop that was asked for, after which the same
/// call goes on.
pub fn build(config: &BuildConfig, reporter: &mut Reporter<'_>) -> Result<BuildReport> {
    config.validate()?;
    let files = DataFiles::find(&config.data, config.layout)?.with_max_frames(config.max_frames);
    let (mut rows, read) = read_sources(&files, config.on_error)?;
    rows.truncate(config.max_rows.unwrap_or(usize::MAX));
    let mut journal = Journal::open(&config.out, &config.identity(&rows)?)?;
    if journal.num_rows() < rows.len() {
        let speaker = Speaker::open(
            &config.model,
            config.adapter.as_deref(),
            config.answers.clone(),
            config.format.clone(),
        )?;
        let judge = config
            .judge
            .as_deref()
            .map(|judge| Speaker::open(judge, None, config.answers.clone(), config.format.clone()));
        let judge = judge.transpose()?;
        let mut shop = Workshop {
            speaker: &speaker,
            judge: judge.as_ref(),
            rows: &rows,
            seed: config.answers.seed,
            on_error: config.on_error,
            recipe: config.recipe.name(),
            gallery: None,
            different: OnceCell::new(),
            captions: BTreeMap::new(),
        };
        config.recipe.prepare(config, &mut shop, journal.folder(), reporter)?;
        make_rows(config, &shop, &mut journal, reporter)?;
    }
    publish(config, journal, rows.len(), read.num_unreadable)
}

/// Asks about the rows that are left, so many at a time.
fn make_rows(
    config: &BuildConfig,
    shop: &Workshop<'_>,
    journal: &mut Journal,
    reporter: &mut Reporter<'_>,
) -> Result<()> {
    let written = PairRows::beside(&config.out);
    let total = shop.rows.len();
    let stopped = |stopped| Error::from(diptych_llm::Error::from(stopped));
    while journal.num_rows() < total {
        let first = journal.num_rows();
        reporter.advance("rows", first as u64, total as u64).map_err(stopped)?;
        let rows = first..(first + config.answers.batch_size).min(total);
        let entries = config
            .recipe
            .make(shop, rows)?
            .into_iter()
            .map(|outcome| entry(&written, outcome))
            .collect::<Result<Vec<_>>>()?;
        journal.add(entries)?;
    }
    reporter.advance("rows", total as u64, total as u64).map_err(stopped)
}

/// What a journal keeps of a row; its images are on disk then.
fn entry(written: &PairRows, outcome: Outcome) -> Result<Entry> {
    let row = |made: workshop::Made| {
        Ok(StagedRow {
            stage: made.stage,
            row: written.row(&made.pair)?,
        })
    };
    Ok(Entry {
        pairs: outcome.made.into_iter().map(row).collect::<Result<_>>()?,
        skipped: outcome.skipped,
    })
}

/// Gathers what was made into the file, first stages first.
fn publish(config: &BuildConfig, journal: Journal, num_rows: usize, num_unreadable: usize) -> Result<BuildReport> {
    let mut pairs: Vec<&StagedRow> = journal.entries().iter().flat_map(|entry| &entry.pairs).collect();
    let mut report = BuildReport::new(config.recipe.name(), num_rows, num_unreadable);
    for skip in journal.entries().iter().flat_map(|entry| &entry.skipped) {
        *report.skipped.entry(*skip).or_default() += 1;
    }
    if let BuildRecipe::RlaifV(recipe) = &config.recipe {
        let num_dropped = recipe.balance(&mut pairs);
        if num_dropped > 0 {
            *report.skipped.entry(Skip::MuchShorter).or_default() += num_dropped;
        }
    }
    report.num_made = pairs.len();
    if let Some(wanted) = config.max_pairs.filter(|wanted| *wanted < pairs.len()) {
        let mut rng = generator(config.answers.seed, Stream::Records, Purpose::Subset as u64, 0);
        let mut kept = sample(&mut rng, pairs.len(), wanted).into_vec();
        kept.sort_unstable();
        pairs = kept.into_iter().map(|index| pairs[index]).collect();
    }
    pairs.sort_by_key(|pair| pair.stage);
    report.num_written = pairs.len();
    for pair in &pairs {
        *report.stages.entry(pair.stage).or_default() += 1;
    }
    if pairs.is_empty() {
        return Err(BuildProblem::NothingBuilt {
            num_rows,
            skipped: report.reasons(),
        }
        .into());
    }
    let mut text = String::new();
    for pair in pairs {
        text.push_str(&Value::Object(pair.row.clone()).to_string());
        text.push('\n');
    }
    write_file(&config.out, text.as_bytes())?;
    journal.remove()?;
    Ok(report)
}

impl BuildConfig {
    fn validate(&self) -> Result<()> {
        self.recipe.validate()?;
        if self.judge.is_some() && !self.recipe.takes_judge() {
            let found = "a model".to_owned();
            return Err(stic::setting(
                "judge",
                found,
                "nothing: this recipe asks for no judgments",
            ));
        }
        if self.recipe.samples_answers() && self.answers.sampling.temperature == 0.0 {
            return Err(stic::setting(
                "temperature",
                "0".to_owned(),
                "a number above 0: several answers to the same prompt are compared",
            ));
        }
        if self.embedder.is_some() && !matches!(self.recipe, BuildRecipe::ReAlign(_)) {
            let found = "a CLIP".to_owned();
            return Err(stic::setting(
                "embedder",
                found,
                "nothing: this recipe looks for no similar images",
            ));
        }
        let counts = [
            ("num_rows", self.max_rows),
            ("max_pairs", self.max_pairs),
            ("max_frames", self.max_frames),
        ];
        for (key, value) in counts {
            if value == Some(0) {
                return Err(stic::setting(key, "0".to_owned(), "a number, at least 1"));
            }
        }
        Ok(())
    }
}
