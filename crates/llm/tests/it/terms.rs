//! Terms beside the objective of pairs: the divergence on the policy's own answers, and the likelihood of rationales.

use diptych_data::{Encoder, EncodingConfig, RationaleTemplate, SampleBody, Text, TextDataset, TextPair, Tokenizer};
use diptych_llm::arrangement::{Arrangement, Sequence};
use diptych_llm::policy::{NetworkOptions, TrainedLm, load_frozen};
use diptych_llm::records::{EncodedRecord, encode};
use diptych_llm::scoring::{Statistics, score, score_detached};
use diptych_models::lm::{CausalLm, GenerateConfig, LmDir, Prompt, Sampling};
use diptych_tensor::{DType, Device, Tensor, backward};
use diptych_train::{Item, Method as _, MicroBatch};
use serde_json::{Value, json};

use crate::bench::{Bench, Computed, apart, compute, difference, golden, message, rows_of};

fn dpo() -> Value {
    json!({ "dpo": { "beta": 0.1 } })
}

/// The tiny Qwen2 with and without a trained adapter, and a term of its own answers.
fn online(objective: &Value, weight: f64, max_new_tokens: usize) -> Value {
    let mut changes = apart(objective);
    changes["reference"] = json!({ "checkpoint": { "path": golden().join("qwen2") } });
    changes["method"] = json!({ "offline_pairs": {
        "online_kl": { "weight": weight, "max_new_tokens": max_new_tokens },
    } });
    changes
}

/// The golden pairs, each with a rationale.
fn with_rationales() -> Vec<Value> {
    let words = [
        "It names the tide.",
        "The other one is of a coin, and nobody asked.",
        "Shorter.",
    ];
    let mut rows = rows_of("pairs.jsonl");
    for (at, row) in rows.iter_mut().enumerate() {
        row["rationale"] = json!(words[at % words.len()]);
    }
    rows
}

/// A recipe that learns the rationales of rows.
fn reasoned(bench: &Bench, rows: &[Value], weight: f64) -> Value {
    json!({
        "data": { "path": bench.rows("rationales.jsonl", rows) },
        "method": { "offline_pairs": { "rationale": { "weight": weight } } },
    })
}

/// Everything that a term of weight `weight` adds, against the same step with weight 0.
fn added(found: &Computed, without: &Computed) -> Vec<f64> {
    let losses = found.losses.iter().zip(&without.losses);
    losses.map(|(found, without)| found - without).collect()
}

#[test]
fn layout_and_cut_of_a_batch_change_no_term() {
    let bench = Bench::new();
    let mut both = online(&dpo(), 0.3, 5);
    both["data"] = json!({ "path": bench.rows("rationales.jsonl", &with_rationales()) });
    both["method"]["offline_pairs"]["rationale"] =
        json!({ "weight": 0.05, "template": "{prompt}|{chosen}|{rejected}\n" });
    let of = |arrangement: &str, micro_batch: usize| {
        let mut changes = both.clone();
        changes["method"]["offline_pairs"]["arrangement"] = json!(arrangement);
        compute(&bench.method(&changes), 4, micro_batch)
    };
    let expected = of("padded", 4);
    for key in ["kl/online", "lengths/online", "logps/rationale", "lengths/rationale"] {
        assert_eq!(expected.outputs[0].metrics[key].len(), 4, "{key}");
    }
    let mut num = 0;
    for (arrangement, micro_batch) in [("packed", 4), ("shared_prefix", 4), ("padded", 2), ("shared_prefix", 1)] {
        let found = of(arrangement, micro_batch);
        found.assert_equals(&expected, 1e-5, &format!("{arrangement} {micro_batch}"));
        let tokens = |computed: &Computed| {
            computed
                .outputs
                .iter()
                .map(|output| output.totals["num_tokens"])
                .sum::<f64>()
        };
        assert!((tokens(&found) - tokens(&expected)).abs() < 0.5);
        num += 1;
    }
    assert_eq!(num, 4);
}

