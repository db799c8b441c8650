//! Rows with images: against TRL, transformers and `datasets`, in every layout that has them, and damaged.

use std::path::{Path, PathBuf};

use diptych_data::{
    ChatTemplate, Content, ContentBlock, DataFiles, Encoder, EncodingConfig, EncodingProblem, Error, ImageSource,
    Layout, LintConfig, LintRule, LintSplit, MIN_MATCH_LEN, Message, OnError, SampleBody, SkipReason, Text,
    TextDataset, TextPrompt, TextSample, Tokenizer, changed_token_weights, changed_tokens, lint,
};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::{Folder, load, pairs};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn vision() -> Value {
    serde_json::from_slice(&std::fs::read(golden("vision_data/vision.json")).unwrap()).unwrap()
}

pub(crate) fn png(color: u8) -> Vec<u8> {
    let image = RgbImage::from_pixel(6, 4, Rgb([color, 0, 0]));
    ImageSource::from_image(&image).unwrap().encoded().unwrap().to_vec()
}

/// A folder with `a.png`, `b.png` and `images/c.png`.
pub(crate) fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("a.png", png(10));
    folder.write("b.png", png(20));
    std::fs::create_dir(folder.path("images")).unwrap();
    folder.write("images/c.png", png(30));
    folder
}

pub(crate) fn text(words: &str) -> ContentBlock {
    ContentBlock::new(words)
}

pub(crate) fn says(role: &str, blocks: Vec<ContentBlock>) -> Message {
    let mut message = Message::new(role, "");
    message.content = Some(Content::Blocks(blocks));
    message
}

pub(crate) fn user(blocks: Vec<ContentBlock>) -> Message {
    says("user", blocks)
}

pub(crate) fn answer(words: &str) -> Text {
    vec![says("assistant", vec![text(words)])].into()
}

/// Names of the files that images are in.
pub(crate) fn names(images: &[ImageSource]) -> Vec<String> {
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
fn rows_with_other_numbers_of_places_are_passed_over_where_that_is_wanted() {
    let folder = folder();
    let all = tokenizer(&folder, &vision());
    let plain = Tokenizer::from_dir(crate::vision::golden("text/tokenizers/byte_level")).unwrap();
    // What is wrong with the tokenizer is no fault of a row.
    let shown = |id: &str, text: &str, images: usize| TextSample {
        images: vec![ImageSource::Bytes(png(1).into()); images],
        ..TextSample::new(
            id,
            SampleBody::Completed {
                prompt: Text::Plain(text.to_owned()),
                completion: Text::Plain(" B".to_owned()),
            },
        )
    };
    let rows = [shown("good", "<image>\nA?", 1), shown("odd", "<image>\nA?", 2)];
    let skipping = |tokenizer| {
        let encoder = Encoder::try_new(tokenizer, EncodingConfig::default()).unwrap();
        encoder.with_on_error(OnError::Skip)
    };
    let encoded = skipping(&all).samples(&rows).unwrap();
    assert_eq!((encoded.rows.len(), encoded.rows[0].id.as_str()), (1, "good"));
    let reason = SkipReason::ImageTokens { found: 1, images: 2 };
    assert_eq!((encoded.skipped.len(), encoded.skipped[0].row), (1, 1));
    assert_eq!(
        (encoded.skipped[0].id.as_str(), encoded.skipped[0].reason),
        ("odd", reason)
    );
    assert!(skipping(&plain).samples(&rows).is_err());
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
    // Whatever is damaged, it is an error or another image, and never a panic.
    let folder = folder();
    let bytes = std::fs::read(&path).unwrap();
    let (mut refused, mut read) = (0, 0);
    for at in (0..bytes.len()).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        let path = folder.write("table.parquet", damaged);
        let files = DataFiles::find(&[path], Layout::Preference).unwrap();
        match TextDataset::read_with(&files, OnError::Skip) {
            Ok((_, report)) if report.is_complete() => read += 1,
            _ => refused += 1,
        }
    }
    assert!(refused > 50 && read > 50, "{refused} refused, {read} read");
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
