//! From a recipe to a method that samples: distinct prompts, their embeddings, the networks, the judge.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use diptych_data::Dataset;
use diptych_eval::JudgeOptions;
use diptych_models::Trainable;
use diptych_models::vae::AutoencoderKl;
use diptych_train::{Recipe, Reporter};

use super::config::{RolloutConfig, StepAwareConfig};
use super::direct_reward::DirectReward;
use super::pair_step::PairLoss;
use super::policy_gradient::PolicyGradient;
use super::reward::{JudgeReward, Reward};
use super::studio::{PromptSet, Studio};
use super::{Online, PairSource, PairWay, Way};
use crate::method::DiffusionMethod;
use crate::method::config::MethodConfig;
use crate::method::prepare::Preparation;
use crate::method::showcase::{Showcase, shown};
use crate::method::trained::TextTraining;
use crate::modality::Diffusion;
use crate::pipeline::{Denoiser, PromptEmbeddings, SampleConfig, TextConditioner, image_tokens, load_vae};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// Refuses a reward that nothing would use, one beside the recipe's judge, and a method without either.
pub(in crate::method) fn check_reward(recipe: &Recipe<Diffusion>, reward: Option<&dyn Reward>) -> Result<()> {
    let key = format!("method.{}.judge", recipe.method.name());
    let (problem, hint) = match (recipe.method.is_online(), recipe.method.judge(), reward) {
        (false, _, None) | (true, Some(_), None) => return Ok(()),
        (true, None, Some(reward)) => {
            let needs_gradient = match &recipe.method {
                MethodConfig::DirectReward(_) => true,
                MethodConfig::StepAware(config) => config.gradient_guidance.is_some(),
                _ => false,
            };
            if reward.is_differentiable() || !needs_gradient {
                return Ok(());
            }
            (
                format!("would be `{}`, which has no gradient", reward.name()),
                "give a reward that is differentiable",
            )
        }
        (false, _, Some(reward)) => (
            format!("would be `{}`, which this method does not use", reward.name()),
            "take `prepare`",
        ),
        (true, None, None) => ("is missing".to_owned(), "name a judge, such as \"verifier\""),
        (true, Some(_), Some(reward)) => (
            format!("is given, and so is the reward `{}`", reward.name()),
            "give one of them",
        ),
    };
    Err(Error::Recipe {
        key,
        problem,
        hint: hint.into(),
    })
}

/// Prompts of records.
struct Prompts {
    ids: Vec<String>,
    texts: Vec<String>,
}

/// The different prompts of a data set, each with the id of the first record that has it.
fn distinct(dataset: Dataset, method: &'static str) -> Result<Prompts> {
    let records: Vec<(String, String)> = match dataset {
        Dataset::Prompts(prompts) => prompts.into_iter().map(|record| (record.id, record.prompt)).collect(),
        Dataset::Pairs(pairs) => pairs.into_iter().map(|record| (record.id, record.prompt)).collect(),
        Dataset::Captions(captions) => captions.into_iter().map(|record| (record.id, record.prompt)).collect(),
        Dataset::Ranked(lists) => lists.into_iter().map(|record| (record.id, record.prompt)).collect(),
        Dataset::Labels(labels) => labels.into_iter().map(|record| (record.id, record.prompt)).collect(),
        other @ Dataset::LatentPairs(_) => {
            return Err(Error::DataKind {
                method,
                found: other.records().name(),
                expected: "prompts, or images with their prompts",
            });
        }
    };
    let mut seen = BTreeSet::new();
    let (ids, texts) = records
        .into_iter()
        .filter(|(_, prompt)| seen.insert(prompt.clone()))
        .unzip();
    Ok(Prompts { ids, texts })
}

