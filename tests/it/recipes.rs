//! Every shipped recipe is read with all its checks; those whose inputs are shipped too are resolved to a plan.

use diptych::diffusion::Diffusion;
use diptych::train::{Plan, Recipe};

use crate::root;

#[test]
fn every_shipped_recipe_is_valid() {
    let (mut read, mut resolved) = (0, 0);
    for entry in std::fs::read_dir(root().join("examples/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.contains("\nmodality = ") {
            continue;
        }
        // Paths of a recipe are relative to the recipe or to the repository; tests run elsewhere.
        let root = root();
        let absolute = |key: &str, from: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with("path = \"") && line.contains(from));
            line.and_then(|line| line.split('"').nth(1))
                .map(|path| format!("{key}=\"{}\"", root.join(path).display()))
        };
        let overrides: Vec<String> = [absolute("model.path", "models/"), absolute("data.path", "datasets/")]
            .into_iter()
            .flatten()
            .collect();
        let recipe = Recipe::<Diffusion>::read(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
        read += 1;
        if overrides.len() == 2 {
            let plan = Plan::resolve(&recipe).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(plan.to_toml().unwrap().contains("sha256"), "{}", path.display());
            resolved += 1;
        }
    }
    assert_eq!((read, resolved), (4, 2), "recipes read, recipes resolved");
}
