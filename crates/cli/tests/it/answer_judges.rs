//! `diptych eval mmhal|hallusion --judge-model`: a language model reads the answers.

use std::collections::BTreeMap;

use diptych_tensor::{Device, Tensor, save_tensors};
use serde_json::{Value, json};

use crate::place::Place;

/// A language model that says the same words whatever it is asked: each word is followed by the next one, as its weights say, and any other
/// word by the first.
pub(crate) fn judge(place: &Place, name: &str, words: &[&str]) {
    let vocabulary: Vec<&str> = ["<unk>", "</s>"].into_iter().chain(words.iter().copied()).collect();
    let width = 8;
    assert!(vocabulary.len() <= width);
    let ids: BTreeMap<&str, usize> = vocabulary.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let special = |id: usize| json!({ "id": id, "content": vocabulary[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1)], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": ids, "unk_token": "<unk>" },
    });
    place.write(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    place.write(
        &format!("{name}/tokenizer_config.json"),
        json!({ "eos_token": "</s>", "unk_token": "<unk>" }).to_string(),
    );
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": width,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": width, "num_hidden_layers": 1, "vocab_size": vocabulary.len(),
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "eos_token_id": 1, "bos_token_id": null,
        "hidden_act": "silu", "rope_theta": 10000.0,
    });
    place.write(&format!("{name}/config.json"), config.to_string());
    let matrix = |rows: usize, ones: &[(usize, usize)]| {
        let mut values = vec![0_f32; rows * width];
        for (row, column) in ones {
            values[row * width + column] = 1.0;
        }
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    };
    let num = vocabulary.len();
    let itself: Vec<(usize, usize)> = (0..num).map(|id| (id, id)).collect();
    let mut next: Vec<(usize, usize)> = vec![(2, 0)];
    next.extend((2..num).map(|id| (if id + 1 < num { id + 1 } else { 1 }, id)));
    let mut tensors = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), matrix(num, &itself)),
        ("lm_head.weight".to_owned(), matrix(num, &next)),
    ]);
    let ones = || Tensor::from_vec(vec![1_f32; width], width, &Device::Cpu).unwrap();
    tensors.insert("model.norm.weight".to_owned(), ones());
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.insert(format!("model.layers.0.{norm}.weight"), ones());
    }
    for layer in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        tensors.insert(format!("model.layers.0.self_attn.{layer}.weight"), matrix(width, &[]));
    }
    for layer in ["gate_proj", "up_proj", "down_proj"] {
        tensors.insert(format!("model.layers.0.mlp.{layer}.weight"), matrix(width, &[]));
    }
    let path = place.path(&format!("{name}/model.safetensors"));
    save_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
}

fn eval(place: &Place, command: &str) -> crate::place::Finished {
    let words: Vec<&str> = command.split_whitespace().collect();
    place.run(&[&["eval"], &words[..], &["--bootstrap-samples", "10"]].concat())
}

fn metric(place: &Place, out: &str, name: &str) -> Option<f64> {
    let report = place.json(&format!("{out}/report.json"));
    let metrics = report["metrics"].as_array().unwrap();
    metrics.iter().find(|metric| metric["name"] == name).unwrap()["value"].as_f64()
}

fn notes(place: &Place, out: &str) -> String {
    place.json(&format!("{out}/report.json"))["notes"].to_string()
}

