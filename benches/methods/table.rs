//! The measured methods in Markdown.

use std::fmt::Write as _;

use diptych::eval::WinRate;

use crate::comparison::{Entry, Plan};
use crate::evaluation::Evaluation;
use crate::results::{Measured, Results};

/// Every comparison, with what was not measured left out.
pub(crate) fn markdown(plan: &Plan, results: &Results, evaluation: &Evaluation) -> anyhow::Result<String> {
    let mut text = String::new();
    for comparison in &plan.comparisons {
        writeln!(text, "### {}\n\n{}\n", comparison.title, comparison.question)?;
        writeln!(
            text,
            "| method | steps | processor time | peak memory | difference of each seed | their mean, 95 % interval | win rate |\n\
             |---|---|---|---|---|---|---|"
        )?;
        for entry in &comparison.entries {
            let measured = results.of(comparison, entry)?;
            if !measured.is_empty() {
                writeln!(text, "{}", row(entry, &measured, evaluation)?)?;
            }
        }
        text.push('\n');
    }
    Ok(text)
}

fn row(entry: &Entry, measured: &[&Measured], evaluation: &Evaluation) -> anyhow::Result<String> {
    let num = measured.len() as f64;
    let mean = |of: &dyn Fn(&Measured) -> f64| measured.iter().map(|one| of(one)).sum::<f64>() / num;
    let base = evaluation.base.iter().sum::<f64>() / evaluation.base.len() as f64;
    let differences: Vec<String> = measured
        .iter()
        .map(|one| {
            format!(
                "{:+.3}",
                one.scores.iter().sum::<f64>() / one.scores.len() as f64 - base
            )
        })
        .collect();
    // A prompt counts once, with the mean of the seeds: prompts, not runs, are what the interval is over.
    let scores: Vec<f64> = (0..evaluation.base.len())
        .map(|prompt| mean(&|one: &Measured| one.scores[prompt]))
        .collect();
    let win_rate = WinRate::compare(
        &evaluation.base,
        &scores,
        evaluation.config.seed,
        evaluation.config.bootstrap_samples,
    )?;
    let rates = measured
        .iter()
        .map(|one| Ok(WinRate::compare(&evaluation.base, &one.scores, 0, 1)?.win_rate))
        .collect::<anyhow::Result<Vec<f64>>>()?;
    let rounds = entry
        .value("rounds.num_rounds")
        .map_or_else(String::new, |rounds| format!("{rounds} x "));
    let steps = entry.value("train.steps").unwrap_or("the recipe's");
    let peak = measured.iter().map(|one| one.cost.peak_bytes).max().unwrap_or(0) >> 20;
    Ok(format!(
        "| {} | {rounds}{steps} | {:.0} s | {peak} MiB | {} | {:+.3} [{:+.3}, {:+.3}] | {:.0} % |",
        entry.name,
        mean(&|one: &Measured| one.cost.cpu_secs),
        differences.join(", "),
        win_rate.difference.mean,
        win_rate.difference.low,
        win_rate.difference.high,
        100.0 * rates.iter().sum::<f64>() / num,
    ))
}
