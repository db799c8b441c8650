//! Representations of whole texts, compared in the frequency domain.
//!
//! # Paper
//! Zhang et al., "TARS: `MinMax` Token-Adaptive Preference Strategy for Hallucination Reduction in MLLMs", arXiv:2507.21584, the spectral
//! preference alignment beside DPO on perturbed prompts:
//!
//! ```text
//! L = L_DPO + weight L_freq
//! L_freq = -log s(beta log F(h(x, p(q), y_w)) / F(h_ref(x, q, y_w)) - beta log F(h(x, p(q), y_l)) / F(h_ref(x, q, y_l)))
//! F(z) = sum_k || Re sum_t z_t e^(-2 pi i k t / T) ||^2
//! ```
//!
//! with the states `h` of all tokens of a text, images and prompt among them. The paper does not say of which layer; here they are the last
//! ones, after the final norm. `sum_k cos(2 pi k t / T) cos(2 pi k u / T)` is `T / 2` where `t = u` or `t = -u` modulo T, so that
//! `F(z) = T / 2 sum_t z_t (z_t + z_(-t mod T))`, which needs no transform.
//!
//! Reference code: KejiaZhang-Robust/TARS `llava/train/llava_trainer.py`. Differences: the released program has another loss, `triplet`:
//! `relu(mse(|Fz|, |Fw|) - mse(|Fz|, |Fl|) + margin)` with the magnitudes of the spectra of the policy's input embeddings of the perturbed
//! chosen text z and of the reference's of the unperturbed texts w and l, the shorter ones filled up with zeros. Input embeddings depend on
//! nothing but embedding table, projector and tower: an adapter that trains none of these gets no gradient from it.
//!
//! Shape letters: T tokens of a text, D width, B records.

use diptych_core::{Dpo, Objective, PairLogps, Responses};
use diptych_tensor::{DType, Tensor};
use diptych_train::StepOutput;
use serde::{Deserialize, Serialize};

use super::engine::{Batch, Term};
use super::texts::Texts;
use crate::arrangement::Arranged;
use crate::reference::ResponsePlace;
use crate::scoring::host;
use crate::{Error, Result};

/// `[method.offline_pairs.frequency]`: needs a reference whose network is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrequencyConfig {
    /// Factor of the term, the paper's lambda, at least 0; 0.1 in paper and program.
    pub weight: f64,
    /// What is compared.
    #[serde(default)]
    pub form: FrequencyForm,
}

/// How spectra are compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FrequencyForm {
    /// The powers of both answers' last states, as scores of a DPO: the paper.
    Power {
        /// Multiplies the log-ratios, above 0; 1 in the paper.
        beta: f64,
    },
    /// The magnitudes of input embeddings, as a triplet: the released program.
    Triplet {
        /// By how much the rejected text is to be farther away, at least 0; 0.5 in the program.
        margin: f64,
    },
}

impl Default for FrequencyForm {
    fn default() -> Self {
        Self::Power { beta: 1.0 }
    }
}

