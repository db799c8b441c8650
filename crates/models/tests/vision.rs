//! Image processing and CLIP against PIL, PyTorch and transformers, on the golden vectors of `tests/golden/generate_judges.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/seeded.rs"]
mod seeded;
mod support;

use diptych_models::clip::{
    ClipConfig, ClipModel, TimeConditionedClip, from_open_clip, read_open_clip_config, vit_h_14, with_neutral_time,
};
use diptych_models::vision::{
    ClipVisionConfig, ClipVisionModel, CropRounding, Filter, ImageProcessor, Resize, resize_tensor,
};
use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Params, Tensor, Weights, backward};
use image::RgbImage;
use seeded::{golden_judge, seeded_tensors, seeded_weights};
use serde_json::{Value, json};
use support::{assert_close, randn, read, values};

const FORWARD: f64 = 1e-4;

fn file(name: &str) -> Weights {
    Weights::open(&golden_judge(name)).unwrap()
}

fn golden_image(index: u64) -> RgbImage {
    let images = file("images.safetensors");
    let pixels = images.read(&format!("image.{index}"), DType::U8, &Device::Cpu).unwrap();
    let (height, width, _) = pixels.dims3().unwrap();
    let bytes = pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

fn clip_config() -> ClipConfig {
    ClipConfig::from_file(golden_judge("clip").join("config.json")).unwrap()
}

fn load_clip(trainable: Trainable<'_>) -> (ClipModel, Params) {
    let weights = seeded_weights("clip");
    let config = BuilderConfig {
        trainable,
        ..BuilderConfig::new(Some(&weights))
    };
    let builder = Builder::new(config).unwrap();
    let clip = ClipModel::load(&builder, &clip_config()).unwrap();
    (clip, builder.finish().unwrap())
}

/// Ids of the two prompts of the generator, with the tokenizer it used.
fn prompt_ids() -> Tensor {
    let directory = golden_judge("../models/tokenizer_sd1");
    let tokenizer = diptych_models::text_encoder::ClipTokenizer::from_dir(directory).unwrap();
    let prompts = ["a small red circle", "Two blue stars, left of a ring!"];
    tokenizer.encode_batch(&prompts, &Device::Cpu).unwrap()
}

#[test]
fn images_are_processed_as_by_transformers() {
    let text = std::fs::read_to_string(golden_judge("processors.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let expected = file("images.safetensors");
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let processor = ImageProcessor::from_json(case["config"].clone(), "preprocessor_config.json").unwrap();
        let image = golden_image(case["image"].as_u64().unwrap());
        let found = processor.images(&[image], &Device::Cpu).unwrap().squeeze(0).unwrap();
        // Equal before normalization, bit for bit: what is left is the rounding of float32.
        assert_close(name, &found, &read(&expected, name), 1e-6);
    }
    assert_eq!(cases.len(), 8);
}

#[test]
fn tensors_are_resized_as_by_pytorch() {
    let expected = file("images.safetensors");
    let pixels = read(&expected, "pixels");
    for (name, filter) in [("antialiased", Filter::Bicubic), ("aliased", Filter::BicubicAliased)] {
        let found = resize_tensor(&pixels, (31, 9), filter).unwrap();
        assert_close(name, &found, &read(&expected, &format!("resized.{name}")), 1e-5);
    }
}

/// What the differentiable path leaves out is rounding: half a step of each pass, a little more where the second pass amplifies it.
#[test]
fn the_differentiable_path_differs_from_pil_by_its_rounding() {
    let mut largest: f64 = 0.0;
    for (index, size) in [(0, 20), (1, 24), (2, 30), (3, 7), (3, 40)] {
        let image = golden_image(index);
        let processor = ImageProcessor {
            mean: [0.0; 3],
            std: [1.0; 3],
            rescale_factor: 1.0,
            ..ImageProcessor::clip(size)
        };
        let whole = ImageProcessor {
            resize: None,
            crop: None,
            ..processor.clone()
        };
        let pixels = (whole.images(std::slice::from_ref(&image), &Device::Cpu).unwrap() / 255.0).unwrap();
        let rounded = values(&processor.images(&[image], &Device::Cpu).unwrap());
        let float = values(&processor.pixels(&pixels).unwrap());
        for (float, rounded) in float.iter().zip(&rounded) {
            largest = largest.max((float - rounded).abs());
        }
    }
    assert!(
        (0.4..1.5).contains(&largest),
        "the largest difference is {largest} of 255"
    );
    println!("largest difference: {largest} of 255");
}

#[test]
fn what_a_crop_takes_away_is_not_computed() {
    let device = Device::Cpu;
    let noise = |width: u32, height: u32| {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|channel: u32| (x * 37 + y * 101 + channel * 59 + x * y) as u8))
        })
    };
    let processors = [
        ImageProcessor::clip(12),
        ImageProcessor::torchvision_clip(12),
        ImageProcessor::step_aware(12),
    ];
    for processor in &processors {
        let whole = ImageProcessor {
            crop: None,
            ..processor.clone()
        };
        for (width, height) in [(5, 93), (40, 31), (93, 12), (12, 12)] {
            let image = [noise(width, height)];
            let cropped = processor.images(&image, &device).unwrap();
            let uncropped = whole.images(&image, &device).unwrap();
            assert_eq!(cropped.dims(), [1, 3, 12, 12]);
            let start = |dim| {
                let doubled = uncropped.dim(dim).unwrap() - 12;
                match processor.crop_rounding {
                    CropRounding::Down => doubled / 2,
                    CropRounding::HalfToEven => (doubled as f64 / 2.0).round_ties_even() as usize,
                }
            };
            let middle = uncropped
                .narrow(2, start(2), 12)
                .unwrap()
                .narrow(3, start(3), 12)
                .unwrap();
            let difference = (cropped - middle).unwrap().abs().unwrap().max_all().unwrap();
            // Fixed point is exact; products of matrices of other sizes round otherwise.
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{width}x{height}");
        }
        // 224 x 3.7 million pixels before the crop.
        let line = [noise(1, 16_384)];
        let large = ImageProcessor {
            resize: match processor.resize {
                Some(Resize::ShortestEdgeNearest(_)) => Some(Resize::ShortestEdgeNearest(224)),
                _ => Some(Resize::ShortestEdge(224)),
            },
            crop: Some([224, 224]),
            ..processor.clone()
        };
        assert_eq!(large.images(&line, &device).unwrap().dims(), [1, 3, 224, 224]);
        let pixels = Tensor::zeros((1, 3, 16_384, 1), DType::F32, &device).unwrap();
        assert_eq!(large.pixels(&pixels).unwrap().dims(), [1, 3, 224, 224]);
    }
}

