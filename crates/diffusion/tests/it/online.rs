//! Methods that sample what they learn from: whole runs of the tiny pipeline, rewarded for red pixels.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diptych_diffusion::{DiffusionMethod, Reward, prepare_with_reward, run};
use diptych_tensor::Tensor;
use diptych_train::{
    LoopConfig, Method, MetricsRow, Recipe, Reporter, ResumeMode, RunDirectory, Silent, VerifyConfig, read_metrics,
    train, verify_resume,
};

use crate::world::{World, batch};

/// Mean of the red channel minus that of the others.
#[derive(Debug)]
pub(crate) struct Redness;

impl Reward for Redness {
    fn name(&self) -> &'static str {
        "redness"
    }

    fn is_differentiable(&self) -> bool {
        true
    }

    fn rewards(&self, prompts: &[&str], pixels: &Tensor, _: f32) -> diptych_diffusion::Result<Tensor> {
        assert_eq!(prompts.len(), pixels.dims()[0]);
        let compute = || -> diptych_tensor::Result<Tensor> {
            let channel = |at: usize| -> diptych_tensor::Result<Tensor> {
                Ok(pixels.narrow(1, at, 1)?.flatten_from(1)?.mean(1)?)
            };
            Ok((channel(0)? - ((channel(1)? + channel(2)?)? * 0.5)?)?)
        };
        Ok(compute()?)
    }
}

/// Likes every image alike.
#[derive(Debug)]
struct Indifference;

impl Reward for Indifference {
    fn name(&self) -> &'static str {
        "indifference"
    }

    fn is_differentiable(&self) -> bool {
        false
    }

    fn rewards(&self, _: &[&str], pixels: &Tensor, _: f32) -> diptych_diffusion::Result<Tensor> {
        let zeros = || -> diptych_tensor::Result<Tensor> { Ok((pixels.flatten_from(1)?.sum(1)? * 0.0)?) };
        Ok(zeros()?)
    }
}

pub(crate) const DATA: &str = "data.path = \"captions.jsonl\"\n";
const DPO: &str = "objective.dpo.beta = 50.0\n";
pub(crate) const SFT: &str = "objective.sft = {}\n";
const ROLLOUT: &str = "rollout = { steps = 4, guidance_scale = 2.0 }\n";

pub(crate) fn settings(steps: u64, micro_batch: usize, accumulation: usize, lr: f64) -> String {
    format!(
        "[train]\nsteps = {steps}\nmicro_batch = {micro_batch}\naccumulation = {accumulation}\nsample_every = 0\n\
         checkpoint_every = 0\n[optimizer.adamw]\nlr = {lr}\nweight_decay = 0.0\n"
    )
}

/// Each method with several updates on what it samples, where it can.
fn methods() -> Vec<(&'static str, String)> {
    let reuse = "reuse = { updates = 3 }\n";
    vec![
        (
            "trajectory_pairs",
            format!("{DPO}[method.trajectory_pairs]\n{ROLLOUT}{reuse}"),
        ),
        (
            "step_aware",
            format!("{DPO}[method.step_aware]\n{ROLLOUT}{reuse}candidates = 3\nthreshold = 0.0\nstart_step = 1\n"),
        ),
        (
            "step_aware_inner",
            format!(
                "{DPO}[method.step_aware]\n{ROLLOUT}{reuse}candidates = 2\nthreshold = 0.0\nstart_step = 0\ninner_steps = 3\n"
            ),
        ),
        (
            "step_aware_guided",
            format!(
                "{DPO}[method.step_aware]\n{ROLLOUT}{reuse}candidates = 2\nthreshold = 0.0\nstart_step = 1\n\
                 continue_from = \"best\"\ngradient_guidance.normalized = {{ strength = 0.3 }}\n"
            ),
        ),
        (
            "policy_gradient",
            format!(
                "{SFT}[method.policy_gradient]\n{ROLLOUT}reuse = {{ updates = 3, fraction = 0.8 }}\nimages_per_prompt = 2\n\
                 clip_range = 0.1\nadvantages.per_prompt = {{ buffer_size = 4, min_count = 2 }}\n"
            ),
        ),
        (
            "direct_reward",
            format!("{SFT}[method.direct_reward]\n{ROLLOUT}gradient.truncated = {{ mean = 2.0, deviation = 1.0 }}\n"),
        ),
        (
            "direct_divergence",
            format!(
                "{SFT}[reference.adapter_off]\n[method.direct_reward]\n{ROLLOUT}gradient.last = {{ steps = 3 }}\n\
                 divergence = {{ beta = 0.5, kind = \"js\" }}\n"
            ),
        ),
    ]
}

