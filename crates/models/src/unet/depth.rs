//! Transformer blocks of each level: one number for all layers of a level, or one for each.

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::ConfigFile;

/// How many transformer blocks stand in each transformer of a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockDepth {
    /// As many in every layer.
    Same(usize),
    /// One number for each layer.
    Each(Vec<usize>),
}

impl BlockDepth {
    /// The number in layer `layer`.
    pub(super) fn of_layer(&self, layer: usize) -> usize {
        match self {
            Self::Same(depth) => *depth,
            Self::Each(depths) => depths.get(layer).copied().unwrap_or(0),
        }
    }

    fn parse(value: &Value) -> Option<Self> {
        let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        match value {
            Value::Array(items) => items.iter().map(count).collect::<Option<_>>().map(Self::Each),
            other => count(other).map(Self::Same),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Same(depth) => json!(depth),
            Self::Each(depths) => json!(depths),
        }
    }
}

/// The key's value for each level; `num_layers` is the number of layers of each, in the same order.
pub(super) fn read(file: &ConfigFile, key: &str, num_layers: &[usize]) -> Result<Option<Vec<BlockDepth>>> {
    let levels = num_layers.len();
    let expected = format!("a number or a list of {levels}, each a number or a list of one for each layer");
    let Some(value) = file.value(key) else {
        return Ok(None);
    };
    let depths = match value {
        Value::Array(items) => items.iter().map(BlockDepth::parse).collect::<Option<Vec<_>>>(),
        other => BlockDepth::parse(other).map(|depth| vec![depth; levels]),
    };
    let fits = |(depth, &layers): (&BlockDepth, &usize)| match depth {
        BlockDepth::Same(_) => true,
        BlockDepth::Each(depths) => depths.len() == layers,
    };
    match depths {
        Some(depths) if depths.len() == levels && depths.iter().zip(num_layers).all(fits) => Ok(Some(depths)),
        _ => Err(file.error(key, expected)),
    }
}
