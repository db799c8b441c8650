//! A language model that judges answers, and the file of its replies.

use std::path::{Path, PathBuf};

use diptych_data::{TextPrompt, Tokenizer};
use diptych_eval::hallucination::{JudgedAnswers, JudgedBenchmark};
use diptych_llm::answers::{as_conversation, end_tokens, generate_answers, plain_prompt, tokenize};
use diptych_llm::policy::{NetworkOptions, load_frozen};
use diptych_llm::samples::AnswerConfig;
use diptych_models::lm::{CausalLm, GenerateConfig, LmDir, Sampling};
use diptych_tensor::DType;
use diptych_tensor::files::write_file;
use diptych_train::Reporter;

use crate::arguments::{BenchmarkOptions, JudgeArguments};
use crate::command::answering::AnswerFiles;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::progress::Progress;

/// Tokens of a reply where no limit is given: enough for a few sentences before the verdict.
const MAX_NEW_TOKENS: usize = 512;
const BATCH_SIZE: usize = 8;

/// The folder of a result with what the judge said.
const FOLDER: &str = "judgments";

/// Where a judge's replies are, or come from.
pub(super) enum Replies<'a> {
    /// Files of replies: to the answers, and to those that they are compared with.
    Stored(Option<&'a Path>, Option<&'a Path>),
    /// A model, which writes into a folder of the result.
    Model(Box<Judge<'a>>, PathBuf),
}

impl<'a> Replies<'a> {
    /// What the arguments say. A model is opened, and not yet loaded.
    pub(super) fn of(
        (judge, options): (&'a JudgeArguments, &BenchmarkOptions),
        stored: [Option<&'a PathBuf>; 2],
        files: &mut AnswerFiles,
    ) -> anyhow::Result<Self> {
        let Some(model) = &judge.judge_model else {
            // Not said by the arguments themselves: beside --judgments a judge's model is not even missed.
            let has_options = judge.judge_max_new_tokens.is_some()
                || judge.judge_batch_size.is_some()
                || judge.judge_precision.is_some()
                || judge.judge_device.is_some();
            if has_options {
                return Err(usage("options of a judge are given without --judge-model"));
            }
            let [own, base] = stored.map(|path| path.map(PathBuf::as_path));
            return Ok(Self::Stored(own, base));
        };
        let judge = Judge::open(model, judge, options.seed)?;
        Ok(Self::Model(Box::new(judge), files.folder(FOLDER)?))
    }

    /// The files of replies to the answers and to those of a base. A model is asked now.
    pub(super) fn files(
        &self,
        benchmark: JudgedBenchmark,
        files: &AnswerFiles,
    ) -> anyhow::Result<(Option<PathBuf>, Option<PathBuf>)> {
        let (judge, folder) = match self {
            Self::Stored(own, base) => return Ok((own.map(Path::to_owned), base.map(Path::to_owned))),
            Self::Model(judge, folder) => (judge, folder),
        };
        let own = JudgedAnswers::read(benchmark, files.only())?;
        let base = files
            .only_base()
            .map(|path| JudgedAnswers::read(benchmark, path))
            .transpose()?;
        let network = judge.load()?;
        let judged = |answers: &JudgedAnswers, name: &str, stage| -> anyhow::Result<PathBuf> {
            let replies = judge.replies(&network, answers, stage)?;
            let replies: Vec<&str> = replies.iter().map(|reply| reply.trim()).collect();
            let path = folder.join(name);
            write_file(&path, answers.judgment_file(&replies)?.as_bytes())?;
            Ok(path)
        };
        let own = judged(&own, "judgments.jsonl", "judgments")?;
        let base = base
            .map(|answers| judged(&answers, "base-judgments.jsonl", "judgments of the base"))
            .transpose()?;
        Ok((Some(own), base))
    }
}

/// A language model that judges.
pub(super) struct Judge<'a> {
    arguments: &'a JudgeArguments,
    directory: LmDir,
    tokenizer: Tokenizer,
    options: NetworkOptions,
}

impl<'a> Judge<'a> {
    fn open(model: &Path, arguments: &'a JudgeArguments, seed: u64) -> anyhow::Result<Self> {
        if arguments.judge_batch_size == Some(0) || arguments.judge_max_new_tokens == Some(0) {
            return Err(usage(
                "--judge-batch-size and --judge-max-new-tokens must be at least 1",
            ));
        }
        let directory = LmDir::open(model)?;
        let tokenizer = Tokenizer::from_dir(directory.path())?;
        Ok(Self {
            directory,
            tokenizer,
            options: NetworkOptions {
                device: arguments.judge_device.unwrap_or_default().resolve()?,
                dtype: arguments.judge_precision.map_or(DType::F32, DType::from),
                seed,
                quantization: None,
            },
            arguments,
        })
    }

    fn load(&self) -> anyhow::Result<CausalLm> {
        Ok(load_frozen(&self.directory, None, &self.options)?)
    }

    /// The likeliest reply about each answer: by the model's chat template, or as the continuation of the request where it has none.
    fn replies(&self, network: &CausalLm, answers: &JudgedAnswers, stage: &'static str) -> anyhow::Result<Vec<String>> {
        let is_chat = self.tokenizer.template_names().next().is_some();
        let request = |(index, text): (usize, String)| {
            let prompt = plain_prompt(format!("answer {}", index + 1), text);
            if is_chat { as_conversation(prompt, None) } else { prompt }
        };
        let prompts: Vec<TextPrompt> = answers.prompts().into_iter().enumerate().map(request).collect();
        let tokenized = tokenize(&self.tokenizer, &prompts)?;
        let config = AnswerConfig {
            generate: GenerateConfig {
                max_new_tokens: self.arguments.judge_max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
                sampling: Sampling::GREEDY,
                eos_token_ids: end_tokens(network, &self.tokenizer),
                seed: self.options.seed,
            },
            batch_size: self.arguments.judge_batch_size.unwrap_or(BATCH_SIZE),
        };
        let stop = stop_flag()?;
        let mut progress = Progress::new();
        let mut reporter = Reporter::new(|event| progress.show(event), &stop);
        let total = prompts.len() as u64;
        let replies = generate_answers(network, &self.tokenizer, &tokenized, &config, |done| {
            Ok(reporter.advance(stage, done as u64, total)?)
        })?;
        Ok(replies.into_iter().map(|reply| reply.text).collect())
    }
}
