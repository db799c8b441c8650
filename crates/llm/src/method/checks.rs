//! What must hold between a recipe, its records and its networks before anything is trained.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diptych_core::Kind;
use diptych_data::{TextDataset, TextKind, TextPair, TextSample, Tokenizer};
use diptych_train::{Recipe, ReferenceConfig};

use super::config::{LossOn, MethodConfig, SftConfig};
use crate::modality::Language;
use crate::records::EncodedRecord;
use crate::{Error, Result};

/// The recipe key of another model as reference.
pub const CHECKPOINT: &str = "reference.checkpoint.path";

/// Whether a directory has a whole model, rather than an adapter.
pub fn is_model(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// An objective that needs a judge's scores must have one of every response, and not only up to the first batch without.
pub(super) fn check_judged(recipe: &Recipe<Language>, records: &[EncodedRecord]) -> Result<()> {
    let needs = recipe.objective.requirements();
    if !needs.judge_scores {
        return Ok(());
    }
    for record in records {
        let Some(side) = record
            .responses
            .iter()
            .position(|response| response.judge_score.is_none())
        else {
            continue;
        };
        let column = match (needs.kind, side) {
            (Kind::Pairs, _) if needs.judge_margins => "chosen_score` and `rejected_score`, or `margin",
            (Kind::Unpaired | Kind::Chosen, _) => "score",
            (Kind::Pairs | Kind::Lists, 0) => "chosen_score",
            (Kind::Pairs | Kind::Lists, _) => "rejected_score",
        };
        return Err(Error::MissingJudgeScore {
            id: record.id.clone(),
            column,
            objective: recipe.objective.name(),
        });
    }
    Ok(())
}

/// What an objective refuses of a judge's scores is found before the first step, and with the record's name.
pub(super) fn check_judge_scores(recipe: &Recipe<Language>, records: &[EncodedRecord]) -> Result<()> {
    if !recipe.objective.requirements().judge_scores {
        return Ok(());
    }
    for record in records {
        let scores: Vec<f64> = record
            .responses
            .iter()
            .filter_map(|response| response.judge_score)
            .collect();
        recipe
            .objective
            .check_judge_scores(&scores)
            .map_err(|source| Error::JudgeScores {
                id: record.id.clone(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

/// An objective that looks at nothing but the order of a list must know it: equal scores say none.
pub(super) fn check_ties(recipe: &Recipe<Language>, records: &[EncodedRecord]) -> Result<()> {
    let needs = recipe.objective.requirements();
    if needs.judge_scores || needs.kind != Kind::Lists {
        return Ok(());
    }
    for record in records.iter().filter(|record| record.is_ranked) {
        // From best to worst, so that equals stand side by side.
        for two in record.responses.windows(2) {
            if let (Some(score), Some(next)) = (two[0].judge_score, two[1].judge_score)
                && score.total_cmp(&next).is_eq()
            {
                return Err(Error::TiedScores {
                    id: record.id.clone(),
                    score,
                    objective: recipe.objective.name(),
                });
            }
        }
    }
    Ok(())
}

/// Summed scores of a reference that the data brings are of the answers that whoever computed them had: whole ones, it may be.
pub(super) fn warn_of_cut_sums(records: &[EncodedRecord]) {
    let has_sum_of_other = |record: &&EncodedRecord| {
        record
            .responses
            .iter()
            .any(|response| response.reference_logps.is_some() && (response.is_cut || response.has_spans()))
    };
    let mut rows = records.iter().filter(has_sum_of_other);
    if let Some(first) = rows.next() {
        tracing::warn!(
            "the scores of the reference that {} records bring, {} first, must be of what is scored here: `data.max_len` leaves only \
             a part of these answers, or spans weigh their tokens",
            1 + rows.count(),
            first.id
        );
    }
}

/// Puts the column `margin` in the place of a judge's scores where the data has none and their difference is all that the
/// objective looks at; says so where nothing looks at it.
pub(super) fn take_margins(recipe: &Recipe<Language>, records: &mut [EncodedRecord]) -> Result<()> {
    if records.iter().all(|record| record.margin.is_none()) {
        return Ok(());
    }
    let needs = recipe.objective.requirements();
    let has_scores = records
        .iter()
        .flat_map(|record| &record.responses)
        .any(|response| response.judge_score.is_some());
    if !needs.judge_margins || has_scores {
        let reason = if needs.judge_margins {
            "the data has the scores `chosen_score` and `rejected_score` too".to_owned()
        } else {
            format!(
                "objective `{}` has no use for it; `odpo` and `copg` do",
                recipe.objective.name()
            )
        };
        tracing::warn!("the column `margin` of the data is not used: {reason}");
        return Ok(());
    }
    for record in records {
        let margin = record
            .margin
            .ok_or_else(|| Error::MissingMargin { id: record.id.clone() })?;
        for (response, score) in record.responses.iter_mut().zip([margin, 0.0]) {
            response.judge_score = Some(score);
        }
    }
    Ok(())
}

/// Refuses keys of `[data.encoding]` that no row of the data is read by.
pub(super) fn check_encoding(recipe: &Recipe<Language>, dataset: &TextDataset) -> Result<()> {
    let Some(kind) = dataset.kind() else { return Ok(()) };
    let is_text = kind != TextKind::Tokenized;
    let readers = [
        ("convention", is_text, "texts; all rows are tokens already"),
        ("prefix", is_text, "texts; all rows are tokens already"),
        (
            "eos",
            kind == TextKind::Standard,
            "plain texts; conversations end as their template ends them",
        ),
        (
            "turns",
            kind == TextKind::Conversational,
            "conversations; no row is one",
        ),
    ];
    for (key, is_read, rows) in readers {
        let key = format!("data.encoding.{key}");
        if !is_read && recipe.source.says(&key) {
            return Err(Error::Recipe {
                key,
                problem: format!("is unused: it is about {rows}"),
                hint: "remove the key".into(),
            });
        }
    }
    Ok(())
}

/// Weights on parts of an answer say which of its tokens are learned, and `loss_on = "everything"` that all of them are.
pub(super) fn check_spans(recipe: &Recipe<Language>, dataset: &TextDataset) -> Result<()> {
    let MethodConfig::Sft(SftConfig {
        loss_on: LossOn::Everything,
        ..
    }) = recipe.method
    else {
        return Ok(());
    };
    let id = match dataset {
        TextDataset::Samples(samples) => {
            let has_spans = |sample: &&TextSample| !sample.completion_spans.is_empty();
            samples.iter().find(has_spans).map(|sample| &sample.id)
        }
        TextDataset::Pairs(pairs) => {
            let has_spans = |pair: &&TextPair| !pair.chosen_spans.is_empty();
            pairs.iter().find(has_spans).map(|pair| &pair.id)
        }
        TextDataset::Unpaired(_) | TextDataset::Ranked(_) | TextDataset::Prompts(_) => None,
    };
    match id {
        None => Ok(()),
        Some(id) => Err(Error::UnusedSpans { id: id.clone() }),
    }
}

/// What is computed where the loss of an example depends on the others of its micro batch, and an effective batch is several.
pub fn coupling_note(recipe: &Recipe<Language>) -> Option<String> {
    let (micro_batch, accumulation) = (recipe.train.micro_batch, recipe.train.accumulation);
    // `sft` as a method knows the tokens of the whole effective batch.
    let is_whole = matches!(recipe.method, MethodConfig::Sft(_));
    let needs = recipe.objective.requirements();
    if accumulation == 1 || is_whole {
        return None;
    }
    let why = if needs.couples_examples {
        "the loss of an example depends on the other examples of its micro batch"
    } else if needs.reward_shift {
        "the running shift of its rewards moves with every micro batch"
    } else {
        return None;
    };
    Some(format!(
        "objective `{}`: {why}. Each step is the mean over \
         {accumulation} micro batches of {micro_batch}, each computed by itself, which is not the loss of one batch of {}; \
         only `train.accumulation = 1` gives that.",
        recipe.objective.name(),
        micro_batch * accumulation,
    ))
}

/// Objectives of single tokens take a token or leave it; a weight in between, which only a sum can carry, would be lost on them.
pub(super) fn check_weights(recipe: &Recipe<Language>, records: &[EncodedRecord]) -> Result<()> {
    let needs = recipe.objective.requirements();
    if !needs.tokens && !needs.collisions {
        return Ok(());
    }
    let is_between = |weight: &f32| *weight != 0.0 && *weight != 1.0;
    for record in records {
        let mut weights = record
            .responses
            .iter()
            .flat_map(|response| [&response.weights, &response.dense].into_iter().flatten().flatten());
        if let Some(&weight) = weights.find(|weight| is_between(weight)) {
            return Err(Error::TokenWeight {
                id: record.id.clone(),
                weight,
                objective: recipe.objective.name(),
            });
        }
    }
    Ok(())
}

/// Which tokens a reference must have in common with the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokensWanted {
    /// Those of the data.
    OfData,
    /// Those that the policy may say, or that its distributions are over.
    All,
}

impl TokensWanted {
    /// What the terms of a recipe for text want.
    pub fn of(recipe: &Recipe<Language>) -> Self {
        let method = &recipe.method;
        if method.online_kl().is_some() || method.token_divergence().is_some() {
            Self::All
        } else {
            Self::OfData
        }
    }
}

/// Another model as reference is given the policy's ids, so that they must mean the same to it: all but that of an image, which stands for
/// vectors that come from elsewhere and need not be in the vocabulary.
///
/// # Errors
/// [`Error::ForeignTokens`] for the first that does not; directories that cannot be read.
pub fn check_tokens(
    recipe: &Recipe<Language>,
    records: &[EncodedRecord],
    (tokenizer, image_token_id): (&Tokenizer, Option<u32>),
    wanted: TokensWanted,
    vocab_size: impl Fn(&Path) -> Result<usize>,
) -> Result<()> {
    let ReferenceConfig::Checkpoint { path } = &recipe.reference else {
        return Ok(());
    };
    let path = recipe.resolve_path(CHECKPOINT, path)?;
    if !is_model(&path) {
        return Ok(());
    }
    let num_known = vocab_size(&path)?;
    let of_data = records
        .iter()
        .flat_map(|record| &record.responses)
        .flat_map(|response| response.prompt.iter().chain(&response.ids).copied());
    let mut ids: BTreeSet<u32> = match wanted {
        TokensWanted::All => (0..vocab_size(&recipe.model_path()?)? as u32).collect(),
        TokensWanted::OfData => of_data.collect(),
    };
    if let Some(image) = image_token_id {
        ids.remove(&image);
    }
    let name = |tokenizer: &Tokenizer, id| {
        tokenizer
            .token(id)
            .map_or("none".to_owned(), |token| format!("{token:?}"))
    };
    let foreign = |id, found: String, path: PathBuf| {
        let expected = name(tokenizer, id);
        Err(Error::ForeignTokens {
            path,
            id,
            found,
            expected,
        })
    };
    if let Some(&id) = ids.iter().find(|id| **id as usize >= num_known) {
        return foreign(id, format!("nothing: its vocabulary has {num_known} tokens"), path);
    }
    if !path.join("tokenizer.json").is_file() {
        tracing::warn!(
            "the reference {} has no tokenizer.json: its tokens are taken to be those of the policy",
            path.display()
        );
        return Ok(());
    }
    let other = Tokenizer::from_dir(&path)?;
    match ids.into_iter().find(|id| tokenizer.token(*id) != other.token(*id)) {
        None => Ok(()),
        Some(id) => foreign(id, name(&other, id), path),
    }
}

/// Positions beyond those that the model was trained on are computed, as in transformers, and mean little.
pub fn warn_of_long(records: &[EncodedRecord], max_positions: usize) {
    let is_long = |record: &&EncodedRecord| {
        let mut lens = record
            .responses
            .iter()
            .chain(&record.rationale)
            .map(|response| response.prompt.len() + response.ids.len());
        lens.any(|len| len > max_positions)
    };
    let mut long = records.iter().filter(is_long).peekable();
    if let Some(first) = long.peek() {
        let id = &first.id;
        tracing::warn!(
            "records with more than {max_positions} tokens, the model's `max_position_embeddings`: {}, {id} first; `data.max_len` \
             cuts them",
            long.count()
        );
    }
}

/// Rationales that the data has and the recipe does not use.
pub fn warn_of_unused_rationales(pairs: &[TextPair]) {
    if pairs.iter().any(|pair| pair.rationale.is_some()) {
        tracing::warn!("the column `rationale` of the data is not used; `[method.offline_pairs.rationale]` learns it");
    }
}

/// Scores of a reference that the data has and the recipe does not use.
pub(super) fn warn_of_unused_scores(recipe: &Recipe<Language>, records: &[EncodedRecord]) {
    let mut responses = records.iter().flat_map(|record| &record.responses);
    let is_cached = matches!(recipe.reference, ReferenceConfig::Cached { .. });
    if !is_cached && responses.any(|response| response.reference_logps.is_some()) {
        tracing::warn!(
            "the scores of a reference in the data are not used: the recipe says `[reference.{}]`, and `[reference.cached]` uses them",
            recipe.reference.name()
        );
    }
}
