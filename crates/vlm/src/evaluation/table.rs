//! What an evaluation found: as a table, as metrics, and on single pictures.

use std::fmt;

use diptych_eval::hallucination::{
    BenchmarkReport, MetricDifference, MetricEstimate, ShapesNaming, ShapesScene, YesNo, mention_spans,
};
use diptych_train::{AnswerExample, AnswerExchange, AnswerPiece, EvaluationTable};
use serde::Serialize;
use serde_json::Value;

use super::HallucinationConfig;
use crate::Result;

/// Numbers that are shown: their name in the report of the captions or questions, the name of the metric, and in words.
const CAPTION_NUMBERS: [[&str; 3]; 4] = [
    ["chair_s", "chair_s", "captions that hallucinate (CHAIRs)"],
    ["chair_i", "chair_i", "mentions that are hallucinated (CHAIRi)"],
    ["recall", "recall", "objects that are mentioned (recall)"],
    ["mentions_per_caption", "mentions_per_caption", "mentions a caption"],
];
const QUESTION_NUMBERS: [[&str; 3]; 2] = [
    [
        "adversarial/accuracy",
        "pope_adversarial_accuracy",
        "right answers (POPE, adversarial)",
    ],
    [
        "adversarial/false_yes",
        "pope_adversarial_false_yes",
        "\"yes\" to what is not there",
    ],
];

/// How much base and aligned model hallucinate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hallucination {
    /// Of captions: CHAIR.
    pub captions: BenchmarkReport,
    /// Of answers about objects: POPE.
    pub questions: BenchmarkReport,
}

/// A number of both models.
struct Line<'a> {
    metric: &'static str,
    words: &'static str,
    base: &'a MetricEstimate,
    aligned: &'a MetricEstimate,
    difference: &'a MetricDifference,
}

impl<'a> Line<'a> {
    fn of(report: &'a BenchmarkReport, [name, metric, words]: &[&'static str; 3]) -> Option<Self> {
        let place = report.metrics.iter().position(|found| found.name == *name)?;
        Some(Self {
            metric,
            words,
            base: report.base.as_ref()?.get(place)?,
            aligned: &report.metrics[place],
            difference: report.differences.as_ref()?.get(place)?,
        })
    }
}

impl Hallucination {
    fn lines(&self) -> Vec<Line<'_>> {
        let captions = CAPTION_NUMBERS.iter().map(|names| (&self.captions, names));
        let questions = QUESTION_NUMBERS.iter().map(|names| (&self.questions, names));
        let all = captions.chain(questions);
        all.filter_map(|(report, names)| Line::of(report, names)).collect()
    }

    pub(super) fn table(&self, config: &HallucinationConfig) -> EvaluationTable {
        let interval = |of: &MetricEstimate| format!("{} to {}", number(of.low), number(of.high));
        let rows = self.lines().into_iter().map(|line| {
            vec![
                line.words.to_owned(),
                format!("{} ({})", number(line.base.value), interval(line.base)),
                format!("{} ({})", number(line.aligned.value), interval(line.aligned)),
                signed(line.difference.difference.value),
                format!(
                    "{} to {}",
                    signed(line.difference.difference.low),
                    signed(line.difference.difference.high)
                ),
                number(line.difference.p_value),
            ]
        });
        EvaluationTable {
            title: format!("hallucination about {} held-out pictures", self.captions.num_units),
            columns: ["", "base", "aligned", "difference", "95 % interval", "p"]
                .map(str::to_owned)
                .to_vec(),
            rows: rows.collect(),
            note: format!(
                "The same pictures and the same choices of tokens (seed {}) for both. Intervals: bootstrap over pictures; p: paired \
                 randomization test. Objects are {}.",
                config.seed,
                match config.naming {
                    ShapesNaming::Shape => "shapes",
                    ShapesNaming::ColoredShape => "shapes of a color",
                }
            ),
        }
    }

    /// The numbers for `summary.json`; those without a value (no "yes" at all, no mention) are left out.
    pub(super) fn metrics(&self) -> Vec<(String, f64)> {
        let mut metrics = Vec::new();
        for line in self.lines() {
            let difference = &line.difference.difference;
            let values = [
                ("base", line.base.value),
                ("base_low", line.base.low),
                ("base_high", line.base.high),
                ("aligned", line.aligned.value),
                ("aligned_low", line.aligned.low),
                ("aligned_high", line.aligned.high),
                ("difference", difference.value),
                ("difference_low", difference.low),
                ("difference_high", difference.high),
                ("p_value", line.difference.p_value),
            ];
            for (part, value) in values {
                metrics.extend(value.map(|value| (format!("eval_{}/{part}", line.metric), value)));
            }
        }
        metrics
    }
}

