//! `diptych score --judge`: given images scored by a judge.

use std::fmt::Write as _;

use diptych_data::{DataFiles, Dataset, ReadPolicy, TiePolicy};
use diptych_eval::{
    Agreement, Judge, JudgeOptions, ScoredImages, ScoringJudge, WinRateConfig, labelled_pairs, score_dataset,
};
use diptych_train::Reporter;

use crate::arguments::ScoreArguments;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, print};
use crate::progress::Progress;

pub(super) fn run(arguments: &ScoreArguments, judge: &Judge) -> anyhow::Result<()> {
    if arguments.batch_size == 0 {
        return Err(usage("--batch-size is 0, expected at least 1"));
    }
    if !(arguments.tie_margin.is_finite() && arguments.tie_margin >= 0.0) {
        let found = arguments.tie_margin;
        return Err(usage(format!(
            "--tie-margin is {found}, expected a finite number, at least 0"
        )));
    }
    if arguments.out.is_dir() {
        return Err(usage(format!(
            "--out {} is a directory, expected a file",
            arguments.out.display()
        )));
    }
    let policy = ReadPolicy {
        ties: TiePolicy::Keep,
        on_error: arguments.on_error,
    };
    let (dataset, report) = Dataset::read_with(&DataFiles::find(&arguments.data, arguments.layout)?, policy)?;
    if !report.is_complete() {
        print(&report)?;
    }
    let hash = judge.content_hash()?;
    let loaded = judge.load(&JudgeOptions {
        device: arguments.device.resolve()?,
        dtype: arguments.precision.into(),
        batch_size: arguments.batch_size,
    })?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    create_parent(&arguments.out)?;
    let scoring = ScoringJudge {
        judge: &loaded,
        hash: &hash,
        batch_size: arguments.batch_size,
    };
    let scored = score_dataset(&dataset, scoring, &arguments.out, |done, total| {
        reporter.advance("judging", done as u64, total as u64)?;
        anyhow::Ok(())
    })?;
    drop(reporter);
    let kept = match scored.num_kept {
        0 => String::new(),
        count => format!(", {count} of them kept from before"),
    };
    print(format!(
        "{}wrote {} records to {}{kept}",
        summary(arguments, loaded.name(), &scored.rows)?,
        scored.rows.len(),
        arguments.out.display()
    ))
}

/// What the scores say about the data, a line each.
fn summary(arguments: &ScoreArguments, name: &str, rows: &[ScoredImages]) -> anyhow::Result<String> {
    type Column = (&'static str, fn(&ScoredImages) -> Option<f64>);
    let columns: [Column; 3] = [
        ("score", |row| row.score),
        ("chosen_score", |row| row.chosen_score),
        ("rejected_score", |row| row.rejected_score),
    ];
    let mut text = format!("judge {name}\n");
    for (column, value) in columns {
        let values: Vec<f64> = rows.iter().filter_map(value).collect();
        if values.is_empty() {
            continue;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let (low, high) = values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(*value), high.max(*value))
            });
        writeln!(text, "  {column:16} mean {mean:.4}, from {low:.4} to {high:.4}")?;
    }
    let pairs = labelled_pairs(rows);
    let samples = WinRateConfig::default().bootstrap_samples;
    if let Some(agreement) = Agreement::of(&pairs, arguments.ties, arguments.tie_margin, (0, samples))? {
        writeln!(text, "  {agreement}")?;
    }
    Ok(text)
}
