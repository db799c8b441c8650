//! From a recipe to a method that can be trained.

use diptych_data::{DataFiles, Encoder, EncodingConfig, OnError, SpecialTokens, Tokenizer};
use diptych_data::{RecordKind, TextDataset};
use diptych_models::lm::{GenerateConfig, LmDir};
use diptych_tensor::CheckpointPolicy;
use diptych_train::{Recipe, ReferenceConfig, Reporter};

use super::checks::{
    TokensWanted, check_encoding, check_judge_scores, check_judged, check_spans, check_ties, check_tokens,
    check_weights, coupling_note, take_margins, warn_of_long, warn_of_unused_rationales, warn_of_unused_scores,
};
use super::config::{LossOn, MethodConfig, OfflinePairsConfig};
use super::diagnostics::SharedWatch;
use super::engine::{Dense, Engine};
use super::image_preference::ImagePreference;
use super::online_kl::OnlineKlTerm;
use super::own_answer::OwnAnswer;
use super::reference::{cached, live_reference};
use super::shift::SharedShift;
use super::token_perturbation::TokenPerturbation;
use super::token_weights::weigh_tokens;
use super::{LanguageMethod, PairWork, Work};
use crate::answers::{end_tokens, prompt_at};
use crate::estimate::checkpoint_policy;
use crate::modality::{Language, adapter_of};
use crate::network::Network;
use crate::policy::{NetworkOptions, Trained, TrainedLm};
use crate::records::{EncodedRecord, add_rationales, encode};
use crate::reference::Reference;
use crate::samples::{AnswerConfig, TextSamples, TokenizedPrompt};
use crate::scoring::Statistics;
use crate::{Error, Result, evaluation};

/// Tokens of a prompt with its response where the recipe does not say: TRL's `max_length`.
pub const MAX_LEN: usize = 1024;

/// What a method is made of, beside what the recipe says.
#[derive(Debug)]
pub struct MethodParts {
    /// The network that is trained.
    pub policy: Trained<Network>,
    /// The reference that computes scores when it is asked; none where the recipe says `cached`.
    pub reference: Reference,
    /// The records, all of which were checked, with what is learned of them.
    pub records: Vec<EncodedRecord>,
    /// What fills rows up.
    pub pad_token_id: u32,
    /// For the samples, and for the end of answers.
    pub tokenizer: Tokenizer,
    /// What is sampled while training, if anything is.
    pub prompts: Option<Vec<TokenizedPrompt>>,
    /// What only pairs with images have.
    pub terms: ImageTerms,
    /// Which layers of the policy recompute their activations.
    pub checkpointing: CheckpointPolicy,
}

/// What stands beside the objective of pairs with images.
#[derive(Debug, Default)]
pub struct ImageTerms {
    /// Compares images.
    pub image_preference: Option<ImagePreference>,
    /// Compares with the policy's own tokens.
    pub own_answer: Option<OwnAnswer>,
    /// Perturbs the texts.
    pub token_perturbation: Option<TokenPerturbation>,
}

/// Loads the networks of a recipe and encodes its records.
///
/// # Errors
/// Files that are missing, damaged or do not fit each other, settings that contradict the data, [`Error::Stopped`].
pub fn prepare(recipe: &Recipe<Language>, reporter: &mut Reporter<'_>) -> Result<LanguageMethod> {
    let options = network_options(recipe)?;
    let checkpointing = checkpoint_policy(recipe)?;
    let directory = LmDir::open(recipe.model_path()?)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let loaded = load_records(recipe, &tokenizer)?;
    let prompts = sampled_prompts(recipe, &loaded, &tokenizer)?;
    let mut records = loaded.records;
    learn(recipe, &mut records);
    let adapter = adapter_of(recipe)?;
    warn_of_long(&records, directory.config().max_position_embeddings);
    let parts = MethodParts {
        policy: TrainedLm::load(&directory, &adapter, &options)?.into(),
        reference: live_reference(recipe, &directory, &adapter, &options)?,
        records,
        pad_token_id: pad_token_id(&directory, &tokenizer),
        tokenizer,
        prompts,
        terms: ImageTerms::default(),
        checkpointing,
    };
    assemble(recipe, parts, reporter)
}

