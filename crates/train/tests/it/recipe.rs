//! Recipes: what they accept, what they refuse, and how they say so.

use std::fs;
use std::path::Path;

use diptych_core::{Dpo, Objective, ScoreKind};
use diptych_tensor::optim::{LrSchedule, OptimizerConfig};
use diptych_tensor::{DeviceChoice, Precision};
use diptych_train::{
    LoopConfig, Modality, NoSection, Plan, Recipe, ReferenceConfig, Result, ResumeMode, RunDirectory, TrainConfig,
    modality_of, string_override,
};
use serde::{Deserialize, Serialize};

use crate::toy::{Toy, run, run_until};

#[derive(Debug, Clone, PartialEq)]
struct Regression;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Adapter {
    LowRank(LowRank),
    Full {},
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowRank {
    rank: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<std::path::PathBuf>,
}

impl Default for LowRank {
    fn default() -> Self {
        Self { rank: 8, init: None }
    }
}

impl Default for Adapter {
    fn default() -> Self {
        Self::LowRank(LowRank::default())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Fit {
    OfflinePairs {
        #[serde(default)]
        noise: f64,
    },
}

impl Default for Fit {
    fn default() -> Self {
        Self::OfflinePairs { noise: 0.0 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Samples {
    count: usize,
}

impl Modality for Regression {
    const NAME: &'static str = "regression";
    const SCORES: ScoreKind = ScoreKind::DenoisingError;
    type Adapter = Adapter;
    type Method = Fit;
    type Samples = Samples;
    type Evaluation = Samples;
    type Rounds = NoSection;

    fn can_switch_off(adapter: &Adapter) -> bool {
        matches!(adapter, Adapter::LowRank(_))
    }

    fn inputs(recipe: &Recipe<Self>) -> Result<Vec<(String, std::path::PathBuf)>> {
        let Adapter::LowRank(LowRank { init: Some(init), .. }) = &recipe.adapter else {
            return Ok(Vec::new());
        };
        let key = "adapter.low_rank.init";
        Ok(vec![(key.into(), recipe.resolve_path(key, init)?)])
    }

    fn validate(recipe: &Recipe<Self>) -> Result<()> {
        let Fit::OfflinePairs { noise } = recipe.method;
        if noise < 0.0 {
            return Err(recipe.invalid("method.offline_pairs.noise", noise, "at least 0"));
        }
        Ok(())
    }
}

const MINIMAL: &str = r#"modality = "regression"
[model]
path = "model"
[data]
path = "data.jsonl"
[objective.dpo]
beta = 0.1
[train]
steps = 10
"#;

const FULL: &str = r#"
modality = "regression"

[run]
seed = 11
device = "cpu"
precision = "bf16"
output = "runs/x"

[model]
path = "model"

[adapter.full]

[data]
path = ["data.jsonl", "more.jsonl"]
layout = "image-caption"
shuffle = false

[reference.frozen]
[method.offline_pairs]
noise = 0.5
[objective.dpo]
beta = 5000.0
label_smoothing = 0.1

[optimizer.adamw]
lr = 1e-3
betas = [0.8, 0.9]
eps = 1e-6
weight_decay = 0.0
max_grad_norm = 0.5

[schedule.cosine]
warmup_steps = 3

[train]
num_epochs = 1.5
micro_batch = 4
accumulation = 2
log_every = 5
checkpoint_every = 50
keep_checkpoints = 1
sample_every = 25
gradient_checkpointing = true
ema_decay = 0.99

[samples]
count = 4

[eval]
count = 256
"#;

type Regressions = Recipe<Regression>;

fn message(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<_> = overrides.iter().map(|&given| given.to_owned()).collect();
    let error = Regressions::parse(text, &overrides).unwrap_err();
    assert!(error.is_configuration(), "{error}");
    error.to_string()
}

#[test]
fn everything_but_the_essentials_has_a_default() {
    let recipe = Regressions::parse(MINIMAL, &[]).unwrap();
    assert_eq!(
        (recipe.run.seed, recipe.run.device, recipe.run.precision),
        (0, DeviceChoice::Auto, Precision::F32)
    );
    assert!(recipe.data.shuffle);
    assert_eq!(recipe.adapter, Adapter::LowRank(LowRank { rank: 8, init: None }));
    assert_eq!(recipe.reference, ReferenceConfig::AdapterOff {});
    assert_eq!(
        recipe.objective,
        Objective::from(Dpo {
            beta: 0.1,
            label_smoothing: 0.0
        })
    );
    let OptimizerConfig::Adamw(adamw) = recipe.optimizer else {
        panic!("{:?}", recipe.optimizer)
    };
    assert_eq!((adamw.lr, adamw.betas, adamw.eps), (1e-4, [0.9, 0.999], 1e-8));
    assert_eq!((adamw.weight_decay, adamw.max_grad_norm), (0.01, 1.0));
    assert_eq!(recipe.schedule, LrSchedule::Constant { warmup_steps: 0 });
    assert_eq!(
        recipe.train,
        TrainConfig {
            steps: Some(10),
            ..TrainConfig::default()
        }
    );
    let train = &recipe.train;
    assert_eq!((train.micro_batch, train.accumulation, train.log_every), (8, 1, 1));
    assert_eq!(
        (train.checkpoint_every, train.keep_checkpoints, train.sample_every),
        (100, 2, 100)
    );
    assert_eq!((recipe.samples, recipe.evaluation), (None, None));
}

#[test]
fn rounds_are_refused_where_there_are_none_and_data_where_it_is_missing() {
    let rounds = message(MINIMAL, &["rounds.num_rounds=2"]);
    let expected = "`rounds`: found a section that this modality does not have, expected no such section";
    assert!(rounds.contains(expected), "{rounds}");
    let data = message(MINIMAL, &["data.path=[]"]);
    assert!(data.contains("`data.path`: found an empty list"), "{data}");
}

#[test]
fn every_key_is_read_and_the_resolved_recipe_is_the_same_recipe() {
    let recipe = Regressions::parse(FULL, &[]).unwrap();
    assert_eq!(
        (recipe.run.seed, recipe.run.device, recipe.run.precision),
        (11, DeviceChoice::Cpu, Precision::Bf16)
    );
    assert_eq!(
        recipe.data.path.as_slice(),
        [Path::new("data.jsonl"), Path::new("more.jsonl")]
    );
    assert!(!recipe.data.shuffle && recipe.reference == ReferenceConfig::Frozen {});
    assert_eq!(recipe.method, Fit::OfflinePairs { noise: 0.5 });
    assert_eq!(recipe.schedule, LrSchedule::Cosine { warmup_steps: 3 });
    assert_eq!(
        (recipe.train.steps, recipe.train.num_epochs, recipe.train.ema_decay),
        (None, Some(1.5), Some(0.99))
    );
    assert_eq!([1, 3].map(|updates| recipe.train.num_steps(100, updates)), [19, 57]);
    assert_eq!(
        (recipe.samples.clone(), recipe.evaluation.clone()),
        (Some(Samples { count: 4 }), Some(Samples { count: 256 }))
    );

    let resolved = toml::to_string(&recipe.to_table().unwrap()).unwrap();
    let mut again = Regressions::parse(&resolved, &[]).unwrap();
    again.source = recipe.source.clone();
    assert_eq!(again, recipe);
}

/// What is replaced in [`MINIMAL`], by what, how the error starts, and the name it suggests.
#[rustfmt::skip]
const MISSPELT: [[&str; 4]; 10] = [
    ["steps = 10", "steps = 10\nmirco_batch = 4", "recipe:10: `train.mirco_batch`: found the unknown key `mirco_batch`,", "micro_batch"],
    ["[train]", "[optimizer.adamw]\nlrr = 1.0\n[train]", "recipe:9: `optimizer.adamw.lrr`: found the unknown key `lrr`,", "lr"],
    ["[train]", "[optimizer.adam]\n[train]", "recipe:8: `optimizer.adam`: found the unknown name `adam`,", "adamw"],
    ["[objective.dpo]", "[objective.dppo]", "recipe:6: `objective.dppo`: found the unknown name `dppo`,", "dpo"],
    ["[train]", "[shedule.constant]\n[train]", "recipe:8: `shedule`: found the unknown key `shedule`,", "schedule"],
    ["[train]", "[adapter.low_rnak]\n[train]", "recipe:8: `adapter.low_rnak`: found the unknown name", "low_rank"],
    ["[train]", "[adapter.low_rank]\nrnk = 3\n[train]", "recipe:9: `adapter.low_rank.rnk`: found the unknown key", "rank"],
    ["[train]", "[reference.adapter_of]\n[train]", "recipe:8: `reference.adapter_of`: found the unknown name", "adapter_off"],
    ["[train]", "[samples]\ncout = 3\n[train]", "recipe:9: `samples.cout`: found the unknown key", "count"],
    ["modality = \"regression\"", "modality = \"regresion\"", "recipe:1: `modality`: found `regresion`,", "regression"],
];

#[test]
fn misspelt_names_are_named_with_the_nearest_valid_one() {
    for [from, to, start, nearest] in MISSPELT {
        let message = message(&MINIMAL.replacen(from, to, 1), &[]);
        assert!(message.starts_with(start), "{message}\n{start}");
        assert!(message.ends_with(&format!("(did you mean `{nearest}`?)")), "{message}");
    }
    // Nothing is near: no guess, but all names.
    let message = message(&MINIMAL.replacen("steps = 10", "steps = 10\nwindows = 7", 1), &[]);
    assert!(
        message.contains("`windows`") && !message.contains("did you mean"),
        "{message}"
    );
    assert!(
        message.contains("`micro_batch`, ") && message.contains(" or `ema_decay`"),
        "{message}"
    );
}

/// What is replaced in [`MINIMAL`], by what, and how the error starts.
#[rustfmt::skip]
const WRONG: [[&str; 3]; 21] = [
    ["steps = 10", "steps = \"ten\"", "recipe:9: `train.steps`: found string \"ten\", expected"],
    ["beta = 0.1", "", "recipe:6: `objective.dpo.beta`: found nothing, expected a value: it has no default"],
    ["[model]\npath = \"model\"\n", "", "recipe: `model`: found nothing, expected a value: it has no default"],
    ["path = \"model\"", "", "recipe:2: `model.path`: found nothing, expected a value: it has no default"],
    ["[objective.dpo]\nbeta = 0.1\n", "", "recipe: `objective`: found nothing, expected a value: it has no default"],
    ["modality = \"regression\"\n", "", "recipe: `modality`: found nothing, expected `regression`"],
    ["modality = \"regression\"", "modality = 3", "recipe:1: `modality`: found an integer, expected `regression`"],
    ["[train]\n", "[reference]\n[train]\n", "recipe:8: `reference`: found an empty section, expected one section `[reference.KIND]`"],
    ["path = \"data.jsonl\"", "path = 3", "recipe:5: `data.path`: found "],
    ["path = \"data.jsonl\"", "path = []", "recipe:5: `data.path`: found an empty list, expected at least one path"],
    ["beta = 0.1", "beta = -0.1", "recipe:7: `objective.dpo.beta`: found -0.1, expected"],
    ["beta = 0.1", "beta = nan", "recipe:7: `objective.dpo.beta`: found NaN, expected"],
    ["[train]\n", "[optimizer.adamw]\nbetas = [0.9, 1.0]\n[train]\n", "recipe:9: `optimizer.adamw.betas`: found 1, expected numbers from 0 to below 1"],
    ["[train]\n", "[optimizer.adamw]\nbetas = [0.9, \"x\"]\n[train]\n", "recipe:9: `optimizer.adamw.betas[1]`: found string \"x\", expected a number"],
    ["[train]\nsteps = 10\n", "", "recipe: `train.steps`: found neither `steps` nor `num_epochs`, expected one of them"],
    ["[train]\n", "[optimizer.adamw]\nbetas = [0.9]\n[train]\n", "recipe:9: `optimizer.adamw.betas"],
    ["[train]\n", "[optimizer.adamw]\nlr = inf\n[train]\n", "recipe:9: `optimizer.adamw.lr`: found inf, expected a finite number"],
    ["[train]\n", "[run]\nseed = -1\n[train]\n", "recipe:9: `run.seed`: found integer `-1`, expected a whole number, 0 or more"],
    ["[train]\n", "[run]\ndevice = \"gpu\"\n[train]\n", "recipe:9: `run.device`: found "],
    ["[train]\n", "[method.offline_pairs]\nnoise = -1.0\n[train]\n", "recipe:9: `method.offline_pairs.noise`: found -1, expected at least 0"],
    ["steps = 10", "steps = ", "recipe:9: found "],
];

#[test]
fn wrong_and_missing_values_are_named() {
    for [from, to, start] in WRONG {
        let text = MINIMAL.replacen(from, to, 1);
        assert_ne!(text, MINIMAL);
        let message = message(&text, &[]);
        assert!(message.starts_with(start), "{message}\n{start}");
    }
}

#[test]
fn contradictions_are_errors() {
    let sft = "[objective.sft]";
    let dpo = "[objective.dpo]\nbeta = 0.1";
    let cases = [
        (
            "steps = 10",
            "steps = 10\nnum_epochs = 2.0",
            "`train.num_epochs`: found both `steps` and `num_epochs`, expected one of them",
        ),
        (
            "steps = 10",
            "micro_batch = 4",
            "`train.steps`: found neither `steps` nor `num_epochs`, expected one of them",
        ),
        (
            "[train]",
            "[reference.none]\n[train]",
            "`reference.none`: found `none`, expected `frozen` or `adapter_off`: objective `dpo` needs a reference",
        ),
        (
            dpo,
            &format!("{sft}\n[reference.frozen]"),
            "`reference.frozen`: found `frozen`, which is unused: objective `sft` needs no reference",
        ),
        (
            "[train]",
            "[adapter.full]\n[reference.adapter_off]\n[train]",
            "`reference.adapter_off`: found `adapter_off` with an adapter that cannot be switched off, expected `frozen`",
        ),
        (
            "[train]",
            "[objective.sft]\n[train]",
            "`objective`: found `[objective.dpo]` and `[objective.sft]`, expected exactly one",
        ),
        (
            "[train]",
            "[adapter.full]\n[adapter.low_rank]\n[train]",
            "`adapter`: found `[adapter.full]` and `[adapter.low_rank]`, expected exactly one",
        ),
    ];
    for (from, to, expected) in cases {
        let message = message(&MINIMAL.replacen(from, to, 1), &[]);
        assert!(message.contains(expected), "{message}");
    }
    let valid = Regressions::parse(&MINIMAL.replacen(dpo, &format!("{sft}\n[reference.none]"), 1), &[]).unwrap();
    assert_eq!(valid.reference, ReferenceConfig::None {});
    let full = Regressions::parse(&MINIMAL.replacen("[train]", "[adapter.full]\n[train]", 1), &[]).unwrap();
    assert_eq!(full.reference, ReferenceConfig::Frozen {});
}

#[test]
fn overrides_win_and_their_errors_name_them() {
    let overrides = [
        "objective.dpo.beta=0.5",
        "run.output=out/a=b",
        "train.steps=3",
        "schedule={linear={warmup_steps=2}}",
    ];
    let recipe = Regressions::parse(MINIMAL, &overrides.map(String::from)).unwrap();
    assert_eq!(
        recipe.objective,
        Objective::from(Dpo {
            beta: 0.5,
            label_smoothing: 0.0
        })
    );
    assert_eq!(
        (recipe.run.output.as_path(), recipe.train.steps),
        (Path::new("out/a=b"), Some(3))
    );
    assert_eq!(recipe.schedule, LrSchedule::Linear { warmup_steps: 2 });

    let cases = [
        (
            "train.stps=3",
            "--set train.stps=3: `train.stps`: found the unknown key `stps`",
        ),
        (
            "train.steps=many",
            "--set train.steps=many: `train.steps`: found string \"many\", expected a whole number, 0 or more",
        ),
        (
            "objective.sft={}",
            "--set objective.sft={}: `objective`: found `[objective.dpo]` and `[objective.sft]`",
        ),
        (
            "train.num_epochs=2",
            "--set train.num_epochs=2: `train.num_epochs`: found both",
        ),
        (
            "modality.x=1",
            "--set modality.x=1: `modality`: found a string in the recipe, expected a table",
        ),
        ("steps", "--set steps: found no `=`, expected section.key=value"),
    ];
    for (given, start) in cases {
        let message = message(MINIMAL, &[given]);
        assert!(message.starts_with(start), "{message}");
    }
}

/// A directory with everything [`MINIMAL`] asks for.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("model/part")).unwrap();
    fs::write(dir.path().join("model/config.json"), "{}").unwrap();
    fs::write(dir.path().join("model/part/weights"), "abc").unwrap();
    image::RgbImage::new(2, 2).save(dir.path().join("a.png")).unwrap();
    fs::write(
        dir.path().join("data.jsonl"),
        "{\"prompt\": \"a\", \"image\": \"a.png\"}\n",
    )
    .unwrap();
    fs::write(dir.path().join("recipe.toml"), MINIMAL).unwrap();
    dir
}

#[test]
fn paths_are_beside_the_recipe_or_in_the_working_directory() {
    let dir = project();
    let path = dir.path().join("recipe.toml");
    let recipe = Regressions::read(&path, &[]).unwrap();
    assert_eq!(recipe.model_path().unwrap(), dir.path().join("model"));
    assert_eq!(recipe.data_paths().unwrap(), [dir.path().join("data.jsonl")]);
    // Tests run in the crate's directory.
    assert_eq!(
        recipe.resolve_path("model.path", Path::new("src/lib.rs")).unwrap(),
        Path::new("src/lib.rs")
    );
    assert_eq!(
        recipe.resolve_path("data.path", Path::new("*.jsonl")).unwrap(),
        dir.path().join("*.jsonl")
    );
    assert_eq!(
        recipe.resolve_path("model.path", Path::new("hf://a/b@c")).unwrap(),
        Path::new("hf://a/b@c")
    );

    let message = recipe
        .resolve_path("model.path", Path::new("absent"))
        .unwrap_err()
        .to_string();
    let start = format!(
        "{}:3: `model.path`: found nothing at {} or absent",
        path.display(),
        dir.path().join("absent").display()
    );
    assert!(message.starts_with(&start), "{message}");
    let overridden = Regressions::read(&path, &["model.path=elsewhere".into()]).unwrap();
    let message = overridden.model_path().unwrap_err().to_string();
    assert!(
        message.starts_with("--set model.path=elsewhere: `model.path`:"),
        "{message}"
    );

    let message = Regressions::read(&dir.path().join("no.toml"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("cannot read") && message.contains("no.toml"),
        "{message}"
    );
    assert_eq!(modality_of(&path, &[]).unwrap(), "regression");
}

/// The project's recipe with a run directory in the project.
fn read_in(dir: &Path, more: &[&str]) -> Regressions {
    let mut overrides = vec![string_override("run.output", dir.join("run").to_str().unwrap())];
    overrides.extend(more.iter().map(|&given| given.to_owned()));
    Regressions::read(&dir.join("recipe.toml"), &overrides).unwrap()
}

#[test]
fn a_plan_has_every_value_and_the_hash_of_every_input() {
    let dir = project();
    let plan = Plan::resolve(&read_in(dir.path(), &[])).unwrap();
    let names: Vec<_> = plan.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(
        names,
        ["data.path", "model.path/config.json", "model.path/part/weights"]
    );
    // `printf abc | sha256sum`
    assert_eq!(
        plan.inputs[2].sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(plan.inputs[2].num_bytes, 3);
    assert_eq!(plan.recipe["optimizer"]["adamw"]["eps"].as_float(), Some(1e-8));
    assert!(plan.recipe["reference"].get("adapter_off").is_some());
}

#[test]
fn a_run_remembers_its_recipe_and_refuses_another() {
    let dir = project();
    let read = |more: &[&str]| read_in(dir.path(), more);
    // Start from the recipe; the directory says how.
    let mut config = LoopConfig::from_recipe(&read(&["train.micro_batch=2"])).unwrap();
    let stopped = run_until(4, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    assert!(stopped.stopped && stopped.num_steps == 10);
    let directory = RunDirectory::new(&config.output);
    let written = fs::read_to_string(directory.recipe()).unwrap();
    assert!(
        written.starts_with(MINIMAL) && written.contains("#   --set train.micro_batch=2"),
        "{written}"
    );
    assert!(
        fs::read_to_string(directory.plan())
            .unwrap()
            .contains("max_grad_norm = 1.0")
    );

    // Another value, other records or other weights: refused, and all of them are named.
    fs::write(dir.path().join("model/part/weights"), "abd").unwrap();
    image::RgbImage::from_pixel(2, 2, image::Rgb([1, 2, 3]))
        .save(dir.path().join("a.png"))
        .unwrap();
    config = LoopConfig::from_recipe(&read(&["train.micro_batch=2", "objective.dpo.beta=0.2"])).unwrap();
    let message = run(&Toy::f32(), &config, ResumeMode::Resume).unwrap_err().to_string();
    for change in [
        "objective.dpo.beta: was 0.1, is 0.2",
        "content of data.path",
        "content of model.path/part/weights",
    ] {
        assert!(message.contains(change), "{message}");
    }
    assert!(!message.contains("config.json"), "{message}");

    // The same project in another place, a longer run, other samples: the same run.
    fs::write(dir.path().join("model/part/weights"), "abc").unwrap();
    image::RgbImage::new(2, 2).save(dir.path().join("a.png")).unwrap();
    let moved = [
        "train.micro_batch=2",
        "train.steps=12",
        "samples.count=3",
        "eval.count=9",
    ];
    let mut config = LoopConfig::from_recipe(&read(&moved)).unwrap();
    fs::rename(dir.path().join("run"), dir.path().join("moved")).unwrap();
    config.output = dir.path().join("moved");
    assert_eq!(run(&Toy::f32(), &config, ResumeMode::Resume).unwrap().step, 12);
}
