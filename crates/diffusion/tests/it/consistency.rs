//! Preferences of latent consistency models: the score is minus one half of a consistency distance.

use diptych_diffusion::estimate;
use diptych_train::{LoopConfig, Method, Reporter, Silent, VerifyConfig, verify_resume};
use serde_json::{Value, json};

use crate::preferences::Preferences;
use crate::world::{World, batch};

const DPO: &str = "data.path = \"pairs.jsonl\"\nobjective.dpo.beta = 50.0\n";
const SECTION: &str = "[method.offline_pairs.error.consistency]\n";

fn train(steps: u64, micro_batch: usize, accumulation: usize, lr: f64) -> String {
    format!(
        "[train]\nsteps = {steps}\nmicro_batch = {micro_batch}\naccumulation = {accumulation}\nsample_every = 0\n\
         checkpoint_every = 0\n[optimizer.adamw]\nlr = {lr:?}\n"
    )
}

/// Every solver and target.
const KINDS: [&str; 4] = [
    "",
    "target = \"own\"\n",
    "solver.teacher = { path = \"model\", guidance_scale = 3.0 }\n",
    "huber_c = 0.1\nsolver_steps = 20\ntarget = \"own\"\nsolver.teacher = { path = \"model\", guidance_scale = 1.0 }\n",
];

#[test]
fn a_policy_equal_to_its_reference_loses_ln_2_at_timesteps_of_the_solver() {
    let world = World::new();
    for kind in KINDS {
        let method = world.method(&format!("{DPO}{SECTION}{kind}{}", train(1, 4, 1, 0.01)));
        let output = method.step(&batch(3, &[(0, 0), (1, 1), (2, 2), (3, 3)])).unwrap();
        for loss in output.losses.to_vec1::<f32>().unwrap() {
            assert!(
                (f64::from(loss) - std::f64::consts::LN_2).abs() < 1e-6,
                "{kind}: {loss}"
            );
        }
        let stride = if kind.contains("solver_steps") { 50.0 } else { 20.0 };
        let metrics = &output.metrics;
        for (at, timestep) in metrics["timesteps/mean"].iter().enumerate() {
            assert_eq!((timestep + 1.0) % stride, 0.0, "{kind}: {timestep}");
            let [own, reference] = ["consistency/chosen", "consistency/reference_chosen"].map(|key| metrics[key][at]);
            assert!(
                own > 0.0 && (own - reference).abs() < 1e-6 * own,
                "{kind}: {own} {reference}"
            );
        }
        assert!(!metrics.contains_key("mse/chosen"));
    }
}

#[test]
fn pairs_do_not_see_each_other() {
    let world = World::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let run = |cut: &str, micro_batch, accumulation| {
            let text = format!("{DPO}{SECTION}{kind}{}", train(3, micro_batch, accumulation, 0.0005));
            world.rows(&format!("{cut}-{number}"), &text)
        };
        let (whole, parts) = (run("whole", 4, 1), run("parts", 1, 4));
        assert_eq!(whole.len(), 3);
        for (a, b) in whole.iter().zip(&parts) {
            let relative = |a: f64, b: f64| (a - b).abs() / a.abs();
            assert!(
                relative(a.loss, b.loss) < 1e-4,
                "{kind} step {}: {} {}",
                a.step,
                a.loss,
                b.loss
            );
            assert!(
                relative(a.grad_norm, b.grad_norm) < 1e-3,
                "{kind} step {}: {} {}",
                a.step,
                a.grad_norm,
                b.grad_norm
            );
        }
        assert_ne!(whole[0].loss, whole[2].loss);
    }
}

