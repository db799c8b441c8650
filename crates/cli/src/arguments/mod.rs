//! The command line.

#![expect(clippy::doc_markdown, reason = "the comments are help texts, printed as they are")]

mod build;
mod data;
mod hallucination;
mod language;

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use diptych_diffusion::sampler::SamplerKind;
use diptych_eval::Judge;
use diptych_tensor::{DType, DeviceChoice};

pub(crate) use self::build::{
    AnswerBuildArguments, BuildArguments, BuildJudgeArguments, BuildRecipeName, CompletionName, JudgedArguments,
    MiaDpoArguments, MultiImageName, ReAlignArguments, RequestFormatArguments, UnfinishedName,
};
pub(crate) use self::data::{
    BuildKind, CacheArguments, ConvertArguments, DataCommand, ImageBuildArguments, InspectArguments, LintArguments,
    ShapesArguments, ShapesKind, SplitName,
};
pub(crate) use self::hallucination::{
    AmberArguments, AmberPart, AnsweringArguments, ArticleName, BenchmarkOptions, ChairArguments, CocoTruth,
    ExtractedName, HalbenchArguments, HallusionArguments, JudgeArguments, MmhalArguments, NamingName, NounsName,
    PopeArguments, PopeObjectsArguments, PopeQuestionsArguments, PopeShapesArguments, PopeSource, ResponsesName,
};
pub(crate) use self::language::{EncodingArguments, GenerateArguments, ScoreArguments, TextOptions};

/// Align diffusion and language models to preferences.
#[derive(Debug, Parser)]
#[command(name = "diptych", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train as a recipe says
    Train(TrainArguments),
    /// Say what a run will need: memory, time and disk, before anything is loaded
    Plan(PlanArguments),
    /// Generate images or answers from prompts
    Generate(GenerateArguments),
    /// Score given answers under a language model and a reference, or given images by a judge
    Score(ScoreArguments),
    /// Run a benchmark
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Put several runs on one page: what differs, what they came to, their curves
    Compare(CompareArguments),
    /// Look at, make and convert data
    #[command(subcommand)]
    Data(DataCommand),
    /// Write an adapter in another format, or merge it into its model
    Export(ExportArguments),
    /// Run one network on given tensors, to check a port tensor by tensor
    Forward(ForwardArguments),
    /// Train, stop, resume; check that everything agrees bit for bit
    VerifyResume(VerifyArguments),
    /// List what is built in
    List(ListArguments),
    /// Show devices, features and versions
    Doctor,
}

/// A recipe and what is changed in it.
#[derive(Debug, Args)]
pub(crate) struct RecipeArguments {
    /// The recipe, a TOML file
    pub(crate) recipe: PathBuf,
    /// Change one key of the recipe; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// auto, cpu, cuda[:n] or metal; same as --set run.device=…
    #[arg(long)]
    pub(crate) device: Option<DeviceChoice>,
    /// The run directory; same as --set run.output=…
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Continue the run in the run directory from its newest checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Read and resolve everything, print the plan, train nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Optimizer steps of each run; it is interrupted in the middle
    #[arg(long, default_value_t = 6)]
    pub(crate) steps: u64,
}

/// Denoising steps where none are given.
pub(crate) const DEFAULT_STEPS: usize = 20;
/// Classifier-free guidance where none is given.
pub(crate) const DEFAULT_GUIDANCE: f64 = 5.0;

/// A pipeline with an optional adapter, and how to sample from it.
#[derive(Debug, Args)]
pub(crate) struct SamplingArguments {
    /// Directory in diffusers layout
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter in PEFT, diffusers or kohya format
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// Adapter to lead away from: guidance takes the prediction without the prompt from the model with this one
    #[arg(long, value_name = "PATH")]
    pub(crate) negative_adapter: Option<PathBuf>,
    /// Denoising steps
    #[arg(long, default_value_t = DEFAULT_STEPS)]
    pub(crate) steps: usize,
    /// Classifier-free guidance scale; 1 = none
    #[arg(long, default_value_t = DEFAULT_GUIDANCE)]
    pub(crate) guidance: f64,
    /// The sampler
    #[arg(long, default_value_t, value_parser = one_of::<SamplerKind, _>(SamplerKind::NAMES))]
    pub(crate) sampler: SamplerKind,
    /// Fresh noise in every step, for ddim (0 to 1) and flow_euler; 0 = none
    #[arg(long, default_value_t = 0.0)]
    pub(crate) eta: f64,
    /// Height of the images in pixels; by default what the model was made for
    #[arg(long, value_name = "PIXELS")]
    pub(crate) height: Option<u32>,
    /// Width of the images in pixels; by default what the model was made for
    #[arg(long, value_name = "PIXELS")]
    pub(crate) width: Option<u32>,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Images computed together
    #[arg(long, default_value_t = 16)]
    pub(crate) batch_size: usize,
    /// auto, cpu, cuda[:n] or metal
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// How much better a judge finds one model's images than another's, on the same prompts and seeds
    WinRate(WinRateArguments),
    /// Single abilities on the shapes world: objects, numbers, colors, places, and which color belongs to what
    ShapesGeneval(GenevalArguments),
    /// A win rate from the verdicts of a judge of pairs, asked in both orders
    Verdicts(VerdictsArguments),
    /// Is there a … in the image? POPE's questions, answered by a model or in files
    Pope(PopeArguments),
    /// Make POPE's questions from what is in each image
    PopeQuestions(PopeQuestionsArguments),
    /// Objects in captions that are not in the image, by CHAIR's rules, or of scenes of the shapes world; a model's, or from a file
    Chair(ChairArguments),
    /// CHAIR on objects that a language model extracted: Object HalBench, answered by a model or in a file
    ObjectHalbench(HalbenchArguments),
    /// AMBER's descriptions and questions, answered by a model or in a file
    Amber(AmberArguments),
    /// MMHal-Bench: let a model answer it, then score the answers by a judge's replies
    Mmhal(MmhalArguments),
    /// HallusionBench: let a model answer it, then score the answers by a judge's verdicts
    Hallusion(HallusionArguments),
}

