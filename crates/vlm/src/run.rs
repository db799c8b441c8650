//! A whole run: load, read the images, train, sample, evaluate, and the files it leaves.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diptych_tensor::thread::on_large_stack;
use diptych_train::{
    Event, LoopConfig, Progress, Recipe, Reporter, ResumeMode, RunDirectory, Summary, check_start, train,
};

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
    // Networks are sampled outside the loop too, and their graphs are as deep there.
    on_large_stack(|| {
        let mut reporter = Reporter::new(progress, stop);
        let config = LoopConfig::from_recipe(recipe)?;
        // What the loop would refuse after minutes of reading.
        check_start(&config, resume)?;
        check_evaluation(recipe)?;
        let method = prepare(recipe, &mut reporter)?;
        let mut summary = train(
            &method,
            &config,
            &mut |event: &Event<'_>| reporter.training(event),
            stop,
            resume,
        )?;
        drop(method);
        let mut hallucination = None;
        if !summary.stopped {
            let output = RunDirectory::new(&config.output);
            hallucination = evaluate(recipe, &output, &mut summary, &mut reporter)?;
        }
        Ok(Outcome {
            summary,
            hallucination,
            output: config.output,
        })
    })?
}
