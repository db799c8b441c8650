//! A weighted sum of objectives.
//!
//! # Paper
//! No single source. Wang et al., "Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference
//! Optimization", arXiv:2411.10442, Eq. 3, is 0.8 `dpo` + 0.2 `bco` + 1.0 `sft`; Liu et al., "Provably Mitigating Overoptimization
//! in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer", Neural Information Processing Systems 2024, arXiv:2405.16436, is
//! `dpo` with an `sft` term.
//!
//! # Formula
//! ```text
//! L = sum_i weight_i L_i
//! ```
//!
//! # Convention
//! Every term sees the same scores. Terms are of one kind, that of the sum; terms that look at desirable responses alone go with
//! every kind but unpaired responses. Rewards are those of the first term that is of the sum's kind, so that metrics
//! keep the meaning they have without the other terms.
//! Reference code: trl `dpo_trainer.py`, `loss_type` with `loss_weights`. Differences: TRL's rewards are always `beta` times the
//! log-ratio.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, Objective, ObjectiveInfo, in_range, wrong_kind};
use crate::{
    Error, Kind, ListLogps, ObjectiveOutput, PairLogps, Requirements, Responses, ResponsesOutput, Result, ScoreKind,
    UnpairedLogps,
};

/// Parameters of the sum.
///
/// # Shape
/// As the terms.
///
/// # Errors
/// [`Terms`](crate::Error::Terms) without terms, or for terms of different kinds; [`OutOfRange`](crate::Error::OutOfRange) for a
/// weight that is not a finite number; whatever a term refuses.
///
/// # Example
/// ```
/// use diptych_core::{Objective, PairLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let objective: Objective = serde_json::from_str(
///     r#"{ "weighted_sum": { "terms": [
///         { "weight": 1.0, "objective": { "dpo": { "beta": 0.1 } } },
///         { "weight": 0.5, "objective": { "sft": {} } }
///     ] } }"#,
/// )?;
/// let score = |value: f32| Tensor::new(&[value], &Device::Cpu);
/// let logps = PairLogps::new(score(-4.0)?, score(-6.0)?).with_reference(score(-4.0)?, score(-6.0)?);
/// let loss = objective.pair_losses(&logps)?.losses.to_vec1::<f32>()?[0];
/// assert!((loss - (std::f32::consts::LN_2 + 0.5 * 4.0)).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSum {
    /// What is added, at least one.
    pub terms: Vec<Term>,
}

/// One objective of a sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Its factor.
    pub weight: f64,
    /// The objective.
    pub objective: Objective,
}

impl Formula for WeightedSum {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "weighted_sum",
        title: "Weighted sum of objectives",
        paper: "for example Wang et al., arXiv:2411.10442 (MPO); Liu et al., NeurIPS 2024, arXiv:2405.16436 (RPO)",
        requirements: Requirements::PAIRS,
    };

    fn requirements(&self) -> Requirements {
        let of = |term: &Term| term.objective.requirements();
        let kind = self.leading().map_or(Kind::Chosen, |term| of(term).kind);
        let nothing = Requirements {
            kind,
            ..Requirements::CHOSEN
        };
        self.terms.iter().map(of).fold(nothing, Requirements::and)
    }

    fn running_shift_beta(&self) -> Option<f64> {
        self.terms.iter().find_map(|term| term.objective.running_shift_beta())
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        self.terms
            .iter()
            .try_for_each(|term| term.objective.check_judge_scores(scores))
    }

    fn validate(&self) -> Result<()> {
        if self.terms.is_empty() {
            return Err(terms("at least one is needed".into()));
        }
        let needed = Formula::requirements(self);
        for Term { weight, objective } in &self.terms {
            in_range(weight.is_finite(), "weighted_sum", "weight", *weight, "a finite number")?;
            objective.validate()?;
            let of_term = objective.requirements();
            let goes_along = of_term.kind == Kind::Chosen && needed.kind != Kind::Unpaired;
            if of_term.kind != needed.kind && !goes_along {
                let (found, expected) = (of_term.kind.name(), needed.kind.name());
                let problem = format!(
                    "`{}` is of kind {found} beside terms of kind {expected}",
                    objective.name()
                );
                return Err(terms(problem));
            }
            if of_term.score != ScoreKind::Any && of_term.score != needed.score {
                let problem = format!("`{}` needs other scores than the terms beside it", objective.name());
                return Err(terms(problem));
            }
        }
        self.check_running_shifts()
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let leading = self.leading().ok_or_else(|| wrong_kind(&Self::INFO, "pairs"))?;
        let mut output = leading.objective.pair_losses(logps)?;
        output.losses = self.total(|objective| match objective.requirements().kind {
            Kind::Chosen => objective.chosen_losses(&logps.chosen),
            Kind::Pairs | Kind::Unpaired | Kind::Lists => Ok(objective.pair_losses(logps)?.losses),
        })?;
        Ok(output)
    }

    fn unpaired_losses(&self, logps: &UnpairedLogps) -> Result<ResponsesOutput> {
        let leading = self
            .leading()
            .ok_or_else(|| wrong_kind(&Self::INFO, "unpaired responses"))?;
        let mut output = leading.objective.unpaired_losses(logps)?;
        output.losses = self.total(|objective| Ok(objective.unpaired_losses(logps)?.losses))?;
        Ok(output)
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let leading = self.leading().ok_or_else(|| wrong_kind(&Self::INFO, "ranked lists"))?;
        let mut output = leading.objective.list_losses(logps)?;
        output.losses = self.total(|objective| match objective.requirements().kind {
            Kind::Chosen => objective.chosen_losses(&logps.best()?),
            Kind::Pairs | Kind::Unpaired | Kind::Lists => Ok(objective.list_losses(logps)?.losses),
        })?;
        Ok(output)
    }

    fn chosen_losses(&self, chosen: &Responses) -> Result<Tensor> {
        self.total(|objective| objective.chosen_losses(chosen))
    }
}

