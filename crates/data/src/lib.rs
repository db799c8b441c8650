//! Preference records, the layouts people have them in, images and sampling order.
//!
//! This crate runs on the host alone: it knows files, JSON, images and safetensors, and no device. The trainer asks
//! it for records by index, in an order it also provides, and turns them into tensors itself.
//!
//! | layout | what lies on disk | record |
//! |---|---|---|
//! | [`Layout::Preference`] | JSON lines with `prompt`, `chosen_image`, `rejected_image` | [`ImagePair`] |
//! | [`Layout::ImageCaption`] | JSON lines with `prompt`, `image` | [`ImageCaption`] |
//! | [`Layout::Ranked`] | JSON lines with `prompt`, `responses: [{image, score}]` | [`RankedImages`] |
//! | [`Layout::Unpaired`] | JSON lines with `prompt`, `image`, `label` | [`ImageLabel`] |
//! | [`Layout::PickAPic`] | Parquet of Pick-a-Pic v1 and v2, Pick-Style, Pick-Safety | [`ImagePair`] |
//! | [`Layout::Hpdv2`] | `train.json` and `test.json` of HPD v2 | [`ImagePair`], [`RankedImages`] |
//! | [`Layout::ImageRewardDb`] | JSON or Parquet of `ImageRewardDB` | [`RankedImages`] |
//! | [`Layout::RichHf`] | RichHF-18K joined with its images | [`ImageLabel`] |
//! | [`Layout::SpoPrompts`] | prompts of SPO | [`ImagePrompt`] |
//! | [`Layout::LatentPairs`] | safetensors shards of latents and text states | a row of [`LatentPairs`] |
//! | [`Layout::Preference`] | JSON with TRL's `prompt`, `chosen`, `rejected` | [`TextPair`] |
//! | [`Layout::Unpaired`], [`Layout::Ranked`], [`Layout::Sft`], [`Layout::PromptOnly`] | JSON | [`UnpairedText`], [`RankedText`], [`TextSample`], [`TextPrompt`] |
//! | [`Layout::LlamaFactory`], [`Layout::MsSwift`], [`Layout::Axolotl`], [`Layout::Openrlhf`], [`Layout::Hh`] | JSON of other trainers | the same |
//! | [`Layout::Llava`], [`Layout::RlhfV`], [`Layout::RlaifV`], [`Layout::Povid`], [`Layout::MiaDpo`], [`Layout::ReAlign`], [`Layout::HaDpo`] | data about images, as published | [`TextSample`], [`TextPair`] |
//!
//! Records of text may show images, which have their places in the prompt: see [`ContentBlock::Image`] and [`IMAGE_PLACEHOLDERS`].
//! Images and latents are read by [`Dataset`], text by [`TextDataset`]; an [`Encoder`] turns text into tokens. [`lint()`] and
//! [`lint_images`] say what is doubtful, [`convert()`] and [`convert_images`] write any layout as ours.
//!
//! Whatever a user can get wrong is an [`Error`] that names the file, the row, the key, what was found and what was
//! expected. Nothing here panics on the contents of a file.
//!
//! ```
//! use diptych_data::{Dataset, ImagePair, ImageSource, Layout, write_pairs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("pairs.jsonl");
//! let [red, blue] = [[255, 0, 0], [0, 0, 255]].map(|color| image::RgbImage::from_pixel(8, 8, image::Rgb(color)));
//! let pair = ImagePair::new("0", "a red square", ImageSource::from_image(&red)?, ImageSource::from_image(&blue)?);
//! write_pairs(&file, &[pair])?;
//!
//! let dataset = Dataset::load(&[file], Layout::Auto)?;
//! assert_eq!((dataset.records(), dataset.len()), (diptych_data::RecordKind::ImagePair, 1));
//! assert!(matches!(dataset, Dataset::Pairs(pairs) if pairs[0].decode()?.0 == red));
//! # Ok(())
//! # }
//! ```

mod convert;
mod dataset;
mod detect;
mod error;
mod files;
mod hash;
mod host_tensor;
mod images;
mod inspect;
mod json;
mod json_lines;
mod latent_pairs;
mod layout;
mod message;
mod nearest;
mod order;
mod pair_rule;
mod read_policy;
mod record_kind;
mod row;
mod rows;
mod shard;
mod table_cell;
mod text;
mod text_dataset;
mod text_layout;
mod text_record;
mod write;

pub use convert::{Conversion, DropReason, DroppedRow, ImageConversion, PairRows, convert, convert_images};
pub use dataset::Dataset;
pub use error::{Error, Result, RowProblem, ShardProblem};
pub use files::DataFiles;
pub use hash::{ContentHash, FileHash};
pub use host_tensor::HostTensor;
pub use images::*;
pub use inspect::{
    FieldSummary, Inspection, LengthSummary, MAX_PROBLEMS, Problem, PromptSummary, RecordPreview, ScoreSummary,
    Severity, SizeCount, TensorSummary, inspect,
};
pub use json_lines::MAX_LINE_BYTES;
pub use latent_pairs::{LatentPairs, LatentTensors};
pub use layout::Layout;
pub use message::{CharSpan, Completion, Content, ContentBlock, IMAGE_PLACEHOLDERS, Message, Prompt, Text, TextKind};
pub use order::shuffled_indices;
pub use pair_rule::{PairRule, PairSelection};
pub use read_policy::{LeftOut, OnError, ReadPolicy, ReadReport, TiePolicy};
pub use record_kind::RecordKind;
pub use table_cell::TableCell;
pub use text::*;
pub use text_dataset::{TextDataset, unpair};
pub use text_layout::extract_prompt::extract_prompt;
pub use text_layout::image_places::conversation;
pub use text_record::{RankedText, SampleBody, ScoredText, TextPair, TextPrompt, TextSample, UnpairedText};
pub use write::{write_captions, write_latent_pairs, write_pairs, write_ranked, write_text};
