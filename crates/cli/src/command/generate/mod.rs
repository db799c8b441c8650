//! `diptych generate`: images or answers from prompts.

mod answers;
mod images;

use crate::arguments::GenerateArguments;
use crate::command::model_kind::ModelKind;
use crate::failure::usage;
use crate::output::ensure_free;

pub(crate) fn run(arguments: &GenerateArguments) -> anyhow::Result<()> {
    ensure_free(&arguments.out)?;
    let kind = ModelKind::of(&arguments.model)?;
    let (foreign, run): (_, fn(&GenerateArguments) -> anyhow::Result<()>) = match kind {
        ModelKind::Pipeline => (arguments.texts.given(), images::run),
        ModelKind::Language => (arguments.images.given(), answers::run),
        ModelKind::VisionLanguage => {
            return Err(usage(format!(
                "--model {} is a vision-language model, which this command does not sample yet",
                arguments.model.display()
            )));
        }
    };
    match foreign {
        Some(option) => Err(usage(format!(
            "{option} is nothing that --model {}, {}, would use",
            arguments.model.display(),
            kind.name()
        ))),
        None => run(arguments),
    }
}
