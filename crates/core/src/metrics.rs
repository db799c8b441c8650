//! The numbers a preference trainer logs, under TRL's names.

use std::collections::BTreeMap;

use crate::arithmetic::host;
use crate::{ListLogps, ObjectiveOutput, PairLogps, ResponsesOutput, Result, UnpairedLogps};

/// Per-example metrics of a batch of pairs; the training loop averages them over an optimizer step.
///
/// | key | value of an example |
/// |---|---|
/// | `rewards/chosen`, `rewards/rejected` | implicit rewards of the objective |
/// | `rewards/margins` | chosen reward minus rejected reward |
/// | `rewards/accuracies` | 1 where the chosen reward is the greater, else 0 (a tie is 0, as in TRL and Diffusion-DPO's code) |
/// | `logps/chosen`, `logps/rejected` | scores under the policy |
///
/// # Shape
/// Every tensor is `(B,)`; every vector has B elements.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) when a value cannot be brought to the host.
pub fn pair_metrics(logps: &PairLogps, output: &ObjectiveOutput) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let chosen = host(&output.rewards_chosen)?;
    let rejected = host(&output.rewards_rejected)?;
    let margins: Vec<f64> = chosen
        .iter()
        .zip(&rejected)
        .map(|(chosen, rejected)| chosen - rejected)
        .collect();
    let accuracies = margins
        .iter()
        .map(|&margin| f64::from(u8::from(margin > 0.0)))
        .collect();
    Ok(BTreeMap::from([
        ("rewards/chosen", chosen),
        ("rewards/rejected", rejected),
        ("rewards/margins", margins),
        ("rewards/accuracies", accuracies),
        ("logps/chosen", host(&logps.chosen.policy)?),
        ("logps/rejected", host(&logps.rejected.policy)?),
    ]))
}

/// Metrics of a batch of responses judged good or bad; the training loop averages them over an optimizer step.
///
/// | key | values |
/// |---|---|
/// | `rewards/chosen`, `rewards/rejected` | implicit rewards of the desirable and of the undesirable responses |
/// | `rewards/margins` | difference of their means over the micro batch, where it has both |
/// | `logps/chosen`, `logps/rejected` | scores under the policy |
/// | `kl` | mean log-ratio of the mismatched responses, at least 0: what KTO compares with; where there are any |
///
/// # Shape
/// Every tensor is `(B,)`; `chosen` vectors have one element a desirable response, `rejected` ones one an undesirable response,
/// the others one or none.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) when a value cannot be brought to the host.
pub fn unpaired_metrics(logps: &UnpairedLogps, output: &ResponsesOutput) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let of_label = |values: &[f64], label: bool| -> Vec<f64> {
        let labeled = values.iter().zip(&logps.labels);
        labeled
            .filter(|(_, is_desirable)| **is_desirable == label)
            .map(|(value, _)| *value)
            .collect()
    };
    let rewards = host(&output.rewards)?;
    let scores = host(&logps.responses.policy)?;
    let (chosen, rejected) = (of_label(&rewards, true), of_label(&rewards, false));
    let margin = mean(&chosen)
        .zip(mean(&rejected))
        .map(|(chosen, rejected)| chosen - rejected);
    let mut divergence = None;
    if let Some(mismatched) = &logps.mismatched
        && let Some(reference) = &mismatched.reference
    {
        let reference = host(reference)?;
        let logratios: Vec<f64> = host(&mismatched.policy)?
            .iter()
            .zip(reference)
            .map(|(policy, reference)| policy - reference)
            .collect();
        divergence = mean(&logratios).map(|divergence| divergence.max(0.0));
    }
    Ok(BTreeMap::from([
        ("rewards/chosen", chosen),
        ("rewards/rejected", rejected),
        ("rewards/margins", margin.into_iter().collect()),
        ("logps/chosen", of_label(&scores, true)),
        ("logps/rejected", of_label(&scores, false)),
        ("kl", divergence.into_iter().collect()),
    ]))
}