impl WeightedSum {
    /// A trainer keeps one running mean of the rewards, which are `beta` times the log-ratios.
    fn check_running_shifts(&self) -> Result<()> {
        let mut betas = self.terms.iter().filter_map(|term| term.objective.running_shift_beta());
        let Some(first) = betas.next() else { return Ok(()) };
        // The same number as it is written, not nearly the same.
        match betas.find(|beta| beta.to_bits() != first.to_bits()) {
            None => Ok(()),
            Some(other) => Err(terms(format!(
                "running means of rewards with beta {first} and with beta {other}; terms with `running_shift` need one beta"
            ))),
        }
    }

    /// The term whose kind and rewards are those of the sum: the first that compares anything.
    fn leading(&self) -> Option<&Term> {
        let compares = |term: &&Term| term.objective.requirements().kind != Kind::Chosen;
        self.terms.iter().find(compares).or(self.terms.first())
    }

    /// The weighted sum of one loss a term.
    fn total(&self, losses: impl Fn(&Objective) -> Result<Tensor>) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for term in &self.terms {
            let losses = losses(&term.objective)?;
            let add = || -> diptych_tensor::Result<Tensor> {
                let weighted = (&losses * term.weight)?;
                match &total {
                    None => Ok(weighted),
                    Some(total) => Ok((total + weighted)?),
                }
            };
            total = Some(add()?);
        }
        total.ok_or_else(|| terms("at least one is needed".into()))
    }
}

fn terms(problem: String) -> Error {
    Error::Terms { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(json: &str) -> Objective {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn terms_that_do_not_go_together_are_refused() {
        let refused = [
            (r#"{ "weighted_sum": { "terms": [] } }"#, "at least one"),
            (
                r#"{ "weighted_sum": { "terms": [{ "weight": 1.0, "objective": { "dpo": { "beta": -1.0 } } }] } }"#,
                "objective.dpo.beta",
            ),
            (
                r#"{ "weighted_sum": { "terms": [
                    { "weight": 1.0, "objective": { "bco_pair": { "beta": 0.1, "running_shift": true } } },
                    { "weight": 1.0, "objective": { "bco_pair": { "beta": 0.2, "running_shift": true } } }
                ] } }"#,
                "beta 0.1 and with beta 0.2",
            ),
        ];
        for (json, expected) in refused {
            let error = sum(json).validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn terms_of_one_running_mean_go_together() {
        let objective = sum(r#"{ "weighted_sum": { "terms": [
                { "weight": 1.0, "objective": { "bco_pair": { "beta": 0.3 } } },
                { "weight": 1.0, "objective": { "bco_pair": { "beta": 0.1, "running_shift": true } } },
                { "weight": 0.5, "objective": { "bco_pair": { "beta": 0.1, "running_shift": true } } }
            ] } }"#);
        objective.validate().unwrap();
        assert_eq!(objective.running_shift_beta(), Some(0.1));
    }

    #[test]
    fn a_judges_scores_are_checked_for_every_term_before_anything_is_computed() {
        let objective = sum(r#"{ "weighted_sum": { "terms": [
                { "weight": 1.0, "objective": { "dpo": { "beta": 0.1 } } },
                { "weight": 1.0, "objective": { "wpo": { "objective": { "odpo": { "beta": 0.1, "alpha": 1.0 } } } } },
                { "weight": 1.0, "objective": { "lipo_lambda": { "beta": 0.1 } } }
            ] } }"#);
        objective.check_judge_scores(&[2.0, 1.0]).unwrap();
        for (scores, expected) in [
            ([1.0, 1.0], "`odpo`"),
            ([200.0, 1.0], "objective.lipo_lambda.judge_scores = 200"),
            ([f64::NAN, 1.0], "`odpo`"),
        ] {
            let error = objective.check_judge_scores(&scores).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let any = sum(r#"{ "dpo": { "beta": 0.1 } }"#);
        any.check_judge_scores(&[1.0, 2.0]).unwrap();
    }

    #[test]
    fn needs_are_those_of_all_terms() {
        let objective = sum(r#"{ "weighted_sum": { "terms": [
                { "weight": 0.5, "objective": { "sft": {} } },
                { "weight": 1.0, "objective": { "dpo": { "beta": 0.1 } } }
            ] } }"#);
        assert_eq!(objective.requirements(), Requirements::PAIRS.with_reference());
        objective.validate().unwrap();
    }
}
