//! One LoRA DPO optimizer step of a language model, or of one that reads images, ours and TRL's in turn on the same work: time and
//! peak memory.
//!
//! ```text
//! cargo bench --bench lm_step -- --model llama --reference live --rounds 3 --steps 3 --python path/to/python
//! ```
//!
//! `--model llama`: a randomly initialized Llama of 8 layers of width 512 with 32000 words; 4 pairs of a prompt of 256 tokens with two
//! answers of 128. `--model llava`: the same decoder behind a CLIP tower of 6 layers of width 384; 2 pairs of one image each, which is 576
//! tokens, 64 words and two answers of 128; the tower is frozen. LoRA of rank 16 on all projections of the decoder; f32. `--reference
//! live` computes the reference in every step with the adapter off, `--reference cached` before training. Ours is the whole trainer as
//! a recipe runs it, diagnostics included; the Python needs torch, transformers, trl, peft and datasets, and without `--python` only
//! ours is measured. With images, TRL's reference is live in both: it computes none beforehand. Each round runs in a process of its own, so that peak memory is the step's and not the bench's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use diptych::llm::policy::{NetworkOptions, TrainedLm};
use diptych::llm::{Language, LanguageMethod};
use diptych::models::lm::LmDir;
use diptych::models::vlm::{TowerTraining, VisionLanguageModel, VlmDir};
use diptych::models::{Builder, BuilderConfig, Trainable, vlm};
use diptych::tensor::random::{Stream, generator, uniform_vec};
use diptych::tensor::{DType, Device, thread};
use diptych::train::{Event, LoopConfig, Recipe, Reporter, ResumeMode, train};
use diptych::vlm::VisionLanguage;
use serde_json::{Value, json};

/// As in the command.
#[global_allocator]
static ALLOCATOR: diptych::tensor::memory::BlockCache = diptych::tensor::memory::BlockCache::new();

const VOCABULARY: usize = 32_000;
const IMAGE_TOKEN: usize = VOCABULARY;
const IMAGE_SIDE: u32 = 336;
const ANSWER_TOKENS: usize = 128;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Model {
    Llama,
    Llava,
}

