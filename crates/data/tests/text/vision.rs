//! Rows with images: against TRL, transformers and `datasets`, in every layout that has them, and damaged.

use std::path::{Path, PathBuf};

use diptych_data::{
    ChatTemplate, Content, ContentBlock, DataFiles, Encoder, EncodingConfig, EncodingProblem, Error, ImageSource,
    Layout, LeftOut, LintConfig, LintRule, LintSplit, MIN_MATCH_LEN, Message, OnError, RecordKind, SampleBody, Text,
    TextDataset, TextPair, TextPrompt, Tokenizer, changed_token_weights, changed_tokens, convert, inspect, lint,
    write_text,
};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::{Folder, failure, load, pairs};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn vision() -> Value {
    serde_json::from_slice(&std::fs::read(golden("vision_data/vision.json")).unwrap()).unwrap()
}

fn png(color: u8) -> Vec<u8> {
    let image = RgbImage::from_pixel(6, 4, Rgb([color, 0, 0]));
    ImageSource::from_image(&image).unwrap().encoded().unwrap().to_vec()
}

/// A folder with `a.png`, `b.png` and `images/c.png`.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("a.png", png(10));
    folder.write("b.png", png(20));
    std::fs::create_dir(folder.path("images")).unwrap();
    folder.write("images/c.png", png(30));
    folder
}

fn text(words: &str) -> ContentBlock {
    ContentBlock::new(words)
}

fn says(role: &str, blocks: Vec<ContentBlock>) -> Message {
    let mut message = Message::new(role, "");
    message.content = Some(Content::Blocks(blocks));
    message
}

fn user(blocks: Vec<ContentBlock>) -> Message {
    says("user", blocks)
}

fn answer(words: &str) -> Text {
    vec![says("assistant", vec![text(words)])].into()
}

/// Names of the files that images are in.
fn names(images: &[ImageSource]) -> Vec<String> {
    let name = |image: &ImageSource| match image {
        ImageSource::Path(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
        other => other.to_string(),
    };
    images.iter().map(name).collect()
}

#[test]
fn images_take_their_places_as_in_trl() {
    let folder = folder();
    let golden = vision();
    let cases = golden["prepare"].as_array().unwrap();
    let mut refused = 0;
    for (at, case) in cases.iter().enumerate() {
        let num_images = case["num_images"].as_u64().unwrap() as usize;
        let row = json!({"prompt": case["messages"], "images": vec!["a.png"; num_images]});
        let path = folder.write("row.jsonl", row.to_string());
        let found = TextDataset::load(&[path], Layout::PromptOnly);
        if case["expected"].is_null() && at != 7 {
            refused += 1;
            let message = found.unwrap_err().to_string();
            assert!(message.contains(&format!("but the row has {num_images}")), "{message}");
            continue;
        }
        let TextDataset::Prompts(prompts) = found.unwrap() else {
            panic!("prompts")
        };
        assert_eq!(prompts[0].images.len(), num_images);
        let prompt = serde_json::to_value(prompts[0].prompt.clone().into_blocks().messages().unwrap()).unwrap();
        // TRL adds a second block to the string behind a message of blocks, and then fails over the number.
        if at != 7 {
            assert_eq!(prompt, case["expected"], "case {at}");
        }
    }
    assert_eq!((cases.len(), refused), (12, 3));
}

/// A tokenizer with tokens for images.
fn tokenizer(folder: &Folder, golden: &Value) -> Tokenizer {
    let dir = folder.path("tokenizer");
    std::fs::create_dir(&dir).unwrap();
    let from = crate::vision::golden("text/tokenizers/byte_level");
    std::fs::copy(from.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("tokenizer_config.json")).unwrap()).unwrap();
    let first = golden["encoded"]["first_id"].as_u64().unwrap() as usize;
    for (at, token) in golden["encoded"]["added"].as_array().unwrap().iter().enumerate() {
        config["added_tokens_decoder"][(first + at).to_string()] = json!({
            "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
        });
    }
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_dir(dir).unwrap()
}

