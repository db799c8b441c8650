//! What cannot work is refused before training, by the name of what is wrong.

use diptych_data::{Encoder, EncodingConfig, ImageSource, TextDataset, TextPair, Tokenizer};
use diptych_llm::answers::{plain_prompt, tokenize};
use diptych_llm::records::encode;
use diptych_train::Method as _;
use serde_json::{Value, json};

use crate::bench::{Bench, apart, compute, fresh_adapter, golden, message, rows_of};

#[test]
fn recipes_that_contradict_themselves() {
    let bench = Bench::new();
    let judged = golden().join("data/unpaired.jsonl");
    let kto =
        json!({ "objective": { "kto": { "beta": 0.1 } }, "method": { "unpaired": {} }, "data": { "path": judged } });
    let with = |base: &Value, section: &str, value: Value| {
        let mut changes = base.clone();
        changes[section] = value;
        changes
    };
    let sft = json!({ "objective": { "sft": {} }, "method": { "sft": { "loss_on": "everything" } } });
    let simpo = json!({ "objective": { "simpo": { "beta": 2.0, "gamma": 1.0 } } });
    let cases = [
        (with(&kto, "train", json!({ "micro_batch": 1 })), "train.micro_batch"),
        (with(&kto, "reference", json!({ "cached": {} })), "reference.cached"),
        (with(&kto, "method", json!({ "offline_pairs": {} })), "objective.kto"),
        (
            with(&sft, "data", json!({ "encoding": { "turns": "assistant" } })),
            "data.encoding.turns",
        ),
        (with(&simpo, "reference", json!({ "frozen": {} })), "reference.frozen"),
        (json!({ "reference": { "none": {} } }), "reference.none"),
        (json!({ "reference": { "adapter_off": {} } }), "reference.adapter_off"),
        (
            json!({ "reference": { "ema": { "mixup_alpha": 0.0 } } }),
            "reference.ema.mixup_alpha",
        ),
        (
            with(
                &simpo,
                "method",
                json!({ "offline_pairs": { "watch": { "max_displacement": 0.5 } } }),
            ),
            "watch.max_displacement",
        ),
        (
            json!({ "method": { "offline_pairs": { "watch": { "action": "ignore", "max_saturation": 0.5 } } } }),
            "watch.max_saturation",
        ),
        (
            json!({ "method": { "offline_pairs": { "watch": { "action": "ignore", "window": 5 } } } }),
            "watch.window",
        ),
    ];
    assert_refused(&bench, &cases, 11);
}

#[test]
fn values_out_of_range_and_unknown_keys() {
    let bench = Bench::new();
    let cases = [
        (json!({ "run": { "precision": "f16" } }), "run.precision"),
        (json!({ "samples": {} , "train": { "sample_every": 0 } }), "samples"),
        (
            json!({ "samples": { "num_prompts": 0 }, "train": { "sample_every": 1 } }),
            "samples.num_prompts",
        ),
        (
            json!({ "samples": { "prompts": ["a"], "num_prompts": 1 }, "train": { "sample_every": 1 } }),
            "samples.num_prompts",
        ),
        (
            json!({ "eval": { "truth": { "num_prompts": 0 } } }),
            "eval.truth.num_prompts",
        ),
        (
            json!({ "method": { "offline_pairs": { "watch": { "window": 0 } } } }),
            "watch.window",
        ),
        (
            json!({ "method": { "offline_pairs": { "padding_free": true } } }),
            "padding_free",
        ),
        (
            json!({ "objective": { "dpo": { "beta": 0.1, "ld_alpha": 0.5 } } }),
            "ld_alpha",
        ),
        (
            json!({ "objective": { "exo_pair": { "beta": 0.1, "label_smoothing": 0.0 } } }),
            "label_smoothing",
        ),
        (json!({ "data": { "encoding": { "max_len": 4 } } }), "max_len"),
        (json!({ "adapter": { "lora": { "rank": 0 } } }), "adapter.lora.rank"),
    ];
    assert_refused(&bench, &cases, 11);
}

/// Recipes are refused by the key.
fn assert_refused(bench: &Bench, cases: &[(Value, &str)], num: usize) {
    for (changes, key) in cases {
        let error = message(bench.try_recipe(changes));
        assert!(error.contains(key), "{key}: {error}");
    }
    assert_eq!(cases.len(), num);
}

