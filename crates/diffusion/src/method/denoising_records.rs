//! Records of the methods that train a denoiser: one image (or the chosen one of a pair) and its prompt.

use diptych_data::HostTensor;
use diptych_tensor::Device;
use diptych_train::MicroBatch;

use super::draws::Draws;
use super::records::Latents;
use super::users::RecordUsers;
use crate::Result;
use crate::pipeline::{Conditioning, PromptEmbeddings, TextConditioner};
use crate::tensors::from_host;

/// Latents, prompts and how a step draws.
#[derive(Debug, Clone)]
pub(crate) struct DenoisingRecords {
    /// What a user calls each record.
    pub(crate) ids: Vec<String>,
    pub(crate) latents: Latents,
    pub(crate) prompts: Prompts,
    /// SDXL: sizes and crops of each row of the latents, (N, 6).
    pub(crate) time_ids: Option<HostTensor>,
    pub(crate) draws: Draws,
    /// The bucket of each record, where their latents differ in shape.
    pub(crate) buckets: Option<Vec<usize>>,
    /// Strength of guidance that a denoiser which takes it is told while training.
    pub(crate) guidance: Option<f64>,
    /// Who preferred, where the denoiser is told.
    pub(crate) users: Option<RecordUsers>,
}

/// What the denoiser is told about each record.
#[derive(Debug, Clone)]
pub(crate) enum Prompts {
    /// Embeddings computed before training.
    Embedded {
        embeddings: PromptEmbeddings,
        /// The row of each record's prompt.
        rows: Vec<usize>,
        /// The row of the empty prompt, where prompts are dropped or a teacher is guided.
        empty: Option<usize>,
    },
    /// Texts, encoded in every step because the encoder is trained.
    Texts(Vec<String>),
}

impl DenoisingRecords {
    /// What the denoiser is told about a batch, some prompts replaced by the empty one. Sizes and crops are the image's, not the
    /// prompt's: they stay.
    pub(crate) fn conditioning(&self, batch: &MicroBatch, device: &Device) -> Result<Conditioning> {
        self.conditioning_with(None, batch, device)
    }

    /// The same with a text encoder that is trained.
    pub(crate) fn conditioning_with(
        &self,
        text: Option<&TextConditioner>,
        batch: &MicroBatch,
        device: &Device,
    ) -> Result<Conditioning> {
        let prompts = self.prompts_with(text, batch, device)?;
        let conditioning = self.with_sizes(prompts, batch, device)?;
        match &self.users {
            Some(users) => Ok(conditioning.with_users(users.of(batch, device)?)),
            None => Ok(conditioning),
        }
    }

    /// What the denoiser is told about a batch without any prompt; none where the empty prompt was not encoded.
    pub(crate) fn unprompted(&self, batch: &MicroBatch, device: &Device) -> Result<Option<Conditioning>> {
        let Prompts::Embedded {
            embeddings,
            empty: Some(empty),
            ..
        } = &self.prompts
        else {
            return Ok(None);
        };
        let prompts = embeddings.gather(&vec![*empty; batch.items.len()], device)?;
        self.with_sizes(prompts, batch, device).map(Some)
    }

    fn with_sizes(&self, mut prompts: Conditioning, batch: &MicroBatch, device: &Device) -> Result<Conditioning> {
        if let Some(guidance) = self.guidance {
            prompts = prompts.with_guidance(guidance as f32);
        }
        match &self.time_ids {
            Some(time_ids) => {
                let rows = self.draws.forms.rows(batch);
                Ok(prompts.with_time_ids(from_host(time_ids.gather(&rows), device)?))
            }
            None => Ok(prompts),
        }
    }

    fn prompts_with(
        &self,
        text: Option<&TextConditioner>,
        batch: &MicroBatch,
        device: &Device,
    ) -> Result<Conditioning> {
        let dropped = self.draws.dropped(batch);
        let records = batch.items.iter().zip(dropped);
        match (&self.prompts, text) {
            (
                Prompts::Embedded {
                    embeddings,
                    rows,
                    empty,
                },
                _,
            ) => {
                let rows: Vec<usize> = records
                    .map(|(item, dropped)| match empty {
                        Some(empty) if dropped => *empty,
                        _ => rows[item.index],
                    })
                    .collect();
                embeddings.gather(&rows, device)
            }
            (Prompts::Texts(prompts), Some(text)) => {
                let prompts: Vec<Option<&str>> = records
                    .map(|(item, dropped)| (!dropped).then(|| prompts[item.index].as_str()))
                    .collect();
                text.encode_some(&prompts)
            }
            (Prompts::Texts(_), None) => Err(crate::Error::MissingComponent {
                action: "encoding prompts",
                component: "text_encoder",
            }),
        }
    }
}
