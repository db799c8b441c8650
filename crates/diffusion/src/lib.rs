//! Noise schedules, denoising errors, samplers and alignment methods for image diffusion.
//!
//! A run starts from a [`Recipe`](diptych_train::Recipe) of the modality [`Diffusion`] and is done by [`run()`]; a program that
//! drives the loop itself takes a [`DiffusionMethod`] from [`prepare`] and hands it to [`diptych_train::train`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`schedule`] | the forward process: `scheduler_config.json`, noise levels, targets |
//! | [`sampler`] | DDPM, DDIM, Euler, DPM-Solver++, flow and consistency samplers, as distributions |
//! | [`trajectory`] | every step of a sampler: records, log-probabilities, differentiable tails |
//! | [`inversion`] | from latents back to noise |
//! | [`denoising`] | denoising errors: the score of an image |
//! | [`pipeline`] | pipelines in diffusers layout, [`generate()`] |
//! | [`method`] | how the numbers for an objective are obtained: from stored images, or from sampled ones |
//! | [`estimate()`] | what a run will need, before anything is loaded |
//! | [`rounds`] | sample, judge, build records, train, and again |
//! | [`pairs`] | preference pairs that a model makes of itself |
//! | [`images`] | pixels to tensors and back, grids |
//! | [`shapes_pipeline`] | untrained tiny networks for the embedded world: a pipeline, and a CLIP to judge it |

pub mod denoising;
mod error;
mod estimate;
mod evaluation;
pub mod images;
pub mod inversion;
pub mod method;
mod modality;
pub mod pairs;
pub mod pipeline;
pub mod rounds;
mod run;
pub mod sampler;
pub mod schedule;
pub mod shapes_pipeline;
mod stage;
mod tensors;
pub mod trajectory;

pub use error::{Error, Result};
pub use estimate::estimate;
pub use evaluation::{Contest, Judged, Side, check_evaluation, contest, contest_with, sampling_of};
pub use method::{DiffusionMethod, MethodConfig, Reward, cache_records, prepare, prepare_with_reward};
pub use modality::{Adapter, Diffusion, SamplesConfig};
pub use pairs::{PairsConfig, build_pairs, build_ranked};
pub use pipeline::{Conditioning, NetworkOptions, Pipeline, SampleConfig, generate, generate_with};
pub use rounds::{RoundsConfig, RoundsOutcome, run_rounds};
pub use run::{Outcome, run};
pub use stage::Stage;