impl World {
    fn rewarded(&self, output: &str, text: &str, reward: Arc<dyn Reward>) -> (DiffusionMethod, LoopConfig) {
        let recipe = self.recipe(output, &format!("{DATA}{text}"));
        let method = prepare_with_reward(&recipe, reward, &mut Reporter::silent()).unwrap();
        (method, LoopConfig::from_recipe(&recipe).unwrap())
    }

    /// Why a method with a program's own reward is refused before it begins.
    fn unprepared(&self, text: &str, reward: Arc<dyn Reward>) -> String {
        let recipe = self.recipe(
            "unprepared",
            &format!("{DATA}{text}[train]\nsteps = 1\nsample_every = 0\n"),
        );
        prepare_with_reward(&recipe, reward, &mut Reporter::silent())
            .unwrap_err()
            .to_string()
    }

    fn train_red(&self, output: &str, text: &str) -> Vec<MetricsRow> {
        let (method, config) = self.rewarded(output, text, Arc::new(Redness));
        train(
            &method,
            &config,
            &mut Silent,
            &AtomicBool::new(false),
            ResumeMode::Fresh,
        )
        .unwrap();
        rows(&config.output)
    }
}

fn rows(output: &Path) -> Vec<MetricsRow> {
    read_metrics(&RunDirectory::new(output).metrics()).unwrap()
}

#[test]
fn a_run_stopped_between_updates_on_what_it_sampled_goes_on_bit_for_bit() {
    let world = World::new();
    for (name, method) in methods() {
        let text = format!("{DATA}{method}{}", settings(8, 2, 1, 0.01));
        let recipe = world.recipe(name, &text);
        let config = LoopConfig::from_recipe(&recipe).unwrap();
        let build = || prepare_with_reward(&recipe, Arc::new(Redness), &mut Reporter::silent());
        let verify = VerifyConfig {
            steps: 7,
            stop_after: 4,
            directory: world.path(&format!("{name}-verified")),
        };
        let report = verify_resume(build, &config, &verify, &mut Silent).unwrap();
        assert!(report.is_exact(), "{name}: {report:#?}");
        // Three updates on each batch: step 7 is the first on the third, which is not done with then.
        let keeps = report
            .comparisons
            .iter()
            .any(|comparison| comparison.what == "state of the method");
        assert_eq!(keeps, !name.starts_with("direct"), "{name}");
    }
}

#[test]
fn accumulation_changes_nothing() {
    let world = World::new();
    for (name, method) in methods() {
        let run = |cut: &str, micro_batch, accumulation| {
            let text = format!("{method}{}", settings(4, micro_batch, accumulation, 0.003));
            world.train_red(&format!("{name}-{cut}"), &text)
        };
        let (whole, parts) = (run("whole", 2, 1), run("parts", 1, 2));
        for (a, b) in whole.iter().zip(&parts) {
            let relative = |a: f64, b: f64| (a - b).abs() / a.abs().max(1e-3);
            assert!(
                relative(a.loss, b.loss) < 1e-3,
                "{name} step {}: {} {}",
                a.step,
                a.loss,
                b.loss
            );
            assert!(
                relative(a.grad_norm, b.grad_norm) < 5e-3,
                "{name} step {}: {} {}",
                a.step,
                a.grad_norm,
                b.grad_norm
            );
        }
        assert_eq!(whole.len(), 4);
    }
}

