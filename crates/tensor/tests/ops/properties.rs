//! What must hold of every operation.

use candle_core::{DType, Tensor, Var};
use diptych_tensor::ops::{self, Conv2dConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cases::{Op, cases};
use crate::operands::*;

#[test]
fn fused_equals_composed_in_f64_and_f32() {
    for case in cases() {
        for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
            let operands = converted(&operands(&case), dtype);
            let what = format!("{} {dtype:?}", case.name);
            let (y, gradients) = value_and_gradients(&case.fused, &operands);
            let (expected, expected_gradients) = value_and_gradients(&case.composed, &operands);
            assert_eq!(y.dtype(), dtype);
            assert_close(&y, &expected, tolerance, &what);
            for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
                assert_close(found, expected, tolerance, &format!("{what}: gradient {i}"));
            }
        }
    }
}

#[test]
fn gradients_are_central_differences_in_f64() {
    let mut checked = 0;
    for case in cases() {
        for op in [&case.fused, &case.composed] {
            let operands = operands(&case);
            let (_, gradients) = value_and_gradients(op, &operands);
            for (i, gradient) in gradients.iter().enumerate() {
                let direction = random(&mut ChaCha8Rng::seed_from_u64(13 + i as u64), &case.shapes[i]);
                let at = |step: f64| {
                    let mut moved = operands.clone();
                    moved[i] = (&operands[i] + (&direction * step).unwrap()).unwrap();
                    weighted(&op(&moved).unwrap()).to_scalar::<f64>().unwrap()
                };
                let step = 1e-5;
                let difference = (at(step) - at(-step)) / (2.0 * step);
                let slope = (gradient * &direction)
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f64>()
                    .unwrap();
                let terms = (gradient * &direction)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f64>()
                    .unwrap();
                assert!(
                    (difference - slope).abs() <= 1e-6 * terms.max(1e-2),
                    "{}: operand {i}: difference {difference}, gradient {slope}",
                    case.name
                );
                checked += 1;
            }
        }
    }
    let of_decoders = 2 * 6 + 2 * 3 + 4 + 3 * 33 + 2 * 10;
    assert_eq!(
        checked,
        2 * (8 + 21 + 3 + 4 + 3 * 13 + (2 + 3) * 4 + (2 + 3) * 26 + 3 * 24 + of_decoders)
    );
}

#[test]
fn frozen_operands_get_no_gradient_and_change_no_other() {
    for case in cases() {
        let operands = operands(&case);
        let (_, all) = value_and_gradients(&case.fused, &operands);
        for tracked in 0..operands.len() {
            let mut tensors = operands.clone();
            let var = Var::from_tensor(&operands[tracked]).unwrap();
            tensors[tracked] = var.as_tensor().clone();
            let store = weighted(&(case.fused)(&tensors).unwrap()).backward().unwrap();
            for (i, tensor) in tensors.iter().enumerate() {
                assert_eq!(store.get(tensor).is_some(), i == tracked, "{}: operand {i}", case.name);
            }
            assert_close(store.get(&var).unwrap(), &all[tracked], 1e-13, &case.name);
        }
    }
}

/// The frozen operands of a computed input: the operation in the middle of a graph keeps nothing but what flows on.
#[test]
fn a_frozen_layer_in_a_graph_leaves_one_entry() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let x = Var::from_tensor(&random(&mut rng, &[1, 4, 6, 6])).unwrap();
    let (weight, bias) = (random(&mut rng, &[4, 4, 3, 3]), random(&mut rng, &[4]));
    let y = ops::group_norm_silu(x.as_tensor(), &bias, &bias, 2, 1e-5).unwrap();
    let y = ops::conv2d(&y, &weight, Some(&bias), Conv2dConfig { stride: 1, padding: 1 }).unwrap();
    let y = ops::linear(&y, &random(&mut rng, &[5, 6]), None).unwrap();
    let store = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(store.get_ids().count(), 1);
    assert!(store.get(&x).is_some());
}

#[test]
fn operands_of_any_layout_give_the_same() {
    for case in cases() {
        let operands = operands(&case);
        let views: Vec<Tensor> = operands.iter().map(strided).collect();
        let (y, gradients) = value_and_gradients(&case.fused, &operands);
        assert_close(&(case.fused)(&views).unwrap(), &y, 1e-13, &case.name);
        // Vars are contiguous: the views are taken inside.
        let through_views: Op = Box::new(move |x| (case.fused)(&x.iter().map(strided).collect::<Vec<_>>()));
        let (_, found) = value_and_gradients(&through_views, &operands);
        for (found, expected) in found.iter().zip(&gradients) {
            assert_close(found, expected, 1e-12, &case.name);
        }
    }
}

#[test]
fn half_precision_is_the_f32_kernel_between_two_roundings() {
    for case in cases() {
        for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 2e-3)] {
            let half = converted(&operands(&case), dtype);
            let exact = converted(&half, DType::F32);
            let what = format!("{} {dtype:?}", case.name);
            let y = (case.fused)(&half).unwrap();
            assert_eq!(y.dtype(), dtype, "{what}");
            assert_close(&y, &(case.fused)(&exact).unwrap(), tolerance, &what);
            let (vars, tensors) = as_vars(&half);
            let store = (case.fused)(&tensors)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap();
            for var in &vars {
                let gradient = store.get(var).expect("a gradient through the conversion");
                assert_eq!(gradient.dtype(), dtype);
                assert!(numbers(gradient).iter().all(|x| x.is_finite()), "{what}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, three) = (pool(1), pool(3));
    for case in cases() {
        let operands = converted(&operands(&case), DType::F32);
        let (y1, g1) = one.install(|| value_and_gradients(&case.fused, &operands));
        let (y3, g3) = three.install(|| value_and_gradients(&case.fused, &operands));
        assert_eq!(numbers(&y1), numbers(&y3), "{}", case.name);
        for (g1, g3) in g1.iter().zip(&g3) {
            assert_eq!(numbers(g1), numbers(g3), "{}", case.name);
        }
    }
}