impl FrequencyConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
        let expected = "a finite number, at least 0";
        if !at_least_0(self.weight) {
            return Some(("frequency.weight", self.weight.to_string(), expected));
        }
        match self.form {
            FrequencyForm::Power { beta } if !(beta.is_finite() && beta > 0.0) => {
                let expected = "a finite number above 0";
                Some(("frequency.form.power.beta", beta.to_string(), expected))
            }
            FrequencyForm::Triplet { margin } if !at_least_0(margin) => {
                Some(("frequency.form.triplet.margin", margin.to_string(), expected))
            }
            FrequencyForm::Power { .. } | FrequencyForm::Triplet { .. } => None,
        }
    }

    /// Adds the term of pairs, which were scored as `scored` says, to their losses.
    pub(super) fn add_to(
        &self,
        (texts, places): (&Texts<'_>, &[ResponsePlace]),
        scored: &Batch,
        step: &mut StepOutput,
    ) -> Result<()> {
        let engine = texts.engine;
        let clean = Texts::of(engine);
        let sequences: Vec<_> = places.iter().map(|place| clean.sequence(*place)).collect();
        // The reference reads unperturbed texts, which it has read already where none is perturbed.
        let unperturbed = if texts.is_perturbed() {
            Some(engine.arranged(&sequences)?)
        } else {
            None
        };
        let arranged = unperturbed.as_ref().unwrap_or(&scored.arranged);
        let losses = match self.form {
            FrequencyForm::Power { beta } => {
                let read = match &unperturbed {
                    Some(arranged) => engine.reference.score_live(engine.network(), arranged)?,
                    None => scored.reference.clone(),
                };
                let reference = read.and_then(|scored| scored.states).ok_or(Error::NoDistributions)?;
                let policy = scored.policy.states.as_ref().ok_or(Error::NoDistributions)?;
                let (policy, reference) = (powers(policy, &scored.arranged)?, powers(&reference, arranged)?);
                power_losses(beta, &policy, &reference)?
            }
            FrequencyForm::Triplet { margin } => {
                let network = engine.network();
                let policy = network.embeddings(&scored.arranged)?;
                let reference = engine
                    .reference
                    .with_network(network, |network| network.embeddings(arranged))?;
                let reference = reference.ok_or(Error::NoDistributions)?.detach();
                let of = |states: &Tensor, arranged: &Arranged, at: usize| -> Result<Tensor> {
                    Ok(rows(states, &arranged.texts[at].concat())?)
                };
                let triplet = |at: usize| -> Result<Tensor> {
                    let [own, chosen, rejected] = [
                        of(&policy, &scored.arranged, at)?,
                        of(&reference, arranged, at)?,
                        of(&reference, arranged, at + 1)?,
                    ];
                    Ok(triplet_loss(margin, &own, &chosen, &rejected)?)
                };
                let losses = (0..places.len()).step_by(2).map(triplet).collect::<Result<Vec<_>>>()?;
                let stacked = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::stack(&losses, 0)?) };
                stacked()?
            }
        };
        // Prompts are perturbed anew, and unperturbed texts are read once more.
        let num_tokens = if texts.is_perturbed() {
            Term::count(&sequences)
        } else {
            0.0
        };
        let dtype = step.losses.dtype();
        let weighted = || -> diptych_tensor::Result<Tensor> { Term::weighted(&losses.to_dtype(dtype)?, self.weight) };
        Term {
            metrics: [("frequency/loss", host(&losses)?)].into(),
            num_tokens,
            losses: weighted()?,
        }
        .add_to(step)
    }
}

/// The logarithm of the power of every text, (M).
fn powers(states: &Tensor, arranged: &Arranged) -> Result<Tensor> {
    let of_text =
        |text: &[Vec<u32>; 2]| -> diptych_tensor::Result<Tensor> { log_power(&rows(states, &text.concat())?) };
    let stacked = || -> diptych_tensor::Result<Tensor> {
        let powers = arranged
            .texts
            .iter()
            .map(of_text)
            .collect::<diptych_tensor::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&powers, 0)?)
    };
    Ok(stacked()?)
}

/// Rows of (B T, D), or of (B, T, D).
fn rows(states: &Tensor, at: &[u32]) -> diptych_tensor::Result<Tensor> {
    let flat = match states.rank() {
        3 => states.flatten(0, 1)?,
        _ => states.clone(),
    };
    Ok(flat.index_select(&Tensor::new(at, states.device())?, 0)?)
}

/// `log F(z)` of states (T, D), a number in f32 or f64.
fn log_power(states: &Tensor) -> diptych_tensor::Result<Tensor> {
    let states = widened(states)?;
    let len = states.dim(0)?;
    let mirrored: Vec<u32> = (0..len).map(|at| ((len - at) % len) as u32).collect();
    let mirrored = states.index_select(&Tensor::new(mirrored, states.device())?, 0)?;
    let power = ((&states * (&states + mirrored)?)?.sum_all()? * (len as f64 / 2.0))?;
    Ok(power.log()?)
}

/// The losses of pairs whose texts stand in the order chosen, rejected, chosen, …: (M) each to (B).
fn power_losses(beta: f64, policy: &Tensor, reference: &Tensor) -> Result<Tensor> {
    let num = policy.dim(0).map_err(diptych_tensor::Error::from)? as u32;
    let all = Responses {
        reference: Some(reference.clone()),
        ..Responses::new(policy.clone())
    };
    let [chosen, rejected] = [0, 1].map(|side| (side..num).step_by(2).collect::<Vec<_>>());
    let dpo = Objective::from(Dpo {
        beta,
        label_smoothing: 0.0,
    });
    let pairs = PairLogps::of(all.select(&chosen)?, all.select(&rejected)?);
    Ok(dpo.pair_losses(&pairs)?.losses)
}

/// `relu(mse(|Fz|, |Fw|) - mse(|Fz|, |Fl|) + margin)` of embeddings (T, D) each, T each its own: a number.
fn triplet_loss(margin: f64, own: &Tensor, chosen: &Tensor, rejected: &Tensor) -> diptych_tensor::Result<Tensor> {
    let len = [own, chosen, rejected].iter().map(|z| z.dims()[0]).max().unwrap_or(0);
    let [own, chosen, rejected] = [
        magnitudes(own, len)?,
        magnitudes(chosen, len)?,
        magnitudes(rejected, len)?,
    ];
    let mse = |other: &Tensor| -> diptych_tensor::Result<Tensor> { Ok((&own - other)?.sqr()?.mean_all()?) };
    Ok(((mse(&chosen)? - mse(&rejected)?)? + margin)?.relu()?)
}

