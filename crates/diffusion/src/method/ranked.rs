//! Ranked lists: several images of a prompt, from best to worst.
//!
//! Karthik et al., "Scalable Ranked Preference Optimization for Text-to-Image Generation", arXiv:2410.18013 (`RankDPO`). The images of a list share
//! a timestep; each has a noise of its own, shared by policy and reference. The objective is free: every objective that compares the responses of a
//! list can be used.
//!
//! Shape letters: L lists, N images of all lists, C channels, Y x X spatial.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_core::{ListLogps, Objective, list_metrics};
use diptych_tensor::{Params, Tensor, Weights};
use diptych_train::{Item, Method, MicroBatch, StepOutput};

use super::config::ListNoise;
use super::denoising_records::DenoisingRecords;
use super::reference::{Reference, save_state};
use super::scoring::{DenoisingInput, ImagePlace, Scored, with_judge_scores};
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::{Error, Result};

/// The method `ranked`.
#[derive(Debug)]
pub struct Ranked {
    pub(crate) policy: TrainedDenoiser,
    pub(crate) reference: Reference,
    pub(crate) objective: Objective,
    /// One image a record: those of all lists, one after the other.
    pub(crate) images: DenoisingRecords,
    pub(crate) lists: Vec<RankedList>,
    /// Images of the longest list.
    pub(crate) longest: u64,
    pub(crate) noise: ListNoise,
    pub(crate) showcase: Option<Showcase>,
}

/// The images of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RankedList {
    /// What a user calls it.
    pub(crate) id: String,
    /// Numbers of its images from best to worst, at least 2.
    pub(crate) images: Vec<usize>,
    /// How good each of them is, in the same order.
    pub(crate) scores: Vec<f64>,
}

impl RankedList {
    /// Sorts images by their scores; equal ones keep their order.
    pub(crate) fn new(id: String, first: usize, scores: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        Self {
            id,
            scores: order.iter().map(|&at| scores[at]).collect(),
            images: order.iter().map(|&at| first + at).collect(),
        }
    }
}

/// Share of the other images that each is better than, as a judge sees them: `RankDPO`'s preference probabilities of one judge. A tie is
/// half a win.
pub(crate) fn shares_of_wins(scores: &[f64]) -> Vec<f64> {
    let wins = |score: f64| -> f64 {
        let against = |&other: &f64| match score.total_cmp(&other) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        };
        // Half a win against itself does not count.
        scores.iter().map(against).sum::<f64>() - 0.5
    };
    let num_others = (scores.len() - 1) as f64;
    scores.iter().map(|&score| wins(score) / num_others).collect()
}

impl Ranked {
    /// The images of a batch of lists, with places of their own.
    fn images_of(&self, batch: &MicroBatch) -> MicroBatch {
        let items = batch.items.iter().flat_map(|item| {
            let images = &self.lists[item.index].images;
            images.iter().enumerate().map(move |(rank, &index)| Item {
                index,
                position: item.position * self.longest + rank as u64,
            })
        });
        MicroBatch::whole(batch.seed, batch.step, items.collect())
    }

    fn input(&self, batch: &MicroBatch) -> Result<DenoisingInput> {
        let denoiser = &self.policy.denoiser;
        let device = denoiser.device();
        let draws = &self.images.draws;
        let images = self.images_of(batch);
        let latents = draws.latents(&images, &[&self.images.latents], device)?;
        // What the images of a list share is drawn for its best one, at the list's own place.
        let best = batch.clone().with_records(|item| self.lists[item.index].images[0]);
        let rows: Vec<usize> = batch
            .items
            .iter()
            .enumerate()
            .flat_map(|(row, item)| vec![row; self.lists[item.index].images.len()])
            .collect();
        let of_lists = draws.timesteps(&best);
        let timesteps: Vec<_> = rows.iter().map(|&row| of_lists[row]).collect();
        let noise = match self.noise {
            ListNoise::Independent => draws.noise(&images, device)?,
            ListNoise::Shared => repeated(&draws.noise(&best, device)?, &rows)?,
        };
        let mut conditioning = self.images.conditioning(&best, device)?.gather(&rows)?;
        if conditioning.time_ids.is_some() {
            // Sizes and crops are each image's own.
            conditioning.time_ids = self.images.conditioning(&images, device)?.time_ids;
        }
        DenoisingInput::new(denoiser, &latents[0], &noise, &timesteps, conditioning)
    }
}