/// Where the reference's scores come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reference {
    Live,
    Cached,
}

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, default_value = "llama")]
    model: Model,
    #[arg(long, default_value = "live")]
    reference: Reference,
    /// Optimizer steps after one to warm up
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Processes of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Python with TRL; without it only ours is measured
    #[arg(long)]
    python: Option<String>,
    /// A key of the recipe to change
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder of checkpoint and data, in the process that is measured
    #[arg(long, hide = true)]
    worker: Option<PathBuf>,
    /// What cargo tells every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Model {
    fn num_pairs(self) -> usize {
        match self {
            Self::Llama => 4,
            Self::Llava => 2,
        }
    }

    /// Words of a prompt, beside its image.
    fn prompt_tokens(self) -> usize {
        match self {
            Self::Llama => 256,
            Self::Llava => 64,
        }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.worker {
        println!("{}", measure(directory, &arguments)?);
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    thread::on_large_stack(|| write_model(directory.path(), arguments.model))??;
    write_data(directory.path(), &arguments)?;
    let (mut ours, mut trl) = (Vec::new(), Vec::new());
    let name = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
    let (model, reference) = (
        name(arguments.model.to_possible_value()).context("no such model")?,
        name(arguments.reference.to_possible_value()).context("no such reference")?,
    );
    for _ in 0..arguments.rounds {
        let steps = arguments.steps.to_string();
        let mut worker = Command::new(std::env::current_exe()?);
        worker.arg("--worker").arg(directory.path());
        worker.args(["--model", &model, "--reference", &reference, "--steps", &steps]);
        worker.args(arguments.set.iter().flat_map(|set| ["--set", set]));
        ours.push(run(&mut worker)?);
        if let Some(python) = &arguments.python {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/peer_trl_step.py");
            let reference = match (arguments.reference, arguments.model) {
                (Reference::Cached, Model::Llama) => "precomputed",
                // TRL refuses to compute a reference beforehand for data with images.
                (Reference::Live, _) | (Reference::Cached, Model::Llava) => "live",
            };
            let (pairs, prompt_tokens) = (arguments.model.num_pairs(), arguments.model.prompt_tokens());
            let work =
                json!({ "model": model, "reference": reference, "pairs": pairs, "prompt_tokens": prompt_tokens });
            trl.push(run(Command::new(python).args([script, &work.to_string(), &steps]))?);
        }
    }
    println!("| {model}, {reference} reference | median s a step | peak memory |\n|---|---|---|");
    let row = |name: &str, runs: &[Value]| {
        format!(
            "| {name} | {:.2} | {:.2} GiB |",
            median(runs, "seconds"),
            median(runs, "peak_gib")
        )
    };
    println!("{}", row("diptych", &ours));
    if !trl.is_empty() {
        println!("{}", row("TRL", &trl));
        let ratio = |key| median(&trl, key) / median(&ours, key);
        println!("| TRL / diptych | {:.2} | {:.2} |", ratio("seconds"), ratio("peak_gib"));
    }
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("no output")?;
    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
}

fn median(runs: &[Value], key: &str) -> f64 {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A checkpoint of random weights with a tokenizer of as many words.
fn write_model(directory: &Path, model: Model) -> anyhow::Result<()> {
    let mut text = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 512,
        "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
        "max_position_embeddings": 1024, "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02,
        "tie_word_embeddings": false, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    });
    let mut words: Vec<String> = (0..VOCABULARY).map(|id| format!("w{id}")).collect();
    let mut specials = Vec::new();
    match model {
        Model::Llama => {
            std::fs::write(directory.join("config.json"), text.to_string())?;
            let options = NetworkOptions {
                device: Device::Cpu,
                dtype: DType::F32,
                seed: 0,
                quantization: None,
            };
            TrainedLm::untrained(&LmDir::open(directory)?, &options)?.save(directory)?;
        }
        Model::Llava => {
            text["vocab_size"] = json!(VOCABULARY + 1);
            text["max_position_embeddings"] = json!(2048);
            words.push("<image>".into());
            specials.push(
                json!({ "id": IMAGE_TOKEN, "content": "<image>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false }),
            );
            write_llava(directory, &text)?;
        }
    }
    let vocabulary: serde_json::Map<String, Value> = words
        .into_iter()
        .enumerate()
        .map(|(id, word)| (word, json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": specials, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string())?;
    let tokenizer_config =
        json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "pad_token": "w0" });
    std::fs::write(directory.join("tokenizer_config.json"), tokenizer_config.to_string())?;
    Ok(())
}

/// A `LLaVA` of random weights with its image processor.
fn write_llava(directory: &Path, text: &Value) -> anyhow::Result<()> {
    let config = json!({
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        "text_config": text,
        "vision_config": { "model_type": "clip_vision_model", "hidden_size": 384, "intermediate_size": 1536,
            "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": IMAGE_SIDE, "patch_size": 14, "projection_dim": 384 },
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let side = json!({ "height": IMAGE_SIDE, "width": IMAGE_SIDE });
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": { "shortest_edge": IMAGE_SIDE },
        "do_center_crop": true, "crop_size": side, "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": true, "resample": 3,
    });
    std::fs::write(directory.join("preprocessor_config.json"), processor.to_string())?;
    let dir = VlmDir::open(directory)?;
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    })?;
    VisionLanguageModel::load(&builder, dir.config(), TowerTraining::Included)?;
    let mut tensors = builder.finish()?.snapshot()?;
    // Checkpoints hold the whole tower; what lies behind its features is never run, so that any values do.
    let copies = [
        ("encoder.layers.4.", "encoder.layers.5."),
        (".pre_layrnorm.", ".post_layernorm."),
    ];
    for (from, to) in copies {
        let behind: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| name.contains("vision_tower") && name.contains(from))
            .map(|(name, tensor)| (name.replace(from, to), tensor.clone()))
            .collect();
        tensors.extend(behind);
    }
    Ok(vlm::save(directory, dir.config(), (&tensors, DType::F32))?)
}