#[test]
fn columns_that_do_not_serve_the_objective() {
    let bench = Bench::new();
    let scores = |row: &mut Value, column: &str| row[column] = json!(3.0);
    let mut half = rows_of("pairs.jsonl");
    for row in &mut half {
        scores(row, "chosen_score");
    }
    let mut partly = rows_of("pairs.jsonl");
    scores(&mut partly[0], "ref_chosen_logps");
    scores(&mut partly[0], "ref_rejected_logps");
    let (half, partly) = (bench.rows("half.jsonl", &half), bench.rows("partly.jsonl", &partly));
    let odpo = json!({ "odpo": { "beta": 0.1, "alpha": 1.0 } });
    let mut spans = rows_of("pairs.jsonl");
    spans[1]["chosen_spans"] = json!([{ "start": 0, "end": 4, "weight": 0.5 }]);
    let spans = bench.rows("spans.jsonl", &spans);
    bench.method(&json!({ "data": { "path": spans } }));
    let cases = [
        (
            json!({ "data": { "path": spans }, "objective": { "ld_dpo": { "beta": 0.1, "alpha": 0.5 } } }),
            vec!["spans.jsonl:2", "0.5", "ld_dpo"],
        ),
        (
            json!({ "data": { "path": spans }, "objective": { "wpo": { "objective": { "dpo": { "beta": 0.1 } } } } }),
            vec!["spans.jsonl:2", "0.5", "wpo"],
        ),
        (
            json!({ "objective": odpo }),
            vec!["chosen_score", "odpo", "pairs.jsonl"],
        ),
        (
            json!({ "objective": odpo, "data": { "path": half } }),
            vec!["rejected_score", "odpo"],
        ),
        (
            json!({ "data": { "path": partly }, "reference": { "cached": {} } }),
            vec!["2 of 96", "ref_chosen_logps"],
        ),
        (
            json!({
                "objective": { "sft": {} },
                "method": { "sft": { "loss_on": "everything" } },
                "data": { "path": spans },
            }),
            vec!["spans.jsonl:2", "loss_on"],
        ),
    ];
    assert_files_refused(&bench, &cases, 6);
}

#[test]
fn what_a_judge_gave_is_checked_before_the_first_step() {
    let bench = Bench::new();
    let odpo = json!({ "odpo": { "beta": 0.1, "alpha": 1.0 } });
    let mut some_margins = rows_of("pairs.jsonl");
    some_margins[0]["margin"] = json!(1.0);
    some_margins[1]["margin"] = json!(2.0);
    let some_margins = bench.rows("some_margins.jsonl", &some_margins);
    let mut unordered = rows_of("pairs.jsonl");
    for (at, row) in unordered.iter_mut().enumerate() {
        let (chosen, rejected) = if at == 1 { (1.0, 3.0) } else { (3.0, 1.0) };
        (row["chosen_score"], row["rejected_score"]) = (json!(chosen), json!(rejected));
    }
    let unordered = bench.rows("unordered.jsonl", &unordered);
    let mut graded = rows_of("unpaired.jsonl");
    for row in &mut graded {
        row["score"] = json!(7.5);
    }
    let graded = bench.rows("graded.jsonl", &graded);
    let cases = [
        (
            json!({ "objective": { "copg": { "beta": 0.1 } }, "data": { "path": some_margins } }),
            vec!["some_margins.jsonl:3", "margin"],
        ),
        (
            json!({ "objective": odpo, "data": { "path": unordered } }),
            vec!["unordered.jsonl:2", "`odpo`", "1 and 3"],
        ),
        (
            json!({ "objective": { "lipo_lambda": { "beta": 0.1 } }, "data": { "path": unordered } }),
            vec![
                "unordered.jsonl:2",
                "lipo_lambda.judge_scores = 3",
                "no response better",
            ],
        ),
        (
            json!({ "objective": { "nft": {} }, "method": { "unpaired": {} }, "data": { "path": graded } }),
            vec!["graded.jsonl:1", "nft.judge_scores = 7.5", "0 to 1"],
        ),
    ];
    assert_files_refused(&bench, &cases, 4);
}

#[test]
fn a_list_of_targets_is_taken_at_its_word() {
    let bench = Bench::new();
    let with = |lora: Value| json!({ "model": { "path": golden().join("qwen2") }, "adapter": { "lora": lora } });
    let own = bench.method(&with(json!({ "rank": 2 })));
    let names: Vec<&str> = own.params().names().collect();
    assert!(names.iter().any(|name| name.contains("o_proj")), "{names:?}");
    // The layers of a denoiser that an adapter of one gets where a recipe names none.
    let error = message(bench.try_method(&with(json!({ "targets": ["to_q", "to_k", "to_v", "to_out.0"] }))));
    assert!(error.contains("to_q"), "{error}");
}

