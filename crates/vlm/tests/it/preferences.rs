//! Preferences between images, and weights of single tokens.

use diptych_llm::LanguageMethod;
use diptych_train::{Item, Method as _, MicroBatch};
use serde_json::{Value, json};

use crate::bench::{Bench, compute, golden, numbers};

/// Pairs with other images of other sizes.
fn rows(bench: &Bench) -> std::path::PathBuf {
    let text = std::fs::read_to_string(golden("vlm_trl/pairs.jsonl")).unwrap();
    let rows: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let images = row["images"].as_array().unwrap();
            let other = |image: &Value| {
                if image == "images/a.png" {
                    "images/b.png"
                } else {
                    "images/a.png"
                }
            };
            row["rejected_images"] = images.iter().map(other).collect();
            row
        })
        .collect();
    bench.rows("rows.jsonl", &rows)
}

fn term(more: &Value) -> Value {
    let mut term = json!({ "beta": 0.1 });
    term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "offline_pairs": { "image_preference": term } })
}

#[test]
fn a_policy_equal_to_its_reference_loses_ln_2_a_sigmoid() {
    let crop = json!({ "corruption": { "crop": {} } });
    let anchored = json!({ "corruption": { "diffusion_noise": {} }, "anchor": {} });
    let joint = json!({ "corruption": { "crop": {} }, "combination": "joint" });
    for (model, tower) in [("llava", "frozen"), ("llava", "trained"), ("qwen2_5_vl", "frozen")] {
        let bench = Bench::new(model);
        let data = json!({ "path": rows(&bench) });
        for (more, sigmoids) in [(&crop, 2.0), (&anchored, 3.0), (&joint, 1.0), (&json!({}), 2.0)] {
            for reference in ["adapter_off", "frozen"] {
                let method = bench.method(&json!({
                    "adapter": { "lora": { "rank": 2, "tower": tower } }, "data": data, "method": term(more), "reference": { reference: {} },
                }));
                let (output, gradients) = compute(&method, 4);
                for loss in numbers(&output.losses) {
                    let expected = sigmoids * 2_f64.ln();
                    assert!(
                        (loss - expected).abs() < 1e-5,
                        "{model}, {reference}: {loss}, expected {expected}: {more}"
                    );
                }
                let moved = method.params().names().any(|name| {
                    let gradient = numbers(gradients.get(name).unwrap());
                    gradient.iter().any(|value| *value != 0.0)
                });
                assert!(moved, "{model}: {more}");
            }
        }
    }
}

fn logps(method: &LanguageMethod, step: u64) -> [Vec<f64>; 2] {
    let items = vec![Item { index: 0, position: 0 }, Item { index: 1, position: 1 }];
    let output = method.step(&MicroBatch::whole(7, step, items)).unwrap();
    ["logps/chosen", "logps/other_images"].map(|key| output.metrics[key].clone())
}

#[test]
fn images_are_spoiled_anew_in_every_epoch_and_alike_within_it() {
    let bench = Bench::new("llava");
    let method = bench.method(&json!({ "method": term(&json!({ "corruption": { "diffusion_noise": {} } })) }));
    let [own, first] = logps(&method, 1);
    assert_eq!([own.clone(), first.clone()], logps(&method, 1));
    // Two records a step: 24 come again after 12 steps.
    let [_, same_epoch] = logps(&method, 12);
    let [_, next_epoch] = logps(&method, 13);
    assert_eq!(first, same_epoch);
    assert!(first.iter().zip(&next_epoch).all(|(a, b)| a != b), "{first:?}");
    assert!(own.iter().zip(&first).all(|(a, b)| a != b), "{own:?}");
}

