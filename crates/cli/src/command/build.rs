//! `diptych data build`: preference pairs that a model makes of itself.

use diptych_data::write_pairs;
use diptych_diffusion::progress::Reporter;
use diptych_diffusion::{PairsConfig, build_pairs};

use crate::arguments::BuildArguments;
use crate::command::sampling;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, print};
use crate::progress::Progress;

pub(crate) fn run(arguments: &BuildArguments) -> anyhow::Result<()> {
    if arguments.candidates < 2 {
        return Err(usage(format!(
            "--candidates is {}, expected at least 2",
            arguments.candidates
        )));
    }
    let sampling = sampling::config(&arguments.sampling)?;
    let prompts = sampling::training_prompts(
        arguments.prompts.as_deref(),
        arguments.scenes.as_deref(),
        arguments.num_prompts,
        arguments.sampling.seed,
    )?;
    let pipeline = sampling::load(&arguments.sampling)?;
    let config = PairsConfig {
        judge: arguments.judge,
        candidates: arguments.candidates,
        min_margin: arguments.min_margin,
    };
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.diffusion(event), &stop);
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
