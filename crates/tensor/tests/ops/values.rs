//! Published values, extreme and empty operands, and operands that do not fit.

use candle_core::{DType, Device, Tensor, Var};
use diptych_tensor::ops::{self, AttentionConfig, AttentionMask, Conv2dConfig};
use diptych_tensor::{Error, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cases::Op;
use crate::operands::*;

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
