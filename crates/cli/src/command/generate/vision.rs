//! Answers of a vision-language model to prompts that show images.

use diptych_data::{ImageSource, Text, TextKind, TextPrompt, conversation};
use diptych_llm::answers::{plain_prompt, read_prompts, write_answers};
use diptych_llm::policy::NetworkOptions;
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, Answerer};

use super::answers::{MAX_NEW_TOKENS, sampling_of};
use crate::arguments::{GenerateArguments, NumberFormat};
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{print, write_directory};
use crate::progress::Progress;

pub(super) fn run(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let texts = &arguments.texts;
    if arguments.batch_size == 0 || texts.max_new_tokens == Some(0) {
        return Err(usage("--batch-size and --max-new-tokens must be at least 1"));
    }
    let settings = AnswerSettings {
        network: NetworkOptions {
            device: arguments.device.resolve()?,
            dtype: texts.precision.unwrap_or(NumberFormat::F32).into(),
            seed: arguments.seed,
            quantization: None,
        },
        max_new_tokens: texts.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        sampling: sampling_of(texts)?,
        seed: arguments.seed,
        batch_size: arguments.batch_size,
    };
    let answerer = Answerer::open(&arguments.model, settings)?;
    let prompts = prompts_of(arguments, &answerer)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let prepared = answerer.prepare(&prompts, &mut reporter)?;
    let answers = answerer.answer(arguments.adapter.as_deref(), &prepared, "answers", &mut reporter)?;
    drop(reporter);

    let write = |dir: &std::path::Path| Ok(write_answers(&dir.join("answers.jsonl"), &prompts, &answers)?);
    write_directory(&arguments.out, write)?;
    let finished = answers.iter().filter(|answer| answer.is_finished).count();
    print(format!(
        "wrote {} answers about {} images, {finished} of them finished, to {}",
        answers.len(),
        prepared.num_images(),
        arguments.out.join("answers.jsonl").display()
    ))
}

/// Those of the command line first, then those of the file.
fn prompts_of(arguments: &GenerateArguments, answerer: &Answerer) -> anyhow::Result<Vec<TextPrompt>> {
    let images: Vec<ImageSource> = arguments.image.iter().cloned().map(ImageSource::Path).collect();
    let mut prompts = Vec::new();
    for (index, text) in arguments.prompt.iter().enumerate() {
        let mut prompt = plain_prompt(format!("--prompt {}", index + 1), text.clone());
        prompt.images.clone_from(&images);
        prompts.push(prompt);
    }
    if let Some(file) = &arguments.prompts {
        prompts.extend(read_prompts(file)?);
    }
    prompts
        .into_iter()
        .map(|prompt| rendered(prompt, arguments, answerer))
        .collect()
}

/// A plain prompt as what a user says, where that is asked for, or where its images have no place in it.
fn rendered(mut prompt: TextPrompt, arguments: &GenerateArguments, answerer: &Answerer) -> anyhow::Result<TextPrompt> {
    let is_chat = arguments.texts.chat;
    if is_chat && prompt.kind() != TextKind::Standard {
        return Err(usage(format!(
            "--chat is for plain prompts; {} is a conversation or tokens already",
            prompt.id
        )));
    }
    let num_images = prompt.images.len();
    let Text::Plain(words) = &prompt.prompt else {
        return Ok(prompt);
    };
    let has_places = num_images == 0 || prompt.prompt.num_images() != Some(0);
    if !is_chat && has_places {
        return Ok(prompt);
    }
    if !answerer.has_chat_template() {
        let model = arguments.model.display();
        return Err(usage(if is_chat {
            format!("--chat: --model {model} has no chat template")
        } else {
            format!(
                "{}: there is no `<image>` in it for {num_images} images, and --model {model} has no chat template that would \
                 give them a place",
                prompt.id
            )
        }));
    }
    prompt.prompt = conversation(arguments.texts.system.as_deref(), words, num_images);
    Ok(prompt)
}
