//! What tokens attend to, images among it.

use diptych_tensor::Tensor;

use super::model::{ImageEmbeddings, VisionLanguageModel, layouts};
use crate::Result;
use crate::lm::LmInput;

impl VisionLanguageModel {
    /// The attention of some tokens of one row at a layer of the decoder, as the mean over its heads, to all tokens of the row, those of images
    /// among them: see [`CausalLm::attention_weights`](crate::lm::CausalLm::attention_weights). `images` as in [`forward`](Self::forward).
    ///
    /// # Shape
    /// The result is (Q, T) for Q `queries` in a row of T tokens, f32.
    ///
    /// # Errors
    /// As [`CausalLm::attention_weights`](crate::lm::CausalLm::attention_weights) and [`forward`](Self::forward).
    pub fn attention_weights(
        &self,
        input: &LmInput,
        images: &[&ImageEmbeddings],
        layer: usize,
        queries: &[usize],
    ) -> Result<Tensor> {
        let embeddings = self.embed(input, images)?;
        let input = self.positioned(input, &layouts(images))?;
        self.language_model()
            .attention_weights(&embeddings, &input, layer, queries)
    }
}
