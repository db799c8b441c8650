//! Whole runs on language models: what they leave, that they are TRL's, and that they resume exactly.

use serde_json::Value;

use crate::place::{LANGUAGE, Place, golden};

/// Relative to TRL's number; near zero [`NEAR_ZERO`].
const TOLERANCE: f64 = 1e-3;
const NEAR_ZERO: f64 = 1e-5;

fn rows(place: &Place, name: &str) -> Vec<Value> {
    place
        .read(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_run_equals_trl_and_leaves_the_files_it_promises() {
    let place = Place::with_language();
    let before = place.tree();
    let plan = place.run(&["train", "recipe.toml", "--dry-run"]).success();
    assert_eq!(place.tree(), before);
    for expected in [
        "modality = \"llm\"",
        "sha256",
        "[recipe.objective.dpo]",
        "max_grad_norm = 1.0",
    ] {
        assert!(plan.contains(expected), "expected {expected:?} in: {plan}");
    }
    let finished = place.run(&["train", "recipe.toml"]);
    assert!(finished.stderr.contains("48 records, ") && finished.stderr.contains("training 20/20 loss"));
    let stdout = finished.success();
    assert!(
        stdout.contains("20 steps in") && stdout.contains("report: run/report.html"),
        "{stdout}"
    );
    let names = place.names("run");
    for file in [
        "checkpoints",
        "final",
        "metrics.jsonl",
        "plan.toml",
        "recipe.toml",
        "report.html",
        "summary.json",
    ] {
        assert!(names.contains(&file.to_owned()), "{names:?}");
    }
    assert_eq!(
        place.names("run/final"),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    assert_eq!(place.read("run/recipe.toml"), LANGUAGE);

    let expected = std::fs::read_to_string(golden("trl/runs/lora_dpo_sigmoid.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let rows = rows(&place, "run/metrics.jsonl");
    assert_eq!(rows.len(), 20);
    let mut num_compared = 0;
    for key in [
        "loss",
        "grad_norm",
        "learning_rate",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "num_tokens",
    ] {
        for (row, expected) in rows.iter().zip(expected["metrics"][key].as_array().unwrap()) {
            let (found, expected) = (row[key].as_f64().unwrap(), expected.as_f64().unwrap());
            let bound = (TOLERANCE * expected.abs()).max(NEAR_ZERO);
            assert!((found - expected).abs() <= bound, "{key}: {found}, TRL's {expected}");
            num_compared += 1;
        }
    }
    assert_eq!(num_compared, 140);

    // What it leaves is of use.
    place
        .run(&[
            "generate",
            "--model",
            "lm",
            "--adapter",
            "run/final",
            "--prompt",
            "Why?",
            "--max-new-tokens",
            "2",
            "--out",
            "a",
        ])
        .success();
}

/// The table of an evaluation comes before the last two lines, samples are texts, a whole network can be used on its own.
#[test]
fn an_evaluated_run_of_a_whole_network_shows_its_table() {
    let place = Place::with_language();
    place.write(
        "recipe.toml",
        r#"modality = "llm"
run.device = "cpu"
run.output = "run"
model.path = "lm"
adapter.full = {}
data.path = "rows/texts.jsonl"
method.sft = {}
objective.sft = {}

[train]
steps = 2
micro_batch = 2
sample_every = 1

[samples]
num_prompts = 2
max_new_tokens = 3

[eval.truth]
num_prompts = 3
max_new_tokens = 2
bootstrap_samples = 50
"#,
    );
    let stdout = place.run(&["train", "recipe.toml"]).success();
    for expected in ["3 prompts", "entirely true", "claims an answer", "2 steps in"] {
        assert!(stdout.contains(expected), "expected {expected:?} in: {stdout}");
    }
    assert_eq!(place.names("run/samples"), ["step-000001.jsonl", "step-000002.jsonl"]);
    assert_eq!(rows(&place, "run/samples/step-000002.jsonl").len(), 2);
    assert_eq!(rows(&place, "run/answers.jsonl").len(), 3);
    assert!(place.names("run/final").contains(&"tokenizer.json".to_owned()));
    place
        .run(&[
            "generate",
            "--model",
            "run/final",
            "--prompt",
            "Why?",
            "--max-new-tokens",
            "2",
            "--out",
            "a",
        ])
        .success();
}

/// What is exact about a resumed run, for everything that has a state of its own.
#[test]
fn resumed_runs_are_exact() {
    const LORA: &str = "adapter.lora = { rank = 4, alpha = 8.0 }";
    const FULL: &str = "adapter.full = {}";
    const DPO: &str = "objective.dpo.beta = 0.1";
    // Some have a state of their own, such as what was watched of pairs: one more thing to compare after each of the two
    // interruptions.
    let cases: [(&str, &[&str], usize); 6] = [
        ("pairs", &[LORA, "reference.adapter_off = {}", DPO], 16),
        ("pairs", &[FULL, "reference.frozen = {}", DPO], 16),
        (
            "pairs",
            &[FULL, "reference.ema = { mixup_alpha = 0.6, sync_steps = 2 }", DPO],
            16,
        ),
        ("pairs", &[LORA, "reference.cached = {}", DPO], 16),
        (
            "unpaired",
            &[
                LORA,
                "method.unpaired = {}",
                "objective.bco = { beta = 0.1, running_shift = true }",
            ],
            16,
        ),
        (
            "unpaired",
            &[FULL, "method.unpaired = {}", "objective.kto.beta = 0.1"],
            14,
        ),
    ];
    let mut num_cases = 0;
    for (data, lines, num_compared) in cases {
        let place = Place::with_language();
        let head = format!(
            "modality = \"llm\"\nrun.device = \"cpu\"\nmodel.path = \"lm\"\ndata.path = \"rows/{data}.jsonl\"\n{}\n",
            lines.join("\n")
        );
        let train = "[train]\nsteps = 9\nmicro_batch = 2\naccumulation = 2\n[samples]\nmax_new_tokens = 4\n";
        place.write("recipe.toml", format!("{head}{train}"));
        let before = place.tree();
        let stdout = place.run(&["verify-resume", "recipe.toml", "--steps", "5"]).success();
        assert_eq!(place.tree(), before, "{lines:?}");
        assert!(
            stdout.contains("bit for bit") && !stdout.contains("DIFFERENT"),
            "{lines:?}: {stdout}"
        );
        let num_equal = stdout.lines().filter(|line| line.starts_with("equal ")).count();
        assert_eq!(num_equal, num_compared, "{lines:?}: {stdout}");
        num_cases += 1;
    }
    assert_eq!(num_cases, 6);
}
