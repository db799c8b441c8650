//! Terms beside the objective of pairs, in runs: what is logged and the loss fit together as the papers say.

use std::path::{Path, PathBuf};

use diptych_llm::LanguageMethod;
use diptych_train::{Item, Method as _, MetricsRow, MicroBatch, Recipe, Reporter};
use diptych_vlm::{VisionLanguage, prepare};
use serde_json::{Value, json};

use crate::bench::{Bench, compute, golden, numbers};

const BETA: f64 = 0.1;

/// The shipped CLIP of the embedded world, which reads any words.
fn clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-clip")
}

fn method(keys: &Value) -> Value {
    json!({ "method": { "offline_pairs": keys } })
}

fn start(bench: &Bench, keys: &Value) -> LanguageMethod {
    bench.method(&method(keys))
}

/// A run of five records, one a step, whose rows are those of single records.
fn run(bench: &Bench, keys: &Value) -> Vec<MetricsRow> {
    let mut changes = method(keys);
    changes["train"] = json!({ "steps": 5, "micro_batch": 1, "log_every": 1 });
    bench.run(&changes)
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `-log s(x)`.
fn sigmoid_loss(x: f64) -> f64 {
    softplus(-x)
}

/// `A_w - A_l`.
fn margin(row: &MetricsRow) -> f64 {
    row.metrics["logratios/chosen"] - row.metrics["logratios/rejected"]
}

/// The loss of every row is the one its other numbers say; the first, of policies equal to their reference, is `first`; the last is not
/// what a run without the terms comes to.
fn assert_losses(what: &str, bench: &Bench, keys: &Value, first: f64, expected: impl Fn(&MetricsRow) -> f64) {
    let rows = run(bench, keys);
    let plain = run(bench, &json!({}));
    assert_eq!(rows.len(), 5, "{what}");
    assert!(
        (rows[0].loss - first).abs() < 1e-5,
        "{what}: {}, expected {first}",
        rows[0].loss
    );
    for row in &rows {
        let expected = expected(row);
        assert!(
            (row.loss - expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{what}, step {}: {}, expected {expected}",
            row.step,
            row.loss
        );
    }
    let moved = (rows[4].metrics["logps/chosen"] - plain[4].metrics["logps/chosen"]).abs();
    assert!(moved > 1e-4, "{what}: the run is the one without");
}

#[test]
fn chip_is_one_sigmoid_of_answers_images_and_divergences() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        let keys = json!({
            "image_preference": { "beta": BETA, "combination": "joint", "corruption": { "diffusion_noise": {} } },
            "token_divergence": { "weight": 0.7 },
            "token_weights": { "gamma": 4.0, "normalization": "none" },
        });
        assert_losses(model, &bench, &keys, 2_f64.ln(), |row| {
            let of_tokens = 0.7 * (row.metrics["kl/rejected"] - row.metrics["kl/chosen"]);
            sigmoid_loss(BETA * (margin(row) - of_tokens) + row.metrics["image_preference/margins"])
        });
        let rows = run(&bench, &keys);
        assert!(rows[0].metrics["kl/chosen"].abs() < 1e-6 && rows[4].metrics["kl/chosen"] > 1e-6);
    }
}

#[test]
fn chip_of_the_paper_has_its_segments_beside() {
    let bench = Bench::new("llava");
    let keys = json!({
        "image_preference": { "beta": BETA, "corruption": { "diffusion_noise": {} } },
        "token_divergence": { "weight": 0.1 },
        "token_weights": { "gamma": 5.0, "beside": 3.0 },
    });
    assert_losses("segments", &bench, &keys, 5.0 * 2_f64.ln(), |row| {
        let of_tokens = 0.1 * (row.metrics["kl/rejected"] - row.metrics["kl/chosen"]);
        let images = sigmoid_loss(row.metrics["image_preference/margins"]);
        sigmoid_loss(BETA * (margin(row) - of_tokens)) + images + 3.0 * row.metrics["token_weights/loss"]
    });
}

