//! Answers to the questions of benchmarks: those of files, or of a model that is asked.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych_data::TextPrompt;
use diptych_eval::hallucination::{
    BenchmarkQuestion, QuestionFile, QuestionImages, QuestionWording, Scored, read_shapes_scenes,
};
use diptych_llm::policy::NetworkOptions;
use diptych_models::lm::Sampling;
use diptych_shapes::{CAPTION_REQUEST, picture_prompt};
use diptych_tensor::DType;
use diptych_tensor::files::write_file;
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, Answerer, PromptFormat};
use tempfile::TempDir;

use crate::arguments::{AnsweringArguments, BenchmarkOptions};
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{print, write_directory};
use crate::progress::Progress;

/// Tokens of an answer where no limit is given: enough for a detailed description.
const MAX_NEW_TOKENS: usize = 512;
const BATCH_SIZE: usize = 16;
/// Pixels of a side of the pictures of scenes, and the sizes that scenes can be told apart at.
const PICTURE_SIZE: u32 = 32;
const PICTURE_SIZES: std::ops::RangeInclusive<u32> = 32..=128;

/// Folders of a result with what the models answered.
const ANSWERS: &str = "answers";
const BASE_ANSWERS: &str = "base-answers";

/// Where the answers are.
pub(crate) struct AnswerFiles {
    /// One file a file of questions.
    pub(crate) answers: Vec<PathBuf>,
    /// Those to compare with; none at all, or as many.
    pub(crate) base: Vec<PathBuf>,
    /// The folder of both, where a model gave them.
    made: Option<TempDir>,
}

/// A file of questions and the name of its answers, without an ending.
pub(crate) type NamedQuestions = (String, QuestionFile);

/// The images that a model is asked about.
pub(crate) enum Shown<'a> {
    /// Files, or what the rows of the questions hold.
    Images,
    /// Pictures of the shapes world: file of scenes, and their size.
    Scenes(&'a Path, Option<u32>),
}

impl AnswerFiles {
    /// The files that were given, or those that a model fills when it answers what `questions` reads.
    pub(crate) fn of(
        (answering, options): (&AnsweringArguments, &BenchmarkOptions),
        (answers, base): (&[PathBuf], &[PathBuf]),
        shown: &Shown<'_>,
        questions: impl FnOnce(&QuestionImages) -> anyhow::Result<Vec<NamedQuestions>>,
    ) -> anyhow::Result<Self> {
        let Some(model) = &answering.model else {
            return Ok(Self {
                answers: answers.to_vec(),
                base: base.to_vec(),
                made: None,
            });
        };
        let images = match (shown, &answering.images) {
            (Shown::Scenes(path, size), _) => {
                let size = size.unwrap_or(PICTURE_SIZE);
                if !PICTURE_SIZES.contains(&size) {
                    return Err(usage(format!("--size is {size}, expected 32 to 128")));
                }
                QuestionImages::scenes(&read_shapes_scenes(path)?, size)?
            }
            (Shown::Images, Some(folder)) => QuestionImages::folder(folder).context("--images")?,
            (Shown::Images, None) => QuestionImages::in_rows(),
        };
        let questions = questions(&images)?;
        let answerer = Answerer::open(model, settings(answering, options)?)?;
        let format = format(answering, shown, &answerer)?;
        let made = tempfile::tempdir().context("cannot create a folder for answers")?;
        let mut files = ask(answering, &answerer, &format, &questions, made.path())?;
        if files.base.is_empty() {
            files.base = base.to_vec();
        }
        files.made = Some(made);
        Ok(files)
    }

    /// The one file of answers.
    pub(crate) fn only(&self) -> &Path {
        &self.answers[0]
    }

    /// The one file to compare with.
    pub(crate) fn only_base(&self) -> Option<&Path> {
        self.base.first().map(PathBuf::as_path)
    }

    /// A new folder for what else a model says; it is kept with the answers.
    pub(crate) fn folder(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let made = match self.made.take() {
            Some(made) => made,
            None => tempfile::tempdir().context("cannot create a folder for what a model says")?,
        };
        let path = made.path().join(name);
        self.made = Some(made);
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    /// Copies what models said into a result.
    pub(crate) fn keep(&self, out: &Path) -> anyhow::Result<()> {
        for from in self.made_files()? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
            let folder = out.join(from.parent().map(name).unwrap_or_default());
            std::fs::create_dir_all(&folder)?;
            write_file(&folder.join(name(&from)), &std::fs::read(&from)?)?;
        }
        Ok(())
    }

    /// The files that models filled, each in a folder of what it is.
    fn made_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let Some(made) = &self.made else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        for folder in std::fs::read_dir(made.path())? {
            for entry in std::fs::read_dir(folder?.path())? {
                files.push(entry?.path());
            }
        }
        Ok(files)
    }

    /// The scores, or where the answers are that could not be scored: they may have taken hours.
    pub(crate) fn scored(
        &self,
        out: &Path,
        score: impl FnOnce() -> anyhow::Result<(Scored, Option<Scored>)>,
    ) -> anyhow::Result<(Scored, Option<Scored>)> {
        let scored = score();
        if scored.is_err() && !self.made_files()?.is_empty() {
            write_directory(out, |dir| self.keep(dir))?;
            return scored.with_context(|| format!("what models said is kept in {}, but", out.display()));
        }
        scored
    }

    /// Writes what a model answered where others have to judge it before it can be scored.
    pub(crate) fn finish_unscored(&self, out: &Path, next: &str) -> anyhow::Result<()> {
        write_directory(out, |dir| self.keep(dir))?;
        let name = self.only().file_name().unwrap_or_default().to_string_lossy();
        let path = out.join(ANSWERS).join(name.as_ref());
        print(format!("wrote the answers to {}; {next}", path.display()))
    }
}

