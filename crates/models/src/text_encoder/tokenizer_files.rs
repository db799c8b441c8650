//! The tokenizer's files: `vocab.json`, `merges.txt`, `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use diptych_tensor::files;
use serde_json::{Value, json};

use super::{ClipTokenizer, ClipTokenizerConfig, SpecialToken};
use crate::config_json::read_json;
use crate::{Error, Result};

impl ClipTokenizer {
    /// Writes `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let mut by_id: Vec<(&String, &u32)> = self.vocab.iter().collect();
        by_id.sort_by_key(|(_, id)| **id);
        let vocab: serde_json::Map<String, Value> = by_id
            .into_iter()
            .map(|(token, id)| (token.clone(), json!(id)))
            .collect();
        files::write_file(&dir.join("vocab.json"), Value::Object(vocab).to_string().as_bytes())?;
        let lines = self.merges.iter().map(|(left, right)| format!("{left} {right}\n"));
        let merges: String = std::iter::once("#version: 0.2\n".to_owned()).chain(lines).collect();
        files::write_file(&dir.join("merges.txt"), merges.as_bytes())?;
        let specials = self.specials();
        let mut config = json!({
            "add_prefix_space": false,
            "do_lower_case": true,
            "errors": "replace",
            "model_max_length": self.config().model_max_length,
            "tokenizer_class": "CLIPTokenizer",
        });
        if let (Value::Object(config), Value::Object(specials)) = (&mut config, &specials) {
            config.extend(specials.clone());
        }
        for (name, value) in [
            ("tokenizer_config.json", &config),
            ("special_tokens_map.json", &specials),
        ] {
            files::write_file(&dir.join(name), format!("{value:#}\n").as_bytes())?;
        }
        Ok(())
    }

    fn specials(&self) -> Value {
        let plain = |token: &SpecialToken| *token == SpecialToken::new(token.content.clone());
        let value = |token: &SpecialToken| {
            if plain(token) {
                return json!(token.content);
            }
            json!({
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
            })
        };
        let config = self.config();
        json!({
            "bos_token": value(&config.bos_token),
            "eos_token": value(&config.eos_token),
            "pad_token": value(&config.pad_token),
            "unk_token": value(&config.unk_token),
        })
    }
}

pub(super) type VocabAndMerges = (BTreeMap<String, u32>, Vec<(String, String)>);

pub(super) fn read_vocab(dir: &Path) -> Result<VocabAndMerges> {
    let (vocab_path, merges_path, whole) = (
        dir.join("vocab.json"),
        dir.join("merges.txt"),
        dir.join("tokenizer.json"),
    );
    let damaged = |path: &Path, message: &str| Error::Tokenizer {
        path: path.to_owned(),
        message: message.to_owned(),
    };
    if vocab_path.is_file() && merges_path.is_file() {
        let vocab = serde_json::from_value(read_json(&vocab_path)?).map_err(Error::json(&vocab_path))?;
        let text = fs::read_to_string(&merges_path).map_err(Error::io(&merges_path))?;
        let lines = text
            .lines()
            .filter(|line| !(line.starts_with("#version") || line.is_empty()));
        let merges = lines.map(split_merge).collect::<Option<_>>();
        return Ok((
            vocab,
            merges.ok_or_else(|| damaged(&merges_path, "expected two symbols in every line"))?,
        ));
    }
    if !whole.is_file() {
        let expected = ["vocab.json with merges.txt", "tokenizer.json"]
            .map(str::to_owned)
            .to_vec();
        return Err(Error::MissingFile {
            path: dir.to_owned(),
            expected,
        });
    }
    let json = read_json(&whole)?;
    let model = json.get("model").ok_or_else(|| damaged(&whole, "no `model`"))?;
    if model.get("type").and_then(Value::as_str) != Some("BPE") {
        return Err(damaged(&whole, "`model.type` is not \"BPE\""));
    }
    let vocab = model.get("vocab").cloned().unwrap_or_default();
    let vocab: BTreeMap<String, u32> = serde_json::from_value(vocab).map_err(Error::json(&whole))?;
    let merge = |value: &Value| match value {
        Value::String(line) => split_merge(line),
        Value::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    let merges = model
        .get("merges")
        .and_then(Value::as_array)
        .and_then(|merges| merges.iter().map(merge).collect());
    Ok((
        vocab,
        merges.ok_or_else(|| damaged(&whole, "`model.merges` is not a list of pairs"))?,
    ))
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    Some((left.to_owned(), right.to_owned()))
}

pub(super) fn read_config(dir: &Path) -> Result<ClipTokenizerConfig> {
    let read = |name: &str| {
        let path = dir.join(name);
        if path.is_file() {
            read_json(&path)
        } else {
            Ok(Value::Null)
        }
    };
    let (file, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
    let default = ClipTokenizerConfig::default();
    let by_id = file.get("added_tokens_decoder").and_then(Value::as_object);
    let token = |key: &str, default: SpecialToken| -> SpecialToken {
        let named = [&file, &map]
            .into_iter()
            .find_map(|json| SpecialToken::from_json(json.get(key)?))
            .unwrap_or(default);
        // The list by id has the full description of a token that is elsewhere given by its content alone.
        let mut listed = by_id
            .into_iter()
            .flat_map(|tokens| tokens.values())
            .filter_map(SpecialToken::from_json);
        listed.find(|token| token.content == named.content).unwrap_or(named)
    };
    let max_length = match file.get("model_max_length") {
        None | Some(Value::Null) => default.model_max_length,
        // transformers writes a very large number for "no limit"; the network's own limit is CLIP's.
        Some(value) => match value.as_f64() {
            Some(length) if length > 1e6 => default.model_max_length,
            Some(length) if length >= 2.0 && length.fract() == 0.0 => length as usize,
            _ => {
                let file = dir.join("tokenizer_config.json");
                let (key, expected) = ("model_max_length".into(), "an integer of at least 2".into());
                return Err(Error::Config {
                    file,
                    key,
                    found: value.to_string(),
                    expected,
                });
            }
        },
    };
    Ok(ClipTokenizerConfig {
        model_max_length: max_length,
        bos_token: token("bos_token", default.bos_token),
        eos_token: token("eos_token", default.eos_token),
        unk_token: token("unk_token", default.unk_token),
        pad_token: token("pad_token", default.pad_token),
    })
}