/// What is compared with the plain sum of an answer is a plain sum too, where weights are for a second objective.
#[test]
fn weights_beside_the_objective_change_no_other_term() {
    let terms = [
        (
            json!({ "image_preference": { "beta": BETA, "corruption": { "diffusion_noise": {} } } }),
            "image_preference/margins",
        ),
        (json!({ "own_answer": { "beta": 0.2 } }), "own_answer/margins"),
    ];
    for (plain, key) in terms {
        let bench = Bench::new("llava");
        let mut weighed = plain.clone();
        weighed["token_weights"] = json!({ "gamma": 5.0, "beside": 3.0 });
        let [plain, weighed] = [plain, weighed].map(|keys| {
            let method = start(&bench, &keys);
            crate::methods::move_away(&method);
            first_step(&method, 1, key)
        });
        assert_eq!(plain, weighed, "{key}");
        assert!(plain.iter().any(|margin| margin.abs() > 1e-3), "{key}: {plain:?}");
    }
}

#[test]
fn rrpo_holds_the_chosen_answer_beside_its_phrases() {
    let bench = Bench::new("llava");
    let keys = json!({
        "token_weights": { "gamma": 1.0, "unchanged": 0.0, "normalization": "none", "min_match_size": 1 },
        "token_divergence": { "weight": 0.5, "role": "penalty" },
    });
    assert_losses("rrpo", &bench, &keys, 2_f64.ln(), |row| {
        sigmoid_loss(BETA * margin(row)) + 0.5 * row.metrics["kl/chosen"]
    });
}

#[test]
fn povid_halves_the_loss_between_answers_and_what_is_seen_badly() {
    for tokens in ["policy", "own"] {
        let bench = Bench::new("llava");
        let keys = json!({ "own_answer": { "beta": 0.2, "reference_tokens": tokens } });
        assert_losses(tokens, &bench, &keys, 2_f64.ln(), |row| {
            0.5 * sigmoid_loss(BETA * margin(row)) + 0.5 * sigmoid_loss(row.metrics["own_answer/margins"])
        });
    }
}

fn first_step(method: &LanguageMethod, step: u64, key: &str) -> Vec<f64> {
    let items = vec![Item { index: 0, position: 0 }, Item { index: 1, position: 1 }];
    method.step(&MicroBatch::whole(7, step, items)).unwrap().metrics[key].clone()
}

#[test]
fn own_tokens_are_the_likeliest_under_the_image_that_is_spoiled() {
    let bench = Bench::new("qwen2_5_vl");
    let own = |corruption: Value| {
        start(
            &bench,
            &json!({ "own_answer": { "beta": BETA, "corruption": corruption } }),
        )
    };
    // Nearly no noise: the tokens are the likeliest ones under the row's own image, each likelier than the answer's.
    let clean = own(json!({ "diffusion_noise": { "step": 0 } }));
    let (of_own, of_chosen) = (
        first_step(&clean, 1, "logps/own_answer"),
        first_step(&clean, 1, "logps/chosen"),
    );
    for (own, chosen) in of_own.iter().zip(&of_chosen) {
        assert!(own > &(chosen + 0.1), "{own} and {chosen}");
    }
    let noisy = own(json!({ "diffusion_noise": { "step": 999 } }));
    let of_noisy = first_step(&noisy, 1, "logps/own_answer");
    assert!(of_noisy.iter().zip(&of_own).all(|(noisy, own)| noisy <= &(own + 1e-4)));
    assert!(
        of_noisy.iter().zip(&of_own).any(|(noisy, own)| noisy < &(own - 1e-3)),
        "{of_noisy:?} {of_own:?}"
    );
    assert_eq!(of_noisy, first_step(&noisy, 1, "logps/own_answer"));
}

