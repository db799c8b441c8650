//! A language model that judges answers, and the file of its replies.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych_data::{TextPrompt, Tokenizer};
use diptych_eval::hallucination::{JudgedAnswers, JudgedBenchmark};
use diptych_llm::answers::{as_conversation, end_tokens, generate_answers, plain_prompt, tokenize};
use diptych_llm::policy::{NetworkOptions, load_frozen};
use diptych_llm::samples::AnswerConfig;
use diptych_models::lm::{CausalLm, GenerateConfig, LmDir, Sampling};
use diptych_tensor::DType;
use diptych_tensor::files::write_file;
use diptych_train::Reporter;
use serde_json::{Value, json};

use super::reply_log::{ReplyLog, fingerprint};
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
    /// A model.
    Model(Box<ModelReplies<'a>>),
}

/// Where a model's replies are.
pub(super) struct ModelReplies<'a> {
    judge: Judge<'a>,
    /// The result.
    out: &'a Path,
    /// The folder of the result that the replies are written into.
    folder: PathBuf,
    /// What they are kept in until the result is there.
    logs: Vec<PathBuf>,
}

impl<'a> Replies<'a> {
    /// What the arguments say. A model is opened, and not yet loaded.
    pub(super) fn of(
        (judge, options): (&'a JudgeArguments, &'a BenchmarkOptions),
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
        Ok(Self::Model(Box::new(ModelReplies {
            judge,
            out: &options.out,
            folder: files.folder(FOLDER)?,
            logs: Vec::new(),
        })))
    }

    /// The files of replies to the answers and to those of a base. A model is asked now, but for what it replied before.
    pub(super) fn files(
        &mut self,
        benchmark: JudgedBenchmark,
        files: &AnswerFiles,
    ) -> anyhow::Result<(Option<PathBuf>, Option<PathBuf>)> {
        let model = match self {
            Self::Stored(own, base) => return Ok((own.map(Path::to_owned), base.map(Path::to_owned))),
            Self::Model(model) => model,
        };
        let own = JudgedAnswers::read(benchmark, files.only())?;
        let base = files
            .only_base()
            .map(|path| JudgedAnswers::read(benchmark, path))
            .transpose()?;
        let network = model.judge.load()?;
        let own = model.judged(&network, &own, ("judgments.jsonl", "judgments"))?;
        let base = base
            .map(|answers| model.judged(&network, &answers, ("base-judgments.jsonl", "judgments of the base")))
            .transpose()?;
        Ok((Some(own), base))
    }

    /// Removes what was kept of a model's replies: they are in the result.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        let Self::Model(model) = self else { return Ok(()) };
        for log in &model.logs {
            std::fs::remove_file(log).with_context(|| format!("cannot remove {}", log.display()))?;
        }
        Ok(())
    }
}

impl ModelReplies<'_> {
    /// Asks about answers and writes the file of replies.
    fn judged(
        &mut self,
        network: &CausalLm,
        answers: &JudgedAnswers,
        (name, stage): (&str, &'static str),
    ) -> anyhow::Result<PathBuf> {
        let mut log = ReplyLog::open(self.out, &self.judge.identity()?, &answers.prompts())?;
        if let Err(error) = self.judge.ask(network, answers, stage, &mut log) {
            return Err(log.kept_after(error));
        }
        let replies: Vec<&str> = log.replies().iter().map(|reply| reply.trim()).collect();
        let path = self.folder.join(name);
        write_file(&path, answers.judgment_file(&replies)?.as_bytes())?;
        // The same answers may be judged twice, on both sides.
        if !self.logs.iter().any(|path| path == log.path()) {
            self.logs.push(log.path().to_owned());
        }
        Ok(path)
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

    /// All that its replies depend on, beside what it is asked.
    fn identity(&self) -> anyhow::Result<Value> {
        Ok(json!({
            "model": fingerprint(self.directory.path())?,
            "max_new_tokens": self.max_new_tokens(),
            "batch_size": self.batch_size(),
            "precision": format!("{:?}", self.options.dtype),
        }))
    }

    fn max_new_tokens(&self) -> usize {
        self.arguments.judge_max_new_tokens.unwrap_or(MAX_NEW_TOKENS)
    }

    fn batch_size(&self) -> usize {
        self.arguments.judge_batch_size.unwrap_or(BATCH_SIZE)
    }

    /// Logs the likeliest reply about each answer that is not in the log: by the model's chat template, or as the continuation of the request
    /// where it has none.
    fn ask(
        &self,
        network: &CausalLm,
        answers: &JudgedAnswers,
        stage: &'static str,
        log: &mut ReplyLog,
    ) -> anyhow::Result<()> {
        let is_chat = self.tokenizer.template_names().next().is_some();
        let request = |(index, text): (usize, String)| {
            let prompt = plain_prompt(format!("answer {}", index + 1), text);
            if is_chat { as_conversation(prompt, None) } else { prompt }
        };
        let prompts: Vec<TextPrompt> = answers.prompts().into_iter().enumerate().map(request).collect();
        let tokenized = tokenize(&self.tokenizer, &prompts)?;
        let config = AnswerConfig {
            generate: GenerateConfig {
                max_new_tokens: self.max_new_tokens(),
                sampling: Sampling::GREEDY,
                eos_token_ids: end_tokens(network, &self.tokenizer),
                seed: self.options.seed,
            },
            batch_size: self.batch_size(),
        };
        let stop = stop_flag()?;
        let mut progress = Progress::new();
        let mut reporter = Reporter::new(|event| progress.show(event), &stop);
        for batch in tokenized[log.replies().len()..].chunks(config.batch_size) {
            reporter.advance(stage, log.replies().len() as u64, tokenized.len() as u64)?;
            let replies = generate_answers(network, &self.tokenizer, batch, &config, |_| Ok(()))?;
            log.add(replies.into_iter().map(|reply| reply.text).collect())?;
        }
        reporter.advance(stage, tokenized.len() as u64, tokenized.len() as u64)?;
        Ok(())
    }
}