impl Preparation<'_> {
    pub(in crate::method) fn online(
        &self,
        dataset: Dataset,
        reward: Option<Arc<dyn Reward>>,
        reporter: &mut Reporter<'_>,
    ) -> Result<DiffusionMethod> {
        let (rollout, way) = self.way()?;
        let prompts = distinct(dataset, self.recipe.method.name())?;
        // Everything about the sampler and the judge that can be wrong, before networks are loaded.
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        rollout.sampler().check(&schedule)?;
        let reward = self.reward(reward)?;
        reward.check_prompts(&prompts.texts)?;
        let samples = self.samples(&prompts.texts)?;
        let (prompts, sample_embeddings) = self.prompts(prompts, &rollout, samples.as_ref(), reporter)?;
        let vae = Arc::new(load_vae(self.pipeline, &self.options, Trainable::None)?.0);
        let policy = self.policy(TextTraining::Frozen)?;
        let latent_shape = self.latent_shape(&rollout, &policy.denoiser, &vae)?;
        let schedule = policy.denoiser.schedule().with_image_tokens(image_tokens(latent_shape));
        let sampler = rollout.sampler().prepare(&schedule)?;
        match &way {
            Way::DirectReward(way) => way.check_density(&sampler)?,
            Way::Pairs(_) | Way::PolicyGradient(_) => sampler.ensure_density()?,
        }
        let showcase = samples
            .map(|samples| Showcase::new(vae.clone(), sample_embeddings, samples, &policy, latent_shape, reporter))
            .transpose()?;
        let studio = Studio {
            reference: self.reference(&policy)?,
            policy,
            vae,
            reward,
            prompts,
            sampler: Arc::new(sampler),
            guidance_scale: rollout.guidance_scale,
            latent_shape,
        };
        Ok(DiffusionMethod::Online(Box::new(Online { studio, way, showcase })))
    }

    /// How trajectories are sampled, and what is learned from them.
    fn way(&self) -> Result<(RolloutConfig, Way)> {
        let objective = self.recipe.objective.clone();
        let pairs = |source, loss| {
            Way::Pairs(PairWay {
                source,
                loss,
                kept: Mutex::new(None),
            })
        };
        Ok(match &self.recipe.method {
            MethodConfig::TrajectoryPairs(config) => {
                let loss = PairLoss {
                    objective,
                    reuse: config.reuse,
                    clip_range: config.clip_range,
                };
                (config.rollout, pairs(PairSource::Trajectories, loss))
            }
            MethodConfig::StepAware(config) => {
                let loss = PairLoss {
                    objective,
                    reuse: config.reuse,
                    clip_range: config.clip_range,
                };
                let config: StepAwareConfig = config.clone();
                (config.rollout, pairs(PairSource::Candidates(Box::new(config)), loss))
            }
            MethodConfig::PolicyGradient(config) => {
                let way = PolicyGradient::new(config.clone(), objective);
                (config.rollout, Way::PolicyGradient(way))
            }
            MethodConfig::DirectReward(config) => {
                let config = config.clone();
                (config.rollout, Way::DirectReward(DirectReward { config, objective }))
            }
            other => {
                return Err(Error::Recipe {
                    key: format!("method.{}", other.name()),
                    problem: "samples nothing to learn from".into(),
                    hint: "take another method".into(),
                });
            }
        })
    }

    fn reward(&self, reward: Option<Arc<dyn Reward>>) -> Result<Arc<dyn Reward>> {
        if let Some(reward) = reward {
            return Ok(reward);
        }
        let key = format!("method.{}.judge", self.recipe.method.name());
        let judge = self.recipe.method.judge().ok_or_else(|| Error::Recipe {
            key: key.clone(),
            problem: "is missing".into(),
            hint: "name a judge, such as \"verifier\"".into(),
        })?;
        let judge = judge.map_paths(&mut |path: &Path| self.recipe.resolve_path(&key, path))?;
        let options = JudgeOptions {
            // In f32 whatever the policy's precision is, as everywhere else: labels come from small differences.
            device: self.options.device.clone(),
            ..JudgeOptions::default()
        };
        Ok(Arc::new(JudgeReward::load(judge, &options)?))
    }

    /// Embeddings of the prompts, and of those that are shown.
    fn prompts(
        &self,
        prompts: Prompts,
        rollout: &RolloutConfig,
        samples: Option<&(Vec<String>, SampleConfig)>,
        reporter: &mut Reporter<'_>,
    ) -> Result<(PromptSet, Option<PromptEmbeddings>)> {
        let (text, _) = TextConditioner::load(self.pipeline, &self.options, Trainable::None, None)?;
        let own = prompts.texts.iter().map(String::as_str);
        let mut embeddings = PromptEmbeddings::encode(&text, own, reporter)?;
        if rollout.guidance_scale > 1.0 {
            embeddings.add_missing(&text)?;
        }
        let shown = samples
            .map(|(prompts, config)| shown(&text, prompts, config, reporter))
            .transpose()?;
        let set = PromptSet {
            rows: prompts.texts.iter().filter_map(|text| embeddings.row(text)).collect(),
            empty: embeddings.missing(),
            ids: prompts.ids,
            texts: prompts.texts,
            embeddings,
        };
        Ok((set, shown))
    }

    fn latent_shape(&self, rollout: &RolloutConfig, denoiser: &Denoiser, vae: &AutoencoderKl) -> Result<[usize; 3]> {
        let section = format!("method.{}.rollout", self.recipe.method.name());
        let shape = rollout.latent_shape(denoiser.config(), vae.downscale());
        shape.map_err(|error| error.of_section(&section))
    }
}

/// The files that a recipe's judge reads, with the key that names them.
pub(crate) fn judge_files(recipe: &Recipe<Diffusion>) -> diptych_train::Result<Vec<(String, PathBuf)>> {
    let Some(judge) = recipe.method.judge() else {
        return Ok(Vec::new());
    };
    let key = format!("method.{}.judge", recipe.method.name());
    let mut files = Vec::new();
    judge.map_paths(&mut |path: &Path| -> diptych_train::Result<PathBuf> {
        let path = recipe.resolve_path(&key, path)?;
        files.push((key.clone(), path.clone()));
        Ok(path)
    })?;
    Ok(files)
}