/// Rows that are tokens already, or, with images, words that are one token each.
fn write_data(directory: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let mut text = String::new();
    for row in 0..arguments.model.num_pairs() * (arguments.steps + 1) {
        let ids = |part: u64, len: usize| -> Vec<u32> {
            let mut rng = generator(0, Stream::Noise, part, row as u64);
            let words = uniform_vec(&mut rng, 3.0, VOCABULARY as f32, len);
            words.into_iter().map(|word| word as u32).collect()
        };
        let words = |ids: Vec<u32>| ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
        let [prompt, chosen, rejected] = [
            ids(0, arguments.model.prompt_tokens()),
            ids(1, ANSWER_TOKENS),
            ids(2, ANSWER_TOKENS),
        ];
        let row = match arguments.model {
            Model::Llama => json!({ "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected }),
            Model::Llava => {
                let name = format!("{row}.png");
                let levels = uniform_vec(
                    &mut generator(0, Stream::Noise, 3, row as u64),
                    0.0,
                    256.0,
                    3 * 336 * 336,
                );
                let levels = levels.into_iter().map(|level| level as u8).collect();
                let image = image::RgbImage::from_raw(IMAGE_SIDE, IMAGE_SIDE, levels).context("levels of an image")?;
                image.save(directory.join(&name))?;
                json!({ "images": [name], "prompt": format!("<image> {}", words(prompt)), "chosen": format!(" {}", words(chosen)),
                    "rejected": format!(" {}", words(rejected)) })
            }
        };
        writeln!(text, "{row}")?;
    }
    Ok(std::fs::write(directory.join("pairs.jsonl"), text)?)
}

/// The method of a recipe and how it is trained.
fn prepared(directory: &Path, output: &Path, arguments: &Arguments) -> anyhow::Result<(LoopConfig, LanguageMethod)> {
    let reference = match arguments.reference {
        Reference::Live => "adapter_off",
        Reference::Cached => "cached",
    };
    let modality = match arguments.model {
        Model::Llama => "llm",
        Model::Llava => "vlm",
    };
    let text = format!(
        "modality = '{modality}'\n\
         run.output = '{}'\n\
         model.path = '{}'\n\
         data = {{ path = '{}', shuffle = false, max_len = 1024 }}\n\
         adapter.lora = {{ rank = 16, alpha = 16.0, targets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] }}\n\
         reference.{reference} = {{}}\n\
         objective.dpo = {{ beta = 0.1 }}\n\
         optimizer.adamw = {{ lr = 1e-5 }}\n\
         train = {{ steps = {}, micro_batch = {}, checkpoint_every = 0, sample_every = 0 }}\n",
        output.display(),
        directory.display(),
        directory.join("pairs.jsonl").display(),
        arguments.steps + 1,
        arguments.model.num_pairs(),
    );
    Ok(match arguments.model {
        Model::Llama => {
            let recipe = Recipe::<Language>::parse(&text, &arguments.set)?;
            (
                LoopConfig::from_recipe(&recipe)?,
                diptych::llm::prepare(&recipe, &mut Reporter::silent())?,
            )
        }
        Model::Llava => {
            let recipe = Recipe::<VisionLanguage>::parse(&text, &arguments.set)?;
            (
                LoopConfig::from_recipe(&recipe)?,
                diptych::vlm::prepare(&recipe, &mut Reporter::silent())?,
            )
        }
    })
}

/// Trains and returns the median time of the steps after the first.
fn measure(directory: &Path, arguments: &Arguments) -> anyhow::Result<Value> {
    let output = tempfile::tempdir()?;
    let (config, method) = thread::on_large_stack(|| prepared(directory, &output.path().join("run"), arguments))??;
    let mut last = Instant::now();
    let mut times = Vec::new();
    let mut observer = |event: &Event<'_>| {
        if matches!(event, Event::Step { .. }) {
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    };
    train(
        &method,
        &config,
        &mut observer,
        &AtomicBool::new(false),
        ResumeMode::Fresh,
    )?;
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok(json!({ "seconds": times[times.len() / 2], "peak_gib": peak_gib()? }))
}

/// The largest resident size this process had.
fn peak_gib() -> anyhow::Result<f64> {
    let bytes = diptych::train::peak_memory_bytes().context("peak memory is not known here")?;
    Ok(bytes as f64 / f64::from(1 << 30))
}
