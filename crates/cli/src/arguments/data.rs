//! Arguments of `diptych data`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use diptych_data::{Layout, OnError, PairRule, TiePolicy};
use diptych_diffusion::PairsConfig;
use diptych_eval::Judge;

use super::language::first_given;
use super::{BuildArguments, EncodingArguments, RecipeArguments, SamplingArguments};

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show what a dataset holds and what is wrong with it
    Inspect(InspectArguments),
    /// What is wrong or probably not meant in data of text or images; text is shown token by token as training sees it
    Lint(LintArguments),
    /// Write data of any layout in ours: text as JSON lines in TRL's names, images as preference, ranked or unpaired rows
    Convert(ConvertArguments),
    /// Write data of the shapes world: captioned images, or scenes as text with captions
    Shapes(ShapesArguments),
    /// Generate preference data: sample images from a model, let a judge score, keep pairs or ranked lists; or, with the name of a recipe, pairs
    /// that a vision-language model makes of its own answers
    Build(BuildArguments),
    /// Encode a recipe's images and prompts once, into its [data.cache]; a stopped call goes on where it was
    Cache(CacheArguments),
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Files or directories
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// How records are laid out; see diptych list layouts
    #[arg(long, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LintArguments {
    /// Text: language model, or a directory with the files of its tokenizer. Images: pipeline, or a directory with the files of a
    /// CLIP tokenizer, that prompts are counted with; by default only prompts are found that no CLIP reads to their end
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Files or directories of the split `train`
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// Another part of the data, such as eval=eval.jsonl, that should share no row with the others; may be repeated
    #[arg(long = "split", value_name = "NAME=PATH", value_parser = named_path)]
    pub(crate) splits: Vec<(String, PathBuf)>,
    /// How records are laid out; see diptych list layouts
    #[arg(long, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten, next_help_heading = "Text")]
    pub(crate) text: TextLintOptions,
    #[command(flatten, next_help_heading = "Images")]
    pub(crate) images: ImageLintOptions,
}

/// What is looked at in text.
#[derive(Debug, Args)]
pub(crate) struct TextLintOptions {
    #[command(flatten)]
    pub(crate) encoding: EncodingArguments,
    /// Rows of every split that are shown token by token; by default 3
    #[arg(long, value_name = "N")]
    pub(crate) show: Option<usize>,
    /// An answer more than this many times as long as the other one is reported; by default 5
    #[arg(long, value_name = "RATIO")]
    pub(crate) max_length_ratio: Option<f64>,
}

impl TextLintOptions {
    /// One of them that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--max-len", self.encoding.max_len.is_some()),
            ("--encoding", !self.encoding.rules.is_empty()),
            ("--show", self.show.is_some()),
            ("--max-length-ratio", self.max_length_ratio.is_some()),
        ])
    }
}

/// What is odd of an image.
#[derive(Debug, Args)]
pub(crate) struct ImageLintOptions {
    /// An image with a side shorter than this is reported, in pixels; by default 32
    #[arg(long, value_name = "PIXELS")]
    pub(crate) min_side: Option<u32>,
    /// An image with a side longer than this is reported, in pixels; by default 4096
    #[arg(long, value_name = "PIXELS")]
    pub(crate) max_side: Option<u32>,
    /// An image with one side more than this many times the other is reported; by default 4
    #[arg(long, value_name = "RATIO")]
    pub(crate) max_aspect_ratio: Option<f64>,
}