/// After one small update the same draws of the same pairs have a lower loss, and a margin towards the chosen images.
#[test]
fn one_update_moves_towards_the_chosen_images() {
    let world = World::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let text = format!("data.shuffle = false\n{DPO}{SECTION}{kind}{}", train(1, 4, 1, 0.001));
        let before = &world.rows(&format!("move-{number}"), &text)[0];
        assert!(
            before.metrics["rewards/margins"].abs() < 1e-6,
            "a policy equal to its reference"
        );
        let adapter = world.path(&format!("move-{number}/final"));
        let moved = world.method(&format!("adapter.lora.init = '{}'\n{text}", adapter.display()));
        let output = moved.step(&batch(1, &[(0, 0), (1, 1), (2, 2), (3, 3)])).unwrap();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let losses: Vec<f64> = output
            .losses
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect();
        let margin = mean(&output.metrics["rewards/margins"]);
        println!("{kind:?}: {} to {}, margin {margin}", before.loss, mean(&losses));
        assert!(mean(&losses) < before.loss, "{kind}: {} to {losses:?}", before.loss);
        assert!(margin > 0.0, "{kind}: {margin}");
    }
}

#[test]
fn other_objectives_and_a_curriculum_take_consistency_distances() {
    let world = World::new();
    world.write_preferences();
    let own = "[method.offline_pairs.error.consistency]\ntarget = \"own\"\n";
    let curriculum = "[method.offline_pairs.curriculum]\nnum_chunks = 2\nupdate_every = 1\n";
    let cases = [
        (
            "pairs",
            "ipo = { beta = 50.0, normalization = \"sum\" }",
            SECTION.to_owned(),
        ),
        ("pairs", "mapo = {}", own.to_owned()),
        (
            "pairs",
            "robust_dpo = { beta = 50.0, label_smoothing = 0.1 }",
            SECTION.to_owned(),
        ),
        ("scored", "dpo.beta = 50.0", format!("{SECTION}{curriculum}")),
        ("scored", "rank_dpo.beta = 50.0", SECTION.to_owned()),
    ];
    for (number, (data, objective, sections)) in cases.iter().enumerate() {
        let text = format!(
            "data.path = \"{data}.jsonl\"\nobjective.{objective}\n{sections}{}",
            train(3, 2, 1, 0.01)
        );
        let rows = world.rows(&format!("case-{number}"), &text);
        assert!(
            rows.iter().all(|row| row.loss.is_finite() && row.grad_norm > 0.0),
            "{objective}"
        );
        assert_eq!(
            rows[0].metrics.contains_key("curriculum/pool"),
            sections.contains("curriculum")
        );
    }
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let world = World::new();
    let text = format!(
        "{DPO}[reference.ema]\nsync_steps = 2\n{SECTION}{}",
        train(6, 2, 1, 0.01)
    );
    let recipe = world.recipe("resumed", &text);
    let config = LoopConfig::from_recipe(&recipe).unwrap();
    let build = || diptych_diffusion::prepare(&recipe, &mut Reporter::silent());
    let verify = VerifyConfig {
        steps: 5,
        stop_after: 3,
        directory: world.path("verified"),
    };
    let report = verify_resume(build, &config, &verify, &mut Silent).unwrap();
    assert!(report.is_exact(), "{report:#?}");
}

