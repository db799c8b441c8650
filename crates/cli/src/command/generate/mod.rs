//! `diptych generate`: images or answers from prompts.

mod answers;
mod images;
mod vision;

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
        ModelKind::VisionLanguage => (arguments.images.given(), vision::run),
    };
    let is_blind = kind != ModelKind::VisionLanguage && !arguments.image.is_empty();
    match foreign.or(is_blind.then_some("--image")) {
        Some(option) => Err(usage(format!(
            "{option} is nothing that --model {}, {}, would use",
            arguments.model.display(),
            kind.name()
        ))),
        None => run(arguments),
    }
}