/// The questions of a benchmark whose file has to be given.
pub(crate) fn required<'a>(questions: Option<&'a PathBuf>, option: &str) -> anyhow::Result<&'a Path> {
    let path = questions.map(PathBuf::as_path);
    path.ok_or_else(|| usage(format!("{option} is missing: the questions that --model answers")))
}

/// How questions are put; `prompt` asks for captions.
pub(crate) fn wording(answering: &AnsweringArguments, prompt: Option<&str>, shown: &Shown<'_>) -> QuestionWording {
    let default = QuestionWording::default();
    let request = match shown {
        Shown::Scenes(..) => CAPTION_REQUEST.to_owned(),
        Shown::Images => default.caption_prompt.clone(),
    };
    QuestionWording {
        caption_prompt: prompt.map_or(request, str::to_owned),
        suffix: unescaped(answering.suffix.as_deref().unwrap_or_default()),
        ..default
    }
}

fn settings(answering: &AnsweringArguments, options: &BenchmarkOptions) -> anyhow::Result<AnswerSettings> {
    let sampling = Sampling {
        temperature: answering.temperature.unwrap_or(0.0),
        top_p: answering.top_p.unwrap_or(Sampling::GREEDY.top_p),
        ..Sampling::GREEDY
    };
    if sampling.temperature == 0.0 && answering.top_p.is_some() {
        return Err(usage("--top-p changes nothing at --temperature 0"));
    }
    let positive = |option: &str, value: Option<usize>, default| match value {
        Some(0) => Err(usage(format!("{option} is 0, expected at least 1"))),
        value => Ok(value.unwrap_or(default)),
    };
    Ok(AnswerSettings {
        network: NetworkOptions {
            device: answering.device.unwrap_or_default().resolve()?,
            dtype: answering.precision.map_or(DType::F32, DType::from),
            seed: options.seed,
            quantization: None,
        },
        max_new_tokens: positive("--max-new-tokens", answering.max_new_tokens, MAX_NEW_TOKENS)?,
        sampling,
        seed: options.seed,
        batch_size: positive("--batch-size", answering.batch_size, BATCH_SIZE)?,
    })
}

fn format(answering: &AnsweringArguments, shown: &Shown<'_>, answerer: &Answerer) -> anyhow::Result<PromptFormat> {
    let model = answerer.directory().path().display();
    if let Some(format) = &answering.prompt_format {
        if !format.contains("{}") || !format.contains("<image>") {
            let reason = "--prompt-format needs {} for the question and <image> for its image";
            return Err(usage(reason));
        }
        return Ok(PromptFormat::Plain(unescaped(format)));
    }
    match (answerer.prompt_format(), shown, &answering.system) {
        (Some(_), _, system) => Ok(PromptFormat::Chat { system: system.clone() }),
        (None, _, Some(_)) => Err(usage(format!("--system: --model {model} has no chat template"))),
        (None, Shown::Scenes(..), None) => Ok(PromptFormat::Plain(picture_prompt("{}"))),
        (None, Shown::Images, None) => Err(usage(format!(
            "--model {model} has no chat template: say with --prompt-format how a question becomes a prompt"
        ))),
    }
}

/// A shell passes `\n` on as it is written.
fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n")
}

/// Asks everything in one go, so that what several files show is encoded once.
fn ask(
    answering: &AnsweringArguments,
    answerer: &Answerer,
    format: &PromptFormat,
    files: &[NamedQuestions],
    to: &Path,
) -> anyhow::Result<AnswerFiles> {
    let prompt =
        |question: &BenchmarkQuestion| format.prompt(question.id.clone(), &question.text, question.image.clone());
    let questions = files.iter().flat_map(|(_, file)| file.questions());
    let prompts: Vec<TextPrompt> = questions.map(prompt).collect();
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let prepared = answerer.prepare(&prompts, &mut reporter)?;
    let mut answer = |adapter: Option<&Path>, stage, folder: &str| -> anyhow::Result<Vec<PathBuf>> {
        let answers = answerer.answer(adapter, &prepared, stage, &mut reporter)?;
        let texts: Vec<&str> = answers.iter().map(|answer| answer.text.trim()).collect();
        write_answers(files, &texts, &to.join(folder))
    };
    let answers = answer(answering.adapter.as_deref(), "answers", ANSWERS)?;
    let base = if answering.base {
        answer(None, "answers of the base model", BASE_ANSWERS)?
    } else {
        Vec::new()
    };
    Ok(AnswerFiles {
        answers,
        base,
        made: None,
    })
}

/// Each file of questions has a file of answers.
fn write_answers(files: &[NamedQuestions], mut answers: &[&str], folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir(folder)?;
    let mut paths = Vec::with_capacity(files.len());
    for (name, file) in files {
        let (own, rest) = answers.split_at(file.questions().len());
        answers = rest;
        let path = folder.join(format!("{name}.{}", file.extension()));
        write_file(&path, file.answer_file(own)?.as_bytes())?;
        paths.push(path);
    }
    Ok(paths)
}