#[test]
fn a_model_rates_answers_and_its_replies_are_kept() {
    let place = Place::new();
    judge(&place, "five", &["Rating:", "5"]);
    judge(&place, "two", &["Rating:", "2"]);
    judge(&place, "mute", &["no", "idea"]);
    let row = |index: usize| json!({ "question": format!("what is {index}"), "gt_answer": "a dog", "model_answer": "a cat", "image_content": ["Dog"] });
    let rows: Vec<Value> = (0..9).map(row).collect();
    place.write("answers.json", json!(rows).to_string());
    for (name, score, rate) in [("five", 5.0, 0.0), ("two", 2.0, 1.0), ("mute", 0.0, 1.0)] {
        let command =
            format!("mmhal --answers answers.json --judge-model {name} --judge-batch-size 4 --out {name}-out");
        eval(&place, &command).success();
        let out = format!("{name}-out");
        assert_eq!(metric(&place, &out, "score"), Some(score), "{name}");
        assert_eq!(metric(&place, &out, "hallucination_rate"), Some(rate), "{name}");
        let unread = notes(&place, &out).contains("9 replies of the judge have no rating");
        assert_eq!(unread, name == "mute", "{}", notes(&place, &out));
        // What it said is scored as stored judgments are.
        let stored =
            format!("mmhal --answers answers.json --judgments {out}/judgments/judgments.jsonl --out {name}-again");
        eval(&place, &stored).success();
        assert_eq!(
            place.json(&format!("{out}/report.json")),
            place.json(&format!("{name}-again/report.json"))
        );
    }
    let first: Value =
        serde_json::from_str(place.read("five-out/judgments/judgments.jsonl").lines().next().unwrap()).unwrap();
    assert_eq!(
        first,
        json!({ "question": "what is 0", "model_answer": "a cat", "judgment": "Rating: 5" })
    );
    // Both systems before the same judge.
    eval(
        &place,
        "mmhal --answers answers.json --base-answers answers.json --judge-model five --out both",
    )
    .success();
    assert!(place.path("both/judgments/base-judgments.jsonl").is_file());
    assert_eq!(
        place.json("both/report.json")["differences"][0]["difference"]["value"],
        0.0
    );
}

#[test]
fn a_model_says_which_answers_are_right() {
    let place = Place::new();
    for (name, words) in [
        ("yes", &["correct"][..]),
        ("no", &["incorrect"]),
        ("open", &["unclear"]),
        ("mute", &["no", "idea"]),
    ] {
        judge(&place, name, words);
    }
    let row = |index: usize| {
        json!({
            "category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1", "question_id": index,
            "gt_answer": "1", "question": "is it so", "gt_answer_details": "it is so", "model_prediction": "yes",
        })
    };
    let rows: Vec<Value> = (0..5).map(row).collect();
    place.write("answers.json", json!(rows).to_string());
    for (name, share) in [("yes", 100.0), ("no", 0.0), ("open", 0.0), ("mute", 0.0)] {
        eval(
            &place,
            &format!("hallusion --answers answers.json --judge-model {name} --out {name}-out"),
        )
        .success();
        let out = format!("{name}-out");
        assert_eq!(metric(&place, &out, "a_acc"), Some(share), "{name}");
        let unread = notes(&place, &out).contains("5 replies of the judge say neither");
        assert_eq!(unread, name == "mute", "{}", notes(&place, &out));
        let stored =
            format!("hallusion --answers answers.json --judgments {out}/judgments/judgments.jsonl --out {name}-again");
        eval(&place, &stored).success();
        assert_eq!(
            place.json(&format!("{out}/report.json")),
            place.json(&format!("{name}-again/report.json"))
        );
    }
}

#[test]
fn what_a_judge_cannot_do_is_said() {
    let place = Place::new();
    judge(&place, "judge", &["correct"]);
    place.write(
        "answers.json",
        json!([{ "question": "?", "gt_answer": "!", "model_answer": "a" }]).to_string(),
    );
    place.write("replies.jsonl", r#"{"judgment": "Rating: 1"}"#);
    for (command, code, said) in [
        ("mmhal --answers answers.json", 2, "--judgments"),
        (
            "mmhal --answers answers.json --judgments replies.jsonl --judge-model judge",
            2,
            "--judge-model",
        ),
        (
            "mmhal --answers answers.json --judgments replies.jsonl --judge-batch-size 3",
            2,
            "--judge-model",
        ),
        ("mmhal --answers answers.json --judge-model nowhere", 2, "nowhere"),
        (
            "mmhal --answers answers.json --judge-model judge --judge-max-new-tokens 0",
            2,
            "--judge-max-new-tokens",
        ),
        (
            "mmhal --answers answers.json --judgments replies.jsonl --base-answers answers.json",
            2,
            "--base-judgments",
        ),
        ("hallusion --answers answers.json --judge-model judge", 1, "row 1"),
    ] {
        eval(&place, &format!("{command} --out out")).failure(code, &[said]);
        assert!(!place.path("out").exists(), "{command}");
    }
}
