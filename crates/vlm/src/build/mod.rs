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
//! on where it was, and the result appears whole or not at all. Rows that give no pair are counted by reason. An answer that was cut off is no side
//! of a pair, unless [`UnfinishedAnswers`] says so.

mod checks;
mod claims;
mod composition;
mod config;
mod embedder;
mod identity;
mod journal;
mod llava_hound;
mod mia_dpo;
mod pointing;
mod problem;
mod re_align;
mod recipe;
mod report;
mod retrieval;
mod rlaif_v;
mod sampled;
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

use diptych_data::{DataFiles, PairRows};
use diptych_tensor::files::write_file;
use diptych_tensor::random::{Stream, generator};
use diptych_train::Reporter;
use rand::seq::index::sample;
use serde_json::Value;

pub use self::claims::{ClaimSettings, ClaimSplit};
pub use self::config::{BuildConfig, JudgeConfig, UnfinishedAnswers};
use self::journal::{Entry, Journal, StagedRow};
pub use self::llava_hound::LlavaHound;
pub use self::mia_dpo::{MiaDpo, MultiImage};
pub use self::problem::BuildProblem;
pub use self::re_align::{MaskCompletion, ReAlign};
pub use self::recipe::BuildRecipe;
pub use self::report::BuildReport;
pub use self::rlaif_v::{Lengths, RlaifV};
pub use self::self_correction::{AnswerCheck, SelfCorrection};
pub use self::seva::Seva;
pub use self::skip::Skip;
use self::source::read_sources;
use self::speaker::Speaker;
pub use self::stic::{Stic, SticRequests};
pub use self::temple::{Disturbance, OtherImages, Temple};
pub use self::tpo::Tpo;
use self::workshop::{Made, Outcome, Purpose, Workshop};
use crate::Result;
use crate::progress::advance;

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
            &config.answers,
            config.format.clone(),
        )?;
        let judge = config
            .judge
            .as_ref()
            .map(|judge| Speaker::open(&judge.model, None, &config.answers, judge.format.clone()));
        let judge = judge.transpose()?;
        let mut shop = Workshop::new(config, &rows, (&speaker, judge.as_ref()));
        config.recipe.prepare(config, &mut shop, &journal, reporter)?;
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
    while journal.num_rows() < total {
        let first = journal.num_rows();
        advance(reporter, "rows", first, total)?;
        let rows = first..(first + config.answers.batch_size).min(total);
        let entries = config
            .recipe
            .make(shop, rows)?
            .into_iter()
            .map(|outcome| entry(&written, outcome))
            .collect::<Result<Vec<_>>>()?;
        journal.add(entries)?;
    }
    advance(reporter, "rows", total, total)
}

/// What a journal keeps of a row; its images are on disk then.
fn entry(written: &PairRows, outcome: Outcome) -> Result<Entry> {
    let row = |made: Made| {
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
        let skipped = report.reasons();
        // It is done, and came to nothing: what is kept of it would only stand in the way of another one.
        journal.remove()?;
        return Err(BuildProblem::NothingBuilt { num_rows, skipped }.into());
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
