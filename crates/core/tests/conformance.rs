//! What every objective must satisfy, from one table. A new objective is a row here; a missing row fails.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be computed fails it")]

use diptych_core::{Dpo, Error, MaPo, Objective, ObjectiveOutput, PairLogps, Sft, pair_metrics};
use diptych_tensor::{DType, Device, Tensor, Var};

/// An objective with the scores at which it is usually called.
struct Subject {
    objective: Objective,
    /// Scores lie in `[-scale, 0]`.
    scale: f64,
    /// Loss of an example whose four scores are 0, and its gradients with respect to the policy's two.
    start: Start,
}

struct Start {
    loss: f64,
    grad_chosen: f64,
    grad_rejected: f64,
}

const LN_2: f64 = std::f64::consts::LN_2;

fn subjects() -> Vec<Subject> {
    // Policy equal to reference: ln 2, and beta / 2 less the smoothing.
    let dpo = |beta: f64, label_smoothing: f64, scale| {
        let grad = beta * (0.5 - label_smoothing);
        let start = Start {
            loss: LN_2,
            grad_chosen: -grad,
            grad_rejected: grad,
        };
        Subject {
            objective: Dpo { beta, label_smoothing }.into(),
            scale,
            start,
        }
    };
    // Equal sides at error 0, where g' = -1/2: the margin term gives beta temperature snr_value / 2, the error itself -2.
    let mapo = |beta: f64, snr_value: f64, temperature: f64| {
        let grad = beta * temperature * snr_value / 2.0;
        let start = Start {
            loss: beta * LN_2,
            grad_chosen: -2.0 - grad,
            grad_rejected: grad,
        };
        Subject {
            objective: MaPo {
                beta,
                snr_value,
                temperature,
            }
            .into(),
            scale: 0.25,
            start,
        }
    };
    let sft = |scale| {
        let start = Start {
            loss: 0.0,
            grad_chosen: -1.0,
            grad_rejected: 0.0,
        };
        Subject {
            objective: Sft {}.into(),
            scale,
            start,
        }
    };
    vec![
        dpo(0.1, 0.0, 60.0),
        dpo(0.5, 0.2, 60.0),
        dpo(5000.0, 0.0, 0.25),
        dpo(2000.0, 0.1, 0.25),
        mapo(0.1, 0.5, 1000.0),
        mapo(1.0 / 64.0, 1.0, 64.0),
        sft(60.0),
        sft(0.25),
    ]
}

/// Four vectors of scores: policy chosen, policy rejected, reference chosen, reference rejected.
type Scores = [Vec<f64>; 4];

/// Scores that look random and are the same everywhere.
fn scattered(batch: usize, scale: f64) -> Scores {
    let score = |vector: usize, i: usize| -scale * ((vector * 31 + i * 17 + 5) as f64 * 0.618_033_988_75).fract();
    [0, 1, 2, 3].map(|vector| (0..batch).map(|i| score(vector, i)).collect())
}

