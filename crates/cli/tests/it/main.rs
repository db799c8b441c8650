//! The `diptych` command as its users run it: exit codes, messages, files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod exit_codes;
mod faults;
#[cfg(unix)]
mod full_disk;
#[cfg(unix)]
mod interruptions;
mod place;
mod runs;
mod sampling;
mod tools;