/// Puts a method together.
///
/// # Errors
/// Cached scores that do not fit or cannot be computed; [`Error::Stopped`].
pub fn assemble(recipe: &Recipe<Language>, parts: MethodParts, reporter: &mut Reporter<'_>) -> Result<LanguageMethod> {
    if let Some(note) = coupling_note(recipe) {
        tracing::warn!("{note}");
    }
    let needs_reference = needs_reference(recipe, &parts.terms);
    let rejected_scores = parts.terms.image_preference.as_ref().map(ImagePreference::scores);
    let batch = recipe.method.batch();
    let mut engine = Engine {
        reference: parts.reference,
        objective: recipe.objective.clone(),
        records: parts.records,
        arrangement: batch.arrangement,
        statistics: if batch.statistics {
            Statistics::Measured
        } else {
            Statistics::Skipped
        },
        pad_token_id: parts.pad_token_id,
        needs_reference,
        dense: match recipe.method.token_weights().and_then(|config| config.beside) {
            Some(_) => Dense::Beside,
            None => Dense::Instead,
        },
        rejected_scores: rejected_scores.unwrap_or_default(),
        max_len: encoding_of(recipe).max_len.unwrap_or(usize::MAX),
        policy: parts.policy,
    };
    engine.policy.model.checkpoint_gradients(parts.checkpointing);
    if let ReferenceConfig::Cached { path } = &recipe.reference {
        engine.reference = Reference::Cached(cached(recipe, &engine, path.as_deref(), reporter)?);
    }
    let end_tokens = end_tokens(engine.network(), &parts.tokenizer);
    let samples = parts
        .prompts
        .map(|prompts| text_samples(recipe, &engine, parts.tokenizer, prompts))
        .transpose()?;
    let work = match &recipe.method {
        MethodConfig::OfflinePairs(config) => Work::OfflinePairs(Box::new(pair_work(config, parts.terms, end_tokens))),
        MethodConfig::Unpaired(_) => Work::Unpaired,
        MethodConfig::Ranked(_) => Work::Ranked,
        MethodConfig::Sft(_) => Work::Sft,
    };
    Ok(LanguageMethod {
        engine,
        work,
        shift: SharedShift::default(),
        samples,
    })
}

/// Whether anything looks at the reference's scores.
fn needs_reference(recipe: &Recipe<Language>, terms: &ImageTerms) -> bool {
    recipe.objective.requirements().reference
        || terms.image_preference.is_some()
        || terms.own_answer.is_some()
        || recipe.method.token_divergence().is_some()
        || recipe.method.frequency().is_some()
}

fn pair_work(config: &OfflinePairsConfig, terms: ImageTerms, end_tokens: Vec<u32>) -> PairWork {
    PairWork {
        watch: SharedWatch::new(config.watch),
        online_kl: config.online_kl.map(|config| OnlineKlTerm::new(config, end_tokens)),
        rationale_weight: config.rationale.as_ref().map(|config| config.weight),
        terms,
        token_divergence: config.token_divergence,
        frequency: config.frequency,
        beside: config.token_weights.and_then(|config| config.beside),
    }
}

/// The rows of a recipe and the records made of them.
#[derive(Debug)]
pub(crate) struct LoadedRecords {
    pub(crate) records: Vec<EncodedRecord>,
    /// What the `row` of a record counts.
    dataset: TextDataset,
}

/// The records in tokens, all of which the method, the objective and the reference can use.
///
/// # Errors
/// Files that are missing or damaged, records that cannot be used, prompts that an evaluation could not judge.
pub(crate) fn load_records(recipe: &Recipe<Language>, tokenizer: &Tokenizer) -> Result<LoadedRecords> {
    // What an evaluation would fail at after training.
    evaluation::check_evaluation(recipe)?;
    let dataset = load_dataset(recipe, OnError::Fail, None)?;
    let encoder = Encoder::try_new(tokenizer, encoding_of(recipe))?;
    let mut records = encode(&dataset, &encoder)?;
    if let TextDataset::Pairs(pairs) = &dataset {
        match recipe.method.rationale() {
            Some(config) => add_rationales(&mut records, pairs, &encoder, &config.template)?,
            None => warn_of_unused_rationales(pairs),
        }
    }
    complete_records(recipe, &mut records)?;
    check_tokens(recipe, &records, (tokenizer, None), TokensWanted::of(recipe), |path| {
        Ok(LmDir::open(path)?.config().vocab_size)
    })?;
    Ok(LoadedRecords { records, dataset })
}