#[test]
fn margins_stand_for_scores_where_only_their_difference_counts() {
    let bench = Bench::new();
    let mut rows = rows_of("pairs.jsonl");
    for (at, row) in rows.iter_mut().enumerate() {
        row["margin"] = json!(0.5 + (at % 5) as f64);
    }
    let margins = bench.rows("margins.jsonl", &rows);
    for (at, row) in rows.iter_mut().enumerate() {
        row["chosen_score"] = json!(3.5 + (at % 5) as f64);
        row["rejected_score"] = json!(3.0);
        row["margin"] = json!(100.0);
    }
    let scores = bench.rows("scores.jsonl", &rows);
    let mut num = 0;
    for objective in [
        json!({ "odpo": { "beta": 0.1, "alpha": 0.5 } }),
        json!({ "copg": { "beta": 0.1 } }),
        json!({ "dpo": { "beta": 0.1 } }),
    ] {
        let losses = |path: &std::path::Path| {
            let mut changes = apart(&objective);
            changes["data"] = json!({ "path": path });
            compute(&bench.method(&changes), 10, 5).losses
        };
        assert_eq!(losses(&margins), losses(&scores), "{objective}");
        num += 1;
    }
    assert_eq!(num, 3);
}

#[test]
fn recipes_that_their_files_contradict() {
    let bench = Bench::new();
    let texts = golden().join("data/texts.jsonl");
    let judged = golden().join("data/unpaired.jsonl");
    let kto = json!({ "kto": { "beta": 0.1 } });
    let mut targets = fresh_adapter();
    targets["lora"]["targets"] = json!(["no_such_proj"]);
    let cases = [
        (json!({ "data": { "path": texts } }), vec!["pairs"]),
        (json!({ "data": { "path": judged } }), vec!["pairs"]),
        (
            json!({ "data": { "path": texts }, "objective": kto, "method": { "unpaired": {} } }),
            vec!["label"],
        ),
        (
            json!({ "data": { "path": judged }, "objective": { "sft": {} }, "method": { "sft": {} } }),
            vec!["supervised texts"],
        ),
        (json!({ "adapter": targets }), vec!["no_such_proj"]),
        (json!({ "data": { "max_len": 2 } }), vec!["none of the 48 records"]),
        (
            json!({ "data": { "max_len": 20, "encoding": { "convention": "cpo", "truncation": "keep-end" } } }),
            vec!["keep-end", "cpo"],
        ),
        (
            json!({
                "model": { "path": golden().join("qwen2") },
                "samples": { "prompts": [""] },
                "train": { "sample_every": 1 },
            }),
            vec!["samples.prompts"],
        ),
        (
            json!({ "reference": { "checkpoint": { "path": "nowhere" } } }),
            vec!["reference.checkpoint.path"],
        ),
    ];
    assert_files_refused(&bench, &cases, 9);
}