#[derive(Debug, Args)]
pub(crate) struct WinRateArguments {
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    /// The model to compare with; by default --model without its adapter
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
    /// Who judges: verifier, or a TOML file that describes a judge
    #[arg(long, value_name = "NAME|FILE", default_value = "verifier")]
    pub(crate) judge: Judge,
    /// File with one prompt a line; by default held-out captions of the shapes world
    #[arg(long, value_name = "FILE", conflicts_with = "scenes")]
    pub(crate) prompts: Option<PathBuf>,
    /// TOML file that narrows the captions of the shapes world
    #[arg(long, value_name = "FILE")]
    pub(crate) scenes: Option<PathBuf>,
    /// How many prompts; by default all of the file, or 256 captions
    #[arg(long)]
    pub(crate) num_prompts: Option<usize>,
    /// Directory for the result and its images
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct GenevalArguments {
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    /// Prompts of each of the six kinds; kinds that have fewer give all they have
    #[arg(long, default_value_t = 32)]
    pub(crate) per_category: usize,
    /// Images of each prompt
    #[arg(long, default_value_t = 4)]
    pub(crate) images_per_prompt: usize,
    /// Directory for the result and its images
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct VerdictsArguments {
    /// JSONL file with id, shown_first (base or aligned) and verdict (first, second or tie); every pair in both orders
    #[arg(long, value_name = "FILE")]
    pub(crate) verdicts: PathBuf,
    /// The only source of randomness, of the resampling
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The JSON file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArguments {
    /// Run directories, at least two
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "comparison.html")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Adapter in PEFT, diffusers or kohya format; merged may do without, which only copies the model
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// The format to write
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// The pipeline or language model to merge into; only for merged
    #[arg(long, value_name = "DIR", required_if_eq("format", "merged"))]
    pub(crate) model: Option<PathBuf>,
    /// Number format of a merged model's weights; by default the one they are stored in
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<NumberFormat>,
    /// Directory (peft, merged) or file (diffusers, kohya) to write
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A directory with adapter_config.json and adapter_model.safetensors
    Peft,
    /// One pytorch_lora_weights.safetensors
    Diffusers,
    /// One safetensors file with kohya's names
    Kohya,
    /// A whole model with the adapter added to its weights
    Merged,
}

/// How numbers are stored in a file, or computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NumberFormat {
    F32,
    F16,
    Bf16,
}

impl From<NumberFormat> for DType {
    fn from(format: NumberFormat) -> Self {
        match format {
            NumberFormat::F32 => Self::F32,
            NumberFormat::F16 => Self::F16,
            NumberFormat::Bf16 => Self::BF16,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ForwardArguments {
    /// Directory in diffusers layout, or a language model in transformers' layout: input_ids, attention_mask → logits
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter in PEFT, diffusers or kohya format
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// Which part of a pipeline; by default unet
    #[arg(long, value_enum)]
    pub(crate) component: Option<Component>,
    /// Input tensors, named as the Python module names them
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// Where the output tensors go
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// auto, cpu, cuda[:n] or metal
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    /// sample, timestep, encoder_hidden_states, for SDXL text_embeds and time_ids → sample
    Unet,
    /// the inputs of diffusers' forward pass of SD3, Flux or PixArt → sample
    Transformer,
    /// sample → latent_mean, latent_logvar, decoded
    Vae,
    /// input_ids → last_hidden_state, penultimate_hidden_state, pooler_output, where there is a projection text_embeds
    #[value(name = "text_encoder")]
    TextEncoder,
    /// The same of SDXL's second text encoder
    #[value(name = "text_encoder_2")]
    TextEncoder2,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// What to list
    #[arg(value_enum)]
    pub(crate) what: Listing,
    /// One of the datasets or models: all that its card says, with the section of a recipe that reads it
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Listing {
    Objectives,
    Methods,
    Models,
    Datasets,
    Benchmarks,
    Layouts,
}

/// Reads one of a closed set of names; the help lists them.
fn one_of<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}