/// The rows of a recipe, of a kind that its method can use. What becomes of rows that are wrong is said by `on_error`; a warning says how
/// many were passed over. `max_frames` is for each video of a row; none takes all.
///
/// # Errors
/// Files that are missing or damaged, rows that cannot be used, keys that no row is read by.
pub fn load_dataset(recipe: &Recipe<Language>, on_error: OnError, max_frames: Option<usize>) -> Result<TextDataset> {
    let files = DataFiles::find(&recipe.data_paths()?, recipe.data.layout)?.with_max_frames(max_frames);
    // Images are looked at where they are processed, and counted there.
    let (dataset, report) = match on_error {
        OnError::Fail => TextDataset::read_with(&files, on_error)?,
        OnError::Skip => TextDataset::read_rows(&files)?,
    };
    if let Some(first) = report.unreadable.first() {
        tracing::warn!("{} rows are left out; the first: {first}", report.num_unreadable);
    }
    check_kind(recipe, &dataset)?;
    check_encoding(recipe, &dataset)?;
    check_spans(recipe, &dataset)?;
    Ok(prepared_dataset(recipe, dataset))
}

/// Gives records of which nothing will be cut any more the margins and weights that the objective looks at, and refuses those that it
/// cannot use.
///
/// # Errors
/// The first record that it cannot use.
pub fn complete_records(recipe: &Recipe<Language>, records: &mut [EncodedRecord]) -> Result<()> {
    if let Some(config) = recipe.method.token_weights() {
        weigh_tokens(records, &config);
    }
    take_margins(recipe, records)?;
    check_judged(recipe, records)?;
    check_judge_scores(recipe, records)?;
    check_ties(recipe, records)?;
    check_weights(recipe, records)?;
    warn_of_unused_scores(recipe, records);
    Ok(())
}

/// Makes the tokens of the prompts learned ones too, where the recipe says so.
pub fn learn(recipe: &Recipe<Language>, records: &mut [EncodedRecord]) {
    if let MethodConfig::Sft(config) = &recipe.method
        && config.loss_on == LossOn::Everything
    {
        records.iter_mut().for_each(learn_everything);
    }
}

/// Where and how the networks of a recipe are computed.
///
/// # Errors
/// [`Error::Tensor`] for a device that is not there, [`Error::Recipe`] for one that quantized weights are not read on.
pub fn network_options(recipe: &Recipe<Language>) -> Result<NetworkOptions> {
    let device = recipe.run.device.resolve()?;
    if recipe.model.quantization.is_some() && !device.is_cpu() {
        return Err(Error::Recipe {
            key: "model.quantization".into(),
            problem: format!(
                "is for the CPU, and `run.device = \"{}\"` is a GPU here",
                recipe.run.device
            ),
            hint: "set `run.device = \"cpu\"`, or remove the key".into(),
        });
    }
    Ok(NetworkOptions {
        device,
        dtype: recipe.run.precision.dtype(),
        seed: recipe.run.seed,
        quantization: recipe.model.quantization,
    })
}

/// How the recipe's rows become tokens.
pub fn encoding_of(recipe: &Recipe<Language>) -> EncodingConfig {
    EncodingConfig {
        max_len: Some(recipe.data.max_len.unwrap_or(MAX_LEN)),
        ..recipe.data.encoding.unwrap_or_default()
    }
}

/// Refuses records that the method cannot use.
fn check_kind(recipe: &Recipe<Language>, dataset: &TextDataset) -> Result<()> {
    let found = dataset.records();
    let (fits, expected) = match &recipe.method {
        MethodConfig::OfflinePairs(_) => (found == RecordKind::TextPair, "pairs"),
        MethodConfig::Unpaired(_) => (
            matches!(found, RecordKind::UnpairedText | RecordKind::TextPair),
            "responses with a label, or pairs",
        ),
        MethodConfig::Ranked(_) => (
            matches!(found, RecordKind::RankedText | RecordKind::TextPair),
            "ranked responses, or pairs",
        ),
        MethodConfig::Sft(_) => (
            matches!(found, RecordKind::TextSample | RecordKind::TextPair),
            "supervised texts, or pairs",
        ),
    };
    if fits {
        Ok(())
    } else {
        Err(Error::RecordKind { found, expected })
    }
}

