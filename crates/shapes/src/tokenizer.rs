//! Word-level tokenizers as Hugging Face files: for listings and captions, and for pictures with what is said of them.

use serde_json::{Map, Value, json};

use crate::listing::text_vocabulary;
use crate::picture::{PICTURE_TOKEN, picture_vocabulary};

/// Padding, start of a sequence, end of a sequence, unknown word; their ids are 0 to 3, in this order.
pub const SPECIAL_TOKENS: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];

/// The content of `tokenizer.json`: one token for every word and punctuation mark of [`text_vocabulary`], after the
/// [`SPECIAL_TOKENS`]. Text is lower-cased and split into words and punctuation; `<s>` is put in front, as Llama's do.
/// Decoding joins words by spaces, so that a caption comes back as it was.
pub fn tokenizer_json() -> String {
    word_level(&SPECIAL_TOKENS, &text_vocabulary())
}

/// The same for pictures: one token for every word of [`picture_vocabulary`], and [`PICTURE_TOKEN`], whose id is
/// [`PICTURE_TOKEN_ID`], behind the [`SPECIAL_TOKENS`].
pub fn picture_tokenizer_json() -> String {
    let [pad, start, end, unknown] = SPECIAL_TOKENS;
    word_level(&[pad, start, end, unknown, PICTURE_TOKEN], &picture_vocabulary())
}

/// The id of the token that stands for a picture.
pub const PICTURE_TOKEN_ID: u32 = SPECIAL_TOKENS.len() as u32;

fn word_level(special_tokens: &[&'static str], words: &[&'static str]) -> String {
    let specials: Vec<Value> = special_tokens
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let words = special_tokens.iter().chain(words);
    let vocabulary: Map<String, Value> = words
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let start = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let first = json!({"Sequence": {"id": "A", "type_id": 0}});
    let second = json!({"Sequence": {"id": "B", "type_id": 0}});
    pretty(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }))
}

/// The content of `tokenizer_config.json` for a model of at most `max_len` tokens, as transformers'
/// `PreTrainedTokenizerFast` reads it.
pub fn tokenizer_config_json(max_len: usize) -> String {
    pretty(&Value::Object(tokenizer_config(max_len)))
}

/// The same for pictures, with a chat template: a conversation becomes the text that [`picture_prompt`](crate::picture_prompt) and
/// [`COMPLETION_START`](crate::COMPLETION_START) make.
pub fn picture_tokenizer_config_json(max_len: usize) -> String {
    let mut config = tokenizer_config(max_len);
    config.insert("image_token".to_owned(), json!(PICTURE_TOKEN));
    config.insert("chat_template".to_owned(), json!(CHAT_TEMPLATE));
    pretty(&Value::Object(config))
}

/// Images first, as `LLaVA`'s processors have them, then the words; an answer ends with the end of the text.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}\
{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}{% for block in message['content'] %}\
{% if block['type'] == 'text' %}{{ ' ' + block['text'] }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}{% else %}\
{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}{% for block in message['content'] %}\
{% if block['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% for block in message['content'] %}\
{% if block['type'] == 'text' %}{{ ' ' + block['text'] }}{% endif %}{% endfor %}{% endif %}{{ ':' }}{% endif %}{% endfor %}";

fn tokenizer_config(max_len: usize) -> Map<String, Value> {
    let [pad, start, end, unknown] = SPECIAL_TOKENS;
    let config = [
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("pad_token", json!(pad)),
        ("bos_token", json!(start)),
        ("eos_token", json!(end)),
        ("unk_token", json!(unknown)),
        ("model_max_length", json!(max_len)),
        ("padding_side", json!("right")),
        ("clean_up_tokenization_spaces", json!(false)),
    ];
    config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;
    use crate::{Example, SceneConfig, Split, TextExample};

    #[test]
    fn every_text_is_encoded_word_by_word_and_comes_back() {
        let tokenizer: Tokenizer = tokenizer_json().parse().expect("the library reads it");
        assert_eq!(tokenizer.get_vocab_size(true), 81 + 4);
        for (id, token) in SPECIAL_TOKENS.into_iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        }
        for index in 0..500 {
            let example = TextExample::generate(2, index, Split::Train, &SceneConfig::default()).unwrap();
            let encode = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            let (prompt, whole) = (
                encode(&example.prompt),
                encode(&(example.prompt.clone() + &example.completion())),
            );
            assert!(whole.starts_with(&prompt) && whole[0] == 1 && !whole.contains(&3));
            // One token a word, `caption:` being two, and the start.
            assert_eq!(prompt.len(), example.prompt.split(' ').count() + 2);
            let caption = tokenizer.decode(&whole[prompt.len()..], true).unwrap();
            assert_eq!(caption, example.caption.to_string());
        }
        let unknown = tokenizer.encode("a Red blob</s>", false).unwrap();
        assert_eq!(unknown.get_tokens(), ["a", "red", "<unk>", "</s>"]);
    }

    #[test]
    fn every_word_about_a_picture_is_a_token() {
        let tokenizer: Tokenizer = picture_tokenizer_json().parse().expect("the library reads it");
        assert_eq!(tokenizer.token_to_id(PICTURE_TOKEN), Some(PICTURE_TOKEN_ID));
        let unknown = tokenizer.token_to_id("<unk>").unwrap();
        for index in 0..500 {
            let example = Example::generate(2, index, Split::Train, &SceneConfig::default()).unwrap();
            let mut texts = vec![(crate::CAPTION_REQUEST.to_owned(), example.caption)];
            texts.extend(
                example
                    .questions
                    .into_iter()
                    .map(|question| (question.text, question.answer.to_string())),
            );
            for (question, answer) in texts {
                let prompt = tokenizer.encode(crate::picture_prompt(&question), true).unwrap();
                // Start, picture, a token a word, and the colon.
                assert_eq!(prompt.get_ids()[..2], [1, PICTURE_TOKEN_ID]);
                assert_eq!(prompt.len(), question.split(' ').count() + 3);
                let answered = tokenizer.encode(answer.as_str(), false).unwrap();
                assert!(
                    !prompt.get_ids().contains(&unknown) && !answered.get_ids().contains(&unknown),
                    "{question}"
                );
                assert_eq!(tokenizer.decode(answered.get_ids(), true).unwrap(), answer);
            }
        }
    }

    #[test]
    fn special_tokens_are_named() {
        let config: Value = serde_json::from_str(&tokenizer_config_json(64)).unwrap();
        assert_eq!(config["model_max_length"], 64);
        let named =
            ["pad_token", "bos_token", "eos_token", "unk_token"].map(|key| config[key].as_str().unwrap().to_owned());
        assert_eq!(named, SPECIAL_TOKENS);
    }
}
