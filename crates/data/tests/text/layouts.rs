//! Rows as they stand in published datasets and in the documentation of other trainers.

use diptych_data::{
    CharSpan, Layout, Message, RecordKind, SampleBody, Text, TextDataset, TextKind, TextPair, UnpairedText,
};
use serde_json::json;

use crate::{Folder, load, pairs};

fn talk(turns: &[(&str, &str)]) -> Text {
    Text::Messages(
        turns
            .iter()
            .map(|(role, content)| Message::new(*role, *content))
            .collect(),
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn pairs_of_every_layout() {
    let sky = [("user", "Sky?")];
    let brief = [("system", "Be brief."), ("user", "Sky?")];
    let (blue, green) = (talk(&[("assistant", "Blue.")]), talk(&[("assistant", "Green.")]));
    // The layout that `auto` finds, the layout to ask for, the row, the prompt.
    let cases: Vec<(Layout, Layout, &str, Text)> = vec![
        (
            Layout::Preference,
            Layout::Preference,
            r#"{"prompt": [{"role": "user", "content": "Sky?"}], "chosen": [{"role": "assistant", "content": "Blue."}], "rejected": [{"role": "assistant", "content": "Green."}], "images": []}"#,
            talk(&sky),
        ),
        (
            // HuggingFaceH4/ultrafeedback_binarized
            Layout::Preference,
            Layout::Preference,
            r#"{"prompt": "Sky?", "prompt_id": "f0e3", "chosen": [{"content": "Sky?", "role": "user"}, {"content": "Blue.", "role": "assistant"}], "rejected": [{"content": "Sky?", "role": "user"}, {"content": "Green.", "role": "assistant"}], "messages": [{"content": "Sky?", "role": "user"}, {"content": "Blue.", "role": "assistant"}], "score_chosen": 8.5, "score_rejected": 3}"#,
            talk(&sky),
        ),
        (
            // LLaMA-Factory, alpaca
            Layout::LlamaFactory,
            Layout::LlamaFactory,
            r#"{"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green.", "system": "Be brief.", "history": []}"#,
            talk(&brief),
        ),
        (
            Layout::LlamaFactory,
            Layout::LlamaFactory,
            r#"{"instruction": "Say the color.", "input": "Sky?", "chosen": "Blue.", "rejected": "Green.", "history": [["Hi", "Hello"]]}"#,
            talk(&[("user", "Hi"), ("assistant", "Hello"), ("user", "Say the color.\nSky?")]),
        ),
        (
            // LLaMA-Factory, sharegpt
            Layout::LlamaFactory,
            Layout::LlamaFactory,
            r#"{"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Sky?"}], "chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}}"#,
            talk(&brief),
        ),
        (
            // ms-swift
            Layout::MsSwift,
            Layout::MsSwift,
            r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], "rejected_response": "Green."}"#,
            talk(&brief),
        ),
        (
            Layout::MsSwift,
            Layout::MsSwift,
            r#"{"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], "rejected_messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}]}"#,
            talk(&sky),
        ),
        (
            Layout::MsSwift,
            Layout::MsSwift,
            r#"{"system": "Be brief.", "query": "Sky?", "response": "Blue.", "rejected_response": "Green.", "history": []}"#,
            talk(&brief),
        ),
        (
            // Intel/orca_dpo_pairs
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"system": "Be brief.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."}"#,
            talk(&brief),
        ),
        (
            // argilla/distilabel-intel-orca-dpo-pairs
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"system": "", "input": "Sky?", "chosen": "Blue.", "rejected": "Green.", "generations": ["a", "b"], "order": ["x"], "rating": [9, 3], "status": "unchanged", "in_gsm8k_train": false}"#,
            talk(&sky),
        ),
        (
            // axolotl, argilla
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"instruction": "Sky?", "chosen_response": "Blue.", "rejected_response": "Green."}"#,
            talk(&sky),
        ),
        (
            // axolotl, ultra
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"system": "Be brief.", "prompt": "Sky?", "chosen": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], "rejected": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}]}"#,
            talk(&brief),
        ),
        (
            // axolotl, chat_template
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}], "chosen": {"role": "assistant", "content": "Blue."}, "rejected": {"role": "assistant", "content": "Green."}}"#,
            talk(&brief),
        ),
        (
            Layout::Axolotl,
            Layout::Axolotl,
            r#"{"messages": "Sky?", "chosen": "Blue.", "rejected": [{"role": "assistant", "content": "Green."}]}"#,
            talk(&sky),
        ),
        (
            // OpenRLHF/preference_dataset_mixture2_and_safe_pku
            Layout::Preference,
            Layout::Openrlhf,
            r#"{"chosen": [{"content": "Sky?", "role": "user"}, {"content": "Blue.", "role": "assistant"}], "rejected": [{"content": "Sky?", "role": "user"}, {"content": "Green.", "role": "assistant"}], "margin": 1.5}"#,
            talk(&sky),
        ),
        (
            // Anthropic/hh-rlhf
            Layout::Preference,
            Layout::Hh,
            r#"{"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."}"#,
            talk(&sky),
        ),
    ];
    assert_eq!(cases.len(), 16);
    let folder = Folder::new();
    for (found, asked, row, prompt) in cases {
        let path = folder.write("row.jsonl", row);
        let files = diptych_data::DataFiles::find(std::slice::from_ref(&path), Layout::Auto).unwrap();
        assert_eq!(
            (files.layout(), files.records()),
            (found, RecordKind::TextPair),
            "{row}"
        );
        let [pair] = <[TextPair; 1]>::try_from(pairs(load(&path, asked))).unwrap();
        assert_eq!(
            (pair.prompt, pair.chosen, pair.rejected),
            (prompt, blue.clone(), green.clone()),
            "{row}"
        );
        // The same as the only element of an array.
        let array = load(&folder.write("rows.json", format!("[\n{row}\n]")), asked);
        assert_eq!((array.len(), array.record_id(0)), (1, "rows.json:1"));
    }
}

