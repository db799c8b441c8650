//! The loop of rounds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diptych_data::ImageSource;
use diptych_eval::JudgeOptions;
use diptych_tensor::files::{write_directory, write_file};
use diptych_train::{LoopConfig, Recipe, Reporter, ResumeMode, RunDirectory, RunLock, Summary, compare_runs};

use super::config::{Accumulate, RoundsConfig};
use super::judgements::{Court, Judgements};
use super::material::Sources;
use super::place::{
    PolicyRecord, RoundBeginning, RoundDirectory, RoundsDirectory, create, read_json, remove, write_json,
};
use super::policies::{Cast, History, Policy, cast};
use super::recipe as round_recipe;
use super::records::{Material, SUMMARY};
use super::sampling::{Part, PartSampler, parts, wanted};
use super::scores::Examination;
use super::start::{check, refuse_other_length, resolved};
use super::summary::{MadeRecords, RoundSummary, RoundsOutcome, RoundsSummary};
use crate::method::{complete, network_options};
use crate::modality::Diffusion;
use crate::pipeline::NetworkOptions;
use crate::run::{publish_win_rate, run_reported};
use crate::stage::Stage;
use crate::{Error, Result};

/// A run of several rounds.
pub(super) struct Play<'a> {
    recipe: &'a Recipe<Diffusion>,
    rounds: RoundsConfig,
    /// What the first round's networks are built by.
    first: Recipe<Diffusion>,
    model: PathBuf,
    options: NetworkOptions,
    directory: RoundsDirectory,
    output: RunDirectory,
    history: History,
    judgements: Judgements,
    examination: Option<Examination>,
    /// Read when a round needs them.
    sources: Option<Sources>,
    initial_scores: Option<Vec<f64>>,
    previous_scores: Option<Vec<f64>>,
    done: Vec<RoundSummary>,
    /// Of the directory of all rounds; each training has one of its own.
    _lock: RunLock,
}

impl<'a> Play<'a> {
    /// Checks what would fail later, and makes the directory.
    pub(super) fn begin(
        recipe: &'a Recipe<Diffusion>,
        rounds: &RoundsConfig,
        config: &LoopConfig,
        resume: ResumeMode,
    ) -> Result<Self> {
        let output = RunDirectory::new(&config.output);
        if resume == ResumeMode::Resume {
            refuse_other_length(recipe, &output)?;
        }
        let rounds = resolved(recipe, rounds)?;
        check(recipe, &rounds)?;
        let lock = output.lock()?;
        if let Some(plan) = &config.plan {
            write_file(&output.plan(), plan.to_toml()?.as_bytes())?;
        }
        if let Some(text) = &config.recipe_text {
            write_file(&output.recipe(), text.as_bytes())?;
        }
        let directory = RoundsDirectory::new(output.path());
        Ok(Self {
            recipe,
            rounds,
            first: round_recipe::initial(recipe)?,
            model: recipe.model_path()?,
            options: network_options(recipe)?,
            judgements: Judgements::open(&directory.judgements())?,
            directory,
            output,
            history: History::new(recipe)?,
            examination: Examination::of(recipe)?,
            sources: None,
            initial_scores: None,
            previous_scores: None,
            done: Vec::new(),
            _lock: lock,
        })
    }

    /// All rounds.
    pub(super) fn go(&mut self, reporter: &mut Reporter<'_>, stop: &AtomicBool) -> Result<RoundsOutcome> {
        match self.all(reporter, stop) {
            Ok(is_whole) => self.conclude(is_whole),
            // What is complete lies in files already.
            Err(Error::Stopped(_)) => self.conclude(false),
            Err(error) => Err(error),
        }
    }

    /// Whether no round was stopped.
    fn all(&mut self, reporter: &mut Reporter<'_>, stop: &AtomicBool) -> Result<bool> {
        if self.examination.is_some() {
            let scores = self.examine(
                &self.history.initial().clone(),
                &self.directory.initial_scores(),
                reporter,
            )?;
            self.previous_scores.clone_from(&scores);
            self.initial_scores = scores;
        }
        for round in 1..=self.rounds.num_rounds {
            let Some(summary) = self.round(round, reporter, stop)? else {
                return Ok(false);
            };
            self.done.push(summary);
            self.write_summary(round < self.rounds.num_rounds)?;
            reporter.advance(Stage::Rounds, round as u64, self.rounds.num_rounds as u64)?;
        }
        Ok(true)
    }

