//! Preference alignment for image diffusion models, vision-language models and language models.
//!
//! This crate only re-exports the others under one roof; each has its own documentation.
//!
//! | module | what it is for |
//! |---|---|
//! | [`core`] | objectives: pure functions from scores to losses |
//! | [`data`] | preference records in the layouts people have |
//! | [`diffusion`] | image diffusion: pipelines, samplers, methods, whole runs |
//! | [`eval`] | judges and win rates |
//! | [`llm`] | language models: log-probabilities, references, methods, whole runs |
//! | [`models`] | trainable networks, LoRA adapters, diffusers directories |
//! | [`shapes`] | the embedded world, with a verifier that knows the truth |
//! | [`tensor`] | devices, randomness, parameters, operations, optimizers |
//! | [`train`] | the one training loop, recipes, checkpoints, run directories |
//! | [`vlm`] | vision-language models: images in prompts, methods on them, whole runs |

pub use diptych_core as core;
pub use diptych_data as data;
pub use diptych_diffusion as diffusion;
pub use diptych_eval as eval;
pub use diptych_llm as llm;
pub use diptych_models as models;
pub use diptych_shapes as shapes;
pub use diptych_tensor as tensor;
pub use diptych_train as train;
pub use diptych_vlm as vlm;
