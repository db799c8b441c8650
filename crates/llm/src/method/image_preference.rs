//! The chosen answer under its own images against the same answer under others.
//!
//! # Papers
//! With the log-ratios `A_w`, `A_l` of chosen and rejected answer and that of the chosen answer under other images, `A_w'`:
//!
//! - Wang et al., "mDPO: Conditional Preference Optimization for Multimodal Large Language Models", EMNLP 2024, arXiv:2406.11839:
//!   `-log s(beta (A_w - A_l)) - log s(beta (A_w - A_w')) - log s(beta A_w - delta)`, the last term being the anchor.
//! - Xing et al., "Re-Align: Aligning Vision Language Models via Retrieval-Augmented Direct Preference Optimization", arXiv:2502.13146
//!   (rDPO): the same without the anchor, the other image being one that was retrieved.
//! - Fu et al., "`CHiP`: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs", ICLR 2025, arXiv:2501.16629: one joint
//!   sigmoid, `-log s(beta ((A_w - A_l) + (A_w - A_w')))`, with a `token_divergence` in it and `token_weights` as its segments.
//!
//! Convention: sums over tokens. Other images are those of the row (`rejected_images`), or the row's own ones spoiled, alike for policy and
//! reference and differently in every epoch. All sigmoids are those of the objective `dpo`: a joint one is that of the sums
//! `(1 + weight) w` and `l + weight w'`, the anchor's that of a rejected log-ratio `delta / beta`.
//!
//! Reference code: luka-group/mDPO draws the spoiled image once for the policy and again for the reference; here both see the same, unless
//! `reference_draw = "own"`. taco-group/Re-Align sums log-probabilities of the likeliest tokens in the place of those of the answer; here it is
//! the paper's term, unless `scores = "likeliest_other"`.
//!
//! Shape letter: B records.

use diptych_core::{Dpo, Objective, PairLogps, Responses};
use diptych_tensor::{Tensor, ops};
use diptych_train::{MicroBatch, StepOutput};
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::offline_pairs::Pairs;
use super::other_images::{Draw, ReferenceDraw, Spoil, under_other_images};
use super::texts::Texts;
use crate::Result;
use crate::arrangement::Arranged;
use crate::network::NetworkRef;
use crate::reference::ResponsePlace;
use crate::scoring::{Scored, Statistics, host, readable_targets, score, score_others};

/// How the preference between images is learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImagePreferenceConfig {
    /// Strength of the pull towards the reference in the terms of this module, above 0.
    pub beta: f64,
    /// Factor of the term, or of its log-ratios in a joint sigmoid; at least 0.
    pub weight: f64,
    /// One sigmoid or two.
    pub combination: Combination,
    /// What holds the chosen answer's log-ratio up.
    pub anchor: Option<Anchor>,
    /// What the scores under other images, and those of rejected answers, are sums of.
    pub scores: ImageScores,
    /// Whether the reference sees the same spoiled images.
    pub reference_draw: ReferenceDraw,
}

/// What the scores of rejected answers and those under other images are sums of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageScores {
    /// Log-probabilities of the answers' tokens, as in all papers.
    #[default]
    Answer,
    /// Of the likeliest token but the answer's own at every place, for each network its own: what Re-Align's released program does. The
    /// terms are then no log-ratios of a common answer.
    LikeliestOther,
}

/// How the preference between images and that between answers come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combination {
    /// A sigmoid each, whose losses are added: mDPO, rDPO.
    #[default]
    Separate,
    /// One sigmoid of the sum of both: `CHiP`. The objective is `dpo`.
    Joint,
}

/// `-weight log s(beta A_w - delta)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// Factor, at least 0.
    #[serde(default = "one")]
    pub weight: f64,
    /// What the reward is to be above; 0 in the paper.
    #[serde(default)]
    pub delta: f64,
}

fn one() -> f64 {
    1.0
}

/// What the term comes to, (B) each.
struct Losses {
    /// With the objective's own.
    total: Tensor,
    /// The sigmoid of the images, where it is one by itself.
    image: Option<Tensor>,
    anchor: Option<Tensor>,
    /// `beta (A_w - A_w')`.
    margins: Vec<f64>,
}

