//! `diptych eval shapes-geneval`: what a model can draw, ability by ability.

use diptych_data::{ImageCaption, ImageSource, write_captions};
use diptych_diffusion::generate_with;
use diptych_eval::{GenevalAnswer, GenevalTable, WinRateConfig, geneval_answers, geneval_prompts};
use diptych_tensor::files::write_file;
use diptych_train::Reporter;
use serde::Serialize;

use crate::arguments::GenevalArguments;
use crate::command::sampling;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{ensure_free, print, write_directory};
use crate::progress::Progress;

pub(crate) fn run(arguments: &GenevalArguments) -> anyhow::Result<()> {
    if arguments.per_category == 0 || arguments.images_per_prompt == 0 {
        return Err(usage("--per-category and --images-per-prompt must be at least 1"));
    }
    ensure_free(&arguments.out)?;
    let config = sampling::config(&arguments.sampling)?;
    let prompts = geneval_prompts(arguments.sampling.seed, arguments.per_category);
    let pipeline = sampling::load(&arguments.sampling)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let repeated: Vec<String> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.prompt.clone(), arguments.images_per_prompt))
        .collect();
    let images = generate_with(&pipeline, &repeated, &config, &mut reporter)?;
    drop(reporter);
    let answers = geneval_answers(&prompts, &images, arguments.images_per_prompt)?;
    let samples = WinRateConfig::default().bootstrap_samples;
    let table = GenevalTable::of(&prompts, &answers, arguments.sampling.seed, samples)?;

    write_directory(&arguments.out, |dir| {
        write_file(
            &dir.join("shapes-geneval.json"),
            serde_json::to_string_pretty(&table)?.as_bytes(),
        )?;
        let (mut captions, mut rows) = (Vec::new(), String::new());
        for (number, (prompt, image)) in repeated.iter().zip(&images).enumerate() {
            let source = ImageSource::from_image(image)?;
            captions.push(ImageCaption::new(number.to_string(), prompt, source));
            let row = AnswerRow {
                id: number.to_string(),
                category: prompts[number / arguments.images_per_prompt].category.name(),
                answer: answers[number],
            };
            rows.push_str(&serde_json::to_string(&row)?);
            rows.push('\n');
        }
        write_file(&dir.join("answers.jsonl"), rows.as_bytes())?;
        Ok(write_captions(&dir.join("images.jsonl"), &captions)?)
    })?;
    print(&table)
}

/// What the verifier says about one of the images.
#[derive(Serialize)]
struct AnswerRow {
    id: String,
    category: &'static str,
    #[serde(flatten)]
    answer: GenevalAnswer,
}
