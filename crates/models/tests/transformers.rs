//! The diffusion transformers and T5 against diffusers, transformers and PEFT, on the golden vectors of
//! `tests/golden/generate_transformers.py`; what their files may say, and their gradients against finite differences.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/golden/named_values.rs"]
mod named_values;
mod support;
mod transformers {
    mod files;
    mod gradients;
    mod parity;
    mod tokens;

    use std::path::{Path, PathBuf};

    use diptych_models::diffusers::find_weights;
    use diptych_models::flux::{FluxConditions, FluxPositions, FluxTransformer2DConfig, FluxTransformer2DModel};
    use diptych_models::mmdit::{SD3Transformer2DConfig, SD3Transformer2DModel};
    use diptych_models::pixart::{PixArtConditions, PixArtTransformer2DConfig, PixArtTransformer2DModel};
    use diptych_models::{Builder, Result};
    use diptych_tensor::{CheckpointPolicy, Tensor, Weights};

    use crate::named_values::named_tensors;
    use crate::support::{read, values};

    /// A directory of the golden vectors.
    pub(super) fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/transformers")
            .join(name)
    }

    pub(super) fn vectors(name: &str) -> Weights {
        Weights::open(&golden(name).join("vectors.safetensors")).unwrap()
    }

    /// T5's files; of a denoiser, what the generator makes of the names of its parameters.
    pub(super) fn weights(name: &str) -> Weights {
        if name == "t5" {
            return Weights::open(&find_weights(&golden(name)).unwrap()).unwrap();
        }
        let mut tensors = named_tensors(|builder| Ok(Denoiser::load(name, builder)));
        let (vectors, table) = (vectors(name), "pos_embed.pos_embed");
        if vectors.contains(table) {
            tensors.insert(table.to_owned(), read(&vectors, table));
        }
        Weights::from_tensors("named", tensors)
    }

    /// One of the kinds of denoiser.
    pub(super) enum Denoiser {
        Sd3(SD3Transformer2DModel),
        Flux(FluxTransformer2DModel),
        PixArt(PixArtTransformer2DModel),
    }

    impl Denoiser {
        pub(super) fn load(name: &str, builder: &Builder<'_>) -> Self {
            let config = golden(name).join("config.json");
            if name.starts_with("sd3") {
                let config = SD3Transformer2DConfig::from_file(config).unwrap();
                Self::Sd3(SD3Transformer2DModel::load(builder, &config).unwrap())
            } else if name.starts_with("pixart") {
                let config = PixArtTransformer2DConfig::from_file(config).unwrap();
                Self::PixArt(PixArtTransformer2DModel::load(builder, &config).unwrap())
            } else {
                let config = FluxTransformer2DConfig::from_file(config).unwrap();
                Self::Flux(FluxTransformer2DModel::load(builder, &config).unwrap())
            }
        }

        pub(super) fn set_checkpointing(&mut self, policy: CheckpointPolicy) {
            match self {
                Self::Sd3(model) => model.gradient_checkpointing = policy,
                Self::Flux(model) => model.gradient_checkpointing = policy,
                Self::PixArt(model) => model.gradient_checkpointing = policy,
            }
        }

        pub(super) fn switch(&self) -> &diptych_models::AdapterSwitch {
            match self {
                Self::Sd3(model) => model.adapter_switch(),
                Self::Flux(model) => model.adapter_switch(),
                Self::PixArt(model) => model.adapter_switch(),
            }
        }

        /// The prediction for the inputs of a file, in the type of the activations.
        pub(super) fn predict(&self, inputs: &Weights, dtype: diptych_tensor::DType) -> Result<Tensor> {
            let sample = read(inputs, "hidden_states").to_dtype(dtype).unwrap();
            let (timestep, text) = (read(inputs, "timestep"), read(inputs, "encoder_hidden_states"));
            let pooled = || read(inputs, "pooled_projections");
            match self {
                Self::Sd3(model) => model.forward(&sample, &timestep, &text, &pooled()),
                Self::Flux(model) => {
                    let pooled = pooled();
                    let guidance = inputs.contains("guidance").then(|| read(inputs, "guidance"));
                    let conditions = FluxConditions {
                        timestep: &timestep,
                        guidance: guidance.as_ref(),
                        encoder_hidden_states: &text,
                        pooled_projections: &pooled,
                    };
                    model.forward(&sample, conditions, &positions(inputs))
                }
                Self::PixArt(model) => {
                    let (resolution, ratio) = (read(inputs, "resolution"), read(inputs, "aspect_ratio"));
                    let mask = read(inputs, "encoder_attention_mask").sum(1).unwrap();
                    let text_lens: Vec<usize> = values(&mask).iter().map(|&len| len as usize).collect();
                    let conditions = PixArtConditions {
                        timesteps: &timestep,
                        encoder_hidden_states: &text,
                        text_lens: Some(&text_lens),
                        size: model
                            .config()
                            .use_additional_conditions
                            .then_some((&resolution, &ratio)),
                    };
                    model.forward(&sample, conditions)
                }
            }
        }
    }

    /// Coordinates of a file.
    pub(super) fn positions(inputs: &Weights) -> FluxPositions {
        let rows = |name: &str| -> Vec<[f64; 3]> {
            let values = values(&read(inputs, name));
            values.chunks(3).map(|row| [row[0], row[1], row[2]]).collect()
        };
        FluxPositions::new(&rows("txt_ids"), &rows("img_ids"))
    }
}
