//! Exit code 2: what is wrong with the command line or the recipe, and nothing is touched.

use crate::place::{Place, REPLAY, Table};

/// A recipe changed in its file: what is replaced by what, and what the error says. `LINE` is the line of the replacement.
const RECIPES: [(&str, &str, &str, &[&str]); 16] = [
    (
        "a misspelt key",
        "micro_batch = 2",
        "mirco_batch = 2",
        &[
            "error: recipe.toml:LINE: `train.mirco_batch`: found the unknown key `mirco_batch`, expected `steps`, ",
            "(did you mean `micro_batch`?)",
        ],
    ),
    (
        "an unknown section",
        "[train]",
        "[trian]",
        &[
            "recipe.toml:LINE: `trian`: found the unknown key `trian`, expected `modality`",
            "(did you mean `train`?)",
        ],
    ),
    (
        "an unknown kind of section",
        "[objective.dpo]",
        "[objective.dpoo]",
        &[
            "recipe.toml:LINE: `objective.dpoo`: found",
            "found the unknown name `dpoo`, expected `alpha_po`",
            "(did you mean `dpo`?)",
        ],
    ),
    (
        "a value of the wrong type",
        "steps = 20",
        "steps = \"twenty\"",
        &["recipe.toml:LINE: `train.steps`: found string \"twenty\", expected"],
    ),
    (
        "a number out of range",
        "micro_batch = 2",
        "micro_batch = 0",
        &["recipe.toml:LINE: `train.micro_batch`: found 0, expected a number, at least 1"],
    ),
    (
        "an objective's parameter out of range",
        "beta = 500.0",
        "beta = -1.0",
        &["recipe.toml:LINE: `objective.dpo.beta`: found -1"],
    ),
    (
        "an objective's parameter that has no default",
        "beta = 500.0",
        "label_smoothing = 0.1",
        &["recipe.toml:", "`objective.dpo.beta`: found nothing, expected a value"],
    ),
    (
        "steps and num_epochs",
        "steps = 20",
        "steps = 20\nnum_epochs = 1.0",
        &[
            "recipe.toml:",
            "`train.num_epochs`: found both `steps` and `num_epochs`, expected one of them",
        ],
    ),
    (
        "neither steps nor num_epochs",
        "steps = 20\n",
        "",
        &["recipe.toml:", "`train.steps`: found neither `steps` nor `num_epochs`"],
    ),
    (
        "a reference for an objective without one",
        "[objective.dpo]\nbeta = 500.0",
        "[reference.adapter_off]\n\n[objective.mapo]",
        &["recipe.toml:LINE: `reference.adapter_off`: found `adapter_off`, which is unused: objective `mapo` needs no"],
    ),
    (
        "no reference for an objective that needs one",
        "[objective.dpo]",
        "[reference.none]\n\n[objective.dpo]",
        &[
            "recipe.toml:LINE: `reference.none`: found `none`, expected `frozen`, `adapter_off`, `cached`, `ema` or `checkpoint`: objective `dpo` needs",
        ],
    ),
    (
        "two objectives",
        "[objective.dpo]",
        "[objective.mapo]\n\n[objective.dpo]",
        &[
            "recipe.toml:",
            "`objective`: found",
            "`[objective.mapo]`",
            "`[objective.dpo]`",
            "expected exactly one",
        ],
    ),
    (
        "another modality",
        "modality = \"diffusion\"",
        "modality = \"diffusoin\"",
        &[
            "recipe.toml:LINE: `modality`: found `diffusoin`, expected `diffusion`, `vlm` or `llm` (did you mean `diffusion`?)",
        ],
    ),
    (
        "no model",
        "[model]\npath = \"model\"\n",
        "",
        &["recipe.toml:", "`model`: found nothing, expected a value"],
    ),
    (
        "a model that is not there",
        "path = \"model\"",
        "path = \"models\"",
        &["recipe.toml:LINE: `model.path`: found", "models"],
    ),
    (
        "no TOML",
        "[train]",
        "[train",
        &["recipe.toml:LINE: found", "expected TOML"],
    ),
];

