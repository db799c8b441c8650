//! Methods: how the numbers for an objective are obtained.

mod checks;
mod config;
mod diagnostics;
mod engine;
mod frequency;
mod image_preference;
mod offline_pairs;
mod online_kl;
mod other_images;
mod own_answer;
mod prepare;
mod ranked;
mod rationale;
mod reference;
mod sft;
mod shift;
mod texts;
mod token_divergence;
mod token_perturbation;
mod token_weights;
mod unpaired;

use std::path::{Path, PathBuf};

use diptych_tensor::{Params, Weights};
use diptych_train::{Method, MicroBatch, StepOutput};

pub use self::checks::{
    CHECKPOINT, TokensWanted, check_tokens, coupling_note, is_model, warn_of_long, warn_of_unused_rationales,
};
pub use self::config::{
    BatchConfig, LossOn, MethodConfig, OfflinePairsConfig, OnlineKlConfig, RationaleConfig, SftConfig,
};
use self::diagnostics::SharedWatch;
pub use self::diagnostics::{WatchAction, WatchConfig};
use self::engine::Engine;
pub use self::frequency::{FrequencyConfig, FrequencyForm};
pub use self::image_preference::{Anchor, Combination, ImagePreference, ImagePreferenceConfig, ImageScores};
use self::online_kl::OnlineKlTerm;
pub use self::other_images::{ReferenceDraw, Spoil, SpoilKey};
pub use self::own_answer::{OwnAnswer, OwnAnswerConfig, ReferenceTokens};
pub use self::prepare::{
    ImageTerms, MAX_LEN, MethodParts, assemble, complete_records, encoding_of, learn, load_dataset, network_options,
    pad_token_id, prepare,
};
pub(crate) use self::prepare::{load_records, sampled_prompts};
use self::shift::SharedShift;
pub use self::token_divergence::{DivergenceRole, TokenDivergenceConfig};
pub use self::token_perturbation::{Likeness, Perturbed, Replacement, TokenPerturbation};
pub use self::token_weights::{TokenWeightsConfig, WeightNormalization};
use crate::network::Network;
use crate::policy::Trained;
use crate::reference::save_state;
use crate::samples::TextSamples;
use crate::{Error, Result};

/// A method with its networks and records, ready for the loop.
#[derive(Debug)]
pub struct LanguageMethod {
    engine: Engine,
    work: Work,
    shift: SharedShift,
    samples: Option<TextSamples>,
}

/// Which method it is.
#[derive(Debug)]
enum Work {
    OfflinePairs(Box<PairWork>),
    Unpaired,
    Ranked,
    Sft,
}

/// What comes beside the objective of pairs.
#[derive(Debug)]
struct PairWork {
    watch: SharedWatch,
    online_kl: Option<OnlineKlTerm>,
    /// The factor of the rationales' term.
    rationale_weight: Option<f64>,
    terms: ImageTerms,
    token_divergence: Option<TokenDivergenceConfig>,
    frequency: Option<FrequencyConfig>,
    /// The factor of the objective of weighed tokens beside that of plain ones.
    beside: Option<f64>,
}

impl LanguageMethod {
    /// The network that is trained.
    pub fn policy(&self) -> &Trained<Network> {
        &self.engine.policy
    }
}

impl Method for LanguageMethod {
    type Error = Error;

    fn params(&self) -> &Params {
        &self.engine.policy.params
    }

    fn num_records(&self) -> usize {
        self.engine.records.len()
    }

    fn record_id(&self, index: usize) -> String {
        self.engine.records[index].id.clone()
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        match &self.work {
            Work::OfflinePairs(work) => {
                let mut output = offline_pairs::step(&self.engine, work, &self.shift, batch)?;
                if let Some(online_kl) = &work.online_kl {
                    online_kl.term(&self.engine, batch)?.add_to(&mut output)?;
                }
                if let Some(weight) = work.rationale_weight
                    && let Some(term) = rationale::term(&self.engine, batch, weight)?
                {
                    term.add_to(&mut output)?;
                }
                work.watch.lock()?.look(batch, &output)?;
                Ok(output)
            }
            Work::Unpaired => unpaired::step(&self.engine, &self.shift, batch),
            Work::Ranked => ranked::step(&self.engine, batch),
            Work::Sft => sft::step(&self.engine, batch),
        }
    }

    fn after_step(&self, step: u64) -> Result<()> {
        self.shift.lock()?.commit();
        if let Work::OfflinePairs(work) = &self.work {
            work.watch.lock()?.commit();
        }
        self.engine.reference.after_step(self.params(), step)
    }

    fn save_state(&self, path: &Path) -> Result<bool> {
        let mut state = self.shift.lock()?.tensors()?;
        if let Work::OfflinePairs(work) = &self.work {
            state.extend(work.watch.lock()?.tensors()?);
        }
        state.extend(self.engine.reference.state()?);
        save_state(path, &state)
    }

    fn load_state(&self, path: &Path) -> Result<()> {
        let weights = Weights::open(path)?;
        self.engine.reference.restore(&weights)?;
        if let Work::OfflinePairs(work) = &self.work {
            work.watch.lock()?.restore(&weights)?;
        }
        self.shift.lock()?.restore(&weights)
    }

    fn save(&self, directory: &Path) -> Result<()> {
        self.engine.policy.save(directory)
    }

    fn save_final(&self, directory: &Path) -> Result<()> {
        self.engine.policy.save_final(directory)
    }

    fn load(&self, directory: &Path) -> Result<()> {
        self.engine.policy.restore(directory)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        self.samples
            .as_ref()
            .map(|samples| samples.write(self.engine.network(), stem))
            .transpose()
    }
}
