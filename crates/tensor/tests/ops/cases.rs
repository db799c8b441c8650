//! One call of every operation, with its composed form.

use candle_core::{Device, Tensor};
use diptych_tensor::Result;
use diptych_tensor::ops::{
    self, AttentionConfig, AttentionMask, Conv2dConfig, GroupedAttentionConfig, Segment, TokenLogpsConfig, VisibleKeys,
};

pub(crate) type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// One call of one operation: operand shapes, the fused and the composed form.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) fused: Op,
    pub(crate) composed: Op,
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
    let unary: [(&str, Unary, Unary); 7] = [
        ("silu", ops::silu, ops::silu_composed),
        ("gelu", ops::gelu, ops::gelu_composed),
        ("gelu_tanh", ops::gelu_tanh, ops::gelu_tanh_composed),
        ("quick_gelu", ops::quick_gelu, ops::quick_gelu_composed),
        ("log_sigmoid", ops::log_sigmoid, ops::log_sigmoid_composed),
        ("softmax", ops::softmax, ops::softmax_composed),
        ("log_softmax", ops::log_softmax, ops::log_softmax_composed),
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
        // Small images, directly.
        ([3, 16, 8, 8], 13, (3, 3), 1, 1),
        ([2, 29, 4, 7], 32, (3, 3), 1, 0),
        ([1, 13, 3, 14], 16, (3, 3), 1, 2),
        ([66, 8, 4, 4], 8, (3, 3), 1, 1),
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
        // By Winograd's algorithm: partial tiles and lanes.
        ([2, 64, 17, 19], 60, (3, 3), 1, 1),
        ([2, 64, 10, 11], 62, (3, 3), 1, 2),
        // Products of each image by itself, several of them summed.
        ([11, 5, 4, 3], 6, (1, 1), 1, 0),
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

fn gated_cases(cases: &mut Vec<Case>) {
    type Binary = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let binary: [(&str, Binary, Binary); 2] = [
        ("swiglu", ops::swiglu, ops::swiglu_composed),
        ("geglu_tanh", ops::geglu_tanh, ops::geglu_tanh_composed),
    ];
    for (name, fused, composed) in binary {
        for shape in [&[7][..], &[3, 5, 33], &[2, 3, 130, 61]] {
            cases.push(case(
                format!("{name} {shape:?}"),
                &[shape, shape],
                move |x| fused(&x[0], &x[1]),
                move |x| composed(&x[0], &x[1]),
            ));
        }
    }
}

fn token_cases(cases: &mut Vec<Case>) {
    for shape in [&[5][..], &[3, 17], &[2, 130, 321]] {
        let width = [*shape.last().unwrap()];
        cases.push(case(
            format!("rms_norm {shape:?}"),
            &[shape, &width],
            |x| ops::rms_norm(&x[0], &x[1], 1e-5),
            |x| ops::rms_norm_composed(&x[0], &x[1], 1e-5),
        ));
    }
    for (b, t, heads, half, table) in [
        (1, 1, 1, 1, &[1, 1][..]),
        (2, 5, 3, 4, &[5, 4]),
        (3, 4, 2, 3, &[1, 4, 3]),
        (2, 130, 3, 17, &[2, 130, 17]),
    ] {
        let angles = (0..table.iter().product()).map(|i| (i as f64).sqrt()).collect();
        let angles: Tensor = Tensor::from_vec::<_, f64>(angles, table, &Device::Cpu).unwrap();
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let (cos_of_composed, sin_of_composed) = (cos.clone(), sin.clone());
        let shape = [b, t, heads * 2 * half];
        cases.push(case(
            format!("rope {shape:?} {heads} {table:?}"),
            &[&shape],
            move |x| ops::rope(&x[0], heads, &cos, &sin),
            move |x| ops::rope_composed(&x[0], heads, &cos_of_composed, &sin_of_composed),
        ));
    }
}

/// Masks of every kind, and sizes with several tiles and pieces of columns.
fn visible_cases() -> Vec<(&'static str, VisibleKeys)> {
    let branches = |prefix_len, branch_lens: &[usize]| Segment {
        prefix_len,
        branch_lens: branch_lens.to_vec(),
    };
    let trees = [
        vec![branches(5, &[3, 0, 4]), Segment::sequence(2)],
        vec![Segment::sequence(9)],
    ];
    let long = [vec![
        branches(70, &[90, 60, 100]),
        branches(3, &[30]),
        Segment::sequence(80),
    ]];
    vec![
        ("two", VisibleKeys::causal(1, 2, 2)),
        ("all", VisibleKeys::all(2, 4, 7)),
        ("causal", VisibleKeys::causal(2, 6, 6)),
        ("cached", VisibleKeys::causal(1, 3, 9)),
        ("right and left padding", VisibleKeys::padded(6, 6, &[0..4, 2..6])),
        ("cached padding", VisibleKeys::padded(1, 8, &[3..8, 0..8])),
        ("packed", VisibleKeys::packed(15, &trees)),
        ("window", VisibleKeys::causal(2, 9, 9).and_then(|all| all.windowed(3))),
        (
            "packed window",
            VisibleKeys::packed(15, &trees).and_then(|all| all.windowed(4)),
        ),
        ("long", VisibleKeys::packed(450, &long)),
        (
            "long window",
            VisibleKeys::packed(450, &long).and_then(|all| all.windowed(50)),
        ),
    ]
    .into_iter()
    .map(|(name, visible)| (name, visible.unwrap()))
    .collect()
}

fn grouped_cases(cases: &mut Vec<Case>) {
    for (name, visible) in visible_cases() {
        for (num_heads, num_kv_heads, head_dim, softcap) in [(3, 3, 2, None), (4, 2, 3, Some(0.9)), (2, 1, 4, None)] {
            let config = GroupedAttentionConfig {
                num_heads,
                num_kv_heads,
                scale: 0.7,
                softcap,
            };
            let (visible, visible_of_composed) = (visible.clone(), visible.clone());
            let q = [visible.batch(), visible.queries(), num_heads * head_dim];
            let kv = [visible.batch(), visible.keys(), num_kv_heads * head_dim];
            cases.push(case(
                format!("attention_grouped {name} {num_heads} {num_kv_heads}"),
                &[&q, &kv, &kv],
                move |x| ops::attention_grouped(&x[0], &x[1], &x[2], &visible, config),
                move |x| ops::attention_grouped_composed(&x[0], &x[1], &x[2], &visible_of_composed, config),
            ));
        }
    }
}

/// Results are cast to the type of the operands, so that they are compared as those of the other operations.
fn logps_cases(cases: &mut Vec<Case>) {
    for (n, d, v, chunk_rows) in [
        (1, 1, 1, None),
        (3, 5, 7, None),
        (5, 3, 1025, Some(2)),
        (67, 4, 2500, Some(32)),
        (300, 8, 33, None),
    ] {
        for (logit_scale, softcap, temperature) in [(1.0, None, 1.0), (0.5, Some(2.0), 0.7)] {
            let config = TokenLogpsConfig {
                logit_scale,
                softcap,
                temperature,
                chunk_rows,
            };
            let targets: Vec<u32> = (0..n).map(|i| (i * i * 31 + v - 1) as u32 % v as u32).collect();
            let targets = Tensor::from_vec(targets, n, &Device::Cpu).unwrap();
            let targets_of_composed = targets.clone();
            cases.push(case(
                format!("token_logps {n} {d} {v} {softcap:?}"),
                &[&[n, d], &[v, d]],
                move |x| Ok(ops::token_logps(&x[0], &x[1], &targets, config)?.to_dtype(x[0].dtype())?),
                move |x| {
                    let logps = ops::token_logps_composed(&x[0], &x[1], &targets_of_composed, config)?;
                    Ok(logps.to_dtype(x[0].dtype())?)
                },
            ));
        }
    }
}

/// Against the views of candle.
fn token_image_cases(cases: &mut Vec<Case>) {
    for (b, c, y, x) in [(1, 1, 1, 1), (2, 3, 2, 5), (1, 40, 6, 7), (3, 33, 32, 32)] {
        cases.push(case(
            format!("image_to_tokens {b} {c} {y} {x}"),
            &[&[b, c, y, x]],
            |x| ops::image_to_tokens(&x[0]),
            |x| Ok(x[0].flatten_from(2)?.transpose(1, 2)?.contiguous()?),
        ));
        cases.push(case(
            format!("tokens_to_image {b} {c} {y} {x}"),
            &[&[b, y * x, c]],
            move |t| ops::tokens_to_image(&t[0], y, x),
            move |t| Ok(t[0].transpose(1, 2)?.contiguous()?.reshape((b, c, y, x))?),
        ));
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    token_image_cases(&mut cases);
    elementwise_cases(&mut cases);
    norm_cases(&mut cases);
    linear_cases(&mut cases);
    conv2d_cases(&mut cases);
    attention_cases(&mut cases);
    gated_cases(&mut cases);
    token_cases(&mut cases);
    grouped_cases(&mut cases);
    logps_cases(&mut cases);
    let of_decoders = 2 * 3 + 3 + 4 + 11 * 3 + 5 * 2;
    assert_eq!(
        cases.len(),
        2 * 4 + 7 * 3 + 3 + 4 + 2 * 5 + 3 + 2 * 4 + 2 * 26 + 2 * 2 * 6 + of_decoders
    );
    cases
}