#[test]
fn what_released_programs_do_is_there_under_a_name() {
    let bench = Bench::new("llava");
    let compared = |more: Value| {
        let mut term = json!({ "beta": BETA, "corruption": { "crop": {} } });
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        compute(&start(&bench, &json!({ "image_preference": term })), 4).0
    };
    let paper = compared(json!({}));
    // mDPO: the reference sees another crop, so that the log-ratio under other images is not that of one image.
    let drawn = compared(json!({ "reference_draw": "own" }));
    assert_eq!(paper.metrics["logps/other_images"], drawn.metrics["logps/other_images"]);
    assert!(
        numbers(&paper.losses)
            .iter()
            .all(|loss| (loss - 2.0 * 2_f64.ln()).abs() < 1e-5)
    );
    assert!(
        numbers(&drawn.losses)
            .iter()
            .any(|loss| (loss - 2.0 * 2_f64.ln()).abs() > 1e-4)
    );
    // Re-Align: rejected answers and those under other images are scored by other tokens, whatever the answers are.
    let likeliest = compared(json!({ "scores": "likeliest_other" }));
    assert_eq!(paper.metrics["logps/chosen"], likeliest.metrics["logps/chosen"]);
    for key in ["logps/rejected", "logps/other_images"] {
        let pairs = paper.metrics[key].iter().zip(&likeliest.metrics[key]);
        assert!(pairs.clone().all(|(answer, other)| other > &(answer + 0.1)), "{key}");
    }
    let loss = |loss: &f64| (loss - 2.0 * 2_f64.ln()).abs() < 1e-5;
    assert!(numbers(&likeliest.losses).iter().all(loss));
}

fn perturbed(more: &Value) -> Value {
    let mut keys = json!({ "clip": clip() });
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "token_perturbation": keys })
}

#[test]
fn a_perturbed_prompt_is_the_one_with_masks_in_the_places_of_its_words() {
    let bench = Bench::new("llava");
    // So many that every word of the question is masked.
    let all = json!({ "tokens": { "most_agnostic": { "omega": 1e9 } }, "mask_token": "no" });
    let (found, _) = compute(&start(&bench, &perturbed(&all)), 4);
    let text = std::fs::read_to_string(golden("vlm_trl/pairs.jsonl")).unwrap();
    let masked: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let question = row["prompt"][0]["content"].as_str().unwrap().to_owned();
            row["prompt"][0]["content"] = json!(vec!["no"; question.split(' ').count()].join(" "));
            row
        })
        .collect();
    let by_hand = bench.method(&json!({ "data": { "path": bench.rows("masked.jsonl", &masked) } }));
    let (expected, _) = compute(&by_hand, 4);
    let plain = compute(&start(&bench, &json!({})), 4).0;
    for key in ["logps/chosen", "logps/rejected"] {
        for ((found, expected), plain) in found.metrics[key]
            .iter()
            .zip(&expected.metrics[key])
            .zip(&plain.metrics[key])
        {
            assert!((found - expected).abs() < 1e-4, "{key}: {found}, expected {expected}");
            assert!((found - plain).abs() > 1e-4, "{key}");
        }
    }
    // One of the words: neither all of them nor none.
    let one = json!({ "tokens": { "most_agnostic": { "omega": 1e-9 } }, "mask_token": "no" });
    let one = compute(&start(&bench, &perturbed(&one)), 4).0;
    for key in ["logps/chosen", "logps/rejected"] {
        assert!(
            one.metrics[key]
                .iter()
                .zip(&found.metrics[key])
                .any(|(one, all)| (one - all).abs() > 1e-4)
        );
        assert!(
            one.metrics[key]
                .iter()
                .zip(&plain.metrics[key])
                .any(|(one, plain)| (one - plain).abs() > 1e-4)
        );
    }
}

#[test]
fn replaced_tokens_are_drawn_anew_in_every_epoch() {
    let bench = Bench::new("llava");
    let replaced = start(
        &bench,
        &perturbed(&json!({ "tokens": { "most_agnostic": { "omega": 1e9 } }, "change": "replace" })),
    );
    let first = first_step(&replaced, 1, "logps/chosen");
    assert_eq!(first, first_step(&replaced, 12, "logps/chosen"));
    assert!(
        first
            .iter()
            .zip(first_step(&replaced, 13, "logps/chosen"))
            .all(|(a, b)| *a != b)
    );
    // Perturbed tokens of answers are not learned.
    let sampled = start(
        &bench,
        &perturbed(&json!({ "tokens": { "sampled": { "share": 0.9 } } })),
    );
    let plain = start(&bench, &json!({}));
    let lengths = |method: &LanguageMethod| compute(method, 8).0.metrics["lengths/chosen"].iter().sum::<f64>();
    assert!(
        lengths(&sampled) < 0.6 * lengths(&plain),
        "{} of {}",
        lengths(&sampled),
        lengths(&plain)
    );
}

