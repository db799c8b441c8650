//! The embedded world: scenes, captions, questions, renderer and verifier.

mod caption;
mod claims;
mod color;
mod config;
mod error;
mod example;
mod layout;
mod named;
mod question;
mod relation;
mod render;
mod report;
mod scene;
mod shape;
mod verifier;

pub use caption::{CaptionConfig, CaptionStyle};
pub use claims::{Claims, Group, MAX_WORDS, RelationClaim, vocabulary};
pub use color::{Background, Color};
pub use config::SceneConfig;
pub use error::{Error, Result};
pub use example::{Example, Split};
pub use question::{Answer, Question, QuestionKind};
pub use relation::{RELATION_MARGIN, Relation};
pub use render::render;
pub use report::{ClaimKind, ClaimResult, Report};
pub use scene::{MAX_OBJECTS, Object, Scene};
pub use shape::{Shape, Size};
pub use verifier::{ReadObject, Reading, Verifier};
