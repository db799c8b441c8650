//! The `latent-pairs` layout: pairs that were already encoded, so that neither a tokenizer, text encoder nor VAE is
//! needed.
//!
//! Shape letters: N records, C channels, Y x X spatial, T tokens, D width, P pooled width.

use std::path::PathBuf;

use crate::HostTensor;
use crate::error::{Error, Result, ShardProblem};

/// The tensors of encoded pairs; record `i` is row `i` of each.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentTensors {
    /// (N, C, Y, X). VAE latents of the preferred images, already scaled as the denoiser takes them.
    pub latents_chosen: HostTensor,
    /// (N, C, Y, X). The same of the other images.
    pub latents_rejected: HostTensor,
    /// (N, T, D). The text encoder's states of the prompts.
    pub encoder_hidden_states: HostTensor,
    /// (N, P). SDXL: the second text encoder's pooled output; SD3: those of both CLIP encoders; Flux: the CLIP encoder's.
    pub pooled: Option<HostTensor>,
    /// (N, 6). SDXL: original size, crop corner and target size.
    pub time_ids: Option<HostTensor>,
    /// (N, C, Y, X). Noise to use as given, to replay another trainer's run.
    pub noise: Option<HostTensor>,
    /// (N). Timesteps to use as given.
    pub timesteps: Option<Vec<u32>>,
    /// (N). A judge's scores of the preferred images; together with those of the others.
    pub chosen_score: Option<HostTensor>,
    /// (N). The same of the other images.
    pub rejected_score: Option<HostTensor>,
}

impl LatentTensors {
    /// Every tensor of the layout with its shape, in the order of the fields.
    pub const NAMES: [(&'static str, &'static str); 9] = [
        ("latents_chosen", "(N, C, H, W)"),
        ("latents_rejected", "(N, C, H, W)"),
        ("encoder_hidden_states", "(N, T, D)"),
        ("pooled", "(N, P)"),
        ("time_ids", "(N, 6)"),
        ("noise", "(N, C, H, W)"),
        ("timesteps", "(N)"),
        ("chosen_score", "(N)"),
        ("rejected_score", "(N)"),
    ];

    /// The float tensors that are present, with their names.
    pub fn floats(&self) -> Vec<(&'static str, &HostTensor)> {
        let mut tensors = vec![
            ("latents_chosen", &self.latents_chosen),
            ("latents_rejected", &self.latents_rejected),
            ("encoder_hidden_states", &self.encoder_hidden_states),
        ];
        let optional = [
            ("pooled", &self.pooled),
            ("time_ids", &self.time_ids),
            ("noise", &self.noise),
            ("chosen_score", &self.chosen_score),
            ("rejected_score", &self.rejected_score),
        ];
        tensors.extend(
            optional
                .into_iter()
                .filter_map(|(name, tensor)| tensor.as_ref().map(|tensor| (name, tensor))),
        );
        tensors
    }

    /// Number of records, N.
    pub fn num_records(&self) -> usize {
        self.latents_chosen.num_records()
    }

    /// Checks that the tensors fit together and that every value is finite.
    pub(crate) fn check(&self) -> std::result::Result<(), ShardProblem> {
        let latents = self.latents_chosen.shape();
        rank("latents_chosen", latents, 4)?;
        for (name, tensor) in [
            ("latents_rejected", Some(&self.latents_rejected)),
            ("noise", self.noise.as_ref()),
        ] {
            if let Some(tensor) = tensor
                && tensor.shape() != latents
            {
                return Err(shape(name, tensor.shape(), format!("{latents:?} as `latents_chosen`")));
            }
        }
        rank("encoder_hidden_states", self.encoder_hidden_states.shape(), 3)?;
        if let Some(pooled) = &self.pooled {
            rank("pooled", pooled.shape(), 2)?;
        }
        if let Some(time_ids) = &self.time_ids
            && (time_ids.shape().len() != 2 || time_ids.shape()[1] != 6)
        {
            return Err(shape("time_ids", time_ids.shape(), "(N, 6)".to_owned()));
        }
        // SD3 and Flux have pooled texts alone; sizes and crops are SDXL's, which has both.
        if let (None, Some(_)) = (&self.pooled, &self.time_ids) {
            return Err(ShardProblem::MissingTensor {
                name: "pooled",
                shape: "(N, P)",
                hint: "; `time_ids` (SDXL) come with it",
            });
        }
        self.check_scores()?;
        self.check_counts()?;
        self.floats()
            .into_iter()
            .try_for_each(|(name, tensor)| finite(name, tensor))
    }

