//! `diptych data build`: preference pairs that a model makes of itself.

use diptych_data::write_pairs;
use diptych_diffusion::{PairsConfig, build_pairs};
use diptych_shapes::{Example, Split};
use diptych_train::Reporter;

use crate::arguments::BuildArguments;
use crate::command::sampling;
use crate::command::shapes::read_scenes;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, print};
use crate::progress::Progress;

/// Captions where neither a file nor a number is given.
const NUM_CAPTIONS: usize = 512;

pub(crate) fn run(arguments: &BuildArguments) -> anyhow::Result<()> {
    let config = PairsConfig {
        judge: arguments.judge.clone(),
        candidates: arguments.candidates,
        rejected: arguments.rejected,
        min_margin: arguments.min_margin,
        min_chosen: arguments.min_chosen,
    };
    config.validate().map_err(as_argument)?;
    let sampling = sampling::config(&arguments.sampling)?;
    let prompts = prompts(arguments)?;
    let pipeline = sampling::load(&arguments.sampling)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let pairs = build_pairs(&pipeline, &prompts, &sampling, &config, &mut reporter)?;
    drop(reporter);
    create_parent(&arguments.out)?;
    write_pairs(&arguments.out, &pairs)?;
    print(format!(
        "wrote {} pairs of {} prompts to {}",
        pairs.len(),
        prompts.len(),
        arguments.out.display()
    ))
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
fn prompts(arguments: &BuildArguments) -> anyhow::Result<Vec<String>> {
    sampling::check_num_prompts(arguments.num_prompts)?;
    let prompts = if let Some(file) = &arguments.prompts {
        diptych_eval::read_first_prompts(file, arguments.num_prompts)?
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
