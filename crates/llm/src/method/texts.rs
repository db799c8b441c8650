//! The texts that are scored: those of the records, or perturbed ones, alone or with their prompts.

use std::collections::BTreeMap;

use diptych_train::{Item, MicroBatch};

use super::engine::Engine;
use super::other_images::epoch;
use super::token_perturbation::TokenPerturbation;
use crate::arrangement::Sequence;
use crate::records::EncodedResponse;
use crate::reference::ResponsePlace;

/// The texts of a micro batch: those of the records, or perturbed ones in their places.
#[derive(Debug)]
pub(crate) struct Texts<'a> {
    pub(crate) engine: &'a Engine,
    /// The responses of records that are perturbed, by the number of the record.
    perturbed: BTreeMap<usize, Vec<EncodedResponse>>,
}

impl<'a> Texts<'a> {
    /// Those of the records.
    pub(crate) fn of(engine: &'a Engine) -> Self {
        Self {
            engine,
            perturbed: BTreeMap::new(),
        }
    }

    /// The texts of a micro batch, perturbed.
    pub(super) fn perturbed(engine: &'a Engine, perturbation: &TokenPerturbation, batch: &MicroBatch) -> Self {
        let of = |item: &Item| {
            let epoch = epoch(batch, item, engine.records.len());
            let record = &engine.records[item.index];
            (item.index, perturbation.apply(item.index, record, (batch.seed, epoch)))
        };
        Self {
            engine,
            perturbed: batch.items.iter().map(of).collect(),
        }
    }

    /// Whether they are other ones than those of the records.
    pub(super) fn is_perturbed(&self) -> bool {
        !self.perturbed.is_empty()
    }

    pub(super) fn response(&self, place: ResponsePlace) -> &EncodedResponse {
        match self.perturbed.get(&place.record) {
            Some(responses) => &responses[place.response],
            None => self.engine.response(place),
        }
    }

    pub(super) fn sequence(&self, place: ResponsePlace) -> Sequence<'_> {
        let response = self.response(place);
        Sequence {
            id: &self.engine.records[place.record].id,
            prompt: &response.prompt,
            response: &response.ids,
            images: &response.images,
        }
    }

    /// The weights of the tokens in the objective's score.
    fn weights(&self, place: ResponsePlace) -> Option<&[f32]> {
        self.engine.weights_of(self.response(place))
    }

    /// 1 for every token of an answer, whatever weights of spans and dense weights say, and 0 for the others. Where the whole text is scored
    /// there are `len` tokens, those of the prompt first.
    pub(super) fn counted(&self, place: ResponsePlace, len: usize) -> Vec<f32> {
        let response = self.response(place);
        let one_if = |is_counted: bool| f32::from(u8::from(is_counted));
        let own: Vec<f32> = match (&response.is_answer, &response.weights) {
            (Some(is_answer), _) => is_answer.iter().map(|is_answer| one_if(*is_answer)).collect(),
            (None, Some(weights)) => weights.iter().map(|weight| one_if(*weight != 0.0)).collect(),
            (None, None) => vec![1.0; response.ids.len()],
        };
        let mut counted = vec![0.0; len.saturating_sub(own.len())];
        counted.extend(own);
        counted
    }

    /// Prompts and responses with the weights of the responses' tokens. Of whole texts, everything after the first token stands in
    /// the place of the response, and what belongs to the prompt has no weight in it.
    pub(super) fn parts<'b>(
        &'b self,
        places: &[ResponsePlace],
        texts: Option<&'b [WholeText]>,
    ) -> (Vec<Sequence<'b>>, Vec<Option<&'b [f32]>>) {
        let plain = |place: &ResponsePlace| (self.sequence(*place), self.weights(*place));
        let Some(texts) = texts else {
            return places.iter().map(plain).unzip();
        };
        let whole = |(place, text): (&ResponsePlace, &'b WholeText)| {
            let own = self.sequence(*place);
            let sequence = Sequence {
                prompt: &own.prompt[..own.prompt.len().min(1)],
                response: &text.ids,
                ..own
            };
            (sequence, Some(text.response_weights.as_slice()))
        };
        places.iter().zip(texts).map(whole).unzip()
    }
}

/// A prompt with its response, after the first token.
pub(super) struct WholeText {
    ids: Vec<u32>,
    /// The weight of each token in the score of the text.
    pub(super) weights: Vec<f32>,
    /// The weight of each token in the score of the response: 0 for those of the prompt.
    response_weights: Vec<f32>,
}

impl WholeText {
    pub(super) fn of(response: &EncodedResponse, image: Option<u32>) -> Self {
        let prompt = response.prompt.get(1..).unwrap_or_default();
        let prompt_len = prompt.len() + response.prompt_tail;
        let own = match response.score_weights() {
            Some(weights) => weights.to_vec(),
            None => vec![1.0; response.ids.len()],
        };
        let after = |weight: f32| [&vec![weight; prompt_len], &own[response.prompt_tail..]].concat();
        let ids = [prompt, &response.ids].concat();
        let mut weights = after(1.0);
        // Images are read, and not predicted.
        for (weight, id) in weights.iter_mut().zip(&ids) {
            if Some(*id) == image {
                *weight = 0.0;
            }
        }
        Self {
            ids,
            weights,
            response_weights: after(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_counts_the_whole_prompt_also_where_sides_do_not_share_it() {
        // Of five tokens of a prompt the sides share three; the first token of the answer has no weight of its own.
        let response = EncodedResponse {
            prompt: vec![1, 2, 3],
            ids: vec![4, 5, 6, 7, 8],
            images: Vec::new(),
            prompt_tail: 2,
            weights: Some(vec![0.0, 0.0, 0.0, 1.0, 0.5]),
            is_answer: None,
            dense: None,
            is_cut: false,
            judge_score: None,
            reference_logps: None,
        };
        let text = WholeText::of(&response, None);
        assert_eq!(text.ids, [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(text.weights, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.5]);
        assert_eq!(text.response_weights, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5]);
    }
}
