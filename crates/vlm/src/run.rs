//! A whole run: load, read the images, train, sample, evaluate, and the files it leaves.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diptych_llm::{Finished, LanguageMethod, Stages, run_stages};
use diptych_train::{LoopConfig, Progress, Recipe, Reporter, ResumeMode, Summary};

use crate::Result;
use crate::evaluation::{Hallucination, check_evaluation, evaluate};
use crate::modality::VisionLanguage;
use crate::prepare::prepare;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of the loop, with `eval_` metrics where an evaluation was asked for.
    pub summary: Summary,
    /// How much base and aligned model hallucinate, where `[eval.hallucination]` asks for it and the run was not stopped.
    pub hallucination: Option<Hallucination>,
    /// The run directory.
    pub output: PathBuf,
}

/// Does what a recipe says.
///
/// Progress is told to `progress`. When `stop` is set the step under way is finished and saved, and the summary says
/// `stopped`; outside the training loop, where nothing is to be saved, the run ends with an error that says so.
///
/// # Errors
/// Everything that can go wrong: see [`Error`](crate::Error).
pub fn run(
    recipe: &Recipe<VisionLanguage>,
    progress: impl FnMut(&Progress<'_>) + Send,
    stop: &AtomicBool,
    resume: ResumeMode,
) -> Result<Outcome> {
    let stages = Stages {
        prepare: |reporter: &mut Reporter<'_>| {
            check_evaluation(recipe)?;
            prepare(recipe, reporter)
        },
        evaluate: |method: LanguageMethod, trained: Finished<'_>, reporter: &mut Reporter<'_>| {
            // The networks of the loop are not held beside those that answer.
            drop(method);
            evaluate(recipe, trained.output, trained.summary, reporter)
        },
    };
    let config = LoopConfig::from_recipe(recipe)?;
    let (summary, hallucination, output) = run_stages(config, progress, stop, resume, stages)?;
    Ok(Outcome {
        summary,
        hallucination,
        output,
    })
}