#[test]
fn a_recipe_that_is_wrong_is_refused_with_its_line() {
    let mut table = Table::default();
    for (name, from, to, said) in RECIPES {
        let place = Place::with_replay();
        place.replace("recipe.toml", from, to);
        let line = 1 + REPLAY[..REPLAY.find(from).unwrap()].lines().count();
        let said: Vec<String> = said
            .iter()
            .map(|text| text.replace("LINE", &line.to_string()))
            .collect();
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        table.failure(name, &place, &["train", "recipe.toml"], (2, &said));
    }
    table.finish(16);
}

/// Arguments that are wrong beside a good recipe, and what the error says.
const ARGUMENTS: [(&[&str], &[&str]); 46] = [
    (&["train", "recipe.toml", "--bogus"], &["--bogus"]),
    (&["train"], &["RECIPE"]),
    (&["trian", "recipe.toml"], &["trian", "'train'"]),
    (
        &["train", "recipe.toml", "--device", "tpu"],
        &["tpu", "auto, cpu, cuda[:n] or metal"],
    ),
    (
        &["train", "recipe.toml", "--set", "train.step=3"],
        &[
            "--set train.step=3: `train.step`: found the unknown key `step`",
            "(did you mean `steps`?)",
        ],
    ),
    (
        &["train", "recipe.toml", "--set", "run.seed=x"],
        &["--set run.seed=x: `run.seed`: found string \"x\", expected"],
    ),
    (
        &["train", "recipe.toml", "--set", "run.precision=f8"],
        &["`run.precision", "`f8`", "`f32`", "`bf16`"],
    ),
    (
        &["train", "recipe.toml", "--set", "seed"],
        &["--set seed: found no `=`, expected section.key=value"],
    ),
    (
        &["train", "recipe.toml", "--set", "train.num_epochs=2"],
        &["--set train.num_epochs=2: `train.num_epochs`: found both"],
    ),
    (
        &["train", "recipe.toml", "--set", "data.path=nowhere"],
        &["--set data.path=nowhere: `data.path`: found", "nowhere"],
    ),
    (
        &["train", "recipe.toml", "--set", "data.layout=latents"],
        &["`data.layout", "latents", "latent-pairs"],
    ),
    (
        &["train", "recipe.toml", "--set", "data.layout=preference"],
        &["data: found 1 *.safetensors; the preference layout expects *.jsonl files"],
    ),
    (
        &["data", "inspect", "data", "--layout", "preference"],
        &["the preference layout expects *.jsonl files"],
    ),
    (
        &[
            "train",
            "recipe.toml",
            "--set",
            "data.path=data/pairs-00000.safetensors",
            "--set",
            "data.layout=preference",
        ],
        &["`layout` is preference, but this file has the latent-pairs layout"],
    ),
    (
        &["train", "recipe.toml", "--set", "method.offline_pairs.posterior=sample"],
        &["`method.offline_pairs.posterior` is unused with this latent-pairs data"],
    ),
    (
        &["train", "recipe.toml", "--set", "samples.batch_size=2"],
        &["`samples`: found a section that is unused: `train.sample_every` is 0"],
    ),
    (
        &["train", "recipe.toml", "--set", "eval.win_rate.steps=1001"],
        &["1001 sampling steps", "expected 1 to 1000"],
    ),
    (
        &["train", "recipe.toml", "--set", "eval.win_rate.prompts=nowhere.txt"],
        &["`eval.win_rate.prompts`: found", "nowhere.txt"],
    ),
    (
        &["train", "recipe.toml", "--resume"],
        &["there is no run to resume in run: start it without --resume"],
    ),
    (
        &["verify-resume", "recipe.toml", "--steps", "1"],
        &["--steps is 1, expected at least 2"],
    ),
    (&["generate", "--model", "model", "--out", "images"], &["--prompt"]),
    (
        &[
            "generate", "--model", "model", "--prompt", "x", "--out", "images", "--steps", "0",
        ],
        &["--steps", "at least 1"],
    ),
    (
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "x",
            "--out",
            "images",
            "--batch-size",
            "0",
        ],
        &["--batch-size", "at least 1"],
    ),
    (
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "x",
            "--out",
            "images",
            "--guidance",
            "nan",
        ],
        &["--guidance is NaN, expected a finite number, at least 0"],
    ),
    (
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "x",
            "--out",
            "images",
            "--guidance=-1",
        ],
        &["--guidance is -1, expected a finite number, at least 0"],
    ),
    (
        &["generate", "--model", "model", "--prompt", "x", "--out", "data"],
        &["--out data exists already"],
    ),
    (
        &["eval", "win-rate", "--model", "model", "--out", "result"],
        &["nothing to compare", "--adapter", "--base"],
    ),
    (
        &[
            "eval", "win-rate", "--model", "model", "--base", "model", "--out", "result", "--judge", "nobody",
        ],
        &["nobody", "verifier"],
    ),
    (
        &[
            "eval",
            "win-rate",
            "--model",
            "model",
            "--base",
            "model",
            "--out",
            "result",
            "--num-prompts",
            "0",
        ],
        &["--num-prompts is 0, expected at least 1"],
    ),
    (
        &[
            "data",
            "build",
            "--model",
            "model",
            "--num-prompts",
            "0",
            "--out",
            "pairs.jsonl",
        ],
        &["--num-prompts is 0, expected at least 1"],
    ),
    (
        &[
            "data",
            "build",
            "--model",
            "model",
            "--min-margin",
            "nan",
            "--out",
            "pairs.jsonl",
        ],
        &["--min-margin is NaN, expected a finite number, at least 0"],
    ),
    (
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "x",
            "--out",
            "images",
            "--sampler",
            "heun",
        ],
        &["heun", "ddim, euler"],
    ),
    (
        &[
            "data",
            "build",
            "--model",
            "model",
            "--candidates",
            "1",
            "--out",
            "pairs.jsonl",
        ],
        &["--candidates is 1, expected at least 2"],
    ),
    (
        &["data", "shapes", "--size", "8", "--out", "shapes.jsonl"],
        &["--size is 8, expected 32 to 128"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "pairs",
            "--size",
            "32",
            "--out",
            "pairs.jsonl",
        ],
        &["--size is only for --kind images"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "sft",
            "--mislabel",
            "0.1",
            "--out",
            "sft.jsonl",
        ],
        &["--mislabel is only for --kind images"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "pairs",
            "--mislabeled",
            "0.1",
            "--out",
            "pairs.jsonl",
        ],
        &["--mislabeled is only for --kind sft"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "sft",
            "--mistakes",
            "2",
            "--out",
            "sft.jsonl",
        ],
        &["--mistakes is only for --kind pairs, or --mislabeled"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "sft",
            "--mislabeled",
            "1.5",
            "--out",
            "sft.jsonl",
        ],
        &["--mislabeled is 1.5, expected 0 to 1"],
    ),
    (
        &[
            "data",
            "shapes",
            "--kind",
            "pairs",
            "--mistakes",
            "0",
            "--out",
            "pairs.jsonl",
        ],
        &["--mistakes"],
    ),
    (
        &["data", "shapes", "--kind", "texts", "--out", "texts.jsonl"],
        &["texts", "images, pairs, sft, prompts"],
    ),
    (
        &["data", "inspect", "data", "--layout", "latents"],
        &["latents", "latent-pairs"],
    ),
    (
        &[
            "export",
            "--adapter",
            "adapter",
            "--format",
            "merged",
            "--out",
            "merged",
        ],
        &["--model"],
    ),
    (
        &["export", "--adapter", "adapter", "--format", "peft", "--out", "data"],
        &["--out data exists already"],
    ),
    (
        &[
            "export",
            "--adapter",
            "adapter",
            "--format",
            "peft",
            "--dtype",
            "f16",
            "--out",
            "out",
        ],
        &["--dtype", "only for --format merged"],
    ),
    (&["list", "objects"], &["objects", "objectives"]),
];