#[test]
fn what_makes_no_sense_is_refused_by_key() {
    let world = World::new();
    let cases = [
        ("huber_c = 0.0\n", "error.consistency.huber_c"),
        ("solver_steps = 0\n", "error.consistency.solver_steps"),
        ("solver_steps = 30\n", "error.consistency.solver_steps"),
        (
            "solver.teacher = { path = \"model\", guidance_scale = -1.0 }\n",
            "solver.teacher.guidance_scale",
        ),
        ("solver.teacher.path = \"nowhere\"\n", "solver.teacher.path"),
        ("solver.teacher = {}\n", "path"),
        ("[method.offline_pairs.noise.inverted]\n", "method.offline_pairs.noise"),
        ("[reference.cached]\n", "reference.cached"),
        ("[reference.none]\n", "error.consistency.target"),
        ("hubber_c = 1.0\n", "hubber_c"),
    ];
    for (text, key) in cases {
        // An objective that needs no reference itself.
        let data = "data.path = \"pairs.jsonl\"\nobjective.mapo = {}\n";
        let of_reference = if text.contains("[reference") {
            ""
        } else {
            "[reference.adapter_off]\n"
        };
        let text = format!("{data}{of_reference}{SECTION}{text}{}", train(1, 1, 1, 0.01));
        let error = world.refusal(&text);
        assert!(error.contains(key), "{key}: {error}");
    }
    // A teacher of another noise schedule speaks of other latents.
    let schedule = world.path("model/scheduler/scheduler_config.json");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&schedule).unwrap()).unwrap();
    other["beta_end"] = json!(0.05);
    world.copy("model", "other");
    std::fs::write(world.path("other/scheduler/scheduler_config.json"), other.to_string()).unwrap();
    let teacher = format!(
        "{DPO}{SECTION}solver.teacher.path = \"other\"\n{}",
        train(1, 1, 1, 0.01)
    );
    let error = world.refusal(&teacher);
    assert!(
        error.contains("solver.teacher.path") && error.contains("noise schedule"),
        "{error}"
    );
}

#[test]
fn the_teacher_is_planned_and_hashed() {
    let world = World::new();
    let plan = |more: &str| {
        let recipe = world.recipe("planned", &format!("{DPO}{SECTION}{more}{}", train(1, 1, 1, 0.01)));
        let bytes = |name: &str| {
            let parts = estimate(&recipe).unwrap().memory.components;
            parts.into_iter().find(|part| part.name == name).map(|part| part.bytes)
        };
        let plan = diptych_train::Plan::resolve(&recipe).unwrap().to_toml().unwrap();
        (bytes("teacher network"), bytes("parameters, frozen").unwrap(), plan)
    };
    let (none, frozen, of_none) = plan("");
    let (teacher, _, of_teacher) = plan("solver.teacher.path = \"model\"\n");
    assert_eq!((none, teacher), (None, Some(frozen)));
    assert!(of_teacher.contains("solver.teacher.path") && !of_none.contains("solver.teacher.path"));
}

/// Distillation: with the same distances, imitation makes a network agree with itself along a trajectory.
#[test]
fn fine_tuning_makes_a_network_consistent() {
    let world = World::new();
    let section = "data.path = \"captions.jsonl\"\nobjective.sft = {}\n[method.sft.error.consistency]\n";
    for (number, kind) in ["", "solver.teacher = { path = \"model\", guidance_scale = 2.0 }\n"]
        .iter()
        .enumerate()
    {
        let text = format!(
            "{section}target = \"own\"\nhuber_c = 0.01\n{kind}{}",
            train(60, 4, 1, 0.01)
        );
        let rows = world.rows(&format!("distilled-{number}"), &text);
        let mean = |rows: &[diptych_train::MetricsRow]| {
            rows.iter().map(|row| row.metrics["consistency/chosen"]).sum::<f64>() / rows.len() as f64
        };
        let (early, late) = (mean(&rows[..15]), mean(&rows[45..]));
        println!("{kind:?}: {early:.4} to {late:.4}");
        assert!(late < 0.9 * early, "{kind}: {early} {late}");
        let distance = rows[0].metrics["consistency/chosen"];
        assert!(
            (rows[0].loss - distance).abs() < 1e-6 * distance,
            "the loss is the distance itself"
        );
    }
    let error = world.refusal(&format!("{section}{}", train(1, 1, 1, 0.01)));
    assert!(error.contains("method.sft.error.consistency.target"), "{error}");
    let both = format!(
        "adapter.full = {{}}\n{section}target = \"own\"\n{}",
        train(1, 1, 1, 0.01)
    );
    let both = both.replace(
        "[method.sft.error",
        "method.sft.train_text_encoder = true\n[method.sft.error",
    );
    assert!(world.refusal(&both).contains("train_text_encoder"));
}
