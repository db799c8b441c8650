//! What can go wrong in this crate.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure while loading, training, scoring or sampling a language model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation or a weight file.
    #[error(transparent)]
    Tensor(#[from] diptych_tensor::Error),
    /// An objective.
    #[error(transparent)]
    Core(#[from] diptych_core::Error),
    /// A record with images, which only a vision-language model can see.
    #[error(
        "record `{id}` has images, which a language model cannot see; set `modality = \"vlm\"` and name a vision-language model"
    )]
    Images {
        /// The record's id.
        id: String,
    },
    /// Records, tokenizers or chat templates.
    #[error(transparent)]
    Data(Box<diptych_data::Error>),
    /// A network or an adapter.
    #[error(transparent)]
    Models(Box<diptych_models::Error>),
    /// The training loop or the run directory.
    #[error(transparent)]
    Train(Box<diptych_train::Error>),
    /// A statistic.
    #[error(transparent)]
    Eval(Box<diptych_eval::Error>),
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, `create` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Keys of a recipe that contradict each other or that nothing would use.
    #[error("recipe: `{key}` {problem}; {hint}")]
    Recipe {
        /// The key.
        key: String,
        /// What is wrong with it here.
        problem: String,
        /// What to write instead.
        hint: String,
    },
    /// Records of a kind that cannot be used here.
    #[error("the data has {found}, expected {expected}")]
    RecordKind {
        /// What they are.
        found: diptych_data::RecordKind,
        /// What is needed.
        expected: &'static str,
    },
    /// Every record was left out.
    #[error("none of the {num} records has anything to learn from; `diptych data lint` says why")]
    NothingLeft {
        /// Records read.
        num: usize,
    },
    /// Some rows bring scores of the reference along and some do not.
    #[error(
        "{found} of {expected} responses have a score of the reference (`ref_chosen_logps`, `ref_rejected_logps`); all or none must"
    )]
    PartlyScored {
        /// Responses with a score.
        found: usize,
        /// Responses.
        expected: usize,
    },
    /// An objective needs a judge's scores, and a record has none.
    #[error("record {id}: no judge's score (`{column}`), which objective `{objective}` needs of every response")]
    MissingJudgeScore {
        /// The record.
        id: String,
        /// The column of the data that would have it.
        column: &'static str,
        /// The objective.
        objective: &'static str,
    },
    /// An objective cannot use what a judge gave.
    #[error("record {id}: {source}")]
    JudgeScores {
        /// The record.
        id: String,
        /// What is wrong with its scores.
        source: Box<diptych_core::Error>,
    },
    /// Some rows say by how much the chosen answer is better and some do not.
    #[error("record {id}: no `margin`, which other records have; all or none must")]
    MissingMargin {
        /// The first record without.
        id: String,
    },
    /// Rationales are to be learned, and a record has none.
    #[error("record {id}: no `rationale`, which `[method.offline_pairs.rationale]` needs of every row")]
    MissingRationale {
        /// The first record without.
        id: String,
    },
    /// No rationale can be learned.
    #[error(
        "of none of the {num} rationales is anything left within `data.max_len`; raise it, or shorten the template"
    )]
    NoRationale {
        /// Records.
        num: usize,
    },
    /// Weights on parts of an answer where every token is learned.
    #[error(
        "record {id}: weights on parts of the answer, which `method.sft.loss_on = \"everything\"` would not look at; use \
         `loss_on = \"completion\"`, or remove the spans"
    )]
    UnusedSpans {
        /// The record.
        id: String,
    },
    /// A factor of log-ratios that makes no rewards of them.
    #[error("beta = {found} is out of range; expected a finite number > 0")]
    RewardBeta {
        /// The factor.
        found: f64,
    },
    /// A token has a weight that the objective has no use for.
    #[error(
        "record {id}: a token with weight {weight}; objective `{objective}` looks at single tokens and needs weights of 0 or 1"
    )]
    TokenWeight {
        /// The record.
        id: String,
        /// The weight.
        weight: f32,
        /// The objective.
        objective: &'static str,
    },
    /// Images are spoiled for a network that reads none.
    #[error("answers under other images need a network that reads images")]
    NoVision,
    /// Whole distributions were asked of a reference that has none.
    #[error("whole distributions need a reference whose network is there, and not scores that were kept")]
    NoDistributions,
    /// A prompt of `[eval.truth]` whose answers cannot be judged.
    #[error("{path}: prompt {number} is no scene in words")]
    NoScene {
        /// The file.
        path: PathBuf,
        /// Place of the prompt, from 1.
        number: usize,
        /// Why.
        source: Box<diptych_eval::Error>,
    },
    /// Two responses of a list are equally good, and their order is all that is learned.
    #[error(
        "record {id}: two responses have the score {score}; objective `{objective}` learns the order of a list and cannot tell which is better: leave one out"
    )]
    TiedScores {
        /// The record.
        id: String,
        /// What both have.
        score: f64,
        /// The objective.
        objective: &'static str,
    },
    /// Another tokenizer made the ids that the reference was trained on.
    #[error(
        "{path}: token {id} is {found}, and {expected} in the tokenizer of `model.path`: a reference must have the policy's tokens"
    )]
    ForeignTokens {
        /// The directory of the reference.
        path: PathBuf,
        /// A token of the data.
        id: u32,
        /// What the reference's tokenizer calls it.
        found: String,
        /// What the policy's tokenizer calls it.
        expected: String,
    },
    /// A record whose prompt or response has no token.
    #[error("record {id}: the {part} has no token")]
    EmptySequence {
        /// The record.
        id: String,
        /// `prompt` or `response`.
        part: &'static str,
    },
    /// Cached scores of another data set.
    #[error("{path} has {found} token scores; these records have {expected} response tokens")]
    CacheLength {
        /// The file.
        path: PathBuf,
        /// Scores in it.
        found: usize,
        /// Tokens of the records.
        expected: usize,
    },
    /// Cached scores that were computed from something else.
    #[error(
        "{path} was computed with another {}; remove the file to have it computed again, or name another `reference.cached.path`",
        changed.join(", ")
    )]
    CacheOrigin {
        /// The file.
        path: PathBuf,
        /// What differs.
        changed: Vec<String>,
    },
    /// A directory that is to keep features of images, and holds something else.
    #[error("{path} {problem}; name another directory in `data.cache.path`, or remove this one")]
    FeatureCache {
        /// The directory.
        path: PathBuf,
        /// What it is.
        problem: String,
    },
    /// A mask that does not say which tokens of a row are filling.
    #[error("`attention_mask`: found {found}, expected {expected}")]
    AttentionMask {
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A token that the network does not have.
    #[error("`input_ids`: found {found}, expected ids below {vocab_size}, the size of the vocabulary")]
    TokenId {
        /// The id.
        found: u32,
        /// Number of tokens of the network.
        vocab_size: usize,
    },
    /// A moving reference has a parameter that the policy has not.
    #[error("the reference's parameter `{name}` is not one of the policy's")]
    ForeignParameter {
        /// The parameter.
        name: String,
    },
    /// A rule of `[method.offline_pairs.watch]` was broken and says to stop.
    #[error("step {step}: {found}")]
    Watched {
        /// The optimizer step.
        step: u64,
        /// What was seen.
        found: String,
    },
    /// Another thread ended while it held a lock.
    #[error("another thread ended in the middle of a step")]
    Poisoned,
    /// The user asked to stop outside the training loop.
    #[error(transparent)]
    Stopped(#[from] diptych_train::Stopped),
}

impl Error {
    /// An [`Error::Io`] about `path`, for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the cause is a setting or a path that the user gave, rather than something that went wrong.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tensor(error) => error.is_configuration(),
            Self::Models(error) => error.is_configuration(),
            Self::Train(error) => error.is_configuration(),
            Self::Eval(error) => error.is_configuration(),
            Self::Data(error) => error.is_configuration(),
            Self::Core(_)
            | Self::Recipe { .. }
            | Self::RecordKind { .. }
            | Self::MissingJudgeScore { .. }
            | Self::JudgeScores { .. }
            | Self::MissingMargin { .. }
            | Self::MissingRationale { .. }
            | Self::NoRationale { .. }
            | Self::UnusedSpans { .. }
            | Self::RewardBeta { .. }
            | Self::TokenWeight { .. }
            | Self::NoScene { .. }
            | Self::Images { .. }
            | Self::NoVision
            | Self::NoDistributions
            | Self::TiedScores { .. }
            | Self::ForeignTokens { .. }
            | Self::CacheOrigin { .. }
            | Self::FeatureCache { .. }
            | Self::AttentionMask { .. }
            | Self::TokenId { .. } => true,
            Self::NothingLeft { .. }
            | Self::PartlyScored { .. }
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::EmptySequence { .. }
            | Self::CacheLength { .. }
            | Self::ForeignParameter { .. }
            | Self::Watched { .. }
            | Self::Poisoned
            | Self::Stopped(_) => false,
        }
    }
}

impl From<diptych_data::Error> for Error {
    fn from(error: diptych_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<diptych_models::Error> for Error {
    fn from(error: diptych_models::Error) -> Self {
        Self::Models(Box::new(error))
    }
}

impl From<diptych_train::Error> for Error {
    fn from(error: diptych_train::Error) -> Self {
        Self::Train(Box::new(error))
    }
}

impl From<diptych_eval::Error> for Error {
    fn from(error: diptych_eval::Error) -> Self {
        Self::Eval(Box::new(error))
    }
}
