//! What can go wrong while networks, adapters and pipelines are read, built and written.

use std::path::PathBuf;

use crate::nearest::hint;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of this crate; each names what was found, what was expected and, for names, the nearest valid ones.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation or a weight file failed.
    #[error(transparent)]
    Tensor(#[from] diptych_tensor::Error),

    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },

    /// A JSON file could not be parsed.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },

    /// A value in a configuration file is wrong or names something that is not implemented.
    #[error("{}: `{key}` is {found}, expected {expected}", file.display())]
    Config {
        /// The configuration file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
        /// The values that would be accepted.
        expected: String,
    },

    /// A configuration file has a key that this network does not know, so its effect would be lost.
    #[error("{}: unknown key `{key}` = {found}{}", file.display(), hint(nearest))]
    UnknownConfigKey {
        /// The configuration file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// Known keys with a similar name.
        nearest: Vec<String>,
    },

    /// A tensor passed to a network has the wrong shape.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected.
        expected: String,
    },

    /// A condition that a network needs and was not given, or was given and does not take.
    #[error("`{name}` {problem}")]
    Condition {
        /// The condition.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// The attention to users does not fit the network.
    #[error("attention to users: {problem}")]
    UserAttention {
        /// What does not fit.
        problem: String,
    },

    /// A network has no such layer.
    #[error("layer {found} does not exist: the network has {num_layers} layers; expected 0 (before the first) to {num_layers}, or -1 to -{} from the end", num_layers + 1)]
    LayerIndex {
        /// The index asked for.
        found: i64,
        /// Layers of the network.
        num_layers: usize,
    },

    /// A weight file is in a format that is not read.
    #[error(
        "{}: pickled weights are not read, because a pickle can run code; convert them once, with PyTorch: \
         python -c \"import sys, torch; from safetensors.torch import save_file; w = torch.load(sys.argv[1], map_location='cpu'); \
         w = w.get('state_dict', w); save_file({{k: v.clone().contiguous() for k, v in w.items()}}, sys.argv[2])\" {} {}",
        path.display(), path.display(), path.with_extension("safetensors").display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },

    /// An input is longer than what a network's positions are defined for.
    #[error(
        "the input has {found} positions, at most {limit} are possible: beyond them `dynamic` rotary positions depend on the length of \
         the whole sequence"
    )]
    ContextLength {
        /// Positions of the input.
        found: usize,
        /// What is possible.
        limit: usize,
    },

    /// A setting of the generation of text is out of range.
    #[error("generation `{key}` is {found}, expected {expected}")]
    GenerationSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },

    /// The network gives no next token.
    #[error(
        "the logit of token {token} behind {num_generated} generated tokens is {found}: the network diverged, or its precision is too low"
    )]
    NonFiniteLogit {
        /// The first token with such a logit.
        token: usize,
        /// Tokens behind the prompt.
        num_generated: u64,
        /// NaN or an infinity.
        found: f32,
    },

    /// A text has another number of image placeholders than there are images.
    #[error(
        "the text has {found} image placeholders, but {images} images belong to it; expected one placeholder an image"
    )]
    Placeholders {
        /// Placeholders in the text.
        found: usize,
        /// Images.
        images: usize,
    },

    /// A batch has another number of image tokens than its images have features.
    #[error("the input has {tokens} image tokens, but its {images} images have {features} features")]
    ImageTokens {
        /// Image tokens of the input.
        tokens: usize,
        /// Images given.
        images: usize,
        /// Features of all of them.
        features: usize,
    },

    /// An image has a size that is not processed.
    #[error("an image is {width} x {height} pixels, expected {expected}")]
    ImageSize {
        /// Width, in pixels.
        width: usize,
        /// Height, in pixels.
        height: usize,
        /// What would be accepted.
        expected: String,
    },

    /// An adapter comes with a layer's own weight, and the network has another one.
    #[error("the adapter was trained on another network: its copy of `{module}` differs from the network's")]
    AdapterBase {
        /// The layer.
        module: String,
    },

    /// The weight file holds tensors that the network described by the configuration does not have.
    #[error(
        "{} of the weight file's tensors belong to no part of the network, so its configuration does not fit the weights: {}",
        names.len(), list(names)
    )]
    UnusedTensors {
        /// Their names.
        names: Vec<String>,
    },

    /// An adapter target matches no layer of the network.
    #[error("adapter target `{target}` matches no layer{}", hint(nearest))]
    UnmatchedTarget {
        /// The target as written.
        target: String,
        /// Layers (or their last parts) with a similar name.
        nearest: Vec<String>,
    },

    /// The adapter's target is not a valid regular expression.
    #[error("adapter target `{target}` is not a valid regular expression: {source}")]
    TargetPattern {
        /// The pattern.
        target: String,
        /// Why it is not valid.
        source: Box<regex::Error>,
    },

    /// An adapter setting is out of range.
    #[error("adapter `{key}` is {found}, expected {expected}")]
    AdapterSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },

    /// Weights cannot be kept in few bits here.
    #[error("quantized weights with {found}, expected {expected}")]
    Quantization {
        /// What they come with.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },

    /// An adapter holds tensors for a layer that the network does not have.
    #[error(
        "the adapter has tensors for `{module}`, which the network does not have{}",
        hint(nearest)
    )]
    UnknownModule {
        /// The layer's name in the adapter.
        module: String,
        /// Layers with a similar name.
        nearest: Vec<String>,
    },

    /// An adapter to start from lacks a layer that the targets name.
    #[error("the adapter to start from has no tensors for `{module}`, which the targets name")]
    MissingModule {
        /// The layer.
        module: String,
    },

    /// An adapter has one of a layer's two matrices but not the other.
    #[error("{}: the adapter has `{found}` of `{module}` but not `{missing}`", path.display())]
    MissingHalf {
        /// The adapter file.
        path: PathBuf,
        /// The layer.
        module: String,
        /// The matrix that is there.
        found: &'static str,
        /// The matrix that is not.
        missing: &'static str,
    },

    /// An adapter's matrices do not fit each other or the layer they adapt.
    #[error("the adapter's {what} of `{module}` has shape {found:?}, expected {expected:?}")]
    AdapterShape {
        /// The layer.
        module: String,
        /// Which matrix.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },

    /// A path holds no adapter in a known layout.
    #[error("{}: no adapter found; expected {expected}", path.display())]
    NoAdapter {
        /// The path.
        path: PathBuf,
        /// The layouts looked for.
        expected: &'static str,
    },

    /// An adapter file has a tensor whose name follows none of the known layouts.
    #[error("{}: tensor `{name}` is not part of a LoRA adapter in a known layout", path.display())]
    UnknownAdapterTensor {
        /// The adapter file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },

    /// There is no directory where a pipeline or checkpoint should be.
    #[error("{}: no such directory; expected a pipeline in diffusers layout or a checkpoint in transformers layout", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },

    /// A directory lacks a file that it must have.
    #[error("{}: none of {} found", path.display(), expected.join(", "))]
    MissingFile {
        /// The directory.
        path: PathBuf,
        /// The file names looked for.
        expected: Vec<String>,
    },

    /// A pipeline has no such component.
    #[error("{}: the pipeline has no component `{name}`{}", path.display(), hint(nearest))]
    MissingComponent {
        /// The pipeline directory.
        path: PathBuf,
        /// The component.
        name: String,
        /// Components with a similar name.
        nearest: Vec<String>,
    },

    /// A tokenizer could not be built or could not encode a text.
    #[error("{}: {message}", path.display())]
    Tokenizer {
        /// The tokenizer's directory.
        path: PathBuf,
        /// What the tokenizer said.
        message: String,
    },
}

impl Error {
    /// Whether the user's configuration is at fault, rather than the machine, the data or the numbers.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tensor(error) => error.is_configuration(),
            Self::UnmatchedTarget { .. }
            | Self::TargetPattern { .. }
            | Self::AdapterSetting { .. }
            | Self::Quantization { .. }
            | Self::GenerationSetting { .. }
            // A path that leads nowhere is a wrong setting, as for data.
            | Self::NoDirectory { .. }
            | Self::Pickle { .. }
            | Self::LayerIndex { .. }
            | Self::NoAdapter { .. } => true,
            Self::Io { .. }
            | Self::Json { .. }
            | Self::Config { .. }
            | Self::UnknownConfigKey { .. }
            | Self::Shape { .. }
            | Self::NonFiniteLogit { .. }
            | Self::Condition { .. }
            | Self::UserAttention { .. }
            | Self::ContextLength { .. }
            | Self::Placeholders { .. }
            | Self::ImageTokens { .. }
            | Self::ImageSize { .. }
            | Self::AdapterBase { .. }
            | Self::UnusedTensors { .. }
            | Self::UnknownModule { .. }
            | Self::MissingModule { .. }
            | Self::MissingHalf { .. }
            | Self::AdapterShape { .. }
            | Self::UnknownAdapterTensor { .. }
            | Self::MissingFile { .. }
            | Self::MissingComponent { .. }
            | Self::Tokenizer { .. } => false,
        }
    }

    /// An [`Error::Io`] about `path`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::Json`] about `path`, for `map_err`.
    pub(crate) fn json(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |source| Self::Json { path, source }
    }
}

/// The first few names, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
