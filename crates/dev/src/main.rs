//! `cargo dev`: the checks and generators of this workspace. Never published.
//!
//! | command | what it does |
//! |---|---|
//! | `cargo dev check` | everything that CI checks before it runs the tests; the one command before a pull request |
//! | `cargo dev tidy` | the rules of the house that no compiler knows: one file a rule, under `tidy/` |
//! | `cargo dev arrows` | which crate may depend on which, as `ARCHITECTURE.md` says |
//! | `cargo dev generate` | `PAPERS.md` and the tables in `README.md` |
//! | `cargo dev golden` | the golden files, by the Python programs beside them |

#![expect(clippy::print_stdout, reason = "a command line tool")]
#![expect(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "the endings of our own files are in lower case"
)]

mod architecture;
mod arrows;
mod check;
mod generate;
mod golden;
mod markdown;
mod objective;
mod repo;
mod source;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::repo::Repo;

/// Checks and generators of the Diptych workspace.
#[derive(Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that CI checks before the tests: formatting, lints, docs, tidy, arrows, generated and golden files.
    Check,
    /// The rules of the house: sizes, names, words, headers, budgets.
    Tidy,
    /// The dependencies of each crate against the table in ARCHITECTURE.md.
    Arrows,
    /// Write PAPERS.md and the generated parts of README.md.
    Generate {
        /// Only report what is out of date.
        #[arg(long)]
        check: bool,
    },
    /// Run the generators of golden files with $PYTHON or python3.
    Golden {
        /// Only check, without Python, that every golden file has a generator and that the budget holds.
        #[arg(long)]
        check: bool,
        /// Only these generators, by a part of the file name.
        only: Vec<String>,
    },
}

fn main() -> Result<ExitCode> {
    let repo = Repo::open()?;
    let is_ok = match Cli::parse().command {
        Command::Check => check::run(&repo)?,
        Command::Tidy => report("tidy", &tidy::violations(&repo)),
        Command::Arrows => report("arrows", &arrows::violations(&repo)?),
        Command::Generate { check: true } => report("generate", &generate::stale(&repo)),
        Command::Generate { check: false } => report("generate", &generate::write(&repo)?),
        Command::Golden { check: true, .. } => report("golden", &golden::violations(&repo)),
        Command::Golden { check: false, only } => golden::run(&repo, &only)?,
    };
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints findings; true when none of them is an error.
fn report(what: &str, findings: &[tidy::Violation]) -> bool {
    for finding in findings {
        println!("{finding}");
    }
    let num_errors = findings.iter().filter(|finding| finding.is_error()).count();
    let num_warnings = findings.len() - num_errors;
    println!("{what}: {num_errors} errors, {num_warnings} warnings");
    num_errors == 0
}