#[test]
fn other_images_of_the_row_are_what_the_answer_is_scored_under() {
    let bench = Bench::new("qwen2_5_vl");
    let path = rows(&bench);
    let [_, other] = logps(
        &bench.method(&json!({ "data": { "path": path }, "method": term(&json!({})) })),
        1,
    );
    // The same answers behind prompts that show the other images themselves.
    let text = std::fs::read_to_string(&path).unwrap();
    let swapped: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            row["images"] = row["rejected_images"].take();
            row.as_object_mut().unwrap().remove("rejected_images");
            row
        })
        .collect();
    let path = bench.rows("swapped.jsonl", &swapped);
    let (output, _) = compute(&bench.method(&json!({ "data": { "path": path } })), 2);
    for (found, expected) in other.iter().zip(&output.metrics["logps/chosen"]) {
        assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
    }
}

#[test]
fn rejected_answers_see_their_own_images_unless_images_are_compared() {
    let bench = Bench::new("llava");
    let path = rows(&bench);
    let of = |method: Value, path: &std::path::Path| {
        let method = bench.method(&json!({ "data": { "path": path }, "method": method }));
        compute(&method, 4).0.metrics["logps/rejected"].clone()
    };
    let plain = of(json!({ "offline_pairs": {} }), &golden("vlm_trl/pairs.jsonl"));
    let other = of(json!({ "offline_pairs": {} }), &path);
    let compared = of(term(&json!({})), &path);
    for ((plain, other), compared) in plain.iter().zip(&other).zip(&compared) {
        assert!((plain - compared).abs() < 1e-4, "{plain} and {compared}");
        assert!((plain - other).abs() > 1e-4, "{plain} and {other}");
    }
}

/// Rows as Re-Align publishes them: an image and one that was retrieved.
fn re_align(bench: &Bench, keys: [&str; 2]) -> std::path::PathBuf {
    let images = [["images/a.png", "images/b.png"], ["images/c.png", "images/d.png"]];
    let rows: Vec<Value> = images
        .iter()
        .map(|[own, retrieved]| {
            let side = |words: &str| {
                json!([
                    { "role": "user", "content": "<image>\nwhat do you see" },
                    { "role": "assistant", "content": words },
                ])
            };
            json!({ keys[0]: own, keys[1]: retrieved, "chosen": side("a red star"), "rejected": side("two blue circle") })
        })
        .collect();
    bench.rows(&format!("{}.jsonl", keys.concat()), &rows)
}