#[test]
fn rows_become_the_tokens_of_transformers_with_one_an_image() {
    let folder = folder();
    let golden = vision();
    let tokenizer = tokenizer(&folder, &golden);
    let mut num_rows = 0;
    for run in golden["encoded"]["runs"].as_array().unwrap() {
        let template = ChatTemplate::from_source("template", run["template"].as_str().unwrap()).unwrap();
        let tokenizer = tokenizer.clone().with_chat_template(template);
        let token = tokenizer.id(run["image_token"].as_str().unwrap()).unwrap();
        let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
        let encoder = encoder.with_image_token_id(token);
        for row in run["rows"].as_array().unwrap() {
            let content = |side: &Value| json!([{"role": "assistant", "content": [{"type": "text", "text": side}]}]);
            let num_images = row["num_images"].as_u64().unwrap() as usize;
            let line = json!({
                "prompt": row["prompt"], "chosen": content(&row["chosen"]), "rejected": content(&row["rejected"]),
                "images": vec!["b.png"; num_images],
            });
            let pairs = pairs(load(&folder.write("row.jsonl", line.to_string()), Layout::Auto));
            let encoded = encoder.pairs(&pairs).unwrap();
            let found = &encoded.rows[0];
            let ids = json!([found.prompt_ids, found.chosen.ids, found.rejected.ids]);
            assert_eq!(
                ids,
                json!([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]),
                "{}",
                run["name"]
            );
            num_rows += 1;
        }
    }
    assert_eq!(num_rows, 8);
}

