//! Arguments of `diptych data build`.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum};
use diptych_data::{Layout, OnError};
use diptych_tensor::DeviceChoice;

use super::{ImageBuildArguments, NumberFormat};

/// Images by a pipeline and a judge, or answers by a vision-language model and one of its recipes.
#[derive(Debug)]
pub(crate) enum BuildArguments {
    Images(Box<ImageBuildArguments>),
    Answers(Box<BuildRecipeName>),
}

impl Args for BuildArguments {
    fn augment_args(command: Command) -> Command {
        BuildRecipeName::augment_subcommands(ImageBuildArguments::augment_args(command))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_help_heading("Recipes for vision-language models")
            .subcommand_value_name("RECIPE")
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for BuildArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(if matches.subcommand().is_some() {
            Self::Answers(Box::new(BuildRecipeName::from_arg_matches(matches)?))
        } else {
            Self::Images(Box::new(ImageBuildArguments::from_arg_matches(matches)?))
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How a vision-language model makes pairs of its own answers.
#[derive(Debug, Subcommand)]
pub(crate) enum BuildRecipeName {
    /// Chosen: the answer to an image. Rejected: the answer to the same image with noise (SeVa)
    Seva(SevaArguments),
    /// Chosen: a careful description. Rejected: one that was asked to imagine, or of a spoiled image (STIC, stage 1)
    Stic(SticArguments),
    /// Chosen: a row's answer. Rejected: the same with masked segments completed under a similar image, which comes along (Re-Align, rDPO)
    ReAlign(ReAlignArguments),
    /// Questions about one of several images. Chosen: the row's answer. Rejected: the model's, where it looked elsewhere (MIA-DPO)
    MiaDpo(MiaDpoArguments),
    /// Chosen: the answer to a video, a list of frames. Rejected: the answer to it with frames dropped, reversed or shuffled (TEMPLE)
    Temple(TempleArguments),
    /// The model answers and looks again. Chosen: the right one of both answers. Rejected: the wrong one (SCL)
    SelfCorrection(JudgedArguments),
    /// Several answers. Chosen: one with fewer refuted claims. Rejected: one with more (RLAIF-V)
    RlaifV(JudgedArguments),
    /// Several answers. Chosen: one with the best claim on each of its topics. Rejected: with the worst (TPO)
    Tpo(JudgedArguments),
    /// Several answers to a video. Chosen and rejected: the best and the worst to a judge that reads a caption of it (LLaVA-Hound)
    LlavaHound(CaptionedArguments),
}

#[derive(Debug, Args)]
pub(crate) struct SevaArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) frames: FrameArguments,
    /// Step of the noise, 0 to 999; the paper uses 500 and 800
    #[arg(long, value_name = "STEP", default_value_t = 500)]
    pub(crate) step: u32,
}

#[derive(Debug, Args)]
pub(crate) struct SticArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) frames: FrameArguments,
    #[command(flatten)]
    pub(crate) format: RequestFormatArguments,
    /// TOML file with other values of imagined, low_resolution, side, brightness, hue and [requests]: short, detailed, imagined
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReAlignArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) format: RequestFormatArguments,
    /// How masked segments are completed: by a request, or in-place, which needs no model that follows requests
    #[arg(long, value_enum, default_value_t = CompletionName::Request)]
    pub(crate) completion: CompletionName,
    /// CLIP in transformers' layout that says which images are alike; by default the model's own tower
    #[arg(long, value_name = "DIR")]
    pub(crate) embedder: Option<PathBuf>,
    /// TOML file with other values of mask, max_segment, max_similarity, and of request and mark for --completion request
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionName {
    Request,
    InPlace,
}

#[derive(Debug, Args)]
pub(crate) struct MiaDpoArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    /// How images come together
    #[arg(long, value_enum, default_value_t = MultiImageName::Sequence)]
    pub(crate) kind: MultiImageName,
    /// Images together: 2 to 16 in a sequence, 2, 3, 4, 6 or 9 in a collage, 2 for a picture in a picture
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) num_images: usize,
    /// TOML file with other values of layer, max_attention, min_perplexity, max_answer and pointer, of label for a sequence, of cell for a
    /// collage, of share for a picture in a picture
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MultiImageName {
    Sequence,
    Collage,
    PictureInPicture,
}

