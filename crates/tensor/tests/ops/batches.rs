//! A row is the same number in a batch of any size: scores that were computed beside others are compared with scores that were not.

use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{Device, Tensor, ops};

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let values = normal_vec(&mut generator(7, Stream::Noise, stream, 0), shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rows_of_linear() {
    let mut different = Vec::new();
    for inputs in [8, 16, 32, 48, 64, 96, 172] {
        let x = normal(&[200, inputs], 0);
        for outputs in [4, 8, 16, 32, 48, 64, 96, 128, 172, 300, 500] {
            let weight = normal(&[outputs, inputs], 1);
            let whole = values(&ops::linear(&x, &weight, None).unwrap());
            // The gemm crate sums up to 256 products of rows in another order.
            for rows in [2, 5, 12, 24, 47, 48, 49, 60, 97, 150]
                .into_iter()
                .filter(|rows| rows * outputs > 256)
            {
                let part = values(&ops::linear(&x.narrow(0, 0, rows).unwrap(), &weight, None).unwrap());
                if part[..] != whole[..rows * outputs] {
                    different.push((inputs, outputs, rows));
                }
            }
        }
    }
    assert!(different.is_empty(), "{different:?}");
}

fn differing(whole: &Tensor, part: &Tensor, start: usize) -> usize {
    let (whole, part) = (values(whole), values(part));
    part.iter().zip(&whole[start..]).filter(|(a, b)| a != b).count()
}

#[test]
fn rows_of_norms_gates_and_log_probabilities() {
    let mut problems = Vec::new();
    for width in [16, 32, 48, 64, 96] {
        let (x, y) = (normal(&[200, width], 0), normal(&[200, width], 2));
        let weight = normal(&[width], 1);
        let head = normal(&[300, width], 3);
        let targets =
            Tensor::from_vec((0..200_u32).map(|i| i * 7 % 300).collect::<Vec<_>>(), 200, &Device::Cpu).unwrap();
        for rows in [2, 5, 12, 24, 47, 49, 60, 97, 150] {
            let cut = |x: &Tensor| x.narrow(0, 0, rows).unwrap();
            let norm = |x: &Tensor| ops::rms_norm(x, &weight, 1e-5).unwrap();
            let n = differing(&norm(&x), &norm(&cut(&x)), 0);
            if n > 0 {
                problems.push(format!("norm {width} {rows}: {n}"));
            }
            let n = differing(
                &ops::swiglu(&x, &y).unwrap(),
                &ops::swiglu(&cut(&x), &cut(&y)).unwrap(),
                0,
            );
            if n > 0 {
                problems.push(format!("swiglu {width} {rows}: {n}"));
            }
            let logps =
                |x: &Tensor, t: &Tensor| ops::token_logps(x, &head, t, ops::TokenLogpsConfig::default()).unwrap();
            let n = differing(&logps(&x, &targets), &logps(&cut(&x), &cut(&targets)), 0);
            if n > 0 {
                problems.push(format!("logps {width} {rows}: {n}"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn rows_of_attention() {
    let mut problems = Vec::new();
    for (heads, kv_heads, dim) in [(4, 2, 8), (4, 4, 8), (2, 1, 16), (4, 2, 16)] {
        let config = ops::GroupedAttentionConfig {
            num_heads: heads,
            num_kv_heads: kv_heads,
            scale: 0.3,
            softcap: None,
        };
        for len in [3, 7, 12, 20, 33] {
            let total = 5 * len;
            let [q, k, v] =
                [(heads, 0), (kv_heads, 1), (kv_heads, 2)].map(|(h, stream)| normal(&[1, total, h * dim], stream));
            // Five texts of one length side by side in one row.
            let ranges = (0..total as u32)
                .map(|i| {
                    let start = i / len as u32 * len as u32;
                    [start, i + 1, i + 1, i + 1]
                })
                .collect();
            let packed = ops::VisibleKeys::from_ranges(1, total, total, ranges).unwrap();
            let whole = ops::attention_grouped(&q, &k, &v, &packed, config).unwrap();
            let alone = ops::VisibleKeys::causal(1, len, len).unwrap();
            for text in 0..5 {
                let cut = |x: &Tensor| x.narrow(1, text * len, len).unwrap();
                let part = ops::attention_grouped(&cut(&q), &cut(&k), &cut(&v), &alone, config).unwrap();
                let n = differing(&whole, &part, text * len * heads * dim);
                if n > 0 {
                    problems.push(format!(
                        "{heads} {kv_heads} {dim} len {len} text {text}: {n} of {}",
                        len * heads * dim
                    ));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems:?}");
}
