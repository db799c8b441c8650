//! What is told of long work.

use diptych_train::Reporter;

use crate::Result;

/// Tells that so many of a stage's parts are done.
///
/// # Errors
/// A stop that was asked for.
pub(crate) fn advance(reporter: &mut Reporter<'_>, stage: &'static str, done: usize, total: usize) -> Result<()> {
    let told = reporter.advance(stage, done as u64, total as u64);
    Ok(told.map_err(diptych_llm::Error::from)?)
}
