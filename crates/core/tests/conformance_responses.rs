//! What every objective of unpaired responses and of ranked lists must satisfy. A new one is a row of the table; a missing
//! row fails.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be computed fails it")]

#[path = "conformance_responses/batch.rs"]
mod batch;
#[path = "conformance_responses/table.rs"]
mod table;

use batch::{Batch, host};
use diptych_core::{Error, Kind, Objective, PairLogps, Requirements, Responses};
use diptych_tensor::{DType, Device, Tensor, Var};
use table::{Subject, subjects};

/// Rows of the table, and those of lists among them.
const NUM_SUBJECTS: usize = 18;
const NUM_LISTS: usize = 10;

/// Fails with a sentence unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($sentence:tt)+) => {{
        let holds: bool = $holds;
        if !holds {
            return Err(format!($($sentence)+));
        }
    }};
}

/// What a property says about a subject.
type Verdict = Result<(), String>;

fn on_subjects(expected: usize, asked: impl Fn(&Subject) -> bool, property: impl Fn(&Subject) -> Verdict) {
    let subjects: Vec<Subject> = subjects().into_iter().filter(asked).collect();
    let failed: Vec<String> = subjects
        .iter()
        .filter_map(|subject| Some(format!("{:?}: {}", subject.objective, property(subject).err()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(subjects.len(), expected, "subjects were added or lost: count again");
}

fn on_every_subject(property: impl Fn(&Subject) -> Verdict) {
    on_subjects(NUM_SUBJECTS, |_| true, property);
}

fn requirements(subject: &Subject) -> Requirements {
    subject.objective.requirements()
}

fn is_of_lists(subject: &Subject) -> bool {
    requirements(subject).kind == Kind::Lists
}

/// Whether a number is that at a place of a vector, to the rounding of the vector's largest.
fn is_close(values: &[f64], place: usize, found: f64) -> bool {
    let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    (values[place] - found).abs() <= 1e-12 * largest
}

#[test]
fn the_table_has_every_objective() {
    let subjects = subjects();
    for info in Objective::CATALOG {
        if matches!(info.requirements.kind, Kind::Unpaired | Kind::Lists) {
            assert!(
                subjects.iter().any(|subject| subject.objective.name() == info.name),
                "`{}` is missing from the table",
                info.name
            );
        }
    }
}

#[test]
fn losses_rewards_and_gradients_are_finite_at_the_extremes() {
    let extremes = [0.0, -1e-30, -1e-6, -1.0, -20.0, -110.0, -1e4, 110.0, 1e4];
    let references = [0.0, -1e4, -110.0];
    let mut batch = Batch::scattered(0, 1.0);
    for policy in extremes {
        for other in extremes {
            for reference in references {
                batch.push_list(&[(policy, reference), (other, 0.0), (-20.0, reference)]);
            }
        }
    }
    assert_eq!(batch.list_lens.len(), 243);
    on_every_subject(|subject| {
        for dtype in [DType::F32, DType::F64] {
            for (what, values) in batch.evaluate(&subject.objective, dtype).vectors() {
                if let Some(i) = values.iter().position(|value| !value.is_finite()) {
                    return Err(format!("{dtype:?} {what}[{i}] = {}", values[i]));
                }
            }
        }
        Ok(())
    });
}

#[test]
fn the_start_of_training_is_as_the_formula_says() {
    on_every_subject(|subject| {
        let found = Batch::at_start().evaluate(&subject.objective, DType::F64);
        for (what, found, expected) in [
            ("losses", &found.losses, &subject.start_losses),
            ("gradients", &found.grads, &subject.start_grads),
        ] {
            let is_close = found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| (found - expected).abs() < 1e-12);
            ensure!(is_close, "{what} {found:?} are not {expected:?}");
        }
        Ok(())
    });
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    // Baselines, weights and ranks are constants by definition, and do not change with a small step.
    on_every_subject(|subject| {
        let batch = Batch::scattered(4, subject.scale);
        let found = batch.evaluate(&subject.objective, DType::F64);
        let step = subject.scale * 1e-6;
        for i in 0..batch.policy.len() {
            let moved = |by: f64| {
                let mut moved = batch.clone();
                moved.policy[i] += by;
                moved.evaluate(&subject.objective, DType::F64).losses
            };
            let (above, below) = (moved(step), moved(-step));
            let rise: f64 = above.iter().zip(&below).map(|(above, below)| above - below).sum();
            let (slope, grad) = (rise / (2.0 * step), found.grads[i]);
            let magnitude = above.iter().fold(1.0f64, |greatest, loss| greatest.max(loss.abs()));
            let bound = 1e-5 * grad.abs() + 1e-14 * magnitude / step;
            ensure!((slope - grad).abs() <= bound, "[{i}]: gradient {grad}, slope {slope}");
        }
        Ok(())
    });
}

#[test]
fn only_the_policy_is_differentiated_and_rewards_are_not() {
    on_every_subject(|subject| {
        let batch = Batch::scattered(3, subject.scale);
        let [policy, reference] =
            [&batch.policy, &batch.reference].map(|values| Var::new(&values[..], &Device::Cpu).unwrap());
        let output = batch
            .output(&subject.objective, policy.as_tensor(), reference.as_tensor())
            .unwrap();
        let gradients = output.losses.sum_all().unwrap().backward().unwrap();
        ensure!(gradients.get(&policy).is_some(), "the policy has no gradient");
        let reference = gradients.get(&reference).map(host).unwrap_or_default();
        ensure!(
            reference.iter().all(|&grad| grad == 0.0),
            "the reference has a gradient: {reference:?}"
        );
        let gradients = output.rewards.sum_all().unwrap().backward().unwrap();
        ensure!(gradients.get(&policy).is_none(), "rewards are differentiated");
        Ok(())
    });
}

#[test]
fn every_response_moves_and_the_better_ones_up() {
    on_every_subject(|subject| {
        // At the start nothing is saturated; the best of each list and the desirable responses rise, the others fall.
        let batch = Batch::at_start();
        let found = batch.evaluate(&subject.objective, DType::F64);
        let ends = if is_of_lists(subject) {
            [0, 2, 3, 4]
        } else {
            [0, 1, 2, 3]
        };
        for (end, sign) in ends.into_iter().zip([-1.0, 1.0, -1.0, 1.0]) {
            let grad = found.grads[end];
            ensure!(
                grad * sign > 0.0 || subject.at_rest.contains(&end),
                "[{end}] has gradient {grad}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_order_of_examples_does_not_matter_and_only_coupled_ones_see_each_other() {
    on_every_subject(|subject| {
        let batch = Batch::scattered(5, subject.scale);
        let whole = batch.evaluate(&subject.objective, DType::F64);
        let order = [3, 0, 4, 2, 1];
        let shuffled = batch.select(&order).evaluate(&subject.objective, DType::F64);
        let rows = batch.rows_of(&order);
        let of_loss: Vec<usize> = if is_of_lists(subject) {
            order.to_vec()
        } else {
            rows.clone()
        };
        for (what, whole, shuffled, order) in [
            ("losses", &whole.losses, &shuffled.losses, &of_loss),
            ("rewards", &whole.rewards, &shuffled.rewards, &rows),
            ("gradients", &whole.grads, &shuffled.grads, &rows),
        ] {
            let is_same = order.iter().zip(shuffled).all(|(&i, found)| is_close(whole, i, *found));
            ensure!(is_same, "{what} moved with the order");
        }
        let mut is_apart = true;
        for list in 0..5 {
            let alone = batch.select(&[list]).evaluate(&subject.objective, DType::F64);
            let rows = batch.rows_of(&[list]);
            let losses = if is_of_lists(subject) { vec![list] } else { rows.clone() };
            is_apart &= losses
                .iter()
                .zip(&alone.losses)
                .all(|(&i, found)| is_close(&whole.losses, i, *found));
            is_apart &= rows
                .iter()
                .zip(&alone.grads)
                .all(|(&i, found)| is_close(&whole.grads, i, *found));
        }
        let couples = requirements(subject).couples_examples;
        ensure!(
            is_apart != couples,
            "couples_examples is {couples}, results alone are the same: {is_apart}"
        );
        Ok(())
    });
}

#[test]
fn low_precision_scores_give_f32_losses_and_f64_stays() {
    on_every_subject(|subject| {
        let mut batch = Batch::at_start();
        // Numbers that bf16 and f16 hold exactly, so that only the arithmetic could differ.
        batch.policy = vec![-0.125, -0.5, -0.25, -0.375, -0.75];
        let mut losses = Vec::new();
        for (dtype, expected) in [
            (DType::BF16, DType::F32),
            (DType::F16, DType::F32),
            (DType::F32, DType::F32),
            (DType::F64, DType::F64),
        ] {
            let [policy, reference] = [&batch.policy, &batch.reference].map(|values| batch::vector(values, dtype));
            let output = batch.output(&subject.objective, &policy, &reference).unwrap();
            for tensor in [&output.losses, &output.rewards] {
                ensure!(tensor.dtype() == expected, "{:?} from {dtype:?}", tensor.dtype());
            }
            losses.push(host(&output.losses));
        }
        ensure!(losses[0] == losses[2] && losses[1] == losses[2], "{losses:?}");
        Ok(())
    });
}

/// What can be left out of a batch: whether an objective needs it, and how it is left out.
type Part = (bool, fn(&mut Responses));

#[test]
fn what_is_needed_is_demanded_and_the_rest_without_effect() {
    on_every_subject(|subject| {
        let batch = Batch::scattered(3, subject.scale);
        let needs = requirements(subject);
        let whole = batch.evaluate(&subject.objective, DType::F64).losses;
        let without = |remove: fn(&mut Responses)| {
            let losses = batch.output_of(&subject.objective, DType::F64, remove);
            losses.map(|output| host(&output.losses))
        };
        match (needs.reference, without(|responses| responses.reference = None)) {
            (true, Err(Error::MissingReference { objective })) => {
                ensure!(objective == subject.objective.name(), "{objective}");
            }
            (false, Ok(losses)) => ensure!(losses == whole, "the reference has an effect"),
            (needed, found) => return Err(format!("reference needed: {needed}, without it: {found:?}")),
        }
        let parts: [Part; 3] = [
            (needs.lengths, |responses| responses.lengths = None),
            (needs.judge_scores, |responses| responses.judge_scores = None),
            (needs.tokens, |responses| responses.tokens = None),
        ];
        for (i, (needed, remove)) in parts.into_iter().enumerate() {
            match (needed, without(remove)) {
                (true, Err(Error::Missing { objective, .. })) => {
                    ensure!(objective == subject.objective.name(), "{objective}");
                }
                (false, Ok(losses)) => ensure!(losses == whole, "part {i} has an effect"),
                (needed, found) => return Err(format!("part {i} needed: {needed}, without it: {found:?}")),
            }
        }
        Ok(())
    });
}

#[test]
fn pairs_are_lists_of_two() {
    on_subjects(NUM_LISTS, is_of_lists, |subject| {
        let mut batch = Batch::scattered(0, subject.scale);
        for i in 0..6 {
            let score = |j: usize| -subject.scale * ((i * 17 + j * 31 + 5) as f64 * 0.618_033_988_75).fract();
            batch.push_list(&[(score(0), score(1)), (score(2), score(3))]);
        }
        let lists = batch.evaluate(&subject.objective, DType::F64);
        let responses = batch.responses(DType::F64);
        let side = |side: u32| {
            let rows = Tensor::new((0..6).map(|i| 2 * i + side).collect::<Vec<u32>>(), &Device::Cpu).unwrap();
            let of = |values: &Tensor| values.index_select(&rows, 0).unwrap();
            Responses {
                reference: responses.reference.as_ref().map(of),
                lengths: responses.lengths.as_ref().map(of),
                mean_length: None,
                judge_scores: responses.judge_scores.as_ref().map(of),
                ..Responses::new(of(&responses.policy))
            }
        };
        let output = subject.objective.pair_losses(&PairLogps::of(side(0), side(1))).unwrap();
        ensure!(host(&output.losses) == lists.losses, "losses differ");
        let rewards = host(&output.rewards_chosen)
            .into_iter()
            .zip(host(&output.rewards_rejected));
        let rewards: Vec<f64> = rewards.flat_map(|(chosen, rejected)| [chosen, rejected]).collect();
        ensure!(rewards == lists.rewards, "rewards differ");
        Ok(())
    });
}

#[test]
fn what_is_of_another_kind_is_refused() {
    on_every_subject(|subject| {
        let name = subject.objective.name();
        let batch = Batch::scattered(3, subject.scale);
        let (unpaired, lists) = (batch.unpaired(DType::F64), batch.lists(DType::F64));
        let refused = if is_of_lists(subject) {
            subject.objective.unpaired_losses(&unpaired)
        } else {
            subject.objective.list_losses(&lists)
        };
        let is_refused = matches!(refused, Err(Error::WrongKind { objective, .. }) if objective == name);
        ensure!(is_refused, "not refused");
        let alone = subject.objective.chosen_losses(&batch.responses(DType::F64));
        ensure!(
            matches!(alone, Err(Error::WrongKind { objective, .. }) if objective == name),
            "alone: {alone:?}"
        );
        Ok(())
    });
}

#[test]
fn lists_and_labels_of_the_wrong_length_are_refused() {
    on_every_subject(|subject| {
        let batch = Batch::scattered(3, subject.scale);
        let is_named = |error: &Error, expected: &str| matches!(error, Error::Shape { name, .. } if name == expected);
        if is_of_lists(subject) {
            let num_responses = batch.policy.len();
            for wrong in [vec![num_responses - 1, 1], vec![num_responses - 1], vec![]] {
                let mut lists = batch.lists(DType::F64);
                lists.list_lens.clone_from(&wrong);
                let error = subject.objective.list_losses(&lists).unwrap_err();
                ensure!(is_named(&error, "list_lens"), "{wrong:?}: {error}");
            }
        } else {
            let mut unpaired = batch.unpaired(DType::F64);
            unpaired.labels.pop();
            let error = subject.objective.unpaired_losses(&unpaired).unwrap_err();
            ensure!(is_named(&error, "labels"), "{error}");
        }
        Ok(())
    });
}

#[test]
fn recipes_name_objectives_as_the_listing_does() {
    on_every_subject(|subject| {
        let table = serde_json::to_value(&subject.objective).unwrap();
        let keys: Vec<&String> = table.as_object().unwrap().keys().collect();
        ensure!(keys == [subject.objective.name()], "{keys:?}");
        let read_back = serde_json::from_value::<Objective>(table.clone()).unwrap();
        ensure!(read_back == subject.objective, "{read_back:?}");
        let mut misspelt = table;
        misspelt[subject.objective.name()]["no_such_key"] = 1.0.into();
        let error = serde_json::from_value::<Objective>(misspelt).unwrap_err().to_string();
        ensure!(error.contains("no_such_key"), "{error}");
        Ok(())
    });
}