impl fmt::Display for Hallucination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:40} {:>8} {:>8} {:>10}  95 % interval       p",
            format!("{} held-out pictures", self.captions.num_units),
            "base",
            "aligned",
            "difference"
        )?;
        for line in self.lines() {
            let difference = &line.difference.difference;
            writeln!(
                f,
                "{:40} {:>8} {:>8} {:>10}  [{}, {}]  {}",
                line.words,
                number(line.base.value),
                number(line.aligned.value),
                signed(difference.value),
                signed(difference.low),
                signed(difference.high),
                number(line.difference.p_value)
            )?;
        }
        Ok(())
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn signed(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:+.4}"))
}

/// Captions and answers about single pictures, of base and aligned model, from the rows that the scorers gave.
pub(super) fn examples(
    pictures: &[(&ShapesScene, Vec<u8>)],
    [base, aligned]: [(&[Value], &[Value]); 2],
) -> Result<Vec<AnswerExample>> {
    let mut examples = Vec::new();
    for (scene, png) in pictures {
        let is_own = |(before, _): &(&Value, &Value)| before["image"] == scene.image.as_str();
        let mut exchanges = Vec::new();
        for (before, after) in base.0.iter().zip(aligned.0).filter(is_own) {
            exchanges.push(AnswerExchange {
                request: diptych_shapes::CAPTION_REQUEST.to_owned(),
                before: caption(before)?,
                after: caption(after)?,
            });
        }
        for (before, after) in base.1.iter().zip(aligned.1).filter(is_own) {
            exchanges.push(AnswerExchange {
                request: text(before, "question"),
                before: answer(before),
                after: answer(after),
            });
        }
        let named = scene
            .scene
            .objects
            .iter()
            .map(|object| ShapesNaming::ColoredShape.name(object));
        let truth = named.collect::<Vec<_>>().join(", ");
        examples.push(AnswerExample::new(png, truth, exchanges));
    }
    Ok(examples)
}

/// A caption with its hallucinated objects apart.
fn caption(row: &Value) -> Result<Vec<AnswerPiece>> {
    let caption = text(row, "caption");
    let names: Vec<String> =
        serde_json::from_value(row["hallucinated"].clone()).map_err(|source| diptych_llm::Error::Json {
            path: "captions".into(),
            source,
        })?;
    let mut pieces = Vec::new();
    let mut end = 0;
    let mut push = |part: &str, is_wrong| {
        if !part.is_empty() {
            pieces.push(AnswerPiece {
                text: part.to_owned(),
                is_wrong,
            });
        }
    };
    for span in mention_spans(&caption, &names) {
        push(&caption[end..span.start], false);
        push(&caption[span.clone()], true);
        end = span.end;
    }
    push(&caption[end..], false);
    Ok(pieces)
}

/// A "yes" to what is not there is wrong as a whole, and so is a "no" to what is.
fn answer(row: &Value) -> Vec<AnswerPiece> {
    let label: Option<YesNo> = serde_json::from_value(row["label"].clone()).ok();
    let said: Option<YesNo> = serde_json::from_value(row["parsed"].clone()).ok();
    vec![AnswerPiece {
        text: text(row, "answer"),
        is_wrong: label != said,
    }]
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}