#[test]
fn tars_adds_spectra_to_a_dpo_on_perturbed_prompts() {
    for (form, tower) in [
        (json!({ "power": { "beta": 1.0 } }), "frozen"),
        (json!({ "triplet": { "margin": 0.5 } }), "trained"),
    ] {
        let bench = Bench::new("llava");
        let mut keys = perturbed(&json!({ "tokens": { "most_agnostic": { "omega": 0.1 } } }));
        keys["frequency"] = json!({ "weight": 0.5, "form": form });
        let with = |keys: &Value| {
            let mut changes = method(keys);
            changes["adapter"] = json!({ "lora": { "rank": 2, "tower": tower, "targets": "(.*q_proj|.*linear_1)" } });
            changes["train"] = json!({ "steps": 5, "micro_batch": 1, "log_every": 1 });
            bench.run(&changes)
        };
        let rows = with(&keys);
        for row in &rows {
            let expected = sigmoid_loss(BETA * margin(row)) + 0.5 * row.metrics["frequency/loss"];
            assert!(
                (row.loss - expected).abs() < 1e-5 * expected,
                "{form}: {}, expected {expected}",
                row.loss
            );
        }
        let is_moved = rows
            .windows(2)
            .any(|two| (two[0].metrics["frequency/loss"] - two[1].metrics["frequency/loss"]).abs() > 1e-7);
        assert!(is_moved, "{form}");
        keys["frequency"]["weight"] = json!(0.0);
        let without = with(&keys);
        let differs = (rows[4].metrics["logps/chosen"] - without[4].metrics["logps/chosen"]).abs();
        assert!(differs > 1e-6, "{form}: nothing comes of the spectra");
    }
    // Policy and reference alike, and no word perturbed: the powers are alike too.
    let bench = Bench::new("qwen2_5_vl");
    let (output, _) = compute(&start(&bench, &json!({ "frequency": { "weight": 1.0 } })), 4);
    for loss in numbers(&output.losses) {
        assert!((loss - 2.0 * 2_f64.ln()).abs() < 1e-4, "{loss}");
    }
}

#[test]
fn layout_of_a_batch_changes_no_term() {
    let bench = Bench::new("llava");
    let of = |arrangement: &str| {
        let mut keys = perturbed(&json!({ "tokens": { "most_agnostic": { "omega": 0.3 } }, "mask_token": "no" }));
        keys["arrangement"] = json!(arrangement);
        keys["frequency"] = json!({ "weight": 0.5 });
        keys["token_divergence"] = json!({ "weight": 0.5, "role": "penalty" });
        keys["own_answer"] = json!({ "beta": 0.3 });
        let (output, gradients) = compute(&start(&bench, &keys), 4);
        let mut found = numbers(&output.losses);
        for (_, gradient) in gradients.iter() {
            found.extend(numbers(gradient));
        }
        found
    };
    let expected = of("padded");
    for arrangement in ["packed", "shared_prefix"] {
        crate::bench::assert_close(arrangement, &of(arrangement), &expected, 1e-4);
    }
}

/// A method with these keys, and another section.
fn beside(keys: &Value, name: &str, value: Value) -> Value {
    let mut changes = method(keys);
    changes[name] = value;
    changes
}

fn assert_refused(bench: &Bench, cases: &[(Value, &str)], num: usize) {
    for (changes, key) in cases {
        let error = bench.try_recipe(changes).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    assert_eq!(cases.len(), num);
}

#[test]
fn comparisons_without_a_use_are_refused() {
    let bench = Bench::new("llava");
    let own = |more: Value| {
        let mut keys = json!({ "beta": BETA });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "own_answer": keys })
    };
    let mut both = own(json!({}));
    both["image_preference"] = json!({ "beta": BETA, "corruption": { "crop": {} } });
    let rows = json!({ "image_preference": { "beta": BETA, "reference_draw": "own" } });
    let likeliest = json!({
        "image_preference": { "beta": BETA, "scores": "likeliest_other", "corruption": { "crop": {} } },
        "token_divergence": { "weight": 0.1 },
    });
    let far = own(json!({ "corruption": { "diffusion_noise": { "step": 5000 } } }));
    let cases = [
        (method(&own(json!({ "beta": 0.0 }))), "own_answer.beta"),
        (method(&own(json!({ "share": 1.0 }))), "own_answer.share"),
        (method(&far), "own_answer.corruption"),
        (method(&both), "own_answer"),
        (
            beside(&own(json!({})), "reference", json!({ "cached": {} })),
            "reference.cached",
        ),
        (method(&rows), "image_preference.reference_draw"),
        (method(&likeliest), "image_preference.scores"),
    ];
    assert_refused(&bench, &cases, 7);
}

