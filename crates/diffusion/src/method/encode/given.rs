//! Records that were encoded elsewhere.

use diptych_data::{LatentPairs, LatentTensors};
use diptych_models::Trainable;

use super::{Encoded, Settings};
use diptych_train::Reporter;

use crate::method::config::PosteriorUse;
use crate::method::denoising_records::{DenoisingRecords, Prompts};
use crate::method::draws::{Draws, LatentShapes};
use crate::method::prepare::Preparation;
use crate::method::records::Latents;
use crate::method::showcase::shown;
use crate::method::timesteps::TimestepConfig;
use crate::method::trained::TextTraining;
use crate::pipeline::{DenoiserConfig, PromptEmbeddings, TextConditioner, denoiser_component, load_vae, sizes};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

impl Preparation<'_> {
    /// Records that were encoded elsewhere: neither tokenizer, text encoder nor autoencoder is read unless samples or dropped
    /// prompts need them.
    pub(super) fn encode_given(
        &self,
        settings: &Settings,
        pairs: LatentPairs,
        reporter: &mut Reporter<'_>,
    ) -> Result<Encoded> {
        self.refuse_unused(settings, &pairs)?;
        self.check_fit(&pairs)?;
        let ids: Vec<String> = (0..pairs.len()).map(|index| pairs.record_id(index)).collect();
        let tensors = pairs.into_tensors();
        let mut embeddings = PromptEmbeddings::from_rows(tensors.encoder_hidden_states, tensors.pooled);
        let samples = self.samples(&[])?;
        let has_empty = settings.has_empty();
        let (mut empty, mut sample_embeddings, mut vae) = (None, None, None);
        if has_empty || samples.is_some() {
            let (text, _) = TextConditioner::load(self.pipeline, &self.options, Trainable::None, None)?;
            if has_empty {
                empty = Some(embeddings.add_missing(&text)?);
            }
            if let Some((prompts, config)) = &samples {
                sample_embeddings = Some(shown(&text, prompts, config, reporter)?);
                vae = Some(load_vae(self.pipeline, &self.options, Trainable::None)?.0);
            }
        }
        let latents = Latents::from_host(tensors.latents_chosen)?;
        let rejected = Latents::from_host(tensors.latents_rejected)?;
        // All records have one shape, and there is one at least.
        let shape = latents.shape_of(0);
        let draws = Draws {
            given_noise: tensors.noise,
            given_timesteps: tensors.timesteps,
            ..self.draws(settings, LatentShapes::Same(shape))?
        };
        let rows = (0..ids.len()).collect();
        let records = DenoisingRecords {
            ids,
            latents,
            prompts: Prompts::Embedded {
                embeddings,
                rows,
                empty,
            },
            time_ids: tensors.time_ids,
            draws,
            buckets: None,
            guidance: self.told_guidance()?,
            users: None,
        };
        Ok(Encoded {
            records,
            sample_shape: shape,
            rejected: Some(rejected),
            vae,
            sample_embeddings,
            samples,
        })
    }

    /// Settings that given tensors leave nothing to decide.
    fn refuse_unused(&self, settings: &Settings, pairs: &LatentPairs) -> Result<()> {
        let unused = |key: &str, hint: &str| {
            Err(Error::Recipe {
                key: format!("method.{}.{key}", settings.method),
                problem: "is unused with this latent-pairs data".into(),
                hint: hint.into(),
            })
        };
        if settings.text == TextTraining::Trained {
            return unused("train_text_encoder", "its prompts are already encoded: leave it out");
        }
        if settings.resolution.is_some() {
            return unused("resolution", "its images are already encoded: leave it out");
        }
        let posterior = format!("method.{}.posterior", settings.method);
        if settings.posterior != PosteriorUse::default() || self.recipe.source.says(&posterior) {
            return unused("posterior", "its latents are already drawn: leave it out");
        }
        if settings.timesteps != TimestepConfig::default() && pairs.tensors().timesteps.is_some() {
            return unused("timesteps", "it carries timesteps: leave the key out, or the tensor");
        }
        Ok(())
    }

    /// Refuses tensors that the denoiser cannot take, which its first step would find out otherwise.
    fn check_fit(&self, pairs: &LatentPairs) -> Result<()> {
        let config = DenoiserConfig::read(self.pipeline)?;
        let file = format!("{}/config.json", denoiser_component(self.pipeline));
        let tensors = pairs.tensors();
        let misfit = |record: usize, name: &'static str, found: String, expected: String| Error::Record {
            id: pairs.record_id(record),
            name,
            found,
            expected,
        };
        let (latents, text) = (tensors.latents_chosen.shape(), tensors.encoder_hidden_states.shape());
        // All shards agree in shapes, so that the first record stands for all.
        let (channels, key) = config.latent_channels();
        if latents[1] != channels {
            let expected = format!("{channels}, {key} of {file}");
            return Err(misfit(
                0,
                "latents_chosen",
                format!("{} channels", latents[1]),
                expected,
            ));
        }
        let (width, key) = config.text_dim();
        if text[2] != width {
            let expected = format!("{width}, `{key}` of {file}");
            let found = format!("{} values a token", text[2]);
            return Err(misfit(0, "encoder_hidden_states", found, expected));
        }
        check_added(&config, tensors)?;
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        let last = schedule.num_train_timesteps() - 1;
        let outside = |&(_, &timestep): &(usize, &u32)| timestep as usize > last;
        match tensors.timesteps.iter().flatten().enumerate().find(outside) {
            Some((record, timestep)) => {
                let expected = format!("0 to {last}, the timesteps of the noise schedule");
                Err(misfit(record, "timesteps", timestep.to_string(), expected))
            }
            None => Ok(()),
        }
    }
}

