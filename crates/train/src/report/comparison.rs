//! Several runs on one page: what differs between them, what each came to, and their curves in the same pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;
use serde::Serialize;

use super::curves::{Series, chart, color_of};
use super::{EvaluationTable, Sample, facts, number, page, read_json, samples};
use crate::directory::{MetricsRow, RunDirectory, Summary, file_name, read_metrics};
use crate::plan::Plan;
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("comparison.html");

/// The setting that makes the repetitions of a run, of a recipe and of a program's own settings.
const SEEDS: [&str; 2] = ["run.seed", "seed"];
/// Settings that say where a run lies, not what it is.
const PLACES: [&str; 1] = ["run.output"];
/// Characters of a content hash that are shown.
const HASH_LEN: usize = 12;
/// Shown where a run has no such value.
const ABSENT: &str = "—";

/// What several runs have in common and what not. Cells are text, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunComparison {
    /// What each run is called: its directory's name, or the path where two have the same name.
    pub names: Vec<String>,
    /// Settings and contents of inputs that are not the same in all runs: the key, then one value a run.
    pub differences: Vec<(String, Vec<String>)>,
    /// Steps, time, memory and the last value of every metric: the name, then one value a run.
    pub results: Vec<(String, Vec<String>)>,
    /// Runs that differ in nothing but their seed; only where there are at least two.
    pub repetitions: Vec<Repetitions>,
}

/// The same run with several seeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repetitions {
    /// The names of its runs.
    pub names: Vec<String>,
    /// The metric, its mean over the runs, its smallest and its largest value.
    pub metrics: Vec<(String, [String; 3])>,
}

/// What was read of one run.
struct Run {
    directory: RunDirectory,
    name: String,
    /// By dotted key, contents of inputs among them.
    settings: BTreeMap<String, String>,
    summary: Option<Summary>,
    evaluation: Option<EvaluationTable>,
    rows: Vec<MetricsRow>,
}

#[derive(Debug, Serialize)]
struct Page<'a> {
    comparison: &'a RunComparison,
    colors: Vec<String>,
    evaluations: Vec<EvaluationTable>,
    samples: Vec<(String, Sample)>,
    curves: Vec<super::curves::Curve>,
}

/// Compares runs and writes one page, which opens without a network, to `out`.
///
/// # Errors
/// [`Error::NotARun`] for a directory without a run; [`Error::Io`] and [`Error::Damaged`] for one of its files;
/// [`Error::Report`] for fewer than two runs, the same run twice, or a curve that cannot be drawn; [`Error::Tensor`] when the page
/// cannot be written.
pub fn compare_runs(directories: &[PathBuf], out: &Path) -> Result<RunComparison> {
    let runs = read_runs(directories)?;
    let comparison = RunComparison {
        names: runs.iter().map(|run| run.name.clone()).collect(),
        differences: differences(&runs),
        results: results(&runs),
        repetitions: repetitions(&runs),
    };
    let values = Page {
        comparison: &comparison,
        colors: (0..runs.len()).map(|place| color_of(place).1).collect(),
        evaluations: evaluations(&runs),
        samples: newest_samples(&runs)?,
        curves: curves(&runs)?,
    };
    write_file(out, page(TEMPLATE, &values)?.as_bytes())?;
    Ok(comparison)
}

fn read_runs(directories: &[PathBuf]) -> Result<Vec<Run>> {
    if directories.len() < 2 {
        let reason = format!("{} run, expected at least 2 to compare", directories.len());
        return Err(Error::Report { reason });
    }
    let mut seen = BTreeSet::new();
    for directory in directories {
        let place = directory.canonicalize().map_err(Error::io("read", directory))?;
        if !seen.insert(place) {
            let reason = format!("{} is given twice", directory.display());
            return Err(Error::Report { reason });
        }
    }
    let names: Vec<String> = directories.iter().map(|directory| file_name(directory)).collect();
    let is_unique = |name: &String| !name.is_empty() && names.iter().filter(|other| *other == name).count() == 1;
    directories
        .iter()
        .zip(&names)
        .map(|(path, name)| {
            let name = if is_unique(name) {
                name.clone()
            } else {
                path.display().to_string()
            };
            read_run(path, name)
        })
        .collect()
}

fn read_run(path: &Path, name: String) -> Result<Run> {
    let directory = RunDirectory::new(path);
    if !directory.plan().is_file() {
        return Err(Error::NotARun { path: path.to_owned() });
    }
    let plan = Plan::read(&directory.plan())?;
    let mut settings = plan.values();
    settings.retain(|key, _| !PLACES.contains(&key.as_str()));
    settings.extend(
        plan.versions
            .iter()
            .map(|(name, version)| (format!("version of {name}"), version.clone())),
    );
    for input in &plan.inputs {
        let hash = input.sha256.chars().take(HASH_LEN).collect();
        settings.insert(format!("content of {}", input.name), hash);
    }
    let metrics = directory.metrics();
    Ok(Run {
        name,
        settings,
        summary: read_json(&directory.summary())?,
        evaluation: read_json(&directory.evaluation())?,
        rows: if metrics.is_file() {
            read_metrics(&metrics)?
        } else {
            Vec::new()
        },
        directory,
    })
}

