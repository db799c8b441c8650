//! Standard output.

use std::io::Write as _;

use anyhow::Context as _;

/// Writes text to standard output, with a line end. A reader that went away is not an error.
pub(crate) fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
