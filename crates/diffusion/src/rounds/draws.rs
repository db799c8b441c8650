//! What the random numbers of a round are for: the `example` of their generator, whose `step` is the round.

/// The seed of its training.
pub(super) const TRAINING: u64 = 0;
/// Which of the past policies.
pub(super) const PAST: u64 = 1;
/// Which policy makes which image.
pub(super) const MIXTURE: u64 = 2;
/// The seeds of the parts that images are sampled in.
pub(super) const PARTS: u64 = 3;
/// Which images become records.
pub(super) const SELECTION: u64 = 4;
/// The order in which prompts have their turn; of no round.
pub(super) const PROMPTS: u64 = 5;
/// The order in which images of the data have their turn; of no round.
pub(super) const REAL: u64 = 6;
