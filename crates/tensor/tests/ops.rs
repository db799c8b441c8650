//! Every operation against its composed form, central differences, frozen operands, strided operands, half precision and
//! another number of threads.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

use candle_core::{DType, Device, Tensor, Var};
use diptych_tensor::ops::{self, AttentionConfig, AttentionMask, Conv2dConfig};
use diptych_tensor::{Error, Result};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The operations of every test also run on reused, unclean memory.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// One call of one operation: operand shapes, the fused and the composed form.
struct Case {
    name: String,
    shapes: Vec<Vec<usize>>,
    fused: Op,
    composed: Op,
}

fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    composed: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    Case {
        name: name.into(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        fused: Box::new(fused),
        composed: Box::new(composed),
    }
}

fn elementwise_cases(cases: &mut Vec<Case>) {
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let unary: [(&str, Unary, Unary); 6] = [
        ("silu", ops::silu, ops::silu_composed),
        ("gelu", ops::gelu, ops::gelu_composed),
        ("gelu_tanh", ops::gelu_tanh, ops::gelu_tanh_composed),
        ("quick_gelu", ops::quick_gelu, ops::quick_gelu_composed),
        ("log_sigmoid", ops::log_sigmoid, ops::log_sigmoid_composed),
        ("softmax", ops::softmax, ops::softmax_composed),
    ];
    for (name, fused, composed) in unary {
        for shape in [&[7][..], &[3, 5, 33], &[2, 3, 130, 61]] {
            cases.push(case(
                format!("{name} {shape:?}"),
                &[shape],
                move |x| fused(&x[0]),
                move |x| composed(&x[0]),
            ));
        }
    }
    for shape in [&[2][..], &[3, 5, 34], &[130, 258]] {
        cases.push(case(
            format!("geglu {shape:?}"),
            &[shape],
            |x| ops::geglu(&x[0]),
            |x| ops::geglu_composed(&x[0]),
        ));
    }
    for (shape, factor) in [
        ([1, 1, 1, 1], 2),
        ([2, 3, 5, 7], 2),
        ([1, 2, 4, 3], 3),
        ([1, 2, 3, 4], 1),
    ] {
        cases.push(case(
            format!("upsample {shape:?} {factor}"),
            &[&shape],
            move |x| ops::upsample_nearest2d(&x[0], factor),
            move |x| ops::upsample_nearest2d_composed(&x[0], factor),
        ));
    }
}

fn norm_cases(cases: &mut Vec<Case>) {
    for (shape, groups) in [
        (&[2, 6, 5, 7][..], 3),
        (&[1, 4, 3], 4),
        (&[3, 8], 2),
        (&[2, 32, 16, 16], 8),
        (&[1, 6, 61, 67], 1),
    ] {
        let channels = [shape[1]];
        let shapes: [&[usize]; 3] = [shape, &channels, &channels];
        cases.push(case(
            format!("group_norm {shape:?} {groups}"),
            &shapes,
            move |x| ops::group_norm(&x[0], &x[1], &x[2], groups, 1e-5),
            move |x| ops::group_norm_composed(&x[0], &x[1], &x[2], groups, 1e-5),
        ));
        cases.push(case(
            format!("group_norm_silu {shape:?} {groups}"),
            &shapes,
            move |x| ops::group_norm_silu(&x[0], &x[1], &x[2], groups, 1e-6),
            move |x| ops::group_norm_silu_composed(&x[0], &x[1], &x[2], groups, 1e-6),
        ));
    }
    for shape in [&[5][..], &[3, 17], &[2, 130, 321]] {
        let width = [*shape.last().unwrap()];
        cases.push(case(
            format!("layer_norm {shape:?}"),
            &[shape, &width, &width],
            |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| ops::layer_norm_composed(&x[0], &x[1], &x[2], 1e-5),
        ));
    }
}

fn linear_cases(cases: &mut Vec<Case>) {
    for (shape, outputs) in [(&[3][..], 4), (&[2, 5], 1), (&[2, 3, 17], 9), (&[2, 70, 65], 129)] {
        let weight = [outputs, *shape.last().unwrap()];
        let name = format!("linear {shape:?} {outputs}");
        cases.push(case(
            name.clone(),
            &[shape, &weight],
            |x| ops::linear(&x[0], &x[1], None),
            |x| ops::linear_composed(&x[0], &x[1], None),
        ));
        cases.push(case(
            name + " bias",
            &[shape, &weight, &[outputs]],
            |x| ops::linear(&x[0], &x[1], Some(&x[2])),
            |x| ops::linear_composed(&x[0], &x[1], Some(&x[2])),
        ));
    }
}