#[test]
fn a_retrieved_image_is_compared_with_and_answers_are_about_the_own_one() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        let of = |path: &std::path::Path, method: Value, key: &str| {
            let method = bench.method(&json!({ "data": { "path": path }, "method": method }));
            compute(&method, 2).0.metrics[key].clone()
        };
        let plain = json!({ "offline_pairs": {} });
        let given = re_align(&bench, ["image", "retrieved_image"]);
        // The retrieved image in the place of the own one.
        let swapped = re_align(&bench, ["retrieved_image", "image"]);
        for key in ["logps/chosen", "logps/rejected"] {
            let (alone, compared) = (of(&given, plain.clone(), key), of(&given, term(&json!({})), key));
            let elsewhere = of(&swapped, plain.clone(), key);
            for ((alone, compared), elsewhere) in alone.iter().zip(&compared).zip(&elsewhere) {
                assert!(
                    (alone - compared).abs() < 1e-4,
                    "{model}, {key}: {alone} and {compared}"
                );
                assert!(
                    (alone - elsewhere).abs() > 1e-4,
                    "{model}, {key}: {alone} and {elsewhere}"
                );
            }
        }
        let found = of(&given, term(&json!({})), "logps/other_images");
        for (found, expected) in found.iter().zip(&of(&swapped, plain.clone(), "logps/chosen")) {
            assert!((found - expected).abs() < 1e-4, "{model}: {found}, expected {expected}");
        }
    }
    let bench = Bench::new("llava");
    let mut row: Value =
        serde_json::from_str(std::fs::read_to_string(rows(&bench)).unwrap().lines().next().unwrap()).unwrap();
    row["other_images"] = row["rejected_images"].clone();
    let path = bench.rows("both.jsonl", &[row]);
    let error = bench
        .try_method(&json!({ "data": { "path": path }, "method": term(&json!({})) }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`other_images` and `rejected_images`"), "{error}");
}

#[test]
fn dense_weights_are_learned_with() {
    let bench = Bench::new("llava");
    let of = |weights: Value| {
        let method = bench.method(&json!({ "method": { "offline_pairs": { "token_weights": weights } } }));
        let (output, _) = compute(&method, 4);
        (numbers(&output.losses), output.metrics["logps/chosen"].clone())
    };
    let plain = compute(&bench.method(&json!({})), 4).0.metrics["logps/chosen"].clone();
    let (losses, one) = of(json!({ "gamma": 1.0, "normalization": "none" }));
    let (_, heavy) = of(json!({ "gamma": 5.0, "normalization": "none" }));
    let (_, paper) = of(json!({ "gamma": 5.0 }));
    assert!(losses.iter().all(|loss| (loss - 2_f64.ln()).abs() < 1e-5));
    assert_eq!(one, plain);
    assert!(
        heavy.iter().zip(&plain).any(|(heavy, plain)| heavy < &(plain - 1.0)),
        "{heavy:?}"
    );
    // Means are nearer to zero than sums.
    assert!(
        paper.iter().zip(&plain).all(|(paper, plain)| paper > plain),
        "{paper:?}"
    );
}

#[test]
fn images_are_compared_beside_an_objective_without_a_reference() {
    let bench = Bench::new("llava");
    let changes = |weight: f64| {
        json!({
            "method": term(&json!({ "weight": weight, "corruption": { "crop": {} } })),
            "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } },
            "reference": { "frozen": {} },
        })
    };
    let losses = |weight| numbers(&compute(&bench.method(&changes(weight)), 4).0.losses);
    // At the start the term is ln 2 a record.
    for (with, without) in losses(1.0).iter().zip(losses(0.0)) {
        assert!((with - without - 2_f64.ln()).abs() < 1e-5, "{with}, {without}");
    }
}

#[test]
fn reference_sums_of_the_data_cannot_be_those_of_weighed_tokens() {
    let bench = Bench::new("llava");
    let text = std::fs::read_to_string(golden("vlm_trl/pairs.jsonl")).unwrap();
    let scored: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            row["ref_chosen_logps"] = json!(-20.0);
            row["ref_rejected_logps"] = json!(-21.0);
            row
        })
        .collect();
    let error = bench
        .try_method(&json!({
            "data": { "path": bench.rows("scored.jsonl", &scored) },
            "method": { "offline_pairs": { "token_weights": { "gamma": 5.0 } } },
            "reference": { "cached": {} },
        }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("token_weights"), "{error}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let bench = Bench::new("llava");
    let error = bench
        .try_method(&json!({ "method": term(&json!({})) }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("rejected_images") && error.contains("record"), "{error}");
    let crop = term(&json!({ "corruption": { "crop": {} } }));
    let mut joint = crop.clone();
    joint["offline_pairs"]["image_preference"]["combination"] = json!("joint");
    let mut beta = joint.clone();
    beta["offline_pairs"]["image_preference"]["beta"] = json!(5.0);
    let mut far = crop.clone();
    far["offline_pairs"]["image_preference"]["corruption"] = json!({ "crop": { "min_area": 2.0 } });
    let mut weight = crop.clone();
    weight["offline_pairs"]["image_preference"]["weight"] = json!(-1.0);
    for (changes, key) in [
        (
            json!({ "method": crop, "reference": { "cached": {} } }),
            "reference.cached",
        ),
        (
            json!({ "method": crop, "reference": { "none": {} }, "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } } }),
            "image_preference",
        ),
        (
            json!({ "method": joint, "objective": { "ipo": { "beta": 0.1 } } }),
            "image_preference.combination",
        ),
        (json!({ "method": beta }), "image_preference.beta"),
        (json!({ "method": far }), "image_preference.corruption"),
        (json!({ "method": weight }), "image_preference.weight"),
        (
            json!({ "method": { "offline_pairs": { "token_weights": { "gamma": 0.0 } } } }),
            "token_weights.gamma",
        ),
    ] {
        let error = bench.try_recipe(&changes).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}
