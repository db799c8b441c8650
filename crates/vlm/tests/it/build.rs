//! Preference data that the embedded model makes of itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diptych_data::{DataFiles, Layout, OnError, Text, TextDataset, TextPair};
use diptych_llm::answers::read_prompts;
use diptych_llm::policy::NetworkOptions;
use diptych_models::lm::Sampling;
use diptych_shapes::{CAPTION_REQUEST, Example, SceneConfig, Split, picture_prompt, render};
use diptych_tensor::{DType, Device};
use diptych_train::{Recipe, Reporter, ResumeMode};
use diptych_vlm::answers::{AnswerSettings, Answerer, PromptFormat};
use diptych_vlm::build::{
    BuildConfig, BuildRecipe, BuildReport, ClaimSettings, ClaimSplit, Lengths, MaskCompletion, RlaifV, Seva, Skip,
    Stic, SticRequests, UnfinishedAnswers, build,
};
use diptych_vlm::{Error, VisionLanguage};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder with pictures of the embedded world, rows about them, and what is built of those.
pub(crate) struct Site {
    folder: TempDir,
}

impl Site {
    /// Rows that ask for captions of `num` pictures.
    pub(crate) fn new(num: u64) -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let rows: Vec<Value> = (0..num)
            .map(|index| {
                let example = site.picture(index);
                json!({
                    "id": format!("row-{index}"),
                    "prompt": picture_prompt(CAPTION_REQUEST),
                    "completion": format!(" {}", example.caption),
                    "images": [format!("{index}.png")],
                })
            })
            .collect();
        site.write(&rows);
        site
    }

    fn picture(&self, index: u64) -> Example {
        let example = Example::generate(11, index, Split::Train, &SceneConfig::default()).unwrap();
        let path = self.path(&format!("{index}.png"));
        render(&example.scene, 32).save(path).unwrap();
        example
    }

    pub(crate) fn write(&self, rows: &[Value]) {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(self.path("rows.jsonl"), lines.join("\n")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn config(&self, recipe: BuildRecipe, out: &str) -> BuildConfig {
        let asks_rows_alone = match &recipe {
            BuildRecipe::Seva(_) | BuildRecipe::MiaDpo(_) | BuildRecipe::Temple(_) => true,
            BuildRecipe::ReAlign(recipe) => recipe.completion == MaskCompletion::InPlace,
            _ => false,
        };
        BuildConfig {
            format: (!asks_rows_alone).then(plain),
            recipe,
            data: vec![self.path("rows.jsonl")],
            layout: Layout::Auto,
            max_rows: None,
            on_error: OnError::Fail,
            model: repository("models/shapes-vlm"),
            adapter: None,
            judge: None,
            embedder: None,
            max_frames: None,
            answers: AnswerSettings {
                network: NetworkOptions {
                    device: Device::Cpu,
                    dtype: DType::F32,
                    seed: 0,
                    quantization: None,
                },
                max_new_tokens: 24,
                sampling: Sampling::GREEDY,
                seed: 3,
                batch_size: 4,
            },
            unfinished: UnfinishedAnswers::Skip,
            max_pairs: None,
            out: self.path(out),
        }
    }
}

/// How the embedded model is asked.
pub(crate) fn plain() -> PromptFormat {
    PromptFormat::Plain("<image> {}:".to_owned())
}

/// Why nothing comes of a build.
pub(crate) fn refused(config: &BuildConfig) -> Error {
    match build(config, &mut Reporter::silent()) {
        Ok(report) => panic!("{report}"),
        Err(error) => error,
    }
}

pub(crate) fn built(config: &BuildConfig) -> (BuildReport, Vec<TextPair>) {
    let report = build(config, &mut Reporter::silent()).unwrap_or_else(|error| panic!("{error}"));
    let files = DataFiles::find(std::slice::from_ref(&config.out), Layout::Auto).unwrap();
    let TextDataset::Pairs(pairs) = TextDataset::read(&files).unwrap() else {
        panic!("pairs are written")
    };
    assert_eq!(pairs.len(), report.num_written);
    (report, pairs)
}

pub(crate) fn said(text: &Text) -> String {
    text.content()
}

#[test]
fn noise_makes_the_rejected_answer_and_equal_answers_are_dropped() {
    let site = Site::new(10);
    let config = site.config(BuildRecipe::Seva(Seva { step: 800 }), "strong.jsonl");
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 5, "{report}");
    let equal = report.skipped.get(&Skip::EqualAnswers).copied().unwrap_or(0);
    assert_eq!(report.num_made + equal, 10);

    // The chosen answers are those that the model gives elsewhere.
    let answerer = Answerer::open(&config.model, config.answers.clone()).unwrap();
    let prompts = read_prompts(&site.path("rows.jsonl")).unwrap();
    let prepared = answerer.prepare(&prompts, &mut Reporter::silent()).unwrap();
    let answers = answerer
        .answer(None, &prepared, "answers", &mut Reporter::silent())
        .unwrap();
    for pair in &pairs {
        let at = prompts.iter().position(|prompt| prompt.id == pair.id).unwrap();
        assert_eq!(said(&pair.chosen), format!(" {}", answers[at].text.trim()));
        assert_ne!(said(&pair.chosen), said(&pair.rejected));
        assert_eq!(pair.prompt, prompts[at].prompt);
        assert_eq!(
            pair.images[0].decode().unwrap(),
            prompts[at].images[0].decode().unwrap()
        );
        assert!(pair.other_images.is_none());
    }

    // Next to no noise changes next to no answer; a batch of another size changes none.
    let weak = site.config(BuildRecipe::Seva(Seva { step: 0 }), "weak.jsonl");
    let few = match build(&weak, &mut Reporter::silent()) {
        Ok(report) => report.num_made,
        Err(error) => {
            assert!(error.to_string().contains("10: both answers are the same"), "{error}");
            0
        }
    };
    assert!(few <= 1, "{few}");
    let mut single = site.config(BuildRecipe::Seva(Seva { step: 800 }), "single.jsonl");
    single.answers.batch_size = 1;
    assert_eq!(built(&single).1, pairs);
    // Other noise, other answers.
    let mut other = site.config(BuildRecipe::Seva(Seva { step: 800 }), "other.jsonl");
    other.answers.seed = 4;
    assert_ne!(built(&other).1, pairs);
}

