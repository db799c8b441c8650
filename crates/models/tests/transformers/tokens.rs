//! T5's tokenizer.

use std::fs;

use diptych_models::Error;
use diptych_models::t5::T5Tokenizer;
use diptych_tensor::Device;

use super::golden;

#[test]
fn texts_become_the_tokens_of_the_pipelines() {
    let tokenizer = T5Tokenizer::from_dir(golden("t5_tokenizer")).unwrap();
    let file = fs::read_to_string(golden("t5_tokenizer").join("cases.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    let texts: Vec<&str> = file["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    let runs = file["runs"].as_array().unwrap();
    assert_eq!((texts.len(), runs.len()), (9, 2));
    for run in runs {
        let max_len = run["max_len"].as_u64().unwrap() as usize;
        let tokens = tokenizer.encode_batch(&texts, max_len, &Device::Cpu).unwrap();
        let ids: Vec<Vec<u32>> = serde_json::from_value(run["input_ids"].clone()).unwrap();
        let mask: Vec<Vec<f32>> = serde_json::from_value(run["attention_mask"].clone()).unwrap();
        assert_eq!(tokens.input_ids.to_vec2::<u32>().unwrap(), ids);
        assert_eq!(tokens.attention_mask.to_vec2::<f32>().unwrap(), mask);
    }
}

#[test]
fn directories_without_a_readable_tokenizer_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = T5Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(matches!(missing, Error::MissingFile { .. }), "{missing}");
    fs::write(dir.path().join("spiece.model"), b"\x0a").unwrap();
    let text = T5Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(
        text.contains("spiece.model") && text.contains("save_pretrained"),
        "{text}"
    );
    fs::copy(
        golden("t5_tokenizer").join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"pad_token": {"content": "<none>"}}"#,
    )
    .unwrap();
    let text = T5Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(text.contains("<none>"), "{text}");
}