impl ImagePreferenceConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        let weight = |weight: f64| weight.is_finite() && weight >= 0.0;
        let at_least_0 = "a finite number, at least 0";
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Some(("beta", self.beta.to_string(), "a finite number above 0"));
        }
        if !weight(self.weight) {
            return Some(("weight", self.weight.to_string(), at_least_0));
        }
        let anchor = self.anchor?;
        if !weight(anchor.weight) {
            return Some(("anchor.weight", anchor.weight.to_string(), at_least_0));
        }
        let is_finite = anchor.delta.is_finite();
        (!is_finite).then(|| ("anchor.delta", anchor.delta.to_string(), "a finite number"))
    }

    /// The losses of B records: `losses` are those that the objective gave for the pairs.
    fn losses(&self, objective: &Objective, losses: &Tensor, pairs: &Pairs, other: &Responses) -> Result<Losses> {
        let (given, pairs) = (&pairs.given, &pairs.plain);
        let dpo = Objective::from(Dpo {
            beta: self.beta,
            label_smoothing: 0.0,
        });
        let images = dpo.pair_losses(&PairLogps::of(pairs.chosen.clone(), other.clone()))?;
        let own = host(&images.rewards_chosen)?.into_iter();
        let margins = own.zip(host(&images.rewards_rejected)?).map(|(own, other)| own - other);
        let (mut total, image) = match self.combination {
            Combination::Separate => (plus(losses, &images.losses, self.weight)?, Some(images.losses)),
            Combination::Joint => (
                objective.pair_losses(&self.joint(given, &pairs.chosen, other)?)?.losses,
                None,
            ),
        };
        let mut anchored = None;
        if let Some(anchor) = self.anchor {
            let floor = constant(&pairs.chosen, anchor.delta / self.beta)?;
            let losses = dpo.pair_losses(&PairLogps::of(pairs.chosen.clone(), floor))?.losses;
            total = plus(&total, &losses, anchor.weight)?;
            anchored = Some(losses);
        }
        Ok(Losses {
            total,
            image,
            anchor: anchored,
            margins: margins.collect(),
        })
    }

    /// `w + weight w` against `l + weight w'`, where the first of each is what the objective was given.
    fn joint(&self, given: &PairLogps, own: &Responses, other: &Responses) -> Result<PairLogps> {
        let weight = self.weight;
        let sum = |a: &Responses, b: &Responses| -> Result<Responses> {
            let mut sums = Responses::new(plus(&a.policy, &b.policy, weight)?);
            if let (Some(a), Some(b)) = (&a.reference, &b.reference) {
                sums.reference = Some(plus(a, b, weight)?);
            }
            Ok(sums)
        };
        Ok(PairLogps::of(sum(&given.chosen, own)?, sum(&given.rejected, other)?))
    }
}

/// The term with where its images come from.
#[derive(Debug)]
pub struct ImagePreference {
    config: ImagePreferenceConfig,
    /// Where the records do not bring the other images along.
    spoil: Option<Box<dyn Spoil>>,
}

impl ImagePreference {
    /// `spoil` makes the other images of records without [`other_images`](crate::records::EncodedRecord::other_images).
    pub fn new(config: ImagePreferenceConfig, spoil: Option<Box<dyn Spoil>>) -> Self {
        Self { config, spoil }
    }

    /// What the scores of the rejected answers are sums of.
    pub(super) fn scores(&self) -> ImageScores {
        self.config.scores
    }

    /// Adds the term to what the objective gave for the pairs.
    pub(super) fn add_to(
        &self,
        texts: &Texts<'_>,
        batch: &MicroBatch,
        pairs: &Pairs,
        step: &mut StepOutput,
    ) -> Result<()> {
        let (other, num_tokens) = self.score(texts, batch)?;
        let losses = self
            .config
            .losses(&texts.engine.objective, &step.losses, pairs, &other)?;
        let is_right = |margin: &f64| f64::from(u8::from(*margin > 0.0));
        let accuracies = losses.margins.iter().map(is_right).collect();
        step.metrics.insert("image_preference/accuracies", accuracies);
        step.metrics.insert("image_preference/margins", losses.margins);
        step.metrics.insert("logps/other_images", host(&other.policy)?);
        if let Some(image) = losses.image {
            step.metrics.insert("image_preference/loss", host(&image)?);
        }
        if let Some(anchor) = losses.anchor {
            step.metrics.insert("image_preference/anchor", host(&anchor)?);
        }
        step.losses = losses.total;
        *step.totals.entry("num_tokens").or_default() += num_tokens;
        Ok(())
    }

