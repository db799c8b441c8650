//! `[adapter.*]` of a recipe for texts with images.

use std::path::PathBuf;

use diptych_llm::own_targets;
use diptych_models::vlm::TowerTraining;
use diptych_models::{AdapterConfig, FullConfig, LoraConfig, LoraInit, Targets};
use serde::{Deserialize, Serialize};

/// Whether the vision tower takes part in training: the recipe key `adapter.lora.tower` or `adapter.full.tower`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TowerConfig {
    /// It stays as it is, and the features of an image are computed once a run.
    #[default]
    Frozen,
    /// It is trained as the rest is: wholly, or where targets of the adapter name layers of it.
    Trained,
}

impl From<TowerConfig> for TowerTraining {
    fn from(tower: TowerConfig) -> Self {
        match tower {
            TowerConfig::Frozen => Self::Frozen,
            TowerConfig::Trained => Self::Included,
        }
    }
}

/// `[adapter.*]`: what is trained. LoRA where the recipe has no such section, on the projections of attention where it names no
/// targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenAdapter", into = "GivenAdapter")]
pub struct VisionAdapter {
    /// Of decoder and projector, and of the tower if it takes part.
    pub adapter: AdapterConfig,
    /// Whether the tower takes part.
    pub tower: TowerConfig,
}

impl Default for VisionAdapter {
    fn default() -> Self {
        GivenAdapter::Lora(GivenLora::default()).into()
    }
}

/// The same as recipes give it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GivenAdapter {
    Lora(GivenLora),
    Full(GivenFull),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GivenLora {
    rank: usize,
    alpha: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_rslora: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_dora: bool,
    targets: Option<Targets>,
    init_weights: LoraInit,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<PathBuf>,
    tower: TowerConfig,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GivenFull {
    tower: TowerConfig,
}

impl Default for GivenLora {
    fn default() -> Self {
        let lora = LoraConfig::default();
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            use_rslora: lora.use_rslora,
            use_dora: lora.use_dora,
            targets: None,
            init_weights: lora.init_weights,
            init: lora.init,
            tower: TowerConfig::default(),
        }
    }
}

impl From<GivenAdapter> for VisionAdapter {
    fn from(given: GivenAdapter) -> Self {
        match given {
            GivenAdapter::Lora(given) => Self {
                adapter: AdapterConfig::Lora(LoraConfig {
                    rank: given.rank,
                    alpha: given.alpha,
                    use_rslora: given.use_rslora,
                    use_dora: given.use_dora,
                    targets: given.targets.unwrap_or_else(own_targets),
                    init_weights: given.init_weights,
                    init: given.init,
                }),
                tower: given.tower,
            },
            GivenAdapter::Full(given) => Self {
                adapter: AdapterConfig::Full(FullConfig {}),
                tower: given.tower,
            },
        }
    }
}

impl From<VisionAdapter> for GivenAdapter {
    fn from(adapter: VisionAdapter) -> Self {
        let tower = adapter.tower;
        match adapter.adapter {
            AdapterConfig::Lora(lora) => Self::Lora(GivenLora {
                rank: lora.rank,
                alpha: lora.alpha,
                use_rslora: lora.use_rslora,
                use_dora: lora.use_dora,
                targets: Some(lora.targets),
                init_weights: lora.init_weights,
                init: lora.init,
                tower,
            }),
            AdapterConfig::Full(FullConfig {}) => Self::Full(GivenFull { tower }),
        }
    }
}
