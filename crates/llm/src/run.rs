//! A whole run: load, encode, train, sample, evaluate, and the files it leaves.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diptych_tensor::thread::on_large_stack;
use diptych_train::{
    Event, LoopConfig, Method as _, Progress, Recipe, Reporter, ResumeMode, RunDirectory, Summary, check_start, train,
};

use crate::evaluation::{Truth, evaluate};
use crate::method::{LanguageMethod, prepare};
use crate::modality::Language;
use crate::{Error, Result};

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of the loop, with `eval_` metrics where an evaluation was asked for.
    pub summary: Summary,
    /// How true the aligned model's answers are, and its base's, where `[eval.truth]` asks for it and the run was not stopped.
    pub truth: Option<Truth>,
    /// The run directory.
    pub output: PathBuf,
}

/// Does what a recipe says.
///
/// Progress is told to `progress`. When `stop` is set the step under way is finished and saved, and the summary says
/// `stopped`; outside the training loop, where nothing is to be saved, the run ends with [`Error::Stopped`].
///
/// # Errors
/// Everything that can go wrong: see [`Error`].
pub fn run(
    recipe: &Recipe<Language>,
    progress: impl FnMut(&Progress<'_>) + Send,
    stop: &AtomicBool,
    resume: ResumeMode,
) -> Result<Outcome> {
    let stages = Stages {
        prepare: |reporter: &mut Reporter<'_>| prepare(recipe, reporter),
        evaluate: |method: LanguageMethod, trained: Finished<'_>, reporter: &mut Reporter<'_>| {
            // What is judged is what is published, moving averages included.
            method.load(&trained.output.final_weights())?;
            evaluate(recipe, &method, trained.output, trained.summary, reporter)
        },
    };
    let config = LoopConfig::from_recipe(recipe)?;
    let (summary, truth, output) = run_stages(config, progress, stop, resume, stages)?;
    Ok(Outcome { summary, truth, output })
}

/// What a run does before its loop and behind it.
#[derive(Debug)]
pub struct Stages<P, E> {
    /// Reads the recipe's files: everything that would fail is to fail here.
    pub prepare: P,
    /// Looks at what the run published, where it was not stopped.
    pub evaluate: E,
}

/// A loop that came to its end.
#[derive(Debug)]
pub struct Finished<'a> {
    /// Where the run is.
    pub output: &'a RunDirectory,
    /// What it came to, to be completed.
    pub summary: &'a mut Summary,
}

/// [`run()`] for any recipe whose method is a [`LanguageMethod`]: the summary, what the evaluation found, and the run directory.
///
/// # Errors
/// Those of the stages and of the loop.
pub fn run_stages<T: Send, X>(
    config: LoopConfig,
    progress: impl FnMut(&Progress<'_>) + Send,
    stop: &AtomicBool,
    resume: ResumeMode,
    stages: Stages<
        impl FnOnce(&mut Reporter<'_>) -> Result<LanguageMethod, X> + Send,
        impl FnOnce(LanguageMethod, Finished<'_>, &mut Reporter<'_>) -> Result<Option<T>, X> + Send,
    >,
) -> Result<(Summary, Option<T>, PathBuf), X>
where
    X: From<Error> + Send,
{
    // Networks are sampled outside the loop too, and their graphs are as deep there.
    let run = on_large_stack(|| {
        let mut reporter = Reporter::new(progress, stop);
        // What the loop would refuse after minutes of reading.
        check_start(&config, resume).map_err(Error::from)?;
        let method = (stages.prepare)(&mut reporter)?;
        let mut observer = |event: &Event<'_>| reporter.training(event);
        let mut summary = train(&method, &config, &mut observer, stop, resume).map_err(Error::from)?;
        let output = RunDirectory::new(&config.output);
        let mut found = None;
        if !summary.stopped {
            let trained = Finished {
                output: &output,
                summary: &mut summary,
            };
            found = (stages.evaluate)(method, trained, &mut reporter)?;
        }
        Ok((summary, found, config.output))
    });
    run.map_err(Error::from)?
}