#[derive(Debug, Args)]
pub(crate) struct TempleArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) frames: FrameArguments,
    /// TOML file with other values of disturbances, magnitudes, clip_frames, max_length_ratio (of reverse and shuffle), and other_images: none, or
    /// disturbed, with which the disturbed frames come along as images to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct JudgedArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) frames: FrameArguments,
    #[command(flatten)]
    pub(crate) format: RequestFormatArguments,
    #[command(flatten)]
    pub(crate) judge: BuildJudgeArguments,
    /// TOML file with other values; self-correction: request, check, and judgment for check = "judge"; rlaif-v: num_answers, min_gap, max_pairs,
    /// lengths and [claims]; tpo: num_answers, likeness, min_gap and [claims]
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CaptionedArguments {
    #[command(flatten)]
    pub(crate) build: AnswerBuildArguments,
    #[command(flatten)]
    pub(crate) frames: FrameArguments,
    #[command(flatten)]
    pub(crate) format: RequestFormatArguments,
    #[command(flatten)]
    pub(crate) judge: BuildJudgeArguments,
    /// JSONL file with id and caption: what the judge reads in the place of a row's frames
    #[arg(long, value_name = "FILE")]
    pub(crate) captions: PathBuf,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub(crate) num_answers: usize,
    /// TOML file with other values of judgment, scale and limit
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

/// Of recipes whose rows may show several images.
#[derive(Debug, Args)]
pub(crate) struct FrameArguments {
    /// Frames of each video, at most: evenly spaced ones
    #[arg(long, value_name = "N")]
    pub(crate) max_frames: Option<usize>,
}

/// Of recipes that ask the model more than the rows do.
#[derive(Debug, Args)]
pub(crate) struct RequestFormatArguments {
    /// How words become a prompt of --model: the words at {}, the images at <image>; by default its chat template
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt_format: Option<String>,
    /// What the system says before, in a chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_format")]
    pub(crate) system: Option<String>,
}

/// Of recipes that ask for judgments.
#[derive(Debug, Args)]
pub(crate) struct BuildJudgeArguments {
    /// Vision-language model that judges; by default the one that answers
    #[arg(long, value_name = "DIR")]
    pub(crate) judge: Option<PathBuf>,
    /// How words become a prompt of --judge: the words at {}, the images at <image>; by default its own chat template
    #[arg(long, value_name = "TEXT", requires = "judge")]
    pub(crate) judge_prompt_format: Option<String>,
    /// What the system says before, in the judge's chat template
    #[arg(
        long,
        value_name = "TEXT",
        requires = "judge",
        conflicts_with = "judge_prompt_format"
    )]
    pub(crate) judge_system: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnfinishedName {
    /// They are no side of a pair, and counted
    Skip,
    /// They are used like the others, as the published programs do
    Keep,
}

/// What every recipe for vision-language models needs.
#[derive(Debug, Args)]
pub(crate) struct AnswerBuildArguments {
    /// Vision-language model in transformers' layout
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter of the model, a PEFT directory
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// Rows with prompts that show images, in any layout of text
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// How the rows are laid out; see diptych list layouts
    #[arg(long, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    /// The first rows only
    #[arg(long, value_name = "N")]
    pub(crate) num_rows: Option<usize>,
    /// No more pairs than these: a random part of those that were made
    #[arg(long, value_name = "N")]
    pub(crate) max_pairs: Option<usize>,
    /// What becomes of rows that cannot be used
    #[arg(long, value_name = "fail|skip", default_value = "fail")]
    pub(crate) on_error: OnError,
    /// Tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) max_new_tokens: usize,
    /// What becomes of answers that did not end within --max-new-tokens
    #[arg(long, value_enum, default_value_t = UnfinishedName::Skip)]
    pub(crate) unfinished: UnfinishedName,
    /// Divides the logits, 0 = always the likeliest token; by default as the recipe's paper
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Only the likeliest tokens that together have this probability; by default 1, all
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Answers computed together, and rows between two marks from which a stopped call goes on
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) batch_size: usize,
    /// Number format of the network
    #[arg(long, value_enum, default_value_t = NumberFormat::F32)]
    pub(crate) precision: NumberFormat,
    /// auto, cpu, cuda[:n] or metal
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
    /// The JSONL file to write, with the images in images/ beside it; what is done of it is kept in FILE.building
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
