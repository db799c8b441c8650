//! `diptych data build RECIPE`: pairs that a vision-language model makes of its own answers.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych_llm::policy::NetworkOptions;
use diptych_models::lm::Sampling;
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, PromptFormat};
use diptych_vlm::build::{
    BuildConfig, BuildRecipe, JudgeConfig, LlavaHound, MaskCompletion, MiaDpo, MultiImage, ReAlign, Seva,
    UnfinishedAnswers, build,
};
use serde::de::DeserializeOwned;

use crate::arguments::{
    AnswerBuildArguments, BuildJudgeArguments, BuildRecipeName, CompletionName, JudgedArguments, MiaDpoArguments,
    MultiImageName, ReAlignArguments, RequestFormatArguments, UnfinishedName,
};
use crate::command::model_kind::ModelKind;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, ensure_free, print};
use crate::progress::Progress;

pub(super) fn run(given: &BuildRecipeName) -> anyhow::Result<()> {
    let given = Given::of(given)?;
    let (recipe, arguments) = (&given.recipe, given.build);
    recipe.validate().map_err(as_argument)?;
    ensure_free(&arguments.out)?;
    check_kind("--model", &arguments.model, recipe)?;
    if let Some(judge) = &given.judge {
        check_kind("--judge", &judge.model, recipe)?;
    }
    let config = given.config()?;
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

fn check_kind(option: &str, model: &Path, recipe: &BuildRecipe) -> anyhow::Result<()> {
    let kind = ModelKind::of(model)?;
    if kind == ModelKind::VisionLanguage {
        return Ok(());
    }
    Err(usage(format!(
        "{option} {} is {}; `data build {}` needs a vision-language model",
        model.display(),
        kind.name(),
        recipe.name()
    )))
}

/// What the arguments of some recipe say.
struct Given<'a> {
    recipe: BuildRecipe,
    build: &'a AnswerBuildArguments,
    format: Option<PromptFormat>,
    judge: Option<JudgeConfig>,
    embedder: Option<PathBuf>,
    max_frames: Option<usize>,
}

impl<'a> Given<'a> {
    /// A recipe with its settings, and what all recipes have.
    fn new(recipe: BuildRecipe, build: &'a AnswerBuildArguments) -> Self {
        Self {
            recipe,
            build,
            format: None,
            judge: None,
            embedder: None,
            max_frames: None,
        }
    }

    fn of(recipe: &'a BuildRecipeName) -> anyhow::Result<Self> {
        Ok(match recipe {
            BuildRecipeName::Seva(given) => Self {
                max_frames: given.frames.max_frames,
                ..Self::new(BuildRecipe::Seva(Seva { step: given.step }), &given.build)
            },
            BuildRecipeName::Stic(given) => Self {
                format: request_format(&given.format)?,
                max_frames: given.frames.max_frames,
                ..Self::new(
                    BuildRecipe::Stic(settings(given.settings.as_deref(), &[])?),
                    &given.build,
                )
            },
            BuildRecipeName::ReAlign(given) => Self {
                format: request_format(&given.format)?,
                embedder: given.embedder.clone(),
                ..Self::new(BuildRecipe::ReAlign(re_align(given)?), &given.build)
            },
            BuildRecipeName::MiaDpo(given) => Self::new(BuildRecipe::MiaDpo(mia_dpo(given)?), &given.build),
            BuildRecipeName::Temple(given) => Self {
                max_frames: given.frames.max_frames,
                ..Self::new(
                    BuildRecipe::Temple(settings(given.settings.as_deref(), &[])?),
                    &given.build,
                )
            },
            BuildRecipeName::SelfCorrection(given) => Self::judged(given, BuildRecipe::SelfCorrection)?,
            BuildRecipeName::RlaifV(given) => Self::judged(given, BuildRecipe::RlaifV)?,
            BuildRecipeName::Tpo(given) => Self::judged(given, BuildRecipe::Tpo)?,
            BuildRecipeName::LlavaHound(given) => {
                let hound: LlavaHound = settings(given.settings.as_deref(), &["captions", "num_answers"])?;
                let hound = LlavaHound {
                    captions: given.captions.clone(),
                    num_answers: given.num_answers,
                    ..hound
                };
                Self {
                    format: request_format(&given.format)?,
                    judge: judge(&given.judge)?,
                    max_frames: given.frames.max_frames,
                    ..Self::new(BuildRecipe::LlavaHound(hound), &given.build)
                }
            }
        })
    }

