//! What a build came to.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::skip::Skip;

/// What a build came to. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildReport {
    /// The recipe.
    pub recipe: &'static str,
    /// Rows that were asked about.
    pub num_rows: usize,
    /// Rows of the data that could not be read and were passed over.
    pub num_unreadable: usize,
    /// Pairs that were made.
    pub num_made: usize,
    /// Pairs that were written.
    pub num_written: usize,
    /// Pairs of each stage, in the order of the file; of most recipes there is one.
    pub stages: BTreeMap<usize, usize>,
    /// Why other pairs were not made, with counts.
    pub skipped: BTreeMap<Skip, usize>,
}

impl BuildReport {
    pub(super) fn new(recipe: &'static str, num_rows: usize, num_unreadable: usize) -> Self {
        Self {
            recipe,
            num_rows,
            num_unreadable,
            num_made: 0,
            num_written: 0,
            stages: BTreeMap::new(),
            skipped: BTreeMap::new(),
        }
    }

    /// Why pairs were not made, in words.
    pub(super) fn reasons(&self) -> String {
        let reason = |(skip, count): (&Skip, &usize)| format!("{count}: {}", skip.description());
        self.skipped.iter().map(reason).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for BuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pairs of {} rows", self.num_written, self.num_rows)?;
        if self.num_written < self.num_made {
            write!(f, ", a random part of {}", self.num_made)?;
        }
        if self.stages.len() > 1 {
            let counts: Vec<String> = self.stages.values().map(ToString::to_string).collect();
            write!(f, "; in stages of {}", counts.join(", "))?;
        }
        for (skip, count) in &self.skipped {
            write!(f, "\n  not made, {count}: {}", skip.description())?;
        }
        if self.num_unreadable > 0 {
            write!(f, "\n  {} rows could not be read", self.num_unreadable)?;
        }
        Ok(())
    }
}
