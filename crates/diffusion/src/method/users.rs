//! Who preferred: users of records, told to the denoiser.
//!
//! Dang et al., "Personalized Preference Fine-tuning of Diffusion Models" (PPD), CVPR 2025, arXiv:2501.06655:
//!
//! ```text
//! L = -log s(-beta ((d(x_w; c, u) - d_ref(x_w; c)) - (d(x_l; c, u) - d_ref(x_l; c))))
//! ```
//!
//! with `d` the denoising error of the network that attends to the user `u` and `d_ref` that of the network without such attention. Our reading: the
//! reference is not told the user, because its layers for users would be the new ones, which change nothing when training begins.

use std::path::{Path, PathBuf};

use diptych_data::{Dataset, ImagePair};
use diptych_tensor::random::{Stream, generator};
use diptych_tensor::{Device, Tensor};
use diptych_train::{MicroBatch, Recipe};
use rand::Rng;

use super::config::UsersConfig;
use super::prepare::Preparation;
use super::trained::TrainedDenoiser;
use crate::modality::Diffusion;
use crate::pipeline::{USER_ATTENTION_FILE, UserEmbeddings};
use crate::{Error, Result};

/// The recipe key of users' embeddings.
pub(crate) const EMBEDDINGS: &str = "method.offline_pairs.users.embeddings";
/// The recipe key of what the attention to users starts from.
pub(crate) const INIT: &str = "method.offline_pairs.users.init";

/// The user of every record.
#[derive(Debug, Clone)]
pub(crate) struct RecordUsers {
    embeddings: UserEmbeddings,
    of_records: Vec<String>,
    dropout: f64,
}

/// The file that attention starts from: a result, or the file in it.
fn attention_file(recipe: &Recipe<Diffusion>, config: &UsersConfig) -> diptych_train::Result<Option<PathBuf>> {
    let resolved = config
        .init
        .as_ref()
        .map(|path| recipe.resolve_path(INIT, path))
        .transpose()?;
    Ok(resolved.map(|path| {
        if path.is_dir() {
            path.join(USER_ATTENTION_FILE)
        } else {
            path
        }
    }))
}

impl RecordUsers {
    /// # Errors
    /// [`Error::Record`] for a record that names no user; [`Error::Users`] for a user without an embedding; [`Error::DataKind`].
    pub(super) fn new(recipe: &Recipe<Diffusion>, config: &UsersConfig, dataset: &Dataset) -> Result<Self> {
        let Dataset::Pairs(pairs) = dataset else {
            return Err(Error::DataKind {
                method: "offline_pairs",
                found: dataset.records().name(),
                expected: "image pairs, which name their users",
            });
        };
        let embeddings = UserEmbeddings::read(&recipe.resolve_path(EMBEDDINGS, &config.embeddings)?)?;
        let user = |pair: &ImagePair| -> Result<String> {
            let user = pair.user_id.clone().ok_or_else(|| Error::Record {
                id: pair.id.clone(),
                name: "user_id",
                found: "no value".into(),
                expected: "a user of `method.offline_pairs.users.embeddings`".into(),
            })?;
            embeddings.values(&user)?;
            Ok(user)
        };
        let of_records = pairs.iter().map(user).collect::<Result<_>>()?;
        Ok(Self {
            embeddings,
            of_records,
            dropout: config.dropout,
        })
    }

    pub(super) fn embeddings(&self) -> &UserEmbeddings {
        &self.embeddings
    }

    /// Users of a batch, (B, S, D), some replaced by nobody.
    pub(super) fn of(&self, batch: &MicroBatch, device: &Device) -> Result<Tensor> {
        // The same stream as that of dropped prompts; no run has as many steps as this bit says.
        let step = batch.step | 1 << 63;
        let is_dropped = |position| {
            let draw = generator(batch.seed, Stream::PromptDropout, step, position).random::<f64>();
            self.dropout > 0.0 && draw < self.dropout
        };
        let users: Vec<Option<&str>> = batch
            .items
            .iter()
            .map(|item| (!is_dropped(item.position)).then(|| self.of_records[item.index].as_str()))
            .collect();
        self.embeddings.gather(&users, device)
    }
}

impl Preparation<'_> {
    /// The network with attention to users, which is all that is trained.
    pub(super) fn policy_for_users(&self, config: &UsersConfig, users: &RecordUsers) -> Result<TrainedDenoiser> {
        let start = attention_file(self.recipe, config)?;
        let start: Option<&Path> = start.as_deref();
        let checkpointing = self.checkpointing();
        TrainedDenoiser::load_for_users(self.pipeline, &self.options, users.embeddings(), start, checkpointing)
    }
}
