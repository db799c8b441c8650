//! How the methods that learn from stored preferences are put together.

use std::sync::Arc;

use diptych_data::Dataset;
use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_train::{Item, MicroBatch, ReferenceConfig, Reporter};

use super::DiffusionMethod;
use super::checks::CHECKPOINT;
use super::config::{
    GapKind, ListNoise, OfflinePairsConfig, PairLabels, PairNoise, PosteriorUse, RankedConfig, UnpairedConfig,
};
use super::consistency::Consistency;
use super::curriculum::{Curriculum, ScoredPair};
use super::draws::Draws;
use super::encode::{Encoded, Settings};
use super::inverted_noise::InvertedNoise;
use super::offline_pairs::{NoiseSource, OfflinePairs};
use super::prepare::Preparation;
use super::ranked::Ranked;
use super::records::Latents;
use super::reference::{CachedErrors, MovingReference, Reference};
use super::shift::RewardShift;
use super::single_images::{SingleImages, judged, latent_scores, listed};
use super::timesteps::TimestepConfig;
use super::trained::{TextTraining, TrainedDenoiser, load_frozen};
use super::unpaired::{Balance, Unpaired};
use super::users::RecordUsers;
use crate::pipeline::{Denoiser, denoiser_component, load_adapter};
use crate::schedule::NoiseSchedule;
use crate::stage::Stage;
use crate::tensors::host_f32;
use crate::{Error, Result};

