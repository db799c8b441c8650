//! Tests of the loop, its files and its recipes, on a method small enough to see through.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod guards;
mod killed;
mod learning;
mod recipe;
mod report;
mod resume;
mod run_directory;
mod toy;
mod updates;
