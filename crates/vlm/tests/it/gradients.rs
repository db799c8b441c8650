//! Where the gradient goes.

use serde_json::json;

use crate::bench::{Bench, compute, numbers};

#[test]
fn adapters_of_decoder_projector_and_tower_are_reached() {
    let targets = "(.*q_proj|.*v_proj|.*linear_1|.*merger\\.mlp\\.0|.*fc1|.*qkv)";
    for (model, places) in [
        ("llava", ["language_model", "multi_modal_projector", "vision_tower"]),
        ("qwen2_5_vl", ["language_model", "visual.merger", "visual.blocks"]),
    ] {
        let bench = Bench::new(model);
        let adapter = |tower: &str| json!({ "lora": { "rank": 2, "targets": targets, "tower": tower } });
        for (tower, expected) in [("trained", &places[..]), ("frozen", &places[..2])] {
            let method = bench.method(&json!({ "adapter": adapter(tower) }));
            let (_, gradients) = compute(&method, 3);
            let moved = |place: &str| {
                let names = diptych_train::Method::params(&method).names();
                let up: Vec<String> = names
                    .filter(|name| name.contains(place) && name.contains("lora_B"))
                    .map(str::to_owned)
                    .collect();
                let is_moved = |name: &String| numbers(gradients.get(name).unwrap()).iter().any(|value| *value != 0.0);
                !up.is_empty() && up.iter().all(is_moved)
            };
            for place in places {
                assert_eq!(
                    moved(place),
                    expected.contains(&place),
                    "{model}, tower {tower}: {place}"
                );
            }
        }
    }
}