    /// One round, or what is missing of it; `None` when its training was stopped.
    fn round(&mut self, round: usize, reporter: &mut Reporter<'_>, stop: &AtomicBool) -> Result<Option<RoundSummary>> {
        let place = self.directory.round(round);
        let seed = self.recipe.run.seed;
        let cast = cast(&self.history, (&self.rounds, seed), (round, &place), &self.first)?;
        let beginning = self.begin_round(round, &place, &cast)?;
        let made = self.records(&place, &cast, &beginning, reporter)?;
        let rounds: Vec<RoundDirectory> = match self.rounds.accumulate {
            Accumulate::Newest => vec![place.clone()],
            Accumulate::All => (1..=round).map(|round| self.directory.round(round)).collect(),
        };
        let own = round_recipe::of_round(self.recipe, (round, &place), &cast, &rounds)?;
        let mut training = train(&own, reporter, stop)?;
        if training.stopped {
            return Ok(None);
        }
        let output = RunDirectory::new(place.path());
        self.history.push(round, &output.final_weights())?;
        let scores = self.examine(&self.history.newest().clone(), &place.scores(), reporter)?;
        let [against_initial, against_previous] = self.compared(scores.as_deref())?;
        if let (Some(examination), Some(win_rate)) = (&self.examination, &against_initial) {
            publish_win_rate(win_rate, examination.config(), &output, &mut training)?;
        }
        self.previous_scores = scores;
        Ok(Some(RoundSummary {
            beginning,
            made,
            training,
            against_initial,
            against_previous,
        }))
    }

    /// Writes what the round is begun with; one that goes on must be begun with the same.
    fn begin_round(&self, round: usize, place: &RoundDirectory, cast: &Cast) -> Result<RoundBeginning> {
        let judge = match self.rounds.records.judge() {
            Some(judge) => Some([judge.name().to_owned(), judge.content_hash()?]),
            None => None,
        };
        let reference = cast.reference.as_ref().map(Policy::record);
        let samplers = cast.samplers.iter().map(Policy::record);
        let beginning = RoundBeginning {
            round,
            seed: round_recipe::seed_of(self.recipe.run.seed, round),
            start: cast.start.record()?,
            reference: reference.transpose()?,
            samplers: samplers.collect::<Result<Vec<PolicyRecord>>>()?,
            judge,
        };
        match read_json::<RoundBeginning>(&place.beginning())? {
            Some(known) if known != beginning => {
                let change = |known: &RoundBeginning, now: &RoundBeginning| format!("was {known:?}, is {now:?}");
                Err(Error::from(diptych_train::Error::Changed {
                    path: place.beginning(),
                    changes: vec![change(&known, &beginning)],
                }))
            }
            Some(known) => Ok(known),
            None => {
                create(place.path())?;
                write_json(&place.beginning(), &beginning)?;
                Ok(beginning)
            }
        }
    }

    /// Makes the records of a round, or reads what was made.
    fn records(
        &mut self,
        place: &RoundDirectory,
        cast: &Cast,
        beginning: &RoundBeginning,
        reporter: &mut Reporter<'_>,
    ) -> Result<MadeRecords> {
        let summary = place.records().join(SUMMARY);
        if let Some(made) = read_json::<MadeRecords>(&summary)? {
            remove(&place.samples())?;
            return Ok(made);
        }
        let (seed, round) = (self.recipe.run.seed, beginning.round);
        let (prompts, real) = self.sources(reporter)?.of_round(round)?;
        let (num_samplers, per_prompt) = (cast.samplers.len(), self.rounds.records.images_per_prompt());
        let wanted = wanted((seed, round), prompts.len(), per_prompt, num_samplers);
        let batch_size = self.rounds.sampling.batch_size;
        let parts = parts((seed, round), &wanted, num_samplers, batch_size, &place.samples());
        let sampler = PartSampler {
            model: &self.model,
            options: &self.options,
            samplers: &cast.samplers,
            sampling: self.rounds.sampling,
            prompts: &prompts,
            wanted: &wanted,
        };
        sampler.sample(&parts, &place.samples(), reporter)?;
        let scores = judged(&self.rounds, &mut self.judgements, &sampler, &parts, reporter)?;
        let material = Material {
            round,
            seed,
            prompts: &prompts,
            wanted: &wanted,
            samplers: &beginning.samplers,
            scores: scores.as_deref(),
            real: &real,
        };
        let selection = material.select(&self.rounds)?;
        let used = used_images(&sampler, &parts, &selection.images(wanted.len()))?;
        let made = material.write(&place.records(), &selection, &used)?;
        remove(&place.samples())?;
        Ok(made)
    }

    fn sources(&mut self, reporter: &mut Reporter<'_>) -> Result<&Sources> {
        if self.sources.is_none() {
            self.sources = Some(Sources::open(self.recipe, &self.rounds, reporter)?);
        }
        // Set just now, if it was not before.
        self.sources.as_ref().ok_or(Error::MissingComponent {
            action: "a round",
            component: "prompts",
        })
    }

