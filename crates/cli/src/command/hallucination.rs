//! `diptych eval pope`, `chair`, `object-halbench`, `amber`, `mmhal`, `hallusion`: answers of a model, or in files, scored.

mod judge;
mod pope;
mod reply_log;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use diptych_eval::hallucination::{
    AmberDimension, AmberWords, Benchmark, BenchmarkReport, ExtractedObjects, JudgedBenchmark, Judgments, Lemmatizer,
    NounSource, ObjectTruth, ObjectVocabulary, QuestionFile, QuestionWording, Scored, ShapesNaming, StoredJudgments,
    SynonymRules, WordNet, YesNoAnswers, captioned_images, read_amber_queries, score_amber, score_chair,
    score_hallusion, score_mmhal, score_object_halbench, score_shapes_chair,
};
use diptych_tensor::files::write_file;

use self::judge::Replies;
pub(crate) use self::pope::{run_pope, run_pope_questions};
use crate::arguments::{
    AmberArguments, AmberPart, AnsweringArguments, BenchmarkOptions, ChairArguments, CocoTruth, ExtractedName,
    HalbenchArguments, HallusionArguments, JudgeArguments, MmhalArguments, NamingName, NounsName, ResponsesName,
};
use crate::command::answering::{AnswerFiles, Shown, required, wording};
use crate::failure::usage;
use crate::output::{ensure_free, print, write_directory};

pub(crate) fn run_chair(arguments: &ChairArguments) -> anyhow::Result<()> {
    let ChairArguments { answering, options, .. } = arguments;
    ensure_free(&options.out)?;
    let scenes = arguments.scenes.as_deref();
    let vocabulary = if scenes.is_none() {
        Some(vocabulary(&arguments.truth, SynonymRules::Chair)?)
    } else {
        None
    };
    let shown = scenes.map_or(Shown::Images, |scenes| Shown::Scenes(scenes, arguments.size));
    let wording = wording(answering, arguments.prompt.as_deref(), &shown);
    let given = (
        &*given(arguments.answers.as_ref()),
        &*given(arguments.base_answers.as_ref()),
    );
    let files = AnswerFiles::of((answering, options), given, &shown, |images| {
        let file = match &arguments.questions {
            Some(path) => QuestionFile::read(Benchmark::Chair, path, images, &wording)?,
            None => QuestionFile::captions(images, &wording)?,
        };
        Ok(vec![("captions".to_owned(), file)])
    })?;
    finish(options, &files, || {
        let (Some(vocabulary), None) = (&vocabulary, scenes) else {
            let naming = naming(arguments.naming.unwrap_or(NamingName::ColoredShape));
            let scenes = scenes.unwrap_or_else(|| Path::new(""));
            let score = |answers: &Path| score_shapes_chair(answers, scenes, naming);
            return Ok((score(files.only())?, files.only_base().map(score).transpose()?));
        };
        let both = [Some(files.only()), files.only_base()];
        let truth = coco_truth(&arguments.truth, &both, vocabulary, &Lemmatizer::PatternRules)?;
        let score = |answers: &Path| score_chair(answers, vocabulary, &truth);
        Ok((score(files.only())?, files.only_base().map(score).transpose()?))
    })
}

