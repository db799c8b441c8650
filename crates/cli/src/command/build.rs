//! `diptych data build`: preference data that a model makes of itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diptych_data::{DataFiles, Dataset, Layout, PairRule, ReadPolicy, TiePolicy, write_pairs, write_ranked};
use diptych_diffusion::{PairsConfig, build_pairs, build_ranked};
use diptych_shapes::{Example, Split};
use diptych_train::Reporter;

use crate::arguments::{BuildArguments, BuildKind, ImageBuildArguments};
use crate::command::shapes::read_scenes;
use crate::command::{build_answers, sampling};
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, print};
use crate::progress::Progress;

/// Captions where neither a file nor a number is given.
const NUM_CAPTIONS: usize = 512;

pub(crate) fn run(arguments: &BuildArguments) -> anyhow::Result<()> {
    match arguments {
        BuildArguments::Images(arguments) => run_images(arguments),
        BuildArguments::Answers(recipe) => build_answers::run(recipe),
    }
}

fn run_images(arguments: &ImageBuildArguments) -> anyhow::Result<()> {
    let config = PairsConfig {
        judge: arguments.judge.clone(),
        candidates: arguments.candidates,
        rule: arguments.rejected,
        min_margin: arguments.min_margin,
        min_chosen: arguments.min_chosen,
    };
    config.validate().map_err(as_argument)?;
    if arguments.kind == BuildKind::Ranked && arguments.rejected != PairRule::default() {
        return Err(usage(
            "--rejected is unused with --kind ranked: a list keeps all images",
        ));
    }
    check_out(arguments)?;
    let sampling = sampling::config(&arguments.sampling)?;
    let prompts = prompts(arguments)?;
    let pipeline = sampling::load(&arguments.sampling)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    create_parent(&arguments.out)?;
    let (num, what) = match arguments.kind {
        BuildKind::Pairs => {
            let pairs = build_pairs(&pipeline, &prompts, &sampling, &config, &mut reporter)?;
            write_pairs(&arguments.out, &pairs)?;
            (pairs.len(), "pairs")
        }
        BuildKind::Ranked => {
            let lists = build_ranked(&pipeline, &prompts, &sampling, &config, &mut reporter)?;
            write_ranked(&arguments.out, &lists)?;
            (lists.len(), "ranked lists")
        }
    };
    drop(reporter);
    let (num_prompts, out) = (prompts.len(), arguments.out.display());
    print(format!("wrote {num} {what} of {num_prompts} prompts to {out}"))
}

/// Refuses an output that could not be written, or not be read again, before any image is made for it.
fn check_out(arguments: &ImageBuildArguments) -> anyhow::Result<()> {
    let out = &arguments.out;
    let wrong = |reason: &str| Err(usage(format!("--out {}: {reason}", out.display())));
    if out.is_dir() {
        return wrong("this is a directory, expected a file");
    }
    if !out
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
    {
        return wrong("expected a name that ends in .jsonl");
    }
    let is_same =
        |file: &PathBuf| matches!((file.canonicalize(), out.canonicalize()), (Ok(file), Ok(out)) if file == out);
    if arguments.prompts.as_ref().is_some_and(is_same) {
        return wrong("this file has the prompts; choose another output");
    }
    Ok(())
}

/// The different prompts of a dataset, in its order.
fn prompts_of_data(file: &Path, num: Option<usize>) -> anyhow::Result<Vec<String>> {
    // Only the prompts are wanted: those of ties are as good as others.
    let policy = ReadPolicy {
        ties: TiePolicy::Keep,
        ..ReadPolicy::default()
    };
    let (dataset, report) = Dataset::read_with(&DataFiles::find(&[file.to_path_buf()], Layout::Auto)?, policy)?;
    if !report.is_complete() {
        print(&report)?;
    }
    let mut seen = BTreeSet::new();
    let different = dataset.prompts().into_iter().filter(|prompt| seen.insert(*prompt));
    let prompts: Vec<String> = different.take(num.unwrap_or(usize::MAX)).map(str::to_owned).collect();
    match num {
        Some(wanted) if prompts.len() < wanted => Err(usage(format!(
            "--num-prompts is {wanted}, but {} has {} different prompts",
            file.display(),
            prompts.len()
        ))),
        _ if prompts.is_empty() => Err(usage(format!("--prompts {}: this data has no prompts", file.display()))),
        _ => Ok(prompts),
    }
}

/// A setting by the name of its argument.
fn as_argument(error: diptych_diffusion::Error) -> anyhow::Error {
    match error {
        diptych_diffusion::Error::Setting { key, found, expected } => {
            usage(format!("--{} is {found}, expected {expected}", key.replace('_', "-")))
        }
        other => other.into(),
    }
}

/// The prompts of a file, or captions of the shapes world's training split; all of them the judge understands.
fn prompts(arguments: &ImageBuildArguments) -> anyhow::Result<Vec<String>> {
    sampling::check_num_prompts(arguments.num_prompts)?;
    let prompts = if let Some(file) = &arguments.prompts {
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if ["json", "jsonl", "ndjson", "parquet"].contains(&extension.as_str()) {
            prompts_of_data(file, arguments.num_prompts)?
        } else {
            diptych_eval::read_first_prompts(file, arguments.num_prompts)?
        }
    } else {
        let scenes = read_scenes(arguments.scenes.as_deref())?;
        let caption = |index| Example::generate(arguments.sampling.seed, index, Split::Train, &scenes);
        (0..arguments.num_prompts.unwrap_or(NUM_CAPTIONS) as u64)
            .map(|index| Ok(caption(index)?.caption))
            .collect::<anyhow::Result<Vec<_>>>()?
    };
    arguments.judge.check_prompts(&prompts)?;
    Ok(prompts)
}