/// The adapter begins at nothing, so that the policy is its reference, and is the policy that sampled.
#[test]
fn the_first_update_starts_where_the_formulas_do() {
    let world = World::new();
    for (name, method) in methods() {
        let text = format!("{method}{}", settings(1, 2, 1, 0.01));
        let (method, _) = world.rewarded("first", &text, Arc::new(Redness));
        let items = [(0, 0), (1, 1), (2, 2)];
        let output = method.step(&batch(1, &items)).unwrap();
        let mean = |key: &str| {
            let weighted = output.weighted[key];
            weighted.sum / weighted.weight
        };
        let loss = f64::from(output.losses.mean_all().unwrap().to_scalar::<f32>().unwrap());
        match name {
            "policy_gradient" => assert!(mean("kl") < 1e-9 && mean("clip_ratio") == 0.0, "{name}"),
            "direct_reward" => assert!((loss + mean("reward")).abs() < 1e-6, "{loss}"),
            "direct_divergence" => assert!((loss + mean("reward")).abs() < 1e-6 && mean("divergence").abs() < 1e-9),
            _ => {
                assert!((loss - std::f64::consts::LN_2).abs() < 1e-6, "{name}: {loss}");
                assert!(mean("kl") < 1e-12 && mean("rewards/margins").abs() < 1e-5);
                assert!(output.totals["pairs"] > 0.0);
            }
        }
        assert!(mean("reward_std") > 0.0, "{name}");
        // Asked again, it answers the same, and does not sample anew.
        let again = method.step(&batch(1, &items)).unwrap();
        assert_eq!(
            again.losses.to_vec1::<f32>().unwrap(),
            output.losses.to_vec1::<f32>().unwrap()
        );
        let is_told_once = !again.weighted.contains_key("reward");
        assert_eq!(is_told_once, !name.starts_with("direct"), "{name}");
    }
}

/// Name, optimizer steps, prompts of a step, and sections of runs that are long enough to learn.
fn learners() -> Vec<(&'static str, u64, usize, String)> {
    let rollout = "rollout = { steps = 4, guidance_scale = 1.0 }\n";
    let pairs = "objective.dpo.beta = 10.0\n";
    let direct = |gradient: &str| format!("{SFT}[method.direct_reward]\n{rollout}gradient.{gradient}\n");
    vec![
        (
            "trajectory_pairs",
            15,
            12,
            format!("{pairs}[method.trajectory_pairs]\n{rollout}reuse = {{ updates = 1 }}\n"),
        ),
        (
            "step_aware",
            10,
            6,
            format!("{pairs}[method.step_aware]\n{rollout}threshold = 0.0\nstart_step = 0\n"),
        ),
        (
            "step_aware_guided",
            10,
            6,
            format!(
                "{pairs}[method.step_aware]\n{rollout}threshold = 0.0\nstart_step = 0\n\
                 gradient_guidance.normalized = {{ strength = 0.5 }}\n"
            ),
        ),
        (
            "policy_gradient",
            9,
            3,
            format!(
                "{SFT}[method.policy_gradient]\n{rollout}images_per_prompt = 32\nclip_range = 0.1\nadvantages.batch = {{}}\n"
            ),
        ),
        ("direct_last", 6, 3, direct("last = { steps = 2 }")),
        ("direct_low_variance", 6, 3, direct("low_variance = { draws = 2 }")),
        // A latent consistency model's sampler, as in ROCM: few steps and a distance to the reference. The first steps of a network that is no such
        // model amplify whatever it says, so that the last one alone has a gradient.
        (
            "direct_consistency",
            6,
            3,
            format!(
                "{SFT}[reference.frozen]\n[method.direct_reward]\nregularization = 0.01\ngradient.last = {{ steps = 1 }}\n\
                 rollout = {{ sampler = \"lcm\", steps = 4, guidance_scale = 1.0, eta = 0.0 }}\n"
            ),
        ),
        (
            "direct_divergence",
            6,
            3,
            format!(
                "reference.frozen = {{}}\n{}divergence = {{ beta = 0.001, kind = {{ alpha = 0.5 }} }}\n",
                direct("last = { steps = 2 }")
            ),
        ),
        ("direct_single", 6, 3, direct("single = { first = 2, last = 3 }")),
    ]
}