fn conv2d_cases(cases: &mut Vec<Case>) {
    // Input, outputs, kernel, stride, padding. The last ones take the tiled path, the joint path over several images, and
    // several tiles of a backward pass.
    for (x, outputs, (ky, kx), stride, padding) in [
        ([1, 1, 1, 1], 1, (1, 1), 1, 0),
        ([2, 3, 5, 6], 4, (1, 1), 1, 0),
        ([2, 3, 5, 6], 4, (3, 3), 1, 1),
        ([1, 3, 5, 6], 4, (3, 3), 1, 0),
        ([2, 2, 7, 5], 3, (3, 3), 2, 1),
        ([1, 2, 8, 9], 3, (3, 3), 2, 0),
        ([1, 2, 6, 6], 3, (2, 2), 2, 0),
        ([1, 2, 7, 7], 3, (1, 1), 2, 0),
        ([1, 2, 3, 3], 3, (1, 1), 1, 1),
        ([1, 2, 6, 7], 2, (3, 1), 1, 1),
        ([1, 2, 6, 7], 2, (1, 3), 1, 1),
        ([1, 2, 4, 5], 2, (5, 5), 1, 2),
        ([1, 1, 2, 2], 2, (5, 5), 1, 2),
        ([1, 2, 4, 4], 2, (3, 3), 1, 3),
        ([1, 2, 9, 9], 2, (4, 3), 3, 2),
        ([3, 5, 4, 4], 6, (3, 3), 1, 1),
        ([5, 3, 20, 21], 7, (3, 3), 1, 1),
        ([4, 2, 35, 33], 3, (3, 3), 2, 1),
        ([2, 9, 47, 45], 3, (3, 3), 1, 1),
    ] {
        let config = Conv2dConfig { stride, padding };
        let weight = [outputs, x[1], ky, kx];
        let name = format!("conv2d {x:?} {outputs} {ky}x{kx} stride {stride} padding {padding}");
        cases.push(case(
            name.clone(),
            &[&x, &weight],
            move |x| ops::conv2d(&x[0], &x[1], None, config),
            move |x| ops::conv2d_composed(&x[0], &x[1], None, config),
        ));
        cases.push(case(
            name + " bias",
            &[&x, &weight, &[outputs]],
            move |x| ops::conv2d(&x[0], &x[1], Some(&x[2]), config),
            move |x| ops::conv2d_composed(&x[0], &x[1], Some(&x[2]), config),
        ));
    }
}

fn attention_cases(cases: &mut Vec<Case>) {
    for mask in [AttentionMask::None, AttentionMask::Causal] {
        for (b, h, t, s, k) in [
            (1, 1, 1, 1, 1),
            (2, 3, 5, 5, 4),
            (1, 2, 7, 3, 5),
            (1, 2, 3, 11, 5),
            (2, 2, 300, 77, 8),
            (1, 1, 530, 530, 6),
        ] {
            let config = AttentionConfig {
                scale: 1.0 / (k as f64).sqrt(),
                mask,
            };
            let (q, kv) = ([b, h, t, k], [b, h, s, k]);
            cases.push(case(
                format!("attention {q:?} {s} {mask:?}"),
                &[&q, &kv, &kv],
                move |x| ops::attention(&x[0], &x[1], &x[2], config),
                move |x| ops::attention_composed(&x[0], &x[1], &x[2], config),
            ));
            let (q, kv) = ([b, t, h * k], [b, s, h * k]);
            let split = move |x: &Tensor| -> Result<Tensor> {
                let (b, t, _) = x.dims3()?;
                Ok(x.reshape((b, t, h, k))?.transpose(1, 2)?)
            };
            cases.push(case(
                format!("attention_packed {q:?} {h} {s} {mask:?}"),
                &[&q, &kv, &kv],
                move |x| ops::attention_packed(&x[0], &x[1], &x[2], h, config),
                move |x| {
                    let y = ops::attention_composed(&split(&x[0])?, &split(&x[1])?, &split(&x[2])?, config)?;
                    Ok(y.transpose(1, 2)?.contiguous()?.flatten_from(2)?)
                },
            ));
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    elementwise_cases(&mut cases);
    norm_cases(&mut cases);
    linear_cases(&mut cases);
    conv2d_cases(&mut cases);
    attention_cases(&mut cases);
    assert_eq!(cases.len(), 6 * 3 + 3 + 4 + 2 * 5 + 3 + 2 * 4 + 2 * 19 + 2 * 2 * 6);
    cases
}

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let data: Vec<f64> = (0..shape.iter().product())
        .map(|_| rng.random_range(-2.0..2.0))
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn operands(case: &Case) -> Vec<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    case.shapes.iter().map(|shape| random(&mut rng, shape)).collect()
}

/// A weighting of the result, so that every element of it matters differently.
fn weighted(y: &Tensor) -> Tensor {
    let weights = random(&mut ChaCha8Rng::seed_from_u64(11), y.dims())
        .to_dtype(y.dtype())
        .unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

fn as_vars(operands: &[Tensor]) -> (Vec<Var>, Vec<Tensor>) {
    let vars: Vec<Var> = operands.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
    (vars, tensors)
}

/// The result and the gradients of its weighting with respect to all operands.
fn value_and_gradients(op: &Op, operands: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let (vars, tensors) = as_vars(operands);
    let y = op(&tensors).unwrap();
    let store = weighted(&y).backward().unwrap();
    let gradients = vars
        .iter()
        .map(|var| store.get(var).expect("a gradient of a tracked operand").detach())
        .collect();
    (y.detach(), gradients)
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let (found, expected) = (numbers(found), numbers(expected));
    let size = expected.iter().fold(1e-3f64, |size, x| size.max(x.abs()));
    for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (x - y).abs() <= tolerance * size,
            "{what}: element {i} is {x}, not {y} (largest {size})"
        );
    }
}

