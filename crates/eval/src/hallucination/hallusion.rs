//! `HallusionBench`: groups of questions that a model has to get right together.
//!
//! Guan et al., "`HallusionBench`", CVPR 2024, arXiv:2310.14566. Rules: `utils.py` and `evaluation.py` of tianyi-lab/HallusionBench. An answer is
//! judged right (1), wrong (0) or unclear (2).
//!
//! # Quirks that are kept
//! A reply that contains "incorrect" is a 0, else one with "correct" a 1, else a 2, in any case of letters. Without an image (category VS,
//! figure 0) an unclear answer is right. Figures leave those questions out. `score` of figures is the mean share of right answers,
//! from 0 to 1, all else is a percentage; here it is not rounded to 4 decimals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::judge_questions::JudgedAnswer;
use super::judgments::Judgments;
use super::report::Scored;
use super::rows::{Row, RowFile};
use super::tally::{Metric, Tally};
use crate::error::Result;

/// The key under which the official program keeps the judge's verdicts.
const VERDICT: &str = "gpt4v_output_gpt_check";

/// What the judge says of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HallusionVerdict {
    /// Contradicts the reference.
    Incorrect,
    /// Agrees with it.
    Correct,
    /// Does not say.
    Unclear,
}

/// The verdict in a judge's reply.
pub fn parse_hallusion_verdict(reply: &str) -> HallusionVerdict {
    let reply = reply.to_lowercase();
    if reply.contains("incorrect") {
        HallusionVerdict::Incorrect
    } else if reply.contains("correct") {
        HallusionVerdict::Correct
    } else {
        HallusionVerdict::Unclear
    }
}

/// Scores answers: the official rows, with `model_prediction` filled in. The verdicts are those in the rows
/// (`gpt4v_output_gpt_check`: "0", "1" or "2") unless there are `judgments`. A set of questions, with all its figures, is resampled
/// as a whole. The order of the rows does not matter unless judgments are stored by it.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row or a question that comes twice; those of the judge.
pub fn score_hallusion(answers: &Path, mut judgments: Option<&mut dyn Judgments>) -> Result<Scored> {
    let file = RowFile::read(answers)?;
    let (mut questions, mut seen, mut num_unread) = (Vec::new(), BTreeSet::new(), 0_usize);
    for (index, row) in file.rows.iter().enumerate() {
        let question = Question::read(&file, row)?;
        if !seen.insert((question.figure_key(), question.number.clone())) {
            return Err(file.error(row, "this question of this figure is in an earlier row already"));
        }
        let verdict = match &mut judgments {
            Some(judgments) => {
                let reply = judgments.judgment(&judged(&file, row)?.request(index))?;
                let verdict = parse_hallusion_verdict(&reply);
                let is_said = verdict != HallusionVerdict::Unclear || reply.to_lowercase().contains("unclear");
                num_unread += usize::from(!is_said);
                verdict
            }
            None => stored_verdict(&file, row)?,
        };
        let has_image = !(question.is_supplement && question.figure == "0");
        let is_correct = verdict == HallusionVerdict::Correct || (!has_image && verdict == HallusionVerdict::Unclear);
        questions.push((question, has_image, is_correct));
    }
    let rows = questions.iter().map(|(question, _, is_correct)| {
        json!({"set": question.set, "figure_id": question.figure, "question_id": question.number, "is_correct": is_correct})
    });
    let note =
        format!("{num_unread} replies of the judge say neither correct, incorrect nor unclear; they count as unclear");
    Ok(Scored {
        benchmark: "hallusion",
        rows: rows.collect(),
        tally: tally(&questions),
        notes: (num_unread > 0).then_some(note).into_iter().collect(),
    })
}

/// What a judge is shown of a row.
pub(super) fn judged(file: &RowFile, row: &Row) -> Result<JudgedAnswer> {
    Ok(JudgedAnswer {
        question: file.text(row, &["question"])?.to_owned(),
        reference: file.text(row, &["gt_answer_details"])?.to_owned(),
        image_content: Vec::new(),
        answer: file.text(row, &["model_prediction"])?.to_owned(),
    })
}

struct Question {
    /// Category, subcategory and set: what is resampled.
    set: String,
    is_supplement: bool,
    figure: String,
    number: String,
    is_hard: bool,
    is_yes: bool,
}