#[test]
fn arguments_that_are_wrong_are_refused() {
    let mut table = Table::default();
    for (arguments, said) in ARGUMENTS {
        let place = Place::with_replay();
        table.failure(&arguments.join(" "), &place, arguments, (2, said));
    }
    table.finish(46);
    assert_eq!(Place::new().run(&[]).code, Some(2));
}

/// What the arguments ask for is not there, or not enough of it: these used to fail with another code, or not at all.
#[test]
fn what_is_asked_for_must_be_there() {
    let mut table = Table::default();
    let place = Place::with_replay();
    place.write("three.txt", "a red circle\na blue square\na large green star\n");
    place.write("photo.txt", "a red circle\na photo of an astronaut\n");
    std::fs::create_dir(place.path("empty")).unwrap();
    let three = "three.txt: found 3 prompts, 4 were asked for";
    let photo = "judge `verifier` cannot judge prompt 2, \"a photo of an astronaut\"";
    let eval = [
        "eval", "win-rate", "--model", "model", "--base", "model", "--out", "out",
    ];
    let build = ["data", "build", "--model", "model", "--out", "out.jsonl"];
    let train = ["train", "recipe.toml"];
    let mut cases: Vec<(Vec<&str>, &str)> = vec![
        (
            [&eval[..], &["--prompts", "three.txt", "--num-prompts", "4"]].concat(),
            three,
        ),
        (
            [&build[..], &["--prompts", "three.txt", "--num-prompts", "4"]].concat(),
            three,
        ),
        ([&eval[..], &["--prompts", "photo.txt"]].concat(), photo),
        ([&build[..], &["--prompts", "photo.txt"]].concat(), photo),
        (
            [&train[..], &["--set", "data.path=empty"]].concat(),
            "empty: found nothing; the latent-pairs layout expects *.safetensors",
        ),
    ];
    if !cfg!(feature = "cuda") {
        cases.push((
            [&train[..], &["--device", "cuda"]].concat(),
            "device `cuda:0` cannot be used: this program was built without it",
        ));
        cases.push((
            [&eval[..], &["--device", "cuda:1"]].concat(),
            "device `cuda:1` cannot be used: this program was built without it",
        ));
    }
    let num_cases = cases.len();
    for (arguments, said) in cases {
        table.failure(&arguments.join(" "), &place, &arguments, (2, &[said]));
    }
    table.finish(num_cases);
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_as_another() {
    let place = Place::with_replay();
    place.run(&["train", "recipe.toml", "--set", "train.steps=5"]).success();
    let cases: [(&[&str], &[&str]); 3] = [
        (
            &["train", "recipe.toml"],
            &["run already holds a run", "--resume", "--out"],
        ),
        (
            &["train", "recipe.toml", "--resume", "--set", "optimizer.adamw.lr=0.1"],
            &["run cannot be resumed", "optimizer.adamw.lr: was 0.002, is 0.1"],
        ),
        (
            &["train", "recipe.toml", "--resume", "--set", "train.steps=4"],
            &["found 4 optimizer steps, expected at least 5"],
        ),
    ];
    let mut table = Table::default();
    for (arguments, said) in cases {
        table.failure(&arguments.join(" "), &place, arguments, (2, said));
    }
    table.finish(3);
    place.write("scenes.toml", "min_objects = 1\nmax_object = 2\n");
    place
        .run(&["data", "shapes", "--scenes", "scenes.toml", "--out", "shapes.jsonl"])
        .failure(2, &["scenes.toml", "line 2", "max_object", "max_objects"]);
}