pub(crate) fn run_object_halbench(arguments: &HalbenchArguments) -> anyhow::Result<()> {
    let HalbenchArguments { answering, options, .. } = arguments;
    ensure_free(&options.out)?;
    let is_scored = answering.model.is_none() || arguments.extracted == ExtractedName::WholeAnswer;
    let vocabulary = is_scored
        .then(|| vocabulary(&arguments.truth, SynonymRules::ObjectHalBench))
        .transpose()?;
    let lemmatizer = match &arguments.wordnet {
        Some(directory) => Lemmatizer::WordNet(WordNet::read(directory)?),
        None if arguments.truth.captions.is_empty() => Lemmatizer::PatternRules,
        None => {
            let reason = "--captions are read with WordNet's lemmas: give its directory as --wordnet, or the objects as --annotations";
            return Err(usage(reason));
        }
    };
    let wording = wording(answering, None, &Shown::Images);
    let given = (
        &*given(arguments.answers.as_ref()),
        &*given(arguments.base_answers.as_ref()),
    );
    let files = AnswerFiles::of((answering, options), given, &Shown::Images, |images| {
        let path = required(arguments.questions.as_ref(), "--questions")?;
        let file = QuestionFile::read(Benchmark::ObjectHalbench, path, images, &wording)?;
        Ok(vec![("object_halbench".to_owned(), file)])
    })?;
    let Some(vocabulary) = vocabulary else {
        let next = "put the objects that a language model extracts into them as `objs` and score them with --answers, or read the whole \
                    answers with --extracted whole-answer";
        return files.finish_unscored(&options.out, next);
    };
    let extracted = match arguments.extracted {
        ExtractedName::Refused => ExtractedObjects::Refused,
        ExtractedName::HeadNoun => ExtractedObjects::HeadNoun,
        ExtractedName::WholeAnswer => ExtractedObjects::WholeAnswer,
    };
    finish(options, &files, || {
        let both = [Some(files.only()), files.only_base()];
        let truth = coco_truth(&arguments.truth, &both, &vocabulary, &lemmatizer)?;
        let score = |answers: &Path| score_object_halbench(answers, &vocabulary, &truth, extracted);
        Ok((score(files.only())?, files.only_base().map(score).transpose()?))
    })
}

pub(crate) fn run_amber(arguments: &AmberArguments) -> anyhow::Result<()> {
    let AmberArguments { answering, options, .. } = arguments;
    ensure_free(&options.out)?;
    let nouns = match (arguments.nouns, &arguments.wordnet) {
        (NounsName::Stored, None) => NounSource::Stored,
        (NounsName::Stored, Some(_)) => return Err(usage("--wordnet is only for --nouns every-word")),
        (NounsName::EveryWord, wordnet) => NounSource::EveryWord(wordnet.as_deref().map(WordNet::read).transpose()?),
    };
    if !(0.0..=1.0).contains(&arguments.similarity) {
        return Err(usage("--similarity is a cosine from 0 to 1"));
    }
    let words = AmberWords::read(
        &arguments.associations,
        &arguments.safe_words,
        arguments.vectors.as_deref(),
        arguments.similarity,
    )?;
    let images = arguments
        .queries
        .as_deref()
        .map(read_amber_queries)
        .transpose()?
        .unwrap_or_default();
    let dimensions = dimensions(arguments.dimension);
    let describes = dimensions.contains(&AmberDimension::Generative);
    if answering.model.is_some() && describes && nouns_are_stored(&nouns) {
        let reason = "a model's answers have no nouns: give --nouns every-word, or --dimension d; for the official numbers add the nouns of \
                      NLTK's tagger to the answers and score them with --answers";
        return Err(usage(reason));
    }
    let wording = QuestionWording {
        yes_no_answers: match arguments.responses {
            ResponsesName::FirstWord => YesNoAnswers::FirstWord,
            ResponsesName::Verbatim => YesNoAnswers::Verbatim,
        },
        ..wording(answering, None, &Shown::Images)
    };
    let given = (
        &*given(arguments.answers.as_ref()),
        &*given(arguments.base_answers.as_ref()),
    );
    let files = AnswerFiles::of((answering, options), given, &Shown::Images, |images| {
        let path = required(arguments.queries.as_ref(), "--queries")?;
        let file = QuestionFile::read(Benchmark::Amber, path, images, &wording)?;
        Ok(vec![("amber".to_owned(), file)])
    })?;
    let score = |answers: &Path| score_amber(answers, &arguments.annotations, &words, &nouns, dimensions, &images);
    finish(options, &files, || {
        Ok((score(files.only())?, files.only_base().map(score).transpose()?))
    })
}

fn dimensions(part: AmberPart) -> &'static [AmberDimension] {
    match part {
        AmberPart::A => &AmberDimension::ALL,
        AmberPart::G => &[AmberDimension::Generative],
        AmberPart::D => &AmberDimension::ALL[1..],
        AmberPart::De => &[AmberDimension::Existence],
        AmberPart::Da => &[AmberDimension::Attribute],
        AmberPart::Dr => &[AmberDimension::Relation],
    }
}

