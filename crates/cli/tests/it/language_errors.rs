//! Arguments and recipes of language models that are wrong: exit codes, what is said, and nothing half-written.

use std::collections::BTreeMap;

use diptych_tensor::{Device, Tensor, save_tensors};

use crate::place::{Place, Table};

/// Arguments with spaces between them, the exit code, and what the error says.
type Case = (&'static str, i32, &'static [&'static str]);

const CASES: [Case; 88] = [
    (
        "train recipe.toml --set modality=llms",
        2,
        &["`modality`: found `llms`, expected `diffusion`, `vlm` or `llm` (did you mean `llm`?)"],
    ),
    (
        "train recipe.toml --set model.path=nowhere",
        2,
        &["`model.path`: found nothing at nowhere"],
    ),
    (
        "train recipe.toml --set data.path=rows/unpaired.jsonl",
        2,
        &["the data has labelled completions, expected pairs"],
    ),
    (
        "train recipe.toml --set data.path=prompts.jsonl",
        2,
        &["the data has prompts, expected pairs"],
    ),
    (
        "train recipe.toml --set data.path=rows/texts.jsonl --set method={unpaired={}} --set objective={kto={beta=0.1}}",
        2,
        &["the data has supervised texts, expected responses with a label"],
    ),
    (
        "train recipe.toml --set method={unpaired={}}",
        2,
        &[
            "`objective.dpo`: found `dpo` (of kind `pairs`) with `[method.unpaired]`",
            "expected an objective of kind `unpaired`",
        ],
    ),
    (
        "train recipe.toml --set method={offline_pair={}}",
        2,
        &["`method.offline_pair`", "(did you mean `offline_pairs`?)"],
    ),
    (
        "train recipe.toml --set objective={dpoo={beta=0.1}}",
        2,
        &[
            "`objective.dpoo`: found the unknown name `dpoo`",
            "(did you mean `dpo`?)",
        ],
    ),
    (
        "train recipe.toml --set objective={kto={beta=0.1}}",
        2,
        &["`objective.kto`: found `kto` (of kind `unpaired`)"],
    ),
    (
        "train recipe.toml --set objective={mapo={}} --set reference={none={}}",
        2,
        &["`objective.mapo`", "denoising"],
    ),
    (
        "train recipe.toml --set reference={adapter_off={}}",
        2,
        &["`reference.adapter_off`", "cannot be switched off, expected `frozen`"],
    ),
    (
        "train recipe.toml --set run.precision=f16",
        2,
        &["`run.precision`: found f16, expected f32 or bf16"],
    ),
    (
        "train recipe.toml --set eval.truth.prompts=nowhere.jsonl",
        2,
        &["`eval.truth.prompts`: found nothing at nowhere.jsonl"],
    ),
    (
        "train recipe.toml --set adapter.lora.init=nowhere",
        2,
        &["`adapter.lora.init`: found nothing at nowhere"],
    ),
    (
        "train recipe.toml --set adapter.lora.rank=8",
        1,
        &["`model.layers.0.self_attn.q_proj`", "[4, 32], expected [8, 32]"],
    ),
    (
        "train recipe.toml --set data.encoding.eos=never",
        2,
        &["data.encoding.eos", "`append` or `as-written`"],
    ),
    (
        "train recipe.toml --set samples.max_new_tokens=3",
        2,
        &["`samples`: found a section that is unused"],
    ),
    (
        "train recipe.toml --set run.output=file/run",
        1,
        &["cannot create file/run"],
    ),
    ("train recipe.toml --resume", 2, &["there is no run to resume in run"]),
    (
        "verify-resume recipe.toml --set data.path=rows/texts.jsonl",
        2,
        &["the data has supervised texts, expected pairs"],
    ),
    ("generate --out out --model lm", 2, &["--prompt"]),
    (
        "generate --prompt x --out out --model nowhere",
        2,
        &["nowhere: no such directory"],
    ),
    (
        "generate --prompt x --out out --model empty",
        1,
        &["empty: none of model_index.json, config.json found"],
    ),
    (
        "generate --prompt x --out out --model bare",
        1,
        &["bare: found no tokenizer.json"],
    ),
    (
        "generate --prompt x --out out --model lm --steps 3",
        2,
        &["--steps is nothing that --model lm, a language model, would use"],
    ),
    (
        "generate --prompt x --out out --model lm --sampler euler",
        2,
        &["--sampler is nothing that --model lm"],
    ),
    (
        "generate --prompt x --out out --model pipe --top-k 3",
        2,
        &["--top-k is nothing that --model pipe, a diffusion pipeline, would use"],
    ),
    (
        "generate --prompt x --out out --model pipe --chat",
        2,
        &["--chat is nothing that --model pipe"],
    ),
    (
        "generate --prompt x --out out --model lm --max-new-tokens 0",
        2,
        &["--max-new-tokens must be at least 1"],
    ),
    (
        "generate --prompt x --out out --model lm --batch-size 0",
        2,
        &["--batch-size", "at least 1"],
    ),
    (
        "generate --prompt x --out out --model lm --temperature=-1",
        2,
        &["`temperature` is -1, expected a number of at least 0"],
    ),
    (
        "generate --prompt x --out out --model lm --top-p 1.5",
        2,
        &["`top_p` is 1.5, expected a number above 0 and at most 1"],
    ),
    (
        "generate --prompt x --out out --model lm --repetition-penalty 0",
        2,
        &["`repetition_penalty` is 0"],
    ),
    (
        "generate --prompt x --out out --model lm --top-p 0.5 --temperature 0",
        2,
        &["--top-p change nothing at --temperature 0"],
    ),
    ("generate --prompt x --out out --model lm --system x", 2, &["--chat"]),
    (
        "generate --prompt x --out out --model other --chat",
        2,
        &["--model other has no chat template"],
    ),
    (
        "generate --prompt x --out out --model lm --chat --prompts rows/conversations.jsonl",
        2,
        &["conversations.jsonl:1 is a conversation or tokens already"],
    ),
    (
        "generate --prompt x --out out --model lm --prompts nowhere.txt",
        1,
        &["nowhere.txt"],
    ),
    (
        "generate --prompt x --out out --model lm --prompts nowhere.jsonl",
        1,
        &["nowhere.jsonl: no such file or folder"],
    ),
    (
        "generate --prompt x --out out --model lm --prompts whole.jsonl",
        2,
        &["the data has supervised texts, expected rows with a prompt"],
    ),
    (
        "generate --prompt x --out out --model lm --adapter nowhere",
        2,
        &["nowhere: no adapter found"],
    ),
    (
        "generate --prompt x --out out --model other --adapter lora",
        1,
        &["`model.layers.0.self_attn.q_proj` has shape [4, 32], expected [4, 48]"],
    ),
    (
        "generate --prompt x --out lm --model lm",
        2,
        &["--out lm exists already"],
    ),
    (
        "generate --prompt x --out file/out --model lm",
        2,
        &["--out file/out: file is not a directory"],
    ),
    ("score --out scores.jsonl --model lm", 2, &["--data"]),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model pipe",
        2,
        &["--model pipe is a diffusion pipeline; score is for language models"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model nowhere",
        2,
        &["nowhere: no such directory"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --beta 1",
        2,
        &["--beta is unused without --reference or --adapter"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --adapter lora --beta 0",
        2,
        &["--beta is 0, expected a finite number above 0"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --batch-size 0",
        2,
        &["--batch-size is 0, expected at least 1"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --reference other",
        2,
        &["--reference has a vocabulary of 384, --model one of 352"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --reference nowhere",
        2,
        &["nowhere: no adapter found"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --encoding eos",
        2,
        &["--encoding eos: found no `=`"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --encoding eso=append",
        2,
        &["--encoding: unknown field `eso`", "`eos`"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --max-len 0",
        2,
        &["`max_len` is 0"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --max-len 3",
        1,
        &["none of the 48 records has anything to learn from"],
    ),
    (
        "score --data rows/pairs.jsonl --out scores.jsonl --model lm --layout unpaired",
        2,
        &["`layout` is unpaired, but this file has the preference layout"],
    ),
    (
        "score --data prompts.jsonl --out scores.jsonl --model lm",
        2,
        &["the data has prompts, expected pairs"],
    ),
    (
        "score --data nowhere.jsonl --out scores.jsonl --model lm",
        1,
        &["nowhere.jsonl: no such file or folder"],
    ),
    (
        "score --data rows/pairs.jsonl --out recipe.toml --model lm",
        2,
        &["--out recipe.toml exists already"],
    ),
    (
        "score --data rows/pairs.jsonl --out file/s.jsonl --model lm",
        2,
        &["file is not a directory"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model empty",
        1,
        &["empty: found no tokenizer.json"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model lm --split eval",
        2,
        &["NAME=PATH"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model lm --split train=rows/texts.jsonl",
        2,
        &["--split train: there are two splits of this name"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model lm --split eval=nowhere.jsonl",
        1,
        &["nowhere.jsonl: no such file or folder"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model lm --max-length-ratio 1",
        2,
        &["--max-length-ratio is 1, expected a finite number above 1"],
    ),
    (
        "data lint --data rows/pairs.jsonl --model lm --encoding truncation=keep-middle",
        2,
        &["`keep-middle`", "`keep-end`"],
    ),
    (
        "data convert --data rows/pairs.jsonl --out rows/pairs.jsonl",
        2,
        &["rows/pairs.jsonl: this file is read by the conversion"],
    ),
    (
        "data convert --data nowhere.jsonl --out c.jsonl",
        1,
        &["nowhere.jsonl: no such file or folder"],
    ),
    (
        "data convert --data rows/pairs.jsonl --layout hh --out c.jsonl",
        1,
        &["rows/pairs.jsonl, row 1: unknown key `prompt`"],
    ),
    (
        "data convert --data rows/pairs.jsonl --layout latents --out c.jsonl",
        2,
        &["latents", "latent-pairs"],
    ),
    (
        "data convert --data same.jsonl --out c.jsonl",
        1,
        &["c.jsonl: there is no record to write"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs ids.safetensors --component unet",
        2,
        &["--component is a part of a pipeline; --model lm is a language model"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs lm/model.safetensors",
        2,
        &[
            "lm/model.safetensors: found tensor",
            "expected input_ids, attention_mask",
        ],
    ),
    (
        "forward --out out.safetensors --model lm --inputs ids.safetensors",
        1,
        &["ids.safetensors has no tensor `attention_mask`"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs gap.safetensors",
        2,
        &["`attention_mask`: found row 0 whose tokens are not together"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs none.safetensors",
        2,
        &["`attention_mask`: found row 0 without a token"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs two.safetensors",
        2,
        &["`attention_mask`: found 2 in row 0, expected 0 for filling and 1 for tokens"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs short.safetensors",
        2,
        &["[1, 3] for `input_ids` of shape [1, 4]"],
    ),
    (
        "forward --out out.safetensors --model lm --inputs large.safetensors",
        2,
        &["`input_ids`: found 352, expected ids below 352"],
    ),
    ("export --adapter lora --out e --format merged", 2, &["--model"]),
    (
        "export --adapter lora --out e --format merged --model other",
        1,
        &["`model.layers.0.mlp.down_proj` has shape [4, 64], expected [4, 80]"],
    ),
    (
        "export --adapter lora --out e --format merged --model empty",
        1,
        &["none of model_index.json, config.json found"],
    ),
    (
        "export --adapter lora --out e --format kohya",
        2,
        &["lora adapts a language model", "peft or merged"],
    ),
    (
        "export --adapter lora --out e --format diffusers",
        2,
        &["lora adapts a language model", "peft or merged"],
    ),
    (
        "export --adapter lora --out e --format peft --model lm",
        2,
        &["only for --format merged"],
    ),
    (
        "export --adapter lora --format peft --out lm",
        2,
        &["--out lm exists already"],
    ),
    (
        "eval win-rate --model lm --base lm --out e",
        1,
        &["lm: none of model_index.json found"],
    ),
];

/// A language model, and what is wrong beside it.
fn place() -> Place {
    let place = Place::with_language();
    place.write("pipe/model_index.json", "{}");
    place.write("file", "");
    place.write("prompts.jsonl", "{\"prompt\": \"Why?\"}\n");
    place.write("whole.jsonl", "{\"text\": \"All of it.\"}\n");
    place.write(
        "same.jsonl",
        "{\"prompt\": \"Why?\", \"chosen\": \"so\", \"rejected\": \"so\"}\n",
    );
    for file in ["config.json", "model.safetensors"] {
        place.write(&format!("bare/{file}"), place.bytes(&format!("lm/{file}")));
    }
    std::fs::create_dir(place.path("empty")).unwrap();
    inputs(&place, "ids", [1, 2, 3, 4], None);
    inputs(&place, "gap", [1, 2, 3, 4], Some(&[1, 0, 1, 1]));
    inputs(&place, "none", [1, 2, 3, 4], Some(&[0, 0, 0, 0]));
    inputs(&place, "two", [1, 2, 3, 4], Some(&[1, 2, 1, 1]));
    inputs(&place, "short", [1, 2, 3, 4], Some(&[1, 1, 1]));
    inputs(&place, "large", [1, 2, 3, 352], Some(&[1, 1, 1, 1]));
    place
}

fn inputs(place: &Place, name: &str, ids: [i64; 4], mask: Option<&[i64]>) {
    let row = |values: &[i64]| Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let mut tensors = BTreeMap::from([("input_ids".to_owned(), row(&ids))]);
    tensors.extend(mask.map(|mask| ("attention_mask".to_owned(), row(mask))));
    save_tensors(&place.path(&format!("{name}.safetensors")), &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn what_is_wrong_is_refused_and_leaves_nothing() {
    let place = place();
    let mut table = Table::default();
    for (command, code, said) in CASES {
        let arguments: Vec<&str> = command.split(' ').collect();
        table.failure(command, &place, &arguments, (code, said));
    }
    table.finish(88);
}

/// The line of a recipe's own mistakes.
#[test]
fn a_recipe_that_is_wrong_is_refused_with_its_line() {
    let mut table = Table::default();
    let cases = [
        (
            "modality = \"llm\"",
            "modality = \"lm\"",
            "recipe.toml:1: `modality`: found `lm`, expected `diffusion`, `vlm` or `llm`",
        ),
        (
            "modality = \"llm\"\n",
            "",
            "recipe.toml: `modality`: found nothing, expected `diffusion`, `vlm` or `llm`",
        ),
        (
            "[objective.dpo]",
            "[objective.dppo]",
            "recipe.toml:22: `objective.dppo`: found the unknown name `dppo`",
        ),
        (
            "beta = 0.1",
            "betta = 0.1",
            "recipe.toml:23: `objective.dpo.betta`: found the unknown key `betta`",
        ),
        (
            "[reference.frozen]\n",
            "[reference.none]\n",
            "`reference.none`: found `none`, expected",
        ),
        ("\"q_proj\"", "\"q_prj\"", "`q_prj`"),
    ];
    for (from, to, said) in cases {
        let place = Place::with_language();
        place.replace("recipe.toml", from, to);
        table.failure(said, &place, &["train", "recipe.toml"], (2, &[said]));
    }
    table.finish(6);
}