/// Per-list metrics of a batch of ranked lists; the training loop averages them over an optimizer step.
///
/// | key | value of a list |
/// |---|---|
/// | `rewards/chosen`, `rewards/rejected` | implicit rewards of its best and of its worst response |
/// | `rewards/margins` | the former minus the latter |
/// | `rewards/accuracies` | share of its pairs in which the better response has the greater reward (a tie is wrong) |
/// | `logps/chosen`, `logps/rejected` | scores of its best and of its worst response under the policy |
///
/// # Shape
/// Tensors are `(N,)` of all lists; every vector has one element a list.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) when a value cannot be brought to the host.
pub fn list_metrics(logps: &ListLogps, output: &ResponsesOutput) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let rewards = host(&output.rewards)?;
    let scores = host(&logps.responses.policy)?;
    let mut metrics: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut first = 0;
    for &list_len in &logps.list_lens {
        let last = first + list_len - 1;
        let (chosen, rejected) = (rewards[first], rewards[last]);
        let pairs = (first..last).flat_map(|i| (i + 1..=last).map(move |j| (i, j)));
        let num_right = pairs.filter(|&(i, j)| rewards[i] > rewards[j]).count();
        for (name, value) in [
            ("rewards/chosen", chosen),
            ("rewards/rejected", rejected),
            ("rewards/margins", chosen - rejected),
            (
                "rewards/accuracies",
                num_right as f64 / (list_len * (list_len - 1) / 2) as f64,
            ),
            ("logps/chosen", scores[first]),
            ("logps/rejected", scores[last]),
        ] {
            metrics.entry(name).or_default().push(value);
        }
        first += list_len;
    }
    Ok(metrics)
}

/// `None` of nothing.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::{Kto, Objective, PlackettLuce, Responses, Utility};

    fn responses(policy: &[f64], reference: &[f64]) -> Responses {
        let vector = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut responses = Responses::new(vector(policy));
        responses.reference = Some(vector(reference));
        responses
    }

    #[test]
    fn responses_are_sorted_by_their_labels() {
        let logps = UnpairedLogps::new(
            responses(&[-3.0, -5.0, -4.0], &[-5.0, -4.0, -4.0]),
            vec![true, false, true],
        )
        .with_mismatched(responses(&[-6.0, -9.0], &[-9.0, -8.0]));
        let kto = Kto {
            beta: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            utility: Utility::KahnemanTversky,
        };
        let output = Objective::from(kto).unpaired_losses(&logps).unwrap();
        let expected = BTreeMap::from([
            ("rewards/chosen", vec![1.0, 0.0]),
            ("rewards/rejected", vec![-0.5]),
            ("rewards/margins", vec![1.0]),
            ("logps/chosen", vec![-3.0, -4.0]),
            ("logps/rejected", vec![-5.0]),
            ("kl", vec![1.0]),
        ]);
        assert_eq!(unpaired_metrics(&logps, &output).unwrap(), expected);
    }

    #[test]
    fn what_a_micro_batch_lacks_is_empty_and_a_divergence_is_not_negative() {
        let good = UnpairedLogps::new(responses(&[-3.0], &[-5.0]), vec![true]);
        let logps = good.clone().with_mismatched(responses(&[-6.0], &[-5.0]));
        let kto = Kto {
            beta: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            utility: Utility::KahnemanTversky,
        };
        let output = Objective::from(kto).unpaired_losses(&logps).unwrap();
        let metrics = unpaired_metrics(&logps, &output).unwrap();
        assert!(metrics["rewards/rejected"].is_empty() && metrics["rewards/margins"].is_empty());
        assert_eq!(metrics["kl"], [0.0]);
        assert!(unpaired_metrics(&good, &output).unwrap()["kl"].is_empty());
    }

    #[test]
    fn lists_are_told_by_their_ends_and_their_pairs() {
        let logps = ListLogps::new(
            responses(&[-1.0, -3.0, -2.0, -4.0, -4.0], &[0.0, 0.0, 0.0, 0.0, 0.0]),
            vec![3, 2],
        );
        let output = Objective::from(PlackettLuce { beta: 0.5 }).list_losses(&logps).unwrap();
        let expected = BTreeMap::from([
            ("rewards/chosen", vec![-0.5, -2.0]),
            ("rewards/rejected", vec![-1.0, -2.0]),
            ("rewards/margins", vec![0.5, 0.0]),
            // The second response of the first list is below the third; the second list is a tie.
            ("rewards/accuracies", vec![2.0 / 3.0, 0.0]),
            ("logps/chosen", vec![-1.0, -4.0]),
            ("logps/rejected", vec![-2.0, -4.0]),
        ]);
        assert_eq!(list_metrics(&logps, &output).unwrap(), expected);
    }
}