#[test]
fn the_online_term_is_added_with_its_weight_to_any_objective() {
    let bench = Bench::new();
    let mut num = 0;
    for objective in [
        dpo(),
        json!({ "ipo": { "beta": 0.1 } }),
        json!({ "simpo": { "beta": 2.0, "gamma": 1.0 } }),
        json!({ "orpo": { "beta": 0.1 } }),
        json!({ "plackett_luce": { "beta": 0.1 } }),
    ] {
        let of = |weight: f64| compute(&bench.method(&online(&objective, weight, 6)), 4, 2);
        let (without, with) = (of(0.0), of(0.5));
        let plain = compute(&bench.method(&apart(&objective)), 4, 2);
        without.assert_equals(&plain, 1e-6, &format!("{objective}"));
        let kl: Vec<f64> = with
            .outputs
            .iter()
            .flat_map(|output| output.metrics["kl/online"].clone())
            .collect();
        assert!(kl.iter().any(|ratio| ratio.abs() > 1e-3), "{kl:?}");
        let half: Vec<f64> = kl.iter().map(|ratio| 0.5 * ratio).collect();
        assert!(difference(&added(&with, &without), &half) < 1e-5, "{objective}");
        assert!(with.gradient_difference(&without) > 1e-4, "{objective}");
        num += 1;
    }
    assert_eq!(num, 5);
}