#[test]
fn perturbations_and_spectra_without_a_use_are_refused() {
    let bench = Bench::new("llava");
    let tokens = |tokens: Value| method(&perturbed(&json!({ "tokens": tokens })));
    let unused = perturbed(&json!({ "change": "replace", "mask_token": "no" }));
    let plain = perturbed(&json!({}));
    let text = json!({ "orpo": { "beta": 0.1, "likelihood_of": "text" } });
    let frequency = |more: Value| json!({ "frequency": more });
    let flat = frequency(json!({ "weight": 1.0, "form": { "power": { "beta": 0.0 } } }));
    let cached = || json!({ "cached": {} });
    let cases = [
        (
            tokens(json!({ "most_agnostic": { "omega": 0.0 } })),
            "most_agnostic.omega",
        ),
        (tokens(json!({ "sampled": { "share": 1.5 } })), "sampled.share"),
        (method(&unused), "token_perturbation.mask_token"),
        (beside(&plain, "reference", cached()), "reference.cached"),
        (beside(&plain, "objective", text), "token_perturbation"),
        (method(&frequency(json!({ "weight": -1.0 }))), "frequency.weight"),
        (method(&flat), "power.beta"),
        (
            beside(&frequency(json!({ "weight": 1.0 })), "reference", cached()),
            "reference.cached",
        ),
    ];
    assert_refused(&bench, &cases, 8);
    let unknown = bench.try_method(&method(&perturbed(&json!({ "mask_token": "nowhere" }))));
    let error = unknown.unwrap_err().to_string();
    assert!(error.contains("mask_token") && error.contains("nowhere"), "{error}");
    let missing = bench.try_method(&method(&json!({ "token_perturbation": { "clip": "nowhere" } })));
    assert!(missing.unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn shipped_recipes_of_the_methods_begin_where_their_papers_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ln_2 = 2_f64.ln();
    // At the start every sigmoid loses ln 2, and nothing diverges.
    let recipes = [
        ("mdpo", 3.0 * ln_2, "image_preference/anchor"),
        ("rdpo", 2.0 * ln_2, "image_preference/loss"),
        ("dense_dpo", ln_2, "logps/chosen"),
        ("chip", ln_2, "kl/rejected"),
        ("tars", ln_2, "frequency/loss"),
        ("povid", ln_2, "own_answer/loss"),
        ("rrpo", ln_2, "kl/chosen"),
    ];
    for (name, expected, metric) in recipes {
        let path = root.join(format!("examples/recipes/shapes_vlm_{name}.toml"));
        let from_root = |key: &str, value: &str| format!("{key}=\"{}\"", root.join(value).display());
        let mut overrides = vec![
            from_root("model.path", "models/shapes-vlm"),
            from_root("data.path", "datasets/shapes-vlm-pairs/pairs.jsonl"),
            "run.device=\"cpu\"".to_owned(),
        ];
        if name == "tars" {
            overrides.push(from_root(
                "method.offline_pairs.token_perturbation.clip",
                "models/shapes-clip",
            ));
        }
        let recipe = Recipe::<VisionLanguage>::read(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let method = prepare(&recipe, &mut Reporter::silent()).unwrap();
        let (output, gradients) = compute(&method, 4);
        assert_eq!(output.metrics[metric].len(), 4, "{name}");
        for (at, loss) in numbers(&output.losses).iter().enumerate() {
            // The reference reads unperturbed texts.
            let of_spectra = output
                .metrics
                .get("frequency/loss")
                .map_or(0.0, |losses| 0.1 * losses[at]);
            assert!((loss - expected - of_spectra).abs() < 1e-4, "{name}: {loss}");
        }
        let is_moved = |(_, gradient): (&str, _)| numbers(gradient).iter().any(|value| *value != 0.0);
        assert!(gradients.iter().any(is_moved), "{name}");
    }
}
