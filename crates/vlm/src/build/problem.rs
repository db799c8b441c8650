//! What can go wrong while data is built.

use std::path::PathBuf;

/// Why data cannot be built, or not from a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildProblem {
    /// A row shows another number of images than the recipe can use.
    #[error("row {id}: {found} images; `{recipe}` needs {expected}")]
    NumImages {
        /// The row.
        id: String,
        /// The recipe.
        recipe: &'static str,
        /// How many it shows.
        found: usize,
        /// How many it should show.
        expected: &'static str,
    },
    /// A row has no answer that could be chosen.
    #[error("row {id}: no answer; `{recipe}` needs rows with one: pairs, or prompts with a completion")]
    NoAnswer {
        /// The row.
        id: String,
        /// The recipe.
        recipe: &'static str,
    },
    /// A row's prompt is given as tokens.
    #[error("row {id}: its prompt is given as tokens, which cannot be asked in other words")]
    TokenIds {
        /// The row.
        id: String,
    },
    /// Rows that have no prompt.
    #[error("row {id}: it has no prompt: a text that is learned as a whole")]
    NoPrompt {
        /// The row.
        id: String,
    },
    /// There is no way to say words to the model.
    #[error("`{model}` has no chat template: say by a prompt format how words become a prompt of it")]
    NoFormat {
        /// The checkpoint.
        model: PathBuf,
    },
    /// Two words between which a judge decides begin with the same token.
    #[error(
        "a judge says {first:?} or {second:?} by its first token, and in the vocabulary of `{model}` both begin with {token:?}; take words that \
         begin otherwise"
    )]
    SharedToken {
        /// A word.
        first: String,
        /// Another one.
        second: String,
        /// What both begin with.
        token: String,
        /// The judge.
        model: PathBuf,
    },
    /// A recipe needs other images and the data has too few.
    #[error("`{recipe}` needs {expected} different images among the rows, found {found}")]
    TooFewImages {
        /// The recipe.
        recipe: &'static str,
        /// Different images that were found.
        found: usize,
        /// How many it needs.
        expected: usize,
    },
    /// What was begun is another build.
    #[error(
        "{path} holds the beginnings of another build: its {keys} differ; finish that one with its own settings, or remove the folder"
    )]
    OtherBuild {
        /// The folder of what is done.
        path: PathBuf,
        /// What differs.
        keys: String,
    },
    /// What a build left cannot be read.
    #[error("{path}, line {line}: not what a build writes: {reason}; remove the folder to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file of the build cannot be read, written or removed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of captions is wrong.
    #[error("{path}, line {line}: expected an object with `id` and `caption`: {reason}")]
    Captions {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// No row became a pair.
    #[error("none of the {num_rows} rows became a pair: {skipped}")]
    NothingBuilt {
        /// Rows that were asked about.
        num_rows: usize,
        /// Why, with counts.
        skipped: String,
    },
}

impl BuildProblem {
    /// Whether the cause is a setting rather than something that went wrong.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoFormat { .. } | Self::SharedToken { .. } | Self::OtherBuild { .. } => true,
            Self::NumImages { .. }
            | Self::NoAnswer { .. }
            | Self::TokenIds { .. }
            | Self::NoPrompt { .. }
            | Self::TooFewImages { .. }
            | Self::Damaged { .. }
            | Self::Captions { .. }
            | Self::Io { .. }
            | Self::NothingBuilt { .. } => false,
        }
    }
}