impl Question {
    fn read(file: &RowFile, row: &Row) -> Result<Self> {
        let category = file.text(row, &["category"])?;
        if !["VD", "VS"].contains(&category) {
            return Err(file.error(row, format!("`category` is {category:?}, expected VD or VS")));
        }
        let visual_input = file.id(row, &["visual_input"])?;
        let answer = file.id(row, &["gt_answer"])?;
        if !["0", "1"].contains(&answer.as_str()) {
            return Err(file.error(row, format!("`gt_answer` is {answer:?}, expected 0 or 1")));
        }
        Ok(Self {
            set: format!(
                "{category}_{}_{}",
                file.text(row, &["subcategory"])?,
                file.id(row, &["set_id"])?
            ),
            is_supplement: category == "VS",
            figure: file.id(row, &["figure_id"])?,
            number: file.id(row, &["question_id"])?,
            is_hard: visual_input == "2",
            is_yes: answer == "1",
        })
    }

    fn figure_key(&self) -> String {
        format!("{}_{}", self.set, self.figure)
    }
}

fn stored_verdict(file: &RowFile, row: &Row) -> Result<HallusionVerdict> {
    match file.id(row, &[VERDICT])?.as_str() {
        "0" => Ok(HallusionVerdict::Incorrect),
        "1" => Ok(HallusionVerdict::Correct),
        "2" => Ok(HallusionVerdict::Unclear),
        other => Err(file.error(row, format!("`{VERDICT}` is {other:?}, expected 0, 1 or 2"))),
    }
}

/// Groups of questions: how many are right of how many.
type Groups = BTreeMap<(String, String), (usize, usize)>;

// Columns: right, all; right figures, inconsistent, wrong, figures, sum of their scores; right pairs, pairs; easy right, easy; hard right,
// hard; said yes, to be answered yes; wrong with "no" due, wrong.
const NUM_COLUMNS: usize = 17;

fn tally(questions: &[(Question, bool, bool)]) -> Tally {
    let mut tally = Tally::new(NUM_COLUMNS, metrics());
    let mut groups = [const { Groups::new() }; 4];
    let count = |groups: &mut Groups, question: &Question, key: &str, is_correct: bool| {
        let (right, all) = groups.entry((question.set.clone(), key.to_owned())).or_default();
        *right += usize::from(is_correct);
        *all += 1;
    };
    for (question, has_image, is_correct) in questions {
        let unit = &question.set;
        let holds = |column: usize, condition: bool| (column, f64::from(u8::from(condition)));
        let counts = [
            holds(0, *is_correct),
            holds(1, true),
            holds(13, is_correct == &question.is_yes),
            holds(14, question.is_yes),
            holds(15, !is_correct && !question.is_yes),
            holds(16, !is_correct),
        ];
        for (column, amount) in counts {
            tally.add(unit, column, amount);
        }
        if *has_image {
            count(&mut groups[0], question, &question.figure, *is_correct);
        }
        count(&mut groups[1], question, &question.number, *is_correct);
        count(
            &mut groups[if question.is_hard { 3 } else { 2 }],
            question,
            &question.number,
            *is_correct,
        );
    }
    for ((set, _), (right, all)) in &groups[0] {
        let column = if right == all {
            2
        } else if *right > 0 {
            3
        } else {
            4
        };
        tally.add(set, column, 1.0);
        tally.add(set, 5, 1.0);
        tally.add(set, 6, *right as f64 / *all as f64);
    }
    for (groups, column) in groups[1..].iter().zip([7, 9, 11]) {
        for ((set, _), (right, all)) in groups {
            tally.add(set, column, f64::from(u8::from(right == all)));
            tally.add(set, column + 1, 1.0);
        }
    }
    tally
}

fn metrics() -> Vec<Metric> {
    vec![
        Metric::new("a_acc", 0..2, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("f_acc", 2..6, |sums| 100.0 * sums[0] / sums[3]),
        Metric::new("q_acc", 7..9, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("easy_q_acc", 9..11, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("hard_q_acc", 11..13, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("figures_inconsistent", 2..6, |sums| 100.0 * sums[1] / sums[3]),
        Metric::new("figures_wrong", 2..6, |sums| 100.0 * sums[2] / sums[3]),
        Metric::new("figure_score", 5..7, |sums| sums[1] / sums[0]),
        Metric::new("yes_bias_difference", 0..15, |sums| (sums[13] - sums[14]) / sums[1]),
        Metric::new("yes_bias_fp_ratio", 15..17, |sums| sums[0] / sums[1]),
    ]
}
