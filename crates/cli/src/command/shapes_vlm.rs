//! `diptych data shapes --kind vlm-sft` and `vlm-prompts`: pictures with what is asked and said about them.

use std::path::Path;

use anyhow::Context as _;
use diptych_data::{ImageSource, SampleBody, TextDataset, TextPrompt, TextSample, write_text};
use diptych_eval::hallucination::{PopeQuestion, read_pope_questions};
use diptych_shapes::{
    CAPTION_REQUEST, COMPLETION_START, Example, Question, QuestionKind, SceneConfig, Split, picture_prompt, render,
};

use crate::arguments::{ShapesArguments, ShapesKind};
use crate::failure::usage;
use crate::output::{create_parent, print};

/// Which examples, and how large their pictures are.
pub(super) struct Pictures<'a> {
    pub(super) seed: u64,
    pub(super) split: Split,
    pub(super) num: usize,
    pub(super) world: &'a SceneConfig,
    pub(super) size: u32,
}

pub(super) fn write(arguments: &ShapesArguments, pictures: &Pictures<'_>) -> anyhow::Result<()> {
    let dataset = match (arguments.kind, &arguments.questions) {
        (ShapesKind::VlmSft, _) => TextDataset::Samples(pictures.samples()?),
        (_, Some(file)) => TextDataset::Prompts(pictures.questions(file)?),
        (_, None) => TextDataset::Prompts(pictures.caption_prompts()?),
    };
    create_parent(&arguments.out)?;
    write_text(&arguments.out, &dataset)?;
    let what = match arguments.kind {
        ShapesKind::VlmSft => "captions and answers",
        _ => "prompts",
    };
    print(format!("wrote {} {what} to {}", dataset.len(), arguments.out.display()))
}

impl Pictures<'_> {
    fn example(&self, index: usize) -> anyhow::Result<Example> {
        Ok(Example::generate(self.seed, index as u64, self.split, self.world)?)
    }

    fn picture(&self, example: &Example) -> anyhow::Result<Vec<ImageSource>> {
        Ok(vec![ImageSource::from_image(&render(&example.scene, self.size))?])
    }

    /// Of every picture its caption and one question: after an object that is there, one that is not, a color and a shape by turns.
    fn samples(&self) -> anyhow::Result<Vec<TextSample>> {
        let mut samples = Vec::with_capacity(2 * self.num);
        for index in 0..self.num {
            let example = self.example(index)?;
            let images = self.picture(&example)?;
            let mut push = |id: String, request: &str, answer: String| {
                let body = SampleBody::Completed {
                    prompt: picture_prompt(request).into(),
                    completion: format!("{COMPLETION_START}{answer}").into(),
                };
                let images = images.clone();
                samples.push(TextSample {
                    images,
                    ..TextSample::new(id, body)
                });
            };
            push(format!("{index}-caption"), CAPTION_REQUEST, example.caption.clone());
            let kinds = [QuestionKind::Existence, QuestionKind::Color, QuestionKind::Shape];
            let is_asked = |question: &&Question| kinds.contains(&question.kind);
            let questions: Vec<&Question> = example.questions.iter().filter(is_asked).collect();
            if let Some(question) = questions.get(index % questions.len().max(1)) {
                push(format!("{index}-question"), &question.text, question.answer.to_string());
            }
        }
        Ok(samples)
    }

    fn caption_prompts(&self) -> anyhow::Result<Vec<TextPrompt>> {
        let prompt = |index: usize| {
            let images = self.picture(&self.example(index)?)?;
            let prompt = TextPrompt::new(index.to_string(), picture_prompt(CAPTION_REQUEST));
            Ok(TextPrompt { images, ..prompt })
        };
        (0..self.num).map(prompt).collect()
    }

    /// The prompts of a file of POPE's questions about these examples.
    fn questions(&self, file: &Path) -> anyhow::Result<Vec<TextPrompt>> {
        let prompt = |question: PopeQuestion| {
            let index = question.image.parse::<usize>().ok().filter(|index| *index < self.num);
            let index = index.ok_or_else(|| {
                usage(format!(
                    "{}: question {} is about image {:?}, expected the number of one of {} examples",
                    file.display(),
                    question.question_id,
                    question.image,
                    self.num
                ))
            })?;
            let images = self.picture(&self.example(index)?)?;
            let prompt = TextPrompt::new(question.question_id.to_string(), picture_prompt(&question.text));
            Ok(TextPrompt { images, ..prompt })
        };
        let questions = read_pope_questions(file).with_context(|| format!("--questions {}", file.display()))?;
        questions.into_iter().map(prompt).collect()
    }
}