    fn examine(&mut self, policy: &Policy, path: &Path, reporter: &mut Reporter<'_>) -> Result<Option<Vec<f64>>> {
        let Some(examination) = &self.examination else {
            return Ok(None);
        };
        let scores = examination.scores(
            (policy, path),
            (&self.model, &self.options),
            &mut self.judgements,
            reporter,
        )?;
        Ok(Some(scores))
    }

    /// Against the initial policy, and that of the round before.
    fn compared(&self, scores: Option<&[f64]>) -> Result<[Option<diptych_eval::WinRate>; 2]> {
        let against = |base: &Option<Vec<f64>>| match (&self.examination, base, scores) {
            (Some(examination), Some(base), Some(scores)) => examination.compare(base, scores).map(Some),
            _ => Ok(None),
        };
        Ok([against(&self.initial_scores)?, against(&self.previous_scores)?])
    }

    fn write_summary(&self, stopped: bool) -> Result<RoundsSummary> {
        let mean = |scores: &Vec<f64>| scores.iter().sum::<f64>() / scores.len() as f64;
        let summary = RoundsSummary {
            stopped,
            initial_score: self.initial_scores.as_ref().map(mean),
            rounds: self.done.clone(),
        };
        write_json(&self.output.summary(), &summary)?;
        Ok(summary)
    }

    fn conclude(&self, is_whole: bool) -> Result<RoundsOutcome> {
        let directories: Vec<PathBuf> = (1..=self.done.len())
            .map(|round| self.directory.round(round).path().to_owned())
            .collect();
        if directories.len() > 1 {
            compare_runs(&directories, &self.directory.comparison())?;
        }
        if let (true, Some(last)) = (is_whole, directories.last()) {
            let published = self.output.final_weights();
            // Of fewer rounds.
            remove(&published)?;
            let last = RunDirectory::new(last).final_weights();
            write_directory::<Error>(&published, |partial| complete(&last, partial))?;
        }
        Ok(RoundsOutcome {
            summary: self.write_summary(!is_whole)?,
            output: self.output.path().to_owned(),
        })
    }
}

/// Trains a round, or what is missing of it.
fn train(own: &Recipe<Diffusion>, reporter: &mut Reporter<'_>, stop: &AtomicBool) -> Result<Summary> {
    let output = RunDirectory::new(&own.run.output);
    if output.final_weights().is_dir()
        && let Some(summary) = read_json::<Summary>(&output.summary())?
        && !summary.stopped
    {
        return Ok(summary);
    }
    let mode = if output.plan().is_file() {
        ResumeMode::Resume
    } else {
        ResumeMode::Fresh
    };
    Ok(run_reported(own, reporter, stop, mode)?.summary)
}

/// A judge's scores of all images, part by part; `None` where nobody judges.
fn judged(
    rounds: &RoundsConfig,
    kept: &mut Judgements,
    sampler: &PartSampler<'_>,
    parts: &[Part],
    reporter: &mut Reporter<'_>,
) -> Result<Option<Vec<f64>>> {
    let Some(judge) = rounds.records.judge() else {
        return Ok(None);
    };
    let options = JudgeOptions {
        device: sampler.options.device.clone(),
        ..JudgeOptions::default()
    };
    let mut court = Court::new(judge, options)?;
    let mut scores = vec![0.0; sampler.wanted.len()];
    for (number, part) in parts.iter().enumerate() {
        let images = sampler.read(part).ok_or_else(|| lost(part))?;
        let prompts: Vec<String> = images.iter().map(|image| image.prompt.clone()).collect();
        let pixels = images.iter().map(|image| Ok(image.decode()?));
        let of_part = court.scores(kept, &prompts, &pixels.collect::<Result<Vec<_>>>()?)?;
        for (&image, score) in part.images.iter().zip(of_part) {
            scores[image] = score;
        }
        reporter.advance(Stage::Judging, number as u64 + 1, parts.len() as u64)?;
    }
    Ok(Some(scores))
}

/// The images that become records, by number.
fn used_images(sampler: &PartSampler<'_>, parts: &[Part], used: &[usize]) -> Result<BTreeMap<usize, ImageSource>> {
    let mut sources = BTreeMap::new();
    for part in parts {
        let images = sampler.read(part).ok_or_else(|| lost(part))?;
        let named = part.images.iter().zip(images);
        let own = named.filter(|(number, _)| used.binary_search(number).is_ok());
        sources.extend(own.map(|(&number, image)| (number, image.image)));
    }
    Ok(sources)
}

fn lost(part: &Part) -> Error {
    super::place::io("read", part.path())(std::io::Error::from(std::io::ErrorKind::NotFound))
}
