//! The arguments of the benchmarks of hallucination.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use diptych_tensor::DeviceChoice;

use super::{NumberFormat, SplitName};

/// What every benchmark takes.
#[derive(Debug, Args)]
pub(crate) struct BenchmarkOptions {
    /// Directory for the report and what was found in each answer
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The only source of randomness, of the resampling
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Resamples behind the intervals, and exchanges behind the p-values
    #[arg(long, default_value_t = 10_000)]
    pub(crate) bootstrap_samples: usize,
}

/// A model that answers, in the place of a file of answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "A model that answers")]
pub(crate) struct AnsweringArguments {
    /// Vision-language model in transformers' layout that answers the questions, in the place of --answers
    #[arg(long, value_name = "DIR", conflicts_with = "answers")]
    pub(crate) model: Option<PathBuf>,
    /// Adapter of the model, a PEFT directory
    #[arg(long, value_name = "PATH", requires = "model")]
    pub(crate) adapter: Option<PathBuf>,
    /// The model without its adapter answers too, to compare with
    #[arg(long, requires = "adapter", conflicts_with = "base_answers")]
    pub(crate) base: bool,
    /// Folder of the images that the questions name
    #[arg(long, value_name = "DIR", requires = "model")]
    pub(crate) images: Option<PathBuf>,
    /// How a question becomes a prompt: its words at {}, the image at <image>; by default the model's chat template
    #[arg(long, value_name = "TEXT", requires = "model")]
    pub(crate) prompt_format: Option<String>,
    /// What the system says before, in a chat template
    #[arg(long, value_name = "TEXT", requires = "model", conflicts_with = "prompt_format")]
    pub(crate) system: Option<String>,
    /// Behind every question but requests for descriptions, as "\nAnswer the question using a single word or phrase."
    #[arg(long, value_name = "TEXT", requires = "model")]
    pub(crate) suffix: Option<String>,
    /// Tokens of an answer, at most; by default 512
    #[arg(long, value_name = "N", requires = "model")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Divides the logits; by default 0, always the likeliest token
    #[arg(long, value_name = "T", requires = "model")]
    pub(crate) temperature: Option<f64>,
    /// Only the likeliest tokens that together have this probability; by default 1, all
    #[arg(long, value_name = "P", requires = "temperature")]
    pub(crate) top_p: Option<f64>,
    /// Answers computed together; by default 16
    #[arg(long, value_name = "N", requires = "model")]
    pub(crate) batch_size: Option<usize>,
    /// Number format of the network; by default f32
    #[arg(long, value_enum, requires = "model")]
    pub(crate) precision: Option<NumberFormat>,
    /// auto, cpu, cuda[:n] or metal; by default auto
    #[arg(long, requires = "model")]
    pub(crate) device: Option<DeviceChoice>,
}

#[derive(Debug, Args)]
pub(crate) struct PopeArguments {
    /// Questions with their labels, one file a setting
    #[arg(long, alias = "questions", value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) annotations: Vec<PathBuf>,
    /// Answers, a file for each file of questions and in its order
    #[arg(long, value_name = "FILE", required_unless_present = "model", num_args = 1..)]
    pub(crate) answers: Vec<PathBuf>,
    /// Answers of another system to the same questions, to compare with
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) base_answers: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) pictures: PictureArguments,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
}

