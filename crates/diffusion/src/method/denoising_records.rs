//! Records of the methods that train a denoiser: one image (or the chosen one of a pair) and its prompt.

use diptych_tensor::{Device, Tensor};
use diptych_train::MicroBatch;

use super::draws::Draws;
use super::records::Latents;
use crate::Result;
use crate::pipeline::{PromptEmbeddings, TextConditioner};

/// Latents, prompts and how a step draws.
#[derive(Debug, Clone)]
pub(crate) struct DenoisingRecords {
    /// What a user calls each record.
    pub(crate) ids: Vec<String>,
    pub(crate) latents: Latents,
    pub(crate) prompts: Prompts,
    pub(crate) draws: Draws,
}

/// What the denoiser is told about each record.
#[derive(Debug, Clone)]
pub(crate) enum Prompts {
    /// Embeddings computed before training.
    Embedded {
        embeddings: PromptEmbeddings,
        /// The row of each record's prompt.
        rows: Vec<usize>,
        /// The row of the empty prompt, where prompts are dropped.
        empty: Option<usize>,
    },
    /// Texts, encoded in every step because the encoder is trained.
    Texts(Vec<String>),
}

impl DenoisingRecords {
    /// Embeddings of a batch's prompts, some replaced by the empty prompt: (B, T, D).
    pub(crate) fn text(&self, batch: &MicroBatch, device: &Device) -> Result<Tensor> {
        self.text_with(None, batch, device)
    }

    /// The same with a text encoder that is trained.
    pub(crate) fn text_with(
        &self,
        text: Option<&TextConditioner>,
        batch: &MicroBatch,
        device: &Device,
    ) -> Result<Tensor> {
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
                Ok(embeddings.gather(&rows, device)?)
            }
            (Prompts::Texts(prompts), Some(text)) => {
                let prompts: Vec<&str> = records
                    .map(|(item, dropped)| if dropped { "" } else { prompts[item.index].as_str() })
                    .collect();
                text.encode(&prompts)
            }
            (Prompts::Texts(_), None) => Err(crate::Error::MissingComponent {
                action: "encoding prompts",
                component: "text_encoder",
            }),
        }
    }
}
