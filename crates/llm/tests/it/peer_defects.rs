//! Defects that users reported of other trainers, each with a test that it is not here. References are to GitHub repositories.

use diptych_data::{Encoder, EncodingConfig, TextDataset, TextPair, Tokenizer};
use diptych_llm::arrangement::{Arrangement, Sequence};
use diptych_llm::implicit_rewards::{RewardConfig, score_records};
use diptych_llm::policy::{NetworkOptions, load_frozen};
use diptych_llm::records::{EncodedRecord, encode};
use diptych_llm::reference::Reference;
use diptych_models::lm::LmDir;
use diptych_tensor::{DType, Device};
use serde_json::{Value, json};

use crate::bench::{Bench, apart, assert_same_rows, compute, fresh_adapter, golden, message, rows_of};

fn log_sigmoid(x: f64) -> f64 {
    -(-x).exp().ln_1p()
}

fn encoded(model: &std::path::Path, pairs: Vec<TextPair>) -> Vec<EncodedRecord> {
    let tokenizer = Tokenizer::from_dir(model).unwrap();
    let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
    encode(&TextDataset::Pairs(pairs), &encoder).unwrap()
}

#[test]
fn label_smoothing_dropped() {
    // huggingface/trl#7063: an option that the path taken does not read; TRL's `sigmoid` reads no label smoothing at all.
    let bench = Bench::new();
    let of = |label_smoothing: f64| {
        let objective = json!({ "dpo": { "beta": 0.5, "label_smoothing": label_smoothing } });
        compute(&bench.method(&apart(&objective)), 6, 6)
    };
    let (smooth, plain) = (of(0.2), of(0.0));
    for (at, margin) in smooth.outputs[0].metrics["rewards/margins"].iter().enumerate() {
        let expected = -0.8 * log_sigmoid(*margin) - 0.2 * log_sigmoid(-margin);
        assert!(
            (smooth.losses[at] - expected).abs() < 1e-5,
            "{} {expected}",
            smooth.losses[at]
        );
    }
    assert!(smooth.gradient_difference(&plain) > 1e-4);
}

#[test]
fn options_without_effect() {
    // huggingface/trl#7063, axolotl's `dpo_padding_free`: keys that nothing reads. Every key of `dpo` and `offline_pairs` is known,
    // and no other is taken.
    let bench = Bench::new();
    let mut num = 0;
    for key in [
        "loss_type",
        "ld_alpha",
        "f_divergence_type",
        "use_weighting",
        "reference_free",
        "rpo_alpha",
        "simpo_gamma",
    ] {
        let error = message(bench.try_recipe(&json!({ "objective": { "dpo": { "beta": 0.1, key: 1 } } })));
        assert!(error.contains(key), "{error}");
        num += 1;
    }
    for key in [
        "padding_free",
        "packing",
        "use_liger_kernel",
        "precompute_ref_log_probs",
    ] {
        let error = message(bench.try_recipe(&json!({ "method": { "offline_pairs": { key: true } } })));
        assert!(error.contains(key), "{error}");
        num += 1;
    }
    assert_eq!(num, 11);
}

#[test]
fn prefix_mismatch_only_warned() {
    // trl `dpo_trainer.py`, "Mismatch between tokenized prompt": a prompt that is no token prefix is trained on shifted.
    let bench = Bench::new();
    let row = |prompt: &str, chosen: &str| json!({ "prompt": prompt, "chosen": chosen, "rejected": "d road" });
    let rows = [
        row("Tell me about the old harbor:", " the tide."),
        row("Tell me about the old har", "bor waits"),
    ];
    let path = bench.rows("boundary.jsonl", &rows);
    let changes = json!({ "data": { "path": path } });
    let error = message(bench.try_method(&changes));
    assert!(error.contains("boundary.jsonl:2"), "{error}");
    // TRL's reading is there for who asks for it.
    let mut common = changes.clone();
    common["data"]["encoding"] = json!({ "prefix": "common" });
    bench.method(&common);
}

#[test]
fn loss_stuck_at_ln_2_with_a_precomputed_reference() {
    // huggingface/trl#1962, huggingface/trl#2423: with precomputed scores the loss stayed at 0.6931.
    let bench = Bench::new();
    let mut num = 0;
    for adapter in [json!({ "full": {} }), fresh_adapter()] {
        let rows = bench.run(&json!({
            "model": { "path": golden().join("qwen2") },
            "adapter": adapter,
            "data": { "path": bench.rows("four.jsonl", &rows_of("pairs.jsonl")[..4]) },
            "reference": { "cached": {} },
            "optimizer": { "adamw": { "lr": 5e-3 } },
            "train": { "steps": 6 },
        }));
        assert!((rows[0].loss - 2f64.ln()).abs() < 1e-6);
        for row in &rows[1..] {
            assert!((row.loss - 2f64.ln()).abs() > 1e-4, "{}", row.loss);
            num += 1;
        }
    }
    assert_eq!(num, 10);
}