fn converted(operands: &[Tensor], dtype: DType) -> Vec<Tensor> {
    operands.iter().map(|x| x.to_dtype(dtype).unwrap()).collect()
}

/// The same values in a view whose elements are not adjacent: the first and last dimension are stored swapped.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    if last == 0 {
        return Tensor::stack(&[x, x], 1)
            .unwrap()
            .narrow(1, 0, 1)
            .unwrap()
            .squeeze(1)
            .unwrap();
    }
    let doubled = Tensor::cat(&[x, x], 0).unwrap();
    doubled
        .transpose(0, last)
        .unwrap()
        .contiguous()
        .unwrap()
        .transpose(0, last)
        .unwrap()
        .narrow(0, 0, x.dims()[0])
        .unwrap()
}

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
    assert_eq!(checked, 2 * (18 + 3 + 4 + 3 * 13 + (2 + 3) * 4 + (2 + 3) * 19 + 3 * 24));
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

#[test]
fn extremes_are_finite() {
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let unary: [(&str, Unary); 11] = [
        ("silu", ops::silu),
        ("silu_composed", ops::silu_composed),
        ("gelu", ops::gelu),
        ("gelu_tanh", ops::gelu_tanh),
        ("gelu_tanh_composed", ops::gelu_tanh_composed),
        ("quick_gelu", ops::quick_gelu),
        ("quick_gelu_composed", ops::quick_gelu_composed),
        ("geglu", ops::geglu),
        ("softmax", ops::softmax),
        ("log_sigmoid", ops::log_sigmoid),
        ("log_sigmoid_composed", ops::log_sigmoid_composed),
    ];
    let extremes = [
        0.0, -0.0, 1e-30, 20.0, -20.0, 88.0, -88.0, 110.0, -110.0, 1e4, -1e4, 3e4,
    ];
    for (name, op) in unary {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&extremes, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let var = Var::from_tensor(&x).unwrap();
            let y = op(var.as_tensor()).unwrap();
            assert!(numbers(&y).iter().all(|x| x.is_finite()), "{name} {dtype:?}: {y}");
            let store = y.sum_all().unwrap().backward().unwrap();
            assert!(
                numbers(store.get(&var).unwrap()).iter().all(|x| x.is_finite()),
                "{name} {dtype:?}: gradient"
            );
        }
    }
    // A constant group has variance zero.
    let x = Tensor::full(5f32, (1, 4, 3, 3), &Device::Cpu).unwrap();
    let ones = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
    let var = Var::from_tensor(&x).unwrap();
    let y = ops::group_norm(var.as_tensor(), &ones, &ones, 2, 1e-5).unwrap();
    assert_eq!(numbers(&y), vec![1.0; 36]);
    let store = weighted(&y).backward().unwrap();
    assert!(numbers(store.get(&var).unwrap()).iter().all(|x| x.is_finite()));
    // Scores of a thousand leave one key.
    let q = (random(&mut ChaCha8Rng::seed_from_u64(1), &[1, 1, 5, 4]) * 1e3)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let config = AttentionConfig {
        scale: 1.0,
        mask: AttentionMask::None,
    };
    let (_, gradients) = value_and_gradients(
        &(Box::new(move |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], config)) as Op),
        &[q.clone(), q.clone(), q],
    );
    assert!(
        gradients
            .iter()
            .all(|gradient| numbers(gradient).iter().all(|x| x.is_finite()))
    );
}

