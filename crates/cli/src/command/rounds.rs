//! What `diptych train` says of a recipe with `[rounds]`.

use diptych_diffusion::RoundsOutcome;

/// The table of rounds, and where they lie.
pub(crate) fn conclusion(outcome: &RoundsOutcome) -> String {
    let (summary, output) = (&outcome.summary, outcome.output.display());
    let num = summary.rounds.len();
    let page = if num > 1 {
        format!("\ncomparison: {output}/comparison.html")
    } else {
        String::new()
    };
    let more = if summary.stopped {
        "; continue with --resume"
    } else {
        ""
    };
    format!("{summary}\n{num} rounds in {output}{more}{page}")
}
