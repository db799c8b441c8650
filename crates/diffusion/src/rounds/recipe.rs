//! The recipe of one round: an ordinary one, that anybody can run again.

use diptych_data::Layout;
use diptych_models::AdapterConfig;
use diptych_tensor::random::{Stream, generator};
use diptych_train::{OneOrMany, Recipe, ReferenceConfig};
use rand::Rng as _;

use super::config::RoundRecords;
use super::place::RoundDirectory;
use super::policies::{Cast, Policy, Weights, absolute};
use super::{draws, records};
use crate::modality::Diffusion;
use crate::{Error, Result};

/// The seed of a round's training; 63 bits, which TOML can hold.
pub(super) fn seed_of(seed: u64, round: usize) -> u64 {
    generator(seed, Stream::Rounds, round as u64, draws::TRAINING).random::<u64>() >> 1
}

/// The recipe of round `round`, which trains on the records of the rounds `data`.
pub(super) fn of_round(
    recipe: &Recipe<Diffusion>,
    (round, directory): (usize, &RoundDirectory),
    cast: &Cast,
    data: &[RoundDirectory],
) -> Result<Recipe<Diffusion>> {
    let Some(rounds) = &recipe.rounds else {
        return Ok(recipe.clone());
    };
    let mut own = initial(recipe)?;
    own.run.seed = seed_of(recipe.run.seed, round);
    own.run.output = absolute(directory.path())?;
    own.data.layout = match &rounds.records {
        RoundRecords::Candidates(_) | RoundRecords::SelfPlay(_) => Layout::Preference,
        RoundRecords::Curated(_) => Layout::ImageCaption,
    };
    let files = data.iter().map(|place| absolute(&place.records().join(records::FILE)));
    own.data.path = OneOrMany::Many(files.collect::<Result<_>>()?);
    // These say how given data is read; what a round writes has nothing to leave out.
    (own.data.ties, own.data.on_error, own.data.pairs, own.data.min_margin) = (None, None, None, None);
    own.reference = reference(&own, cast);
    start_from(&mut own, &cast.start);
    own.evaluation = None;
    if own.train.sample_every == 0 {
        own.samples = None;
    }
    let text = toml::to_string_pretty(&own.to_table()?).map_err(|error| Error::Recipe {
        key: "rounds".into(),
        problem: format!("gives a round whose recipe cannot be written: {error}"),
        hint: "this is a defect of the program".into(),
    })?;
    Ok(Recipe::parse(
        &format!("# Round {round}, made by its run.\n{text}"),
        &[],
    )?)
}

/// The recipe without its rounds, and with paths that mean the same wherever they are read.
pub(super) fn initial(recipe: &Recipe<Diffusion>) -> Result<Recipe<Diffusion>> {
    let mut own = recipe.clone();
    own.rounds = None;
    own.model.path = absolute(&recipe.model_path()?)?;
    if let AdapterConfig::Lora(lora) = &mut own.adapter.0
        && let Some(path) = &lora.init
    {
        lora.init = Some(absolute(&recipe.resolve_path("adapter.lora.init", path)?)?);
    }
    own.run.seed = seed_of(recipe.run.seed, 1);
    Ok(own)
}

fn start_from(own: &mut Recipe<Diffusion>, start: &Policy) {
    match (&start.weights, &mut own.adapter.0) {
        (Weights::Adapter(path), AdapterConfig::Lora(lora)) => lora.init = Some(path.clone()),
        (Weights::Pipeline(path), _) => own.model.path = path.clone(),
        (Weights::Base, _) | (Weights::Adapter(_), AdapterConfig::Full(_)) => {}
    }
}

/// What the policy is compared with; `own` has the model that the run was begun with.
fn reference(own: &Recipe<Diffusion>, cast: &Cast) -> ReferenceConfig {
    let Some(reference) = &cast.reference else {
        return ReferenceConfig::None {};
    };
    match (&reference.weights, &own.adapter.0) {
        // The same network without its adapter.
        (Weights::Base, AdapterConfig::Lora(_)) => ReferenceConfig::AdapterOff {},
        (Weights::Base, AdapterConfig::Full(_)) if cast.start.weights == Weights::Base => ReferenceConfig::Frozen {},
        (Weights::Base, AdapterConfig::Full(_)) => ReferenceConfig::Checkpoint {
            path: own.model.path.clone(),
        },
        (Weights::Adapter(path) | Weights::Pipeline(path), _) => ReferenceConfig::Checkpoint { path: path.clone() },
    }
}