#[test]
fn a_stopped_build_goes_on_and_another_one_is_refused() {
    let site = Site::new(10);
    let recipe = BuildRecipe::Seva(Seva { step: 800 });
    let whole = site.config(recipe.clone(), "whole.jsonl");
    let (report, _) = built(&whole);
    let config = site.config(recipe, "parts.jsonl");
    let stop = AtomicBool::new(false);
    let mut events = 0;
    let mut reporter = Reporter::new(
        |_| {
            events += 1;
            stop.store(events == 2, Ordering::SeqCst);
        },
        &stop,
    );
    let stopped = build(&config, &mut reporter).unwrap_err();
    assert!(stopped.to_string().contains("stop"), "{stopped}");
    drop(reporter);
    assert!(!config.out.exists());
    let done = |number: usize| site.path(&format!("parts.jsonl.building/rows-{number:06}.jsonl"));
    assert!(done(0).exists() && !done(2).exists());

    let mut other = config.clone();
    other.answers.seed = 8;
    let refused = build(&other, &mut Reporter::silent()).unwrap_err();
    assert!(
        refused.to_string().contains("seed differ") && refused.is_configuration(),
        "{refused}"
    );

    // What is done is taken as it is: nothing else could give this row.
    let marked = std::fs::read_to_string(done(0)).unwrap().replace("row-", "kept-");
    std::fs::write(done(0), &marked).unwrap();
    let (again, pairs) = built(&config);
    assert_eq!(again.skipped, report.skipped);
    assert!(pairs.iter().any(|pair| pair.id.starts_with("kept-")));
    let text = std::fs::read_to_string(&config.out).unwrap().replace("kept-", "row-");
    assert_eq!(text, std::fs::read_to_string(&whole.out).unwrap());
    assert!(!site.path("parts.jsonl.building").exists());
}

#[test]
fn careful_descriptions_are_chosen_over_imagined_and_spoiled_ones() {
    let site = Site::new(12);
    let stic = Stic {
        low_resolution: 1.0,
        side: 2,
        requests: SticRequests {
            short: vec!["describe the picture".to_owned()],
            detailed: vec!["describe the picture".to_owned()],
            imagined: vec!["is there a red circle".to_owned()],
        },
        ..Stic::default()
    };
    let (report, pairs) = built(&site.config(BuildRecipe::Stic(stic.clone()), "stic.jsonl"));
    let imagined = |pair: &&TextPair| ["yes", "no"].contains(&said(&pair.rejected).trim());
    let num_imagined = pairs.iter().filter(imagined).count();
    assert!(
        num_imagined >= 2 && pairs.len() - num_imagined >= 2,
        "{report}: {num_imagined} of {}",
        pairs.len()
    );
    for pair in &pairs {
        assert_eq!(pair.prompt, "<image> describe the picture:".into());
        assert!(said(&pair.chosen).contains(" a "), "{pair:?}");
    }
    let all = Stic {
        imagined: 1.0,
        ..stic.clone()
    };
    let (_, pairs) = built(&site.config(BuildRecipe::Stic(all), "imagined.jsonl"));
    assert!(pairs.iter().filter(imagined).count() == 12, "{pairs:?}");

    let mut empty = stic;
    empty.requests.short.clear();
    let error = refused(&site.config(BuildRecipe::Stic(empty), "none.jsonl"));
    assert!(error.to_string().contains("`requests.short`"), "{error}");
}

