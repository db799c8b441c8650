//! What every method sees of images: those of its own records, in any order and any arrangement.

use std::path::{Path, PathBuf};

use diptych_llm::LanguageMethod;
use diptych_tensor::{Device, Tensor};
use diptych_train::{Item, Method as _, MicroBatch, Order};
use serde_json::{Value, json};

use crate::bench::{Bench, assert_close, golden, numbers};

const ARRANGEMENTS: [&str; 3] = ["padded", "packed", "shared_prefix"];
const MODELS: [&str; 2] = ["llava", "qwen2_5_vl"];

/// The sections of every method.
fn methods() -> [Value; 6] {
    let of = |method: &str, keys: Value, objective: Value, reference: &str| json!({ "method": { method: keys }, "objective": objective, "reference": { reference: {} } });
    let orpo = json!({ "orpo": { "beta": 0.1, "likelihood_of": "text" } });
    [
        of(
            "offline_pairs",
            json!({}),
            json!({ "dpo": { "beta": 0.1 } }),
            "adapter_off",
        ),
        of("unpaired", json!({}), json!({ "kto": { "beta": 0.1 } }), "adapter_off"),
        of(
            "ranked",
            json!({}),
            json!({ "plackett_luce": { "beta": 0.1 } }),
            "adapter_off",
        ),
        of("sft", json!({}), json!({ "sft": {} }), "none"),
        of("sft", json!({ "loss_on": "everything" }), json!({ "sft": {} }), "none"),
        of("offline_pairs", json!({}), orpo, "none"),
    ]
}

/// A method of these rows, laid out in some way, whose policy has moved away from its start.
fn method(bench: &Bench, rows: &Path, arrangement: &str, sections: &Value) -> LanguageMethod {
    let mut changes = sections.clone();
    for keys in changes["method"].as_object_mut().unwrap().values_mut() {
        keys["arrangement"] = json!(arrangement);
    }
    changes["data"] = json!({ "path": rows });
    changes["train"] = json!({ "micro_batch": 4 });
    let method = bench.method(&changes);
    move_away(&method);
    method
}

/// Adds numbers that are not small to every trained parameter.
pub(crate) fn move_away(method: &LanguageMethod) {
    let mut moved = method.params().snapshot().unwrap();
    for (at, tensor) in moved.values_mut().enumerate() {
        let values: Vec<f32> = (0..tensor.elem_count())
            .map(|i| 0.3 * ((i * 7 + at * 13) as f32).sin())
            .collect();
        let change = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        *tensor = (&*tensor + change).unwrap();
    }
    method.params().load(&moved).unwrap();
}

/// What a micro batch says of each of `num_rows` rows: scores, rewards, and the loss where it does not depend on the other records.
fn of_rows(method: &LanguageMethod, records: &[usize], num_rows: usize) -> Vec<Vec<f64>> {
    let items: Vec<Item> = records
        .iter()
        .enumerate()
        .map(|(place, &index)| Item {
            index,
            position: place as u64,
        })
        .collect();
    let output = method.step(&MicroBatch::whole(7, 1, items)).unwrap();
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for key in ["logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"] {
        columns.extend(output.metrics.get(key).cloned());
    }
    // Judged responses are compared with each other, and a mean over tokens is over those of the batch.
    let is_coupled = records.len() != num_rows || columns.len() == 1;
    columns.extend((!is_coupled).then(|| numbers(&output.losses)));
    assert!(!columns.is_empty() && columns.iter().all(|column| column.len() == num_rows));
    (0..num_rows)
        .map(|row| columns.iter().map(|column| column[row]).collect())
        .collect()
}

/// Rows with one image each, the third and the fourth exchanged or not.
fn rows(bench: &Bench, images: [&str; 4]) -> PathBuf {
    let text = std::fs::read_to_string(golden("vlm_trl/pairs.jsonl")).unwrap();
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|row| row["images"].as_array().unwrap().len() == 1)
        .zip(images)
        .map(|(mut row, image)| {
            row["images"] = json!([format!("images/{image}.png")]);
            row
        })
        .collect();
    assert_eq!(rows.len(), 4);
    bench.rows(&format!("{}.jsonl", images.concat()), &rows)
}

