//! Why a row gave no pair.

use serde::{Deserialize, Serialize};

/// Why a pair that a row could have had was not made. Counted, and reported by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The row itself cannot be used: an image that cannot be read, no answer, places that do not fit the images.
    BadRow,
    /// An answer did not end within the tokens that it may have. Of several answers to one prompt each counts.
    UnfinishedAnswer,
    /// The two answers are the same.
    EqualAnswers,
    /// An answer says nothing.
    EmptyAnswer,
    /// The answer that would be chosen is too long.
    LongAnswer,
    /// The answer looks enough at the image that was asked about.
    AttendsToTarget,
    /// The answer was given without doubt.
    Confident,
    /// The answer has no segment that could be masked.
    NothingToMask,
    /// Chosen and rejected answer are too similar.
    TooSimilar,
    /// Too few frames to change their order.
    TooFewFrames,
    /// The rejected answer is not shorter, though it saw less.
    NotShorter,
    /// One answer is much longer than the other.
    LengthRatio,
    /// The chosen answer is part of the rejected one.
    Contained,
    /// First and second answer are both right.
    BothRight,
    /// First and second answer are both wrong.
    BothWrong,
    /// The first answer, which is the one that is overwritten, makes no claim.
    NoClaims,
    /// The scores of the answers are too close.
    NoGap,
    /// There is no caption that a judge could read.
    NoCaption,
    /// The chosen answer is much shorter than the rejected one.
    MuchShorter,
}

impl Skip {
    /// Why, in words.
    pub fn description(self) -> &'static str {
        match self {
            Self::BadRow => "rows that cannot be used",
            Self::UnfinishedAnswer => "an answer did not end within `max_new_tokens`",
            Self::EqualAnswers => "both answers are the same",
            Self::EmptyAnswer => "an answer says nothing",
            Self::LongAnswer => "the chosen answer is too long",
            Self::AttendsToTarget => "the answer looks enough at the image that was asked about",
            Self::Confident => "the answer was given without doubt",
            Self::NothingToMask => "the answer has nothing to mask",
            Self::TooSimilar => "the answers are too similar",
            Self::TooFewFrames => "too few frames",
            Self::NotShorter => "the answer to fewer frames is not shorter",
            Self::LengthRatio => "one answer is much longer than the other",
            Self::Contained => "the chosen answer is part of the rejected one",
            Self::BothRight => "both answers are right",
            Self::BothWrong => "both answers are wrong",
            Self::NoClaims => "the first answer makes no claim",
            Self::NoGap => "the scores of the answers are too close",
            Self::NoCaption => "there is no caption of the row",
            Self::MuchShorter => "the chosen answer is much shorter",
        }
    }
}
