//! A model that judges by the next word: how likely each of some words is.

use std::collections::BTreeSet;

use diptych_data::SpecialTokens;
use diptych_models::lm::LmInput;
use diptych_models::vlm::ImageEmbeddings;
use diptych_tensor::{DType, Tensor};

use super::super::checks::setting;
use super::super::problem::BuildProblem;
use super::{Ask, Speaker};
use crate::Result;

impl Speaker {
    /// The probabilities that the next token of each is the first of each of some words, such as `yes` and `no`.
    ///
    /// With a capital and a small letter and with and without a space before, whatever the tokenizer has: a word's probability is that of all its
    /// first tokens together.
    pub(in crate::build) fn word_probabilities(&self, asks: &[Ask<'_>], words: &[&str]) -> Result<Vec<Vec<f64>>> {
        let tokens = self.beginnings(words)?;
        let mut probabilities = Vec::with_capacity(asks.len());
        for batch in asks.chunks(self.settings.batch_size) {
            for logits in self.next_logits(batch)? {
                let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weight = |token: &u32| {
                    let logit = logits.get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY);
                    f64::from(logit - highest).exp()
                };
                let total: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
                let of = |tokens: &BTreeSet<u32>| tokens.iter().map(weight).sum::<f64>() / total;
                probabilities.push(tokens.iter().map(of).collect());
            }
        }
        Ok(probabilities)
    }

    /// (V) logits behind each prompt.
    fn next_logits(&self, asks: &[Ask<'_>]) -> Result<Vec<Vec<f32>>> {
        let ids = self.ids_of(asks)?;
        let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let filling = u32::from(self.directory.config().image_token_id == 0);
        let input = LmInput::padded(&rows, filling, self.model().device())?;
        let images: Vec<&ImageEmbeddings> = asks
            .iter()
            .flat_map(|ask| ask.images.iter().map(|seen| &seen.0))
            .collect();
        let hidden_btd = self.model().forward_detached(&input, &images)?;
        let last = |(row, ids): (usize, &Vec<u32>)| -> diptych_tensor::Result<Tensor> {
            Ok(hidden_btd.narrow(0, row, 1)?.narrow(1, ids.len() - 1, 1)?.squeeze(0)?)
        };
        let mut logits = Vec::with_capacity(ids.len());
        for row in ids.iter().enumerate() {
            let logits_v = self.model().language_model().logits(&last(row)?)?;
            let read =
                || -> diptych_tensor::Result<Vec<f32>> { Ok(logits_v.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
            logits.push(read()?);
        }
        Ok(logits)
    }

    /// Checks that [`word_probabilities`](Self::word_probabilities) can tell words apart.
    ///
    /// # Errors
    /// [`BuildProblem::SharedToken`]; [`Error::Setting`] for a word that the tokenizer does not know.
    pub(in crate::build) fn check_words(&self, words: &[&str]) -> Result<()> {
        self.beginnings(words).map(|_| ())
    }

    /// First tokens of each word, none of which is that of another one.
    fn beginnings(&self, words: &[&str]) -> Result<Vec<BTreeSet<u32>>> {
        let mut all: Vec<BTreeSet<u32>> = Vec::with_capacity(words.len());
        for word in words {
            let tokens = self.first_tokens(word)?;
            for (other, of_other) in words.iter().zip(&all) {
                if let Some(shared) = tokens.intersection(of_other).next() {
                    return Err(BuildProblem::SharedToken {
                        first: (*other).to_owned(),
                        second: (*word).to_owned(),
                        token: self.tokenizer.token(*shared).unwrap_or_default(),
                        model: self.directory.path().to_owned(),
                    }
                    .into());
                }
            }
            all.push(tokens);
        }
        Ok(all)
    }

    /// First tokens of a word as it may stand at the beginning of an answer.
    fn first_tokens(&self, word: &str) -> Result<BTreeSet<u32>> {
        let mut capital = word.to_owned();
        if let Some(first) = capital.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let mut tokens = BTreeSet::new();
        for form in [word, &capital] {
            for form in [form.to_owned(), format!(" {form}")] {
                let ids = self.tokenizer.encode(&form, SpecialTokens::Omit)?.ids;
                // A lone space is no word, and neither is what the tokenizer does not know.
                let is_word = |id: &&u32| {
                    let text = self.tokenizer.decode(&[**id], SpecialTokens::Omit).unwrap_or_default();
                    !text.trim().is_empty() && Some(**id) != self.tokenizer.unk_id()
                };
                tokens.extend(ids.iter().find(is_word));
            }
        }
        if tokens.is_empty() {
            return Err(setting(
                "words",
                format!("{word:?}"),
                "a word that the model's tokenizer knows",
            ));
        }
        Ok(tokens)
    }
}
