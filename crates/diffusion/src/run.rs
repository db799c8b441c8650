//! A whole run: load, encode, train, sample, evaluate, and the files it leaves.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diptych_eval::{WinRate, WinRateConfig};
use diptych_tensor::files::write_file;
use diptych_tensor::thread::on_large_stack;
use diptych_train::{
    Event, LoopConfig, Method as _, Progress, Recipe, Reporter, ResumeMode, RunDirectory, Summary, check_start, train,
    write_evaluation, write_report,
};

use crate::evaluation;
use crate::method::{DiffusionMethod, prepare};
use crate::modality::Diffusion;
use crate::{Error, Result};

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of the loop, with `eval_` metrics where an evaluation was asked for.
    pub summary: Summary,
    /// The aligned model against its base, where `[eval.win_rate]` asks for it and the run was not stopped.
    pub win_rate: Option<WinRate>,
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
    recipe: &Recipe<Diffusion>,
    progress: impl FnMut(&Progress<'_>) + Send,
    stop: &AtomicBool,
    resume: ResumeMode,
) -> Result<Outcome> {
    // Networks are sampled outside the loop too, and their graphs are as deep there.
    on_large_stack(|| run_reported(recipe, &mut Reporter::new(progress, stop), stop, resume))?
}

/// [`run`] for a caller with a reporter and a large stack of its own.
pub(crate) fn run_reported(
    recipe: &Recipe<Diffusion>,
    reporter: &mut Reporter<'_>,
    stop: &AtomicBool,
    resume: ResumeMode,
) -> Result<Outcome> {
    let config = LoopConfig::from_recipe(recipe)?;
    // What the loop would refuse after minutes of encoding.
    check_start(&config, resume)?;
    let method = prepare(recipe, reporter)?;
    let mut summary = train(
        &method,
        &config,
        &mut |event: &Event<'_>| reporter.training(event),
        stop,
        resume,
    )?;
    let output = RunDirectory::new(&config.output);
    let mut win_rate = None;
    if !summary.stopped {
        win_rate = evaluate(recipe, &method, &output, &mut summary, reporter)?;
    }
    Ok(Outcome {
        summary,
        win_rate,
        output: config.output,
    })
}

fn evaluate(
    recipe: &Recipe<Diffusion>,
    method: &DiffusionMethod,
    output: &RunDirectory,
    summary: &mut Summary,
    reporter: &mut Reporter<'_>,
) -> Result<Option<WinRate>> {
    let Some(config) = recipe
        .evaluation
        .as_ref()
        .and_then(|evaluation| evaluation.win_rate.as_ref())
    else {
        return Ok(None);
    };
    // What is judged is what is published, moving averages included.
    method.load(&output.final_weights())?;
    let Some(win_rate) = evaluation::win_rate(recipe, method, config, reporter)? else {
        return Ok(None);
    };
    publish_win_rate(&win_rate, config, output, summary)?;
    Ok(Some(win_rate))
}

/// Puts an evaluation into the files of a run.
pub(crate) fn publish_win_rate(
    win_rate: &WinRate,
    config: &WinRateConfig,
    output: &RunDirectory,
    summary: &mut Summary,
) -> Result<()> {
    write_evaluation(output.path(), &evaluation::table(win_rate, config))?;
    if let Some(row) = &mut summary.metrics {
        row.metrics.extend(metrics(win_rate));
    }
    let text = serde_json::to_string_pretty(summary).map_err(|source| Error::Json {
        path: output.summary(),
        source,
    })?;
    write_file(&output.summary(), format!("{text}\n").as_bytes())?;
    write_report(output.path())?;
    Ok(())
}

fn metrics(win_rate: &WinRate) -> impl Iterator<Item = (String, f64)> {
    [
        ("eval_score/base", win_rate.base.mean),
        ("eval_score/aligned", win_rate.aligned.mean),
        ("eval_score/difference", win_rate.difference.mean),
        ("eval_score/difference_low", win_rate.difference.low),
        ("eval_score/difference_high", win_rate.difference.high),
        ("eval_win_rate", win_rate.win_rate),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
}