#[test]
fn precomputing_changes_the_order() {
    // huggingface/trl#2426: precomputing drew from the generator that orders the rows.
    let bench = Bench::new();
    let run = |reference: Value| {
        bench.run(&json!({
            "run": { "seed": 5 },
            "data": { "shuffle": true },
            "reference": reference,
            "train": { "steps": 14, "micro_batch": 4 },
        }))
    };
    let (live, cached) = (run(json!({ "frozen": {} })), run(json!({ "cached": {} })));
    // Other rows would have other lengths, and these are whole numbers.
    for (live, cached) in live.iter().zip(&cached) {
        assert_eq!(
            live.metrics["lengths/chosen"].to_bits(),
            cached.metrics["lengths/chosen"].to_bits()
        );
    }
    assert!(
        live.windows(2)
            .any(|rows| rows[0].metrics["lengths/chosen"] != rows[1].metrics["lengths/chosen"])
    );
    assert_same_rows(&cached, &live, 1e-4, "cached");
}

#[test]
fn reference_loaded_although_cached() {
    // huggingface/trl#5542: a second copy of the network in memory although its scores are there.
    let bench = Bench::new();
    let num_networks = |reference: Value| {
        let method = bench.method(&json!({ "reference": reference }));
        format!("{method:?}").matches("CausalLm {").count()
    };
    assert_eq!(num_networks(json!({ "frozen": {} })), 2);
    assert_eq!(num_networks(json!({ "cached": {} })), 1);
}

#[test]
fn begin_token_doubled_and_end_token_missing_or_doubled() {
    // huggingface/trl#1640, huggingface/trl#1687, huggingface/trl#4481, axolotl-ai-cloud/axolotl#1616.
    let bench = Bench::new();
    let templated = bench.copy("llama");
    let template = "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    std::fs::write(templated.join("chat_template.jinja"), template).unwrap();
    let mut records = encoded(
        &golden().join("llama"),
        vec![
            TextPair::new("plain", "Tell me:", " the tide", " a coin</s>"),
            TextPair::new("written", "<s>Tell me:", " the tide", " a coin"),
        ],
    );
    let rows = bench.rows(
        "chat.jsonl",
        &[json!({
            "prompt": [{ "role": "user", "content": "Tell me:" }],
            "chosen": [{ "role": "assistant", "content": "the tide" }],
            "rejected": [{ "role": "assistant", "content": "a coin" }],
        })],
    );
    let dataset = TextDataset::load(&[rows], diptych_data::Layout::Auto).unwrap();
    let tokenizer = Tokenizer::from_dir(&templated).unwrap();
    let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
    records.extend(encode(&dataset, &encoder).unwrap());
    let (bos, eos) = (1, 2);
    let mut num = 0;
    for record in &records {
        for response in &record.responses {
            let begins = response
                .prompt
                .iter()
                .chain(&response.ids)
                .filter(|&&id| id == bos)
                .count();
            // A begin token that the text itself spells is the text's.
            let expected = if record.id == "written" { 2 } else { 1 };
            assert_eq!((begins, response.prompt[0]), (expected, bos), "{record:?}");
            assert_eq!(response.ids.iter().filter(|&&id| id == eos).count(), 1, "{record:?}");
            assert_eq!(response.ids.last(), Some(&eos), "{record:?}");
            num += 1;
        }
    }
    assert_eq!(num, 6);
}

#[test]
fn ld_dpo_on_the_policy_only() {
    // LLaMA-Factory and ms-swift weight the tail of the policy's score and not of the reference's: a policy that is its reference
    // then has a margin.
    let bench = Bench::new();
    let method = bench.method(&json!({ "objective": { "ld_dpo": { "beta": 0.5, "alpha": 0.25 } } }));
    let computed = compute(&method, 6, 6);
    let metrics = &computed.outputs[0].metrics;
    let differ = |(chosen, rejected): (&f64, &f64)| (chosen - rejected).abs() > 0.5;
    assert!(
        metrics["lengths/chosen"]
            .iter()
            .zip(&metrics["lengths/rejected"])
            .any(differ)
    );
    for loss in &computed.losses {
        assert!((loss - 2f64.ln()).abs() < 1e-6, "{loss}");
    }
}

