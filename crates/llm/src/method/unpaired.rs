//! Responses that were each judged good or bad.
//!
//! Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", ICML 2024, arXiv:2402.01306. Where the objective
//! asks for it, the divergence of policy from reference is estimated on mismatched responses: every prompt of the micro batch
//! with the response of the record before it, the first with that of the last. A record with the same prompt is passed over, as long as
//! another one is left: its response is no mismatch. As any sequence, a mismatched one is cut at `data.max_len`.
//!
//! Shape letter: B responses.

use diptych_core::{Responses, UnpairedLogps, unpaired_metrics};
use diptych_train::{MicroBatch, StepOutput};

use super::engine::Engine;
use super::shift::SharedShift;
use crate::Result;
use crate::arrangement::{PlacedImage, Sequence};
use crate::records::EncodedResponse;
use crate::reference::ResponsePlace;
use crate::scoring::score_detached;

/// Losses and metrics of a micro batch of judged responses.
pub(super) fn step(engine: &Engine, shift: &SharedShift, batch: &MicroBatch) -> Result<StepOutput> {
    let places = engine.places(batch);
    let needs = engine.objective.requirements();
    let mismatched = needs.mismatched.then(|| mismatched(engine, &places)).transpose()?;
    let scored = engine.score(&places)?;
    let label = |place: &ResponsePlace| engine.records[place.record].label.unwrap_or(true);
    let mut unpaired = UnpairedLogps::new(scored.responses.clone(), places.iter().map(label).collect());
    unpaired.mismatched = mismatched;
    unpaired.reward_shift = shift.of(&engine.objective, batch, &scored.responses)?;
    let output = engine.objective.unpaired_losses(&unpaired)?;
    let metrics = unpaired_metrics(&unpaired, &output)?;
    let mut step = StepOutput::new(output.losses, metrics);
    scored.describe(&mut step)?;
    step.totals.insert("num_tokens", engine.num_tokens(&places));
    Ok(step)
}

/// Each prompt with the response of the nearest record before it that has another prompt, scored without a graph.
fn mismatched(engine: &Engine, places: &[ResponsePlace]) -> Result<Responses> {
    let responses: Vec<&EncodedResponse> = (0..places.len()).map(|at| mismatch(engine, places, at)).collect();
    let mut sequences: Vec<Sequence<'_>> = Vec::with_capacity(places.len());
    let mut weights: Vec<Option<&[f32]>> = Vec::with_capacity(places.len());
    let texts: Vec<(usize, Vec<PlacedImage>)> = places
        .iter()
        .zip(&responses)
        .map(|(place, response)| cut(engine, engine.response(*place), response))
        .collect();
    for ((place, response), (len, images)) in places.iter().zip(responses).zip(&texts) {
        sequences.push(Sequence {
            response: &response.ids[..*len],
            images,
            ..engine.sequence(*place)
        });
        weights.push(response.weights.as_ref().map(|weights| &weights[..*len]));
    }
    let model = engine.network();
    let arranged = engine.arranged(&sequences)?;
    let reference = engine.reference.score_live(model, &arranged)?;
    let policy = score_detached(model, &arranged)?;
    engine.summed(&arranged, &weights, &policy, reference.as_ref())
}

/// How many tokens of a response stand behind the prompt of another, and the images of both: one that would be cut is left out.
fn cut(engine: &Engine, own: &EncodedResponse, other: &EncodedResponse) -> (usize, Vec<PlacedImage>) {
    let room = engine.max_len.saturating_sub(own.prompt.len()).max(1);
    let mut len = other.ids.len().min(room);
    let of_prompt = |images: &[PlacedImage], end: usize| images.partition_point(|image| image.tokens.end <= end);
    let mut images = own.images[..of_prompt(&own.images, own.prompt.len())].to_vec();
    let (from, to) = (other.prompt.len(), own.prompt.len());
    for image in other.images.iter().filter(|image| image.tokens.start >= from) {
        let tokens = image.tokens.start - from..image.tokens.end - from;
        if tokens.start < len && len < tokens.end {
            len = tokens.start;
        }
        if tokens.end <= len {
            images.push(PlacedImage {
                index: image.index,
                tokens: tokens.start + to..tokens.end + to,
            });
        }
    }
    (len, images)
}

/// The response of the nearest record before the one at `at`, the last standing before the first, that has another prompt; of the
/// nearest where all have the same.
fn mismatch<'a>(engine: &'a Engine, places: &[ResponsePlace], at: usize) -> &'a EncodedResponse {
    let own = engine.response(places[at]);
    let before = |distance: usize| engine.response(places[(at + places.len() - distance) % places.len()]);
    (1..places.len())
        .map(before)
        .find(|response| !response.has_prompt_of(own))
        .unwrap_or_else(|| before(1))
}