#[test]
fn placeholders_in_plain_text_are_those_of_the_tokenizer() {
    let folder = folder();
    let golden = vision();
    let all = tokenizer(&folder, &golden);
    let image = || ImageSource::Path(folder.path("a.png"));
    let prompt = |words: &str, num_images: usize| {
        let mut prompt = TextPrompt::new("p", words);
        prompt.images = vec![image(); num_images];
        prompt
    };
    let encode = |tokenizer: &Tokenizer, prompt: &TextPrompt| {
        let encoder = Encoder::try_new(tokenizer, EncodingConfig::default()).unwrap();
        encoder
            .prompts(std::slice::from_ref(prompt))
            .map(|rows| rows[0].prompt_ids.clone())
    };
    assert_eq!(
        (all.image_token(), all.image_token_id()),
        (Some("<image>"), all.id("<image>"))
    );
    let ids = encode(&all, &prompt("<image>\nA?", 1)).unwrap();
    assert_eq!(ids[0], all.id("<image>").unwrap());

    // A tokenizer of Qwen2-VL has no `<image>`.
    let dir = folder.path("tokenizer");
    let config = std::fs::read_to_string(dir.join("tokenizer_config.json")).unwrap();
    std::fs::write(
        dir.join("tokenizer_config.json"),
        config.replace("\"<image>\"", "\"<|other|>\""),
    )
    .unwrap();
    let qwen = Tokenizer::from_dir(&dir).unwrap();
    let ids = encode(&qwen, &prompt("A <image> B <image>", 2)).unwrap();
    let names: Vec<String> = ids
        .iter()
        .filter_map(|id| qwen.token(*id))
        .filter(|name| name.starts_with("<|"))
        .collect();
    let one = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"];
    assert_eq!(names, [one, one].concat());

    let problem = |tokenizer: &Tokenizer, prompt: &TextPrompt| match encode(tokenizer, prompt) {
        Err(Error::Encoding { id, problem }) => {
            assert_eq!(id, "p");
            *problem
        }
        other => panic!("{other:?}"),
    };
    let found = problem(&all, &prompt("<image>\nA?", 2));
    assert!(
        matches!(
            found,
            EncodingProblem::ImageTokens {
                found: 1,
                images: 2,
                ..
            }
        ),
        "{found}"
    );
    let plain = Tokenizer::from_dir(crate::vision::golden("text/tokenizers/byte_level")).unwrap();
    let found = problem(&plain, &prompt("<image>\nA?", 1));
    assert!(matches!(found, EncodingProblem::NoImageToken), "{found}");
    // Words about images are words.
    encode(&plain, &prompt("<image> is a tag", 0)).unwrap();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn pairs_of_every_layout() {
    let folder = folder();
    let asked = || Text::from(vec![user(vec![ContentBlock::Image, text("Which?")])]);
    let between = || {
        Text::from(vec![user(vec![
            text("One "),
            ContentBlock::Image,
            text(", two "),
            ContentBlock::Image,
        ])])
    };
    let bytes = |color| {
        use base64_of::encode;
        encode(&png(color))
    };
    let embedded = bytes(40);
    let cases: Vec<(Layout, String, Text, &[&str], &[&str])> = vec![
        // TRL
        (
            Layout::Preference,
            r#"{"images": ["a.png"], "prompt": [{"role": "user", "content": "Which?"}], "chosen": [{"role": "assistant", "content": "This."}], "rejected": [{"role": "assistant", "content": "That."}]}"#.into(),
            asked(),
            &["a.png"],
            &[],
        ),
        // HuggingFaceH4/rlaif-v_formatted: blocks with an index, and nulls where a table has no value
        (
            Layout::Preference,
            r#"{"images": [{"bytes": null, "path": "a.png"}], "chosen": [{"role": "user", "content": [{"index": 0, "text": null, "type": "image"}, {"index": null, "text": "Which?", "type": "text"}]}, {"role": "assistant", "content": [{"index": null, "text": "This.", "type": "text"}]}], "rejected": [{"role": "user", "content": [{"index": 0, "text": null, "type": "image"}, {"index": null, "text": "Which?", "type": "text"}]}, {"role": "assistant", "content": [{"index": null, "text": "That.", "type": "text"}]}]}"#.into(),
            asked(),
            &["a.png"],
            &[],
        ),
        // LLaMA-Factory, sharegpt
        (
            Layout::LlamaFactory,
            r#"{"conversations": [{"from": "human", "value": "One <image>, two <image>"}], "chosen": {"from": "gpt", "value": "This."}, "rejected": {"from": "gpt", "value": "That."}, "images": ["a.png", "b.png"]}"#.into(),
            between(),
            &["a.png", "b.png"],
            &[],
        ),
        // LLaMA-Factory, alpaca
        (
            Layout::LlamaFactory,
            r#"{"instruction": "<image>Which?", "input": "", "chosen": "This.", "rejected": "That.", "images": ["a.png"]}"#.into(),
            asked(),
            &["a.png"],
            &[],
        ),
        // ms-swift
        (
            Layout::MsSwift,
            r#"{"messages": [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "This."}], "rejected_response": "That.", "images": ["a.png"], "rejected_images": ["b.png"]}"#.into(),
            asked(),
            &["a.png"],
            &["b.png"],
        ),
        (
            Layout::MsSwift,
            r#"{"query": "Which?", "response": "This.", "rejected_response": "That.", "images": "a.png"}"#.into(),
            asked(),
            &["a.png"],
            &[],
        ),
        // RLHF-V, as JSON lines: `text` is JSON
        (
            Layout::RlhfV,
            json!({"ds_name": "RLHF-V", "image": {"bytes": embedded, "path": "1.jpg"}, "text": r#"{"question": "Which?", "chosen": "This.", "rejected": "That."}"#, "origin_dataset": "LCS", "origin_split": "{}", "idx": 7, "image_path": "coco/1.jpg"}).to_string(),
            asked(),
            &["embedded"],
            &[],
        ),
        // the same before January 2024
        (
            Layout::RlhfV,
            r#"{"dataset_name": "v0", "image": "c.png", "text": {"question": "Which?", "chosen": "This.", "rejected": "That."}, "origin_dataset": "LCS", "origin_split": "e30=", "origin_split_inner_idx": "3", "image_path": "1"}"#.into(),
            asked(),
            &["c.png"],
            &[],
        ),
        // RLAIF-V
        (
            Layout::RlaifV,
            json!({"ds_name": "RLAIF-V", "image": {"bytes": embedded, "path": null}, "question": "Which?", "chosen": "This.", "rejected": "That.", "origin_dataset": "VQAv2", "origin_split": "{\"model\": \"LLaVA\"}", "idx": "12", "image_path": "x/y.jpg"}).to_string(),
            asked(),
            &["embedded"],
            &[],
        ),
        // POVID
        (
            Layout::Povid,
            r#"{"id": "1", "image": "c.png", "conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "This."}], "rejected_conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "That."}]}"#.into(),
            asked(),
            &["c.png"],
            &[],
        ),
        // MIA-DPO
        (
            Layout::MiaDpo,
            r#"{"id": 3, "image": ["a.png", "./b.png"], "prompt": "One <image>, two <image>", "chosen": "This.", "rejected": "That.", "gt": "This"}"#.into(),
            between(),
            &["a.png", "b.png"],
            &[],
        ),
        (
            Layout::MiaDpo,
            r#"{"id": 4, "image": "a.png", "prompt": "Which?\n<image>", "chosen": "This.", "rejected": "That.", "gt": "This"}"#.into(),
            asked(),
            &["a.png"],
            &[],
        ),
        // Re-Align
        (
            Layout::ReAlign,
            r#"{"image": "a.png", "retrieved_image": "c.png", "chosen": [{"role": "user", "content": "<image>\nWhich?"}, {"role": "assistant", "content": "This."}], "rejected": [{"role": "user", "content": "<image>\nWhich?"}, {"role": "assistant", "content": "That."}]}"#.into(),
            asked(),
            &["a.png"],
            &["c.png"],
        ),
    ];
    assert_eq!(cases.len(), 13);
    for (layout, row, prompt, images, rejected) in cases {
        let path = folder.write("rows.jsonl", &row);
        for ask in [Layout::Auto, layout] {
            let files = DataFiles::find(&[path.clone()], ask).unwrap();
            assert_eq!(
                (files.layout(), files.records()),
                (layout, RecordKind::TextPair),
                "{row}"
            );
            let [pair] = <[TextPair; 1]>::try_from(pairs(load(&path, ask))).unwrap();
            assert_eq!(pair.prompt, prompt, "{row}");
            assert_eq!(
                (&pair.chosen, &pair.rejected),
                (&answer("This."), &answer("That.")),
                "{row}"
            );
            let found = names(&pair.images);
            assert!(
                found.len() == images.len() && found.iter().zip(images).all(|(a, b)| a.starts_with(b)),
                "{found:?}"
            );
            assert_eq!(names(&pair.rejected_images.unwrap_or_default()), rejected, "{row}");
            let unpaired = pairs(load(&path, ask)).remove(0).unpair();
            let sees = if rejected.is_empty() {
                &found
            } else {
                &names(&unpaired[1].images)
            };
            assert_eq!(names(&unpaired[1].images), *sees);
        }
        // What was read is written in our layout, and reads back.
        let out = folder.path("ours/rows.jsonl");
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let converted = convert(&[path.clone()], Layout::Auto, &out).unwrap();
        assert_eq!(
            (converted.num_written, converted.written_layout),
            (1, Layout::Preference),
            "{row}"
        );
        assert!(converted.num_images > 0 && converted.num_image_bytes > 0);
        let mut there = pairs(load(&path, Layout::Auto));
        let mut back = pairs(load(&out, Layout::Auto));
        let pixels = |pair: &TextPair| -> Vec<RgbImage> {
            let all = pair.images.iter().chain(pair.rejected_images.iter().flatten());
            all.map(|image| image.decode().unwrap()).collect()
        };
        assert_eq!(pixels(&back[0]), pixels(&there[0]));
        for pair in there.iter_mut().chain(&mut back) {
            pair.images.clear();
            pair.rejected_images = None;
        }
        assert_eq!(back, there);
    }
}

#[test]
fn what_else_published_rows_say() {
    let folder = folder();
    let row = |logps: &str| {
        format!(
            r#"{{"image": "a.png", "question": "Which?", "chosen": "This.", "rejected": "That.", "idx": "5", "logps": {logps}}}"#
        )
    };
    for logps in [
        r#""[-3.5, -0.5, [-1, -2.5], -4.25, -0.6, [-4.25]]""#,
        r#""{\"logps\": [-3.5, -0.5, [-1, -2.5], -4.25, -0.6, [-4.25]]}""#,
    ] {
        let path = folder.write("rows.jsonl", row(logps));
        let pair = pairs(load(&path, Layout::Auto)).remove(0);
        let found = (
            pair.id.as_str(),
            pair.reference_chosen_logps,
            pair.reference_rejected_logps,
        );
        assert_eq!(found, ("5", Some(-3.5), Some(-4.25)));
    }
    let message = failure(&folder.write("rows.jsonl", row(r#""[1, 2]""#)), Layout::Auto);
    assert!(
        message.contains("rows.jsonl, row 1: `logps`: found the string \"[1, 2]\", expected JSON of a list"),
        "{message}"
    );

    // LLaVA: supervised, with text alone among the rows.
    let path = folder.rows(
        "llava.jsonl",
        &[
            r#"{"id": "7", "image": "c.png", "conversations": [{"from": "human", "value": "Which?\n<image>"}, {"from": "gpt", "value": "This."}, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]}"#,
            r#"{"id": "8", "model": "m", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}"#,
        ],
    );
    let TextDataset::Samples(samples) = load(&path, Layout::Auto) else {
        panic!("samples")
    };
    let whole = vec![
        user(vec![ContentBlock::Image, text("Which?")]),
        says("assistant", vec![text("This.")]),
        user(vec![text("Sure?")]),
        says("assistant", vec![text("Yes.")]),
    ];
    assert_eq!(samples[0].body, SampleBody::Whole(whole.into()));
    assert_eq!((samples[0].images.len(), samples[1].images.len()), (1, 0));
    let dataset = TextDataset::Samples(samples);
    assert_eq!(dataset.first_with_images(), Some(0));
    let found = inspect(&[path], Layout::Auto).unwrap();
    assert_eq!((found.num_good_records, found.num_errors), (2, 0), "{found}");
    assert_eq!(found.ignored_keys, ["model"]);
    assert_eq!(
        (
            found.image_sizes[0].width,
            found.image_sizes[0].height,
            found.image_sizes[0].num_images
        ),
        (6, 4, 1)
    );
}

#[test]
fn descriptions_and_answers_of_ha_dpo() {
    let folder = folder();
    std::fs::create_dir(folder.path("VG_100K_2")).unwrap();
    folder.write("VG_100K_2/17.jpg", png(50));
    folder.write("18.jpg", png(60));
    let desc = folder.write(
        "desc_data.json",
        r#"{"17": {"chosen": ["C0", "C1", "C2"], "rejected": ["R0", "R1"]}, "18": {"chosen": ["D0"], "rejected": ["S0"]}}"#,
    );
    let found = pairs(load(&desc, Layout::Auto));
    assert_eq!(
        found.iter().map(|pair| pair.id.as_str()).collect::<Vec<_>>(),
        ["17", "18"]
    );
    assert_eq!(names(&found[0].images), ["17.jpg"]);
    assert!(["C0", "C1", "C2"].contains(&found[0].chosen.content().as_str()));
    assert!(["R0", "R1"].contains(&found[0].rejected.content().as_str()));
    assert_eq!(
        (found[1].chosen.content().as_str(), found[1].rejected.content().as_str()),
        ("D0", "S0")
    );
    assert!(found[1].prompt.content().contains("image") || found[1].prompt.content().contains("picture"));
    assert_eq!(found[0].prompt.num_images(), Some(1));
    // Drawn once and for all.
    assert_eq!(pairs(load(&desc, Layout::HaDpo)), found);

    let pope = folder.write(
        "pope_data.json",
        r#"[{"image_id": 17, "question": "Is there a dog?", "chosen": "No.", "reject": "Yes.", "answer": "no", "correct": false},
            {"image_id": 18, "question": "Is there a cat?", "chosen": "Yes.", "reject": "Yes.", "answer": "yes", "correct": true}]"#,
    );
    let files = DataFiles::find(&[pope.clone()], Layout::Auto).unwrap();
    assert_eq!(files.layout(), Layout::HaDpo);
    let (dataset, read) = TextDataset::read_with(&files, OnError::Fail).unwrap();
    assert_eq!((dataset.len(), read.left_out[&LeftOut::NothingCorrected]), (1, 1));
    let pair = pairs(dataset).remove(0);
    assert_eq!(
        pair.prompt,
        vec![user(vec![ContentBlock::Image, text("Is there a dog?")])].into()
    );
    assert_eq!((pair.chosen, pair.rejected), (answer("No."), answer("Yes.")));
    let found = inspect(&[pope.clone()], Layout::Auto).unwrap();
    assert_eq!(
        (found.num_good_records, found.left_out[&LeftOut::NothingCorrected]),
        (1, 1),
        "{found}"
    );
    let converted = convert(&[pope], Layout::Auto, &folder.path("out.jsonl")).unwrap();
    assert_eq!((converted.num_written, converted.num_dropped()), (1, 1), "{converted}");
}

#[test]
fn other_records_may_have_images() {
    let folder = folder();
    let row = r#"{"prompt": "<image> Which?", "completion": "This.", "label": true, "images": ["a.png"]}"#;
    let TextDataset::Unpaired(found) = load(&folder.write("r.jsonl", row), Layout::Auto) else {
        panic!("unpaired")
    };
    assert_eq!((found[0].prompt.num_images(), found[0].images.len()), (Some(1), 1));
    let row = r#"{"prompt": [{"role": "user", "content": "Which?"}], "responses": [{"messages": [{"role": "assistant", "content": "A"}], "score": 1}, {"messages": [{"role": "assistant", "content": "B"}], "score": 0}], "image": "a.png"}"#;
    let TextDataset::Ranked(found) = load(&folder.write("r.jsonl", row), Layout::Auto) else {
        panic!("ranked")
    };
    assert_eq!(
        (found[0].responses[1].completion.clone(), found[0].images.len()),
        (answer("B"), 1)
    );
    let row = r#"{"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}], "images": ["a.png"]}"#;
    let TextDataset::Samples(found) = load(&folder.write("r.jsonl", row), Layout::Sft) else {
        panic!("samples")
    };
    assert_eq!(found[0].images.len(), 1);
    let dataset = TextDataset::Samples(found);
    // Written by hand, images are inside the rows.
    write_text(&folder.path("w.jsonl"), &dataset).unwrap();
    let TextDataset::Samples(back) = load(&folder.path("w.jsonl"), Layout::Auto) else {
        panic!("samples")
    };
    assert_eq!(back[0].images[0].encoded().unwrap()[..], png(10)[..]);
    // Captioned images stay captioned images.
    let caption = folder.write("r.jsonl", r#"{"prompt": "a red square", "image": "a.png"}"#);
    assert_eq!(
        DataFiles::find(&[caption], Layout::Auto).unwrap().records(),
        RecordKind::ImageCaption
    );
}

#[test]
fn bad_rows_are_named() {
    let folder = folder();
    folder.write("cut.jpg", {
        let whole =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/photo.jpg")).unwrap();
        whole[..whole.len() / 2].to_vec()
    });
    let answers =
        r#""chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]"#;
    let asked = r#""prompt": [{"role": "user", "content": "Which?"}]"#;
    let row = |rest: &str| format!("{{{answers}, {asked}, {rest}}}");
    let plain = |rest: &str| format!(r#"{{"prompt": "<image>?", "chosen": "A", "rejected": "B", {rest}}}"#);
    let cases = [
        (row(r#""images": ["none.png"]"#), "row 1: `images[0]`: no image file at"),
        (row(r#""images": ["../a.png"]"#), "`images[0]`: the path `../a.png` leads out of the folder"),
        (row(r#""images": ["/etc/passwd"]"#), "`images[0]`: the path `/etc/passwd` is absolute"),
        (row(r#""images": ["https://x.org/a.png"]"#), "`images[0]`: the path `https://x.org/a.png` is an address"),
        (row(r#""images": [{"bytes": "not base64!"}]"#), "`images[0].bytes`: not base64"),
        (row(r#""images": ["data:image/png;base64,***"]"#), "`images[0]`: not base64"),
        (row(r#""images": 7"#), "`images`: found the number 7, expected a list of images"),
        (row(r#""images": [7]"#), "`images[0]`: found the number 7, expected a path"),
        (row(r#""images": ["a.png"], "image": "a.png""#), "`image` stands beside `images`"),
        (row(r#""images": ["a.png"], "rejected_images": ["a.png", "b.png"]"#), "`rejected_images` has 2 images, but `images` has 1"),
        (row(r#""images": ["a.png"], "videos": ["a.mp4"]"#), "`videos`: found an array of 1 elements, expected nothing"),
        (plain(r#""images": ["a.png", "b.png"]"#), "`prompt` has places for 1 images"),
        (plain(r#""images": ["a.png"]"#).replace(": \"A\"", ": \"<image>\""), "`chosen` shows an image"),
        (
            r#"{"images": ["a.png"], "prompt": [{"role": "user", "content": [{"type": "image", "index": 1}]}], "chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]}"#.to_owned(),
            "`prompt[0].content[0].index`: found the number 1, expected 0",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]}"#.to_owned(),
            "`prompt` has places for 1 images (blocks {\"type\": \"image\"}, or `<image>` in the words), but the row has 0",
        ),
        (
            r#"{"instruction": "<image><image>", "chosen": "A", "rejected": "B", "images": ["a.png"]}"#.to_owned(),
            "`instruction` has places for 2 images",
        ),
        (
            r#"{"image": "a.png", "text": "no json", "ds_name": "x"}"#.to_owned(),
            "`text`: found the string \"no json\", expected question, chosen and rejected",
        ),
        (
            r#"{"image": "a.png", "text": {"question": "Q", "chosen": "A"}, "ds_name": "x"}"#.to_owned(),
            "missing key `text.rejected`",
        ),
        (
            r#"{"image": "a.png", "conversations": [{"from": "gpt", "value": "A"}]}"#.to_owned(),
            "`conversations`: message 0 is of `assistant`",
        ),
        (
            r#"{"image": "a.png", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "rejected_conversations": [{"from": "human", "value": "P"}, {"from": "gpt", "value": "B"}]}"#.to_owned(),
            "`conversations`: the two conversations must part at an answer",
        ),
    ];
    assert_eq!(cases.len(), 20);
    for (row, expected) in cases {
        let message = failure(&folder.write("rows.jsonl", &row), Layout::Auto);
        assert!(
            message.contains("rows.jsonl, row 1: ") && message.contains(expected),
            "{row}\n{message}"
        );
    }

    // What can only be seen in the file of an image is named by inspection, and left out where the run says so.
    let path = folder.rows(
        "rows.jsonl",
        &[
            &row(r#""images": ["cut.jpg"], "id": "x""#),
            &row(r#""images": ["a.png"]"#),
        ],
    );
    let found = inspect(&[path.clone()], Layout::Auto).unwrap();
    assert_eq!((found.num_good_records, found.num_errors), (1, 1), "{found}");
    assert!(found.problems[0].message.contains("row 1: `images[0]`"), "{found}");
    assert!(
        found.problems[0].message.contains("the JPEG data is cut short"),
        "{found}"
    );
    let files = DataFiles::find(&[path.clone()], Layout::Auto).unwrap();
    let (kept, read) = TextDataset::read_with(&files, OnError::Skip).unwrap();
    assert_eq!((kept.len(), read.num_unreadable), (1, 1));
    assert!(
        read.unreadable[0].contains("record `x`, `images`"),
        "{}",
        read.unreadable[0]
    );
    // A conversion stops at it, and changes nothing.
    let out = folder.path("out.jsonl");
    assert!(
        convert(&[path], Layout::Auto, &out)
            .unwrap_err()
            .to_string()
            .contains("cut short")
    );
    assert!(!out.exists());
}

#[test]
fn lint_looks_at_images_and_counts_rows_that_cannot_be_read() {
    let folder = folder();
    let golden = vision();
    let template = golden["encoded"]["runs"][0]["template"].as_str().unwrap();
    let tokenizer = tokenizer(&folder, &golden).with_chat_template(ChatTemplate::from_source("t", template).unwrap());
    folder.write("none.png", b"not an image");
    let row = |image: &str| {
        format!(
            r#"{{"prompt": [{{"role": "user", "content": "Which?"}}], "chosen": [{{"role": "assistant", "content": "A"}}], "rejected": [{{"role": "assistant", "content": "B"}}], "images": ["{image}"]}}"#
        )
    };
    let rows = [
        row("a.png"),
        row("b.png"),
        row("none.png"),
        row("missing.png"),
        row("a.png"),
    ];
    let path = folder.write("rows.jsonl", rows.join("\n"));
    let files = DataFiles::find(&[path], Layout::Auto).unwrap();
    let (dataset, read) = TextDataset::read_rows(&files).unwrap();
    let records = pairs(dataset);
    let config = LintConfig {
        max_image_side: 5,
        ..LintConfig::default()
    };
    let mut report = lint(
        &tokenizer,
        &config,
        &[LintSplit {
            name: "train",
            records: &records,
        }],
    )
    .unwrap();
    report.add_unreadable("train", &read);
    let count = |rule| report.counts.get(&rule).copied().unwrap_or(0);
    assert_eq!(
        (count(LintRule::UnreadableRow), count(LintRule::UnreadableImage)),
        (1, 1),
        "{report}"
    );
    assert_eq!(count(LintRule::HugeImage), 3, "{report}");
    // The same words about another image are no duplicate.
    assert_eq!(
        (count(LintRule::DuplicateRow), count(LintRule::CannotEncode)),
        (1, 0),
        "{report}"
    );
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.message.contains("row 4: `images[0]`: no image file"))
    );
}

#[cfg(feature = "parquet")]
#[test]
fn tables_of_images_stay_in_their_files() {
    let path = golden("vision_data/images.parquet");
    let found = pairs(load(&path, Layout::Auto));
    let colors: Vec<Vec<[u8; 3]>> = found
        .iter()
        .map(|pair| {
            pair.images
                .iter()
                .map(|image| image.decode().unwrap().get_pixel(1, 1).0)
                .collect()
        })
        .collect();
    assert_eq!(colors, [vec![[255, 0, 0], [0, 0, 255]], vec![], vec![[0, 255, 0]]]);
    // Out of order, too.
    assert_eq!(found[0].images[1].decode().unwrap().get_pixel(0, 0).0, [0, 0, 255]);
    assert!(matches!(found[0].images[0], ImageSource::Cell(_)));
    assert!(
        found[2].images[0]
            .to_string()
            .contains("row 3, column `images.list.element.bytes`, element 0")
    );
    let pair = pairs(load(&golden("vision_data/rlhf_v.parquet"), Layout::Auto)).remove(0);
    assert_eq!(pair.images[0].decode().unwrap().get_pixel(0, 0).0, [255, 0, 0]);
    assert_eq!(
        (pair.prompt.content(), pair.chosen),
        ("What is this?".to_owned(), answer("Red."))
    );
}

#[test]
fn tokens_are_changed_as_in_rlhf_v() {
    let golden = vision();
    let cases = golden["changed"].as_array().unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for (at, case) in cases.iter().enumerate() {
        let (before, after) = (ids(&case["before"]), ids(&case["after"]));
        let least = case["min_match_len"].as_u64().unwrap() as usize;
        let (in_before, in_after) = changed_tokens(&before, &after, least);
        let ranges = |found: &[std::ops::Range<usize>]| {
            json!(found.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>())
        };
        assert_eq!(ranges(&in_before), case["changed"]["before"], "case {at}");
        assert_eq!(ranges(&in_after), case["changed"]["after"], "case {at}");
        if least == MIN_MATCH_LEN {
            let [chosen, rejected] = changed_token_weights(&after, &before, 5.0);
            let num_changed =
                |found: &[std::ops::Range<usize>]| found.iter().map(ExactSizeIterator::len).sum::<usize>();
            let heavy = |weights: &[f32]| weights.iter().filter(|weight| **weight > 1.0).count();
            assert_eq!(
                (heavy(&chosen), heavy(&rejected)),
                (num_changed(&in_after), num_changed(&in_before))
            );
            assert_eq!((chosen.len(), rejected.len()), (after.len(), before.len()));
        }
    }
    assert_eq!(cases.len(), 42);
}

/// Base64 as it stands in JSON lines.
mod base64_of {
    pub(super) fn encode(bytes: &[u8]) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for part in bytes.chunks(3) {
            let word = part.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
            for at in 0..=part.len() {
                out.push(char::from(LETTERS[(word >> (18 - 6 * at)) as usize & 63]));
            }
        }
        out
    }
}