    fn check_scores(&self) -> std::result::Result<(), ShardProblem> {
        let scores = [
            (
                "chosen_score",
                &self.chosen_score,
                "rejected_score",
                &self.rejected_score,
            ),
            (
                "rejected_score",
                &self.rejected_score,
                "chosen_score",
                &self.chosen_score,
            ),
        ];
        for (name, score, other, of_other) in scores {
            if let Some(score) = score {
                rank(name, score.shape(), 1)?;
                if of_other.is_none() {
                    return Err(ShardProblem::MissingTensor {
                        name: other,
                        shape: "(N)",
                        hint: "; `chosen_score` and `rejected_score` come together",
                    });
                }
            }
        }
        Ok(())
    }

    fn check_counts(&self) -> std::result::Result<(), ShardProblem> {
        let num_records = self.num_records();
        let expected = || format!("{num_records} records in the first dimension as `latents_chosen`");
        for (name, tensor) in self.floats() {
            if tensor.num_records() != num_records {
                return Err(shape(name, tensor.shape(), expected()));
            }
        }
        match &self.timesteps {
            Some(timesteps) if timesteps.len() != num_records => {
                Err(shape("timesteps", &[timesteps.len()], expected()))
            }
            _ => Ok(()),
        }
    }

    /// What must be the same in every shard: which tensors there are, and the shape of one record of each.
    pub(crate) fn signature(&self) -> Vec<(&'static str, Option<Vec<usize>>)> {
        let floats = self.floats();
        let present = |name| {
            let found = floats
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, tensor)| tensor.shape()[1..].to_vec());
            found.or_else(|| (name == "timesteps" && self.timesteps.is_some()).then(Vec::new))
        };
        Self::NAMES.iter().map(|(name, _)| (*name, present(*name))).collect()
    }

    /// For shards with the same signature.
    fn append(&mut self, other: Self) {
        self.latents_chosen.append(other.latents_chosen);
        self.latents_rejected.append(other.latents_rejected);
        self.encoder_hidden_states.append(other.encoder_hidden_states);
        let optional = [
            (&mut self.pooled, other.pooled),
            (&mut self.time_ids, other.time_ids),
            (&mut self.noise, other.noise),
            (&mut self.chosen_score, other.chosen_score),
            (&mut self.rejected_score, other.rejected_score),
        ];
        for (mine, theirs) in optional {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                mine.append(theirs);
            }
        }
        if let (Some(mine), Some(theirs)) = (&mut self.timesteps, other.timesteps) {
            mine.extend(theirs);
        }
    }

    /// A range of the records.
    pub(crate) fn slice(&self, records: std::ops::Range<usize>) -> Self {
        let part = |tensor: &HostTensor| tensor.slice(records.clone());
        Self {
            latents_chosen: part(&self.latents_chosen),
            latents_rejected: part(&self.latents_rejected),
            encoder_hidden_states: part(&self.encoder_hidden_states),
            pooled: self.pooled.as_ref().map(part),
            time_ids: self.time_ids.as_ref().map(part),
            noise: self.noise.as_ref().map(part),
            timesteps: self
                .timesteps
                .as_ref()
                .map(|timesteps| timesteps[records.clone()].to_vec()),
            chosen_score: self.chosen_score.as_ref().map(part),
            rejected_score: self.rejected_score.as_ref().map(part),
        }
    }
}