#[test]
fn ipo_divided_by_the_length_of_the_pack() {
    // ms-swift divides by the tokens of the packed row, so that the loss of a pair depends on its neighbors.
    let bench = Bench::new();
    let mut num = 0;
    for arrangement in ["packed", "shared_prefix"] {
        let mut changes = apart(&json!({ "ipo": { "beta": 0.1, "normalization": "length" } }));
        changes["method"] = json!({ "offline_pairs": { "arrangement": arrangement } });
        let method = bench.method(&changes);
        let (together, alone) = (compute(&method, 6, 6), compute(&method, 6, 1));
        let metrics = &together.outputs[0].metrics;
        for (at, (together, alone)) in together.losses.iter().zip(&alone.losses).enumerate() {
            assert!((together - alone).abs() < 1e-4);
            let side =
                |side: &str| metrics[&*format!("logratios/{side}")][at] / metrics[&*format!("lengths/{side}")][at];
            let expected = (side("chosen") - side("rejected") - 5.0).powi(2);
            assert!((together - expected).abs() < 1e-3, "{together} {expected}");
            num += 1;
        }
    }
    assert_eq!(num, 12);
}

#[test]
fn padding_free_disabled() {
    // huggingface/trl#2422, huggingface/trl#2469: switched off with a warning. That the numbers are those of padded rows for every
    // objective is in `arrangements`.
    let (first, second) = ([1, 2, 3], [4, 5]);
    let (short, long) = ([6], [7, 8, 9, 10]);
    let sequence = |prompt, response| Sequence {
        id: "row",
        prompt,
        response,
        images: &[],
    };
    let sequences: [Sequence<'_>; 3] = [
        sequence(&first, &short),
        sequence(&first, &long),
        sequence(&second, &short),
    ];
    let num_tokens = |arrangement: Arrangement| {
        let arranged = arrangement.arrange(&sequences, 0, &Device::Cpu).unwrap();
        arranged.input.input_ids().elem_count()
    };
    assert_eq!(num_tokens(Arrangement::Padded), 21);
    assert_eq!(num_tokens(Arrangement::Packed), 14);
    assert_eq!(num_tokens(Arrangement::SharedPrefix), 11);
}

#[test]
fn reference_that_is_not_the_start() {
    // huggingface/trl#1365, huggingface/trl#3108: with an adapter to start from, the model without it was taken as the reference.
    let bench = Bench::new();
    let mut changes = apart(&json!({ "dpo": { "beta": 0.1 } }));
    changes.as_object_mut().unwrap().remove("reference");
    let losses = compute(&bench.method(&changes), 4, 4).losses;
    assert!(losses.iter().all(|loss| (loss - 2f64.ln()).abs() < 1e-6), "{losses:?}");
    changes["reference"] = json!({ "adapter_off": {} });
    let error = message(bench.try_recipe(&changes));
    assert!(error.contains("adapter_off") && error.contains("frozen"), "{error}");
}

#[test]
fn token_counts_under_accumulation() {
    // unslothai/unsloth#3482, huggingface/trl#5710: a mean of means over micro batches weighs tokens of short texts more.
    let bench = Bench::new();
    let changes = json!({
        "data": { "path": golden().join("data/texts.jsonl") },
        "objective": { "sft": { "normalization": "batch_tokens" } },
        "method": { "sft": {} },
    });
    let method = bench.method(&changes);
    let whole = compute(&method, 6, 6);
    for micro_batch in [1, 2, 4] {
        let cut = compute(&method, 6, micro_batch);
        cut.assert_equals(&whole, 1e-5, &format!("micro batches of {micro_batch}"));
    }
    let logps = &whole.outputs[0].metrics["logps/chosen"];
    let weight = whole.outputs[0].weighted["entropy"].weight;
    let expected = -logps.iter().sum::<f64>() / weight;
    assert!(
        (whole.mean_loss() - expected).abs() < 1e-5 * expected,
        "{} {expected}",
        whole.mean_loss()
    );
}

