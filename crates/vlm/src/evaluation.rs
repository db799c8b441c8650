//! How much base and aligned model hallucinate about held-out pictures of the embedded world, after training.
//!
//! Both describe the same pictures, which is CHAIR, and answer whether an object is there: one that is, and one that is not but often
//! occurs beside it, which is POPE's adversarial setting. What is in a picture is known. The scorers are those of `diptych eval`, and
//! what they read lies in the run directory, in `hallucination/`.

mod config;
mod table;

use std::path::{Path, PathBuf};

use diptych_data::ImageSource;
use diptych_eval::hallucination::{
    Benchmark, BenchmarkReport, PopeFiles, PopeSetting, QuestionFile, QuestionImages, QuestionWording, Scored,
    ShapesScene, build_pope_questions, pope_question_lines, score_pope, score_shapes_chair, shapes_image_objects,
    shapes_pope_config, shapes_scenes,
};
use diptych_llm::adapter_of;
use diptych_llm::answers::Answer;
use diptych_llm::method::network_options;
use diptych_models::AdapterConfig;
use diptych_shapes::{CAPTION_REQUEST, Split, picture_prompt};
use diptych_tensor::files::write_file;
use diptych_train::{Recipe, Reporter, RunDirectory, Summary, write_evaluation, write_examples, write_report};

pub use self::config::{HallucinationConfig, VisionEvaluationConfig};
pub use self::table::Hallucination;
use crate::Result;
use crate::answers::{AnswerSettings, Answerer, PromptFormat};
use crate::modality::{VisionLanguage, as_text};

/// The folder in a run directory.
const FOLDER: &str = "hallucination";
/// The setting of POPE that is asked: the hardest.
const SETTING: PopeSetting = PopeSetting::Adversarial;

/// Lets the model of a run and its base answer and compares how much they hallucinate. What answers is what the run published.
///
/// # Errors
/// Networks that cannot be loaded; files that cannot be written; a stop that was asked for.
pub fn evaluate(
    recipe: &Recipe<VisionLanguage>,
    output: &RunDirectory,
    summary: &mut Summary,
    reporter: &mut Reporter<'_>,
) -> Result<Option<Hallucination>> {
    let Some(config) = config_of(recipe) else {
        return Ok(None);
    };
    let asked = Asked::write(config, &output.path().join(FOLDER))?;
    let (base, aligned) = asked.answers(recipe, config, output, reporter)?;
    let (base, aligned) = (
        asked.score("base", &base, config)?,
        asked.score("aligned", &aligned, config)?,
    );
    let compare = |aligned: &Scored, base: &Scored| {
        BenchmarkReport::of(aligned, Some(base), config.seed, config.bootstrap_samples)
    };
    let found = Hallucination {
        captions: compare(&aligned.captions, &base.captions)?,
        questions: compare(&aligned.questions, &base.questions)?,
    };
    write_evaluation(output.path(), &found.table(config))?;
    let rows = [&base, &aligned].map(|side| (side.captions.rows.as_slice(), side.questions.rows.as_slice()));
    let examples = table::examples(&asked.pictures(config.num_shown)?, rows)?;
    write_examples(output.path(), &examples)?;
    if let Some(row) = &mut summary.metrics {
        row.metrics.extend(found.metrics());
    }
    let path = output.summary();
    write_file(&path, format!("{}\n", json(&path, summary)?).as_bytes())?;
    write_report(output.path())?;
    Ok(Some(found))
}

/// Refuses scenes that an evaluation could not ask about after training.
///
/// # Errors
/// Scenes in which nothing is left to ask about.
pub fn check_evaluation(recipe: &Recipe<VisionLanguage>) -> Result<()> {
    let Some(config) = config_of(recipe) else {
        return Ok(());
    };
    build_pope_questions(&objects(&scenes(config)?, config), &shapes_pope_config(config.seed))?;
    Ok(())
}

fn config_of(recipe: &Recipe<VisionLanguage>) -> Option<&HallucinationConfig> {
    recipe.evaluation.as_ref()?.hallucination.as_ref()
}

fn scenes(config: &HallucinationConfig) -> Result<Vec<ShapesScene>> {
    let world = config.scenes.clone().unwrap_or_default();
    Ok(shapes_scenes(config.seed, Split::HeldOut, config.num_scenes, &world)?)
}

fn objects(scenes: &[ShapesScene], config: &HallucinationConfig) -> Vec<diptych_eval::hallucination::ImageObjects> {
    shapes_image_objects(scenes, config.naming)
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|source| diptych_llm::Error::Json {
        path: path.to_owned(),
        source,
    });
    Ok(text?)
}

/// What is asked, and the files of it.
struct Asked {
    folder: PathBuf,
    scenes: Vec<ShapesScene>,
    images: QuestionImages,
    captions: QuestionFile,
    questions: QuestionFile,
}

