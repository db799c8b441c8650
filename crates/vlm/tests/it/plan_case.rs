//! What a run is measured with, by the tests of plans here and of the command.

/// A run.
pub(crate) struct Case {
    pub(crate) model: &'static str,
    /// The section of the adapter.
    adapter: &'static str,
    reference: &'static str,
    micro_batch: usize,
    /// Further keys.
    pub(crate) sets: &'static [&'static str],
}

pub(crate) const fn case(
    model: &'static str,
    adapter: &'static str,
    reference: &'static str,
    micro_batch: usize,
    sets: &'static [&'static str],
) -> Case {
    Case {
        model,
        adapter,
        reference,
        micro_batch,
        sets,
    }
}

impl Case {
    /// A recipe of three steps; model and result are below `folder`, which is empty or ends in a slash.
    pub(crate) fn recipe(&self, modality: &str, folder: &str, data: &str) -> String {
        format!(
            r#"modality = "{modality}"

[run]
device = "cpu"
output = "{folder}run"

[model]
path = "{folder}{}"

{}

[data]
path = "{data}"

[reference.{}]

[objective.dpo]
beta = 0.1

[train]
steps = 3
micro_batch = {}
checkpoint_every = 0
sample_every = 0
"#,
            self.model, self.adapter, self.reference, self.micro_batch
        )
    }

    /// What was planned, and what was then measured.
    pub(crate) fn compared(&self, expected: f64, found: f64) -> String {
        format!(
            "{:10} {:60} {:12} {} {:?}: memory {:.1} MiB, measured {:.1} ({:.2})",
            self.model,
            self.adapter.lines().collect::<Vec<_>>().join(" "),
            self.reference,
            self.micro_batch,
            self.sets,
            expected / 1_048_576.0,
            found / 1_048_576.0,
            expected / found,
        )
    }
}