/// Refuses data with or without pooled texts, sizes and crops for a denoiser that does not take them, or needs them.
fn check_added(config: &DenoiserConfig, tensors: &LatentTensors) -> Result<()> {
    let pooled = tensors.pooled.as_ref().map(|pooled| pooled.shape()[1]);
    let Some(unet) = config.unet() else {
        return check_pooled(config, pooled, tensors.time_ids.is_some());
    };
    let problem = match (unet.addition_embed, pooled) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) if tensors.time_ids.is_none() => "has no `time_ids`, which this denoiser needs".to_owned(),
        (Some(added), Some(pooled)) if sizes::fit(added, pooled) => return Ok(()),
        (None, Some(_)) => "has `pooled` and `time_ids`, which this denoiser does not take".to_owned(),
        (Some(_), None) => "has no `pooled` and `time_ids`, which this denoiser needs".to_owned(),
        (Some(added), Some(pooled)) => format!(
            "has `pooled` of {pooled} values; with 6 times {} (`addition_time_embed_dim`) they do not make {} \
             (`projection_class_embeddings_input_dim`)",
            added.addition_time_embed_dim, added.projection_class_embeddings_input_dim
        ),
    };
    Err(misencoded(problem))
}

/// The same for a transformer, which takes pooled texts and no sizes.
fn check_pooled(config: &DenoiserConfig, pooled: Option<usize>, has_time_ids: bool) -> Result<()> {
    let problem = match (pooled, config.pooled_dim(), has_time_ids) {
        (_, _, true) => "has `time_ids`, which this denoiser does not take".to_owned(),
        (Some(found), Some(expected), false) if found != expected => {
            format!("has `pooled` of {found} values, and this denoiser takes {expected}")
        }
        (None, Some(_), false) => "has no `pooled`, which this denoiser needs".to_owned(),
        (Some(_), None, false) => "has `pooled`, which this denoiser does not take".to_owned(),
        (Some(_), Some(_), false) | (None, None, false) => return Ok(()),
    };
    Err(misencoded(problem))
}

fn misencoded(problem: String) -> Error {
    Error::Recipe {
        key: "data.path".into(),
        problem,
        hint: "use data encoded for this denoiser's text encoders".into(),
    }
}