fn vector(values: &[f64], dtype: DType) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn host(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn logps(scores: &Scores, dtype: DType) -> PairLogps {
    let [policy_chosen, policy_rejected, chosen, rejected] = scores.each_ref().map(|values| vector(values, dtype));
    PairLogps::new(policy_chosen, policy_rejected).with_reference(chosen, rejected)
}

/// The output, and the gradients of the sum of the losses with respect to the four scores (0 where there is none).
fn evaluate(subject: &Subject, scores: &Scores, dtype: DType) -> (ObjectiveOutput, Scores) {
    let vars = scores
        .each_ref()
        .map(|values| Var::from_tensor(&vector(values, dtype)).unwrap());
    let [policy_chosen, policy_rejected, chosen, rejected] = vars.each_ref().map(|var| var.as_tensor().clone());
    let output = subject
        .objective
        .pair_losses(&PairLogps::new(policy_chosen, policy_rejected).with_reference(chosen, rejected))
        .unwrap();
    let gradients = output.losses.sum_all().unwrap().backward().unwrap();
    let grads = vars.map(|var| gradients.get(&var).map_or_else(|| vec![0.0; var.elem_count()], host));
    (output, grads)
}

/// Whether a property says anything about an objective.
#[derive(PartialEq)]
enum Outcome {
    Held,
    NotApplicable,
}
use Outcome::{Held, NotApplicable};

/// Runs a property on every subject; `applicable` is the number it must say something about.
fn on_every_subject(applicable: usize, property: impl Fn(&Subject) -> Outcome) {
    let subjects = subjects();
    let held = subjects.iter().filter(|subject| property(subject) == Held).count();
    assert_eq!(held, applicable, "of {} subjects", subjects.len());
}

#[test]
fn the_table_has_every_objective() {
    let subjects = subjects();
    for name in Objective::NAMES {
        assert!(
            subjects.iter().any(|subject| subject.objective.name() == *name),
            "`{name}` is missing from the table"
        );
    }
    assert_eq!(subjects.len(), 8);
}

#[test]
fn losses_rewards_and_gradients_are_finite_at_the_extremes() {
    let extremes = [0.0, -1e-30, -1e-6, -0.05, -1.0, -20.0, -110.0, -1e4, 110.0, 1e4];
    let mut rows: Scores = Default::default();
    for policy_chosen in extremes {
        for policy_rejected in extremes {
            for (reference_chosen, reference_rejected) in [(0.0, 0.0), (-1e4, 0.0), (0.0, -1e4), (-110.0, -20.0)] {
                for (row, score) in
                    rows.iter_mut()
                        .zip([policy_chosen, policy_rejected, reference_chosen, reference_rejected])
                {
                    row.push(score);
                }
            }
        }
    }
    assert_eq!(rows[0].len(), 400);
    on_every_subject(8, |subject| {
        for dtype in [DType::F32, DType::F64] {
            let (output, grads) = evaluate(subject, &rows, dtype);
            for values in [
                host(&output.losses),
                host(&output.rewards_chosen),
                host(&output.rewards_rejected),
            ]
            .iter()
            .chain(&grads)
            {
                assert!(
                    values.iter().all(|value| value.is_finite()),
                    "{:?} {dtype:?}",
                    subject.objective
                );
            }
        }
        Held
    });
}

#[test]
fn the_start_of_training_is_as_the_formula_says() {
    on_every_subject(8, |subject| {
        let (output, grads) = evaluate(subject, &std::array::from_fn(|_| vec![0.0]), DType::F64);
        let Start {
            loss,
            grad_chosen,
            grad_rejected,
        } = subject.start;
        let found = [
            host(&output.losses)[0],
            grads[0][0],
            grads[1][0],
            host(&output.rewards_chosen)[0],
            host(&output.rewards_rejected)[0],
        ];
        for (found, expected) in found.into_iter().zip([loss, grad_chosen, grad_rejected, 0.0, 0.0]) {
            assert!(
                (found - expected).abs() <= 1e-12 * expected.abs(),
                "{:?}: {found} is not {expected}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn a_policy_equal_to_its_reference_has_the_starting_loss_at_any_scores() {
    on_every_subject(4, |subject| {
        if !subject.objective.requirements().reference {
            return NotApplicable;
        }
        let [chosen, rejected, ..] = scattered(16, subject.scale);
        let (output, grads) = evaluate(
            subject,
            &[chosen.clone(), rejected.clone(), chosen, rejected],
            DType::F32,
        );
        for (i, loss) in host(&output.losses).into_iter().enumerate() {
            assert!(
                (loss - subject.start.loss).abs() < 1e-7,
                "{:?}: {loss}",
                subject.objective
            );
            assert!(
                (grads[0][i] / subject.start.grad_chosen - 1.0).abs() < 1e-6,
                "{:?}",
                subject.objective
            );
            assert!(
                (grads[1][i] / subject.start.grad_rejected - 1.0).abs() < 1e-6,
                "{:?}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn descent_raises_the_chosen_score_and_never_the_rejected_one() {
    on_every_subject(8, |subject| {
        let (_, [chosen, rejected, reference_chosen, reference_rejected]) =
            evaluate(subject, &scattered(64, subject.scale), DType::F64);
        // A smoothed objective pulls back once the margin is beyond its optimum.
        let is_smoothed =
            matches!(subject.objective, Objective::Dpo(Dpo { label_smoothing, .. }) if label_smoothing > 0.0);
        // Beyond a margin of 745 the slope of the sigmoid is 0 even in f64, so not every example has a gradient.
        let num_moved = chosen.iter().filter(|&&grad| grad < 0.0).count();
        assert!(num_moved >= 32, "{:?}: {num_moved} of 64", subject.objective);
        if !is_smoothed {
            assert!(chosen.iter().all(|&grad| grad <= 0.0), "{:?}", subject.objective);
            assert!(rejected.iter().all(|&grad| grad >= 0.0), "{:?}", subject.objective);
            let is_pushed = rejected.iter().any(|&grad| grad > 0.0);
            assert_eq!(
                is_pushed,
                subject.objective.requirements().rejected,
                "{:?}",
                subject.objective
            );
        }
        assert!(
            reference_chosen
                .iter()
                .chain(&reference_rejected)
                .all(|&grad| grad == 0.0),
            "{:?}",
            subject.objective
        );
        Held
    });
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    on_every_subject(8, |subject| {
        let scores = scattered(32, subject.scale);
        let (_, grads) = evaluate(subject, &scores, DType::F64);
        let step = subject.scale * 1e-6;
        for side in [0, 1] {
            let moved = |by: f64| {
                let mut moved = scores.clone();
                moved[side].iter_mut().for_each(|score| *score += by);
                host(&evaluate(subject, &moved, DType::F64).0.losses)
            };
            for ((above, below), grad) in moved(step).iter().zip(&moved(-step)).zip(&grads[side]) {
                let slope = (above - below) / (2.0 * step);
                let bound = 1e-5 * grad.abs() + 1e-8 / step * 1e-6;
                assert!(
                    (slope - grad).abs() <= bound,
                    "{:?}: gradient {grad}, slope {slope}",
                    subject.objective
                );
            }
        }
        Held
    });
}

#[test]
fn examples_do_not_see_each_other() {
    on_every_subject(8, |subject| {
        let scores = scattered(11, subject.scale);
        let permutation: Vec<usize> = (0..11).map(|i| (i * 4 + 3) % 11).collect();
        let permuted = scores
            .each_ref()
            .map(|values| permutation.iter().map(|&i| values[i]).collect());
        let all = |(output, grads): (ObjectiveOutput, Scores)| {
            let [policy_chosen, policy_rejected, ..] = grads;
            [
                host(&output.losses),
                host(&output.rewards_chosen),
                host(&output.rewards_rejected),
                policy_chosen,
                policy_rejected,
            ]
        };
        let whole = all(evaluate(subject, &scores, DType::F32));
        let shuffled = all(evaluate(subject, &permuted, DType::F32));
        for (whole, shuffled) in whole.iter().zip(&shuffled) {
            let expected: Vec<f64> = permutation.iter().map(|&i| whole[i]).collect();
            assert_eq!(&expected, shuffled, "{:?}", subject.objective);
        }
        let third = all(evaluate(
            subject,
            &scores.each_ref().map(|values| vec![values[3]]),
            DType::F32,
        ));
        for (whole, alone) in whole.iter().zip(&third) {
            assert!(
                (whole[3] - alone[0]).abs() <= 1e-6 * whole[3].abs(),
                "{:?}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn low_precision_scores_give_f32_losses_and_f64_stays() {
    on_every_subject(8, |subject| {
        // Scores that bf16 and f16 hold exactly, so that only the arithmetic could differ.
        let scores: Scores = [
            vec![-0.125, -0.5],
            vec![-0.25, -0.375],
            vec![-0.125, -0.25],
            vec![-0.25, -0.4375],
        ];
        let outputs = [DType::BF16, DType::F16, DType::F32, DType::F64]
            .map(|dtype| subject.objective.pair_losses(&logps(&scores, dtype)).unwrap());
        for (output, expected) in outputs.iter().zip([DType::F32, DType::F32, DType::F32, DType::F64]) {
            for tensor in [&output.losses, &output.rewards_chosen, &output.rewards_rejected] {
                assert_eq!(
                    (tensor.dtype(), tensor.dims()),
                    (expected, [2].as_slice()),
                    "{:?}",
                    subject.objective
                );
            }
        }
        assert_eq!(
            host(&outputs[0].losses),
            host(&outputs[2].losses),
            "{:?}",
            subject.objective
        );
        assert_eq!(
            host(&outputs[1].losses),
            host(&outputs[2].losses),
            "{:?}",
            subject.objective
        );
        let (_, grads) = evaluate(subject, &scores, DType::BF16);
        assert!(grads[0][0] < 0.0 && grads[0][1].is_finite(), "{:?}", subject.objective);
        Held
    });
}

#[test]
fn a_reference_is_demanded_where_it_is_needed_and_without_effect_elsewhere() {
    on_every_subject(8, |subject| {
        let with = logps(&scattered(5, subject.scale), DType::F32);
        let without = PairLogps {
            reference: None,
            ..with.clone()
        };
        let losses = |logps: &PairLogps| subject.objective.pair_losses(logps).map(|output| host(&output.losses));
        if subject.objective.requirements().reference {
            let name = subject.objective.name();
            assert!(matches!(losses(&without), Err(Error::MissingReference { objective }) if objective == name));
        } else {
            assert_eq!(
                losses(&without).unwrap(),
                losses(&with).unwrap(),
                "{:?}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn chosen_responses_alone_are_enough_only_where_nothing_is_compared() {
    on_every_subject(8, |subject| {
        let pairs = logps(&scattered(5, subject.scale), DType::F32);
        let alone = subject.objective.chosen_losses(&pairs.policy_chosen);
        if subject.objective.requirements().rejected {
            let name = subject.objective.name();
            assert!(matches!(alone, Err(Error::MissingRejected { objective }) if objective == name));
        } else {
            let paired = subject.objective.pair_losses(&pairs).unwrap().losses;
            assert_eq!(host(&alone.unwrap()), host(&paired), "{:?}", subject.objective);
        }
        Held
    });
}

#[test]
fn rewards_carry_no_gradient() {
    on_every_subject(8, |subject| {
        let scores = scattered(3, subject.scale);
        let var = Var::from_tensor(&vector(&scores[0], DType::F32)).unwrap();
        let mut pairs = logps(&scores, DType::F32);
        pairs.policy_chosen = var.as_tensor().clone();
        pairs.policy_rejected = (var.as_tensor() * 2.0).unwrap();
        let output = subject.objective.pair_losses(&pairs).unwrap();
        for rewards in [&output.rewards_chosen, &output.rewards_rejected] {
            assert!(
                rewards.sum_all().unwrap().backward().unwrap().get(&var).is_none(),
                "{:?}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn a_wider_margin_is_a_lower_loss() {
    on_every_subject(4, |subject| {
        // Smoothing turns around at its optimum, and sft has no margin.
        let is_smoothed =
            matches!(subject.objective, Objective::Dpo(Dpo { label_smoothing, .. }) if label_smoothing > 0.0);
        if is_smoothed || !subject.objective.requirements().rejected {
            return NotApplicable;
        }
        let steps = 50;
        let rejected = (0..steps).map(|i| -subject.scale * i as f64 / steps as f64).collect();
        let fixed = vec![-subject.scale / 2.0; steps];
        let (output, _) = evaluate(subject, &[fixed.clone(), rejected, fixed.clone(), fixed], DType::F64);
        let margins: Vec<f64> = host(&output.rewards_chosen)
            .iter()
            .zip(host(&output.rewards_rejected))
            .map(|(chosen, rejected)| chosen - rejected)
            .collect();
        assert!(margins.is_sorted_by(|a, b| a < b), "{:?}", subject.objective);
        let losses = host(&output.losses);
        assert!(losses.is_sorted_by(|a, b| a >= b), "{:?}", subject.objective);
        assert!(losses[0] > losses[steps / 2], "{:?}", subject.objective);
        Held
    });
}

#[test]
fn scores_of_the_wrong_shape_are_refused() {
    on_every_subject(8, |subject| {
        let good = logps(&scattered(4, subject.scale), DType::F32);
        let matrix = PairLogps {
            policy_chosen: good.policy_chosen.reshape((2, 2)).unwrap(),
            ..good.clone()
        };
        let shorter = PairLogps {
            policy_rejected: good.policy_rejected.narrow(0, 0, 3).unwrap(),
            ..good.clone()
        };
        let one = good.policy_chosen.narrow(0, 0, 1).unwrap();
        let broadcast = good.clone().with_reference(one.clone(), one);
        for (wrong, expected) in [
            (matrix, "policy_chosen_logps"),
            (shorter, "policy_rejected_logps"),
            (broadcast, "reference_chosen_logps"),
        ] {
            let error = subject.objective.pair_losses(&wrong).unwrap_err();
            assert!(
                matches!(&error, Error::Shape { name, .. } if *name == expected),
                "{:?}: {error}",
                subject.objective
            );
        }
        Held
    });
}

#[test]
fn recipes_name_objectives_as_the_listing_does() {
    on_every_subject(8, |subject| {
        let table = serde_json::to_value(subject.objective).unwrap();
        let keys: Vec<&String> = table.as_object().unwrap().keys().collect();
        assert_eq!(keys, [subject.objective.name()]);
        assert_eq!(
            serde_json::from_value::<Objective>(table.clone()).unwrap(),
            subject.objective
        );
        let mut misspelt = table;
        misspelt[subject.objective.name()]["no_such_key"] = 1.0.into();
        let error = serde_json::from_value::<Objective>(misspelt).unwrap_err().to_string();
        assert!(error.contains("no_such_key"), "{error}");
        Held
    });
    let names: Vec<&str> = Objective::CATALOG.iter().map(|info| info.name).collect();
    assert_eq!(names, Objective::NAMES);
}

#[test]
fn metrics_are_the_output_under_trl_names() {
    on_every_subject(8, |subject| {
        let pairs = logps(&scattered(6, subject.scale), DType::F32);
        let output = subject.objective.pair_losses(&pairs).unwrap();
        let metrics = pair_metrics(&pairs, &output).unwrap();
        assert_eq!(metrics.len(), 6);
        assert_eq!(metrics["logps/chosen"], host(&pairs.policy_chosen));
        let [chosen, rejected] = [&output.rewards_chosen, &output.rewards_rejected].map(host);
        let margins: Vec<f64> = chosen
            .iter()
            .zip(&rejected)
            .map(|(chosen, rejected)| chosen - rejected)
            .collect();
        let num_right = margins.iter().filter(|&&margin| margin > 0.0).count() as f64;
        assert_eq!(
            (&metrics["rewards/chosen"], &metrics["rewards/rejected"]),
            (&chosen, &rejected)
        );
        assert_eq!(metrics["rewards/margins"], margins);
        assert_eq!(metrics["rewards/accuracies"].iter().sum::<f64>(), num_right);
        Held
    });
}