/// Scenes of the shapes world whose pictures a model is shown.
#[derive(Debug, Args)]
pub(crate) struct PictureArguments {
    /// Scenes of the shapes world that the questions are about, in the place of --images
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with = "images")]
    pub(crate) scenes: Option<PathBuf>,
    /// Pixels of a side of their pictures; by default 32
    #[arg(long, value_name = "PIXELS", requires = "scenes")]
    pub(crate) size: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct PopeQuestionsArguments {
    #[command(subcommand)]
    pub(crate) source: PopeSource,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PopeSource {
    /// From a list of the objects of each image, or COCO's annotations of instances
    Objects(PopeObjectsArguments),
    /// From scenes of the shapes world
    Shapes(PopeShapesArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PopeObjectsArguments {
    /// JSONL file with image and objects
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "instances",
        required_unless_present = "instances"
    )]
    pub(crate) objects: Option<PathBuf>,
    /// COCO's instances_*.json
    #[arg(long, value_name = "FILE")]
    pub(crate) instances: Option<PathBuf>,
    /// Images to draw; by default all that have enough objects
    #[arg(long)]
    pub(crate) num_images: Option<usize>,
    /// Objects asked about in an image, and as many that are not there
    #[arg(long, default_value_t = 3)]
    pub(crate) objects_per_image: usize,
    /// The question, with {} for the object
    #[arg(long, default_value = "Is there a {} in the image?")]
    pub(crate) template: String,
    /// Its wording before a vowel
    #[arg(long, value_enum, default_value_t = ArticleName::Published)]
    pub(crate) article: ArticleName,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Directory for the three files
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PopeShapesArguments {
    /// Scenes; questions are about those `data shapes` draws with the same seed and split
    #[arg(long, default_value_t = 256)]
    pub(crate) num: usize,
    /// The part of the world they come from
    #[arg(long, value_enum, default_value_t = SplitName::HeldOut)]
    pub(crate) split: SplitName,
    /// TOML file that narrows the scenes
    #[arg(long, value_name = "FILE")]
    pub(crate) scenes: Option<PathBuf>,
    /// What counts as an object of its own
    #[arg(long, value_enum, default_value_t = NamingName::ColoredShape)]
    pub(crate) naming: NamingName,
    /// Objects asked about in an image, and as many that are not there
    #[arg(long, default_value_t = 1)]
    pub(crate) objects_per_image: usize,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Directory for the three files, and the scenes
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArticleName {
    /// "a {}" becomes "an {}", as in the published files
    Published,
    /// Every "a" becomes "an", as in the released program
    ReleasedCode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamingName {
    /// "circle"
    Shape,
    /// "red circle"
    ColoredShape,
}

/// What is in each image of COCO.
#[derive(Debug, Args)]
pub(crate) struct CocoTruth {
    /// The list of objects and their synonyms, as the benchmark's authors publish it
    #[arg(long, value_name = "FILE")]
    pub(crate) synonyms: Option<PathBuf>,
    /// COCO's instances_*.json, of every split that images are from
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "annotations")]
    pub(crate) instances: Vec<PathBuf>,
    /// COCO's captions_*.json, of the same splits
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "annotations")]
    pub(crate) captions: Vec<PathBuf>,
    /// The objects of each image, ready: image_id and objects, or what an official program wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) annotations: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ChairArguments {
    /// Captions: image_id and caption
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub(crate) answers: Option<PathBuf>,
    /// Captions of another system for the same images, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) base_answers: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) truth: CocoTruth,
    /// Scenes of the shapes world that the captions are about, instead of COCO's annotations
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synonyms", "instances", "captions", "annotations", "images"])]
    pub(crate) scenes: Option<PathBuf>,
    /// What counts as an object of its own in a scene
    #[arg(long, value_enum, requires = "scenes")]
    pub(crate) naming: Option<NamingName>,
    /// Pixels of a side of the scenes' pictures; by default 32
    #[arg(long, value_name = "PIXELS", requires_all = ["scenes", "model"])]
    pub(crate) size: Option<u32>,
    /// Rows with image or image_id of the images to caption, such as POPE's questions; by default all of --images or --scenes
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) questions: Option<PathBuf>,
    /// What captions are asked for with; by default "Please describe this image in detail.", of scenes "describe the picture"
    #[arg(long, value_name = "TEXT", requires = "model")]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
}

#[derive(Debug, Args)]
pub(crate) struct HalbenchArguments {
    /// Answers with their extracted objects: image_id, answer and objs
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub(crate) answers: Option<PathBuf>,
    /// Answers of another system about the same images, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) base_answers: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) truth: CocoTruth,
    /// WordNet's directory of dictionaries, for the lemmas of COCO's captions
    #[arg(long, value_name = "DIR")]
    pub(crate) wordnet: Option<PathBuf>,
    /// What is done with objects that are only there as the extracting model named them
    #[arg(long, value_enum, default_value_t = ExtractedName::Refused)]
    pub(crate) extracted: ExtractedName,
    /// The benchmark's questions: image_id, question and perhaps image
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) questions: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExtractedName {
    /// They are an error: the official program brings them into shape with spaCy
    Refused,
    /// A rule brings them into shape, which is an approximation
    HeadNoun,
    /// Nothing was extracted: the whole answer is read word by word, which is an approximation
    WholeAnswer,
}

