//! The methods that learn from stored preferences: two ways to the same numbers, directions, learning.

use diptych_data::{ImagePair, ImageSource, write_pairs};
use diptych_diffusion::{NetworkOptions, Pipeline, SampleConfig, generate};
use diptych_tensor::{DType, Device};
use diptych_train::{Item, Method, MetricsRow, RunDirectory, read_metrics};
use serde_json::{Value, json};

use crate::world::{PROMPTS, World, batch, image};

/// A judge's scores of the images of each pair; in the last one it contradicts the label.
const SCORES: [[f64; 2]; 4] = [[0.9, 0.6], [0.8, 0.1], [0.5, 0.4], [0.3, 0.35]];

/// Records of every kind in a world.
pub(crate) trait Preferences {
    /// Writes `scored.jsonl` (pairs of which the chosen image has the greater score), `contradicted.jsonl` (the scores above),
    /// `swapped.jsonl`, `labels.jsonl` and `ranked.jsonl`, all of the images of `pairs.jsonl`.
    fn write_preferences(&self);

    /// The logged rows of a run.
    fn rows(&self, output: &str, text: &str) -> Vec<MetricsRow>;
}

impl Preferences for World {
    fn write_preferences(&self) {
        let source = |number| ImageSource::from_image(&image(number)).unwrap();
        let pair = |number: usize, [chosen, rejected]: [usize; 2], scores: Option<[f64; 2]>| {
            let id = format!("pair-{number}");
            let mut pair = ImagePair::new(
                id,
                PROMPTS[number],
                source(2 * number + chosen),
                source(2 * number + rejected),
            );
            pair.chosen_score = scores.map(|scores| scores[0]);
            pair.rejected_score = scores.map(|scores| scores[1]);
            pair
        };
        let all = |sides, scores: fn(usize) -> Option<[f64; 2]>| -> Vec<ImagePair> {
            (0..4).map(|number| pair(number, sides, scores(number))).collect()
        };
        let ordered = |number: usize| Some([SCORES[number][0], SCORES[number][1].min(0.25)]);
        for (name, pairs) in [
            ("scored", all([0, 1], ordered)),
            ("contradicted", all([0, 1], |number| Some(SCORES[number]))),
            ("swapped", all([1, 0], |_| None)),
        ] {
            write_pairs(&self.path(&format!("{name}.jsonl")), &pairs).unwrap();
        }
        for number in 0..8 {
            image(number).save(self.path(&format!("image-{number}.png"))).unwrap();
        }
        let file = |number: usize| format!("image-{number}.png");
        let labels: Vec<Value> = (0..8)
            .map(|number| json!({ "prompt": PROMPTS[number / 2], "image": file(number), "label": number % 2 == 0 }))
            .collect();
        self.write_rows("labels.jsonl", &labels);
        let ranked: Vec<Value> = (0..4)
            .map(|number| {
                let response = |image, score| json!({ "image": file(image), "score": score });
                let (own, other) = (2 * number, (2 * number + 2) % 8);
                json!({ "prompt": PROMPTS[number], "responses": [
                    response(own + 1, 0.25), response(own, 0.75), response(other, 0.5),
                ] })
            })
            .collect();
        self.write_rows("ranked.jsonl", &ranked);
    }

    fn rows(&self, output: &str, text: &str) -> Vec<MetricsRow> {
        read_metrics(&RunDirectory::new(&self.run(output, text).output).metrics()).unwrap()
    }
}

impl World {
    fn write_rows(&self, name: &str, rows: &[Value]) {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(self.path(name), lines.join("\n") + "\n").unwrap();
    }
}

fn world() -> World {
    let world = World::new();
    world.write_preferences();
    world
}

const DPO: &str = "data.path = \"pairs.jsonl\"\nobjective.dpo.beta = 50.0\n";

