//! `diptych train`: what a recipe says, with a table at the end.

use std::fmt::Display;
use std::path::Path;

use diptych_train::{ResumeMode, Summary};

use crate::arguments::TrainArguments;
use crate::command::recipe::AnyRecipe;
use crate::command::rounds;
use crate::interrupt::stop_flag;
use crate::output::print;
use crate::progress::Progress;

pub(crate) fn run(arguments: TrainArguments) -> anyhow::Result<()> {
    let recipe = AnyRecipe::read(arguments.recipe)?;
    if arguments.dry_run {
        match &recipe {
            AnyRecipe::Diffusion(recipe) => diptych_diffusion::check_evaluation(recipe)?,
            AnyRecipe::Language(recipe) => diptych_llm::evaluation::check_evaluation(recipe)?,
            AnyRecipe::VisionLanguage(recipe) => diptych_vlm::evaluation::check_evaluation(recipe)?,
        }
        return print(recipe.plan()?.to_toml()?.trim_end());
    }
    let stop = stop_flag()?;
    let resume = if arguments.resume {
        ResumeMode::Resume
    } else {
        ResumeMode::Fresh
    };
    let mut progress = Progress::new();
    print(match recipe {
        AnyRecipe::Diffusion(recipe) if recipe.rounds.is_some() => {
            let outcome = diptych_diffusion::run_rounds(&recipe, |event| progress.show(event), &stop, resume)?;
            rounds::conclusion(&outcome)
        }
        AnyRecipe::Diffusion(recipe) => {
            let outcome = diptych_diffusion::run(&recipe, |event| progress.show(event), &stop, resume)?;
            conclusion(outcome.win_rate.as_ref(), &outcome.summary, &outcome.output)
        }
        AnyRecipe::Language(recipe) => {
            let outcome = diptych_llm::run(&recipe, |event| progress.show(event), &stop, resume)?;
            conclusion(outcome.truth.as_ref(), &outcome.summary, &outcome.output)
        }
        AnyRecipe::VisionLanguage(recipe) => {
            let outcome = diptych_vlm::run(&recipe, |event| progress.show(event), &stop, resume)?;
            conclusion(outcome.hallucination.as_ref(), &outcome.summary, &outcome.output)
        }
    })
}

/// The table of an evaluation, if there was one, and what the run took.
fn conclusion(evaluation: Option<&impl Display>, summary: &Summary, output: &Path) -> String {
    let memory = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {:.2} GiB at most", bytes as f64 / f64::from(1 << 30))
    });
    let table = evaluation.map_or_else(String::new, |table| {
        let table = table.to_string();
        format!("{}\n\n", table.trim_end())
    });
    let (steps, secs, output) = (summary.step, summary.wall_time_secs, output.display());
    format!("{table}{steps} steps in {secs:.0} s{memory}\nreport: {output}/report.html")
}
