//! Several answers to one prompt.

use super::checks::check_count;
use super::skip::Skip;
use super::speaker::{Ask, Seen};
use super::workshop::{OpenRow, Outcome, Workshop};
use crate::Result;

/// Refuses fewer answers than can be compared.
pub(super) fn check_num_answers(num: usize) -> Result<()> {
    check_count("num_answers", num, 2)
}

/// Several answers to a row's prompt.
pub(super) struct Sampled {
    /// Those that can be used.
    pub(super) answers: Vec<String>,
    /// What the model saw.
    pub(super) seen: Vec<Seen>,
    /// Says of the others why they cannot.
    pub(super) outcome: Outcome,
}

impl Sampled {
    /// Answers with a key of its own each.
    pub(super) fn of(shop: &Workshop<'_>, open: &OpenRow<'_>, num: usize) -> Result<Self> {
        let seen = shop.speaker.look_at_all(&open.images)?;
        let asks: Vec<Ask<'_>> = (0..num as u64)
            .map(|number| Workshop::ask(open.index, number, &open.row.prompt, &seen))
            .collect();
        let (cut, whole): (Vec<_>, Vec<_>) = shop
            .speaker
            .answers(&asks)?
            .into_iter()
            .partition(|said| shop.is_cut(said));
        Ok(Self {
            answers: whole.into_iter().map(|said| said.text).collect(),
            seen,
            outcome: Outcome {
                made: Vec::new(),
                skipped: vec![Skip::UnfinishedAnswer; cut.len()],
            },
        })
    }
}