impl ImageLintOptions {
    /// One of them that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--min-side", self.min_side.is_some()),
            ("--max-side", self.max_side.is_some()),
            ("--max-aspect-ratio", self.max_aspect_ratio.is_some()),
        ])
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=PATH".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// Files or directories
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// How records are laid out; see diptych list layouts
    #[arg(long, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    /// The JSONL file to write, with the images in images/ beside it; for images also a .parquet file, which holds them
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Images: what becomes of rows that prefer neither side, as data.ties of a recipe; by default drop
    #[arg(long, value_name = "drop|both|fail")]
    pub(crate) ties: Option<TiePolicy>,
    /// Images: what becomes of rows that are wrong and of images that cannot be read, as data.on_error of a recipe; by default fail
    #[arg(long, value_name = "fail|skip")]
    pub(crate) on_error: Option<OnError>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShapesArguments {
    /// What to write
    #[arg(long, value_enum, default_value_t = ShapesKind::Images)]
    pub(crate) kind: ShapesKind,
    /// How many records
    #[arg(long, default_value_t = 1000)]
    pub(crate) num: usize,
    /// Width and height of images in pixels, 32 to 128; by default 32
    #[arg(long)]
    pub(crate) size: Option<u32>,
    /// TOML file that narrows the scenes and captions; by default all of the world
    #[arg(long, value_name = "FILE")]
    pub(crate) scenes: Option<PathBuf>,
    /// Images: probability that each attribute a caption tells is wrong
    #[arg(long, value_name = "PROBABILITY")]
    pub(crate) mislabel: Option<f64>,
    /// Completions: share of those that are false, so that a model trained on them is imperfect; by default 0
    #[arg(long, value_name = "SHARE")]
    pub(crate) mislabeled: Option<f64>,
    /// Pairs and completions: claims that a false caption gets wrong, as far as it makes so many; by default 1
    #[arg(long, value_name = "N")]
    pub(crate) mistakes: Option<NonZeroUsize>,
    /// Captions for training, or those held out for evaluation
    #[arg(long, value_enum, default_value_t = SplitName::Train)]
    pub(crate) split: SplitName,
    /// Prompts about pictures: ask these questions about the examples with the same seed, split and scenes, as `eval pope-questions shapes`
    /// wrote them, instead of asking for captions
    #[arg(long, value_name = "FILE")]
    pub(crate) questions: Option<PathBuf>,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// What `data shapes` writes. The text kinds are in TRL's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapesKind {
    /// Images with captions
    Images,
    /// A scene as text, a true caption and a false one: prompt, chosen, rejected
    Pairs,
    /// A scene as text and a caption: prompt, completion
    Sft,
    /// A scene as text: prompt
    Prompts,
    /// Pictures with a caption and an answer to a question each: images, prompt, completion
    VlmSft,
    /// Pictures to describe, or to answer questions about: images, prompt
    VlmPrompts,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SplitName {
    Train,
    HeldOut,
}

#[derive(Debug, Args)]
pub(crate) struct ImageBuildArguments {
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    /// Who judges: verifier, or a TOML file that describes a judge
    #[arg(long, value_name = "NAME|FILE", default_value = "verifier")]
    pub(crate) judge: Judge,
    /// File with one prompt a line, or data of any layout of images (.json, .jsonl, .parquet) for its different prompts; by default
    /// training captions of the shapes world
    #[arg(long, value_name = "FILE", conflicts_with = "scenes")]
    pub(crate) prompts: Option<PathBuf>,
    /// TOML file that narrows the captions of the shapes world
    #[arg(long, value_name = "FILE")]
    pub(crate) scenes: Option<PathBuf>,
    /// How many prompts; by default all of the file, or 512 captions
    #[arg(long)]
    pub(crate) num_prompts: Option<usize>,
    /// Images for each prompt
    #[arg(long, default_value_t = PairsConfig::default().candidates)]
    pub(crate) candidates: usize,
    /// Which image is rejected: the worst, the closest one that is at least --min-margin worse than the best, or a random one of
    /// those; or all pairs of a better and a worse image
    #[arg(long, value_name = "RULE", default_value_t)]
    pub(crate) rejected: PairRule,
    /// What a prompt's images become
    #[arg(long, value_enum, default_value_t = BuildKind::Pairs)]
    pub(crate) kind: BuildKind,
    /// Pairs whose scores are closer than this are dropped
    #[arg(long, default_value_t = PairsConfig::default().min_margin)]
    pub(crate) min_margin: f64,
    /// Pairs whose chosen image scores lower are dropped
    #[arg(long, default_value_t = PairsConfig::default().min_chosen)]
    pub(crate) min_chosen: f64,
    /// The JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// What `data build` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BuildKind {
    /// One image preferred over another
    Pairs,
    /// All images of a prompt with their scores
    Ranked,
}

#[derive(Debug, Args)]
pub(crate) struct CacheArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
}
