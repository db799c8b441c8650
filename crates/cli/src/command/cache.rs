//! `diptych data cache`: what frozen networks make of a recipe's images, and prompts, once.

use diptych_diffusion::cache_records;
use diptych_tensor::thread::on_large_stack;
use diptych_train::Reporter;
use diptych_vlm::cache_images;

use crate::arguments::CacheArguments;
use crate::command::recipe::AnyRecipe;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::print;
use crate::progress::Progress;

pub(crate) fn run(arguments: CacheArguments) -> anyhow::Result<()> {
    let recipe = AnyRecipe::read(arguments.recipe)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let (what, data) = match &recipe {
        AnyRecipe::Diffusion(recipe) => {
            let num_records = on_large_stack(|| cache_records(recipe, &mut reporter))??;
            (format!("{num_records} records"), &recipe.data)
        }
        AnyRecipe::VisionLanguage(recipe) => {
            let counts = on_large_stack(|| cache_images(recipe, &mut reporter))??;
            let num = counts.num_read + counts.num_written;
            let damaged = match counts.num_damaged {
                0 => String::new(),
                num => format!(", {num} of them in the place of damaged files"),
            };
            let what = format!(
                "features of {num} images, {} of them made now{damaged},",
                counts.num_written
            );
            (what, &recipe.data)
        }
        AnyRecipe::Language(_) => return Err(usage("data cache keeps images; this recipe is for text")),
    };
    drop(reporter);
    let path = data.cache.as_ref().map(|cache| cache.path.display().to_string());
    print(format!("{what} are in {}", path.unwrap_or_default()))
}