#[test]
fn everything_a_pair_may_carry() {
    let folder = Folder::new();
    let path = folder.rows(
        "pairs.jsonl",
        &[
            r#"{"id": 7, "prompt": "Q", "chosen": " é👩‍🔬b", "rejected": " c", "chosen_score": 0.5, "rejected_score": null, "ref_chosen_logps": -1.25, "ref_rejected_logps": -2, "margin": 0.1, "rationale": "It’s\né", "chosen_spans": [{"start": 1, "end": 2, "weight": 0}, {"start": 2, "end": 6, "weight": 2.5}], "tools": "[{\"type\": \"function\"}]", "chat_template_kwargs": {"enable_thinking": false}}"#,
            r#"{"prompt": "Q", "chosen": "a", "rejected": "b", "source": "x"}"#,
        ],
    );
    let [pair, bare] = <[TextPair; 2]>::try_from(pairs(load(&path, Layout::Auto))).unwrap();
    let mut expected = TextPair::new("7", "Q", " é👩‍🔬b", " c");
    expected.chosen_score = Some(0.5);
    expected.reference_chosen_logps = Some(-1.25);
    expected.reference_rejected_logps = Some(-2.0);
    expected.margin = Some(0.1);
    expected.rationale = Some("It’s\né".to_owned());
    expected.chosen_spans = vec![
        CharSpan {
            start: 1,
            end: 2,
            weight: 0.0,
        },
        CharSpan {
            start: 2,
            end: 6,
            weight: 2.5,
        },
    ];
    expected.tools = vec![json!({"type": "function"})];
    expected
        .chat_template_kwargs
        .insert("enable_thinking".to_owned(), false.into());
    assert_eq!(pair, expected);
    assert_eq!(bare, TextPair::new("pairs.jsonl:2", "Q", "a", "b"));
    let [chosen, rejected] = expected.unpair();
    assert_eq!(
        (chosen.id.as_str(), chosen.label, chosen.score),
        ("7/chosen", true, Some(0.5))
    );
    assert_eq!((chosen.completion_spans.len(), rejected.completion_spans.len()), (2, 0));
    assert_eq!((rejected.reference_logps, rejected.tools.len()), (Some(-2.0), 1));
}

