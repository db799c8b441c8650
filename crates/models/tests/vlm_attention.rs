//! What tokens attend to, as transformers tells with `output_attentions`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "checkpoints are made from lists of names here")]
#[path = "../../../tests/golden/named_values.rs"]
mod named;
#[path = "vlm/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;

use diptych_models::lm::LmInput;
use diptych_models::vlm::{ImageEmbeddings, TowerTraining};
use diptych_models::{BuilderConfig, Error};
use diptych_tensor::Device;
use serde::Deserialize;

use self::tiny::{Batch, Generation, golden_vlm, load, weights};

#[derive(Deserialize)]
struct Case {
    queries: Vec<usize>,
    /// Of each layer and each query.
    weights: Vec<Vec<Vec<f32>>>,
}

#[test]
fn attention_is_that_of_transformers() {
    let text = std::fs::read_to_string(golden_vlm("../vlm_attention.json")).unwrap();
    let cases: BTreeMap<String, Case> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 2);
    for (name, case) in cases {
        let batch = Batch::of(&name);
        let file = weights(&name, Generation::Memory);
        let (vlm, _) = load(&name, BuilderConfig::new(Some(&file)), TowerTraining::Frozen);
        let all = vlm.encode(&batch.processed()).unwrap();
        let images: Vec<&ImageEmbeddings> = batch.split(&all).remove(0);
        let input = LmInput::padded(&[&batch.texts[0].input_ids], 0, &Device::Cpu).unwrap();
        assert_eq!(case.weights.len(), 2);
        for (layer, expected) in case.weights.iter().enumerate() {
            let found = vlm.attention_weights(&input, &images, layer, &case.queries).unwrap();
            let found: Vec<Vec<f32>> = found.to_vec2().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.len(), expected.len());
                let worst = found
                    .iter()
                    .zip(expected)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(worst < 2e-6, "{name}, layer {layer}: {worst}");
            }
        }
        let error = vlm.attention_weights(&input, &images, 2, &[0]).unwrap_err();
        assert!(
            matches!(error, Error::GenerationSetting { key: "layer", .. }),
            "{error}"
        );
        let tokens = batch.texts[0].input_ids.len();
        let error = vlm.attention_weights(&input, &images, 0, &[tokens]).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "queries", .. }), "{error}");
    }
}
