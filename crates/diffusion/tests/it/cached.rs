//! What is encoded once and kept, and images brought to a size.

use std::path::Path;

use diptych_data::{Dataset, ImageSource, Layout, PairRule, RankedImages, ScoredImage, write_ranked};
use diptych_diffusion::{cache_records, prepare};
use diptych_train::{Method, Progress, Recipe, Reporter};

use crate::world::{PROMPTS, World, batch, image};

const PAIRS: &str = "data.path = \"pairs.jsonl\"\nobjective.dpo.beta = 50.0\n[train]\nsteps = 1\nsample_every = 0\n";

fn with_cache(text: &str, path: &Path) -> String {
    format!("data.cache.path = '{}'\n{text}", path.display())
}

/// Denoising errors of all records in two steps: of pairs those of both sides. The loss of a pair says nothing before training.
fn errors(world: &World, text: &str) -> Vec<f64> {
    let method = world.method(text);
    let items: Vec<(usize, u64)> = (0..method.num_records()).map(|index| (index, index as u64)).collect();
    let of_step = |step| {
        let output = method.step(&batch(step, &items)).unwrap();
        let errors: Vec<f64> = ["mse/chosen", "mse/rejected"]
            .iter()
            .filter_map(|key| output.metrics.get(key))
            .flatten()
            .copied()
            .collect();
        if errors.is_empty() {
            output
                .losses
                .to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .map(f64::from)
                .collect()
        } else {
            errors
        }
    };
    let errors: Vec<f64> = [of_step(1), of_step(2)].concat();
    assert!(errors.windows(2).any(|two| two[0] != two[1]), "{errors:?}");
    errors
}

fn failure(world: &World, text: &str) -> String {
    let recipe = world.recipe("unused", text);
    prepare(&recipe, &mut Reporter::silent()).unwrap_err().to_string()
}