/// Magnitudes of the discrete Fourier transform along the tokens, filled up with zeros to `len`: (T, D) to (`len`, D).
fn magnitudes(states: &Tensor, len: usize) -> diptych_tensor::Result<Tensor> {
    /// Where a magnitude is zero its slope is taken to be zero, as PyTorch does.
    const TINY: f64 = 1e-30;
    let states = widened(states)?;
    let own = states.dim(0)?;
    let angles = |turn: fn(f64) -> f64| -> diptych_tensor::Result<Tensor> {
        let of = |k: usize, t: usize| turn(std::f64::consts::TAU * ((k * t) % len) as f64 / len as f64);
        let values: Vec<f64> = (0..len).flat_map(|k| (0..own).map(move |t| of(k, t))).collect();
        Ok(Tensor::from_vec(values, (len, own), states.device())?.to_dtype(states.dtype())?)
    };
    let (real, imaginary) = (angles(f64::cos)?.matmul(&states)?, angles(f64::sin)?.matmul(&states)?);
    Ok(((real.sqr()? + imaginary.sqr()?)? + TINY)?.sqrt()?)
}

fn widened(states: &Tensor) -> diptych_tensor::Result<Tensor> {
    match states.dtype() {
        DType::F64 => Ok(states.clone()),
        _ => Ok(states.to_dtype(DType::F32)?),
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};
    use serde_json::Value;

    use super::*;

    fn cases(kind: &str) -> Vec<Value> {
        let text = include_str!("../../../../tests/golden/vlm_preferences.json");
        let golden: Value = serde_json::from_str(text).unwrap();
        golden[kind].as_array().unwrap().clone()
    }

    fn matrix(case: &Value, key: &str) -> Var {
        let rows: Vec<Vec<f64>> = serde_json::from_value(case[key].clone()).unwrap();
        Var::from_tensor(&Tensor::new(rows, &Device::Cpu).unwrap()).unwrap()
    }

    fn assert_close(what: &str, found: &Tensor, expected: &Value) {
        let numbers = |value: &Value| -> Vec<f64> {
            if value.is_array() {
                let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).unwrap();
                rows.concat()
            } else {
                vec![value.as_f64().unwrap()]
            }
        };
        let found: Vec<f64> = found.flatten_all().unwrap().to_vec1().unwrap();
        let expected = numbers(expected);
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(&expected) {
            let bound = 1e-9 * expected.abs().max(1e-2);
            assert!(
                (found - expected).abs() <= bound,
                "{what}: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn powers_of_spectra_are_those_of_a_transform() {
        let cases = cases("powers");
        for case in &cases {
            let keys = ["chosen", "rejected"];
            let own = keys.map(|side| matrix(case, &format!("policy_{side}")));
            let other = keys.map(|side| matrix(case, &format!("reference_{side}")));
            let powers = |of: &[Var; 2]| -> Tensor {
                let of = of.iter().map(|states| log_power(states.as_tensor()).unwrap());
                Tensor::stack(&of.collect::<Vec<_>>(), 0).unwrap()
            };
            let losses = power_losses(case["beta"].as_f64().unwrap(), &powers(&own), &powers(&other)).unwrap();
            let loss = losses.sum_all().unwrap();
            assert_close("loss", &loss, &case["loss"]);
            let gradients = loss.backward().unwrap();
            for (states, side) in own.iter().zip(keys) {
                let expected = &case[&format!("gradient_{side}")];
                assert_close(side, gradients.get(states).unwrap(), expected);
            }
        }
        assert_eq!(cases.len(), 3);
    }

    #[test]
    fn triplets_of_spectra_are_those_of_the_program() {
        let cases = cases("triplets");
        for case in &cases {
            let [own, chosen, rejected] = ["own", "chosen", "rejected"].map(|key| matrix(case, key));
            let margin = case["margin"].as_f64().unwrap();
            let loss = triplet_loss(margin, &own, &chosen.detach(), &rejected.detach()).unwrap();
            assert_close("loss", &loss, &case["loss"]);
            let gradients = loss.backward().unwrap();
            assert_close("gradient", gradients.get(&own).unwrap(), &case["gradient"]);
        }
        assert_eq!(cases.len(), 3);
    }
}
