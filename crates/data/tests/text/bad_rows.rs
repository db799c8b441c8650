//! Whatever is wrong with a row is said with its file, row and key, what was found and what was expected.

use diptych_data::{Layout, TextDataset};

use crate::{Folder, failure};

const OK: &str = r#""prompt": "Q", "chosen": "a", "rejected": "b""#;

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn rows_of_pairs() {
    let talk = |side: &str| format!(r#"[{{"role": "user", "content": "Q"}}, {side}]"#);
    let chosen = |message: &str| format!(r#""chosen": {}, "rejected": {}"#, talk(message), talk(message));
    let cases: Vec<(String, &str)> = vec![
        (
            format!("{OK}, \"chosen_scor\": 1"),
            "unknown key `chosen_scor` (did you mean `chosen_score`?); expected prompt, chosen",
        ),
        (
            format!("{OK}, \"foo\": 1"),
            "unknown key `foo`; expected prompt, chosen, rejected",
        ),
        (
            r#""prompt": "Q", "chosen": "a""#.to_owned(),
            "missing key `rejected`; expected a string or a list of messages",
        ),
        (
            OK.replace("\"a\"", "7"),
            "`chosen`: found the number 7, expected a string or a list of messages",
        ),
        (OK.replace("\"a\"", "null"), "missing key `chosen`"),
        (
            OK.replace("\"a\"", "[]"),
            "`chosen`: found an array of 0 elements, expected a string or a list of messages",
        ),
        (
            OK.replace("\"a\"", "[\"a\"]"),
            "`chosen[0]`: found the string \"a\", expected a message",
        ),
        (
            OK.replace("\"a\"", r#"[{"role": "user", "content": "Q"}]"#),
            "`rejected` is of plain strings, but `chosen` is of lists of messages",
        ),
        (
            OK.replace("\"Q\"", r#"[{"role": "user", "content": "Q"}]"#),
            "`prompt` is of lists of messages, but `chosen` is of plain strings",
        ),
        (
            chosen(r#"{"role": "assistant"}"#),
            "missing key `chosen[1].content`; expected a string or a list of blocks",
        ),
        (
            chosen(r#"{"content": "a"}"#),
            "missing key `chosen[1].role`; expected the speaker",
        ),
        (
            chosen(r#"{"rol": "user", "content": "a"}"#),
            "unknown key `chosen[1].rol` (did you mean `role`?)",
        ),
        (
            chosen(r#"{"role": "assistant", "content": "a", "tool_cals": []}"#),
            "unknown key `chosen[1].tool_cals` (did you mean `tool_calls`?)",
        ),
        (
            chosen(r#"{"role": 1, "content": "a"}"#),
            "`chosen[1].role`: found the number 1, expected a string",
        ),
        (
            chosen(r#"{"role": "assistant", "content": 1}"#),
            "`chosen[1].content`: found the number 1, expected a string or a list of blocks",
        ),
        (
            chosen(r#"{"role": "assistant", "content": [{"type": "image"}]}"#),
            "`chosen` shows an image; the images of a row belong before its answers",
        ),
        (
            chosen(r#"{"role": "assistant", "content": [{"type": "video"}]}"#),
            "`chosen[1].content[0]`: found an object with the keys [type], expected {\"type\": \"text\"",
        ),
        (
            chosen(r#"{"role": "assistant", "content": ["a"]}"#),
            "`chosen[1].content[0]`: found the string \"a\"",
        ),
        (
            format!(
                "\"prompt\": \"other\", {}",
                chosen(r#"{"role": "assistant", "content": "a"}"#)
            ),
            "`prompt` is a string that no message shared by the conversations says",
        ),
        (
            r#""chosen": "", "rejected": "b""#.to_owned(),
            "missing key `prompt`; expected a prompt, since one of the sides is empty",
        ),
        (
            format!("{OK}, \"images\": [\"a.png\"]"),
            "`images[0]`: no image file at",
        ),
        (
            format!("{OK}, \"messages\": []"),
            "`messages` is not the same as `chosen`",
        ),
        (
            format!("{OK}, \"tools\": \"add\""),
            "`tools`: found the string \"add\", expected a list of JSON schemas",
        ),
        (
            format!("{OK}, \"tools\": [1]"),
            "`tools`: found an array of 1 elements, expected a list of JSON schemas",
        ),
        (
            format!("{OK}, \"chat_template_kwargs\": []"),
            "`chat_template_kwargs`: found an array of 0 elements, expected an object",
        ),
        (
            format!("{OK}, \"margin\": \"1\""),
            "`margin`: found the string \"1\", expected a number",
        ),
        (
            format!("{OK}, \"chosen_score\": 1, \"score_chosen\": 1"),
            "`score_chosen` means the same as `chosen_score`",
        ),
        (
            format!("{OK}, \"id\": \"\""),
            "`id`: found the string \"\", expected a string or an integer",
        ),
        (
            format!("{OK}, \"chosen_ids\": [1]"),
            "`chosen_ids` says in tokens what `chosen` says in words",
        ),
        (
            r#""prompt_ids": [1], "chosen_ids": [-1], "rejected_ids": [2]"#.to_owned(),
            "`chosen_ids[0]`: found the number -1, expected a token id",
        ),
        (
            r#""prompt_ids": [1], "chosen_ids": [1.5], "rejected_ids": [2]"#.to_owned(),
            "`chosen_ids[0]`: found the number 1.5",
        ),
        (
            r#""prompt_ids": [1], "chosen_ids": [4294967296], "rejected_ids": [2]"#.to_owned(),
            "`chosen_ids[0]`: found the number 4294967296",
        ),
        (
            r#""chosen_ids": [1], "rejected_ids": [2]"#.to_owned(),
            "missing key `prompt`; expected `prompt_ids`",
        ),
        (
            format!("{OK}, \"chosen_spans\": [{{\"start\": 0, \"end\": 2, \"weight\": 1}}]"),
            "`chosen_spans[0]`: found characters 0 to 2 with weight 1, expected an end of at most 1",
        ),
        (
            format!("{OK}, \"chosen_spans\": [{{\"start\": 0, \"end\": 0, \"weight\": 1}}]"),
            "expected an end after the start",
        ),
        (
            format!(
                "{OK}, \"chosen_spans\": [{{\"start\": 0, \"end\": 1, \"weight\": 1}}, {{\"start\": 0, \"end\": 1, \"weight\": 1}}]"
            ),
            "`chosen_spans[1]`: found characters 0 to 1 with weight 1, expected a start of at least 1",
        ),
        (
            format!("{OK}, \"chosen_spans\": [{{\"start\": -1, \"end\": 1, \"weight\": 1}}]"),
            "`chosen_spans[0].start`: found the number -1",
        ),
        (
            format!("{OK}, \"chosen_spans\": [{{\"start\": 0, \"end\": 1}}]"),
            "`chosen_spans[0]`: found an object with the keys [start, end], expected {\"start\"",
        ),
        (
            format!("{OK}, \"chosen_spans\": [{{\"start\": 0, \"end\": 1, \"wight\": 1}}]"),
            "unknown key `chosen_spans[0].wight` (did you mean `weight`?)",
        ),
        (
            r#""chosen": "x a", "rejected": "x b", "chosen_spans": [{"start": 0, "end": 1, "weight": 1}]"#.to_owned(),
            "but no `prompt` says where it begins",
        ),
        (
            r#""chosen": "x a", "rejected": "x b""#.to_owned(),
            "has plain strings that contain their prompt, but the first row has plain strings with a prompt of their own",
        ),
        (
            r#""prompt": [], "chosen": [{"role": "a", "content": ""}], "rejected": [{"role": "a", "content": ""}]"#
                .to_owned(),
            "has lists of messages with a prompt of their own, but the first row has plain strings",
        ),
        (format!("{OK}, \"prompt\": \"R\""), "the key `prompt` appears twice"),
        (OK.replace("\"a\"", r#""\ud800""#), "not one JSON object a line"),
        (OK.replace("\"a\"", &format!("[{}", "[".repeat(200))), "recursion limit"),
    ];
    assert_eq!(cases.len(), 45);
    let folder = Folder::new();
    for (row, expected) in cases {
        let path = folder.write("rows.jsonl", format!("{{{OK}}}\n{{{row}}}\n"));
        let message = failure(&path, Layout::Preference);
        assert!(
            message.starts_with(&format!("{}, row 2: ", path.display())),
            "{message}"
        );
        assert!(message.contains(expected), "{message}\ndoes not say: {expected}");
    }
}

#[test]
fn rows_of_other_layouts() {
    let turns = |roles: &[&str]| -> String {
        let turn = |role: &&str| format!(r#"{{"role": "{role}", "content": "x"}}"#);
        roles.iter().map(turn).collect::<Vec<_>>().join(",")
    };
    let sky = r#"{"role": "user", "content": "Sky?"}"#;
    let cases: Vec<(Layout, String, &str)> = vec![
        (Layout::Unpaired, r#"{"prompt": "a", "completion": "b"}"#.to_owned(), "missing key `label`; expected true or false"),
        (Layout::Unpaired, r#"{"prompt": "a", "completion": "b", "label": 1}"#.to_owned(), "`label`: found the number 1, expected true or false"),
        (Layout::Unpaired, r#"{"completion": "b", "label": true}"#.to_owned(), "missing key `prompt`"),
        (Layout::Unpaired, r#"{"prompt": "a", "completion": "b", "lable": true}"#.to_owned(), "unknown key `lable` (did you mean `label`?)"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": [{"text": "b", "score": 1}]}"#.to_owned(), "`responses`: found an array of 1 elements, expected a list of two or more"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": [{"text": "b"}, {"text": "b", "score": 1}]}"#.to_owned(), "missing key `responses[0].score`"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": [{"txt": "b", "score": 1}, {"text": "b", "score": 1}]}"#.to_owned(), "unknown key `responses[0].txt` (did you mean `responses[0].text`?)"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": ["b", "c"]}"#.to_owned(), "`responses[0]`: found the string \"b\", expected an object"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": [{"messages": "b", "score": 1}, {"text": "b", "score": 1}]}"#.to_owned(), "`responses[0].messages` holds the other kind"),
        (Layout::Ranked, r#"{"prompt": "a", "responses": [{"messages": [{"role": "a", "content": "b"}], "score": 1}, {"text": "b", "score": 1}]}"#.to_owned(), "`responses[0]` is of lists of messages, but `prompt` is of plain strings"),
        (Layout::Sft, r#"{"text": "a", "messages": [{"role": "user", "content": "a"}]}"#.to_owned(), "`messages` stands beside `text`"),
        (Layout::Sft, r#"{"completion": "a"}"#.to_owned(), "missing key `prompt`"),
        (Layout::Sft, r#"{"text": "a", "completion_spans": []}"#.to_owned(), "missing key `completion`; expected the completion whose characters"),
        (Layout::Sft, r#"{"messages": "a"}"#.to_owned(), "`messages`: found the string \"a\", expected a list of messages"),
        (Layout::PromptOnly, r#"{"prompt": "a", "answer": "b"}"#.to_owned(), "unknown key `answer`"),
        (Layout::LlamaFactory, r#"{"instruction": "a", "chosen": "b", "rejected": "c", "ranking": true}"#.to_owned(), "unknown key `ranking`"),
        (Layout::LlamaFactory, r#"{"instruction": "", "input": "", "chosen": "b", "rejected": "c"}"#.to_owned(), "missing key `instruction`; expected the user's words"),
        (Layout::LlamaFactory, r#"{"instruction": "a", "output": "x", "chosen": "b", "rejected": "c"}"#.to_owned(), "`output` is not read beside `chosen` and `rejected`"),
        (Layout::LlamaFactory, r#"{"instruction": "a", "history": [["b"]], "output": "c"}"#.to_owned(), "`history[0]`: found an array of 1 elements, expected a list of two strings"),
        (Layout::LlamaFactory, r#"{"conversations": [{"from": "gpt", "value": "x"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}"#.to_owned(), "`conversations`: message 0 is of `assistant`; expected user or tool"),
        (Layout::LlamaFactory, r#"{"conversations": [{"from": "robot", "value": "x"}]}"#.to_owned(), "`conversations[0].role`: found the string \"robot\", expected one of user, human"),
        (Layout::LlamaFactory, r#"{"conversations": [{"from": "human", "role": "user", "value": "x"}]}"#.to_owned(), "says again what another key of this message says"),
        (Layout::LlamaFactory, r#"{"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "add"}, {"from": "observation", "value": "x"}, {"from": "gpt", "value": "y"}]}"#.to_owned(), "`conversations[1].content`: found the string \"add\", expected JSON of a call"),
        (Layout::LlamaFactory, r#"{"conversations": [{"from": "human", "value": "x"}], "chosen": {"from": "human", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}"#.to_owned(), "`chosen`: the answer is of `user`, not of the assistant"),
        (Layout::LlamaFactory, r#"{"instruction": "a", "output": "b", "images": ["x.png"]}"#.to_owned(), "`images[0]`: no image file at"),
        (Layout::MsSwift, format!(r#"{{"messages": [{}], "rejected_response": "a"}}"#, turns(&["user"])), "`messages`: the last message is of `user`, not of the assistant"),
        (Layout::MsSwift, format!(r#"{{"messages": [{}], "rejected_response": "a"}}"#, turns(&["user", "user", "assistant"])), "`messages`: message 1 is of `user`; expected assistant"),
        (Layout::MsSwift, format!(r#"{{"messages": [{}], "rejected_response": 7}}"#, turns(&["user", "assistant"])), "`rejected_response`: found the number 7, expected a string, a message"),
        (Layout::MsSwift, r#"{"messages": [{"role": "user", "content": "x", "loss": true}], "rejected_response": "a"}"#.to_owned(), "unknown key `messages[0].loss`"),
        (Layout::MsSwift, format!(r#"{{"messages": [{}], "rejected_messages": [{}]}}"#, turns(&["user", "assistant"]), turns(&["tool", "assistant"])), "`messages`: the two conversations must part at an answer"),
        (Layout::Axolotl, r#"{"question": "a", "input": "b", "chosen": "c", "rejected": "d"}"#.to_owned(), "`question` stands beside `input`"),
        (Layout::Axolotl, r#"{"chosen": "c", "rejected": "d"}"#.to_owned(), "missing key `prompt`; expected the user's words"),
        (Layout::Axolotl, format!(r#"{{"messages": [{sky}], "chosen": [{}, {}], "rejected": "d"}}"#, turns(&["user"]), turns(&["assistant"])), "`chosen`: is neither one message nor `messages` with an answer"),
        (Layout::Openrlhf, format!(r#"{{"chosen": [{sky}, {}], "rejected": [{}]}}"#, turns(&["assistant"]), turns(&["user", "assistant"])), "`rejected`: differs from `chosen` before the last message"),
        (Layout::Sft, r#"{"text": "a", "prompt": "b"}"#.to_owned(), "`prompt` is a key of the layout, but not of rows like this one"),
        (Layout::Sft, r#"{"text": "a", "prompt_ids": [1]}"#.to_owned(), "`prompt_ids` is a key of the layout, but not of rows like this one"),
        (Layout::LlamaFactory, r#"{"instruction": "a", "output": "b", "margin": 1}"#.to_owned(), "`margin` is a key of the layout, but not of rows like this one"),
        (Layout::MsSwift, format!(r#"{{"system": "y", "messages": [{}]}}"#, turns(&["system", "user", "assistant"])), "`system` says something else than the conversation's own system message"),
        (Layout::MsSwift, format!("{{\"messages\": [{0}]}}\n{{\"messages\": [{0}], \"rejected_response\": \"a\"}}", turns(&["user", "assistant"])), "row 2: `rejected_response` is a key of the layout, but not of rows like this one"),
        (Layout::Hh, r#"{"chosen": "Human: a", "rejected": "b"}"#.to_owned(), "`chosen`: found the string \"Human: a\", expected a transcript"),
        (Layout::Hh, r#"{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}"#.to_owned(), "`rejected`: shares no message with `chosen`"),
        (Layout::Hh, r#"{"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"}"#.to_owned(), "`chosen`: the transcript ends with the human"),
    ];
    assert_eq!(cases.len(), 42);
    let folder = Folder::new();
    for (layout, row, expected) in cases {
        let message = failure(&folder.write("rows.jsonl", &row), layout);
        assert!(message.contains("rows.jsonl, row "), "{row}\n{message}");
        assert!(message.contains(expected), "{message}\ndoes not say: {expected}");
    }
}

#[test]
fn files_that_are_not_what_was_asked_for() {
    let folder = Folder::new();
    let text = folder.rows("text.jsonl", &[r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#]);
    let kto = folder.rows("kto.jsonl", &[r#"{"prompt": "a", "completion": "b", "label": true}"#]);
    let images = folder.rows(
        "images.jsonl",
        &[r#"{"prompt": "a", "chosen_image": "b", "rejected_image": "c"}"#],
    );
    let says = |paths: &[&std::path::PathBuf], layout: Layout, expected: &str| {
        let paths: Vec<_> = paths.iter().map(|path| (*path).clone()).collect();
        let error = TextDataset::load(&paths, layout).unwrap_err();
        assert!(error.is_configuration(), "{error}");
        assert!(
            error.to_string().contains(expected),
            "{error}\ndoes not say: {expected}"
        );
    };
    says(
        &[&images],
        Layout::Auto,
        "these are image pairs; expected records of text",
    );
    says(&[&text, &kto], Layout::Auto, "kto.jsonl has the unpaired layout, but");
    says(&[&text, &images], Layout::Auto, "images.jsonl holds image pairs, but");
    says(
        &[&text, &images],
        Layout::Preference,
        "images.jsonl holds image pairs, but",
    );
    says(
        &[&text],
        Layout::Unpaired,
        "`layout` is unpaired, but this file has the preference layout",
    );
    says(
        &[&kto],
        Layout::Preference,
        "`layout` is preference, but this file has the unpaired layout",
    );
    let odd = folder.rows("odd.jsonl", &[r#"{"promt": "a"}"#]);
    says(
        &[&odd],
        Layout::Auto,
        "cannot tell the layout: found a first row with the keys [promt]; set `layout` to one of preference",
    );
}

#[test]
fn a_damaged_first_row_is_what_is_wrong() {
    let folder = Folder::new();
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let path = folder.rows("rows.jsonl", &["{", good]);
    for layout in [Layout::Auto, Layout::Preference, Layout::Openrlhf] {
        assert!(failure(&path, layout).contains("rows.jsonl, row 1: not one JSON object a line"));
    }
    // The rows after it say that this is text: an inspection goes on.
    let found = diptych_data::inspect(&[path], Layout::Preference).unwrap();
    assert_eq!((found.num_records, found.num_good_records, found.num_errors), (2, 1, 1));
    let path = folder.rows("rows.jsonl", &["{"]);
    assert!(failure(&path, Layout::Preference).contains("rows.jsonl, row 1: not one JSON object a line"));
    let path = folder.rows("rows.jsonl", &[r#"{"a": 1}"#]);
    assert!(failure(&path, Layout::Preference).contains("found a first row with the keys [a]"));
}

#[test]
fn hostile_rows_cost_little() {
    let folder = Folder::new();
    let many = format!(r#"{{"prompt_ids": [{}0]}}"#, "0,".repeat(2_000_000));
    assert!(
        failure(&folder.write("many.jsonl", many), Layout::Preference).contains("more than 1048576 values in one row")
    );
    let deep = format!(r#"{{"chosen": {}"#, r#"[{"a": "#.repeat(500_000));
    assert!(failure(&folder.write("deep.jsonl", &deep), Layout::Preference).contains("recursion limit"));
    assert!(
        failure(&folder.write("deep.json", format!("[{deep}")), Layout::Preference).contains("ends inside the array")
    );
}