#[test]
fn rows_that_cannot_be_used_are_named_or_counted() {
    let site = Site::new(4);
    let row = |image: &str, prompt: &str| json!({ "prompt": prompt, "images": [image] });
    std::fs::write(site.path("lost.png"), &std::fs::read(site.path("3.png")).unwrap()[..60]).unwrap();
    site.write(&[
        row("0.png", "<image> describe the picture:"),
        row("lost.png", "<image> describe the picture:"),
        row("1.png", "<image> is there a red circle:"),
        row("2.png", "<image> describe the picture:"),
    ]);
    let mut config = site.config(BuildRecipe::Seva(Seva { step: 999 }), "out.jsonl");
    let error = refused(&config);
    assert!(error.to_string().contains("lost.png"), "{error}");
    config.on_error = OnError::Skip;
    config.out = site.path("skipped.jsonl");
    let (report, pairs) = built(&config);
    assert_eq!(report.skipped[&Skip::BadRow], 1, "{report}");
    assert!(pairs.iter().all(|pair| pair.images.len() == 1));
    assert!(report.to_string().contains("1: rows that cannot be used"), "{report}");

    config.max_pairs = Some(1);
    config.out = site.path("one.jsonl");
    assert_eq!(built(&config).1.len(), 1);
}

#[test]
fn answers_that_are_cut_off_are_counted_and_kept_only_where_that_is_wanted() {
    let site = Site::new(8);
    let short = |recipe: BuildRecipe, out: &str| {
        let mut config = site.config(recipe, out);
        config.answers.max_new_tokens = 2;
        config
    };
    let mut seva = short(BuildRecipe::Seva(Seva { step: 999 }), "seva.jsonl");
    let error = refused(&seva).to_string();
    assert!(
        error.contains("8: an answer did not end within `max_new_tokens`"),
        "{error}"
    );
    // It came to nothing, and stands in the way of no other build.
    seva.unfinished = UnfinishedAnswers::Keep;
    let (report, pairs) = built(&seva);
    assert!(
        !pairs.is_empty() && !report.skipped.contains_key(&Skip::UnfinishedAnswer),
        "{report}"
    );
    assert!(
        pairs
            .iter()
            .all(|pair| said(&pair.chosen).split_whitespace().count() <= 2)
    );

    // Of several answers those that ended are compared, at a limit that cuts some of them and not all.
    let rlaif_v = RlaifV {
        num_answers: 8,
        claims: ClaimSettings {
            split: ClaimSplit::Clauses,
            question: "is there {}".to_owned(),
            ..ClaimSettings::default()
        },
        lengths: Lengths::Any,
        ..RlaifV::default()
    };
    let sampled = |limit: usize, unfinished: UnfinishedAnswers| {
        let out = format!("{limit}-{unfinished:?}.jsonl");
        let mut config = site.config(BuildRecipe::RlaifV(rlaif_v.clone()), &out);
        config.answers.sampling.temperature = 1.5;
        config.answers.max_new_tokens = limit;
        config.unfinished = unfinished;
        config
    };
    let is_between = |limit: &usize| {
        let report = build(&sampled(*limit, UnfinishedAnswers::Skip), &mut Reporter::silent());
        report.is_ok_and(|report| report.skipped.contains_key(&Skip::UnfinishedAnswer))
    };
    let limit = (7..24).find(is_between).unwrap();
    std::fs::remove_file(sampled(limit, UnfinishedAnswers::Skip).out).unwrap();
    let (report, whole) = built(&sampled(limit, UnfinishedAnswers::Skip));
    let num_cut = report.skipped[&Skip::UnfinishedAnswer];
    assert!(
        report
            .to_string()
            .contains(&format!("{num_cut}: an answer did not end")),
        "{report}"
    );
    let (report, kept) = built(&sampled(limit, UnfinishedAnswers::Keep));
    assert!(!report.skipped.contains_key(&Skip::UnfinishedAnswer), "{report}");
    assert_ne!(whole, kept);
}

/// A short run on what was built.
pub(crate) fn trains(site: &Site, out: &Path, preference: bool) {
    trains_with(site, &json!({ "path": out }), preference);
}

/// A short run on some data.
pub(crate) fn trains_with(site: &Site, data: &Value, preference: bool) {
    let mut recipe = json!({
        "modality": "vlm",
        "run": { "device": "cpu", "output": site.path("run") },
        "model": { "path": repository("models/shapes-vlm") },
        "adapter": { "lora": { "rank": 2 } },
        "data": data,
        "objective": { "dpo": { "beta": 0.1 } },
        "optimizer": { "adamw": { "lr": 1e-3 } },
        "train": { "steps": 1, "micro_batch": 2, "checkpoint_every": 0, "sample_every": 0 },
    });
    if preference {
        recipe["method"] = json!({ "offline_pairs": { "image_preference": { "beta": 0.1 } } });
    }
    let recipe: Recipe<VisionLanguage> = Recipe::parse(&toml::to_string(&recipe).unwrap(), &[]).unwrap();
    let outcome = diptych_vlm::run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh);
    outcome.unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_dir_all(site.path("run")).unwrap();
}

#[test]
fn what_is_built_is_trained_on() {
    let site = Site::new(6);
    let config = site.config(BuildRecipe::Seva(Seva { step: 999 }), "pairs.jsonl");
    built(&config);
    trains(&site, &config.out, false);
}
