//! `diptych data cache`: what frozen networks make of a recipe's images and prompts, once.

use diptych_diffusion::cache_records;
use diptych_tensor::thread::on_large_stack;
use diptych_train::Reporter;

use crate::arguments::CacheArguments;
use crate::command::recipe::AnyRecipe;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::print;
use crate::progress::Progress;

pub(crate) fn run(arguments: CacheArguments) -> anyhow::Result<()> {
    let AnyRecipe::Diffusion(recipe) = AnyRecipe::read(arguments.recipe)? else {
        return Err(usage("data cache keeps images and prompts; this recipe is for text"));
    };
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let num_records = on_large_stack(|| cache_records(&recipe, &mut reporter))??;
    drop(reporter);
    let path = recipe.data.cache.as_ref().map(|cache| cache.path.display().to_string());
    print(format!("{num_records} records are in {}", path.unwrap_or_default()))
}
