//! The sections every modality's recipe has. Names and defaults are fixed: users' files depend on them.

use std::path::PathBuf;

use diptych_data::{EncodingConfig, Layout, OnError, PairRule, TiePolicy};
use diptych_tensor::{DeviceChoice, Precision, Quantization};
use serde::{Deserialize, Serialize};

use super::checkpointing::GradientCheckpointing;

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The only source of randomness of training. `[samples]` and `[eval.*]` have their own, so that runs with other seeds are shown and judged
    /// alike.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Number format of frozen weights and activations.
    pub precision: Precision,
    /// The run directory, from the working directory.
    pub output: PathBuf,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            output: "runs/latest".into(),
        }
    }
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Directory with the model, in the layout it was published in.
    pub path: PathBuf,
    /// Keeps the frozen weights of a decoder's linear layers in 4 or 8 bits, under a LoRA adapter in f32 (`QLoRA`: Dettmers et al.,
    /// arXiv:2305.14314): `"nf4"`, `{ nf4 = { double = true } }` or `"int8"`; for text and text with images, on the CPU. Embeddings,
    /// norms, the head, and a vision tower with its projector stay as they are. It holds for every network of the run, a reference
    /// and what is evaluated among them. What a run writes is the adapter: `diptych export --format merged`, `generate` and `score`
    /// put it beside the weights as they were published. By default nothing is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files and directories, read in this order.
    pub path: OneOrMany,
    /// How records are laid out in them.
    #[serde(default)]
    pub layout: Layout,
    /// Whether each epoch goes through the records in an order of its own, rather than as they are.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens of a prompt with its response, at most; for text. The modality says what it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_len: Option<usize>,
    /// How rows become tokens; for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<EncodingConfig>,
    /// What becomes of rows that prefer neither side; for images. By default they are dropped, and counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ties: Option<TiePolicy>,
    /// What becomes of rows that are wrong and of images that cannot be read; for images. By default the first is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// Which images of a ranked list become pairs, where a method needs pairs; for images. By default the best against the worst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PairRule>,
    /// How much lower the score of a pair's rejected image must be; for ranked lists of images. By default any difference will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_margin: Option<f64>,
    /// Width and height that images are brought to, pixels; by default what the network was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Probability that the images of a record are mirrored left to right, all alike, from 0 to 1; drawn whenever a step takes the
    /// record. Between 0 and 1 both forms are encoded. By default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip: Option<f64>,
    /// How many parts of each image are encoded that are cut out at random, at the same place of all images of a record; whenever a step
    /// takes the record, one of them is drawn. By default one part, in the middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<u32>,
    /// Brings images to sizes that are like their own shapes, in place of one square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<BucketsConfig>,
    /// Width times height, in pixels, of the largest image that a text shows; for texts with images. By default what Pillow accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_image_area: Option<usize>,
    /// Frames of each video that a row has as a list of frames, at most: evenly spaced ones; for texts with images. By default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_frames: Option<usize>,
    /// How much memory, in MiB, may keep what was made of the images of texts: features of a tower that is frozen, pixels for one that
    /// is trained. What does not fit is made again whenever it is needed. By default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_memory: Option<u64>,
    /// Keeps what the frozen networks make of the images and prompts, for the next run; for images, and for the images of texts under a
    /// frozen tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheConfig>,
}

/// `[data.buckets]`: the shapes of SDXL's training (Podell et al., arXiv:2307.01952, appendix I), scaled to the area of the square of
/// [`DataConfig::resolution`]. All images of a record have one shape, and so have all records of a micro batch; the last micro batch of a
/// shape in an epoch may be smaller than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketsConfig {
    /// Sides are multiples of this, in pixels.
    pub multiple: u32,
}

impl Default for BucketsConfig {
    fn default() -> Self {
        Self { multiple: 64 }
    }
}

/// `[data.cache]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// The directory, from the working directory; made where there is none. What lies there is read back when everything it
    /// depends on is unchanged. Otherwise it is refused, or, where each image has a file of its own, not looked at.
    pub path: PathBuf,
}

impl DataConfig {
    /// The first key that is given and says something about images.
    pub fn key_of_images(&self) -> Option<&'static str> {
        let given = [
            ("data.ties", self.ties.is_some()),
            ("data.on_error", self.on_error.is_some()),
            ("data.pairs", self.pairs.is_some()),
            ("data.min_margin", self.min_margin.is_some()),
            ("data.resolution", self.resolution.is_some()),
            ("data.flip", self.flip.is_some()),
            ("data.crops", self.crops.is_some()),
            ("data.buckets", self.buckets.is_some()),
            ("data.max_image_area", self.max_image_area.is_some()),
            ("data.max_frames", self.max_frames.is_some()),
            ("data.image_memory", self.image_memory.is_some()),
            ("data.cache", self.cache.is_some()),
        ];
        given.into_iter().find(|(_, is_given)| *is_given).map(|(key, _)| key)
    }
}

fn yes() -> bool {
    true
}

/// One path, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a path or a list of paths")]
pub enum OneOrMany {
    /// `path = "a"`.
    One(PathBuf),
    /// `path = ["a", "b"]`.
    Many(Vec<PathBuf>),
}