fn nouns_are_stored(nouns: &NounSource) -> bool {
    match nouns {
        NounSource::Stored => true,
        NounSource::EveryWord(_) => false,
    }
}

pub(crate) fn run_mmhal(arguments: &MmhalArguments) -> anyhow::Result<()> {
    let MmhalArguments {
        answering,
        options,
        judge,
        ..
    } = arguments;
    ensure_free(&options.out)?;
    let is_judged = arguments.judgments.is_some() || judge.judge_model.is_some();
    let base_answers = arguments.base_answers.as_ref();
    check_base(
        (answering, judge),
        base_answers.is_some(),
        arguments.base_judgments.is_some(),
    )?;
    let mut files = judged_files(
        (answering, options),
        (arguments.answers.as_ref(), base_answers),
        arguments.questions.as_ref(),
        (Benchmark::Mmhal, "mmhal"),
    )?;
    if !is_judged {
        return files.finish_unscored(&options.out, JUDGE_NEXT);
    }
    let stored = [arguments.judgments.as_ref(), arguments.base_judgments.as_ref()];
    let mut replies = Replies::of((judge, options), stored, &mut files)?;
    let score = |answers: &Path, judgments: &Path| -> anyhow::Result<Scored> {
        let mut judgments = StoredJudgments::read(judgments)?;
        let scored = score_mmhal(answers, &mut judgments)?;
        judgments.check_len(scored.rows.len())?;
        Ok(scored)
    };
    finish(options, &files, || {
        let (own, base) = replies.files(JudgedBenchmark::Mmhal, &files)?;
        let base = files.only_base().zip(base);
        let base = base
            .map(|(answers, judgments)| score(answers, &judgments))
            .transpose()?;
        let own = own.context("there are no judgments")?;
        Ok((score(files.only(), &own)?, base))
    })?;
    replies.forget()
}

/// What has to happen to answers that a judge reads.
const JUDGE_NEXT: &str =
    "score them with --answers and a judge's replies as --judgments, or a judge's model as --judge-model";

/// Answers to compare with, of a file or of a model, are judged as the others are.
fn check_base(
    (answering, judge): (&AnsweringArguments, &JudgeArguments),
    has_base_answers: bool,
    has_base_judgments: bool,
) -> anyhow::Result<()> {
    if answering.model.is_some() && judge.judge_model.is_none() && has_base_answers {
        return Err(usage(
            "--base-answers beside --model need --judge-model: without it nothing is scored",
        ));
    }
    if has_base_answers && judge.judge_model.is_none() && !has_base_judgments {
        return Err(usage("--base-answers need --base-judgments, or --judge-model"));
    }
    Ok(())
}

/// The answers to a benchmark whose questions come in one file, which a judge reads: those given, or a model's.
fn judged_files(
    (answering, options): (&AnsweringArguments, &BenchmarkOptions),
    (answers, base): (Option<&PathBuf>, Option<&PathBuf>),
    questions: Option<&PathBuf>,
    (benchmark, name): (Benchmark, &str),
) -> anyhow::Result<AnswerFiles> {
    let wording = wording(answering, None, &Shown::Images);
    let given = (&*given(answers), &*given(base));
    AnswerFiles::of((answering, options), given, &Shown::Images, |images| {
        let path = required(questions, "--questions")?;
        let file = QuestionFile::read(benchmark, path, images, &wording)?;
        Ok(vec![(name.to_owned(), file)])
    })
}