#[test]
fn processors_refuse_what_they_would_ignore() {
    let read = |config: Value| ImageProcessor::from_json(config, "preprocessor_config.json");
    let error = |config: Value| read(config).unwrap_err().to_string();
    assert_eq!(read(json!({})).unwrap(), ImageProcessor::clip(224));
    for (config, key) in [
        (
            json!({"image_processor_type": "SiglipImageProcessor"}),
            "image_processor_type",
        ),
        (json!({"resample": 0}), "`resample` is 0"),
        (json!({"size": {"longest_edge": 20}}), "size.longest_edge"),
        (json!({"size": {"height": 20}}), "`size`"),
        (json!({"image_mean": [0.5]}), "`image_mean`"),
        (json!({"image_std": [0.5, 0.0, 1]}), "`image_std`"),
        (json!({"do_pad": true}), "`do_pad`"),
        (json!({"do_convert_rgb": false}), "`do_convert_rgb`"),
        (json!({"image_grid_pinpoints": [1]}), "image_grid_pinpoints"),
    ] {
        let message = error(config);
        assert!(
            message.contains(key) && message.contains("preprocessor_config.json"),
            "{message}"
        );
    }
    let empty = tempfile::tempdir().unwrap();
    let message = ImageProcessor::from_dir(empty.path()).unwrap_err().to_string();
    assert!(message.contains("processor_config.json"), "{message}");
    std::fs::write(
        empty.path().join("processor_config.json"),
        r#"{"processor_class": "LlavaProcessor", "image_processor": {"size": {"shortest_edge": 336}, "crop_size": 336}}"#,
    )
    .unwrap();
    assert_eq!(
        ImageProcessor::from_dir(empty.path()).unwrap(),
        ImageProcessor::clip(336)
    );
}