fn train(steps: u64, micro_batch: usize, accumulation: usize) -> String {
    format!(
        "[train]\nsteps = {steps}\nmicro_batch = {micro_batch}\naccumulation = {accumulation}\nsample_every = 0\n\
         checkpoint_every = 0\n[optimizer.adamw]\nlr = 0.01\n"
    )
}

/// Largest difference of the losses and gradient norms of two runs, relative to their size.
fn difference(a: &[MetricsRow], b: &[MetricsRow]) -> f64 {
    assert_eq!(a.len(), b.len());
    let relative = |a: f64, b: f64| (a - b).abs() / a.abs().max(1e-12);
    a.iter()
        .zip(b)
        .map(|(a, b)| relative(a.loss, b.loss).max(relative(a.grad_norm, b.grad_norm)))
        .fold(0.0, f64::max)
}

const OPTIONS: NetworkOptions = NetworkOptions {
    device: Device::Cpu,
    dtype: DType::F32,
    seed: 0,
};

#[test]
fn a_reference_that_follows_at_once_is_the_policy_and_one_that_never_does_is_frozen() {
    let world = world();
    let ema = |alpha: f64, sync: u64| {
        format!(
            "{DPO}reference.ema = {{ mixup_alpha = {alpha:?}, sync_steps = {sync} }}\n{}",
            train(4, 2, 1)
        )
    };
    for row in world.rows("at-once", &ema(1.0, 1)) {
        assert!((row.loss - std::f64::consts::LN_2).abs() < 1e-6, "{row:?}");
    }
    let frozen = world.rows("frozen", &format!("{DPO}reference.frozen = {{}}\n{}", train(4, 2, 1)));
    let never = world.rows("never", &ema(0.5, 100));
    assert!(difference(&frozen, &never) < 1e-5);
    let half = world.rows("half", &ema(0.5, 1));
    assert!(
        difference(&frozen[..2], &half[..2]) > 1e-4,
        "the reference did not move"
    );
    // With all parameters trained, it is the whole network that is lent.
    let full = |reference: &str, name: &str| {
        let text = format!("{DPO}adapter.full = {{}}\nreference.{reference}\n{}", train(3, 2, 1));
        world.rows(name, &text.replace("lr = 0.01", "lr = 0.0001"))
    };
    let moving = full("ema = { mixup_alpha = 0.5, sync_steps = 100 }", "full-never");
    assert!(difference(&full("frozen = {}", "full-frozen"), &moving) < 1e-5);
}

#[test]
fn another_checkpoint_or_adapter_is_a_reference() {
    let world = world();
    let frozen = world.rows("frozen", &format!("{DPO}reference.frozen = {{}}\n{}", train(3, 2, 1)));
    let same = world.rows(
        "same",
        &format!("{DPO}reference.checkpoint.path = \"model\"\n{}", train(3, 2, 1)),
    );
    assert!(difference(&frozen, &same) < 1e-6);
    let adapter = world.path("frozen/final");
    let of_adapter = format!("{DPO}reference.checkpoint.path = '{}'\n", adapter.display());
    let method = world.method(&format!("{of_adapter}{}", train(1, 2, 1)));
    let apart = method
        .step(&batch(1, &[(0, 0)]))
        .unwrap()
        .losses
        .to_vec1::<f32>()
        .unwrap()[0];
    assert!((f64::from(apart) - std::f64::consts::LN_2).abs() > 1e-4, "{apart}");
    let started = format!(
        "{of_adapter}adapter.lora.init = '{}'\n{}",
        adapter.display(),
        train(1, 2, 1)
    );
    let together = world.method(&started).step(&batch(1, &[(0, 0)])).unwrap();
    let together = together.losses.to_vec1::<f32>().unwrap()[0];
    assert!(
        (f64::from(together) - std::f64::consts::LN_2).abs() < 1e-6,
        "{together}"
    );
    let schedule = world.path("model/scheduler/scheduler_config.json");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&schedule).unwrap()).unwrap();
    other["prediction_type"] = json!("v_prediction");
    world.copy("model", "other");
    std::fs::write(world.path("other/scheduler/scheduler_config.json"), other.to_string()).unwrap();
    let error = world.refusal(&format!(
        "{DPO}reference.checkpoint.path = \"other\"\n{}",
        train(1, 2, 1)
    ));
    assert!(
        error.contains("reference.checkpoint.path") && error.contains("prediction type"),
        "{error}"
    );
}