/// All records of a `latent-pairs` dataset, checked to fit together, in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentPairs {
    tensors: LatentTensors,
    /// File and number of records of each shard, in order; empty for tensors that come from memory.
    shards: Vec<(PathBuf, usize)>,
}

impl LatentPairs {
    /// Pairs from memory.
    ///
    /// # Errors
    /// [`Error::Tensors`] when shapes or counts disagree, `time_ids` come without `pooled`, or a value is
    /// NaN or infinite.
    pub fn new(tensors: LatentTensors) -> Result<Self> {
        tensors.check().map_err(Error::Tensors)?;
        Ok(Self {
            tensors,
            shards: Vec::new(),
        })
    }

    /// Reads the shards in the given order. All must hold the same tensors with the same shapes but for N.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut all: Option<(LatentTensors, Vec<(PathBuf, usize)>)> = None;
        for path in paths {
            let tensors = crate::shard::read(path)?;
            let shard = (path.clone(), tensors.num_records());
            match &mut all {
                None => all = Some((tensors, vec![shard])),
                Some((so_far, shards)) => {
                    agree(so_far, &tensors, &shards[0].0).map_err(|problem| Error::Shard {
                        path: path.clone(),
                        problem,
                    })?;
                    so_far.append(tensors);
                    shards.push(shard);
                }
            }
        }
        let (tensors, shards) = all.ok_or(Error::NoPaths)?;
        Ok(Self { tensors, shards })
    }

    /// The tensors.
    pub fn tensors(&self) -> &LatentTensors {
        &self.tensors
    }

    /// The tensors, for a trainer that moves them elsewhere.
    pub fn into_tensors(self) -> LatentTensors {
        self.tensors
    }

    /// Number of records; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a tensor without records cannot be built")]
    pub fn len(&self) -> usize {
        self.tensors.num_records()
    }

    /// Names record `index` in messages: `shard file:record in it`, both from 0, or the index where there is no file.
    pub fn record_id(&self, index: usize) -> String {
        let mut within = index;
        for (path, len) in &self.shards {
            if within < *len {
                return format!("{}:{within}", path.file_name().unwrap_or_default().to_string_lossy());
            }
            within -= len;
        }
        index.to_string()
    }
}

/// Whether a shard has the tensors and shapes of the first one.
pub(crate) fn agree(
    first: &LatentTensors,
    other: &LatentTensors,
    first_path: &std::path::Path,
) -> std::result::Result<(), ShardProblem> {
    let say = |shape: &Option<Vec<usize>>| match shape {
        None => "is absent".to_owned(),
        Some(shape) => format!("has records of shape {shape:?}"),
    };
    match first
        .signature()
        .into_iter()
        .zip(other.signature())
        .find(|(expected, found)| expected != found)
    {
        None => Ok(()),
        Some(((name, expected), (_, found))) => Err(ShardProblem::Disagrees {
            name: name.to_owned(),
            found: say(&found),
            expected: say(&expected),
            first: first_path.to_path_buf(),
        }),
    }
}

fn shape(name: &str, found: &[usize], expected: String) -> ShardProblem {
    ShardProblem::Shape {
        name: name.to_owned(),
        found: found.to_vec(),
        expected,
    }
}

fn rank(name: &str, found: &[usize], rank: usize) -> std::result::Result<(), ShardProblem> {
    if found.len() == rank {
        return Ok(());
    }
    let letters = LatentTensors::NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, letters)| letters);
    Err(shape(name, found, letters.to_owned()))
}

fn finite(name: &str, tensor: &HostTensor) -> std::result::Result<(), ShardProblem> {
    let record_len = tensor.data().len() / tensor.num_records();
    match tensor.data().iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(first) => Err(ShardProblem::NotFinite {
            name: name.to_owned(),
            record: first / record_len,
            count: tensor.data().iter().filter(|value| !value.is_finite()).count(),
        }),
    }
}