    fn judged<T: DeserializeOwned + Default>(
        given: &'a JudgedArguments,
        recipe: impl FnOnce(T) -> BuildRecipe,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            format: request_format(&given.format)?,
            judge: judge(&given.judge)?,
            max_frames: given.frames.max_frames,
            ..Self::new(recipe(settings(given.settings.as_deref(), &[])?), &given.build)
        })
    }

    fn config(self) -> anyhow::Result<BuildConfig> {
        let arguments = self.build;
        let temperature = arguments.temperature.unwrap_or(self.recipe.temperature());
        if temperature == 0.0 && arguments.top_p.is_some() {
            return Err(usage("--top-p changes nothing at --temperature 0"));
        }
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
            unfinished: match arguments.unfinished {
                UnfinishedName::Skip => UnfinishedAnswers::Skip,
                UnfinishedName::Keep => UnfinishedAnswers::Keep,
            },
            recipe: self.recipe,
            data: arguments.data.clone(),
            layout: arguments.layout,
            max_rows: arguments.num_rows,
            on_error: arguments.on_error,
            model: arguments.model.clone(),
            adapter: arguments.adapter.clone(),
            judge: self.judge,
            embedder: self.embedder,
            max_frames: self.max_frames,
            format: self.format,
            max_pairs: arguments.max_pairs,
            out: arguments.out.clone(),
        })
    }
}

fn re_align(given: &ReAlignArguments) -> anyhow::Result<ReAlign> {
    let completion = match given.completion {
        CompletionName::Request => MaskCompletion::Request,
        CompletionName::InPlace => MaskCompletion::InPlace,
    };
    let re_align: ReAlign = settings(given.settings.as_deref(), &["completion"])?;
    Ok(ReAlign { completion, ..re_align })
}

fn mia_dpo(given: &MiaDpoArguments) -> anyhow::Result<MiaDpo> {
    let kind = match given.kind {
        MultiImageName::Sequence => MultiImage::Sequence,
        MultiImageName::Collage => MultiImage::Collage,
        MultiImageName::PictureInPicture => MultiImage::PictureInPicture,
    };
    let mia: MiaDpo = settings(given.settings.as_deref(), &["kind", "num_images"])?;
    Ok(MiaDpo {
        kind,
        num_images: given.num_images,
        ..mia
    })
}

/// How what --model is asked beside the rows becomes a prompt.
fn request_format(given: &RequestFormatArguments) -> anyhow::Result<Option<PromptFormat>> {
    prompt_format(["--prompt-format", "--system"], [&given.prompt_format, &given.system])
}

/// Another model that judges.
fn judge(given: &BuildJudgeArguments) -> anyhow::Result<Option<JudgeConfig>> {
    let Some(model) = &given.judge else { return Ok(None) };
    let format = [&given.judge_prompt_format, &given.judge_system];
    Ok(Some(JudgeConfig {
        model: model.clone(),
        format: prompt_format(["--judge-prompt-format", "--judge-system"], format)?,
    }))
}

fn prompt_format(options: [&str; 2], [format, system]: [&Option<String>; 2]) -> anyhow::Result<Option<PromptFormat>> {
    Ok(match (format, system) {
        (Some(format), _) if !format.contains("{}") || !format.contains("<image>") => {
            let reason = format!("{} needs {{}} for the words and <image> for the images", options[0]);
            return Err(usage(reason));
        }
        (Some(format), _) => Some(PromptFormat::Plain(format.replace("\\n", "\n"))),
        (None, Some(system)) => Some(PromptFormat::Chat {
            system: Some(system.clone()),
        }),
        (None, None) => None,
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

/// Settings that arguments give, whatever the recipe is; the others are keys of a file.
const ARGUMENTS: [&str; 11] = [
    "step",
    "num_images",
    "num_rows",
    "max_frames",
    "judge",
    "embedder",
    "prompt_format",
    "system",
    "temperature",
    "max_new_tokens",
    "batch_size",
];

/// A setting by the name of its argument, or by its key.
fn as_argument(error: diptych_vlm::Error) -> anyhow::Error {
    match error {
        diptych_vlm::Error::Setting { key, found, expected } if ARGUMENTS.contains(&key.as_str()) => {
            usage(format!("--{} is {found}, expected {expected}", key.replace('_', "-")))
        }
        diptych_vlm::Error::Setting { key, found, expected } => {
            usage(format!("`{key}` is {found}, expected {expected}"))
        }
        other => other.into(),
    }
}
