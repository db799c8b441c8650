//! One file a command.

mod answering;
mod build;
mod build_answers;
mod cache;
mod cards;
mod compare;
mod convert;
mod doctor;
mod encoding;
mod eval;
mod export;
mod forward;
mod generate;
mod geneval;
mod hallucination;
mod inspect;
mod lint;
mod lint_images;
mod list;
mod model_kind;
mod plan;
mod recipe;
mod rounds;
mod sampling;
mod score;
mod score_images;
mod shapes;
mod shapes_vlm;
mod train;
mod verify_resume;

use crate::arguments::{Command, DataCommand, EvalCommand};

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Train(arguments) => train::run(arguments),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Score(arguments) => score::run(&arguments),
        Command::Eval(EvalCommand::WinRate(arguments)) => eval::run(&arguments),
        Command::Eval(EvalCommand::ShapesGeneval(arguments)) => geneval::run(&arguments),
        Command::Eval(EvalCommand::Verdicts(arguments)) => eval::run_verdicts(&arguments),
        Command::Eval(EvalCommand::Pope(arguments)) => hallucination::run_pope(&arguments),
        Command::Eval(EvalCommand::PopeQuestions(arguments)) => hallucination::run_pope_questions(&arguments),
        Command::Eval(EvalCommand::Chair(arguments)) => hallucination::run_chair(&arguments),
        Command::Eval(EvalCommand::ObjectHalbench(arguments)) => hallucination::run_object_halbench(&arguments),
        Command::Eval(EvalCommand::Amber(arguments)) => hallucination::run_amber(&arguments),
        Command::Eval(EvalCommand::Mmhal(arguments)) => hallucination::run_mmhal(&arguments),
        Command::Eval(EvalCommand::Hallusion(arguments)) => hallucination::run_hallusion(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Data(DataCommand::Inspect(arguments)) => inspect::run(&arguments),
        Command::Data(DataCommand::Lint(arguments)) => lint::run(&arguments),
        Command::Data(DataCommand::Convert(arguments)) => convert::run(&arguments),
        Command::Data(DataCommand::Shapes(arguments)) => shapes::run(&arguments),
        Command::Data(DataCommand::Build(arguments)) => build::run(&arguments),
        Command::Data(DataCommand::Cache(arguments)) => cache::run(arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Forward(arguments) => forward::run(&arguments),
        Command::VerifyResume(arguments) => verify_resume::run(arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Doctor => doctor::run(),
    }
}