#[test]
fn clip_computes_what_transformers_computes() {
    let vectors = file("clip/vectors.safetensors");
    let (clip, _) = load_clip(Trainable::None);
    let (pixels, ids) = (read(&vectors, "pixel_values"), prompt_ids());
    let texts = clip.text_features(&ids).unwrap();
    assert_close("texts", &texts, &read(&vectors, "text_features"), FORWARD);
    let images = clip.image_features(&pixels).unwrap();
    assert_close("images", &images, &read(&vectors, "image_features"), FORWARD);
    let logits = clip.logits_per_image(&pixels, &ids).unwrap();
    assert_close("logits", &logits, &read(&vectors, "logits_per_image"), FORWARD);
    for (layer, name) in [
        (0, "hidden_state.0"),
        (-3, "hidden_state.0"),
        (1, "hidden_state.1"),
        (-2, "hidden_state.1"),
    ] {
        let expected = read(&vectors, name);
        let found = clip.vision.hidden_state(&pixels, layer).unwrap();
        assert_close(name, &found, &expected, FORWARD);
        let patches = clip.vision.patch_features(&pixels, layer).unwrap();
        assert_close(name, &patches, &expected.narrow(1, 1, 9).unwrap(), FORWARD);
    }
    for layer in [3, -4] {
        let message = clip.vision.hidden_state(&pixels, layer).unwrap_err().to_string();
        assert!(
            message.contains(&format!("layer {layer}")) && message.contains("2 layers"),
            "{message}"
        );
    }
    let message = clip
        .image_features(&pixels.narrow(3, 0, 23).unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.contains("(B, 3, 24, 24)"), "{message}");
}

#[test]
fn a_tower_alone_loads_with_and_without_its_prefix() {
    let vectors = file("clip/vectors.safetensors");
    let config = clip_config().vision;
    assert_eq!(
        ClipVisionConfig::from_json(config.to_json(), "config.json").unwrap(),
        config
    );
    let tensors = seeded_tensors("clip");
    for strip in ["", "vision_model."] {
        let tower = tensors
            .iter()
            .filter(|(name, _)| name.starts_with("vision_model."))
            .map(|(name, tensor)| (name.strip_prefix(strip).unwrap().to_owned(), tensor.clone()));
        let weights = Weights::from_tensors("tower", tower.collect());
        let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
        let tower = ClipVisionModel::load(&builder, &config).unwrap();
        builder.finish().unwrap();
        let hidden = tower.hidden_state(&read(&vectors, "pixel_values"), 1).unwrap();
        assert_close(strip, &hidden, &read(&vectors, "hidden_state.1"), FORWARD);
    }
}

/// Directional derivatives over all parameters in f64, and equal gradients with recomputed activations.
#[test]
fn every_parameter_of_the_tower_gets_its_gradient() {
    let mut config = clip_config().vision;
    (config.hidden_size, config.intermediate_size, config.image_size) = (16, 24, 16);
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        dtype: DType::F64,
        ..BuilderConfig::new(None)
    })
    .unwrap();
    let mut tower = ClipVisionModel::load(&builder, &config).unwrap();
    let params = builder.finish().unwrap();
    support::shake(&params, 3);
    let pixels = randn(4, &[2, 3, 16, 16], DType::F64);
    let target = randn(5, &[2, 16], DType::F64);
    let loss = |tower: &ClipVisionModel| {
        let pooled = tower.forward(&pixels).unwrap().pooler_output;
        (pooled * &target).unwrap().sum_all().unwrap()
    };
    let gradients = backward(&loss(&tower), &params).unwrap();
    gradients.ensure_complete(&params).unwrap();
    tower.gradient_checkpointing = CheckpointPolicy::ALL;
    support::same_gradients(&gradients, &backward(&loss(&tower), &params).unwrap());
    let start = params.snapshot().unwrap();
    let directions: Vec<Tensor> = params
        .iter()
        .map(|(_, var)| randn(90, var.dims(), DType::F64))
        .collect();
    let at = |factor: f64| {
        for ((name, var), direction) in params.iter().zip(&directions) {
            var.set(&(&start[name] + (direction * factor).unwrap()).unwrap())
                .unwrap();
        }
        values(&loss(&tower))[0]
    };
    let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
    let numeric = (4.0 * slope(1e-5) - slope(2e-5)) / 3.0;
    let product: f64 = params
        .names()
        .zip(&directions)
        .map(|(name, v)| values(&(gradients.get(name).unwrap() * v).unwrap()).iter().sum::<f64>())
        .sum();
    assert!(
        (numeric - product).abs() < 1e-6 * numeric.abs().max(product.abs()),
        "{numeric} against {product}"
    );
}