impl Method for Ranked {
    type Error = Error;

    fn params(&self) -> &Params {
        &self.policy.params
    }

    fn num_records(&self) -> usize {
        self.lists.len()
    }

    fn record_id(&self, index: usize) -> String {
        self.lists[index].id.clone()
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let input = self.input(batch)?;
        let lists: Vec<&RankedList> = batch.items.iter().map(|item| &self.lists[item.index]).collect();
        let places: Vec<ImagePlace> = lists
            .iter()
            .flat_map(|list| &list.images)
            .map(|&record| ImagePlace { record, image: 0 })
            .collect();
        let scored = Scored::new(&self.policy, &self.reference, &input, &places)?;
        let scores = lists.iter().flat_map(|list| list.scores.iter().copied()).collect();
        let logps = ListLogps::new(
            with_judge_scores(scored.responses()?, Some(scores))?,
            lists.iter().map(|list| list.images.len()).collect(),
        );
        let output = self.objective.list_losses(&logps)?;
        let mut metrics = list_metrics(&logps, &output)?;
        let (errors, reference_errors) = scored.host()?;
        insert_ends(&mut metrics, ["mse/chosen", "mse/rejected"], &errors, &logps.list_lens);
        if let Some(errors) = reference_errors {
            let names = ["mse/reference_chosen", "mse/reference_rejected"];
            insert_ends(&mut metrics, names, &errors, &logps.list_lens);
        }
        let timesteps = input.timesteps();
        insert_ends(
            &mut metrics,
            ["timesteps/mean", "timesteps/mean"],
            &timesteps,
            &logps.list_lens,
        );
        Ok(StepOutput::new(output.losses, metrics))
    }

    fn save(&self, directory: &Path) -> Result<()> {
        self.policy.save(directory)
    }

    fn save_final(&self, directory: &Path) -> Result<()> {
        self.policy.save_final(directory)
    }

    fn load(&self, directory: &Path) -> Result<()> {
        self.policy.restore(directory)
    }

    fn after_step(&self, step: u64) -> Result<()> {
        self.reference.after_step(&self.policy.params, step)
    }

    fn save_state(&self, path: &Path) -> Result<bool> {
        save_state(path, &self.reference.state()?)
    }

    fn load_state(&self, path: &Path) -> Result<()> {
        self.reference.restore(&Weights::open(path)?)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        self.showcase
            .as_ref()
            .map(|showcase| showcase.write(&self.policy, stem))
            .transpose()
    }
}

/// Values of the best and of the worst image of each list.
fn insert_ends(
    metrics: &mut BTreeMap<&'static str, Vec<f64>>,
    [best, worst]: [&'static str; 2],
    values: &[f64],
    list_lens: &[usize],
) {
    let mut first = 0;
    let (mut of_best, mut of_worst) = (Vec::new(), Vec::new());
    for &len in list_lens {
        of_best.push(values[first]);
        of_worst.push(values[first + len - 1]);
        first += len;
    }
    metrics.insert(worst, of_worst);
    metrics.insert(best, of_best);
}

/// The rows of a tensor as often as `rows` names them.
fn repeated(tensor: &Tensor, rows: &[usize]) -> diptych_tensor::Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    Ok(tensor.index_select(&Tensor::from_slice(&rows, rows.len(), tensor.device())?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_from_best_to_worst() {
        let list = RankedList::new("a".into(), 10, &[0.5, 2.0, 0.5, -1.0]);
        assert_eq!(list.images, [11, 10, 12, 13]);
        assert_eq!(list.scores, [2.0, 0.5, 0.5, -1.0]);
    }

    #[test]
    fn wins_are_counted_against_the_others() {
        assert_eq!(shares_of_wins(&[3.0, 1.0, 2.0]), [1.0, 0.0, 0.5]);
        assert_eq!(shares_of_wins(&[1.0, 1.0, 0.0]), [0.75, 0.75, 0.0]);
        assert_eq!(shares_of_wins(&[5.0, 4.0]), [1.0, 0.0]);
    }
}