/// Each method makes images redder than they are without training, from the same noise: the gain is of the method, not of the draw.
#[test]
fn rewards_rise() {
    let world = World::new();
    for (name, steps, prompts, method) in learners() {
        let method = format!("adapter.full = {{}}\n{method}");
        let run = |kind: &str, lr| {
            let text = format!("{method}{}", settings(steps, prompts, 1, lr));
            let rewards: Vec<f64> = world
                .train_red(&format!("{name}-{kind}"), &text)
                .iter()
                .filter_map(|row| row.metrics.get("reward").copied())
                .collect();
            rewards
        };
        let (idle, trained) = (run("idle", 0.0), run("trained", 1e-3));
        assert_eq!(idle.len(), trained.len());
        let gains: Vec<f64> = idle
            .iter()
            .zip(&trained)
            .map(|(idle, trained)| trained - idle)
            .collect();
        let late = &gains[gains.len() * 2 / 3..];
        let mean = late.iter().sum::<f64>() / late.len() as f64;
        let deviation = (late.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / late.len() as f64).sqrt();
        println!("{name}: gain {mean:.4} ± {deviation:.4}, idle {:.4}", idle[0]);
        assert!(
            mean > 2.0 * deviation / (late.len() as f64).sqrt() && mean > 0.0,
            "{name}: {gains:?}"
        );
    }
}

#[test]
fn what_no_judge_tells_apart_teaches_nothing() {
    let world = World::new();
    for (name, method) in methods().into_iter().take(2) {
        let text = format!("{method}{}", settings(3, 2, 1, 0.01));
        let (method, config) = world.rewarded(name, &text, Arc::new(Indifference));
        let before = method.params().snapshot().unwrap();
        train(
            &method,
            &config,
            &mut Silent,
            &AtomicBool::new(false),
            ResumeMode::Fresh,
        )
        .unwrap();
        for (parameter, tensor) in method.params().snapshot().unwrap() {
            let difference = (tensor - &before[&parameter])
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap();
            assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{name}: {parameter}");
        }
        let last = &rows(&config.output)[2];
        assert_eq!(
            (last.loss, last.grad_norm, last.metrics["pairs"]),
            (0.0, 0.0, 0.0),
            "{name}"
        );
        let unlike = if name == "trajectory_pairs" { "ties" } else { "unsure" };
        assert!(last.metrics[unlike] > 0.0, "{name}");
    }
}

#[test]
fn every_reference_serves_and_follows() {
    let world = World::new();
    let run = |name: &str, reference: &str| {
        let text = format!("{}{reference}{}", methods()[0].1, settings(6, 2, 1, 0.01));
        world.train_red(name, &text)
    };
    let off = run("off", "[reference.adapter_off]\n");
    let frozen = run("frozen", "[reference.frozen]\n");
    let moving = run("moving", "[reference.ema]\nsync_steps = 2\n");
    for (a, b) in off.iter().zip(&frozen) {
        assert!((a.loss - b.loss).abs() < 1e-5 * a.loss, "{} {}", a.loss, b.loss);
    }
    assert_eq!(off[1].loss, moving[1].loss);
    assert_ne!(off[3].loss, moving[3].loss);
    let regularized = "[method.direct_reward]\nrollout = { steps = 4 }\nregularization = 0.5\n";
    let text = format!("{SFT}{regularized}{}", settings(3, 2, 1, 0.05));
    let rows = world.train_red("regularized", &text);
    assert!(rows[0].metrics["penalty"] == 0.0 && rows[2].metrics["penalty"] > 0.0);
}

