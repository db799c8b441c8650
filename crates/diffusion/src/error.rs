//! What can go wrong in this crate.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure while loading, training, sampling or evaluating a diffusion pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation or a weight file.
    #[error(transparent)]
    Tensor(#[from] diptych_tensor::Error),
    /// An objective.
    #[error(transparent)]
    Core(#[from] diptych_core::Error),
    /// Records, images or sources.
    #[error(transparent)]
    Data(Box<diptych_data::Error>),
    /// A network, a tokenizer or an adapter.
    #[error(transparent)]
    Models(Box<diptych_models::Error>),
    /// The training loop or the run directory.
    #[error(transparent)]
    Train(Box<diptych_train::Error>),
    /// A judge or a statistic.
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
    /// An image could not be written.
    #[error("cannot write the image {path}: {source}")]
    WriteImage {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<image::ImageError>,
    },
    /// A value of a configuration file that is wrong or not implemented.
    #[error("{file}: `{key}` is {found}, expected {expected}")]
    Config {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
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
    /// A timestep outside the noise schedule.
    #[error("timestep {found} is outside the noise schedule, expected {expected}")]
    Timestep {
        /// The timestep.
        found: f64,
        /// Which there are.
        expected: String,
    },
    /// A number of sampling steps the schedule cannot serve.
    #[error("{found} sampling steps asked for, expected 1 to {num_train_timesteps}, the length of the noise schedule")]
    Steps {
        /// Steps asked for.
        found: usize,
        /// Length of the table.
        num_train_timesteps: usize,
    },
    /// A tensor or list has the wrong shape.
    #[error("{name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which one.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A value of a record does not fit the model.
    #[error("record `{id}`: `{name}` has {found}, expected {expected}")]
    Record {
        /// What a user calls the record.
        id: String,
        /// The tensor.
        name: &'static str,
        /// What it holds.
        found: String,
        /// What the model takes.
        expected: String,
    },
    /// A part of what the denoiser is told that it does not take, or needs.
    #[error("the denoiser's `{name}` {problem}")]
    Conditioning {
        /// The part: `pooled`, `time_ids` …
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A setting out of its range.
    #[error("`{key}` is {found}, expected {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A size of images that the networks cannot make.
    #[error(
        "`{key}` is {found}, expected a multiple of {multiple}, the pixels of one latent, or of one patch of them, along a side"
    )]
    SampleSize {
        /// `height` or `width`.
        key: &'static str,
        /// The size asked for.
        found: u32,
        /// What it is a multiple of.
        multiple: usize,
    },
    /// The chosen sampler cannot be used with this model's noise schedule.
    #[error("sampler `{sampler}` cannot be used with {file}: `{key}` is {found}, expected {expected}")]
    Sampler {
        /// Its name.
        sampler: &'static str,
        /// The schedule's file.
        file: PathBuf,
        /// The key that rules the sampler out.
        key: String,
        /// What it holds.
        found: String,
        /// What this sampler can use, or which other one to take.
        expected: String,
    },
    /// Log-probabilities were asked of steps that add no noise.
    #[error(
        "sampler `{sampler}` has a step without fresh noise, whose result has no density; expected `eta` above 0 with `ddim` or \
         `flow_euler`, or a sampler that always adds noise"
    )]
    NoDensity {
        /// The sampler.
        sampler: &'static str,
    },
    /// A file of users.
    #[error("{path} {problem}", path = path.display())]
    Users {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or with what was asked of it.
        problem: String,
    },
    /// A reward that should lead somewhere does not depend on what it is given.
    #[error("the reward `{reward}` has no gradient by the latents")]
    NoGradient {
        /// The reward.
        reward: String,
    },
    /// A step that adds fresh noise was given none.
    #[error("this step of the sampler adds fresh noise, and none was given")]
    MissingNoise,
    /// A decoded image has pixels that are no numbers.
    #[error(
        "image {index} of a batch has pixels that are NaN or infinite: the weights, or the precision, do not serve"
    )]
    PixelsNotFinite {
        /// Its place in the batch, from 0.
        index: usize,
    },
    /// An adapter changes a network that would be left as it is.
    #[error("{path} also adapts the {part}, which is not supported here; expected an adapter of the unet alone")]
    AdapterParts {
        /// The adapter.
        path: PathBuf,
        /// The network.
        part: String,
    },
    /// A part of the pipeline is needed that was not loaded.
    #[error("{action} needs the pipeline's {component}, which was not loaded")]
    MissingComponent {
        /// What was asked for.
        action: &'static str,
        /// The part: `vae`, `text_encoder`.
        component: &'static str,
    },
    /// A cache that was made of something else, or that is none.
    #[error("{path} {problem}; name another directory in `data.cache.path`, or remove this one", path = path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The data does not suit the method.
    #[error("method `{method}` cannot use {found}; expected {expected}")]
    DataKind {
        /// The method.
        method: &'static str,
        /// The layout of the data.
        found: &'static str,
        /// Layouts that it can use.
        expected: &'static str,
    },
    /// The run was asked to stop outside the training loop, where there is nothing to save.
    #[error(transparent)]
    Stopped(#[from] diptych_train::Stopped),
}

impl Error {
    /// Whether the user's configuration is at fault, rather than the machine, the data or the numbers.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Train(error) => error.is_configuration(),
            Self::Tensor(error) => error.is_configuration(),
            Self::Data(error) => error.is_configuration(),
            Self::Models(error) => error.is_configuration(),
            Self::Eval(error) => error.is_configuration(),
            Self::Recipe { .. }
            | Self::Steps { .. }
            | Self::Cache { .. }
            | Self::DataKind { .. }
            | Self::Setting { .. }
            | Self::SampleSize { .. }
            | Self::Sampler { .. }
            | Self::NoDensity { .. } => true,
            Self::Core(_)
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::WriteImage { .. }
            | Self::Config { .. }
            | Self::Timestep { .. }
            | Self::Shape { .. }
            | Self::Conditioning { .. }
            | Self::NoGradient { .. }
            | Self::Users { .. }
            | Self::Record { .. }
            | Self::MissingNoise
            | Self::PixelsNotFinite { .. }
            | Self::AdapterParts { .. }
            | Self::MissingComponent { .. }
            | Self::Stopped(_) => false,
        }
    }

    /// A setting of a section of the recipe, by its whole key.
    pub(crate) fn of_section(self, section: &str) -> Self {
        match self {
            Self::Setting { key, found, expected } => Self::Recipe {
                key: format!("{section}.{key}"),
                problem: format!("is {found}"),
                hint: format!("expected {expected}"),
            },
            Self::SampleSize { key, found, multiple } => Self::Recipe {
                key: format!("{section}.{key}"),
                problem: format!("is {found}"),
                hint: format!(
                    "expected a multiple of {multiple}, the pixels of one latent, or of one patch of them, along a side"
                ),
            },
            other => other,
        }
    }
}

// Boxed: a result is passed through every function, and an error is the largest thing in it.

impl From<diptych_train::Error> for Error {
    fn from(error: diptych_train::Error) -> Self {
        Self::Train(Box::new(error))
    }
}

impl From<diptych_models::Error> for Error {
    fn from(error: diptych_models::Error) -> Self {
        Self::Models(Box::new(error))
    }
}

impl From<diptych_data::Error> for Error {
    fn from(error: diptych_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<diptych_eval::Error> for Error {
    fn from(error: diptych_eval::Error) -> Self {
        Self::Eval(Box::new(error))
    }
}
