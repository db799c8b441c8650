//! Every shipped recipe is read with all its checks; those whose inputs are shipped too are resolved to a plan.

use std::collections::BTreeMap;
use std::path::Path;

use diptych::diffusion::Diffusion;
use diptych::llm::Language;
use diptych::train::{Modality, Plan, Recipe, modality_of};
use diptych::vlm::VisionLanguage;

use crate::root;

/// How many recipes of a modality were read, and how many of them resolved.
#[derive(Debug, Default, PartialEq)]
struct Count {
    read: usize,
    resolved: usize,
}

#[test]
fn every_shipped_recipe_is_valid() {
    let mut counts = BTreeMap::<String, Count>::new();
    for entry in std::fs::read_dir(root().join("examples/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.contains("\nmodality = ") {
            continue;
        }
        let modality = modality_of(&path, &[]).unwrap();
        let is_resolved = match modality.as_str() {
            "diffusion" => check::<Diffusion>(&path, &text),
            "llm" => check::<Language>(&path, &text),
            "vlm" => check::<VisionLanguage>(&path, &text),
            other => panic!("{}: no test reads modality {other}", path.display()),
        };
        let count = counts.entry(modality).or_default();
        count.read += 1;
        count.resolved += usize::from(is_resolved);
    }
    let expected = [
        ("diffusion".to_owned(), Count { read: 34, resolved: 26 }),
        ("llm".to_owned(), Count { read: 2, resolved: 1 }),
        ("vlm".to_owned(), Count { read: 9, resolved: 8 }),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
}

/// Reads a recipe, and resolves it where model and data are in the repository.
fn check<M: Modality>(path: &Path, text: &str) -> bool {
    // Paths of a recipe are relative to the recipe or to the repository; tests run elsewhere.
    let root = root();
    let absolute = |key: &str, from: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("path = \"") && line.contains(from));
        line.and_then(|line| line.split('"').nth(1))
            .map(|path| format!("{key}=\"{}\"", root.join(path).display()))
    };
    let of_judge = || {
        let (judge, rest) = text
            .lines()
            .find_map(|line| line.strip_prefix("judge.")?.split_once(" = {"))?;
        let path = rest.split('"').nth(1)?;
        let section = text
            .lines()
            .find_map(|line| line.strip_prefix("[method.")?.strip_suffix(']'))?;
        Some(format!(
            "method.{section}.judge.{judge}.path=\"{}\"",
            root.join(path).display()
        ))
    };
    let clip = text
        .lines()
        .find_map(|line| line.strip_prefix("clip = \"")?.split('"').next());
    let clip = clip.map(|path| {
        format!(
            "method.offline_pairs.token_perturbation.clip=\"{}\"",
            root.join(path).display()
        )
    });
    // Of a consistency model, in a section of its own.
    let of_teacher = text.lines().find_map(|line| {
        let section = line.strip_prefix('[')?.strip_suffix(".solver.teacher]")?;
        let path = root.join("models/shapes-diffusion");
        Some(format!("{section}.solver.teacher.path=\"{}\"", path.display()))
    });
    let mut overrides: Vec<String> = [absolute("model.path", "models/"), absolute("data.path", "datasets/")]
        .into_iter()
        .flatten()
        .collect();
    let has_model_and_data = overrides.len() == 2;
    overrides.extend(of_judge());
    overrides.extend(clip);
    overrides.extend(of_teacher);
    let recipe = Recipe::<M>::read(path, &overrides).unwrap_or_else(|error| panic!("{error}"));
    if !has_model_and_data {
        return false;
    }
    let plan = Plan::resolve(&recipe).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(plan.to_toml().unwrap().contains("sha256"), "{}", path.display());
    true
}
