//! `diptych verify-resume`: train, stop, resume, compare.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use diptych_train::{Reporter, VerifyConfig, verify_resume};

use crate::arguments::VerifyArguments;
use crate::command::recipe::AnyRecipe;
use crate::failure::usage;
use crate::output::print;
use crate::progress::Progress;

pub(crate) fn run(arguments: VerifyArguments) -> anyhow::Result<()> {
    if arguments.steps < 2 {
        return Err(usage(format!("--steps is {}, expected at least 2", arguments.steps)));
    }
    let recipe = AnyRecipe::read(arguments.recipe)?;
    let config = recipe.loop_config()?;
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let verify = VerifyConfig {
        steps: arguments.steps,
        stop_after: arguments.steps / 2,
        directory: directory.path().join("runs"),
    };
    let mut progress = Progress::new();
    let report = match recipe {
        AnyRecipe::Diffusion(recipe) => verify_resume(
            || diptych_diffusion::prepare(&recipe, &mut Reporter::silent()),
            &config,
            &verify,
            &mut progress,
        )?,
        AnyRecipe::Language(mut recipe) => {
            // Nothing is sampled, and so nothing before training either.
            recipe.train.sample_every = 0;
            verify_resume(
                || diptych_llm::prepare(&recipe, &mut Reporter::silent()),
                &config,
                &verify,
                &mut progress,
            )?
        }
        AnyRecipe::VisionLanguage(mut recipe) => {
            recipe.train.sample_every = 0;
            verify_resume(
                || diptych_vlm::prepare(&recipe, &mut Reporter::silent()),
                &config,
                &verify,
                &mut progress,
            )?
        }
    };
    let mut text = String::new();
    for comparison in &report.comparisons {
        let verdict = if comparison.is_equal { "equal" } else { "DIFFERENT" };
        writeln!(
            text,
            "{verdict:9} {}: {} ({})",
            comparison.scenario, comparison.what, comparison.detail
        )?;
    }
    print(text.trim_end())?;
    if !report.is_exact() {
        bail!("a resumed run differs from the uninterrupted one");
    }
    print("a resumed run equals the uninterrupted one, bit for bit")
}