impl OneOrMany {
    /// The paths.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

/// `[reference.*]`: what the policy is compared with.
///
/// Without the section it is `none` for objectives that need no reference, else `adapter_off` where the adapter can be
/// switched off, else `frozen`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ReferenceConfig {
    /// Nothing.
    None {},
    /// A frozen copy of the model at the start.
    Frozen {},
    /// The policy with its adapter switched off.
    AdapterOff {},
    /// Scores of the model at the start, computed once.
    Cached {
        /// Where they are kept, from the working directory. They are read back when everything they depend on is unchanged.
        /// Without a path they are computed at every start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
    },
    /// A copy that follows the policy (TR-DPO: Gorbatovski et al., arXiv:2404.09656): now and then it becomes
    /// `mixup_alpha · policy + (1 − mixup_alpha) · reference`, parameter by parameter. Of a LoRA adapter that mixes `A` and `B` each by
    /// itself, as TRL does, and not their products, of which the paper's mix of weights consists: use `[adapter.full]` for that, or
    /// a `mixup_alpha` of 1, with which both are the same.
    Ema {
        /// Share of the policy, in `(0, 1]`.
        #[serde(default = "mixup_alpha")]
        mixup_alpha: f64,
        /// Optimizer steps from one update to the next.
        #[serde(default = "sync_steps")]
        sync_steps: u64,
    },
    /// Another model, or another adapter on this one (Pre-DPO: Pan et al., arXiv:2504.15843).
    Checkpoint {
        /// The directory of a model or of a PEFT adapter.
        path: PathBuf,
    },
}

/// TRL's `ref_model_mixup_alpha`.
fn mixup_alpha() -> f64 {
    0.6
}

/// TRL's `ref_model_sync_steps`.
fn sync_steps() -> u64 {
    512
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        Self::None {}
    }
}

impl ReferenceConfig {
    /// The word in the recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None {} => "none",
            Self::Frozen {} => "frozen",
            Self::AdapterOff {} => "adapter_off",
            Self::Cached { .. } => "cached",
            Self::Ema { .. } => "ema",
            Self::Checkpoint { .. } => "checkpoint",
        }
    }
}

/// `[train]`. Exactly one of `steps` and `num_epochs` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Passes over the records; the last optimizer step is a whole one and may reach into the next pass.
    pub num_epochs: Option<f64>,
    /// Records a forward pass.
    pub micro_batch: usize,
    /// Forward passes an optimizer step.
    pub accumulation: usize,
    /// Optimizer steps from one logged row to the next.
    pub log_every: u64,
    /// Optimizer steps from one checkpoint to the next; 0: none, except when the run is stopped.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay; 0: all.
    pub keep_checkpoints: usize,
    /// Optimizer steps from one sample to the next; 0: none. Otherwise also at the end.
    pub sample_every: u64,
    /// Which activations are recomputed in the backward pass instead of being kept.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Decay of an exponential moving average of the parameters. Samples and `final/` then show the average.
    pub ema_decay: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: None,
            num_epochs: None,
            micro_batch: 8,
            accumulation: 1,
            log_every: 1,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            sample_every: 100,
            gradient_checkpointing: GradientCheckpointing::default(),
            ema_decay: None,
        }
    }
}

impl TrainConfig {
    /// Records an optimizer step.
    pub fn effective_batch(&self) -> u64 {
        self.micro_batch as u64 * self.accumulation as u64
    }

    /// Optimizer steps of a whole run over `num_records` records, `updates_per_batch` on each batch of them; 0 when neither `steps`
    /// nor `num_epochs` is given.
    pub fn num_steps(&self, num_records: usize, updates_per_batch: u64) -> u64 {
        match (self.steps, self.num_epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => {
                (epochs * num_records as f64 / self.effective_batch() as f64).ceil() as u64 * updates_per_batch
            }
            (None, None) => 0,
        }
    }
}

impl TrainConfig {
    /// The first value that is out of its range, or contradicts another: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        let at_least_1 = "a number, at least 1";
        match (self.steps, self.num_epochs) {
            (Some(_), Some(_)) => return Some(("num_epochs", "both `steps` and `num_epochs`".into(), "one of them")),
            (None, None) => return Some(("steps", "neither `steps` nor `num_epochs`".into(), "one of them")),
            (Some(0), None) => return Some(("steps", "0".into(), at_least_1)),
            (None, Some(epochs)) if !(epochs.is_finite() && epochs > 0.0) => {
                return Some(("num_epochs", epochs.to_string(), "a finite number above 0"));
            }
            _ => {}
        }
        if self.micro_batch == 0 {
            return Some(("micro_batch", "0".into(), at_least_1));
        }
        if self.accumulation == 0 {
            return Some(("accumulation", "0".into(), at_least_1));
        }
        if self.log_every == 0 {
            return Some(("log_every", "0".into(), at_least_1));
        }
        let decay = self.ema_decay.filter(|decay| !(0.0..1.0).contains(decay))?;
        Some(("ema_decay", decay.to_string(), "a number from 0 to below 1"))
    }
}
