//! What references cost: memory of the process while a method is held, alone in its process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;

use diptych_diffusion::prepare;
use diptych_diffusion::shapes_pipeline::{ShapesPipelineConfig, initialize};
use diptych_train::{Recipe, Reporter, resident_memory_bytes};

/// Copies that are held at once: what loading leaves to the allocator is spread over them.
const COPIES: usize = 4;

/// The memory that a method adds while it is held, in bytes.
fn held(directory: &Path, text: &str) -> f64 {
    let path = directory.join("recipe.toml");
    let common =
        "modality = \"diffusion\"\nrun.device = \"cpu\"\nmodel.path = \"model\"\ndata.path = \"pairs.jsonl\"\n";
    std::fs::write(&path, format!("{common}{text}\n[train]\nsteps = 1\nsample_every = 0\n")).unwrap();
    let recipe = Recipe::read(&path, &[]).unwrap();
    let load = |_| prepare(&recipe, &mut Reporter::silent()).unwrap();
    // What loading uses and gives back is not given back to the system: it is there before the count begins.
    let warm = load(0);
    let before = resident_memory_bytes().unwrap();
    let methods: Vec<_> = (0..COPIES).map(load).collect();
    let after = resident_memory_bytes().unwrap();
    // Leaked: memory that the next count could use again without asking for it would not be seen.
    std::mem::forget((warm, methods));
    (after as f64 - before as f64) / COPIES as f64
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "the process's memory is read from /proc")]
fn a_reference_costs_a_network_only_where_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let config = ShapesPipelineConfig::default();
    initialize(&directory.path().join("model"), &config, &["red", "circle"], 0).unwrap();
    let image = diptych_data::ImageSource::from_image(&image::RgbImage::new(64, 64)).unwrap();
    let pair = diptych_data::ImagePair::new("0", "red circle", image.clone(), image);
    diptych_data::write_pairs(&directory.path().join("pairs.jsonl"), &[pair]).unwrap();
    let weights = directory.path().join("model/unet/diffusion_pytorch_model.safetensors");
    let network = std::fs::metadata(weights).unwrap().len() as f64;
    let dpo = "objective.dpo.beta = 1.0\nreference";
    let [mapo, off, moving, frozen] = [
        "objective.mapo = {}".to_owned(),
        format!("{dpo}.adapter_off = {{}}"),
        format!("{dpo}.ema = {{}}"),
        format!("{dpo}.frozen = {{}}"),
    ]
    .map(|text| held(directory.path(), &text) / network);
    println!("networks held: MaPO {mapo:.2}, adapter off {off:.2}, moving {moving:.2}, frozen {frozen:.2}");
    for (name, held) in [("MaPO", mapo), ("adapter off", off), ("moving", moving)] {
        assert!(held < 1.5, "{name} holds {held} networks");
    }
    assert!(frozen > mapo + 0.7, "a frozen copy is not seen: {frozen}, MaPO {mapo}");
}