impl World {
    pub(crate) fn copy(&self, from: &str, to: &str) {
        for entry in std::fs::read_dir(self.path(from)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let (source, target) = (format!("{from}/{name}"), format!("{to}/{name}"));
            if self.path(&source).is_dir() {
                self.copy(&source, &target);
            } else {
                std::fs::create_dir_all(self.path(to)).unwrap();
                std::fs::copy(self.path(&source), self.path(&target)).unwrap();
            }
        }
    }

    pub(crate) fn refusal(&self, text: &str) -> String {
        let recipe = match self.try_recipe("refused", text) {
            Ok(recipe) => recipe,
            Err(error) => return error.to_string(),
        };
        let error = diptych_diffusion::prepare(&recipe, &mut diptych_train::Reporter::silent()).unwrap_err();
        error.to_string()
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_cannot_be_kept_or_used_is_refused_by_its_key() {
    let world = world();
    let cases = [
        ("pairs", "dpo.beta = 1.0\nreference.cached = {}", "reference.cached"),
        (
            "labels",
            "kto.beta = 1.0\nmethod.unpaired = {}\nreference.cached = {}",
            "reference.cached",
        ),
        (
            "pairs",
            "smpo = { beta = 1.0, min_score = 0.0, max_score = 1.0 }",
            "chosen_score",
        ),
        ("contradicted", "odpo = { beta = 1.0, alpha = 1.0 }", "pair-3"),
        (
            "scored",
            "odpo = { beta = 1.0, alpha = 1.0 }\nmethod.offline_pairs.labels = \"swapped\"",
            "method.offline_pairs.labels",
        ),
        (
            "pairs",
            "dpo.beta = 1.0\nmethod.offline_pairs.curriculum = {}",
            "chosen_score",
        ),
        (
            "scored",
            "dpo.beta = 1.0\ndata.shuffle = false\nmethod.offline_pairs.curriculum = {}",
            "data.shuffle",
        ),
        (
            "scored",
            "dpo.beta = 1.0\nmethod.offline_pairs.curriculum.num_chunks = 0",
            "num_chunks",
        ),
        (
            "pairs",
            "dpo.beta = 1.0\nmethod.offline_pairs.noise.inverted.steps = 0",
            "noise.inverted.steps",
        ),
        (
            "labels",
            "bco.beta = 1.0\nmethod.unpaired.baseline = \"mismatched\"",
            "method.unpaired.baseline",
        ),
        (
            "labels",
            "kto.beta = 1.0\nmethod.unpaired.positive_ratio = 1.0",
            "positive_ratio",
        ),
        ("captions", "kto.beta = 1.0\nmethod.unpaired = {}", "labelled images"),
        ("labels", "rank_dpo.beta = 1.0\nmethod.ranked = {}", "ranked images"),
        (
            "pairs",
            "rank_dpo.beta = 1.0\nmethod.ranked.scores = \"given\"",
            "chosen_score",
        ),
        ("pairs", "kto.beta = 1.0", "objective.kto"),
        ("pairs", "dpo.beta = 1.0\nmethod.unpaired = {}", "objective.dpo"),
    ];
    assert_eq!(cases.len(), 16);
    for (data, text, key) in cases {
        let error = world.refusal(&format!(
            "data.path = \"{data}.jsonl\"\ntrain.steps = 1\nobjective.{text}\n"
        ));
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn swapped_labels_are_swapped_images() {
    let world = world();
    let mean = "posterior = \"mean\"\n";
    let swapped = format!(
        "{DPO}[method.offline_pairs]\nlabels = \"swapped\"\n{mean}{}",
        train(3, 2, 1)
    );
    let given = format!(
        "{}[method.offline_pairs]\n{mean}{}",
        DPO.replace("pairs.jsonl", "swapped.jsonl"),
        train(3, 2, 1)
    );
    assert!(difference(&world.rows("a", &swapped), &world.rows("b", &given)) < 1e-6);
}

#[test]
fn independent_noise_tells_equal_images_apart_and_shared_noise_does_not() {
    let world = world();
    let source = ImageSource::from_image(&image(3)).unwrap();
    write_pairs(
        &world.path("equal.jsonl"),
        &[ImagePair::new("0", PROMPTS[0], source.clone(), source)],
    )
    .unwrap();
    let difference = |noise: &str| {
        let text = format!(
            "data.path = \"equal.jsonl\"\nobjective.mapo = {{}}\n[method.offline_pairs]\nposterior = \"mean\"\n{noise}{}",
            train(1, 1, 1)
        );
        let metrics = world.method(&text).step(&batch(1, &[(0, 0)])).unwrap().metrics;
        (metrics["mse/chosen"][0] - metrics["mse/rejected"][0]).abs()
    };
    assert!(difference("noise = \"shared\"\n") < 1e-6);
    assert!(difference("") < 1e-6);
    assert!(difference("noise = \"independent\"\n") > 1e-3);
    // Inversion starts from the image alone.
    assert!(difference("noise.inverted = {}\n") < 1e-6);
}

/// Each example is inverted to its own noise level, whatever stands beside it.
#[test]
fn inverted_noise_does_not_depend_on_the_batch() {
    let world = world();
    let text = |micro_batch, accumulation| {
        format!(
            "{DPO}[method.offline_pairs.noise.inverted]\nsteps = 5\n{}",
            train(3, micro_batch, accumulation)
        )
    };
    let (whole, parts) = (world.rows("whole", &text(4, 1)), world.rows("parts", &text(1, 4)));
    assert!(difference(&whole, &parts) < 1e-3, "{}", difference(&whole, &parts));
    let method = world.method(&text(4, 1));
    let metrics = method
        .step(&batch(2, &[(0, 0), (1, 1), (2, 2), (3, 3)]))
        .unwrap()
        .metrics;
    // Timesteps of `DDIMInverseScheduler` with 5 steps of 1000, the noisiest standing for whatever is drawn beyond.
    for timestep in &metrics["timesteps/mean"] {
        assert!((timestep - 1.0) % 200.0 == 0.0 || timestep % 200.0 == 0.0, "{timestep}");
    }
    let plain = world.method(&format!("{DPO}{}", train(1, 4, 1)));
    let drawn = plain
        .step(&batch(2, &[(0, 0), (1, 1), (2, 2), (3, 3)]))
        .unwrap()
        .metrics;
    assert_ne!(metrics["mse/chosen"], drawn["mse/chosen"]);
    // The policy explains the noise it chose itself better than noise that was drawn.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!(mean(&metrics["mse/chosen"]) < mean(&drawn["mse/chosen"]));
}

#[test]
fn pairs_taken_apart_are_labelled_images() {
    let world = world();
    for method in [
        "posterior = \"mean\"",
        "posterior = \"mean\"\nbaseline = \"mismatched\"",
    ] {
        let text = |data: &str| {
            format!(
                "data = {{ path = \"{data}.jsonl\", shuffle = false }}\nobjective.kto.beta = 50.0\n[method.unpaired]\n{method}\n{}",
                train(3, 4, 1)
            )
        };
        let name = |data: &str| format!("{data}-{}", method.len());
        let pairs = world.rows(&name("pairs"), &text("pairs"));
        let labels = world.rows(&name("labels"), &text("labels"));
        assert!(difference(&pairs, &labels) < 1e-6);
        assert!(pairs[2].loss != pairs[0].loss);
    }
}

#[test]
fn lists_of_two_that_share_their_noise_are_pairs() {
    let world = world();
    let text = |method: &str| {
        format!(
            "data.path = \"pairs.jsonl\"\nobjective.plackett_luce.beta = 50.0\n[method.{method}]\nposterior = \"mean\"\n{}",
            train(4, 2, 1)
        )
    };
    let pairs = world.rows("pairs", &text("offline_pairs"));
    let lists = world.rows("lists", &text("ranked]\nnoise = \"shared\"\n#["));
    assert!(difference(&pairs, &lists) < 1e-5);
    let own = world.rows("own", &text("ranked"));
    assert!(
        difference(&pairs, &own) > 1e-3,
        "each image has its own noise by default"
    );
}

/// The images of a list are sorted, and scored by their wins unless the recipe takes the data's scores.
#[test]
fn a_batch_of_lists_is_its_lists() {
    let world = world();
    let text = "data.path = \"ranked.jsonl\"\nobjective.rank_dpo.beta = 50.0\nmethod.ranked = {}\ntrain.steps = 1\n";
    let method = world.method(text);
    let errors = |items: &[(usize, u64)]| method.step(&batch(3, items)).unwrap().metrics["mse/chosen"].clone();
    let together = errors(&[(0, 0), (1, 1)]);
    let apart = [errors(&[(0, 0)]), errors(&[(1, 1)])].concat();
    for (a, b) in together.iter().zip(&apart) {
        assert!((a - b).abs() < 1e-5 * a, "{a} {b}");
    }
    assert_eq!(method.num_records(), 4);
}

#[test]
fn a_curriculum_begins_with_the_widest_gap_and_names_what_it_draws() {
    let world = world();
    let text = |by: &str| {
        format!(
            "{}[method.offline_pairs.curriculum]\nby = \"{by}\"\nnum_chunks = 3\nupdate_every = 2\n{}",
            DPO.replace("pairs.jsonl", "contradicted.jsonl"),
            train(6, 2, 1)
        )
    };
    let method = world.method(&text("score_gap"));
    let item = |position| Item { index: 0, position };
    let drawn = |step| -> Vec<String> {
        (0..40)
            .map(|position| method.record_id(method.choose(0, step, item(position))))
            .collect()
    };
    // Gaps 0.3, 0.7, 0.1, -0.05: thresholds 0.45, 0.2, all.
    assert!(drawn(1).iter().all(|id| id == "pair-1"), "{:?}", drawn(1));
    assert!(drawn(3).iter().all(|id| id == "pair-0" || id == "pair-1"));
    assert!((0..4).all(|number| drawn(5).contains(&format!("pair-{number}"))));
    let rows = world.rows("curriculum", &text("score_gap"));
    let pools: Vec<f64> = rows.iter().map(|row| row.metrics["curriculum/pool"]).collect();
    assert_eq!(pools, [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
    // Among the four images of the first and last prompt, which is one, the widest gap is that of 0.9 and 0.35.
    assert_eq!(world.rows("ranks", &text("rank_gap")).len(), 6);
}

#[test]
fn guidance_can_lead_away_from_another_network() {
    let world = world();
    let adapter = {
        let text = format!("{DPO}[method.offline_pairs]\nlabels = \"swapped\"\n{}", train(4, 4, 1));
        world.run("negative", &text).output.join("final")
    };
    let model = world.path("model");
    let sample = |negative: bool, guidance_scale: f64| {
        let mut pipeline = Pipeline::load(&model, None, &OPTIONS).unwrap();
        if negative {
            pipeline = pipeline.with_negative(&model, &adapter, &OPTIONS).unwrap();
        }
        let config = SampleConfig {
            steps: 3,
            guidance_scale,
            ..SampleConfig::default()
        };
        generate(&pipeline, &[PROMPTS[0].to_owned()], &config).unwrap()
    };
    assert_ne!(sample(true, 4.0), sample(false, 4.0));
    assert_eq!(sample(true, 1.0), sample(false, 1.0), "asked without guidance");
    let mut same = Pipeline::load(&model, None, &OPTIONS).unwrap();
    let other = Pipeline::load(&model, None, &OPTIONS).unwrap();
    same.negative = Some(other.denoiser);
    let config = SampleConfig {
        steps: 3,
        guidance_scale: 4.0,
        ..SampleConfig::default()
    };
    let found = generate(&same, &[PROMPTS[0].to_owned()], &config).unwrap();
    let expected = sample(false, 4.0);
    let differences = found[0].as_raw().iter().zip(expected[0].as_raw());
    assert!(differences.map(|(a, b)| a.abs_diff(*b)).max().unwrap() <= 1);
}

/// Data, objective and method of the updates whose direction is known.
const MOVES: [(&str, &str, &str); 11] = [
    ("pairs", "dpo.beta = 200.0", "offline_pairs = {}"),
    (
        "pairs",
        "ipo = { beta = 20.0, normalization = \"sum\" }",
        "offline_pairs = {}",
    ),
    ("pairs", "dpo.beta = 200.0", "offline_pairs.labels = \"swapped\""),
    ("pairs", "dpo.beta = 200.0", "offline_pairs.noise = \"independent\""),
    ("pairs", "dpo.beta = 200.0", "offline_pairs.noise.inverted.steps = 4"),
    (
        "scored",
        "smpo = { beta = 200.0, min_score = 0.0, max_score = 1.0 }",
        "offline_pairs = {}",
    ),
    (
        "scored",
        "dpo.beta = 200.0",
        "offline_pairs.curriculum.update_every = 10",
    ),
    (
        "pairs",
        "robust_dpo = { beta = 200.0, label_smoothing = 0.1 }",
        "offline_pairs = {}",
    ),
    ("labels", "kto.beta = 200.0", "unpaired = {}"),
    ("ranked", "rank_dpo.beta = 400.0", "ranked = {}"),
    ("ranked", "plackett_luce.beta = 200.0", "ranked.noise = \"shared\""),
];

/// Where a method moves: after one small update the same draws of the same records have a lower loss, and a margin in the
/// direction of the labels.
#[test]
fn one_update_moves_towards_the_labels() {
    let world = world();
    for (number, (data, objective, method)) in MOVES.into_iter().enumerate() {
        // A curriculum draws its records itself.
        let order = if method.contains("curriculum") {
            ""
        } else {
            "data.shuffle = false\n"
        };
        let text = format!(
            "data.path = \"{data}.jsonl\"\n{order}objective.{objective}\nmethod.{method}\n{}",
            train(1, 4, 1).replace("lr = 0.01", "lr = 0.001")
        );
        let before = &world.rows(&format!("move-{number}"), &text)[0];
        assert!(
            before.metrics["rewards/margins"].abs() < 1e-6,
            "a policy equal to its reference"
        );
        let adapter = world.path(&format!("move-{number}/final"));
        let moved = world.method(&format!("adapter.lora.init = '{}'\n{text}", adapter.display()));
        let places: Vec<(usize, u64)> = (0..4_u64)
            .map(|position| {
                let index = position as usize;
                (moved.choose(0, 1, Item { index, position }), position)
            })
            .collect();
        let output = moved.step(&batch(1, &places)).unwrap();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let losses: Vec<f64> = output
            .losses
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect();
        assert!(
            mean(&losses) < before.loss,
            "{objective}, {method}: {} to {losses:?}",
            before.loss
        );
        let margin = mean(&output.metrics["rewards/margins"]);
        assert!(margin > 0.0, "{objective}, {method}: {margin}");
    }
}