/// Values from mpmath.
#[test]
fn log_sigmoid_has_the_published_values() {
    for op in [ops::log_sigmoid, ops::log_sigmoid_composed] {
        let x = Var::new(&[0.0f64, 1.0, -1.0, 20.0, -20.0, 1e4, -1e4], &Device::Cpu).unwrap();
        let y = op(x.as_tensor()).unwrap();
        let expected = [
            -std::f64::consts::LN_2,
            -0.313_261_687_518_222_8,
            -1.313_261_687_518_222_8,
            -2.061_153_620_314_381e-9,
            -20.000_000_002_061_153,
            0.0,
            -1e4,
        ];
        for (y, expected) in numbers(&y).iter().zip(expected) {
            assert!(
                (y - expected).abs() <= 1e-15 * expected.abs().max(1.0),
                "{y} {expected}"
            );
        }
        let store = y.sum_all().unwrap().backward().unwrap();
        let slopes = numbers(store.get(&x).unwrap());
        assert_eq!(slopes[0], 0.5);
        assert!((slopes[1] - 0.268_941_421_369_995_1).abs() < 1e-15);
        assert_eq!((slopes[5], slopes[6]), (0.0, 1.0));
    }
}

/// Values from PyTorch 2: `torch.nn.functional.gelu` and friends at x = -1.5, 0.3, 2.
#[test]
fn activations_have_the_published_values() {
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let table: [(Unary, [f64; 3]); 4] = [
        (ops::silu, [-0.273_638_285_710, 0.172_332_755_043, 1.761_594_155_956]),
        (ops::gelu, [-0.100_210_801_903, 0.185_373_426_657, 1.954_499_736_104]),
        (
            ops::gelu_tanh,
            [-0.100_428_423_020, 0.185_370_923_543, 1.954_597_694_088],
        ),
        (
            ops::quick_gelu,
            [-0.108_337_801_553, 0.187_484_135_382, 1.935_658_623_144],
        ),
    ];
    for (op, expected) in table {
        let x = Tensor::new(&[-1.5f64, 0.3, 2.0], &Device::Cpu).unwrap();
        assert_close(
            &op(&x).unwrap(),
            &Tensor::new(&expected, &Device::Cpu).unwrap(),
            1e-11,
            "activation",
        );
    }
}

#[test]
fn empty_operands_are_allowed() {
    let empty = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let table: Vec<(Result<Tensor>, Vec<usize>)> = vec![
        (ops::silu(&empty(&[0, 3])), vec![0, 3]),
        (ops::geglu(&empty(&[0, 4])), vec![0, 2]),
        (ops::softmax(&empty(&[0, 3])), vec![0, 3]),
        (
            ops::linear(&empty(&[0, 3]), &empty(&[2, 3]), Some(&empty(&[2]))),
            vec![0, 2],
        ),
        (
            ops::conv2d(
                &empty(&[0, 3, 4, 4]),
                &empty(&[2, 3, 3, 3]),
                None,
                Conv2dConfig::default(),
            ),
            vec![0, 2, 2, 2],
        ),
        (
            ops::group_norm(&empty(&[0, 4, 2]), &empty(&[4]), &empty(&[4]), 2, 1e-5),
            vec![0, 4, 2],
        ),
        (
            ops::layer_norm(&empty(&[0, 4]), &empty(&[4]), &empty(&[4]), 1e-5),
            vec![0, 4],
        ),
        (ops::upsample_nearest2d(&empty(&[0, 1, 2, 2]), 2), vec![0, 1, 4, 4]),
    ];
    assert_eq!(table.len(), 8);
    for (result, shape) in table {
        assert_eq!(result.unwrap().dims(), shape);
    }
}

