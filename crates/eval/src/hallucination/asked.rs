//! The benchmarks' own files: what they ask, about which images, and the files that their official programs read answers from.
//!
//! | benchmark | questions | answers |
//! |---|---|---|
//! | POPE | lines with `question_id`, `image`, `text`, `label` | lines with `question` and `answer`, in order |
//! | CHAIR | rows with `image` or `image_id`, or none: every image of the folder | lines with `image_id` and `caption` |
//! | Object `HalBench` | rows with `image_id`, `question` and the `image` in base64, or none of the last | the rows, with `answer` |
//! | AMBER | a list with `id`, `image` and `query` | a list with `id` and `response` |
//! | MMHal-Bench | its template, with `image_src` | the same, with `model_answer` filled in |
//! | `HallusionBench` | its rows, with `filename` | the same, with `model_prediction` filled in |
//!
//! Images are found in a folder by the names that the files give, in rows that hold them, or are pictures of scenes of the shapes world.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diptych_data::ImageSource;
use serde_json::{Map, Value, json};

use super::pope::read_pope_questions;
use super::question_images::{QuestionImages, embedded};
use super::rows::{Row, RowFile};
use crate::error::{Error, Result};

/// What CHAIR's captions are asked for with: the words that OPERA, VCD and others who report CHAIR ask with.
pub const CAPTION_PROMPT: &str = "Please describe this image in detail.";

/// A benchmark whose questions are read and whose answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Benchmark {
    /// POPE.
    Pope,
    /// CHAIR.
    Chair,
    /// Object `HalBench`.
    ObjectHalbench,
    /// AMBER.
    Amber,
    /// MMHal-Bench.
    Mmhal,
    /// `HallusionBench`.
    Hallusion,
}

/// What becomes of answers to questions that official programs want answered by `Yes` or `No` exactly (AMBER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum YesNoAnswers {
    /// An answer whose first word is yes or no, in any case of letters, becomes `Yes` or `No`; another one stays as it is.
    #[default]
    FirstWord,
    /// They stay as they are.
    Verbatim,
}

/// How questions are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionWording {
    /// What captions are asked for with, where a benchmark has no words of its own (CHAIR).
    pub caption_prompt: String,
    /// What stands behind every text that has a question mark or is one of POPE's: "\nAnswer the question using a single word or
    /// phrase." Descriptions are asked for without it.
    pub suffix: String,
    /// See there.
    pub yes_no_answers: YesNoAnswers,
}

impl Default for QuestionWording {
    fn default() -> Self {
        Self {
            caption_prompt: CAPTION_PROMPT.to_owned(),
            suffix: String::new(),
            yes_no_answers: YesNoAnswers::default(),
        }
    }
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchmarkQuestion {
    /// File and row, as errors name it.
    pub id: String,
    /// The words.
    pub text: String,
    /// The image; none where the benchmark asks without one.
    pub image: Option<ImageSource>,
}

/// A file of questions.
#[derive(Debug, Clone)]
pub struct QuestionFile {
    benchmark: Benchmark,
    questions: Vec<BenchmarkQuestion>,
    /// What the answer is written into.
    rows: Vec<Map<String, Value>>,
    yes_no_answers: YesNoAnswers,
}

impl QuestionFile {
    /// Reads a benchmark's file of questions.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::StoredRow`] for a row that is no question of this benchmark, or whose image is not there.
    pub fn read(benchmark: Benchmark, path: &Path, images: &QuestionImages, wording: &QuestionWording) -> Result<Self> {
        if benchmark == Benchmark::Pope {
            // Refuses what the scorer would refuse after all questions were answered.
            read_pope_questions(path)?;
        }
        let file = RowFile::read(path)?;
        let mut asked = Self::new(benchmark, wording);
        let reader = Reader {
            path: path.to_owned(),
            file,
            images,
            wording,
        };
        let mut captioned = BTreeSet::new();
        for row in &reader.file.rows {
            let (question, fields) = reader.question(benchmark, row)?;
            // Files with several questions about an image serve to ask for its caption, once.
            if benchmark == Benchmark::Chair && !captioned.insert(fields["image_id"].to_string()) {
                continue;
            }
            asked.questions.push(question);
            asked.rows.push(fields);
        }
        Ok(asked)
    }

