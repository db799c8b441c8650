//! The closed set of objectives. Adding one is a file here and a line in `objectives!`; the compiler lists the rest.

pub mod dpo;
pub mod mapo;
pub mod sft;

pub use dpo::Dpo;
pub use mapo::MaPo;
pub use sft::Sft;

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::scores::{CheckedLogps, check_chosen};
use crate::{Error, ObjectiveOutput, PairLogps, Result};

/// What an objective must be given besides the policy's scores of the chosen responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Scores of a reference network.
    pub reference: bool,
    /// Scores of a rejected response for every chosen one.
    pub rejected: bool,
}

/// One line about an objective, for listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectiveInfo {
    /// Name in recipes, files and golden data.
    pub name: &'static str,
    /// Name in full.
    pub title: &'static str,
    /// Authors, title, venue and identifier.
    pub paper: &'static str,
    /// What must be given.
    pub requirements: Requirements,
}

/// What every objective file provides to the closed set. Not open to users: the set is closed so that a recipe's
/// names, its checks and the listings can be exhaustive.
trait Formula {
    const INFO: ObjectiveInfo;

    /// Ranges of the parameters.
    fn validate(&self) -> Result<()>;

    /// Losses and rewards of checked scores.
    fn losses(&self, logps: &CheckedLogps) -> Result<ObjectiveOutput>;

    /// Losses of chosen responses alone, `(B,)`.
    fn chosen_losses(&self, _policy_chosen: &Tensor) -> Result<Tensor> {
        Err(Error::MissingRejected {
            objective: Self::INFO.name,
        })
    }
}

macro_rules! objectives {
    ($($(#[$doc:meta])* $name:literal => $variant:ident),+ $(,)?) => {
        /// A preference objective, as a recipe's `[objective.NAME]` table.
        ///
        /// ```
        /// use diptych_core::{Dpo, Objective};
        ///
        /// let objective: Objective = serde_json::from_str(r#"{ "dpo": { "beta": 0.1 } }"#)?;
        /// assert_eq!(objective, Dpo { beta: 0.1, label_smoothing: 0.0 }.into());
        /// assert!(objective.requirements().reference);
        /// # Ok::<(), serde_json::Error>(())
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        pub enum Objective {
            $($(#[$doc])* #[serde(rename = $name)] $variant($variant),)+
        }

        $(impl From<$variant> for Objective {
            fn from(objective: $variant) -> Self {
                Self::$variant(objective)
            }
        })+

        impl Objective {
            /// Names in recipes, in the order of [`Objective::CATALOG`].
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// One entry an objective.
            pub const CATALOG: &'static [ObjectiveInfo] = &[$(<$variant as Formula>::INFO),+];

            /// Name, title, paper and needs of this objective.
            pub fn info(&self) -> ObjectiveInfo {
                match self {
                    $(Self::$variant(_) => <$variant as Formula>::INFO,)+
                }
            }

            /// Checks the ranges of the parameters; callable before anything is loaded.
            ///
            /// # Errors
            /// [`Error::OutOfRange`] names the parameter, its value and the range.
            pub fn validate(&self) -> Result<()> {
                match self {
                    $(Self::$variant(objective) => Formula::validate(objective),)+
                }
            }

            /// Losses and rewards of a batch of pairs.
            ///
            /// # Shape
            /// Every score, loss and reward is `(B,)`.
            ///
            /// # Errors
            /// [`Error::OutOfRange`] as [`Objective::validate`], [`Error::Shape`] for scores that are not `(B,)` of one B,
            /// [`Error::MissingReference`] where one is needed, [`Error::Tensor`].
            pub fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
                self.validate()?;
                let logps = logps.check()?;
                match self {
                    $(Self::$variant(objective) => Formula::losses(objective, &logps),)+
                }
            }

            /// Losses of chosen responses alone, `(B,)`.
            ///
            /// # Shape
            /// `policy_chosen` and the losses are `(B,)`.
            ///
            /// # Errors
            /// [`Error::MissingRejected`] for an objective that compares two responses, else as [`Objective::pair_losses`].
            pub fn chosen_losses(&self, policy_chosen: &Tensor) -> Result<Tensor> {
                self.validate()?;
                let policy_chosen = check_chosen(policy_chosen)?;
                match self {
                    $(Self::$variant(objective) => Formula::chosen_losses(objective, &policy_chosen),)+
                }
            }
        }
    };
}

objectives! {
    /// Direct Preference Optimization; with scores of a denoiser, Diffusion-DPO.
    "dpo" => Dpo,
    /// Margin-aware Preference Optimization, without a reference.
    "mapo" => MaPo,
    /// Supervised fine-tuning on the chosen responses.
    "sft" => Sft,
}

impl Objective {
    /// Name in recipes.
    pub fn name(&self) -> &'static str {
        self.info().name
    }

    /// What must be given besides the policy's scores of the chosen responses.
    pub fn requirements(&self) -> Requirements {
        self.info().requirements
    }
}

/// `Ok` when `holds`, else the range error of a parameter.
fn in_range(
    holds: bool,
    objective: &'static str,
    parameter: &'static str,
    found: f64,
    expected: &'static str,
) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::OutOfRange {
            objective,
            parameter,
            found,
            expected,
        })
    }
}