/// Both networks of [`online`], and its records.
fn networks(bench: &Bench) -> (TrainedLm, CausalLm, Vec<EncodedRecord>) {
    let path = golden().join("qwen2");
    let directory = LmDir::open(&path).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    let recipe = bench.recipe(&online(&dpo(), 0.0, 1));
    let policy = TrainedLm::load(&directory, &recipe.adapter.0, &options).unwrap();
    let reference = load_frozen(&directory, None, &options).unwrap();
    let rows = TextDataset::load(&[golden().join("data/pairs.jsonl")], diptych_data::Layout::Auto).unwrap();
    let tokenizer = Tokenizer::from_dir(&path).unwrap();
    let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
    let records = encode(&rows, &encoder).unwrap();
    (policy, reference, records)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor
        .detach()
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn the_gradient_is_that_of_the_answers_weighted_with_their_log_ratios() {
    let bench = Bench::new();
    let of = |weight: f64| compute(&bench.method(&online(&dpo(), weight, 6)), 3, 3);
    let (without, with) = (of(0.0), of(2.0));
    // The same answers, asked for and scored by hand: step 1, places 0 to 2, the seed of the run.
    let (policy, reference, records) = networks(&bench);
    let prompts: Vec<Prompt<'_>> = (0..3)
        .map(|at| Prompt {
            input_ids: &records[at].responses[0].prompt,
            example: (1 << 32) | at as u64,
        })
        .collect();
    let config = GenerateConfig {
        max_new_tokens: 6,
        sampling: Sampling::default(),
        eos_token_ids: policy.model.config().eos_token_ids.clone(),
        seed: 0,
    };
    let answers = policy.model.generate(&prompts, &config).unwrap();
    let mut total: Option<Tensor> = None;
    for (at, answer) in answers.iter().enumerate() {
        let sequence = Sequence {
            id: "one",
            prompt: prompts[at].input_ids,
            response: &answer.tokens,
            images: &[],
        };
        let arranged = Arrangement::Padded.arrange(&[sequence], 0, &Device::Cpu).unwrap();
        let logps = score(&policy.model, &arranged, Statistics::Skipped)
            .unwrap()
            .per_token_logps;
        let logps = logps.sum_all().unwrap();
        let of_reference: f64 = numbers(&score_detached(&reference, &arranged).unwrap().per_token_logps)
            .iter()
            .sum();
        let ratio = numbers(&logps)[0] - of_reference;
        assert!((ratio - with.outputs[0].metrics["kl/online"][at]).abs() < 1e-4);
        let term = (logps * (2.0 * ratio / 3.0)).unwrap();
        total = Some(match total {
            None => term,
            Some(total) => (total + term).unwrap(),
        });
    }
    let gradients = backward(&total.unwrap(), &policy.params).unwrap();
    let mut num = 0;
    for (name, expected) in gradients.iter() {
        let pairs = with.gradients[name].iter().zip(&without.gradients[name]);
        let found: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
        assert!(difference(&found, &numbers(expected)) < 1e-4, "{name}");
        num += usize::from(numbers(expected).iter().any(|slope| slope.abs() > 1e-3));
    }
    assert!(num >= 10, "{num} parameters with a slope to compare");
}

#[test]
fn the_mean_over_answers_of_one_token_is_the_exact_divergence() {
    let bench = Bench::new();
    let (policy, reference, records) = networks(&bench);
    let prompt = &records[0].responses[0].prompt;
    let vocabulary: Vec<[u32; 1]> = (0..policy.model.config().vocab_size as u32)
        .map(|token| [token])
        .collect();
    let sequences: Vec<Sequence<'_>> = vocabulary
        .iter()
        .map(|token| Sequence {
            id: "one",
            prompt,
            response: token,
            images: &[],
        })
        .collect();
    let arranged = Arrangement::SharedPrefix.arrange(&sequences, 0, &Device::Cpu).unwrap();
    let [own, other] =
        [&policy.model, &reference].map(|model| numbers(&score_detached(model, &arranged).unwrap().per_token_logps));
    let exact: f64 = own
        .iter()
        .zip(&other)
        .map(|(own, other)| own.exp() * (own - other))
        .sum();
    let method = bench.method(&online(&dpo(), 1.0, 1));
    let mut found = Vec::new();
    for step in 1..=5 {
        let items = (0..200).map(|position| Item { index: 0, position }).collect();
        let output = method.step(&MicroBatch::whole(7, step, items)).unwrap();
        found.extend(output.metrics["kl/online"].iter().copied());
    }
    assert_eq!(found.len(), 1000);
    let mean = found.iter().sum::<f64>() / 1000.0;
    let variance = found.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / 999.0;
    let error = (variance / 1000.0).sqrt();
    assert!(
        (mean - exact).abs() < 4.0 * error,
        "{mean} is not {exact} within {error}"
    );
    assert!(variance > 0.0, "every answer is the same");
}

#[test]
fn online_terms_that_cannot_be_estimated_are_refused() {
    let bench = Bench::new();
    let with = |section: &str, value: Value| {
        let mut changes = online(&dpo(), 0.1, 4);
        changes[section] = value;
        message(bench.try_recipe(&changes))
    };
    let of_term = |term: Value| with("method", json!({ "offline_pairs": { "online_kl": term } }));
    let simpo = json!({ "simpo": { "beta": 2.0, "gamma": 1.0 } });
    let mut without = online(&simpo, 0.1, 4);
    without["reference"] = json!({ "none": {} });
    let term = json!({ "weight": 1.0, "objective": { "online_kl": {} } });
    let sum = json!({ "weighted_sum": { "terms": [{ "weight": 1.0, "objective": dpo() }, term] } });
    let cases = [
        (
            message(bench.try_recipe(&without)),
            "`method.offline_pairs.online_kl` needs a reference",
        ),
        (with("reference", json!({ "cached": {} })), "reference.cached"),
        (
            of_term(json!({ "weight": -0.5, "max_new_tokens": 4 })),
            "online_kl.weight",
        ),
        (
            of_term(json!({ "weight": 0.5, "max_new_tokens": 0 })),
            "online_kl.max_new_tokens",
        ),
        (
            of_term(json!({ "weight": 0.5, "max_new_tokens": 4, "temperature": 0.7 })),
            "temperature",
        ),
        (of_term(json!({ "max_new_tokens": 4 })), "weight"),
        (
            with("objective", json!({ "online_kl": {} })),
            "method.offline_pairs.online_kl",
        ),
        (with("objective", sum), "the policy's own samples"),
        (
            with(
                "data",
                json!({ "max_len": 20, "encoding": { "truncation": "keep-end" } }),
            ),
            "cuts the prompts",
        ),
    ];
    for (error, expected) in &cases {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(cases.len(), 9);
    // Without the section the reference is the one that the term needs.
    let mut of_simpo = online(&simpo, 0.1, 4);
    of_simpo.as_object_mut().unwrap().remove("reference");
    assert_eq!(bench.recipe(&of_simpo).reference.name(), "frozen");
}

#[test]
fn a_rationale_is_a_supervised_text_behind_its_prompt() {
    let bench = Bench::new();
    let rows = with_rationales();
    let of = |weight: f64| compute(&bench.method(&reasoned(&bench, &rows, weight)), 4, 2);
    let (without, with) = (of(0.0), of(0.25));
    let plain = compute(&bench.method(&json!({})), 4, 2);
    without.assert_equals(&plain, 1e-6, "weight 0");
    // The same texts as rows of their own, of which the completions are learned.
    let sample = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap();
        let mut pair = TextPair::new("row", text("prompt"), text("chosen"), text("rejected"));
        pair.rationale = Some(text("rationale").to_owned());
        let sample = RationaleTemplate::default().sample(&pair).unwrap().unwrap();
        match sample.body {
            SampleBody::Completed {
                prompt: Text::Plain(prompt),
                completion: Text::Plain(completion),
            } => json!({ "prompt": prompt, "completion": completion }),
            other => panic!("{other:?}"),
        }
    };
    let texts: Vec<Value> = rows.iter().map(sample).collect();
    let supervised = json!({
        "data": { "path": bench.rows("texts.jsonl", &texts) },
        "method": { "sft": {} },
        "objective": { "sft": {} },
    });
    let expected = compute(&bench.method(&supervised), 4, 4);
    let quarter: Vec<f64> = expected.losses.iter().map(|loss| 0.25 * loss).collect();
    assert!(difference(&added(&with, &without), &quarter) < 1e-5);
    let logps: Vec<f64> = with
        .outputs
        .iter()
        .flat_map(|output| output.metrics["logps/rationale"].clone())
        .collect();
    assert!(difference(&logps, &expected.outputs[0].metrics["logps/chosen"]) < 1e-5);
    for (name, gradient) in &expected.gradients {
        let pairs = with.gradients[name].iter().zip(&without.gradients[name]);
        let found: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
        let quarter: Vec<f64> = gradient.iter().map(|slope| 0.25 * slope).collect();
        assert!(difference(&found, &quarter) < 1e-5, "{name}");
    }
    assert!(expected.moves() && expected.gradients.len() > 10);
}

#[test]
fn rationales_that_are_not_there_or_do_not_fit() {
    let bench = Bench::new();
    let mut rows = with_rationales();
    rows[2].as_object_mut().unwrap().remove("rationale");
    let error = message(bench.try_method(&reasoned(&bench, &rows, 0.1)));
    assert!(
        error.contains("rationales.jsonl:3") && error.contains("`rationale`"),
        "{error}"
    );
    let mut template = reasoned(&bench, &with_rationales(), 0.1);
    template["method"]["offline_pairs"]["rationale"]["template"] = json!("{prompt} {chosen}");
    let error = message(bench.try_recipe(&template));
    assert!(
        error.contains("rationale.template") && error.contains("{rejected}"),
        "{error}"
    );

    // One answer fills the prompt of its rationale: the record counts with the preference alone.
    let mut rows = with_rationales();
    rows[1]["chosen"] = json!(" the tide".repeat(60));
    let limited = |weight: f64| {
        let mut changes = reasoned(&bench, &rows, weight);
        changes["method"]["offline_pairs"]["rationale"]["template"] = json!("{prompt}{chosen}{rejected}\n");
        changes["data"]["max_len"] = json!(120);
        changes
    };
    let of = |weight: f64| compute(&bench.method(&limited(weight)), 4, 4);
    let (without, with) = (of(0.0), of(0.5));
    let added = added(&with, &without);
    let logps = &with.outputs[0].metrics["logps/rationale"];
    assert_eq!(logps.len(), 3);
    assert!(difference(&added, &[-0.5 * logps[0], 0.0, -0.5 * logps[1], -0.5 * logps[2]]) < 1e-5);
    let alone = bench.method(&limited(0.5));
    let output = alone
        .step(&MicroBatch::whole(0, 1, vec![Item { index: 1, position: 0 }]))
        .unwrap();
    assert!(!output.metrics.contains_key("logps/rationale"));
    let mut none = limited(0.5);
    let template = format!("{{prompt}}{{chosen}}{{rejected}}{}\n", " the tide".repeat(60));
    none["method"]["offline_pairs"]["rationale"]["template"] = json!(template);
    let error = message(bench.try_method(&none));
    assert!(
        error.contains("none of the 48 rationales") && error.contains("data.max_len"),
        "{error}"
    );
}