    /// The chosen answers of a micro batch under their other images, (B), and the number of tokens of these texts.
    fn score(&self, texts: &Texts<'_>, batch: &MicroBatch) -> Result<(Responses, f64)> {
        let engine = texts.engine;
        let under = |draw| under_other_images(texts, batch, self.spoil.as_deref(), draw);
        let answers = under(Draw::Policy)?;
        let reference = match self.config.reference_draw {
            ReferenceDraw::Same => engine.reference.score_live(engine.network(), &answers.arranged)?,
            ReferenceDraw::Own => {
                let own = under(Draw::Reference)?;
                engine.reference.score_live(engine.network(), &own.arranged)?
            }
        };
        let mut policy = score(engine.network(), &answers.arranged, Statistics::Skipped)?;
        let mut reference = reference;
        if self.config.scores == ImageScores::LikeliestOther {
            (policy, reference) = likeliest_others(engine, &answers.arranged, &policy, reference.as_ref())?;
        }
        let weights: Vec<Option<&[f32]>> = answers
            .responses
            .iter()
            .map(|response| engine.weights_of(response))
            .collect();
        let responses = engine.summed(&answers.arranged, &weights, &policy, reference.as_ref())?;
        Ok((responses, answers.num_tokens()))
    }
}

/// The scores of the likeliest tokens but those of the batch in the places of these, each network's own.
pub(super) fn likeliest_others(
    engine: &Engine,
    arranged: &Arranged,
    policy: &Scored,
    reference: Option<&Scored>,
) -> Result<(Scored, Option<Scored>)> {
    let others = |network: NetworkRef<'_>, scored: &Scored| -> Result<Scored> {
        let hidden = scored.predicting(arranged, 0..arranged.targets.len())?;
        let head = network.language_model().token_head(&hidden)?;
        let readable = readable_targets(network, &arranged.targets);
        let targets = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(readable.as_ref(), hidden.device())?) };
        let tokens = ops::likeliest_tokens(&head, Some(&targets()?))?;
        Ok(Scored {
            per_token_logps: score_others(network, &hidden, &tokens)?,
            ..scored.clone()
        })
    };
    let network = engine.network();
    let of_policy = others(network, policy)?;
    let reference = match reference {
        Some(scored) => engine
            .reference
            .with_network(network, |network| others(network, scored))?,
        None => None,
    };
    Ok((of_policy, reference))
}

/// The second scores where an answer is a rejected one, the first elsewhere.
pub(super) fn of_rejected(
    places: &[ResponsePlace],
    arranged: &Arranged,
    first: (Scored, Option<Scored>),
    second: (Scored, Option<Scored>),
) -> Result<(Scored, Option<Scored>)> {
    let mut is_rejected = vec![0u8; arranged.targets.len()];
    for (place, tokens) in places.iter().zip(&arranged.responses) {
        is_rejected[tokens.clone()].fill(u8::from(place.response == 1));
    }
    let mix = |first: Scored, second: &Scored| -> Result<Scored> {
        let mixed = || -> diptych_tensor::Result<Tensor> {
            let logps = &first.per_token_logps;
            let mask = Tensor::new(is_rejected.as_slice(), logps.device())?;
            Ok(mask.where_cond(&second.per_token_logps, logps)?)
        };
        Ok(Scored {
            per_token_logps: mixed()?,
            ..first
        })
    };
    let reference = match (first.1, second.1) {
        (Some(first), Some(second)) => Some(mix(first, &second)?),
        (first, _) => first,
    };
    Ok((mix(first.0, &second.0)?, reference))
}

/// `a + weight b`.
fn plus(a: &Tensor, b: &Tensor, weight: f64) -> Result<Tensor> {
    let sum = || -> diptych_tensor::Result<Tensor> { Ok((a + (b * weight)?)?) };
    Ok(sum()?)
}