impl Preparation<'_> {
    pub(super) fn offline_pairs(
        &self,
        config: &OfflinePairsConfig,
        dataset: Dataset,
        reporter: &mut Reporter<'_>,
    ) -> Result<DiffusionMethod> {
        let judge_scores = self.judged_pairs(&dataset)?;
        let curriculum = match &config.curriculum {
            Some(curriculum) => Some(Curriculum::new(
                curriculum,
                &self.scored_pairs(curriculum.by, &dataset)?,
            )),
            None => None,
        };
        let users = config.users.as_ref();
        let users = users.map(|users| RecordUsers::new(self.recipe, users, &dataset));
        let users = users.transpose()?;
        let (mut encoded, rejected) = self.pair_images(config, dataset, reporter)?;
        let policy = match config.users.as_ref().zip(users.as_ref()) {
            Some((section, users)) => self.policy_for_users(section, users)?,
            None => self.policy(TextTraining::Frozen)?,
        };
        encoded.records.users = users;
        let reference = self.reference(&policy)?;
        let noise = match config.noise {
            PairNoise::Shared => NoiseSource::Shared,
            PairNoise::Independent => NoiseSource::Independent,
            PairNoise::Inverted(config) => {
                NoiseSource::Inverted(InvertedNoise::new(policy.denoiser.schedule(), config)?)
            }
        };
        let consistency = config.error.consistency();
        let consistency = consistency.map(|section| self.consistency(section, &encoded.records.draws, &policy));
        let consistency = consistency.transpose()?;
        let (records, showcase) = Self::showcase(encoded, &policy, reporter)?;
        let mut method = OfflinePairs {
            policy,
            reference,
            objective: self.recipe.objective.clone(),
            records,
            rejected,
            noise,
            consistency,
            judge_scores,
            curriculum,
            shift: RewardShift::default(),
            showcase,
        };
        if matches!(self.recipe.reference, ReferenceConfig::Cached { .. }) {
            method.reference = Reference::Cached(self.cached(&method, reporter)?);
        }
        Ok(DiffusionMethod::OfflinePairs(Box::new(method)))
    }

    /// A judge's scores of the images of every pair where the objective needs them, each of which it can use.
    fn judged_pairs(&self, dataset: &Dataset) -> Result<Option<Vec<[f64; 2]>>> {
        let needs_scores = self.recipe.objective.requirements().judge_scores;
        let scores = needs_scores.then(|| self.pair_scores(dataset)).transpose()?;
        for (record, scores) in scores.iter().flatten().enumerate() {
            self.check_judge(&dataset.record_id(record), "chosen_score", scores)?;
        }
        Ok(scores)
    }

    /// Records of the images that are taken for the chosen ones, and latents of the others.
    fn pair_images(
        &self,
        config: &OfflinePairsConfig,
        dataset: Dataset,
        reporter: &mut Reporter<'_>,
    ) -> Result<(Encoded, Latents)> {
        let consistency = config.error.consistency();
        self.check_consistency(consistency)?;
        let found = dataset.records().name();
        let settings = Settings {
            needs_empty: consistency.is_some_and(Consistency::is_guided),
            ..settings(
                "offline_pairs",
                config.prompt_dropout,
                config.timesteps,
                config.posterior,
                config.resolution,
            )
        };
        let mut encoded = self.encode(&settings, dataset, reporter)?;
        let Some(mut rejected) = encoded.rejected.take() else {
            return Err(Error::DataKind {
                method: "offline_pairs",
                found,
                expected: "image pairs or latent pairs",
            });
        };
        if config.noise != PairNoise::Shared {
            refuse_given_noise(&encoded.records.draws, "offline_pairs")?;
        }
        if config.labels == PairLabels::Swapped {
            std::mem::swap(&mut encoded.records.latents, &mut rejected);
        }
        Ok((encoded, rejected))
    }

    pub(super) fn unpaired(
        &self,
        config: UnpairedConfig,
        dataset: Dataset,
        reporter: &mut Reporter<'_>,
    ) -> Result<DiffusionMethod> {
        let SingleImages {
            dataset,
            ids,
            prompts,
            meaning,
        } = judged(dataset)?;
        let needs = self.recipe.objective.requirements();
        let labels: Vec<bool> = meaning.iter().map(|verdict| verdict.label).collect();
        let judge_scores = needs
            .judge_scores
            .then(|| {
                let scored = meaning.iter().zip(&ids);
                scored
                    .map(|(verdict, id)| verdict.score.ok_or_else(|| self.missing_score(id, "score")))
                    .collect::<Result<_>>()
            })
            .transpose()?;
        let balance = match config.positive_ratio {
            None => None,
            Some(ratio) => Some(Balance::new(&labels, ratio).ok_or_else(|| Error::Recipe {
                key: "method.unpaired.positive_ratio".into(),
                problem: "needs both desirable and undesirable images, and the data has one kind".into(),
                hint: "remove the key, or add data".into(),
            })?),
        };
        let settings = settings(
            "unpaired",
            config.prompt_dropout,
            config.timesteps,
            config.posterior,
            config.resolution,
        );
        let mut encoded = self.encode(&settings, dataset, reporter)?;
        encoded.records.ids = ids;
        self.refuse_cached("unpaired")?;
        let policy = self.policy(TextTraining::Frozen)?;
        let reference = self.reference(&policy)?;
        let (records, showcase) = Self::showcase(encoded, &policy, reporter)?;
        Ok(DiffusionMethod::Unpaired(Box::new(Unpaired {
            policy,
            reference,
            objective: self.recipe.objective.clone(),
            records,
            prompts,
            labels,
            judge_scores,
            baseline: needs.mismatched.then(|| config.baseline.unwrap_or_default()),
            balance,
            shift: RewardShift::default(),
            showcase,
        })))
    }

    pub(super) fn ranked(
        &self,
        config: RankedConfig,
        dataset: Dataset,
        reporter: &mut Reporter<'_>,
    ) -> Result<DiffusionMethod> {
        let (SingleImages { dataset, ids, .. }, lists) = listed(dataset, config.scores)?;
        for list in lists
            .iter()
            .filter(|_| self.recipe.objective.requirements().judge_scores)
        {
            self.check_judge(&list.id, "score", &list.scores)?;
        }
        let settings = settings(
            "ranked",
            config.prompt_dropout,
            config.timesteps,
            config.posterior,
            config.resolution,
        );
        let mut encoded = self.encode(&settings, dataset, reporter)?;
        encoded.records.ids = ids;
        if config.noise == ListNoise::Independent {
            refuse_given_noise(&encoded.records.draws, "ranked")?;
        }
        self.refuse_cached("ranked")?;
        let policy = self.policy(TextTraining::Frozen)?;
        let reference = self.reference(&policy)?;
        let (images, showcase) = Self::showcase(encoded, &policy, reporter)?;
        let longest = lists.iter().map(|list| list.images.len()).max().unwrap_or(0) as u64;
        Ok(DiffusionMethod::Ranked(Box::new(Ranked {
            policy,
            reference,
            objective: self.recipe.objective.clone(),
            images,
            lists,
            longest,
            noise: config.noise,
            showcase,
        })))
    }

    /// The recipe's reference. `cached` needs no network of its own: its errors are the policy's before its first step.
    pub(super) fn reference(&self, policy: &TrainedDenoiser) -> Result<Reference> {
        match &self.recipe.reference {
            ReferenceConfig::None {} | ReferenceConfig::Cached { .. } => Ok(Reference::None),
            ReferenceConfig::AdapterOff {} => Ok(Reference::AdapterOff),
            ReferenceConfig::Frozen {} => {
                let network = load_frozen(self.pipeline, &self.options, &self.adapter)?;
                Ok(Reference::Frozen(Arc::new(network)))
            }
            ReferenceConfig::Ema {
                mixup_alpha,
                sync_steps,
            } => {
                let moving = MovingReference::new(&policy.params, *mixup_alpha, *sync_steps)?;
                Ok(Reference::Moving(moving))
            }
            ReferenceConfig::Checkpoint { path } => {
                let path = self.recipe.resolve_path(CHECKPOINT, path)?;
                let network = if path.join("model_index.json").is_file() {
                    let other = PipelineDir::open(&path)?;
                    Denoiser::load(&other, &self.options, Trainable::None, None)?.0
                } else {
                    let adapter = load_adapter(&path, denoiser_component(self.pipeline))?;
                    Denoiser::load(self.pipeline, &self.options, Trainable::None, Some(&adapter))?.0
                };
                check_schedules(&policy.denoiser, &network, CHECKPOINT)?;
                Ok(Reference::Frozen(Arc::new(network)))
            }
        }
    }

    /// Errors of every pair under the policy before its first step.
    fn cached(&self, method: &OfflinePairs, reporter: &mut Reporter<'_>) -> Result<CachedErrors> {
        let draws = &method.records.draws;
        let is_fixed = draws.given_noise.is_some() && draws.given_timesteps.is_some() && draws.prompt_dropout == 0.0;
        if !is_fixed {
            return Err(Error::Recipe {
                key: "reference.cached".into(),
                problem: "has nothing to keep: every step draws timesteps, noise or dropped prompts anew, and with them the \
                          reference's errors"
                    .into(),
                hint: "use `adapter_off` or `frozen`, or latent-pairs data with `noise` and `timesteps` and no `prompt_dropout`"
                    .into(),
            });
        }
        if let ReferenceConfig::Cached { path: Some(_) } = &self.recipe.reference {
            return Err(Error::Recipe {
                key: "reference.cached.path".into(),
                problem: "is unused: the errors of images are computed at every start".into(),
                hint: "remove the key".into(),
            });
        }
        let num_records = method.records.ids.len();
        let mut errors = Vec::with_capacity(num_records);
        for first in (0..num_records).step_by(self.recipe.train.micro_batch) {
            let records = first..(first + self.recipe.train.micro_batch).min(num_records);
            let items = records.map(|index| Item {
                index,
                position: index as u64,
            });
            let batch = MicroBatch::whole(self.recipe.run.seed, 0, items.collect());
            let of_batch = host_f32(&method.input(&batch)?.errors(&method.policy.denoiser)?)?;
            let (chosen, rejected) = of_batch.split_at(batch.items.len());
            errors.extend(
                chosen
                    .iter()
                    .zip(rejected)
                    .map(|(chosen, rejected)| vec![*chosen, *rejected]),
            );
            reporter.advance(Stage::Reference, errors.len() as u64, num_records as u64)?;
        }
        Ok(CachedErrors::new(errors))
    }

    fn refuse_cached(&self, method: &str) -> Result<()> {
        if !matches!(self.recipe.reference, ReferenceConfig::Cached { .. }) {
            return Ok(());
        }
        Err(Error::Recipe {
            key: "reference.cached".into(),
            problem: format!("is not kept for the single images of `[method.{method}]`"),
            hint: "use `adapter_off` or `frozen`".into(),
        })
    }

    /// A judge's scores of the images of every pair, chosen first.
    fn pair_scores(&self, dataset: &Dataset) -> Result<Vec<[f64; 2]>> {
        match dataset {
            Dataset::Pairs(pairs) => pairs
                .iter()
                .map(|pair| {
                    let chosen = pair
                        .chosen_score
                        .ok_or_else(|| self.missing_score(&pair.id, "chosen_score"))?;
                    let rejected = pair
                        .rejected_score
                        .ok_or_else(|| self.missing_score(&pair.id, "rejected_score"))?;
                    Ok([chosen, rejected])
                })
                .collect(),
            Dataset::LatentPairs(pairs) => (0..pairs.len())
                .map(|number| {
                    let (chosen, rejected) = latent_scores(pairs, number)
                        .ok_or_else(|| self.missing_score(&pairs.record_id(number), "chosen_score"))?;
                    Ok([chosen, rejected])
                })
                .collect(),
            other => Err(self.missing_score(&other.record_id(0), "chosen_score")),
        }
    }

    /// Pairs as a curriculum sees them. Latents have no prompts to rank images by.
    fn scored_pairs<'a>(&self, by: GapKind, dataset: &'a Dataset) -> Result<Vec<ScoredPair<'a>>> {
        let scores = self.pair_scores(dataset)?;
        let prompts: Vec<&str> = match dataset {
            Dataset::Pairs(pairs) => pairs.iter().map(|pair| pair.prompt.as_str()).collect(),
            _ if by == GapKind::ScoreGap => vec![""; scores.len()],
            _ => {
                return Err(Error::Recipe {
                    key: "method.offline_pairs.curriculum.by".into(),
                    problem: "is `rank_gap`, and encoded pairs do not say which of them share a prompt".into(),
                    hint: "use `score_gap`".into(),
                });
            }
        };
        let scored = |(prompt, scores)| ScoredPair { prompt, scores };
        Ok(prompts.into_iter().zip(scores).map(scored).collect())
    }

    /// Scores that the objective has no use for are found before anything is encoded.
    fn check_judge(&self, id: &str, name: &'static str, scores: &[f64]) -> Result<()> {
        let refused = |source: diptych_core::Error| Error::Record {
            id: id.to_owned(),
            name,
            found: format!("{scores:?} with that of the other images"),
            expected: format!("what the objective can use: {source}"),
        };
        self.recipe.objective.check_judge_scores(scores).map_err(refused)
    }

    fn missing_score(&self, id: &str, name: &'static str) -> Error {
        Error::Record {
            id: id.to_owned(),
            name,
            found: "no value".into(),
            expected: format!(
                "a judge's score, which `[objective.{}]` or the method's settings need",
                self.recipe.objective.name()
            ),
        }
    }
}