/// Sections that contradict themselves or each other, and the key at fault.
#[expect(clippy::too_many_lines, reason = "a table")]
fn nonsense() -> Vec<(String, &'static str)> {
    let pairs = "[method.trajectory_pairs]\njudge = \"verifier\"\n";
    let aware = "[method.step_aware]\njudge = \"verifier\"\n";
    let gradient = "[method.policy_gradient]\njudge = \"verifier\"\n";
    let direct = "[method.direct_reward]\n";
    vec![
        (
            format!("{DPO}{pairs}rollout.eta = 0.0\n"),
            "method.trajectory_pairs.rollout.eta",
        ),
        (
            format!("{DPO}{pairs}rollout.steps = 0\n"),
            "method.trajectory_pairs.rollout.steps",
        ),
        (
            format!("{DPO}{pairs}clip_range = 1.0\n"),
            "method.trajectory_pairs.clip_range",
        ),
        (
            format!("{DPO}{pairs}reuse.updates = 0\n"),
            "method.trajectory_pairs.reuse.updates",
        ),
        (
            format!("{DPO}{pairs}reuse.fraction = 0.0\n"),
            "method.trajectory_pairs.reuse.fraction",
        ),
        (format!("objective.mapo = {{}}\n{pairs}"), "objective.mapo"),
        (format!("{SFT}{pairs}"), "objective.sft"),
        (
            format!("objective.hinge.beta = 1.0\n{pairs}[reference.cached]\n"),
            "reference.cached",
        ),
        (format!("{DPO}{aware}candidates = 1\n"), "method.step_aware.candidates"),
        (format!("{DPO}{aware}start_step = 20\n"), "method.step_aware.start_step"),
        (
            format!("{DPO}{aware}inner_steps = 0\n"),
            "method.step_aware.inner_steps",
        ),
        (format!("{DPO}{aware}threshold = 1.0\n"), "method.step_aware.threshold"),
        (format!("{DPO}{gradient}"), "objective.dpo"),
        (
            format!("{SFT}{gradient}[reference.adapter_off]\n"),
            "reference.adapter_off",
        ),
        (
            format!("{SFT}{gradient}clip_range = 0.0\n"),
            "method.policy_gradient.clip_range",
        ),
        (
            format!("{SFT}{gradient}advantages.per_prompt = {{ buffer_size = 4, min_count = 1 }}\n"),
            "method.policy_gradient.advantages.per_prompt.min_count",
        ),
        (
            format!("{SFT}{direct}judge = \"verifier\"\n"),
            "method.direct_reward.judge",
        ),
        (
            format!("{SFT}{direct}gradient.last.steps = 21\n"),
            "method.direct_reward.gradient.last.steps",
        ),
        (
            format!("{SFT}{direct}gradient.single = {{ first = 3, last = 20 }}\n"),
            "method.direct_reward.gradient.single.last",
        ),
        (
            format!("{SFT}{direct}gradient.truncated = {{ mean = 20.0, deviation = 5.0 }}\n"),
            "method.direct_reward.gradient.truncated.mean",
        ),
        (
            format!("{SFT}{direct}regularization = 0.1\n[reference.none]\n"),
            "reference.none",
        ),
        (
            format!("{SFT}{direct}loss.hinge = {{ target = 2.0, weight = 0.0 }}\n"),
            "method.direct_reward.loss.hinge.weight",
        ),
        (
            format!("{SFT}{direct}divergence = {{ beta = 0.0, kind = \"js\" }}\n[reference.adapter_off]\n"),
            "method.direct_reward.divergence.beta",
        ),
        (
            format!("{SFT}{direct}divergence = {{ beta = 1.0, kind = {{ alpha = 1.0 }} }}\n[reference.adapter_off]\n"),
            "method.direct_reward.divergence.kind.alpha",
        ),
        (
            format!(
                "{SFT}{direct}divergence = {{ beta = 1.0, kind = \"js\" }}\nrollout.eta = 0.0\n[reference.adapter_off]\n"
            ),
            "method.direct_reward.rollout.eta",
        ),
        (
            format!(
                "{SFT}{direct}divergence = {{ beta = 1.0, kind = \"js\" }}\ngradient.low_variance.draws = 2\n\
                 [reference.adapter_off]\n"
            ),
            "method.direct_reward.gradient",
        ),
        (
            format!("{SFT}{direct}divergence = {{ beta = 1.0, kind = \"js\" }}\n[reference.ema]\n"),
            "reference.ema",
        ),
        (
            format!("{SFT}{direct}divergence = {{ beta = 1.0, kind = \"js\" }}\n[reference.none]\n"),
            "method.direct_reward.divergence",
        ),
        (
            format!("{DPO}{aware}gradient_guidance.gradient = {{ strength = 1.0 }}\n"),
            "method.step_aware.judge",
        ),
        (
            format!("{DPO}[method.step_aware]\ngradient_guidance.normalized = {{ strength = 0.0 }}\n"),
            "method.step_aware.gradient_guidance.normalized.strength",
        ),
        (
            format!("{DPO}[method.step_aware]\ngradient_guidance.gradient = {{ strength = 1.0 }}\ninner_steps = 2\n"),
            "method.step_aware.inner_steps",
        ),
        (format!("{DPO}{pairs}unknown = 1\n"), "unknown"),
    ]
}

