//! Pages that open without a network: `report.html` with everything a run left, and comparisons of several runs.

mod comparison;
mod curves;
mod evaluation;
mod examples;

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diptych_tensor::files::write_file;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;

pub use self::comparison::{Repetitions, RunComparison, compare_runs};
use self::curves::{Curve, curves};
pub use self::evaluation::{EvaluationTable, write_evaluation};
pub use self::examples::{AnswerExample, AnswerExchange, AnswerPiece, write_examples};
use crate::directory::{MetricsRow, RunDirectory, Summary, entries, file_name, read_metrics, step_of};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("report.html");
/// What all pages share: the frame, and the parts that stand in more than one.
const SHARED: [(&str, &str); 2] = [
    ("frame", include_str!("frame.html")),
    ("parts", include_str!("parts.html")),
];

/// A page shows at most this many samples: the newest, and others evenly over the run.
const MAX_SAMPLES: usize = 8;

/// What the template shows.
#[derive(Debug, Serialize)]
struct Page {
    title: String,
    facts: Vec<(String, String)>,
    stopped: bool,
    evaluation: Option<EvaluationTable>,
    examples: Option<Vec<AnswerExample>>,
    samples: Vec<Sample>,
    num_samples: usize,
    curves: Vec<Curve>,
    recipe: Option<String>,
    plan: Option<String>,
}

/// One sample, ready for the page.
#[derive(Debug, Serialize)]
struct Sample {
    step: u64,
    /// A `data:` address, for a picture. Base64 needs no escaping, and escaping its slashes would swell the page.
    address: Option<String>,
    /// The text, for anything else.
    text: Option<String>,
}

/// Writes `report.html` from what is in the run directory: recipe, metrics, samples, summary, and the evaluation where
/// there is one. Call it again after adding an evaluation.
///
/// # Errors
/// [`Error::Io`] and [`Error::Damaged`] for a file of the directory, [`Error::Report`] when a curve cannot be drawn.
pub fn write_report(run_directory: &Path) -> Result<PathBuf> {
    let directory = RunDirectory::new(run_directory);
    let rows = if directory.metrics().is_file() {
        read_metrics(&directory.metrics())?
    } else {
        Vec::new()
    };
    let page = render(&directory, &rows)?;
    write_file(&directory.report(), page.as_bytes())?;
    Ok(directory.report())
}

fn render(directory: &RunDirectory, rows: &[MetricsRow]) -> Result<String> {
    let (samples, num_samples) = samples(directory)?;
    let summary: Option<Summary> = read_json(&directory.summary())?;
    let values = Page {
        title: file_name(directory.path()),
        facts: summary.as_ref().map(facts).unwrap_or_default(),
        stopped: summary.as_ref().is_some_and(|summary| summary.stopped),
        evaluation: read_json(&directory.evaluation())?,
        examples: read_json(&directory.path().join(examples::EXAMPLES))?,
        samples,
        num_samples,
        curves: curves(rows)?,
        recipe: read_text(&directory.recipe())?,
        plan: read_text(&directory.plan())?,
    };
    page(TEMPLATE, &values)
}

/// Fills a template; every text is escaped unless the template says that it is safe.
fn page(template: &'static str, values: &impl Serialize) -> Result<String> {
    let render = || {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        for (name, text) in SHARED {
            environment.add_template(name, text)?;
        }
        environment.add_template("page", template)?;
        environment.get_template("page")?.render(Value::from(Serde(values)))
    };
    render().map_err(|error| Error::Report {
        reason: error.to_string(),
    })
}

/// Label and value of what is worth knowing at a glance.
fn facts(summary: &Summary) -> Vec<(String, String)> {
    let mut facts = vec![
        ("steps".to_owned(), format!("{} of {}", summary.step, summary.num_steps)),
        ("epochs".to_owned(), format!("{:.2}", summary.epoch)),
        ("trainable values".to_owned(), summary.num_trainable.to_string()),
        ("time".to_owned(), format!("{:.1} s", summary.wall_time_secs)),
        (
            "examples a second".to_owned(),
            format!("{:.2}", summary.examples_per_second),
        ),
    ];
    if let Some(bytes) = summary.peak_memory_bytes {
        facts.push((
            "peak memory".to_owned(),
            format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        ));
    }
    for (name, value) in summary
        .metrics
        .iter()
        .flat_map(MetricsRow::numbers)
        .filter(|(name, _)| *name != "epoch")
    {
        facts.push((name.to_owned(), number(value)));
    }
    facts
}

/// A number with the digits that matter, however small it is.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-2..1e6).contains(&magnitude) {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}

/// The samples to show, newest first, and how many there are.
fn samples(directory: &RunDirectory) -> Result<(Vec<Sample>, usize)> {
    if !directory.samples().is_dir() {
        return Ok((Vec::new(), 0));
    }
    let mut files = entries(&directory.samples())?;
    files.retain(|path| path.is_file() && step_of(path).is_some());
    files.sort_by_key(|path| std::cmp::Reverse(step_of(path)));
    let shown = files.len().min(MAX_SAMPLES);
    let chosen = (0..shown).map(|place| {
        &files[if shown < 2 {
            0
        } else {
            place * (files.len() - 1) / (shown - 1)
        }]
    });
    let samples = chosen.map(|path| sample(path)).collect::<Result<_>>()?;
    Ok((samples, files.len()))
}

fn sample(path: &Path) -> Result<Sample> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let step = step_of(path).unwrap_or_default();
    if path.extension().is_some_and(|extension| extension == "png") {
        let address = format!("data:image/png;base64,{}", STANDARD.encode(&bytes));
        return Ok(Sample {
            step,
            address: Some(address),
            text: None,
        });
    }
    Ok(Sample {
        step,
        address: None,
        text: Some(String::from_utf8_lossy(&bytes).into_owned()),
    })
}

fn read_text(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    fs::read_to_string(path).map(Some).map_err(Error::io("read", path))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_text(path)? {
        Some(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::damaged(path, &error)),
        None => Ok(None),
    }
}