fn differences(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    keys.into_iter()
        .map(|key| {
            let shown = |run: &Run| run.settings.get(key).cloned().unwrap_or_else(|| ABSENT.into());
            (key.clone(), runs.iter().map(shown).collect::<Vec<_>>())
        })
        .filter(|(_, values)| values.iter().any(|value| *value != values[0]))
        .collect()
}

fn results(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let facts: Vec<Vec<(String, String)>> = runs
        .iter()
        .map(|run| run.summary.as_ref().map(facts).unwrap_or_default())
        .collect();
    // In the order of the first run that has them.
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in facts.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let cell = |facts: &Vec<(String, String)>, name: &String| {
        let fact = facts.iter().find(|(other, _)| other == name);
        fact.map_or_else(|| ABSENT.to_owned(), |(_, value)| value.clone())
    };
    names
        .into_iter()
        .map(|name| (name.clone(), facts.iter().map(|facts| cell(facts, name)).collect()))
        .collect()
}

fn repetitions(runs: &[Run]) -> Vec<Repetitions> {
    let mut groups: Vec<(BTreeMap<&String, &String>, Vec<&Run>)> = Vec::new();
    for run in runs
        .iter()
        .filter(|run| run.summary.as_ref().is_some_and(|summary| !summary.stopped))
    {
        let settings: BTreeMap<_, _> = run
            .settings
            .iter()
            .filter(|(key, _)| !SEEDS.contains(&key.as_str()))
            .collect();
        match groups.iter_mut().find(|(of_group, _)| *of_group == settings) {
            Some((_, members)) => members.push(run),
            None => groups.push((settings, vec![run])),
        }
    }
    groups
        .into_iter()
        .filter(|(_, members)| members.len() > 1)
        .map(|(_, members)| Repetitions {
            names: members.iter().map(|run| run.name.clone()).collect(),
            metrics: spread(&members),
        })
        .collect()
}

/// Mean, smallest and largest value of every metric that all of these runs end with.
fn spread(runs: &[&Run]) -> Vec<(String, [String; 3])> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let last_rows = runs.iter().filter_map(|run| run.summary.as_ref()?.metrics.as_ref());
    for (name, value) in last_rows
        .flat_map(MetricsRow::numbers)
        .filter(|(name, _)| *name != "epoch")
    {
        values.entry(name).or_default().push(value);
    }
    values
        .into_iter()
        .filter(|(_, values)| values.len() == runs.len())
        .map(|(name, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (name.to_owned(), [mean, low, high].map(number))
        })
        .collect()
}

/// The runs' evaluations, those of the same kind in one table.
fn evaluations(runs: &[Run]) -> Vec<EvaluationTable> {
    let mut tables: Vec<EvaluationTable> = Vec::new();
    for run in runs {
        let Some(of_run) = &run.evaluation else { continue };
        let columns: Vec<String> = std::iter::once("run".to_owned())
            .chain(of_run.columns.clone())
            .collect();
        let is_same = |table: &&mut EvaluationTable| {
            (&table.title, &table.columns, &table.note) == (&of_run.title, &columns, &of_run.note)
        };
        let rows = of_run
            .rows
            .iter()
            .map(|row| std::iter::once(run.name.clone()).chain(row.clone()).collect());
        if let Some(table) = tables.iter_mut().find(is_same) {
            table.rows.extend(rows);
        } else {
            let rows = rows.collect();
            tables.push(EvaluationTable {
                title: of_run.title.clone(),
                columns,
                rows,
                note: of_run.note.clone(),
            });
        }
    }
    tables
}

fn newest_samples(runs: &[Run]) -> Result<Vec<(String, Sample)>> {
    let newest = |run: &Run| Ok(samples(&run.directory)?.0.into_iter().next());
    runs.iter()
        .filter_map(|run| match newest(run) {
            Ok(sample) => sample.map(|sample| Ok((run.name.clone(), sample))),
            Err(error) => Some(Err(error)),
        })
        .collect()
}

/// One picture for each metric that two or more runs logged.
fn curves(runs: &[Run]) -> Result<Vec<super::curves::Curve>> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|run| &run.rows).flat_map(MetricsRow::numbers) {
        if name != "epoch" && !names.contains(&name) {
            names.push(name);
        }
    }
    let series_of = |name: &str| -> Vec<Series> {
        let points = |run: &Run| -> Vec<(f64, f64)> {
            let value = |row: &MetricsRow| {
                let found = row.numbers().find(|(other, _)| *other == name);
                found.map(|(_, value)| (row.step as f64, value))
            };
            run.rows.iter().filter_map(value).collect()
        };
        let all = runs.iter().enumerate().map(|(place, run)| Series {
            points: points(run),
            color: color_of(place).0,
        });
        all.filter(|series| !series.points.is_empty()).collect()
    };
    names
        .into_iter()
        .map(|name| (name, series_of(name)))
        .filter(|(_, series)| series.len() > 1)
        .map(|(name, series)| chart(name, &series))
        .collect()
}
