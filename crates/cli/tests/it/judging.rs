//! Images and pairs judged: scores into files, win rates, and what is wrong with judges.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::place::{Place, Table, copy};

#[path = "../../../models/tests/support/seeded.rs"]
mod seeded;

const PICK_SCORE: &str = "[pick_score]\npath = \"clip\"\n";

/// The golden CLIP as people have one, and a judge made of it.
fn with_clip(place: &Place) {
    copy(&seeded::golden_judge("clip"), &place.path("clip"));
    copy(&seeded::golden_judge("../models/tokenizer_sd1"), &place.path("clip"));
    let weights = seeded::seeded_tensors("clip");
    diptych_tensor::save_tensors(&place.path("clip/model.safetensors"), &weights, &BTreeMap::new()).unwrap();
    place.write("judge.toml", PICK_SCORE);
}

fn rows(place: &Place, name: &str) -> Vec<Value> {
    place
        .read(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn images_are_scored_once_and_their_rows_kept() {
    let place = Place::new();
    with_clip(&place);
    place
        .run(&["data", "shapes", "--num", "6", "--out", "images.jsonl"])
        .success();
    let score = |judge: &str, out: &str| {
        place.run(&[
            "score",
            "--judge",
            judge,
            "--data",
            "images.jsonl",
            "--out",
            out,
            "--batch-size",
            "4",
        ])
    };
    let said = score("shapes", "scores.jsonl").success();
    assert!(
        said.contains("judge verifier") && said.contains("mean 1.0000"),
        "{said}"
    );
    assert!(said.ends_with("wrote 6 records to scores.jsonl\n"), "{said}");
    let before = place.bytes("scores.jsonl");
    let said = score("verifier", "scores.jsonl").success();
    assert!(said.contains("6 of them kept from before"), "{said}");
    assert!(place.bytes("scores.jsonl") == before, "kept rows change");
    let row = &rows(&place, "scores.jsonl")[2];
    assert_eq!((&row["score"], &row["judge"]), (&json!(1.0), &json!("verifier")));

    score("judge.toml", "scores.jsonl").failure(2, &["scores.jsonl: these scores are of another judge (`verifier`"]);
    let said = score("judge.toml", "picked.jsonl").success();
    assert!(said.contains("judge pick_score"), "{said}");
    assert_ne!(
        rows(&place, "picked.jsonl")[0]["score"],
        rows(&place, "picked.jsonl")[1]["score"]
    );

    // What one judge stored, another looks up.
    place.write("stored.toml", "[stored]\npath = \"picked.jsonl\"\n");
    score("stored.toml", "again.jsonl").success();
    for (again, picked) in rows(&place, "again.jsonl").iter().zip(rows(&place, "picked.jsonl")) {
        assert_eq!((&again["id"], &again["score"]), (&picked["id"], &picked["score"]));
    }
}

#[test]
fn generated_folders_and_pairs_are_scored_and_compared() {
    let place = Place::with_pipeline();
    with_clip(&place);
    let sampling = ["--steps", "1"];
    let run = |arguments: &[&str]| place.run(&[arguments, &sampling].concat()).success();
    run(&[
        "generate",
        "--model",
        "pipeline",
        "--prompt",
        "a red circle",
        "--prompt",
        "a star",
        "--out",
        "drawn",
    ]);
    let said = place
        .run(&[
            "score",
            "--judge",
            "judge.toml",
            "--data",
            "drawn",
            "--out",
            "drawn.jsonl",
        ])
        .success();
    assert!(said.contains("wrote 2 records"), "{said}");

    let table = run(&[
        "eval",
        "win-rate",
        "--model",
        "pipeline",
        "--base",
        "pipeline",
        "--judge",
        "judge.toml",
        "--num-prompts",
        "3",
        "--out",
        "contest",
    ]);
    assert!(table.contains("0/3/0"), "{table}");
    let pairs = "contest/aligned-and-base.jsonl";
    let said = place
        .run(&[
            "score",
            "--judge",
            "judge.toml",
            "--data",
            pairs,
            "--out",
            "pairs.jsonl",
            "--ties",
            "strict",
        ])
        .success();
    // Both sides are the same image: labels and judge agree on three ties.
    assert!(
        said.contains("agrees with 100.0 % [100.0, 100.0] of 3 labels"),
        "{said}"
    );
    for (scored, pair) in rows(&place, "pairs.jsonl").iter().zip(rows(&place, pairs)) {
        assert_eq!(scored["id"], pair["id"]);
        let (ours, theirs) = (
            scored["chosen_score"].as_f64().unwrap(),
            pair["chosen_score"].as_f64().unwrap(),
        );
        assert!((ours - theirs).abs() < 1e-4 * theirs.abs(), "{ours} against {theirs}");
    }

    let table = run(&[
        "eval",
        "shapes-geneval",
        "--model",
        "pipeline",
        "--per-category",
        "2",
        "--images-per-prompt",
        "1",
        "--out",
        "geneval",
    ]);
    assert!(
        table.contains("attribute_binding") && table.contains("overall"),
        "{table}"
    );
    assert_eq!(
        place.names("geneval"),
        ["answers.jsonl", "images.jsonl", "shapes-geneval.json"]
    );
    assert_eq!(
        place.json("geneval/shapes-geneval.json")["categories"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    assert_eq!(rows(&place, "geneval/answers.jsonl").len(), 12);
}

#[test]
fn verdicts_in_both_orders_are_a_win_rate() {
    let place = Place::new();
    let row = |id: u32, order: &str, verdict: &str| {
        json!({"id": id, "shown_first": order, "verdict": verdict}).to_string() + "\n"
    };
    let won = row(1, "base", "second") + &row(1, "aligned", "first");
    let biased = row(2, "base", "first") + &row(2, "aligned", "first");
    place.write("verdicts.jsonl", won.clone() + &biased);
    let table = place
        .run(&[
            "eval",
            "verdicts",
            "--verdicts",
            "verdicts.jsonl",
            "--out",
            "result.json",
        ])
        .success();
    assert!(table.contains("win/tie/loss   1/1/0"), "{table}");
    assert_eq!(place.json("result.json")["win_rate"]["mean"], json!(0.75));
    place.write("half.jsonl", won + &row(2, "base", "first"));
    place
        .run(&["eval", "verdicts", "--verdicts", "half.jsonl", "--out", "half.json"])
        .failure(1, &["half.jsonl", "id \"2\"", "aligned image first", "both orders"]);
}

#[test]
fn wrong_judges_are_named() {
    let place = Place::new();
    with_clip(&place);
    place
        .run(&["data", "shapes", "--num", "2", "--out", "images.jsonl"])
        .success();
    place.write("unknown.toml", "[pickscore]\npath = \"clip\"\n");
    place.write("option.toml", "[pick_score]\npath = \"clip\"\nscale = 1\n");
    place.write("empty.toml", "[pick_score]\npath = \"nothing\"\n");
    place.write("head.toml", "[aesthetic]\npath = \"clip\"\nhead = \"head.pth\"\n");
    place.write("head.pth", "pickle");
    place.write("latents.safetensors", "");
    let before = place.tree();
    let mut table = Table::default();
    let cases: [(&str, i32, &[&str]); 8] = [
        (
            "score --judge pick_score --data images.jsonl --out e",
            2,
            &["pick_score", "TOML"],
        ),
        (
            "score --judge nobody --data images.jsonl --out e",
            2,
            &["nobody", "image_reward"],
        ),
        (
            "score --judge unknown.toml --data images.jsonl --out e",
            2,
            &["unknown.toml", "pickscore"],
        ),
        (
            "score --judge option.toml --data images.jsonl --out e",
            2,
            &["option.toml", "scale"],
        ),
        ("score --judge empty.toml --data images.jsonl --out e", 1, &["nothing"]),
        (
            "score --judge head.toml --data images.jsonl --out e",
            2,
            &["head.pth", "torch.load"],
        ),
        (
            "score --judge verifier --model clip --data images.jsonl --out e",
            2,
            &["--judge", "--model"],
        ),
        ("score --data images.jsonl --out e", 2, &["--model"]),
    ];
    for (line, code, said) in cases {
        let arguments: Vec<&str> = line.split(' ').collect();
        table.check(line, &place, &before, &place.run(&arguments), (code, said));
    }
    table.finish(8);
}