pub(crate) fn run_hallusion(arguments: &HallusionArguments) -> anyhow::Result<()> {
    let HallusionArguments {
        answering,
        options,
        judge,
        ..
    } = arguments;
    ensure_free(&options.out)?;
    let base_answers = arguments.base_answers.as_ref();
    // Rows may bring verdicts of their own.
    check_base((answering, judge), base_answers.is_some(), true)?;
    let mut files = judged_files(
        (answering, options),
        (arguments.answers.as_ref(), base_answers),
        arguments.questions.as_ref(),
        (Benchmark::Hallusion, "hallusion"),
    )?;
    if answering.model.is_some() && judge.judge_model.is_none() {
        return files.finish_unscored(&options.out, JUDGE_NEXT);
    }
    let stored = [arguments.judgments.as_ref(), arguments.base_judgments.as_ref()];
    let mut replies = Replies::of((judge, options), stored, &mut files)?;
    let score = |answers: &Path, judgments: Option<&Path>| -> anyhow::Result<Scored> {
        let mut judgments = judgments.map(StoredJudgments::read).transpose()?;
        let judge = judgments.as_mut().map(|judgments| judgments as &mut dyn Judgments);
        let scored = score_hallusion(answers, judge)?;
        if let Some(judgments) = judgments {
            judgments.check_len(scored.rows.len())?;
        }
        Ok(scored)
    };
    finish(options, &files, || {
        let (own, base) = replies.files(JudgedBenchmark::Hallusion, &files)?;
        let of_base = files.only_base().map(|answers| score(answers, base.as_deref()));
        Ok((score(files.only(), own.as_deref())?, of_base.transpose()?))
    })?;
    replies.forget()
}

/// A file that may be given, as a list.
fn given(file: Option<&PathBuf>) -> Vec<PathBuf> {
    file.cloned().into_iter().collect()
}

fn naming(name: NamingName) -> ShapesNaming {
    match name {
        NamingName::Shape => ShapesNaming::Shape,
        NamingName::ColoredShape => ShapesNaming::ColoredShape,
    }
}

fn vocabulary(truth: &CocoTruth, rules: SynonymRules) -> anyhow::Result<ObjectVocabulary> {
    let Some(synonyms) = &truth.synonyms else {
        return Err(usage(
            "--synonyms is missing: the list of objects that the benchmark's authors publish",
        ));
    };
    Ok(ObjectVocabulary::read(synonyms, rules)?)
}

fn coco_truth(
    truth: &CocoTruth,
    answers: &[Option<&Path>],
    vocabulary: &ObjectVocabulary,
    lemmatizer: &Lemmatizer,
) -> anyhow::Result<ObjectTruth> {
    if let Some(annotations) = &truth.annotations {
        return Ok(ObjectTruth::read(annotations, vocabulary)?);
    }
    if truth.instances.is_empty() || truth.captions.is_empty() {
        let reason = "give COCO's --instances and --captions, both of which tell what is in an image, or its objects as --annotations";
        return Err(usage(reason));
    }
    let mut images = BTreeSet::new();
    for answers in answers.iter().flatten() {
        images.extend(captioned_images(answers)?);
    }
    Ok(ObjectTruth::from_coco(
        &truth.instances,
        &truth.captions,
        &images,
        vocabulary,
        lemmatizer,
    )?)
}

/// Writes `report.json`, what was found in each answer and what a model answered, and shows the table.
fn finish(
    options: &BenchmarkOptions,
    files: &AnswerFiles,
    score: impl FnOnce() -> anyhow::Result<(Scored, Option<Scored>)>,
) -> anyhow::Result<()> {
    let (scored, base) = files.scored(&options.out, score)?;
    let report = BenchmarkReport::of(&scored, base.as_ref(), options.seed, options.bootstrap_samples)?;
    write_directory(&options.out, |dir| {
        files.keep(dir)?;
        write_file(
            &dir.join("report.json"),
            serde_json::to_string_pretty(&report)?.as_bytes(),
        )?;
        if let Some(base) = &base {
            write_file(
                &dir.join("base-answers.jsonl"),
                json_lines(base.rows.iter())?.as_bytes(),
            )?;
        }
        Ok(write_file(
            &dir.join("answers.jsonl"),
            json_lines(scored.rows.iter())?.as_bytes(),
        )?)
    })?;
    print(report)
}

fn json_lines<T: serde::Serialize>(rows: impl Iterator<Item = T>) -> anyhow::Result<String> {
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&serde_json::to_string(&row)?);
        lines.push('\n');
    }
    Ok(lines)
}