#[test]
fn chosen_answers_become_unlikely_unseen() {
    // eric-mitchell/direct-preference-optimization#8 and #35, huggingface/trl#800: rewards improve while the likelihood of chosen
    // answers collapses, and no metric says so.
    let bench = Bench::new();
    let watch = |action: &str| {
        json!({
            // A loss that only makes the rejected side unlikelier drags its twin along.
            "data": { "path": bench.rows("twins.jsonl", &twins()) },
            "objective": { "dpo": { "beta": 0.01 } },
            "method": { "offline_pairs": { "watch": { "max_displacement": 0.02, "window": 3, "action": action } } },
            "optimizer": { "adamw": { "lr": 1e-2 } },
            "train": { "steps": 30, "micro_batch": 4 },
        })
    };
    let rows = bench.run(&watch("warn"));
    let last = rows.last().unwrap();
    assert!(
        last.metrics["logratios/chosen"] < 0.0 && last.metrics["rewards/margins"] > 0.0,
        "{last:?}"
    );
    let error = message(bench.try_run(&watch("stop")));
    assert!(error.contains("less likely than under the reference"), "{error}");
}

/// Pairs whose answers begin alike and whose rejected one is much longer.
fn twins() -> Vec<Value> {
    let row = |noun: &str| {
        json!({
            "prompt": format!("Tell me about {noun}:"),
            "chosen": format!(" {noun} waits for the morning tide"),
            "rejected": format!(" {noun} waits for the morning coin, and what nobody asked is a jar of honey before dawn"),
        })
    };
    ["the red kite", "a small robot", "the night train", "an honest clerk"]
        .map(row)
        .to_vec()
}

#[test]
fn more_than_two_responses() {
    // huggingface/trl#1831: lists of any length, in one batch.
    let bench = Bench::new();
    let row = |responses: &[&str]| {
        let scored = responses
            .iter()
            .enumerate()
            .map(|(at, text)| json!({ "text": text, "score": -(at as f64) }));
        json!({ "prompt": "Tell me:", "responses": scored.collect::<Vec<_>>() })
    };
    let rows = [
        row(&[" the tide", " a coin"]),
        row(&[" the tide", " a coin", " no", " what nobody asked", " 3 days"]),
    ];
    let changes = json!({
        "data": { "path": bench.rows("lists.jsonl", &rows) },
        "objective": { "plackett_luce": { "beta": 0.1 } },
        "method": { "ranked": {} },
    });
    let losses = compute(&bench.method(&changes), 2, 2).losses;
    // A policy that is its reference ranks at random: log of the number of orders.
    for (loss, num_orders) in losses.iter().zip([2.0f64, 120.0]) {
        assert!((loss - num_orders.ln()).abs() < 1e-5, "{loss}");
    }
}

#[test]
fn columns_of_another_format_not_read() {
    // modelscope/ms-swift#4169: `rejected_response` beside `rejected`, and one of them silently not used.
    let bench = Bench::new();
    let mut rows = rows_of("pairs.jsonl");
    rows[3]["rejected_response"] = json!(" no");
    let path = bench.rows("columns.jsonl", &rows);
    let error = message(bench.try_method(&json!({ "data": { "path": path } })));
    assert!(
        error.contains("rejected_response") && error.contains("columns.jsonl"),
        "{error}"
    );
}

#[test]
fn rewards_that_differ_from_the_logged_ones() {
    // hiyouga/LLaMA-Factory#1447: implicit rewards of given answers, recomputed after training, were not those of the log.
    let bench = Bench::new();
    let logged = compute(&bench.method(&apart(&json!({ "dpo": { "beta": 0.3 } }))), 6, 3).outputs;
    let directory = LmDir::open(golden().join("qwen2")).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    let adapter = diptych_llm::policy::load_adapter(&golden().join("qwen2_lora")).unwrap();
    let policy = load_frozen(&directory, Some(&adapter), &options).unwrap();
    let reference = load_frozen(&directory, None, &options).unwrap();
    let pair = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        TextPair::new("row", text("prompt"), text("chosen"), text("rejected"))
    };
    let records = encoded(directory.path(), rows_of("pairs.jsonl")[..6].iter().map(pair).collect());
    let config = RewardConfig {
        beta: 0.3,
        batch_size: 4,
        pad_token_id: 0,
    };
    let scored = score_records(
        &policy,
        &Reference::Frozen(Box::new(reference.into())),
        &records,
        config,
        |_| Ok(()),
    )
    .unwrap();
    let mut num = 0;
    for (side, key) in ["rewards/chosen", "rewards/rejected"].iter().enumerate() {
        let logged = logged.iter().flat_map(|output| &output.metrics[key]);
        for (logged, scored) in logged.zip(&scored) {
            let found = scored.rewards.as_ref().unwrap()[side];
            assert!((found - logged).abs() < 1e-4, "{found} {logged}");
            num += 1;
        }
    }
    assert_eq!(num, 12);
}