#[derive(Debug, Args)]
pub(crate) struct AmberArguments {
    /// Answers: id and response, and for descriptions their nouns
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub(crate) answers: Option<PathBuf>,
    /// Answers of another system, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) base_answers: Option<PathBuf>,
    /// AMBER's data/annotations.json
    #[arg(long, value_name = "FILE")]
    pub(crate) annotations: PathBuf,
    /// AMBER's data/relation.json
    #[arg(long, value_name = "FILE")]
    pub(crate) associations: PathBuf,
    /// AMBER's data/safe_words.txt
    #[arg(long, value_name = "FILE")]
    pub(crate) safe_words: PathBuf,
    /// spaCy's vectors of the words of the vocabulary: a word and its numbers on each line
    #[arg(long, value_name = "FILE")]
    pub(crate) vectors: Option<PathBuf>,
    /// Words are near-synonyms above this similarity
    #[arg(long, default_value_t = 0.8, requires = "vectors")]
    pub(crate) similarity: f64,
    /// Where the nouns of descriptions come from
    #[arg(long, value_enum, default_value_t = NounsName::Stored)]
    pub(crate) nouns: NounsName,
    /// WordNet's directory of dictionaries, for the lemmas of every word
    #[arg(long, value_name = "DIR")]
    pub(crate) wordnet: Option<PathBuf>,
    /// One of AMBER's files of queries, which a model answers, and which says which questions are about one image and resampled together
    #[arg(long, alias = "questions", value_name = "FILE")]
    pub(crate) queries: Option<PathBuf>,
    /// The part that is scored, by the official letters
    #[arg(long, value_enum, default_value_t = AmberPart::A)]
    pub(crate) dimension: AmberPart,
    /// What becomes of a model's answers to questions, which have to be Yes or No exactly
    #[arg(long, value_enum, default_value_t = ResponsesName::FirstWord)]
    pub(crate) responses: ResponsesName,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NounsName {
    /// From `nouns` in the answers: those of NLTK's tagger give the official numbers
    Stored,
    /// Every word of the vocabulary, which is an approximation
    EveryWord,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResponsesName {
    /// "Yes, there is." becomes "Yes"
    FirstWord,
    /// They stay as they are
    Verbatim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AmberPart {
    /// All
    A,
    /// Descriptions
    G,
    /// Questions
    D,
    /// Questions about existence
    De,
    /// Questions about attributes
    Da,
    /// Questions about relations
    Dr,
}

/// A language model that judges, in the place of a file of replies.
#[derive(Debug, Args)]
#[command(next_help_heading = "A model that judges")]
#[expect(clippy::struct_field_names, reason = "fields are named as the flags are")]
pub(crate) struct JudgeArguments {
    /// Language model in transformers' layout that judges the answers, in the place of --judgments; it is asked in our own words
    #[arg(long, value_name = "DIR", conflicts_with_all = ["judgments", "base_judgments"])]
    pub(crate) judge_model: Option<PathBuf>,
    /// Tokens of its reply, at most; by default 512
    #[arg(long, value_name = "N", requires = "judge_model")]
    pub(crate) judge_max_new_tokens: Option<usize>,
    /// Replies computed together; by default 8
    #[arg(long, value_name = "N", requires = "judge_model")]
    pub(crate) judge_batch_size: Option<usize>,
    /// Number format of its network; by default f32
    #[arg(long, value_enum, requires = "judge_model")]
    pub(crate) judge_precision: Option<NumberFormat>,
    /// auto, cpu, cuda[:n] or metal; by default auto
    #[arg(long, requires = "judge_model")]
    pub(crate) judge_device: Option<DeviceChoice>,
}

#[derive(Debug, Args)]
pub(crate) struct MmhalArguments {
    /// The official template, with model_answer filled in
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub(crate) answers: Option<PathBuf>,
    /// The judge's replies to these answers, in their order
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["model", "judge_model"],
        conflicts_with = "model"
    )]
    pub(crate) judgments: Option<PathBuf>,
    /// Answers of another system, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) base_answers: Option<PathBuf>,
    /// The judge's replies to those
    #[arg(long, value_name = "FILE", requires_all = ["base_answers", "judgments"])]
    pub(crate) base_judgments: Option<PathBuf>,
    /// The official template, which a model answers; without a judge's model its answers are scored by another call
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) questions: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
    #[command(flatten)]
    pub(crate) judge: JudgeArguments,
}

#[derive(Debug, Args)]
pub(crate) struct HallusionArguments {
    /// The official rows, with model_prediction filled in, and with the verdicts unless --judgments or --judge-model are given
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub(crate) answers: Option<PathBuf>,
    /// The judge's replies to these answers, in their order
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) judgments: Option<PathBuf>,
    /// Answers of another system, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) base_answers: Option<PathBuf>,
    /// The judge's replies to those
    #[arg(long, value_name = "FILE", requires = "base_answers")]
    pub(crate) base_judgments: Option<PathBuf>,
    /// The official rows, which a model answers; without a judge's model its answers are scored by another call
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) questions: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: BenchmarkOptions,
    #[command(flatten)]
    pub(crate) answering: AnsweringArguments,
    #[command(flatten)]
    pub(crate) judge: JudgeArguments,
}