/// As many responses with this log-ratio.
fn constant(like: &Responses, log_ratio: f64) -> Result<Responses> {
    let filled = || -> diptych_tensor::Result<[Tensor; 2]> {
        let zeros = like.policy.detach().zeros_like()?;
        Ok([(&zeros + log_ratio)?, zeros])
    };
    let [policy, reference] = filled()?;
    Ok(Responses {
        reference: Some(reference),
        ..Responses::new(policy)
    })
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{DType, Device, Var};

    use super::super::token_divergence::{Divergences, TokenDivergenceConfig};
    use super::*;

    fn config_of(case: &serde_json::Value) -> ImagePreferenceConfig {
        let number = |key: &str| case[key].as_f64();
        ImagePreferenceConfig {
            beta: number("image_beta").unwrap(),
            weight: number("weight").unwrap(),
            combination: serde_json::from_value(case["combination"].clone()).unwrap(),
            anchor: number("anchor").map(|weight| Anchor {
                weight,
                delta: number("delta").unwrap(),
            }),
            scores: ImageScores::Answer,
            reference_draw: ReferenceDraw::Same,
        }
    }

    /// The pairs with the divergences of a case in them, where it has any.
    fn entered(case: &serde_json::Value, plain: &PairLogps, [chosen, rejected]: &[Var; 2]) -> PairLogps {
        let Some(config) = case.get("divergence") else {
            return plain.clone();
        };
        let config: TokenDivergenceConfig = serde_json::from_value(config.clone()).unwrap();
        let divergences = Divergences {
            chosen: chosen.as_tensor().clone(),
            rejected: Some(rejected.as_tensor().clone()),
        };
        config.enter(plain, &divergences).unwrap()
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_papers() {
        let text = include_str!("../../../../tests/golden/vlm_preferences.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = golden["losses"].as_array().unwrap();
        for case in cases {
            let read = |key: &str| -> Vec<f64> { serde_json::from_value(case[key].clone()).unwrap() };
            let number = |key: &str| case[key].as_f64();
            let tensor = |values: Vec<f64>| Tensor::new(values, &Device::Cpu).unwrap();
            let vars = ["chosen", "rejected", "other"]
                .map(|side| Var::from_tensor(&tensor(read(&format!("policy_{side}")))).unwrap());
            let side = |at: usize, name: &str| Responses {
                reference: Some(tensor(read(&format!("reference_{name}")))),
                ..Responses::new(vars[at].as_tensor().clone())
            };
            let plain = PairLogps::of(side(0, "chosen"), side(1, "rejected"));
            let divergences = ["chosen", "rejected"].map(|side| {
                let key = format!("divergence_{side}");
                let values = case.get(&key).map_or(vec![0.0; 7], |_| read(&key));
                Var::from_tensor(&tensor(values)).unwrap()
            });
            let given = entered(case, &plain, &divergences);
            let pairs = Pairs { plain, given };
            let config = config_of(case);
            let objective = Objective::from(Dpo {
                beta: number("beta").unwrap(),
                label_smoothing: 0.0,
            });
            let own = objective.pair_losses(&pairs.given).unwrap().losses;
            let losses = config.losses(&objective, &own, &pairs, &side(2, "other")).unwrap();
            let close = |what: &str, found: Vec<f64>, expected: Vec<f64>| {
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    let bound = 1e-9 * expected.abs().max(1e-3);
                    assert!(
                        (found - expected).abs() <= bound,
                        "{what}: {found}, expected {expected}: {case}"
                    );
                }
            };
            let numbers = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            close("losses", numbers(&losses.total), read("losses"));
            let gradients = losses.total.sum_all().unwrap().backward().unwrap();
            for (var, side) in vars.iter().zip(["chosen", "rejected", "other"]) {
                // Without weight nothing reaches the other images.
                let gradient = gradients.get(var).map_or(vec![0.0; 7], numbers);
                close(side, gradient, read(&format!("gradient_{side}")));
            }
            for (var, side) in divergences.iter().zip(["chosen", "rejected"]) {
                let key = format!("gradient_divergence_{side}");
                if case.get(&key).is_some() {
                    close(side, gradients.get(var).map_or(vec![0.0; 7], numbers), read(&key));
                }
            }
        }
        assert_eq!(cases.len(), 13);
    }
}
