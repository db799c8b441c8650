//! Answers of a language model.

use diptych_data::{TextKind, TextPrompt, Tokenizer};
use diptych_llm::answers::{
    as_conversation, end_tokens, generate_answers, plain_prompt, read_prompts, tokenize, write_answers,
};
use diptych_llm::policy::{NetworkOptions, load_adapter, load_frozen};
use diptych_llm::samples::AnswerConfig;
use diptych_models::lm::{GenerateConfig, LmDir, Sampling};
use diptych_train::Reporter;

use crate::arguments::{GenerateArguments, NumberFormat, TextOptions};
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{print, write_directory};
use crate::progress::Progress;

/// Tokens of an answer where no limit is given.
pub(super) const MAX_NEW_TOKENS: usize = 256;

pub(super) fn run(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let texts = &arguments.texts;
    if arguments.batch_size == 0 || texts.max_new_tokens == Some(0) {
        return Err(usage("--batch-size and --max-new-tokens must be at least 1"));
    }
    let sampling = sampling_of(texts)?;
    let prompts = prompts_of(arguments)?;
    let directory = LmDir::open(&arguments.model)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    if texts.chat && tokenizer.template_names().next().is_none() {
        return Err(usage(format!(
            "--chat: --model {} has no chat template",
            arguments.model.display()
        )));
    }
    let tokenized = tokenize(&tokenizer, &prompts)?;
    let options = NetworkOptions {
        device: arguments.device.resolve()?,
        dtype: texts.precision.unwrap_or(NumberFormat::F32).into(),
        seed: arguments.seed,
        quantization: None,
    };
    let adapter = arguments.adapter.as_deref().map(load_adapter).transpose()?;
    let model = load_frozen(&directory, adapter.as_ref(), &options)?;
    let config = AnswerConfig {
        generate: GenerateConfig {
            max_new_tokens: texts.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
            sampling,
            eos_token_ids: end_tokens(&model, &tokenizer),
            seed: arguments.seed,
        },
        batch_size: arguments.batch_size,
    };
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let total = prompts.len() as u64;
    let answers = generate_answers(&model, &tokenizer, &tokenized, &config, |done| {
        Ok(reporter.advance("answers", done as u64, total)?)
    })?;
    drop(reporter);

    let write = |dir: &std::path::Path| Ok(write_answers(&dir.join("answers.jsonl"), &prompts, &answers)?);
    write_directory(&arguments.out, write)?;
    let finished = answers.iter().filter(|answer| answer.is_finished).count();
    print(format!(
        "wrote {} answers, {finished} of them finished, to {}",
        answers.len(),
        arguments.out.join("answers.jsonl").display()
    ))
}

/// How tokens are chosen; an option that would change nothing is refused.
pub(super) fn sampling_of(texts: &TextOptions) -> anyhow::Result<Sampling> {
    let default = Sampling::default();
    let sampling = Sampling {
        temperature: texts.temperature.unwrap_or(default.temperature),
        top_k: texts.top_k.unwrap_or(default.top_k),
        top_p: texts.top_p.unwrap_or(default.top_p),
        repetition_penalty: texts.repetition_penalty.unwrap_or(default.repetition_penalty),
    };
    sampling.validate()?;
    if sampling.temperature == 0.0 && (texts.top_k.is_some() || texts.top_p.is_some()) {
        return Err(usage("--top-k and --top-p change nothing at --temperature 0"));
    }
    Ok(sampling)
}

/// Those of the command line first, then those of the file.
fn prompts_of(arguments: &GenerateArguments) -> anyhow::Result<Vec<TextPrompt>> {
    let plain = |(index, text): (usize, &String)| plain_prompt(format!("--prompt {}", index + 1), text.clone());
    let mut prompts: Vec<TextPrompt> = arguments.prompt.iter().enumerate().map(plain).collect();
    if let Some(file) = &arguments.prompts {
        prompts.extend(read_prompts(file)?);
    }
    if !arguments.texts.chat {
        return Ok(prompts);
    }
    if let Some(prompt) = prompts.iter().find(|prompt| prompt.kind() != TextKind::Standard) {
        return Err(usage(format!(
            "--chat is for plain prompts; {} is a conversation or tokens already",
            prompt.id
        )));
    }
    let system = arguments.texts.system.as_deref();
    Ok(prompts
        .into_iter()
        .map(|prompt| as_conversation(prompt, system))
        .collect())
}
