//! `diptych data build RECIPE`: pairs of a vision-language model's own answers.

use std::path::Path;

use diptych_shapes::{Example, SceneConfig, Split, render};
use serde_json::{Value, json};

use crate::place::Place;

fn shapes_vlm() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-vlm");
    path.display().to_string()
}

/// Rows that ask for captions of `0.png` to `5.png`, with their own.
fn with_rows() -> Place {
    let place = Place::new();
    let row = |index: u64| {
        let example = Example::generate(3, index, Split::HeldOut, &SceneConfig::default()).unwrap();
        render(&example.scene, 32)
            .save(place.path(&format!("{index}.png")))
            .unwrap();
        let caption = format!(" {}", example.caption);
        json!({ "prompt": "<image> describe the picture:", "completion": caption, "images": [format!("{index}.png")] })
    };
    let rows: Vec<String> = (0..6).map(|index| row(index).to_string()).collect();
    place.write("rows.jsonl", rows.join("\n"));
    place
}

fn build(place: &Place, words: &str) -> crate::place::Finished {
    build_with(place, &words.split_whitespace().collect::<Vec<_>>())
}

fn build_with(place: &Place, words: &[&str]) -> crate::place::Finished {
    let model = shapes_vlm();
    let more = [
        "--model",
        &model,
        "--data",
        "rows.jsonl",
        "--max-new-tokens",
        "24",
        "--device",
        "cpu",
    ];
    place.run(&[&["data", "build"], words, &more[..]].concat())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn pairs_are_written_with_their_images_and_read_again() {
    let place = with_rows();
    let said = build(&place, "seva --step 900 --out made/pairs.jsonl").success();
    assert!(
        said.contains("pairs of 6 rows") && said.contains("made/pairs.jsonl"),
        "{said}"
    );
    let pairs = lines(&place.read("made/pairs.jsonl"));
    assert!(!pairs.is_empty());
    for pair in &pairs {
        let image = pair["images"][0].as_str().unwrap();
        assert!(place.path("made").join(image).is_file(), "{image}");
    }
    let said = place.run(&["data", "inspect", "made/pairs.jsonl"]).success();
    assert!(said.contains("preference"), "{said}");
    build(&place, "seva --out made/pairs.jsonl").failure(2, &["--out made/pairs.jsonl exists already"]);

    let json = build(
        &place,
        "seva --step 900 --num-rows 5 --max-pairs 2 --json --out json.jsonl",
    )
    .success();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&report["num_rows"], &report["num_written"]), (&json!(5), &json!(2)));
}

#[test]
fn settings_come_from_files_and_wrong_ones_are_named() {
    let place = with_rows();
    place.write(
        "stic.toml",
        "imagined = 1.0\n[requests]\nshort = [\"describe the picture\"]\ndetailed = [\"describe the picture\"]\nimagined = [\"is there a red circle\"]\n",
    );
    build(&place, "stic --settings stic.toml --temperature 0 --out stic.jsonl").success();
    let pairs = lines(&place.read("stic.jsonl"));
    // The template of the checkpoint gives the requests their form.
    assert_eq!(pairs.len(), 6);
    assert_eq!(pairs[0]["prompt"][0]["content"][0], json!({ "type": "image" }));
    let rejected = pairs[0]["rejected"][0]["content"].to_string();
    assert!(rejected.contains("yes") || rejected.contains("no"), "{rejected}");

    place.write(
        "claims.toml",
        "num_answers = 4\nlengths = \"any\"\n[claims]\nsplit = \"clauses\"\nquestion = \"is there {}\"\n",
    );
    build(
        &place,
        "rlaif-v --settings claims.toml --temperature 1.5 --out claims.jsonl",
    )
    .success();
    place.write("mia.toml", "cell = 32\nmax_attention = 1.0\nmin_perplexity = 0.0\n");
    build(&place, "mia-dpo --kind collage --settings mia.toml --out mia.jsonl").success();
    build(&place, "re-align --completion in-place --out similar.jsonl").success();
    // Another judge in a format of its own, and no more frames than are wanted.
    crate::place::copy(Path::new(&shapes_vlm()), &place.path("judge"));
    let judged = "rlaif-v --settings claims.toml --temperature 1.5 --max-frames 2 --unfinished keep --judge judge --out judged.jsonl";
    let mut judged: Vec<&str> = judged.split_whitespace().collect();
    judged.extend(["--judge-prompt-format", "<image> {}:"]);
    build_with(&place, &judged).success();

    place.write("wrong.toml", "imagine = 1.0\n");
    place.write("kind.toml", "kind = \"collage\"\n");
    place.write("cell.toml", "cell = 64\n");
    place.write("answers.toml", "num_answers = 3\n");
    place.write("scale.toml", "scale = [\"yes\", \"yes please\"]\nlimit = 1.5\n");
    place.write(
        "captions.jsonl",
        "{\"id\": \"rows.jsonl:1\", \"caption\": \"a red circle\"}\n",
    );
    for (words, said) in [
        ("seva --step 1000 --out out.jsonl", &["--step is 1000"][..]),
        ("stic --settings wrong.toml --out out.jsonl", &["wrong.toml", "imagine"]),
        ("stic --settings none.toml --out out.jsonl", &["--settings none.toml"]),
        (
            "mia-dpo --settings kind.toml --out out.jsonl",
            &["`kind` is given by --kind"],
        ),
        (
            "mia-dpo --kind collage --num-images 5 --out out.jsonl",
            &["--num-images", "2, 3, 4, 6 or 9"],
        ),
        (
            "stic --prompt-format {} --out out.jsonl",
            &["--prompt-format", "<image>"],
        ),
        // What would change nothing is refused.
        ("seva --prompt-format <image>{} --out out.jsonl", &["--prompt-format"]),
        ("mia-dpo --system brief --out out.jsonl", &["--system"]),
        ("temple --system brief --out out.jsonl", &["--system"]),
        (
            "re-align --completion in-place --prompt-format <image>{} --out out.jsonl",
            &["--prompt-format is given", "completed in place"],
        ),
        (
            "rlaif-v --judge judge --system brief --out out.jsonl",
            &["--system is given", "by a format of its own"],
        ),
        ("rlaif-v --judge-system brief --out out.jsonl", &["--judge"]),
        ("mia-dpo --max-frames 2 --out out.jsonl", &["--max-frames"]),
        (
            "mia-dpo --settings cell.toml --out out.jsonl",
            &["`cell` is given", "collage"],
        ),
        (
            "llava-hound --captions captions.jsonl --settings answers.toml --out out.jsonl",
            &["`num_answers` is given by --num-answers"],
        ),
        (
            "llava-hound --captions captions.jsonl --settings scale.toml --out out.jsonl",
            &["\"yes\" or \"yes please\"", "both begin with"],
        ),
        ("seva --top-p 0.5 --out out.jsonl", &["--top-p"]),
    ] {
        let code = if words.contains("none.toml") { 1 } else { 2 };
        build(&place, words).failure(code, said);
    }
    assert!(!place.path("out.jsonl").exists());
    build(&place, "temple --out temple.jsonl").failure(1, &["1 images", "frames of a video"]);

    let texts = Place::with_language();
    texts
        .run(&[
            "data",
            "build",
            "seva",
            "--model",
            "lm",
            "--data",
            "rows/pairs.jsonl",
            "--out",
            "out.jsonl",
        ])
        .failure(2, &["--model lm is a language model", "needs a vision-language model"]);
    // Images are built as before, and need what they needed.
    texts
        .run(&["data", "build", "--out", "out.jsonl"])
        .failure(2, &["--model"]);
}