    /// Asks for a caption of every image: CHAIR without a file of questions.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BenchmarkFile`] for a folder without images.
    pub fn captions(images: &QuestionImages, wording: &QuestionWording) -> Result<Self> {
        let mut asked = Self::new(Benchmark::Chair, wording);
        for (index, name) in images.names()?.iter().enumerate() {
            let image = images.find(&[name], Path::new("images"), index + 1)?;
            asked.questions.push(BenchmarkQuestion {
                id: format!("image {name}"),
                text: wording.caption_prompt.clone(),
                image: Some(image),
            });
            asked.rows.push(caption_row(&coco_id(name), name));
        }
        Ok(asked)
    }

    fn new(benchmark: Benchmark, wording: &QuestionWording) -> Self {
        Self {
            benchmark,
            questions: Vec::new(),
            rows: Vec::new(),
            yes_no_answers: wording.yes_no_answers,
        }
    }

    /// What is asked, in the order in which answers are expected.
    pub fn questions(&self) -> &[BenchmarkQuestion] {
        &self.questions
    }

    /// The file of answers as the official program reads it; `.json` for a list, else `.jsonl`.
    ///
    /// # Errors
    /// [`Error::Benchmark`] for fewer or more answers than questions.
    pub fn answer_file(&self, answers: &[&str]) -> Result<String> {
        let (found, expected) = (answers.len(), self.questions.len());
        if found != expected {
            let reason = format!("found {found} answers, expected {expected}, one for each question");
            return Err(Error::Benchmark { reason });
        }
        let rows = self.rows.iter().zip(answers).zip(&self.questions);
        let rows: Vec<Value> = rows
            .map(|((fields, answer), question)| Value::Object(self.answered(fields, answer, question)))
            .collect();
        Ok(if self.is_list() {
            format!("{:#}\n", Value::Array(rows))
        } else {
            let lines = rows.iter().map(|row| row.to_string() + "\n");
            lines.collect()
        })
    }

    /// The ending of the file of answers.
    pub fn extension(&self) -> &'static str {
        if self.is_list() { "json" } else { "jsonl" }
    }

    fn is_list(&self) -> bool {
        match self.benchmark {
            Benchmark::Amber | Benchmark::Mmhal | Benchmark::Hallusion => true,
            Benchmark::Pope | Benchmark::Chair | Benchmark::ObjectHalbench => false,
        }
    }

    fn answered(&self, fields: &Map<String, Value>, answer: &str, question: &BenchmarkQuestion) -> Map<String, Value> {
        let (key, answer) = match self.benchmark {
            Benchmark::Pope | Benchmark::ObjectHalbench => ("answer", answer),
            Benchmark::Chair => ("caption", answer),
            Benchmark::Amber => ("response", self.yes_or_no(answer, question)),
            Benchmark::Mmhal => ("model_answer", answer),
            Benchmark::Hallusion => ("model_prediction", answer),
        };
        let mut row = fields.clone();
        row.insert(key.to_owned(), answer.into());
        row
    }

    fn yes_or_no<'a>(&self, answer: &'a str, question: &BenchmarkQuestion) -> &'a str {
        if self.yes_no_answers == YesNoAnswers::Verbatim || !is_question(&question.text) {
            return answer;
        }
        let first = answer.split(|letter: char| !letter.is_alphanumeric());
        match first.into_iter().find(|word| !word.is_empty()) {
            Some(word) if word.eq_ignore_ascii_case("yes") => "Yes",
            Some(word) if word.eq_ignore_ascii_case("no") => "No",
            _ => answer,
        }
    }
}

/// Rows to questions.
struct Reader<'a> {
    path: PathBuf,
    file: RowFile,
    images: &'a QuestionImages,
    wording: &'a QuestionWording,
}