#[test]
fn null_columns_say_nothing() {
    let folder = Folder::new();
    let nulls = r#""image": null, "kto_tag": null, "rejected_response": null, "system": null, "conversations": null, "label": null"#;
    let row =
        r#"{"prompt": "Q", "chosen": "a", "rejected": "b", "images": null, "tools": null, "id": null, "margin": null}"#;
    let [pair] = <[TextPair; 1]>::try_from(pairs(load(&folder.write("p.jsonl", row), Layout::Auto))).unwrap();
    assert_eq!(pair, TextPair::new("p.jsonl:1", "Q", "a", "b"));
    // Columns of other layouts do not decide, and are named where they are not known.
    let row = format!(r#"{{"prompt": "Q", "chosen": "a", "rejected": "b", {nulls}}}"#);
    let message = crate::failure(&folder.write("p.jsonl", row), Layout::Auto);
    assert!(
        message.contains("row 1: unknown key `kto_tag`; expected prompt, chosen"),
        "{message}"
    );
}

#[test]
fn tokens_as_they_are() {
    let folder = Folder::new();
    let row = r#"{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4294967295]}"#;
    let dataset = load(&folder.write("ids.jsonl", row), Layout::Auto);
    assert_eq!(dataset.kind(), Some(TextKind::Tokenized));
    let pair = &pairs(dataset)[0];
    assert_eq!(
        (&pair.prompt, &pair.chosen, &pair.rejected),
        (&Text::Ids(vec![1, 2]), &Text::Ids(vec![3]), &Text::Ids(vec![u32::MAX]))
    );
}

#[test]
fn labels_of_every_layout() {
    let cases = [
        (
            Layout::Unpaired,
            r#"{"prompt": [{"role": "user", "content": "Sky?"}], "completion": [{"role": "assistant", "content": "Blue."}], "label": true}"#,
        ),
        (
            Layout::LlamaFactory,
            r#"{"instruction": "Sky?", "input": "", "output": "Blue.", "kto_tag": true}"#,
        ),
        (
            Layout::LlamaFactory,
            r#"{"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}], "kto_tag": true}"#,
        ),
        (
            Layout::LlamaFactory,
            r#"{"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], "kto_tag": true}"#,
        ),
        (
            Layout::MsSwift,
            r#"{"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], "label": true}"#,
        ),
    ];
    assert_eq!(cases.len(), 5);
    let folder = Folder::new();
    for (layout, row) in cases {
        let path = folder.write("row.jsonl", row);
        let files = diptych_data::DataFiles::find(&[path], Layout::Auto).unwrap();
        assert_eq!(
            (files.layout(), files.records()),
            (layout, RecordKind::UnpairedText),
            "{row}"
        );
        let expected = UnpairedText::new(
            "row.jsonl:1",
            talk(&[("user", "Sky?")]),
            talk(&[("assistant", "Blue.")]),
            true,
        );
        assert_eq!(
            TextDataset::read(&files).unwrap(),
            TextDataset::Unpaired(vec![expected]),
            "{row}"
        );
    }
}

#[test]
fn supervised_texts_of_every_layout() {
    let whole = || SampleBody::Whole(talk(&[("user", "Sky?"), ("assistant", "Blue.")]));
    let completed = SampleBody::Completed {
        prompt: "Sky? ".into(),
        completion: "Blue.".into(),
    };
    let cases = [
        (Layout::Sft, r#"{"text": "Blue."}"#, SampleBody::Whole("Blue.".into())),
        (
            Layout::Sft,
            r#"{"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]}"#,
            whole(),
        ),
        (
            Layout::Sft,
            r#"{"prompt": "Sky?", "prompt_id": "x", "messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]}"#,
            whole(),
        ),
        (Layout::Sft, r#"{"prompt": "Sky? ", "completion": "Blue."}"#, completed),
        (
            Layout::Sft,
            r#"{"input_ids": [5, 6]}"#,
            SampleBody::Whole(Text::Ids(vec![5, 6])),
        ),
        (
            Layout::LlamaFactory,
            r#"{"instruction": "Sky?", "input": "", "output": "Blue."}"#,
            whole(),
        ),
        (
            Layout::LlamaFactory,
            r#"{"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}], "tools": ""}"#,
            whole(),
        ),
        (Layout::MsSwift, r#"{"query": "Sky?", "response": "Blue."}"#, whole()),
    ];
    assert_eq!(cases.len(), 8);
    let folder = Folder::new();
    for (layout, row, body) in cases {
        let path = folder.write("row.jsonl", row);
        let files = diptych_data::DataFiles::find(&[path], Layout::Auto).unwrap();
        assert_eq!(files.layout(), layout, "{row}");
        let TextDataset::Samples(samples) = TextDataset::read(&files).unwrap() else {
            panic!("{row}")
        };
        assert_eq!(samples[0].body, body, "{row}");
    }
}

#[test]
fn ranked_rows_and_prompts() {
    let folder = Folder::new();
    let row = r#"{"prompt": "Sky?", "responses": [{"text": " Green.", "score": 1}, {"text": " Blue.", "score": 2.5}]}"#;
    let TextDataset::Ranked(ranked) = load(&folder.write("ranked.jsonl", row), Layout::Auto) else {
        panic!("ranked")
    };
    let found: Vec<_> = ranked[0]
        .responses
        .iter()
        .map(|one| (one.completion.content(), one.score))
        .collect();
    assert_eq!(found, [(" Green.".to_owned(), 1.0), (" Blue.".to_owned(), 2.5)]);
    let TextDataset::Prompts(prompts) = load(&folder.write("p.jsonl", r#"{"prompt": "Sky?"}"#), Layout::Auto) else {
        panic!("prompts")
    };
    assert_eq!(
        (prompts[0].id.as_str(), &prompts[0].prompt),
        ("p.jsonl:1", &"Sky?".into())
    );
}

#[test]
fn calls_of_tools_become_what_templates_read() {
    let folder = Folder::new();
    let row = r#"{"conversations": [{"from": "human", "value": "2+2?"}, {"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"a\": 2}}"}, {"from": "observation", "value": "4"}], "tools": "[{\"name\": \"add\", \"parameters\": {}}]", "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}}"#;
    let pair = &pairs(load(&folder.write("row.jsonl", row), Layout::Auto))[0];
    let messages = serde_json::to_value(pair.prompt.messages().unwrap()).unwrap();
    assert_eq!(
        messages,
        json!([
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]},
            {"role": "tool", "content": "4"},
        ])
    );
    assert_eq!(
        pair.tools,
        [json!({"type": "function", "function": {"name": "add", "parameters": {}}})]
    );
}

#[test]
fn layouts_that_share_keys_differ_where_they_should() {
    let folder = Folder::new();
    // OpenRLHF splits at the last message, TRL at the first difference; alike here, but not for strings.
    let row = r#"{"chosen": "Sky? Blue.", "rejected": "Sky? Green."}"#;
    let path = folder.write("row.jsonl", row);
    let trl = &pairs(load(&path, Layout::Preference))[0];
    assert_eq!((&trl.prompt, &trl.chosen), (&"Sky?".into(), &" Blue.".into()));
    let open = &pairs(load(&path, Layout::Openrlhf))[0];
    assert_eq!((&open.prompt, &open.chosen), (&"".into(), &"Sky? Blue.".into()));
    // A transcript as it is, and as messages of several turns that part early.
    let row = r#"{"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: x"}"#;
    let path = folder.write("row.jsonl", row);
    let strings = &pairs(load(&path, Layout::Auto))[0];
    assert_eq!(strings.prompt, "\n\nHuman: a\n\nAssistant:".into());
    let talked = &pairs(load(&path, Layout::Hh))[0];
    assert_eq!(talked.prompt, talk(&[("user", "a")]));
    assert_eq!(
        talked.chosen,
        talk(&[("assistant", "b"), ("user", "c"), ("assistant", "d")])
    );
}
