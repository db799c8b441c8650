//! What is written is what is read.

use diptych_data::{
    CharSpan, Content, ContentBlock, Error, Layout, Message, RankedText, SampleBody, ScoredText, Text, TextDataset,
    TextPair, TextPrompt, TextSample, UnpairedText, write_text,
};
use serde_json::json;

use crate::{Folder, load};

fn talk() -> Text {
    let mut call = Message::new("assistant", "");
    call.content = None;
    call.extra.insert(
        "tool_calls".to_owned(),
        json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1.5e-7}}}]),
    );
    let mut blocks = Message::new("user", "");
    blocks.content = Some(Content::Blocks(vec![
        ContentBlock::Text {
            text: "“a”\u{2028}\n".to_owned(),
        },
        ContentBlock::new("\0b"),
    ]));
    blocks.extra.insert("name".to_owned(), "x".into());
    Text::Messages(vec![blocks, call])
}

#[expect(clippy::too_many_lines, reason = "a table of records")]
fn datasets() -> Vec<TextDataset> {
    let mut full = TextPair::new("full", talk(), talk(), talk());
    full.chosen_score = Some(f64::MIN_POSITIVE);
    full.rejected_score = Some(-0.1);
    full.reference_chosen_logps = Some(-123.456_789_012_345_67);
    full.reference_rejected_logps = Some(-1e300);
    full.margin = Some(-0.0);
    full.rationale = Some("“a”\u{2028}\0".to_owned());
    full.chosen_spans = vec![
        CharSpan {
            start: 0,
            end: 3,
            weight: 0.0,
        },
        CharSpan {
            start: 3,
            end: 5,
            weight: -1.5,
        },
    ];
    full.rejected_spans = vec![CharSpan {
        start: 1,
        end: 2,
        weight: 2.0,
    }];
    full.tools = vec![json!({"type": "function", "function": {"name": "f", "parameters": {"b": null, "a": []}}})];
    full.chat_template_kwargs
        .insert("enable_thinking".to_owned(), true.into());
    full.chat_template_kwargs.insert("x".to_owned(), json!(null));
    let empty = Text::Messages(Vec::new());
    let mut unpaired = UnpairedText::new("u", "p", "héllo", false);
    unpaired.score = Some(1.0);
    unpaired.reference_logps = Some(-3.5);
    unpaired.completion_spans = vec![CharSpan {
        start: 4,
        end: 5,
        weight: 0.5,
    }];
    let mut sample = TextSample::new(
        "s",
        SampleBody::Completed {
            prompt: "p".into(),
            completion: "c".into(),
        },
    );
    sample.completion_spans = vec![CharSpan {
        start: 0,
        end: 1,
        weight: 3.0,
    }];
    let ranked = |kind: fn(&str) -> Text| {
        let responses = ["a", "b", "a"].iter().enumerate();
        let responses = responses
            .map(|(at, text)| ScoredText {
                completion: kind(text),
                score: at as f64,
            })
            .collect();
        TextDataset::Ranked(vec![RankedText::new("r", kind("p"), responses)])
    };
    let ids = |text: &str| Text::Ids(text.bytes().map(u32::from).collect());
    vec![
        TextDataset::Pairs(vec![full, TextPair::new("2", empty, talk(), talk())]),
        TextDataset::Pairs(vec![
            TextPair::new("1", "", "a", "b"),
            TextPair::new("1", " p ", "", "b\r\n"),
        ]),
        TextDataset::Pairs(vec![TextPair::new("1", ids("p"), ids("a"), ids(""))]),
        TextDataset::Unpaired(vec![unpaired]),
        TextDataset::Unpaired(vec![UnpairedText::new("u", talk(), talk(), true)]),
        ranked(|text| text.into()),
        ranked(|text| Text::Messages(vec![Message::new("user", text)])),
        ranked(|text| Text::Ids(text.bytes().map(u32::from).collect())),
        TextDataset::Samples(vec![sample]),
        TextDataset::Samples(vec![TextSample::new("s", SampleBody::Whole("text".into()))]),
        TextDataset::Samples(vec![TextSample::new("s", SampleBody::Whole(talk()))]),
        TextDataset::Samples(vec![TextSample::new("s", SampleBody::Whole(ids("t")))]),
        TextDataset::Prompts(vec![TextPrompt::new("p", talk()), TextPrompt::new("q", talk())]),
        TextDataset::Prompts(vec![TextPrompt::new("p", "")]),
    ]
}

#[test]
fn every_record_reads_back() {
    let folder = Folder::new();
    let datasets = datasets();
    assert_eq!(datasets.len(), 14);
    for dataset in datasets {
        let path = folder.path("records.jsonl");
        write_text(&path, &dataset).unwrap();
        assert_eq!(
            load(&path, Layout::Auto),
            dataset,
            "{}",
            std::fs::read_to_string(&path).unwrap()
        );
    }
}

#[test]
fn what_would_not_read_back_is_not_written() {
    let folder = Folder::new();
    let pair = || TextPair::new("p", "a", "b", "c");
    let with = |change: fn(&mut TextPair)| {
        let mut pair = pair();
        change(&mut pair);
        pair
    };
    let cases = [
        (with(|pair| pair.id.clear()), "`id`: found the string \"\""),
        (with(|pair| pair.margin = Some(f64::NAN)), "another record"),
        (
            with(|pair| pair.chosen = Text::Ids(vec![1])),
            "`rejected` is of plain strings, but `chosen` is of token ids",
        ),
        (
            with(|pair| {
                pair.chosen_spans = vec![CharSpan {
                    start: 0,
                    end: 9,
                    weight: 1.0,
                }];
            }),
            "an end of at most 1",
        ),
        (with(|pair| pair.tools = vec![json!(1)]), "`tools`"),
        (
            with(|pair| {
                let mut message = Message::new("user", "x");
                message.extra.insert("role".to_owned(), "y".into());
                (pair.prompt, pair.chosen, pair.rejected) = (
                    vec![message.clone()].into(),
                    vec![message.clone()].into(),
                    vec![message].into(),
                );
            }),
            "another record",
        ),
    ];
    assert_eq!(cases.len(), 6);
    for (bad, expected) in cases {
        let path = folder.path("records.jsonl");
        let error = write_text(&path, &TextDataset::Pairs(vec![pair(), bad])).unwrap_err();
        assert!(
            matches!(error, Error::InvalidRecord { .. }) && error.to_string().contains(expected),
            "{error}"
        );
        assert!(!path.exists());
    }
    let none = write_text(&folder.path("none.jsonl"), &TextDataset::Prompts(Vec::new())).unwrap_err();
    assert!(matches!(none, Error::NothingToWrite { .. }));
}