#[test]
fn a_whole_clip_trains() {
    let (clip, params) = load_clip(Trainable::All);
    let vectors = file("clip/vectors.safetensors");
    let logits = clip
        .logits_per_image(&read(&vectors, "pixel_values"), &prompt_ids())
        .unwrap();
    let gradients = backward(&logits.sqr().unwrap().sum_all().unwrap(), &params).unwrap();
    gradients.ensure_complete(&params).unwrap();
    assert!(params.names().any(|name| name == "logit_scale"));
    assert_eq!(params.names().count(), seeded_tensors("clip").len());
}

#[test]
fn a_neutral_time_changes_nothing() {
    let (clip, _) = load_clip(Trainable::None);
    let config = clip_config();
    let weights = with_neutral_time(&seeded_weights("clip"), &config, 7).unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
    let timed = TimeConditionedClip::load(&builder, &config).unwrap();
    builder.finish().unwrap();
    let pixels = read(&file("clip/vectors.safetensors"), "pixel_values");
    let times = Tensor::new(&[0f32, 613.0], &Device::Cpu).unwrap();
    let found = timed.image_features(&pixels, &times).unwrap();
    assert_close("features", &found, &clip.image_features(&pixels).unwrap(), 1e-6);
    let message = timed
        .image_features(&pixels, &times.narrow(0, 0, 1).unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.contains("timesteps") && message.contains("(2)"), "{message}");
}

#[test]
fn open_clip_configurations_are_read() {
    let config = read_open_clip_config(golden_judge("hps").join("open_clip_config.json")).unwrap();
    assert_eq!((config.projection_dim, config.vision.num_attention_heads), (16, 4));
    let published = vit_h_14();
    assert_eq!(
        (published.vision.num_patches(), published.vision.num_attention_heads),
        (256, 16)
    );
    let converted = from_open_clip(&seeded_weights("hps")).unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&converted))).unwrap();
    ClipModel::load(&builder, &config).unwrap();
    builder.finish().unwrap();
    let message = from_open_clip(&seeded_weights("clip")).unwrap_err().to_string();
    assert!(
        message.contains("visual.class_embedding") && message.contains("OpenCLIP"),
        "{message}"
    );
}

/// Old files repeat the keys of generation in every section; another network's file is told by its `model_type`.
#[test]
fn configurations_of_clip_are_read_with_their_clutter() {
    let mut config = serde_json::to_value(clip_config().to_json()).unwrap();
    for section in ["text_config", "vision_config"] {
        config[section]["top_k"] = json!(50);
        config[section]["add_cross_attention"] = json!(false);
    }
    config["text_config_dict"] = Value::Null;
    assert_eq!(
        ClipConfig::from_json(config.clone(), "config.json").unwrap(),
        clip_config()
    );
    config["vision_config_dict"] = json!({"hidden_size": 1024, "num_attention_heads": 16});
    let read = ClipConfig::from_json(config.clone(), "config.json").unwrap();
    assert_eq!((read.vision.hidden_size, read.vision.num_hidden_layers), (1024, 12));
    config["model_type"] = json!("siglip");
    let message = ClipConfig::from_json(config.clone(), "config.json")
        .unwrap_err()
        .to_string();
    assert!(message.contains("`model_type` is \"siglip\""), "{message}");
    config["model_type"] = json!("clip");
    config["vision_config"]["use_sparse"] = json!(true);
    config["vision_config_dict"] = Value::Null;
    let message = ClipConfig::from_json(config, "config.json").unwrap_err().to_string();
    assert!(message.contains("use_sparse"), "{message}");
}
