//! Rows with images in every layout that has them, and damaged ones.

use std::path::Path;

use diptych_data::{
    ContentBlock, DataFiles, Layout, LeftOut, OnError, RecordKind, SampleBody, Text, TextDataset, TextPair, convert,
    inspect, write_text,
};
use image::RgbImage;
use serde_json::json;

use crate::vision::{answer, folder, names, png, says, text, user};
use crate::{failure, load, pairs};

/// The layout, a row of it, the prompt it should have, and the names of the images of both sides.
type Case = (Layout, String, Text, &'static [&'static str], &'static [&'static str]);

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
    let bytes = |color| base64_of::encode(&png(color));
    let embedded = bytes(40);
    let cases: Vec<Case> = vec![
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
        // An image as a data URL
        (
            Layout::MsSwift,
            json!({"messages": [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "This."}], "rejected_response": "That.", "images": [format!("data:image/png;base64,{embedded}")]}).to_string(),
            asked(),
            &["embedded"],
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
            &[],
        ),
    ];
    assert_eq!(cases.len(), 14);
    for (layout, row, prompt, images, rejected) in cases {
        let path = folder.write("rows.jsonl", &row);
        for ask in [Layout::Auto, layout] {
            let files = DataFiles::find(std::slice::from_ref(&path), ask).unwrap();
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
            // What was retrieved is something to compare with, and neither answer is about it.
            let others: &[&str] = if layout == Layout::ReAlign { &["c.png"] } else { &[] };
            assert_eq!(names(&pair.other_images.unwrap_or_default()), others, "{row}");
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
        let converted = convert(std::slice::from_ref(&path), Layout::Auto, &out).unwrap();
        assert_eq!(
            (converted.num_written, converted.written_layout),
            (1, Layout::Preference),
            "{row}"
        );
        assert!(converted.num_images > 0 && converted.num_image_bytes > 0);
        let mut there = pairs(load(&path, Layout::Auto));
        let mut back = pairs(load(&out, Layout::Auto));
        let pixels = |pair: &TextPair| -> Vec<RgbImage> {
            let instead = pair.rejected_images.iter().chain(&pair.other_images);
            let all = pair.images.iter().chain(instead.flatten());
            all.map(|image| image.decode().unwrap()).collect()
        };
        assert_eq!(pixels(&back[0]), pixels(&there[0]));
        for pair in there.iter_mut().chain(&mut back) {
            pair.images.clear();
            pair.rejected_images = None;
            pair.other_images = None;
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
    let files = DataFiles::find(std::slice::from_ref(&pope), Layout::Auto).unwrap();
    assert_eq!(files.layout(), Layout::HaDpo);
    let (dataset, read) = TextDataset::read_with(&files, OnError::Fail).unwrap();
    assert_eq!((dataset.len(), read.left_out[&LeftOut::NothingCorrected]), (1, 1));
    let pair = pairs(dataset).remove(0);
    assert_eq!(
        pair.prompt,
        vec![user(vec![ContentBlock::Image, text("Is there a dog?")])].into()
    );
    assert_eq!((pair.chosen, pair.rejected), (answer("No."), answer("Yes.")));
    let found = inspect(std::slice::from_ref(&pope), Layout::Auto).unwrap();
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
        (row(r#""images": ["a.png"], "other_images": ["a.png", "b.png"]"#), "`other_images` has 2 images, but `images` has 1"),
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
    assert_eq!(cases.len(), 21);
    for (row, expected) in cases {
        let message = failure(&folder.write("rows.jsonl", &row), Layout::Auto);
        assert!(
            message.contains("rows.jsonl, row 1: ") && message.contains(expected),
            "{row}\n{message}"
        );
    }
}

#[test]
fn damaged_images_are_named_where_they_are_decoded() {
    let folder = folder();
    folder.write("cut.jpg", {
        let photo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/photo.jpg");
        let whole = std::fs::read(photo).unwrap();
        whole[..whole.len() / 2].to_vec()
    });
    let row = |rest: &str| {
        format!(
            r#"{{"prompt": [{{"role": "user", "content": "Which?"}}], "chosen": [{{"role": "assistant", "content": "A"}}], "rejected": [{{"role": "assistant", "content": "B"}}], {rest}}}"#
        )
    };
    let path = folder.rows(
        "rows.jsonl",
        &[
            &row(r#""images": ["cut.jpg"], "id": "x""#),
            &row(r#""images": ["a.png"]"#),
        ],
    );
    let found = inspect(std::slice::from_ref(&path), Layout::Auto).unwrap();
    assert_eq!((found.num_good_records, found.num_errors), (1, 1), "{found}");
    assert!(found.problems[0].message.contains("row 1: `images[0]`"), "{found}");
    assert!(
        found.problems[0].message.contains("the JPEG data is cut short"),
        "{found}"
    );
    let files = DataFiles::find(std::slice::from_ref(&path), Layout::Auto).unwrap();
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
fn the_same_answer_under_other_images_is_a_pair() {
    let folder = folder();
    let row = |rest: &str| {
        format!(r#"{{"prompt": "<image>Which?", "chosen": "This.", "rejected": "This.", "images": ["a.png"]{rest}}}"#)
    };
    for key in ["rejected_images", "other_images"] {
        let path = folder.rows("rows.jsonl", &[&row(""), &row(&format!(r#", "{key}": ["b.png"]"#))]);
        let out = folder.path(&format!("{key}.jsonl"));
        let converted = convert(&[path], Layout::Auto, &out).unwrap();
        assert_eq!(
            (converted.num_written, converted.num_dropped(), converted.num_images),
            (1, 1, 2)
        );
        assert!(std::fs::read_to_string(out).unwrap().contains(key));
    }
}

#[test]
fn columns_that_say_something_of_a_record_are_not_passed_over() {
    let folder = folder();
    let first = r#"{"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "This."}]}"#;
    let video = r#"{"id": "2", "video": "x.mp4", "source": "web", "conversations": [{"from": "human", "value": "<video>What happens?"}, {"from": "gpt", "value": "Rain."}]}"#;
    let path = folder.rows("llava.jsonl", &[first, video]);
    let said = failure(&path, Layout::Auto);
    assert!(said.contains("llava.jsonl, row 2: `video`"), "{said}");
    let scored = r#"{"id": "1", "image": "a.png", "margin": 2.0, "conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "This."}], "rejected_conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "That."}]}"#;
    let said = failure(&folder.rows("povid.jsonl", &[scored]), Layout::Auto);
    assert!(said.contains("povid.jsonl, row 1: `margin`"), "{said}");
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

#[test]
fn both_conversations_of_a_pair_show_the_frames_of_its_video() {
    let folder = folder();
    let said =
        |answer: &str| json!([{"role": "user", "content": "<video>what?"}, {"role": "assistant", "content": answer}]);
    let videos = json!([["a.png", "b.png", "images/c.png"]]);
    let rows = [
        (
            json!({"chosen": said("rain"), "rejected": said("snow"), "videos": videos}),
            Layout::Preference,
        ),
        (
            json!({"messages": said("rain"), "rejected_messages": said("snow"), "videos": videos}),
            Layout::MsSwift,
        ),
    ];
    for (row, layout) in rows {
        let path = folder.write("rows.jsonl", row.to_string());
        let pair = pairs(load(&path, layout)).remove(0);
        assert_eq!(names(&pair.images), ["a.png", "b.png", "c.png"], "{layout}");
        let frames = [ContentBlock::Image, ContentBlock::Image, ContentBlock::Image];
        let prompt = user([&frames[..], &[text("what?")]].concat());
        assert_eq!(pair.prompt, vec![prompt].into(), "{layout}");
        assert_eq!(
            (pair.chosen, pair.rejected),
            (answer("rain"), answer("snow")),
            "{layout}"
        );
    }
    let plain = json!({"chosen": "<video>what? rain", "rejected": "<video>what? snow", "videos": videos});
    let path = folder.write("rows.jsonl", plain.to_string());
    let pair = pairs(load(&path, Layout::Auto)).remove(0);
    assert_eq!(pair.prompt, "<image><image><image>what?".into());
    assert_eq!((pair.images.len(), pair.chosen), (3, " rain".into()));
}