fn settings(
    method: &'static str,
    prompt_dropout: f64,
    timesteps: TimestepConfig,
    posterior: PosteriorUse,
    resolution: Option<u32>,
) -> Settings {
    Settings {
        method,
        prompt_dropout,
        timesteps,
        posterior,
        resolution,
        text: TextTraining::Frozen,
        needs_empty: false,
    }
}

/// Data with one noise a record has none for each of its images.
fn refuse_given_noise(draws: &Draws, method: &str) -> Result<()> {
    if draws.given_noise.is_none() {
        return Ok(());
    }
    Err(Error::Recipe {
        key: format!("method.{method}.noise"),
        problem: "is not `shared`, and the data has one `noise` for all images of a record".into(),
        hint: "set `noise = \"shared\"`, or leave the tensor out".into(),
    })
}

/// Another network sees the policy's noisy latents, which must mean the same to it, and what it says of them is compared with what the policy
/// says. `key` names it.
pub(super) fn check_schedules(policy: &Denoiser, other: &Denoiser, key: &str) -> Result<()> {
    let is_same = match (policy.schedule(), other.schedule()) {
        (NoiseSchedule::Discrete(own), NoiseSchedule::Discrete(other)) => {
            own.prediction_type() == other.prediction_type() && own.alphas_cumprod() == other.alphas_cumprod()
        }
        // A flow is the same line whatever it is shifted by; what a timestep says about it must be the same.
        (NoiseSchedule::Flow(own), NoiseSchedule::Flow(other)) => {
            own.config().num_train_timesteps == other.config().num_train_timesteps
        }
        (NoiseSchedule::Discrete(_), NoiseSchedule::Flow(_)) | (NoiseSchedule::Flow(_), NoiseSchedule::Discrete(_)) => {
            false
        }
    };
    if is_same {
        return Ok(());
    }
    Err(Error::Recipe {
        key: key.into(),
        problem: "has another noise schedule or prediction type than the model".into(),
        hint: "their answers cannot be compared: use a checkpoint of the same model".into(),
    })
}