/// The records of the four rows: of pairs that were taken apart, all chosen answers come first.
fn all_records(method: &LanguageMethod) -> Vec<usize> {
    (0..method.num_records()).collect()
}

#[test]
fn records_whose_images_are_exchanged_are_the_ones_that_change() {
    let mut num = 0;
    for model in MODELS {
        let bench = Bench::new(model);
        let (before, after) = (rows(&bench, ["a", "b", "c", "d"]), rows(&bench, ["a", "b", "d", "c"]));
        for sections in methods() {
            for arrangement in ARRANGEMENTS {
                let of = |rows| {
                    let method = method(&bench, rows, arrangement, &sections);
                    of_rows(&method, &all_records(&method), 4)
                };
                let (before, after) = (of(&before), of(&after));
                for (row, (before, after)) in before.iter().zip(&after).enumerate() {
                    let change = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    let what = format!("{model}, {sections}, {arrangement}: row {row} changes by {change}");
                    assert_eq!(change > 1e-3, row >= 2, "{what}");
                    assert!(row >= 2 || change < 1e-4, "{what}");
                    num += 1;
                }
            }
        }
    }
    assert_eq!(num, 2 * 6 * 3 * 4);
}

#[test]
fn a_record_alone_is_what_it_is_among_others() {
    let mut num = 0;
    for model in MODELS {
        let bench = Bench::new(model);
        let rows = rows(&bench, ["a", "b", "a", "d"]);
        for sections in methods() {
            let reference = {
                let method = method(&bench, &rows, "padded", &sections);
                of_rows(&method, &all_records(&method), 4)
            };
            for arrangement in ARRANGEMENTS {
                let method = method(&bench, &rows, arrangement, &sections);
                let together = of_rows(&method, &all_records(&method), 4);
                for row in 0..4 {
                    let what = format!("{model}, {sections}, {arrangement}, row {row}");
                    assert_close(&what, &together[row], &reference[row], 1e-4);
                    // A pair that was taken apart is two records.
                    let records: Vec<usize> = (row..method.num_records()).step_by(4).collect();
                    assert_close(&what, &of_rows(&method, &records, 1)[0], &together[row], 1e-4);
                    num += 1;
                }
            }
        }
    }
    assert_eq!(num, 2 * 6 * 3 * 4);
}

#[test]
fn a_run_that_shuffles_takes_the_images_along() {
    for model in MODELS {
        let bench = Bench::new(model);
        let simpo = |more: Value| {
            let mut changes = json!({
                "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } }, "reference": { "none": {} },
                "optimizer": { "adamw": { "lr": 0.0 } }, "run": { "seed": 5 }, "train": { "steps": 12 },
            });
            changes
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            changes
        };
        let alone = {
            let method = bench.method(&simpo(json!({})));
            let of = |record| of_rows(&method, &[record], 1)[0].last().copied().unwrap();
            (0..method.num_records()).map(of).collect::<Vec<f64>>()
        };
        assert_eq!(alone.len(), 24);
        let found = bench.run(&simpo(json!({ "data": { "shuffle": true } })));
        let mut order = Order::new(5, 24, true);
        let mut seen = Vec::new();
        for (step, row) in found.iter().enumerate() {
            let batches = order.micro_batches(step as u64 + 1, 2 * step as u64, 2, 1);
            let records: Vec<usize> = batches[0].items.iter().map(|item| item.index).collect();
            let expected = records.iter().map(|record| alone[*record]).sum::<f64>() / 2.0;
            assert!(
                (row.loss - expected).abs() < 1e-4 * expected.abs(),
                "{model}, step {}: {}, expected {expected}",
                step + 1,
                row.loss
            );
            seen.extend(records);
        }
        assert_ne!(seen, (0..24).collect::<Vec<_>>(), "nothing was shuffled");
        seen.sort_unstable();
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
    }
}