#[test]
fn embedding_gathers_rows_and_sums_their_gradients() {
    let table = Var::new(&[[1f64, 2.], [3., 4.], [5., 6.]], &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[2u32, 0, 2], [1, 1, 1]], &Device::Cpu).unwrap();
    let y = ops::embedding(&ids, table.as_tensor()).unwrap();
    assert_eq!(y.dims(), [2, 3, 2]);
    assert_eq!(numbers(&y), [5., 6., 1., 2., 5., 6., 3., 4., 3., 4., 3., 4.]);
    let store = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(numbers(store.get(&table).unwrap()), [1., 1., 3., 3., 2., 2.]);
    assert!(ops::embedding(&Tensor::new(&[3u32], &Device::Cpu).unwrap(), table.as_tensor()).is_err());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn operands_that_do_not_fit_are_named() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let config = AttentionConfig {
        scale: 1.0,
        mask: AttentionMask::None,
    };
    let conv = |x: &[usize], w: &[usize], b: &[usize], stride| {
        ops::conv2d(
            &zeros(x),
            &zeros(w),
            Some(&zeros(b)),
            Conv2dConfig { stride, padding: 0 },
        )
    };
    let table: Vec<(Result<Tensor>, &str, &str)> = vec![
        (
            ops::linear(&zeros(&[2, 3]), &zeros(&[4, 5]), None),
            "linear",
            "shape of x",
        ),
        (
            ops::linear(&zeros(&[2, 3]), &zeros(&[4]), None),
            "linear",
            "shape of weight",
        ),
        (
            ops::linear(&zeros(&[2, 3]), &zeros(&[4, 3]), Some(&zeros(&[3]))),
            "linear",
            "shape of bias",
        ),
        (
            ops::linear(&zeros(&[2, 3]), &zeros(&[4, 3]).to_dtype(DType::F64).unwrap(), None),
            "linear",
            "dtype",
        ),
        (conv(&[3, 4, 4], &[2, 3, 3, 3], &[2], 1), "conv2d", "shape of x"),
        (conv(&[1, 3, 4, 4], &[2, 4, 3, 3], &[2], 1), "conv2d", "shape of weight"),
        (conv(&[1, 3, 4, 4], &[2, 3, 3, 3], &[3], 1), "conv2d", "shape of bias"),
        (conv(&[1, 3, 2, 4], &[2, 3, 3, 3], &[2], 1), "conv2d", "shape of x"),
        (conv(&[1, 3, 4, 4], &[2, 3, 3, 3], &[2], 0), "conv2d", "stride"),
        (
            ops::attention(&zeros(&[2, 3, 4]), &zeros(&[2, 3, 4]), &zeros(&[2, 3, 4]), config),
            "attention",
            "shape of q",
        ),
        (
            ops::attention(
                &zeros(&[1, 2, 3, 4]),
                &zeros(&[1, 2, 3, 5]),
                &zeros(&[1, 2, 3, 4]),
                config,
            ),
            "attention",
            "shape of k",
        ),
        (
            ops::attention(
                &zeros(&[1, 2, 3, 4]),
                &zeros(&[1, 2, 5, 4]),
                &zeros(&[1, 2, 6, 4]),
                config,
            ),
            "attention",
            "shape of v",
        ),
        (
            ops::attention_packed(&zeros(&[1, 3, 4]), &zeros(&[1, 3, 4]), &zeros(&[1, 3, 4]), 3, config),
            "attention",
            "number of heads",
        ),
        (
            ops::group_norm(&zeros(&[1, 4, 2]), &zeros(&[4]), &zeros(&[4]), 3, 1e-5),
            "group_norm",
            "number of groups",
        ),
        (
            ops::group_norm_silu(&zeros(&[4]), &zeros(&[4]), &zeros(&[4]), 2, 1e-5),
            "group_norm_silu",
            "shape of x",
        ),
        (
            ops::layer_norm(&zeros(&[1, 4]), &zeros(&[3]), &zeros(&[4]), 1e-5),
            "layer_norm",
            "shape of weight",
        ),
        (ops::geglu(&zeros(&[1, 3])), "geglu", "shape of x"),
        (
            ops::upsample_nearest2d(&zeros(&[1, 3]), 2),
            "upsample_nearest2d",
            "shape of x",
        ),
        (
            ops::upsample_nearest2d(&zeros(&[1, 1, 1, 1]), 0),
            "upsample_nearest2d",
            "factor",
        ),
        (
            ops::embedding(&zeros(&[1]), &zeros(&[1, 1])),
            "embedding",
            "dtype of ids",
        ),
    ];
    assert_eq!(table.len(), 20);
    for (result, expected_op, expected_what) in table {
        match result {
            Err(Error::Operand { op, what, .. }) => assert_eq!((op, what), (expected_op, expected_what)),
            other => panic!("{expected_op}, {expected_what}: {other:?}"),
        }
    }
}
