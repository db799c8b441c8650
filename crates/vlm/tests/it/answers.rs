//! Answers to prompts that show images.

use std::path::Path;

use diptych_data::{ImageSource, Text, TextPrompt, conversation};
use diptych_llm::answers::{Answer, read_prompts};
use diptych_llm::policy::NetworkOptions;
use diptych_models::lm::Sampling;
use diptych_tensor::{DType, Device};
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, Answerer};
use serde_json::{Value, json};

use crate::bench::{Bench, golden};

fn settings(sampling: Sampling, batch_size: usize) -> AnswerSettings {
    AnswerSettings {
        network: NetworkOptions {
            device: Device::Cpu,
            dtype: DType::F32,
            seed: 0,
            quantization: None,
        },
        max_new_tokens: 8,
        sampling,
        seed: 5,
        batch_size,
    }
}

fn answers(answerer: &Answerer, adapter: Option<&Path>, prompts: &[TextPrompt]) -> Vec<Answer> {
    let prepared = answerer.prepare(prompts, &mut Reporter::silent()).unwrap();
    answerer
        .answer(adapter, &prepared, "answers", &mut Reporter::silent())
        .unwrap()
}

/// The prompts of the golden vectors, and how transformers goes on after them.
fn published(bench: &Bench, model: &str) -> (Vec<TextPrompt>, Vec<Vec<u32>>) {
    let text = std::fs::read_to_string(golden(&format!("vlm/{model}/cases.json"))).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(cases["rows"].clone()).unwrap();
    let images: Vec<Vec<String>> = serde_json::from_value(cases["images"].clone()).unwrap();
    let prompts = rows.into_iter().zip(images).enumerate().map(|(row, (ids, images))| {
        let file = |name: &String| ImageSource::Path(bench.path(&format!("images/{name}.png")));
        let images = images.iter().map(file).collect();
        TextPrompt {
            images,
            ..TextPrompt::new(row.to_string(), Text::Ids(ids))
        }
    });
    let generated = cases["generated"].as_array().unwrap();
    let tokens = generated
        .iter()
        .map(|one| serde_json::from_value(one["tokens"].clone()).unwrap());
    (prompts.collect(), tokens.collect())
}

/// As the program was told that makes the vectors.
const LIKELIEST: Sampling = Sampling {
    repetition_penalty: 1.5,
    ..Sampling::GREEDY
};

#[test]
fn answers_are_those_of_transformers() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        let (prompts, expected) = published(&bench, model);
        for batch_size in [1, 2, 3] {
            let answerer = Answerer::open(&bench.path("model"), settings(LIKELIEST, batch_size)).unwrap();
            let ends = &answerer.directory().config().text.eos_token_ids;
            let found = answers(&answerer, None, &prompts);
            assert_eq!(found.len(), 3);
            for (found, expected) in found.iter().zip(&expected) {
                // There, texts go on after a token that ends them, and after one in the place of which an image would be read.
                let image = answerer.directory().config().image_token_id;
                let end = expected
                    .iter()
                    .position(|token| *token == image || ends.contains(token));
                let mut expected = expected[..end.map_or(expected.len(), |end| end + 1)].to_vec();
                if let Some(last) = expected.last_mut().filter(|last| **last == image) {
                    *last = ends[0];
                }
                assert_eq!(found.tokens, expected, "{model}, {batch_size} at once");
                assert_eq!(found.is_finished, end.is_some());
            }
        }
    }
}

#[test]
fn an_image_is_read_once_and_a_choice_depends_on_its_prompt_alone() {
    let bench = Bench::new("llava");
    let image = |name: &str| vec![ImageSource::Path(bench.path(&format!("images/{name}.png")))];
    let ask = |id: &str, name: &str, words: &str| TextPrompt {
        images: image(name),
        ..TextPrompt::new(id, conversation(None, words, 1))
    };
    let prompts = [
        ask("0", "a", "what do you see"),
        ask("1", "b", "yes or no"),
        ask("2", "a", "what do you see"),
        ask("3", "a", "red"),
    ];
    let sampled = |batch_size| {
        let answerer = Answerer::open(&bench.path("model"), settings(Sampling::default(), batch_size)).unwrap();
        let prepared = answerer.prepare(&prompts, &mut Reporter::silent()).unwrap();
        assert_eq!(prepared.num_images(), 2);
        answerer
            .answer(None, &prepared, "answers", &mut Reporter::silent())
            .unwrap()
    };
    let (one, many) = (sampled(1), sampled(3));
    assert_eq!(one, many);
    // The same prompt in another place has other choices.
    assert_ne!(one[0], one[2]);
}

#[test]
fn a_model_and_its_adapter_share_what_its_tower_sees() {
    let bench = Bench::new("llava");
    let (prompts, _) = published(&bench, "llava");
    let adapter = golden("vlm/llava_lora");
    let answerer = Answerer::open(&bench.path("model"), settings(LIKELIEST, 3)).unwrap();
    let prepared = answerer.prepare(&prompts, &mut Reporter::silent()).unwrap();
    let answer = |adapter| {
        answerer
            .answer(adapter, &prepared, "answers", &mut Reporter::silent())
            .unwrap()
    };
    let base = answer(None);
    let aligned = answer(Some(adapter.as_path()));
    assert_ne!(base, aligned);
    assert_eq!(aligned, answers(&answerer, Some(&adapter), &prompts));
    assert_eq!(base, answer(None));
}

#[test]
fn what_cannot_be_shown_names_its_row() {
    let bench = Bench::new("llava");
    let answerer = Answerer::open(&bench.path("model"), settings(LIKELIEST, 3)).unwrap();
    let error = |rows: &[Value]| {
        let path = bench.rows("asked.jsonl", rows);
        let prompts = read_prompts(&path).map_err(diptych_vlm::Error::from);
        let prepared = prompts.and_then(|prompts| answerer.prepare(&prompts, &mut Reporter::silent()));
        prepared.map(drop).unwrap_err().to_string()
    };
    let good = json!({ "prompt": "what <image>", "images": ["images/a.png"] });
    let lost = error(&[
        good.clone(),
        json!({ "prompt": "what <image>", "images": ["images/lost.png"] }),
    ]);
    assert!(
        lost.contains("asked.jsonl") && lost.contains("row 2") && lost.contains("lost.png"),
        "{lost}"
    );
    let uneven = error(&[
        good.clone(),
        json!({ "prompt": "what <image>", "images": ["images/a.png", "images/b.png"] }),
    ]);
    assert!(
        uneven.contains("asked.jsonl") && uneven.contains("row 2") && uneven.contains("1 images"),
        "{uneven}"
    );
    std::fs::write(bench.path("torn.jpg"), b"\xff\xd8\xff\xe0 this is no picture").unwrap();
    let torn = error(&[
        good,
        json!({ "id": "torn", "prompt": "what <image>", "images": ["torn.jpg"] }),
    ]);
    assert!(torn.contains("torn") && torn.contains("torn.jpg"), "{torn}");
    // An image that no place is for, and a place without an image, where no file was read.
    for (text, num) in [("what", 1), ("what <image>", 0)] {
        let images = vec![ImageSource::Path(bench.path("images/a.png")); num];
        let prompt = TextPrompt {
            images,
            ..TextPrompt::new("odd", Text::Plain(text.to_owned()))
        };
        let error = answerer
            .prepare(&[prompt], &mut Reporter::silent())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("odd") && error.contains('0') && error.contains('1'),
            "{error}"
        );
    }
}
