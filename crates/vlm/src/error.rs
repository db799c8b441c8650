//! What can go wrong in this crate.

use diptych_data::ImageSource;

use crate::build::BuildProblem;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure while texts with images are prepared, trained or scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("`{key}` is {found}; expected {expected}")]
    Setting {
        /// The setting, below the table it is in.
        key: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// What language models have too: records, networks, scores, the training loop.
    #[error(transparent)]
    Llm(Box<diptych_llm::Error>),
    /// An image that cannot be read, or that the network does not take.
    #[error("record {id}: `{key}[{place}]`, {image}: {source}")]
    Image {
        /// The record.
        id: String,
        /// Which of its lists the image is in: `images`, `rejected_images` or `other_images`.
        key: &'static str,
        /// Its place there, from 0.
        place: usize,
        /// Where it is.
        image: ImageSource,
        /// What is wrong with it.
        source: Box<diptych_llm::Error>,
    },
    /// A text and its images do not fit each other.
    #[error("record {id}: {source}")]
    Placeholders {
        /// The record.
        id: String,
        /// Both numbers.
        source: Box<diptych_models::Error>,
    },
    /// A preference between images, and a record without other ones.
    #[error(
        "record {id}: neither `other_images` nor `rejected_images`, one of which `[method.offline_pairs.image_preference]` needs of every \
         row unless it says by which `corruption` they are made"
    )]
    MissingImages {
        /// The record.
        id: String,
    },
    /// A preference between images, and a record that says twice what they are compared with.
    #[error(
        "record {id}: both `other_images` and `rejected_images`, one of which `[method.offline_pairs.image_preference]` compares with; keep \
         one of them"
    )]
    BothOthers {
        /// The record.
        id: String,
    },
    /// A comparison under spoiled or other images, and a record without any.
    #[error(
        "record {id}: no image, of which the terms of `[method.offline_pairs]` that compare images would make another one"
    )]
    NoImage {
        /// The record.
        id: String,
    },
    /// Data cannot be built.
    #[error(transparent)]
    Build(Box<BuildProblem>),
    /// No record is left.
    #[error(
        "none of the {num} records is left: of {num_bad} the images cannot be used, of {num_long} nothing to learn is left within \
         `data.max_len`"
    )]
    NothingLeft {
        /// Records that were encoded.
        num: usize,
        /// Left out because of their images.
        num_bad: usize,
        /// Left out because of their length.
        num_long: usize,
    },
}

impl Error {
    /// Whether the cause is a setting or a path that the user gave, rather than something that went wrong.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Setting { .. }
            | Self::Placeholders { .. }
            | Self::MissingImages { .. }
            | Self::NoImage { .. }
            | Self::BothOthers { .. } => true,
            Self::Llm(error) => error.is_configuration(),
            Self::Build(problem) => problem.is_configuration(),
            Self::Image { .. } | Self::NothingLeft { .. } => false,
        }
    }
}

impl From<BuildProblem> for Error {
    fn from(problem: BuildProblem) -> Self {
        Self::Build(Box::new(problem))
    }
}

impl From<diptych_llm::Error> for Error {
    fn from(error: diptych_llm::Error) -> Self {
        Self::Llm(Box::new(error))
    }
}

impl From<diptych_eval::Error> for Error {
    fn from(error: diptych_eval::Error) -> Self {
        diptych_llm::Error::from(error).into()
    }
}

impl From<diptych_data::Error> for Error {
    fn from(error: diptych_data::Error) -> Self {
        diptych_llm::Error::from(error).into()
    }
}

impl From<diptych_models::Error> for Error {
    fn from(error: diptych_models::Error) -> Self {
        diptych_llm::Error::from(error).into()
    }
}

impl From<diptych_train::Error> for Error {
    fn from(error: diptych_train::Error) -> Self {
        diptych_llm::Error::from(error).into()
    }
}

impl From<diptych_tensor::Error> for Error {
    fn from(error: diptych_tensor::Error) -> Self {
        diptych_llm::Error::from(error).into()
    }
}