/// Runs are refused before their first step, in words that name what is wrong.
fn assert_files_refused(bench: &Bench, cases: &[(Value, Vec<&str>)], num: usize) {
    for (changes, words) in cases {
        let error = message(bench.try_method(changes));
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
    assert_eq!(cases.len(), num);
}

#[test]
fn responses_of_which_nothing_is_predicted_are_left_out() {
    // Without a prompt and a begin token the first token has nothing before it; of an empty answer that is its only one.
    let tokenizer = Tokenizer::from_dir(golden().join("qwen2")).unwrap();
    let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
    let dataset = |rejected: &str| {
        TextDataset::Pairs(vec![
            TextPair::new("empty", "", "the tide", rejected),
            TextPair::new("whole", "Tell me:", " the tide", " a coin"),
        ])
    };
    let ids = |rejected: &str| -> Vec<String> {
        let records = encode(&dataset(rejected), &encoder).unwrap();
        records.into_iter().map(|record| record.id).collect()
    };
    assert_eq!(ids(""), ["whole"]);
    assert_eq!(ids("a coin"), ["empty", "whole"]);
}

#[test]
fn prompts_are_sampled_whole_when_all_of_a_text_is_learned() {
    let bench = Bench::new();
    let changes = json!({
        "data": { "path": golden().join("data/texts.jsonl") },
        "objective": { "sft": {} },
        "method": { "sft": { "loss_on": "everything" } },
        "samples": { "num_prompts": 1, "max_new_tokens": 2 },
        "train": { "steps": 1, "sample_every": 1 },
    });
    let mut recipe = bench.recipe(&changes);
    recipe.run.output = bench.path("sampled");
    let stop = std::sync::atomic::AtomicBool::new(false);
    diptych_llm::run(&recipe, |_| {}, &stop, diptych_train::ResumeMode::Fresh).unwrap();
    let text = std::fs::read_to_string(bench.path("sampled/samples/step-000001.jsonl")).unwrap();
    let row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(row["prompt"], rows_of("texts.jsonl")[0]["prompt"]);
}

#[test]
fn mismatched_responses_are_those_of_other_prompts_and_not_longer_than_allowed() {
    let bench = Bench::new();
    let data = |name: &str, rows: &[Value]| json!({ "path": bench.rows(name, rows), "max_len": 16 });
    let long = " the red kite waits for every second window before dawn".repeat(3);
    let mut num_positive = 0;
    for second in [" a road", " the tide", " what nobody asked", " 12 copper coins"] {
        let judged =
            |prompt: &str, completion: &str| json!({ "prompt": prompt, "completion": completion, "label": true });
        let mut changes = apart(&json!({ "kto": { "beta": 0.1 } }));
        let rows = [judged("Q:", " a coin"), judged("Q:", second), judged("A:", &long)];
        changes["data"] = data("judged.jsonl", &rows);
        changes["method"] = json!({ "unpaired": {} });
        let found = compute(&bench.method(&changes), 3, 3).outputs.remove(0).metrics["kl"][0];
        // The record before the second has the second's prompt, so that both of the first prompt meet the third's response.
        let pair = |prompt: &str, response: &str| json!({ "prompt": prompt, "chosen": response, "rejected": " no" });
        let mut changes = apart(&json!({ "dpo": { "beta": 0.1 } }));
        changes["data"] = data("pairs.jsonl", &[pair("Q:", &long), pair("A:", second)]);
        let ratios = compute(&bench.method(&changes), 2, 2).outputs.remove(0).metrics["logratios/chosen"].clone();
        let expected = ((2.0 * ratios[0] + ratios[1]) / 3.0).max(0.0);
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        num_positive += usize::from(expected > 0.0);
    }
    assert!(num_positive >= 1);
}

#[test]
fn keys_of_the_encoding_that_no_row_is_read_by_are_refused() {
    let bench = Bench::new();
    let rows = [json!({ "prompt_ids": [1, 5], "chosen_ids": [6], "rejected_ids": [7] })];
    let tokens = bench.rows("tokens.jsonl", &rows);
    let refused = |data: serde_json::Value| bench.try_method(&json!({ "data": data })).unwrap_err().to_string();
    for key in ["convention", "prefix", "eos", "turns"] {
        let value = match key {
            "convention" => "cpo",
            "prefix" => "common",
            "eos" => "as-written",
            _ => "assistant",
        };
        let error = refused(json!({ "path": tokens, "encoding": { key: value } }));
        assert!(error.contains(&format!("data.encoding.{key}")), "{error}");
    }
    let error = refused(json!({ "encoding": { "turns": "assistant" } }));
    assert!(error.contains("conversations; no row is one"), "{error}");
    bench.method(&json!({ "data": { "encoding": { "eos": "as-written" } } }));
}

#[test]
fn equal_scores_of_a_list_whose_order_is_learned_are_refused() {
    let bench = Bench::new();
    let row = |scores: [f64; 3]| {
        let responses: Vec<_> = [" yes", " no", " perhaps"]
            .iter()
            .zip(scores)
            .map(|(text, score)| json!({ "text": text, "score": score }))
            .collect();
        json!({ "id": format!("row {scores:?}"), "prompt": "Is it?", "responses": responses })
    };
    let path = bench.rows("lists.jsonl", &[row([1.0, 2.0, 3.0]), row([1.0, 2.0, 1.0])]);
    let with = |objective: serde_json::Value| json!({ "data": { "path": path }, "method": { "ranked": {} }, "objective": objective });
    let error = bench
        .try_method(&with(json!({ "plackett_luce": { "beta": 0.1 } })))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("row [1.0, 2.0, 1.0]") && error.contains("score 1"),
        "{error}"
    );
    // A judge's scores say how much a pair counts: of equals, nothing.
    bench.method(&with(json!({ "lipo_lambda": { "beta": 0.1 } })));
}

#[test]
fn records_with_images_need_a_model_that_sees_them() {
    let tokenizer = Tokenizer::from_dir(golden().join("qwen2")).unwrap();
    let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
    let mut shown = TextPair::new("seen", "<image> What?", " a tide", " a coin");
    shown.images = vec![ImageSource::Bytes([0].into())];
    let blind = TextPair::new("told", "What?", " a tide", " a coin");
    let error = encode(&TextDataset::Pairs(vec![blind, shown]), &encoder).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("record `seen` has images") && message.contains("modality = \"vlm\""),
        "{message}"
    );
    assert!(error.is_configuration());
    let mut prompt = plain_prompt("asked".to_owned(), "<image> What?".to_owned());
    prompt.images = vec![ImageSource::Bytes([0].into())];
    assert!(
        tokenize(&tokenizer, &[prompt])
            .unwrap_err()
            .to_string()
            .contains("record `asked` has images")
    );
}
