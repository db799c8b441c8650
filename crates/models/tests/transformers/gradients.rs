//! Gradients against finite differences in f64, with and without gradient checkpointing.

use diptych_models::t5::{T5Config, T5EncoderModel};
use diptych_models::{Builder, BuilderConfig, LoraConfig, Targets, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Tensor, backward};

use super::{Denoiser, golden, vectors, weights};
use crate::support::{check_gradients_except, randn, read, same_gradients, shake, values};

fn f64_config(trainable: Trainable<'_>) -> BuilderConfig<'_> {
    BuilderConfig {
        dtype: DType::F64,
        trainable,
        ..BuilderConfig::new(None)
    }
}

/// What the text asks in the last block of Stable Diffusion 3 is answered to nobody.
fn has_no_gradient(name: &str, network: &str) -> bool {
    let unread = ["attn.add_q_proj", "attn.norm_added_q"].map(|part| format!("transformer_blocks.1.{part}."));
    // A key's bias adds the same to every score of a query, unless text and image have one each.
    let is_constant = network == "pixart_alpha" && name.ends_with("to_k.bias");
    network.starts_with("sd3") && unread.iter().any(|part| name.starts_with(part)) || is_constant
}

fn denoiser_gradients(name: &str, trainable: Trainable<'_>) -> usize {
    let builder = Builder::new(f64_config(trainable)).unwrap();
    let mut denoiser = Denoiser::load(name, &builder);
    let params = builder.finish().unwrap();
    shake(&params, 50);
    let inputs = vectors(name);
    let weight = randn(3, read(&inputs, "output").dims(), DType::F64);
    let mut results = Vec::new();
    for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::every(2)] {
        denoiser.set_checkpointing(checkpointing);
        let loss = || {
            let output = denoiser.predict(&inputs, DType::F64).unwrap();
            (output * &weight).unwrap().sum_all().unwrap()
        };
        let value = values(&loss())[0];
        results.push((
            value,
            check_gradients_except(&params, |module| has_no_gradient(module, name), loss),
        ));
    }
    assert_eq!(results[0].0, results[1].0, "checkpointing changed the loss");
    same_gradients(&results[0].1, &results[1].1);
    params.len()
}

#[test]
fn denoisers() {
    for name in [
        "sd3",
        "sd35",
        "flux_dev",
        "flux_schnell",
        "pixart_alpha",
        "pixart_sigma",
    ] {
        let expected = weights(name)
            .names()
            .filter(|tensor| *tensor != "pos_embed.pos_embed")
            .count();
        assert_eq!(denoiser_gradients(name, Trainable::All), expected);
    }
}

#[test]
fn adapters_on_every_linear_layer() {
    let lora = LoraConfig {
        rank: 2,
        targets: Targets::Pattern("all-linear".into()),
        ..Default::default()
    };
    for name in ["sd35", "flux_dev"] {
        let weights = weights(name);
        let is_matrix = |tensor: &&str| weights.shape(tensor).is_some_and(|shape| shape.len() == 2);
        let linear = weights.names().filter(is_matrix).count();
        assert_eq!(denoiser_gradients(name, Trainable::Lora(&lora)), 2 * linear);
    }
}

#[test]
fn text_encoder() {
    let lora = LoraConfig {
        targets: Targets::Pattern(r".*\.(q|o|wi_1)".into()),
        rank: 2,
        ..Default::default()
    };
    let config = T5Config::from_file(golden("t5").join("config.json")).unwrap();
    let every = weights("t5").names().count();
    for (trainable, expected) in [(Trainable::All, every), (Trainable::Lora(&lora), 2 * 2 * 3)] {
        let builder = Builder::new(f64_config(trainable)).unwrap();
        let mut model = T5EncoderModel::load(&builder, &config).unwrap();
        let params = builder.finish().unwrap();
        assert_eq!(params.len(), expected);
        shake(&params, 80);
        let ids: Vec<u32> = (0..20).map(|i| i * 7 % 40).collect();
        let ids = Tensor::from_vec(ids, (2, 10), &Device::Cpu).unwrap();
        let mask: Vec<f32> = (0..20).map(|i| if i > 15 { 0.0 } else { 1.0 }).collect();
        let mask = Tensor::from_vec(mask, (2, 10), &Device::Cpu).unwrap();
        let weight = randn(6, &[2, 10, 12], DType::F64);
        let mut results = Vec::new();
        for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::every(2)] {
            model.gradient_checkpointing = checkpointing;
            let loss = || {
                let output = model.forward(&ids, Some(&mask)).unwrap();
                (output * &weight).unwrap().sum_all().unwrap()
            };
            results.push((values(&loss())[0], check_gradients_except(&params, |_| false, loss)));
        }
        assert_eq!(results[0].0, results[1].0, "checkpointing changed the loss");
        same_gradients(&results[0].1, &results[1].1);
    }
}

/// A recomputed block runs in the state that the switch had in its forward pass, whatever it is by then.
#[test]
fn a_recomputed_pass_remembers_the_switch() {
    let lora = LoraConfig {
        rank: 2,
        ..Default::default()
    };
    for name in ["sd35", "flux_dev", "pixart_alpha"] {
        let builder = Builder::new(f64_config(Trainable::Lora(&lora))).unwrap();
        let mut denoiser = Denoiser::load(name, &builder);
        let params = builder.finish().unwrap();
        shake(&params, 50);
        let inputs = vectors(name);
        let loss = |denoiser: &Denoiser| {
            let output = denoiser.predict(&inputs, DType::F64).unwrap();
            output.sqr().unwrap().sum_all().unwrap()
        };
        let plain = backward(&loss(&denoiser), &params).unwrap();
        denoiser.set_checkpointing(CheckpointPolicy::ALL);
        let value = loss(&denoiser);
        let _off = denoiser.switch().disable();
        same_gradients(&plain, &backward(&value, &params).unwrap());
    }
}
