//! `diptych plan`: memory, time and disk of a run that has not begun.

use crate::arguments::PlanArguments;
use crate::command::recipe::AnyRecipe;
use crate::output::print;

pub(crate) fn run(arguments: PlanArguments) -> anyhow::Result<()> {
    let estimate = match AnyRecipe::read(arguments.recipe)? {
        AnyRecipe::Diffusion(recipe) => diptych_diffusion::estimate(&recipe)?,
        AnyRecipe::Language(recipe) => diptych_llm::estimate(&recipe)?,
        AnyRecipe::VisionLanguage(recipe) => diptych_vlm::estimate(&recipe)?,
    };
    if arguments.json {
        print(serde_json::to_string_pretty(&estimate)?)
    } else {
        print(estimate.to_string().trim_end())
    }
}
