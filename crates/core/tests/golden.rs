//! Losses, rewards and gradients equal values computed without this crate, by `tests/golden/generate_objectives.py`.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be computed fails it")]

use std::path::Path;

use diptych_core::{Objective, ObjectiveOutput, PairLogps};
use diptych_tensor::{DType, Device, Tensor, Var};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// One file of `tests/golden/objectives`.
#[derive(Deserialize)]
struct File<T> {
    cases: Vec<T>,
}

/// A batch of pairs with everything that must come out.
#[derive(Deserialize)]
struct Case {
    name: String,
    parameters: serde_json::Value,
    policy_chosen_logps: Vec<f64>,
    policy_rejected_logps: Vec<f64>,
    reference_chosen_logps: Option<Vec<f64>>,
    reference_rejected_logps: Option<Vec<f64>>,
    losses: Vec<f64>,
    rewards_chosen: Vec<f64>,
    rewards_rejected: Vec<f64>,
    grad_policy_chosen_logps: Vec<f64>,
    grad_policy_rejected_logps: Vec<f64>,
}

/// One evaluation of a published formula.
#[derive(Deserialize)]
struct PaperCase {
    objective: String,
    source: String,
    parameters: serde_json::Value,
    kind: Kind,
    inputs: PaperInputs,
    logits: f64,
    loss: f64,
    grad_chosen: Option<f64>,
    grad_rejected: Option<f64>,
}

/// What the inputs of a [`PaperCase`] are.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Scores.
    Logps,
    /// Mean squared errors, whose score is minus one half of them.
    Mse,
}

#[derive(Deserialize)]
struct PaperInputs {
    policy_chosen: f64,
    policy_rejected: f64,
    reference_chosen: Option<f64>,
    reference_rejected: Option<f64>,
}

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/objectives")
        .join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str::<File<T>>(&text)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .cases
}

fn objective(name: &str, parameters: &serde_json::Value) -> Objective {
    serde_json::from_value(serde_json::json!({ name: parameters })).unwrap()
}

fn vector(values: &[f64], dtype: DType) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn host(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Losses and rewards, and the gradients of the sum of the losses, chosen first.
fn evaluate(objective: Objective, scores: &[Option<&[f64]>; 4], dtype: DType) -> (ObjectiveOutput, [Vec<f64>; 2]) {
    let [chosen, rejected] = [0, 1].map(|side| Var::from_tensor(&vector(scores[side].unwrap(), dtype)).unwrap());
    let mut logps = PairLogps::new(chosen.as_tensor().clone(), rejected.as_tensor().clone());
    if let [_, _, Some(reference_chosen), Some(reference_rejected)] = *scores {
        logps = logps.with_reference(vector(reference_chosen, dtype), vector(reference_rejected, dtype));
    }
    let output = objective.pair_losses(&logps).unwrap();
    let gradients = output.losses.sum_all().unwrap().backward().unwrap();
    let grads = [chosen, rejected].map(|side| gradients.get(&side).map_or_else(|| vec![0.0; side.elem_count()], host));
    (output, grads)
}

/// Fails unless every element is within `relative` of its own size or `absolute`.
fn assert_close(what: &str, found: &[f64], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = absolute.max(relative * expected.abs());
        assert!(
            (found - expected).abs() <= bound,
            "{what}[{i}]: found {found:e}, expected {expected:e}, bound {bound:e}"
        );
    }
}

fn check(name: &str, case: &Case, dtype: DType, relative: f64, absolute: f64) {
    let objective = objective(name, &case.parameters);
    let scores = [
        Some(case.policy_chosen_logps.as_slice()),
        Some(case.policy_rejected_logps.as_slice()),
        case.reference_chosen_logps.as_deref(),
        case.reference_rejected_logps.as_deref(),
    ];
    let (output, [grad_chosen, grad_rejected]) = evaluate(objective, &scores, dtype);
    // A gradient's natural size is that of the largest one in the batch: saturated examples have next to none.
    let largest = |grads: &[f64]| grads.iter().fold(0.0f64, |largest, grad| largest.max(grad.abs()));
    let grad_scale = largest(&case.grad_policy_chosen_logps).max(largest(&case.grad_policy_rejected_logps));
    for (what, found, expected, scale) in [
        ("losses", host(&output.losses), &case.losses, 1.0),
        (
            "rewards_chosen",
            host(&output.rewards_chosen),
            &case.rewards_chosen,
            1.0,
        ),
        (
            "rewards_rejected",
            host(&output.rewards_rejected),
            &case.rewards_rejected,
            1.0,
        ),
        (
            "grad_policy_chosen_logps",
            grad_chosen,
            &case.grad_policy_chosen_logps,
            grad_scale,
        ),
        (
            "grad_policy_rejected_logps",
            grad_rejected,
            &case.grad_policy_rejected_logps,
            grad_scale,
        ),
    ] {
        assert_close(
            &format!("{name}/{}/{dtype:?}/{what}", case.name),
            &found,
            expected,
            relative,
            absolute * scale,
        );
    }
}

#[test]
fn every_objective_matches_its_golden_file() {
    let mut rows = 0;
    let mut cases = 0;
    for name in Objective::NAMES {
        for case in read::<Case>(name) {
            check(name, &case, DType::F64, 1e-9, 1e-12);
            // f32 scores carry a rounding of their own, which beta up to 5000 and a temperature of 1000 magnify.
            check(name, &case, DType::F32, 2e-5, 2e-4);
            cases += 1;
            rows += case.losses.len();
        }
    }
    assert_eq!((cases, rows), (21, 146), "a case was added or lost: count again");
}

#[test]
fn published_formulas_are_reproduced() {
    let cases = read::<PaperCase>("papers");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let score = |input: f64| match case.kind {
            Kind::Logps => input,
            Kind::Mse => -0.5 * input,
        };
        let inputs = &case.inputs;
        let scores = [
            Some(inputs.policy_chosen),
            Some(inputs.policy_rejected),
            inputs.reference_chosen,
            inputs.reference_rejected,
        ]
        .map(|input| input.map(|input| [score(input)]));
        let scores = [0, 1, 2, 3].map(|i| scores[i].as_ref().map(<[f64; 1]>::as_slice));
        let (output, [grad_chosen, grad_rejected]) =
            evaluate(objective(&case.objective, &case.parameters), &scores, DType::F64);
        let margin = host(&output.rewards_chosen)[0] - host(&output.rewards_rejected)[0];
        assert_close(&case.source, &[margin], &[case.logits], 1e-12, 0.0);
        assert_close(&case.source, &host(&output.losses), &[case.loss], 1e-12, 0.0);
        // Per unit of the input as published.
        let per_input = score(1.0);
        for (found, expected) in [(grad_chosen, case.grad_chosen), (grad_rejected, case.grad_rejected)] {
            if let Some(expected) = expected {
                assert_close(&case.source, &[found[0] * per_input], &[expected], 1e-12, 0.0);
            }
        }
    }
}
