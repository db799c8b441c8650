//! `train.gradient_checkpointing`.

use std::fmt;
use std::num::NonZeroUsize;

use diptych_tensor::CheckpointPolicy;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `train.gradient_checkpointing`: which blocks of the networks that are trained compute their activations again in the backward pass,
/// instead of keeping them. It costs time alone: losses and gradients are the same.
///
/// | in a recipe | |
/// |---|---|
/// | `false` | none; the default |
/// | `true` | every block: a layer of a decoder, a tower or a transformer; a residual block or a transformer of a UNet |
/// | `{ every = 3 }` | of three blocks the first one |
/// | `{ memory = 8192 }` | as few as leave the run within so many MiB, as `diptych plan` counts it; for text and text with images, on the CPU |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// Blocks by their number.
    Blocks(CheckpointPolicy),
    /// As few as leave the run within a budget.
    Memory {
        /// The budget: what the process holds at most.
        mib: u64,
    },
}

impl Default for GradientCheckpointing {
    fn default() -> Self {
        Self::Blocks(CheckpointPolicy::Off)
    }
}

impl GradientCheckpointing {
    /// The word in an error.
    pub fn name(self) -> String {
        match self {
            Self::Blocks(CheckpointPolicy::Off) => "false".to_owned(),
            Self::Blocks(CheckpointPolicy::Every(num)) if num.get() == 1 => "true".to_owned(),
            Self::Blocks(CheckpointPolicy::Every(num)) => format!("{{ every = {num} }}"),
            Self::Memory { mib } => format!("{{ memory = {mib} }}"),
        }
    }
}

impl Serialize for GradientCheckpointing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let one = |serializer: S, key: &str, value: u64| {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(key, &value)?;
            map.end()
        };
        match *self {
            Self::Blocks(CheckpointPolicy::Off) => serializer.serialize_bool(false),
            Self::Blocks(CheckpointPolicy::ALL) => serializer.serialize_bool(true),
            Self::Blocks(CheckpointPolicy::Every(num)) => one(serializer, "every", num.get() as u64),
            Self::Memory { mib } => one(serializer, "memory", mib),
        }
    }
}

impl<'de> Deserialize<'de> for GradientCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Policy;

        impl<'de> Visitor<'de> for Policy {
            type Value = GradientCheckpointing;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false`, `{ every = BLOCKS }` or `{ memory = MIB }`")
            }

            fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<GradientCheckpointing, E> {
                let policy = if is_on {
                    CheckpointPolicy::ALL
                } else {
                    CheckpointPolicy::Off
                };
                Ok(GradientCheckpointing::Blocks(policy))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GradientCheckpointing, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let found = match key.as_str() {
                    "every" => {
                        let num = map.next_value::<u64>()?;
                        let num = usize::try_from(num).ok().and_then(NonZeroUsize::new);
                        let expected = &"a number of blocks, at least 1";
                        let num = num.ok_or_else(|| de::Error::invalid_value(de::Unexpected::Unsigned(0), expected))?;
                        GradientCheckpointing::Blocks(CheckpointPolicy::Every(num))
                    }
                    "memory" => match map.next_value::<u64>()? {
                        0 => {
                            let expected = &"a number of MiB, at least 1";
                            return Err(de::Error::invalid_value(de::Unexpected::Unsigned(0), expected));
                        }
                        mib => GradientCheckpointing::Memory { mib },
                    },
                    other => return Err(de::Error::unknown_field(other, &["every", "memory"])),
                };
                match map.next_key::<String>()? {
                    None => Ok(found),
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }

        deserializer.deserialize_any(Policy)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn policies_are_read_and_written_as_in_recipes() {
        for (value, policy) in [
            (json!(false), GradientCheckpointing::default()),
            (json!(true), GradientCheckpointing::Blocks(CheckpointPolicy::ALL)),
            (
                json!({ "every": 3 }),
                GradientCheckpointing::Blocks(CheckpointPolicy::every(3)),
            ),
            (json!({ "memory": 512 }), GradientCheckpointing::Memory { mib: 512 }),
        ] {
            assert_eq!(
                serde_json::from_value::<GradientCheckpointing>(value.clone()).unwrap(),
                policy
            );
            assert_eq!(serde_json::to_value(policy).unwrap(), value);
        }
        let refused = |value: Value| {
            serde_json::from_value::<GradientCheckpointing>(value)
                .unwrap_err()
                .to_string()
        };
        for (value, said) in [
            (json!({ "every": 0 }), "at least 1"),
            (json!({ "memory": 0 }), "at least 1"),
            (
                json!({ "blocks": 2 }),
                "unknown field `blocks`, expected `every` or `memory`",
            ),
            (json!({ "every": 2, "memory": 8 }), "invalid length 2"),
            (json!({}), "invalid length 0"),
            (
                json!("all"),
                "expected `true`, `false`, `{ every = BLOCKS }` or `{ memory = MIB }`",
            ),
        ] {
            assert!(refused(value).contains(said), "{said}");
        }
    }
}