/// Pairs as the judged responses of the unpaired method, in TRL's order; everything else as it is.
fn prepared_dataset(recipe: &Recipe<Language>, dataset: TextDataset) -> TextDataset {
    match (&recipe.method, dataset) {
        (MethodConfig::Unpaired(_), TextDataset::Pairs(pairs)) => TextDataset::Unpaired(diptych_data::unpair(pairs)),
        (_, dataset) => dataset,
    }
}

/// Makes every token but the first one of the sequence a learned one.
fn learn_everything(record: &mut EncodedRecord) {
    for response in &mut record.responses {
        let rest = response.prompt.split_off(1);
        response.ids.splice(0..0, rest);
        // Those of the turns that are not answered; weights of spans were refused.
        (response.weights, response.is_answer) = (None, None);
    }
}

/// What fills rows up. It is never looked at, so any token of the vocabulary serves where none is named.
pub fn pad_token_id(directory: &LmDir, tokenizer: &Tokenizer) -> u32 {
    directory
        .config()
        .pad_token_id
        .or(tokenizer.pad_id())
        .or(tokenizer.eos_id())
        .unwrap_or(0)
}

/// The prompts to sample, where anything is sampled.
pub(crate) fn sampled_prompts(
    recipe: &Recipe<Language>,
    loaded: &LoadedRecords,
    tokenizer: &Tokenizer,
) -> Result<Option<Vec<TokenizedPrompt>>> {
    if recipe.train.sample_every == 0 {
        return Ok(None);
    }
    let config = recipe.samples.clone().unwrap_or_default();
    if config.prompts.is_empty() {
        let encoder = Encoder::try_new(tokenizer, encoding_of(recipe))?;
        return prompts_of(loaded, &encoder, config.num_prompts()).map(Some);
    }
    let prompt = |text: &String| -> Result<TokenizedPrompt> {
        let ids = tokenizer.encode(text, SpecialTokens::Include)?.ids;
        if ids.is_empty() {
            return Err(Error::Recipe {
                key: "samples.prompts".into(),
                problem: format!("has {text:?}, which is no token for a model to continue"),
                hint: "give it at least one".into(),
            });
        }
        Ok(TokenizedPrompt {
            text: text.clone(),
            ids,
            images: Vec::new(),
        })
    };
    config.prompts.iter().map(prompt).collect::<Result<_>>().map(Some)
}

/// What is sampled while training, with the answers before.
fn text_samples(
    recipe: &Recipe<Language>,
    engine: &Engine,
    tokenizer: Tokenizer,
    prompts: Vec<TokenizedPrompt>,
) -> Result<TextSamples> {
    let config = recipe.samples.clone().unwrap_or_default();
    let answers = AnswerConfig {
        generate: GenerateConfig {
            max_new_tokens: config.max_new_tokens,
            sampling: config.sampling,
            eos_token_ids: end_tokens(engine.network(), &tokenizer),
            seed: config.seed,
        },
        batch_size: config.batch_size,
    };
    TextSamples::try_new(engine.network(), tokenizer, prompts, answers)
}

/// The first different prompts of the data, whole also where the records have only a part of them.
fn prompts_of(loaded: &LoadedRecords, encoder: &Encoder<'_>, num: usize) -> Result<Vec<TokenizedPrompt>> {
    let mut prompts: Vec<TokenizedPrompt> = Vec::new();
    for record in &loaded.records {
        if prompts.len() == num {
            break;
        }
        let whole = match prompt_at(&loaded.dataset, record.row) {
            Some(prompt) => encoder.prompts(&[prompt])?.pop().map(|prompt| prompt.prompt_ids),
            None => None,
        };
        // Without a prompt, what the first token begins is continued.
        let ids = whole
            .filter(|ids| !ids.is_empty())
            .unwrap_or_else(|| record.responses[0].prompt.clone());
        if prompts.iter().all(|prompt| prompt.ids != ids) {
            let text = encoder.tokenizer().decode(&ids, SpecialTokens::Omit)?;
            prompts.push(TokenizedPrompt {
                text,
                ids,
                images: Vec::new(),
            });
        }
    }
    Ok(prompts)
}
