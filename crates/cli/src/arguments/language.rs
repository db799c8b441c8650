//! Arguments of commands that language models have.

use std::path::PathBuf;

use clap::Args;
use diptych_data::{Layout, OnError};
use diptych_diffusion::sampler::SamplerKind;
use diptych_eval::{AgreementTies, Judge};
use diptych_tensor::DeviceChoice;

use super::{NumberFormat, one_of};

#[derive(Debug, Args)]
pub(crate) struct GenerateArguments {
    /// Directory in diffusers layout, or a language or vision-language model in transformers' layout
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter in PEFT, diffusers or kohya format
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// A prompt; may be repeated
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present = "prompts")]
    pub(crate) prompt: Vec<String>,
    /// File with one prompt a line, or with rows that have a prompt, for vision-language models also images
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// An image that every --prompt shows; may be repeated. Its place is at <image>, else before the words in a conversation
    #[arg(long, value_name = "FILE", requires = "prompt")]
    pub(crate) image: Vec<PathBuf>,
    /// Directory for the images and their captions.jsonl, or for answers.jsonl
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The only source of randomness
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Images or answers computed together
    #[arg(long, default_value_t = 16)]
    pub(crate) batch_size: usize,
    /// auto, cpu, cuda[:n] or metal
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
    #[command(flatten, next_help_heading = "Images")]
    pub(crate) images: ImageOptions,
    #[command(flatten, next_help_heading = "Answers")]
    pub(crate) texts: TextOptions,
}

/// How images are sampled.
#[derive(Debug, Args)]
pub(crate) struct ImageOptions {
    /// Denoising steps; by default 20
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Classifier-free guidance scale, 1 = none; by default 5
    #[arg(long)]
    pub(crate) guidance: Option<f64>,
    /// The sampler; by default the one that the model's scheduler is made for
    #[arg(long, value_parser = one_of::<SamplerKind, _>(SamplerKind::NAMES))]
    pub(crate) sampler: Option<SamplerKind>,
    /// Fresh noise in every step, for ddim (0 to 1) and flow_euler; by default 0, none
    #[arg(long)]
    pub(crate) eta: Option<f64>,
    /// Height of the images in pixels; by default what the model was made for
    #[arg(long, value_name = "PIXELS")]
    pub(crate) height: Option<u32>,
    /// Width of the images in pixels; by default what the model was made for
    #[arg(long, value_name = "PIXELS")]
    pub(crate) width: Option<u32>,
    /// Adapter to lead away from: guidance takes the prediction without the prompt from the model with this one
    #[arg(long, value_name = "PATH")]
    pub(crate) negative_adapter: Option<PathBuf>,
    /// Who the images are for, of the users of --adapter; several with weights are mixed, as in --user ann=0.5 --user bob=0.5
    #[arg(long, value_name = "NAME[=WEIGHT]", value_parser = user)]
    pub(crate) user: Vec<WeightedUser>,
}

/// A user, and how much of them.
#[derive(Debug, Clone)]
pub(crate) struct WeightedUser {
    pub(crate) name: String,
    pub(crate) weight: f64,
}

fn user(text: &str) -> Result<WeightedUser, String> {
    let (name, weight) = match text.rsplit_once('=') {
        None => (text, 1.0),
        Some((name, weight)) => match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() => (name, weight),
            _ => return Err(format!("the weight is {weight}, expected a finite number")),
        },
    };
    if name.is_empty() {
        return Err("expected NAME or NAME=WEIGHT".to_owned());
    }
    Ok(WeightedUser {
        name: name.to_owned(),
        weight,
    })
}

impl ImageOptions {
    /// One of them that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--steps", self.steps.is_some()),
            ("--guidance", self.guidance.is_some()),
            ("--sampler", self.sampler.is_some()),
            ("--eta", self.eta.is_some()),
            ("--height", self.height.is_some()),
            ("--width", self.width.is_some()),
            ("--negative-adapter", self.negative_adapter.is_some()),
            ("--user", !self.user.is_empty()),
        ])
    }
}