/// What the answers of one model came to.
struct Side {
    captions: Scored,
    questions: Scored,
}

impl Asked {
    /// Writes scenes and questions as `diptych eval` reads them.
    fn write(config: &HallucinationConfig, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|source| diptych_llm::Error::Io {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
        let scenes = scenes(config)?;
        let mut lines = String::new();
        for scene in &scenes {
            let line = serde_json::to_string(scene).map_err(|source| diptych_llm::Error::Json {
                path: folder.to_owned(),
                source,
            })?;
            lines += &line;
            lines.push('\n');
        }
        write_file(&folder.join("scenes.jsonl"), lines.as_bytes())?;
        let built = build_pope_questions(&objects(&scenes, config), &shapes_pope_config(config.seed))?;
        let path = folder.join(format!("pope_{}.jsonl", SETTING.name()));
        for (_, questions) in built.iter().filter(|(setting, _)| *setting == SETTING) {
            write_file(&path, pope_question_lines(questions).as_bytes())?;
        }
        let images = QuestionImages::scenes(&scenes, config.size)?;
        let wording = QuestionWording {
            caption_prompt: CAPTION_REQUEST.to_owned(),
            ..QuestionWording::default()
        };
        Ok(Self {
            captions: QuestionFile::captions(&images, &wording)?,
            questions: QuestionFile::read(Benchmark::Pope, &path, &images, &wording)?,
            folder: folder.to_owned(),
            scenes,
            images,
        })
    }

    /// The answers of the base model and of the aligned one, captions before questions.
    fn answers(
        &self,
        recipe: &Recipe<VisionLanguage>,
        config: &HallucinationConfig,
        output: &RunDirectory,
        reporter: &mut Reporter<'_>,
    ) -> Result<(Vec<Answer>, Vec<Answer>)> {
        let text = as_text(recipe);
        let settings = AnswerSettings {
            network: network_options(&text)?,
            max_new_tokens: config.max_new_tokens,
            sampling: config.sampling,
            seed: config.seed,
            batch_size: config.batch_size,
        };
        let base = Answerer::open(&recipe.model_path()?, settings.clone())?;
        let format = base
            .prompt_format()
            .unwrap_or_else(|| PromptFormat::Plain(picture_prompt("{}")));
        let questions = self.captions.questions().iter().chain(self.questions.questions());
        let prompts: Vec<_> = questions
            .map(|question| format.prompt(question.id.clone(), &question.text, question.image.clone()))
            .collect();
        let prepared = base.prepare(&prompts, reporter)?;
        let adapter = adapter_of(&text)?;
        let start = match &adapter {
            AdapterConfig::Lora(lora) => lora.init.as_deref().map(Path::new),
            AdapterConfig::Full(_) => None,
        };
        let before = base.answer(start, &prepared, "answers of the base model", reporter)?;
        let (result, stage) = (output.final_weights(), "answers of the aligned model");
        let after = match &adapter {
            AdapterConfig::Lora(_) => base.answer(Some(&result), &prepared, stage, reporter)?,
            AdapterConfig::Full(_) => Answerer::open(&result, settings)?.answer(None, &prepared, stage, reporter)?,
        };
        Ok((before, after))
    }

    /// Writes the answers of a model and scores them.
    fn score(&self, side: &str, answers: &[Answer], config: &HallucinationConfig) -> Result<Side> {
        let texts: Vec<&str> = answers.iter().map(|answer| answer.text.trim()).collect();
        let (captions, answers) = texts.split_at(self.captions.questions().len());
        let path = |name: &str| self.folder.join(format!("{side}_{name}.jsonl"));
        let (captions_path, answers_path) = (path("captions"), path("answers"));
        write_file(&captions_path, self.captions.answer_file(captions)?.as_bytes())?;
        write_file(&answers_path, self.questions.answer_file(answers)?.as_bytes())?;
        Ok(Side {
            captions: score_shapes_chair(&captions_path, &self.folder.join("scenes.jsonl"), config.naming)?,
            questions: score_pope(&[PopeFiles {
                setting: SETTING.name().to_owned(),
                questions: &self.folder.join(format!("pope_{}.jsonl", SETTING.name())),
                answers: &answers_path,
            }])?,
        })
    }

    /// The first scenes, and the files of their pictures.
    fn pictures(&self, num: usize) -> Result<Vec<(&ShapesScene, Vec<u8>)>> {
        let pictures = self.scenes.iter().take(num).map(|scene| {
            let image: Option<ImageSource> = self.images.picture(&scene.image);
            let bytes = image.map(|image| image.encoded()).transpose()?;
            Ok((scene, bytes.map(|bytes| bytes.to_vec()).unwrap_or_default()))
        });
        pictures.collect()
    }
}