impl Reader<'_> {
    fn question(&self, benchmark: Benchmark, row: &Row) -> Result<(BenchmarkQuestion, Map<String, Value>)> {
        let file = &self.file;
        let (text, image, fields) = match benchmark {
            Benchmark::Pope => {
                let (text, name) = (file.text(row, &["text"])?, file.text(row, &["image"])?);
                let id = row.get("question_id").cloned().unwrap_or_default();
                let fields = json!({"question_id": id, "question": text, "image": name});
                (
                    text.to_owned() + &self.wording.suffix,
                    self.image(row, &[name])?,
                    object(fields),
                )
            }
            Benchmark::Chair => {
                let (id, names) = self.coco_image(row)?;
                let fields = caption_row(&id, &names[0]);
                let image = self.image(row, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
                (self.wording.caption_prompt.clone(), image, fields)
            }
            Benchmark::ObjectHalbench => {
                let (_, names) = self.coco_image(row)?;
                let image = self.image(row, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
                (file.text(row, &["question"])?.to_owned(), image, without_pictures(row))
            }
            Benchmark::Amber => {
                let (text, name) = (file.text(row, &["query"])?, file.text(row, &["image"])?);
                let id = row.get("id").cloned().unwrap_or_default();
                if !id.is_u64() {
                    return Err(file.error(row, format!("`id` is {id}, expected a number from 0")));
                }
                (
                    self.with_suffix(text),
                    self.image(row, &[name])?,
                    object(json!({ "id": id })),
                )
            }
            Benchmark::Mmhal => {
                let text = file.text(row, &["question"])?;
                let name = file.text(row, &["image", "image_path", "image_src"])?;
                let last = name.rsplit('/').next().unwrap_or(name);
                (
                    self.with_suffix(text),
                    self.image(row, &[name, last])?,
                    without_pictures(row),
                )
            }
            Benchmark::Hallusion => {
                let text = file.text(row, &["question"])?;
                let image = if file.id(row, &["visual_input"])? == "0" {
                    None
                } else {
                    self.image(row, &[file.text(row, &["filename"])?])?
                };
                (self.with_suffix(text), image, without_verdicts(row))
            }
        };
        let id = format!("{}:{}", self.path.display(), row.number);
        Ok((BenchmarkQuestion { id, text, image }, fields))
    }

    fn with_suffix(&self, text: &str) -> String {
        let suffix = if is_question(text) {
            self.wording.suffix.as_str()
        } else {
            ""
        };
        format!("{text}{suffix}")
    }

    fn image(&self, row: &Row, names: &[&str]) -> Result<Option<ImageSource>> {
        self.images.find(names, &self.path, row.number).map(Some)
    }

    /// The id of an image and its names, each known from the other in COCO's files.
    fn coco_image(&self, row: &Row) -> Result<(Value, Vec<String>)> {
        let id = row.get("image_id").cloned();
        if let Some(name) = row.get("image").and_then(Value::as_str) {
            let id = id.or_else(|| embedded(name).is_none().then(|| coco_id(name)));
            let id = id.ok_or_else(|| self.file.error(row, "there is no `image_id`"))?;
            return Ok((id, vec![name.to_owned()]));
        }
        let text = self.file.id(row, &["image", "image_id"])?;
        let mut names = vec![text.clone()];
        if let Ok(number) = text.parse::<u64>() {
            names.push(format!("COCO_val2014_{number:012}.jpg"));
            names.push(format!("{number:012}.jpg"));
        }
        Ok((id.unwrap_or_else(|| coco_id(&text)), names))
    }
}

/// A row without the pictures that are in it, which official programs leave out too: they are what makes the files large.
fn without_pictures(row: &Row) -> Map<String, Value> {
    let mut fields = row.fields().clone();
    fields.retain(|_, value| value.as_str().is_none_or(|text| embedded(text).is_none()));
    fields
}

/// A row without what a judge said, which was about other answers.
fn without_verdicts(row: &Row) -> Map<String, Value> {
    let mut fields = row.fields().clone();
    fields.retain(|key, _| !key.starts_with("gpt4v_output_gpt_check"));
    fields
}

fn is_question(text: &str) -> bool {
    text.contains('?')
}

fn caption_row(id: &Value, name: &str) -> Map<String, Value> {
    let mut fields = object(json!({ "image_id": id }));
    if embedded(name).is_none() {
        fields.insert("image".to_owned(), name.into());
    }
    fields
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The number at the end of a file's name (`COCO_val2014_000000391895.jpg`), else the name without its ending.
fn coco_id(name: &str) -> Value {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let digits = stem.rsplit('_').next().unwrap_or_default();
    match digits.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) => stem.into_owned().into(),
    }
}