/// How answers are sampled.
#[derive(Debug, Args)]
pub(crate) struct TextOptions {
    /// Tokens of an answer, at most; by default 256
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Divides the logits, 0 = always the likeliest token; by default 1
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Only the likeliest tokens that together have this probability; by default 1, all
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Only so many of the likeliest tokens; by default 0, all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Makes tokens that are there already less likely; by default 1, no
    #[arg(long, value_name = "FACTOR")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Render plain prompts by the chat template, as what a user says
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the system says before
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Number format of the network; by default f32
    #[arg(long, value_enum)]
    pub(crate) precision: Option<NumberFormat>,
}

impl TextOptions {
    /// One of them that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--max-new-tokens", self.max_new_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--chat", self.chat),
            ("--precision", self.precision.is_some()),
        ])
    }
}

pub(super) fn first_given(options: &[(&'static str, bool)]) -> Option<&'static str> {
    options.iter().find(|(_, is_given)| *is_given).map(|(name, _)| *name)
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArguments {
    /// Language model in transformers' layout
    #[arg(long, value_name = "DIR", required_unless_present = "judge")]
    pub(crate) model: Option<PathBuf>,
    /// Adapter of the model, a PEFT directory
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// Another language model, or another adapter of the model; by default the model without --adapter
    #[arg(long, value_name = "PATH")]
    pub(crate) reference: Option<PathBuf>,
    /// Who judges images: verifier, or a TOML file that describes a judge. Takes the place of --model
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["model", "adapter", "reference", "beta", "rules", "max_len"])]
    pub(crate) judge: Option<Judge>,
    /// Judges: what becomes of ties when labels are compared with scores
    #[arg(long, requires = "judge", default_value_t, value_parser = one_of::<AgreementTies, _>(AgreementTies::NAMES))]
    pub(crate) ties: AgreementTies,
    /// Judges: scores no further apart than this are a tie
    #[arg(long, requires = "judge", value_name = "MARGIN", default_value_t = 0.0)]
    pub(crate) tie_margin: f64,
    /// Judges: what becomes of rows that are wrong and of images that cannot be read
    #[arg(long, requires = "judge", value_name = "fail|skip", default_value = "fail")]
    pub(crate) on_error: OnError,
    /// Files or directories of pairs, of ranked or labelled answers, or of texts; with --judge of image pairs or captioned images
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// How records are laid out; see diptych list layouts
    #[arg(long, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    #[command(flatten)]
    pub(crate) encoding: EncodingArguments,
    /// Factor of the log-ratio in implicit rewards; by default 0.1
    #[arg(long)]
    pub(crate) beta: Option<f64>,
    /// Records computed together
    #[arg(long, default_value_t = 8)]
    pub(crate) batch_size: usize,
    /// Number format of the networks
    #[arg(long, value_enum, default_value_t = NumberFormat::F32)]
    pub(crate) precision: NumberFormat,
    /// auto, cpu, cuda[:n] or metal
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
    /// The JSONL file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// How rows become tokens.
#[derive(Debug, Args)]
pub(crate) struct EncodingArguments {
    /// Tokens of a prompt with its answer, at most, as data.max_len of a recipe; by default what a recipe has
    #[arg(long, value_name = "N")]
    pub(crate) max_len: Option<usize>,
    /// Another rule of tokenization, as a key of a recipe's [data.encoding]; may be repeated
    #[arg(long = "encoding", value_name = "KEY=VALUE")]
    pub(crate) rules: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::user;

    #[test]
    fn users_have_a_weight_of_one_unless_they_are_given_one() {
        let read = |text| user(text).map(|user| (user.name, user.weight));
        assert_eq!(read("ann"), Ok(("ann".to_owned(), 1.0)));
        assert_eq!(read("ann=0.5"), Ok(("ann".to_owned(), 0.5)));
        assert_eq!(read("a=b=-2"), Ok(("a=b".to_owned(), -2.0)));
        for wrong in ["", "=1", "ann=", "ann=much", "ann=inf"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
