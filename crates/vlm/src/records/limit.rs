//! Texts cut to `data.max_len`: completions give way, and no image is cut.

use diptych_data::EncodingConvention;
use diptych_llm::records::{EncodedRecord, EncodedResponse};

/// Tokens of the longest prompt of a record.
fn prompt_len(record: &EncodedRecord) -> usize {
    let len = |response: &EncodedResponse| response.prompt.len() + response.prompt_tail;
    let texts = record.responses.iter().chain(&record.other_images);
    texts.map(len).max().unwrap_or(0)
}

/// How long a text may be.
pub(super) struct Limit {
    pub(super) max_len: usize,
    pub(super) convention: EncodingConvention,
}

impl Limit {
    /// Why nothing of a record is left.
    pub(super) fn describe(&self, record: &EncodedRecord) -> String {
        let (id, max_len, prompt_len) = (&record.id, self.max_len, prompt_len(record));
        if prompt_len < max_len {
            return format!("record {id}: of an answer no token that counts is left within `data.max_len` = {max_len}");
        }
        format!("record {id}: its prompt has {prompt_len} tokens, images among them, of `data.max_len` = {max_len}")
    }

    /// Cuts the responses of a record, and says whether anything of each is left to learn from.
    pub(super) fn keep(&self, record: &mut EncodedRecord) -> bool {
        let prompt_len = prompt_len(record);
        let max_len = match self.convention {
            EncodingConvention::Dpo if prompt_len >= self.max_len => return false,
            EncodingConvention::Dpo => self.max_len,
            // The answer gives way, the prompt stays even if it is longer.
            EncodingConvention::Cpo => self.max_len.max(prompt_len),
        };
        record.responses.iter_mut().for_each(|response| cut(response, max_len));
        if let Some(rationale) = &mut record.rationale {
            cut(rationale, max_len);
            if !rationale.is_scored() {
                record.rationale = None;
            }
        }
        if let Some(other) = &mut record.other_images {
            cut(other, max_len);
            even_out(&mut record.responses[0], other);
        }
        let mut texts = record.responses.iter().chain(&record.other_images);
        texts.all(EncodedResponse::is_scored)
    }
}

/// Leaves as much of an answer under some images as of the same answer under others.
fn even_out(own: &mut EncodedResponse, other: &mut EncodedResponse) {
    let len = |response: &EncodedResponse| response.ids.len() - response.prompt_tail.min(response.ids.len());
    let least = len(own).min(len(other));
    for response in [own, other] {
        cut(response, response.prompt.len() + response.prompt_tail + least);
    }
}

/// Leaves at most `max_len` tokens of a text, and no image of which a part would be missing.
fn cut(response: &mut EncodedResponse, max_len: usize) {
    let prompt_len = response.prompt.len();
    let mut end = prompt_len + response.ids.len();
    if end <= max_len {
        return;
    }
    end = max_len.max(prompt_len);
    if let Some(image) = response
        .images
        .iter()
        .find(|image| image.tokens.start < end && end < image.tokens.end)
    {
        end = image.tokens.start.max(prompt_len);
    }
    response.images.retain(|image| image.tokens.end <= end);
    response.ids.truncate(end - prompt_len);
    if let Some(weights) = &mut response.weights {
        weights.truncate(end - prompt_len);
    }
    if let Some(is_answer) = &mut response.is_answer {
        is_answer.truncate(end - prompt_len);
    }
    response.is_cut = true;
}
