//! CLIP: both halves, their projections, and what is made of them.

mod config;
mod model;
mod open_clip;
mod time_conditioned;

pub use self::config::ClipConfig;
pub use self::model::{ClipModel, normalized};
pub use self::open_clip::{from_open_clip, read_open_clip_config, vit_h_14};
pub use self::time_conditioned::{TimeConditionedClip, with_neutral_time};
