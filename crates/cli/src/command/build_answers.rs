//! `diptych data build RECIPE`: pairs that a vision-language model makes of its own answers.

use std::path::Path;

use anyhow::Context as _;
use diptych_llm::policy::NetworkOptions;
use diptych_models::lm::Sampling;
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, PromptFormat};
use diptych_vlm::build::{
    BuildConfig, BuildRecipe, LlavaHound, MaskCompletion, MiaDpo, MultiImage, ReAlign, Seva, Stic, build,
};
use serde::de::DeserializeOwned;

use crate::arguments::{AnswerBuildArguments, BuildRecipeName, CompletionName, MultiImageName};
use crate::command::model_kind::ModelKind;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, ensure_free, print};
use crate::progress::Progress;

pub(super) fn run(given: &BuildRecipeName) -> anyhow::Result<()> {
    let (recipe, arguments) = resolved(given)?;
    recipe.validate().map_err(as_argument)?;
    ensure_free(&arguments.out)?;
    let kind = ModelKind::of(&arguments.model)?;
    if kind != ModelKind::VisionLanguage {
        return Err(usage(format!(
            "--model {} is {}; `data build {}` needs a vision-language model",
            arguments.model.display(),
            kind.name(),
            recipe.name()
        )));
    }
    let mut config = config(recipe, arguments)?;
    match given {
        BuildRecipeName::Temple(given) => config.max_frames = given.max_frames,
        BuildRecipeName::LlavaHound(given) => {
            config.max_frames = given.max_frames;
            config.judge.clone_from(&given.judge);
        }
        BuildRecipeName::SelfCorrection(given) | BuildRecipeName::RlaifV(given) | BuildRecipeName::Tpo(given) => {
            config.judge.clone_from(&given.judge);
        }
        BuildRecipeName::ReAlign(given) => config.embedder.clone_from(&given.embedder),
        BuildRecipeName::Seva(_) | BuildRecipeName::Stic(_) | BuildRecipeName::MiaDpo(_) => {}
    }
    create_parent(&arguments.out)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let report = build(&config, &mut reporter).map_err(as_argument)?;
    drop(reporter);
    if arguments.json {
        return print(serde_json::to_string_pretty(&report)?);
    }
    print(format!("wrote {} to {}", report, arguments.out.display()))
}

/// The recipe with its settings, and what all recipes have.
fn resolved(recipe: &BuildRecipeName) -> anyhow::Result<(BuildRecipe, &AnswerBuildArguments)> {
    Ok(match recipe {
        BuildRecipeName::Seva(given) => (BuildRecipe::Seva(Seva { step: given.step }), &given.build),
        BuildRecipeName::Stic(given) => {
            let stic: Stic = settings(given.settings.as_deref(), &[])?;
            (BuildRecipe::Stic(stic), &given.build)
        }
        BuildRecipeName::ReAlign(given) => {
            let completion = match given.completion {
                CompletionName::Request => MaskCompletion::Request,
                CompletionName::InPlace => MaskCompletion::InPlace,
            };
            let re_align: ReAlign = settings(given.settings.as_deref(), &["completion"])?;
            (BuildRecipe::ReAlign(ReAlign { completion, ..re_align }), &given.build)
        }
        BuildRecipeName::MiaDpo(given) => {
            let kind = match given.kind {
                MultiImageName::Sequence => MultiImage::Sequence,
                MultiImageName::Collage => MultiImage::Collage,
                MultiImageName::PictureInPicture => MultiImage::PictureInPicture,
            };
            let num_images = given.num_images;
            let mia: MiaDpo = settings(given.settings.as_deref(), &["kind", "num_images"])?;
            (
                BuildRecipe::MiaDpo(MiaDpo {
                    kind,
                    num_images,
                    ..mia
                }),
                &given.build,
            )
        }
        BuildRecipeName::Temple(given) => {
            let recipe = settings(given.settings.as_deref(), &[])?;
            (BuildRecipe::Temple(recipe), &given.build)
        }
        BuildRecipeName::SelfCorrection(given) => {
            let recipe = settings(given.settings.as_deref(), &[])?;
            (BuildRecipe::SelfCorrection(recipe), &given.build)
        }
        BuildRecipeName::RlaifV(given) => {
            let recipe = settings(given.settings.as_deref(), &[])?;
            (BuildRecipe::RlaifV(recipe), &given.build)
        }
        BuildRecipeName::Tpo(given) => {
            let recipe = settings(given.settings.as_deref(), &[])?;
            (BuildRecipe::Tpo(recipe), &given.build)
        }
        BuildRecipeName::LlavaHound(given) => {
            let mut hound = LlavaHound::new(given.captions.clone());
            hound.num_answers = given.num_answers;
            (BuildRecipe::LlavaHound(hound), &given.build)
        }
    })
}

/// Settings of a TOML file over the defaults. `own` are those that an argument gives.
fn settings<T: DeserializeOwned + Default>(file: Option<&Path>, own: &[&str]) -> anyhow::Result<T> {
    let Some(file) = file else { return Ok(T::default()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("--settings {}", file.display()))?;
    let wrong = |error: toml::de::Error| usage(format!("--settings {}: {error}", file.display()));
    let table: toml::Table = toml::from_str(&text).map_err(wrong)?;
    if let Some(key) = own.iter().find(|key| table.contains_key(**key)) {
        let option = key.replace('_', "-");
        let file = file.display();
        return Err(usage(format!("--settings {file}: `{key}` is given by --{option}")));
    }
    table.try_into().map_err(wrong)
}

fn config(recipe: BuildRecipe, arguments: &AnswerBuildArguments) -> anyhow::Result<BuildConfig> {
    let temperature = arguments.temperature.unwrap_or(recipe.temperature());
    if temperature == 0.0 && arguments.top_p.is_some() {
        return Err(usage("--top-p changes nothing at --temperature 0"));
    }
    let format = match (&arguments.prompt_format, &arguments.system) {
        (Some(format), _) if !format.contains("{}") || !format.contains("<image>") => {
            return Err(usage(
                "--prompt-format needs {} for the words and <image> for the images",
            ));
        }
        (Some(format), _) => Some(PromptFormat::Plain(format.replace("\\n", "\n"))),
        (None, Some(system)) => Some(PromptFormat::Chat {
            system: Some(system.clone()),
        }),
        (None, None) => None,
    };
    Ok(BuildConfig {
        answers: AnswerSettings {
            network: NetworkOptions {
                device: arguments.device.resolve()?,
                dtype: arguments.precision.into(),
                seed: arguments.seed,
                quantization: None,
            },
            max_new_tokens: arguments.max_new_tokens,
            sampling: Sampling {
                temperature,
                top_p: arguments.top_p.unwrap_or(Sampling::GREEDY.top_p),
                ..Sampling::GREEDY
            },
            seed: arguments.seed,
            batch_size: arguments.batch_size,
        },
        recipe,
        data: arguments.data.clone(),
        layout: arguments.layout,
        max_rows: arguments.num_rows,
        on_error: arguments.on_error,
        model: arguments.model.clone(),
        adapter: arguments.adapter.clone(),
        judge: None,
        embedder: None,
        max_frames: None,
        format,
        max_pairs: arguments.max_pairs,
        out: arguments.out.clone(),
    })
}

/// A setting by the name of its argument.
fn as_argument(error: diptych_vlm::Error) -> anyhow::Error {
    match error {
        diptych_vlm::Error::Setting { key, found, expected } => {
            usage(format!("`{}` is {found}, expected {expected}", key.replace('_', "-")))
        }
        other => other.into(),
    }
}
