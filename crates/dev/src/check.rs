//! The one command before a pull request: what CI checks before it runs the tests.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::repo::Repo;
use crate::{arrows, generate, golden, report, tidy};

/// Arguments of cargo.
const CARGO_STEPS: &[&[&str]] = &[
    &["fmt", "--all", "--check"],
    &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ],
    &["doc", "--workspace", "--no-deps", "--locked"],
];

/// Checkers that not everyone has; CI installs nothing, so they are skipped where they are missing.
const OPTIONAL_STEPS: &[&[&str]] = &[&["cargo-deny", "deny", "check"], &["typos"]];

/// Runs every step, also after a failure; true when all of them passed.
pub(crate) fn run(repo: &Repo) -> Result<bool> {
    let mut failed = Vec::new();
    let mut step = |name: String, body: &dyn Fn() -> Result<bool>| -> Result<()> {
        println!("── {name}");
        let start = Instant::now();
        let is_ok = body()?;
        println!(
            "   {} in {:.0} s",
            if is_ok { "passed" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        if !is_ok {
            failed.push(name);
        }
        Ok(())
    };
    step("cargo dev tidy".into(), &|| Ok(report("tidy", &tidy::violations(repo))))?;
    step("cargo dev generate --check".into(), &|| {
        Ok(report("generate", &generate::stale(repo)))
    })?;
    step("cargo dev golden --check".into(), &|| {
        Ok(report("golden", &golden::violations(repo)))
    })?;
    step("cargo dev arrows".into(), &|| {
        Ok(report("arrows", &arrows::violations(repo)?))
    })?;
    for arguments in CARGO_STEPS {
        step(format!("cargo {}", arguments.join(" ")), &|| cargo(repo, arguments))?;
    }
    for command in OPTIONAL_STEPS {
        step(command.join(" "), &|| optional(repo, command))?;
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn cargo(repo: &Repo, arguments: &[&str]) -> Result<bool> {
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(&repo.root)
        .status()
        .context("cannot run cargo")?;
    Ok(status.success())
}

fn optional(repo: &Repo, command: &[&str]) -> Result<bool> {
    let is_installed = Command::new(command[0])
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !is_installed {
        println!("   skipped: {} is not installed", command[0]);
        return Ok(true);
    }
    let status = Command::new(command[0])
        .args(&command[1..])
        .current_dir(&repo.root)
        .status()
        .with_context(|| format!("cannot run {}", command[0]))?;
    Ok(status.success())
}
