//! How a failure reaches the user: one line on standard error, and an exit code.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

/// Usage or configuration.
const CONFIGURATION: u8 = 2;
/// Anything else.
const OTHER: u8 = 1;

/// A wrong combination of arguments that the parser cannot see.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

/// An [`UsageError`] as the error of a command.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Writes the error with its causes and returns the exit code: 2 for usage and configuration, else 1.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Typed errors often include their source in their own words.
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    // Nothing can be done when standard error is closed.
    let _ = writeln!(std::io::stderr(), "error: {message}");
    ExitCode::from(if is_configuration(error) { CONFIGURATION } else { OTHER })
}

/// Each crate knows which of its errors are configuration; a cause may be any of theirs.
fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<UsageError>()
            || is(cause, diptych_diffusion::Error::is_configuration)
            || is(cause, diptych_llm::Error::is_configuration)
            || is(cause, diptych_vlm::Error::is_configuration)
            || is(cause, diptych_train::Error::is_configuration)
            || is(cause, diptych_eval::Error::is_configuration)
            || is(cause, diptych_models::Error::is_configuration)
            || is(cause, diptych_data::Error::is_configuration)
            || is(cause, diptych_tensor::Error::is_configuration)
            || is(cause, diptych_shapes::Error::is_configuration)
    })
}

fn is<E: Error + 'static>(cause: &(dyn Error + 'static), is_configuration: impl Fn(&E) -> bool) -> bool {
    cause.downcast_ref().is_some_and(is_configuration)
}