#[test]
fn what_makes_no_sense_is_refused_by_key() {
    let world = World::new();
    let pairs = "[method.trajectory_pairs]\njudge = \"verifier\"\n";
    for (text, key) in nonsense() {
        let text = format!("{DATA}{text}[train]\nsteps = 1\n");
        let error = world.try_recipe("refused", &text).unwrap_err();
        assert!(error.is_configuration(), "{key}: {error}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    // What needs the files, but no network.
    let prepared = [
        (
            format!("{DPO}[method.trajectory_pairs]\n"),
            "method.trajectory_pairs.judge",
        ),
        (format!("{DPO}{pairs}rollout.sampler = \"euler\"\n"), "eta"),
        (
            format!("{DPO}{pairs}rollout = {{ sampler = \"euler\", eta = 0.0 }}\n"),
            "euler",
        ),
    ];
    let lcm = "rollout = { sampler = \"lcm\", eta = 0.0, guidance_scale = 1.0, steps = 4 }\n";
    let error = world.unprepared(
        &format!(
            "{SFT}[reference.adapter_off]\n[method.direct_reward]\n{lcm}divergence = {{ beta = 1.0, kind = \"js\" }}\n"
        ),
        Arc::new(Redness),
    );
    assert!(error.contains("always 0") && error.contains("lcm"), "{error}");
    let error = world.unprepared(
        &format!("{DPO}[method.step_aware]\ngradient_guidance.gradient = {{ strength = 1.0 }}\n"),
        Arc::new(Indifference),
    );
    assert!(
        error.contains("method.step_aware.judge") && error.contains("no gradient"),
        "{error}"
    );
    for (text, named) in prepared {
        let recipe = world.recipe(
            "unprepared",
            &format!("{DATA}{text}[train]\nsteps = 1\nsample_every = 0\n"),
        );
        let error = diptych_diffusion::prepare(&recipe, &mut Reporter::silent()).unwrap_err();
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

/// The recipes of these methods begin on the checkpoint they name: sampled, judged, updated, evaluated.
#[test]
#[ignore = "about a minute on the shipped checkpoint: cargo test -p diptych-diffusion --test it -- --ignored recipes_begin"]
fn recipes_begin() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = tempfile::tempdir().unwrap();
    for name in ["d3po", "spo", "tailorpo", "ddpo"] {
        let recipe = root.join(format!("examples/recipes/shapes_diffusion_{name}.toml"));
        let overrides = [
            format!("model.path={}", root.join("models/shapes-diffusion").display()),
            format!("data.path={}", root.join("datasets/shapes-pairs/pairs.jsonl").display()),
            format!("run.output={}", directory.path().join(name).display()),
            "run.device=cpu".into(),
            "train.steps=3".into(),
            "train.micro_batch=4".into(),
            "train.sample_every=0".into(),
            "eval.win_rate.num_prompts=4".into(),
        ];
        let recipe = Recipe::read(&recipe, &overrides).unwrap();
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        let rows = rows(&outcome.output);
        assert_eq!((rows.len(), outcome.win_rate.is_some()), (3, true), "{name}");
        println!(
            "{name}: {:?} in {:.1} s",
            rows[0].metrics, outcome.summary.wall_time_secs
        );
        assert!(rows[0].metrics["reward_std"] > 0.0, "{name}");
        assert!(rows.iter().any(|row| row.grad_norm > 0.0), "{name}");
    }
}

/// Pushed candidates are further from where the step alone leads, and the move is logged.
#[test]
fn guidance_moves_as_far_as_it_is_told_and_changes_what_is_learned_from() {
    let world = World::new();
    let step = |more: &str| {
        let text = format!(
            "{DPO}[method.step_aware]\n{ROLLOUT}threshold = 0.0\nstart_step = 0\ncandidates = 2\n{more}{}",
            settings(1, 2, 1, 0.01)
        );
        let (method, _) = world.rewarded("guided", &text, Arc::new(Redness));
        let output = method.step(&batch(1, &[(0, 0), (1, 1)])).unwrap();
        let backward = diptych_tensor::backward(&output.losses.mean_all().unwrap(), method.params()).unwrap();
        let norm: f64 = backward
            .iter()
            .map(|(_, gradient)| f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()))
            .sum();
        (output, norm.sqrt())
    };
    let (plain, of_plain) = step("");
    let (pushed, of_pushed) = step("gradient_guidance.normalized = { strength = 0.7 }\n");
    let guidance = pushed.weighted["guidance"];
    assert!((guidance.sum / guidance.weight - 0.7).abs() < 1e-3, "{guidance:?}");
    assert!(!plain.weighted.contains_key("guidance"));
    assert_eq!(plain.weighted["reward"].sum, pushed.weighted["reward"].sum);
    // The pull between two latents grows with their distance.
    assert!(of_pushed > of_plain, "{of_pushed} {of_plain}");
    // Trajectories that go on from the better candidates are rewarded more in the end.
    let (best, _) = step("continue_from = \"best\"\n");
    let (guided, _) = step("continue_from = \"best\"\ngradient_guidance.normalized = { strength = 0.7 }\n");
    let mean = |output: &diptych_train::StepOutput| output.weighted["reward"].sum / output.weighted["reward"].weight;
    assert!(mean(&best) > mean(&plain), "{} {}", mean(&best), mean(&plain));
    assert!(mean(&guided) > mean(&best), "{} {}", mean(&guided), mean(&best));
}

/// A strong divergence holds the policy at its reference, where the reward alone leads it away.
#[test]
fn a_divergence_holds_the_policy_back() {
    let world = World::new();
    let run = |name: &str, beta: f64| {
        let text = format!(
            "{SFT}[reference.adapter_off]\n[method.direct_reward]\n{ROLLOUT}gradient.last = {{ steps = 3 }}\n\
             divergence = {{ beta = {beta:?}, kind = \"reverse_kl\" }}\n{}",
            settings(8, 3, 1, 0.01)
        );
        let rows = world.train_red(name, &text);
        rows.last().unwrap().metrics["divergence"]
    };
    let (free, held) = (run("free", 1e-9), run("held", 100.0));
    assert!(free > 0.0 && held < 0.5 * free, "{free} {held}");
}
