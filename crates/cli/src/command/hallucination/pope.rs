//! `diptych eval pope` and `pope-questions`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diptych_eval::hallucination::{
    ArticleRule, Benchmark, PopeConfig, PopeFiles, PopeSetting, QuestionFile, build_pope_questions, coco_image_objects,
    pope_question_lines, read_image_objects, read_pope_questions, score_pope, shapes_image_objects, shapes_pope_config,
    shapes_scenes,
};
use diptych_shapes::Split;
use diptych_tensor::files::write_file;

use super::{finish, json_lines, naming};
use crate::arguments::{
    ArticleName, PopeArguments, PopeObjectsArguments, PopeQuestionsArguments, PopeShapesArguments, PopeSource,
    SplitName,
};
use crate::command::answering::{AnswerFiles, Shown, wording};
use crate::command::shapes::read_scenes;
use crate::failure::usage;
use crate::output::{ensure_free, print, write_directory};

pub(crate) fn run_pope(arguments: &PopeArguments) -> anyhow::Result<()> {
    let PopeArguments {
        annotations,
        answers,
        base_answers,
        pictures,
        options,
        answering,
    } = arguments;
    ensure_free(&options.out)?;
    for (option, files) in [("--answers", answers), ("--base-answers", base_answers)] {
        let (found, expected) = (files.len(), annotations.len());
        if found > 0 && found != expected {
            return Err(usage(format!(
                "{option} names {found} files, expected {expected}, one for each of --annotations"
            )));
        }
    }
    let settings = setting_names(annotations);
    let shown = pictures
        .scenes
        .as_deref()
        .map_or(Shown::Images, |scenes| Shown::Scenes(scenes, pictures.size));
    let wording = wording(answering, None, &shown);
    let files = AnswerFiles::of((answering, options), (answers, base_answers), &shown, |images| {
        let named = annotations.iter().zip(&settings).map(|(path, setting)| {
            let file = QuestionFile::read(Benchmark::Pope, path, images, &wording)?;
            let is_named = setting.contains("pope");
            let name = if is_named {
                setting.clone()
            } else {
                format!("pope_{setting}")
            };
            Ok((name, file))
        });
        named.collect()
    })?;
    let score = |answers: &[PathBuf]| {
        let triples = annotations.iter().zip(answers).zip(&settings);
        let files = triples.map(|((questions, answers), setting)| PopeFiles {
            setting: setting.clone(),
            questions,
            answers,
        });
        score_pope(&files.collect::<Vec<_>>())
    };
    finish(options, &files, || {
        let base = (!files.base.is_empty()).then(|| score(&files.base)).transpose()?;
        Ok((score(&files.answers)?, base))
    })
}

/// Settings are known from the names of the published files; other files are called by their names.
fn setting_names(questions: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known = PopeSetting::ALL.iter().find(|setting| stem.contains(setting.name()));
        known.map_or(stem, |setting| setting.name().to_owned())
    };
    let names: Vec<String> = questions.iter().map(name).collect();
    if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
        return names;
    }
    names
        .iter()
        .enumerate()
        .map(|(index, name)| format!("{}-{name}", index + 1))
        .collect()
}

pub(crate) fn run_pope_questions(arguments: &PopeQuestionsArguments) -> anyhow::Result<()> {
    match &arguments.source {
        PopeSource::Objects(arguments) => pope_of_objects(arguments),
        PopeSource::Shapes(arguments) => pope_of_shapes(arguments),
    }
}

fn pope_of_objects(arguments: &PopeObjectsArguments) -> anyhow::Result<()> {
    ensure_free(&arguments.out)?;
    let images = match (&arguments.objects, &arguments.instances) {
        (Some(objects), None) => read_image_objects(objects)?,
        (None, Some(instances)) => coco_image_objects(instances)?,
        _ => return Err(usage("give one of --objects and --instances")),
    };
    let config = PopeConfig {
        num_images: arguments.num_images,
        objects_per_image: arguments.objects_per_image,
        template: arguments.template.clone(),
        article: match arguments.article {
            ArticleName::Published => ArticleRule::Published,
            ArticleName::ReleasedCode => ArticleRule::ReleasedCode,
        },
        seed: arguments.seed,
    };
    write_pope_questions(&arguments.out, &images, &config, None)
}

fn pope_of_shapes(arguments: &PopeShapesArguments) -> anyhow::Result<()> {
    ensure_free(&arguments.out)?;
    if arguments.num == 0 {
        return Err(usage("--num is 0, expected at least 1"));
    }
    let split = match arguments.split {
        SplitName::Train => Split::Train,
        SplitName::HeldOut => Split::HeldOut,
    };
    let world = read_scenes(arguments.scenes.as_deref())?;
    let scenes = shapes_scenes(arguments.seed, split, arguments.num, &world)?;
    let config = PopeConfig {
        objects_per_image: arguments.objects_per_image,
        ..shapes_pope_config(arguments.seed)
    };
    let images = shapes_image_objects(&scenes, naming(arguments.naming));
    let lines = json_lines(scenes.iter())?;
    write_pope_questions(&arguments.out, &images, &config, Some(&lines))
}

fn write_pope_questions(
    out: &Path,
    images: &[diptych_eval::hallucination::ImageObjects],
    config: &PopeConfig,
    scenes: Option<&str>,
) -> anyhow::Result<()> {
    let built = build_pope_questions(images, config)?;
    write_directory(out, |dir| {
        for (setting, questions) in &built {
            let path = dir.join(format!("pope_{}.jsonl", setting.name()));
            write_file(&path, pope_question_lines(questions).as_bytes())?;
            // What was written is what `eval pope` will read.
            read_pope_questions(&path)?;
        }
        scenes.map_or(Ok(()), |scenes| {
            Ok(write_file(&dir.join("scenes.jsonl"), scenes.as_bytes())?)
        })
    })?;
    let count = built.first().map_or(0, |(_, questions)| questions.len());
    print(format!("wrote {count} questions of each setting to {}", out.display()))
}
