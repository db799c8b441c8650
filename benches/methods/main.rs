//! Image methods on the embedded world, under one budget: do they learn, and what do the papers' claims come to here?
//!
//! ```text
//! cargo bench --bench methods -- --seeds 0,1,2 --out runs/methods
//! ```
//!
//! `methods.toml` says what is compared. Each entry is trained in a process of its own with one thread; `--jobs 2` trains two at a
//! time. What its adapter comes to is the verifier's score of images for held-out prompts, the same prompts and noise for all.
//! Results are appended to `OUT/results.jsonl` as they come, a stopped comparison goes on from there, and the tables are written to
//! `OUT/methods.md`. `--only NAME` takes the entries of one name, `--plan FILE` compares something else, `--evaluation-seed 0` takes other
//! prompts: those to choose settings on.

mod checkpoint;
mod comparison;
mod data;
mod evaluation;
mod results;
mod table;
mod worker;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use diptych::diffusion::Diffusion;
use diptych::tensor::files::write_file;
use diptych::train::{Recipe, RunDirectory};

use self::checkpoint::Checkpoint;
use self::comparison::{Comparison, Entry, Plan, root};
use self::evaluation::Evaluation;
use self::results::{Measured, Results, key, world_of};

/// As in the command.
#[global_allocator]
static ALLOCATOR: diptych::tensor::memory::BlockCache = diptych::tensor::memory::BlockCache::new();

/// A training to be done.
#[derive(Debug)]
struct Job<'a> {
    comparison: &'a Comparison,
    entry: &'a Entry,
    seed: u64,
    overrides: Vec<String>,
    output: PathBuf,
}

/// Compares the image methods on the embedded world under one budget.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    /// What cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One training, in the process that is measured
    #[command(hide = true)]
    Worker { recipe: PathBuf, overrides: Vec<String> },
}

#[derive(Debug, Args)]
struct Options {
    /// Seeds of the trainings
    #[arg(long, value_delimiter = ',', default_value = "0,1,2")]
    seeds: Vec<u64>,
    /// Trainings at a time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Seed of the prompts and noise that all are judged on
    #[arg(long, default_value_t = 1)]
    evaluation_seed: u64,
    /// The entries of this name alone
    #[arg(long)]
    only: Option<String>,
    /// What is compared, instead of the committed plan
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Where results and tables go
    #[arg(long, value_name = "DIR", default_value = "runs/methods")]
    out: PathBuf,
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Worker { recipe, overrides }) = &arguments.command {
        let cost = worker::train(recipe, overrides)?;
        println!("{}", serde_json::to_string(&cost)?);
        return Ok(());
    }
    let options = arguments.options;
    let plan = Plan::read(options.plan.as_deref())?;
    // Recipes name models and data from the root.
    std::env::set_current_dir(root())?;
    let out = std::path::absolute(&options.out)?;
    std::fs::create_dir_all(&out)?;

    let main_recipe = Recipe::<Diffusion>::read(&root().join("examples/recipes/shapes_diffusion_dpo.toml"), &[])?;
    let scenes = main_recipe
        .evaluation
        .as_ref()
        .and_then(|sections| sections.win_rate.as_ref());
    let scenes = scenes.and_then(|config| config.scenes.clone()).unwrap_or_default();
    let checkpoint = Checkpoint::prepare(&scenes, &out)?;
    let evaluation = Evaluation::begin(&main_recipe, &checkpoint.model, options.evaluation_seed)?;
    let world = world_of(&checkpoint.model, &checkpoint.pairs, &evaluation.base)?;
    let results = Results::open(out.join("results.jsonl"), world.clone(), options.evaluation_seed)?;
    let results = Mutex::new(results);
    let mut jobs = VecDeque::new();
    for &seed in &options.seeds {
        for comparison in &plan.comparisons {
            let data = data::path_of(comparison.data, &checkpoint.pairs, &scenes, &out)?;
            let wanted = |entry: &&Entry| options.only.as_ref().is_none_or(|only| entry.name == *only);
            for entry in comparison.entries.iter().filter(wanted) {
                jobs.push_back(job(comparison, entry, seed, [&checkpoint.model, &data], &out)?);
            }
        }
    }
    work_off(jobs, options.jobs, |job| {
        let is_done = locked(&results).has(job.comparison, job.entry, job.seed)?;
        if !is_done {
            let measured = measure(job, (&evaluation, &world), plan.budget_secs)?;
            locked(&results).push(measured)?;
        }
        Ok(())
    })?;
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let text = table::markdown(&plan, &results, &evaluation)?;
    println!("{text}");
    write_file(&out.join("methods.md"), text.as_bytes())?;
    Ok(())
}

/// Does the jobs, `num_jobs` of them at a time.
fn work_off<'a>(
    jobs: VecDeque<Job<'a>>,
    num_jobs: usize,
    work: impl Fn(&Job<'a>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let jobs = Mutex::new(jobs);
    let all = || -> anyhow::Result<()> {
        loop {
            let next = locked(&jobs).pop_front();
            let Some(job) = next else { return Ok(()) };
            work(&job)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..num_jobs.max(1)).map(|_| scope.spawn(all)).collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => done?,
                Err(_) => bail!("a thread panicked"),
            }
        }
        Ok(())
    })
}

/// A lock is poisoned by a panic alone, which ends the program anyway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn job<'a>(
    comparison: &'a Comparison,
    entry: &'a Entry,
    seed: u64,
    [model, data]: [&Path; 2],
    out: &Path,
) -> anyhow::Result<Job<'a>> {
    let output = out
        .join("run")
        .join(format!("{:?}-{}-{seed}", comparison.data, entry.name.replace(' ', "-")));
    let mut overrides = entry.set.clone();
    overrides.extend([
        format!("run.seed={seed}"),
        format!("model.path={:?}", model.display().to_string()),
        format!("run.output={:?}", output.display().to_string()),
        "run.device=\"cpu\"".to_owned(),
        "train.sample_every=0".to_owned(),
        "train.checkpoint_every=0".to_owned(),
    ]);
    if entry.reads_data()? {
        overrides.push(format!("data.path={:?}", data.display().to_string()));
    }
    Ok(Job {
        comparison,
        entry,
        seed,
        overrides,
        output,
    })
}

/// Trains and judges; the run is deleted, its numbers stay.
#[expect(clippy::print_stderr, reason = "a long benchmark says how far it is")]
fn measure(job: &Job<'_>, (evaluation, world): (&Evaluation, &str), budget_secs: f64) -> anyhow::Result<Measured> {
    if job.output.exists() {
        // What a stopped comparison left.
        std::fs::remove_dir_all(&job.output)?;
    }
    let cost = worker::train_apart(&job.entry.recipe(), &job.overrides)?;
    let scores = evaluation.scores(Some(&RunDirectory::new(&job.output).final_weights()))?;
    std::fs::remove_dir_all(&job.output)?;
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
    eprintln!(
        "{} seed {}: {:.3} to {:.3}, {:.0} s of {budget_secs:.0}",
        job.entry.name,
        job.seed,
        mean(&evaluation.base),
        mean(&scores),
        cost.cpu_secs
    );
    Ok(Measured {
        key: key(job.comparison, job.entry)?,
        world: world.to_owned(),
        seed: job.seed,
        evaluation_seed: evaluation.config.seed,
        cost,
        scores,
    })
}