/// Names of the files in a directory, each with the time it was written.
fn files(path: &Path) -> Vec<(String, std::time::SystemTime)> {
    let mut files: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().modified().unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn cached_records_train_as_live_ones() {
    let world = World::new();
    let cache = world.path("cache");
    for (number, text) in [
        PAIRS.to_owned(),
        PAIRS.replace("[train]", "method.offline_pairs.posterior = \"mean\"\n[train]"),
        PAIRS.replace("[train]", "method.offline_pairs.prompt_dropout = 0.5\n[train]"),
        "data.path = \"captions.jsonl\"\nobjective.sft = {}\nmethod.sft = {}\n[train]\nsteps = 1\nsample_every = 0\n"
            .to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        // The third and the fourth need nothing new of the first but, of captions, another side.
        let path = if number == 1 {
            world.path("means")
        } else {
            cache.clone()
        };
        let cached = with_cache(&text, &path);
        let live = errors(&world, &text);
        assert!(live.iter().all(|error| error.is_finite()));
        assert_eq!(errors(&world, &cached), live, "written: {text}");
        let written = files(&path);
        assert_eq!(errors(&world, &cached), live, "read back: {text}");
        assert_eq!(files(&path), written, "a cache that is complete is left alone");
    }
    let names: Vec<String> = files(&cache).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "cache.json",
        "latents-chosen_image-00000.safetensors",
        "latents-image-00000.safetensors",
        "latents-rejected_image-00000.safetensors",
        "text-00000.safetensors",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_cache_that_is_lost_in_part_is_completed_and_a_stale_one_is_refused_by_name() {
    let world = World::new();
    let path = world.path("cache");
    let text = with_cache(PAIRS, &path);
    let recipe: Recipe<diptych_diffusion::Diffusion> = world.recipe("unused", &text);
    assert_eq!(cache_records(&recipe, &mut Reporter::silent()).unwrap(), PROMPTS.len());
    let live = errors(&world, PAIRS);
    // As a run that was killed between two shards leaves it.
    std::fs::remove_file(path.join("latents-rejected_image-00000.safetensors")).unwrap();
    std::fs::write(path.join(".latents-rejected_image-00000.safetensors.aside"), "half").unwrap();
    assert_eq!(errors(&world, &text), live);

    let other_size = with_cache(&PAIRS.replace("[train]", "data.resolution = 32\n[train]"), &path);
    let message = failure(&world, &other_size);
    assert!(message.contains("was made with another size;"), "{message}");

    let pairs = std::fs::read_to_string(world.path("pairs.jsonl")).unwrap();
    std::fs::write(world.path("pairs.jsonl"), pairs.replace("a blue star", "a blue circle")).unwrap();
    let message = failure(&world, &text);
    assert!(
        message.contains("text-00000.safetensors was made of other rows"),
        "{message}"
    );
    std::fs::write(world.path("pairs.jsonl"), pairs).unwrap();

    let config = world.path("model/vae/config.json");
    let content = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, content + "\n").unwrap();
    let message = failure(&world, &text);
    assert!(message.contains("was made with another vae;"), "{message}");
    let message = cache_records(&world.recipe("unused", PAIRS), &mut Reporter::silent()).unwrap_err();
    assert!(
        message.to_string().contains("`data.cache.path` is missing"),
        "{message}"
    );
}

/// A flip of both sides of every pair is training on images that were mirrored before.
#[test]
fn both_sides_of_a_pair_are_mirrored_alike() {
    let world = World::new();
    let text = PAIRS.replace("[train]", "method.offline_pairs.posterior = \"mean\"\n[train]");
    let mirrored: Vec<_> = PROMPTS
        .iter()
        .enumerate()
        .map(|(number, prompt)| {
            let side = |side| {
                let image = image::imageops::flip_horizontal(&image(2 * number + side));
                ImageSource::from_image(&image).unwrap()
            };
            diptych_data::ImagePair::new(format!("pair-{number}"), *prompt, side(0), side(1))
        })
        .collect();
    diptych_data::write_pairs(&world.path("mirrored.jsonl"), &mirrored).unwrap();
    let flip = |probability: f64| text.replace("[train]", &format!("data.flip = {probability:?}\n[train]"));
    let (kept, flipped) = (errors(&world, &text), errors(&world, &flip(1.0)));
    assert_ne!(kept, flipped);
    assert_eq!(errors(&world, &text.replace("pairs.jsonl", "mirrored.jsonl")), flipped);
    assert_eq!(errors(&world, &flip(0.0)), kept);
    // Each record by itself, and the same ones every time.
    let some = errors(&world, &flip(0.5));
    assert_eq!(errors(&world, &flip(0.5)), some);
    for (place, error) in some.iter().enumerate() {
        assert!(*error == kept[place] || *error == flipped[place], "{place}");
    }
}

#[test]
fn ranked_lists_train_pairs_and_what_is_left_out_is_said() {
    let world = World::new();
    let lists: Vec<RankedImages> = (0..3)
        .map(|number| RankedImages {
            id: format!("list-{number}"),
            prompt: PROMPTS[number].into(),
            responses: (0..3)
                .map(|place| ScoredImage {
                    image: ImageSource::from_image(&image(3 * number + place)).unwrap(),
                    score: place as f64,
                })
                .collect(),
        })
        .collect();
    write_ranked(&world.path("ranked.jsonl"), &lists).unwrap();
    let text = PAIRS.replace("pairs.jsonl", "ranked.jsonl");
    assert_eq!(world.method(&text).num_records(), 3);
    let all = text.replace("[train]", "data.pairs = \"all\"\n[train]");
    assert_eq!(world.method(&all).num_records(), 9);
    let far = all.replace("[train]", "data.min_margin = 1.5\n[train]");
    assert_eq!(world.method(&far).num_records(), 3);
    let Dataset::Ranked(read) = Dataset::load(&[world.path("ranked.jsonl")], Layout::Auto).unwrap() else {
        panic!("lists");
    };
    assert_eq!((read.len(), PairRule::NAMES.len()), (3, 4));

    // A row that is wrong is an error, or passed over and told.
    let rows = std::fs::read_to_string(world.path("ranked.jsonl")).unwrap();
    std::fs::write(
        world.path("ranked.jsonl"),
        format!("{rows}{{\"prompt\": \"p\", \"responses\": 7}}\n"),
    )
    .unwrap();
    assert!(failure(&world, &text).contains("row 4: `responses`: found the number 7"));
    let skip = text.replace("[train]", "data.on_error = \"skip\"\n[train]");
    let mut notes = Vec::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut reporter = Reporter::new(
        |progress| {
            if let Progress::Note(note) = progress {
                notes.push((*note).to_owned());
            }
        },
        &stop,
    );
    let method = prepare(&world.recipe("unused", &skip), &mut reporter).unwrap();
    drop(reporter);
    assert_eq!(method.num_records(), 3);
    assert!(
        notes[0].starts_with("data: 4 rows: 3 ranked images; skipped 1 unreadable, the first: "),
        "{notes:?}"
    );
}

#[test]
fn keys_of_the_data_that_are_out_of_range_or_unused_are_refused() {
    let world = World::new();
    let with = |line: &str| PAIRS.replace("[train]", &format!("{line}\n[train]"));
    for (line, expected) in [
        ("data.flip = 1.5", "data.flip"),
        ("data.min_margin = -1.0", "data.min_margin"),
        ("data.resolution = 0", "data.resolution"),
        (
            "data.resolution = 16\nmethod.offline_pairs.resolution = 16",
            "data.resolution",
        ),
        ("data.ties = \"ignore\"", "drop"),
    ] {
        let error = world.try_recipe("unused", &with(line)).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    for (line, expected) in [
        ("data.pairs = \"all\"", "`data.pairs` is unused"),
        ("data.min_margin = 0.1", "`data.min_margin` is unused"),
        ("data.resolution = 17", "`data.resolution` is 17"),
    ] {
        let error = failure(&world, &with(line));
        assert!(error.contains(expected), "{line}: {error}");
    }
}
