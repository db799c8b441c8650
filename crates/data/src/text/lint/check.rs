//! What can be said about one row by itself.

use super::duplicates::Digests;
use super::{LintConfig, LintRule, ShownSequence, ShownToken};
use crate::text::branch::Branch;
use crate::text::encoding::Encoder;
use crate::text::encoding_problem::EncodingProblem;
use crate::text::image_tokens::Replaced;
use crate::text::rows::{RowParts, TextRow};
use crate::text::tokenizer::{SpecialTokens, Tokenizer};
use crate::{ImageSource, Text};

/// Characters of cut text that a message shows.
const SHOWN_CHARS: usize = 60;

/// One row, checked.
#[derive(Debug, Clone)]
pub(super) struct RowReport {
    pub(super) findings: Vec<(LintRule, String)>,
    pub(super) shown: Vec<ShownSequence>,
    pub(super) digests: Digests,
    pub(super) prompt_len: Option<usize>,
    /// Tokens of each completion, in the order of the record; empty if it cannot be encoded.
    pub(super) completion_lens: Vec<(String, usize)>,
    /// Tokens of the rationale by itself, where there is one.
    pub(super) rationale_len: Option<usize>,
    pub(super) is_kept: bool,
}

pub(super) fn check_row<R: TextRow>(encoder: &Encoder, config: &LintConfig, record: &R, is_shown: bool) -> RowReport {
    let token = encoder.image_token();
    let replaced = Replaced::of(token.as_ref(), &record.parts());
    let parts = replaced.apply(record.parts());
    let mut report = RowReport {
        findings: [texts(&parts), images(&parts, config)].concat(),
        shown: Vec::new(),
        digests: Digests::of(&parts),
        prompt_len: None,
        completion_lens: Vec::new(),
        rationale_len: None,
        is_kept: false,
    };
    report.measure_rationale(encoder, &parts);
    let branches = match encoder.branches(&parts) {
        Ok(branches) => branches,
        Err(problem) => {
            let rule = match &problem {
                EncodingProblem::NotAPrefix { .. } => LintRule::PrefixViolation,
                _ => LintRule::CannotEncode,
            };
            report.findings.push((rule, problem.to_string()));
            return report;
        }
    };
    report.prompt_len = match (branches.first(), parts.prompt) {
        (Some(branch), Some(_)) => Some(branch.prompt_len),
        (None, Some(prompt)) => match encoder.renderer(&parts).prompt_ids(prompt) {
            Ok(ids) => Some(ids.len()),
            Err(problem) => {
                report.findings.push((LintRule::CannotEncode, problem.to_string()));
                return report;
            }
        },
        (_, None) => None,
    };
    for (branch, part) in branches.iter().zip(&parts.completions) {
        let is_plain = matches!(part.text, Text::Plain(_) | Text::Messages(_));
        let findings = sequence(encoder, branch, &part.side, is_plain);
        report.findings.extend(findings);
        let len = branch.ids.len() - branch.prompt_len;
        report.completion_lens.push((part.side.clone(), len));
        if is_shown {
            report.shown.push(ShownSequence {
                side: part.side.clone(),
                tokens: tokens(encoder, branch),
            });
        }
    }
    report
        .findings
        .extend(length_ratio(&report.completion_lens, config.max_length_ratio));
    match encoder.truncated(branches) {
        Ok(_) => report.is_kept = true,
        Err(reason) => report
            .findings
            .push((LintRule::Skipped, reason.describe(encoder.config().max_len))),
    }
    report
}

impl RowReport {
    /// Counts the tokens of the rationale, where there is one.
    fn measure_rationale(&mut self, encoder: &Encoder, parts: &RowParts) {
        let Some(rationale) = parts.rationale else { return };
        match encoder.tokenizer().encode(rationale, SpecialTokens::Omit) {
            Ok(tokens) => self.rationale_len = Some(tokens.ids.len()),
            Err(problem) => self.findings.push((LintRule::CannotEncode, problem.to_string())),
        }
    }
}

fn texts(parts: &RowParts) -> Vec<(LintRule, String)> {
    let mut findings = Vec::new();
    for (idx, part) in parts.completions.iter().enumerate() {
        if part.text.is_blank() {
            findings.push((LintRule::EmptyAnswer, format!("{} is empty", part.side)));
        }
        // The same answer under other images is something to learn from.
        if parts.rejected_images.is_none()
            && parts.other_images.is_none()
            && let Some(same) = parts.completions[..idx].iter().find(|other| other.text == part.text)
        {
            findings.push((
                LintRule::EqualAnswers,
                format!("{} and {} are the same", same.side, part.side),
            ));
        }
    }
    if parts.rationale.is_some_and(|rationale| rationale.trim().is_empty()) {
        findings.push((LintRule::EmptyAnswer, "the rationale is empty".to_owned()));
    }
    findings
}

/// Decodes every image of the row.
fn images(parts: &RowParts, config: &LintConfig) -> Vec<(LintRule, String)> {
    let rejected = parts.rejected_images.unwrap_or_default();
    let others = parts.other_images.unwrap_or_default();
    let named = |key: &'static str| move |(at, image): (usize, &ImageSource)| (format!("{key}[{at}]"), image.clone());
    let images = parts.images.iter().enumerate().map(named("images"));
    let images = images.chain(rejected.iter().enumerate().map(named("rejected_images")));
    let images = images.chain(others.iter().enumerate().map(named("other_images")));
    let check = |(key, image): (String, ImageSource)| match image.decode() {
        Err(error) => Some((LintRule::UnreadableImage, format!("`{key}`: {error}"))),
        Ok(image) if image.width().max(image.height()) > config.max_image_side => {
            let (width, height, max) = (image.width(), image.height(), config.max_image_side);
            Some((
                LintRule::HugeImage,
                format!("`{key}` has {width}x{height} pixels, a side of more than {max}"),
            ))
        }
        Ok(_) => None,
    };
    images.filter_map(check).collect()
}

fn sequence(encoder: &Encoder, branch: &Branch, side: &str, has_eos_rule: bool) -> Vec<(LintRule, String)> {
    let tokenizer = encoder.tokenizer();
    let mut findings = Vec::new();
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos_id(), branch.ids.as_slice())
        && (*first, *second) == (bos, bos)
    {
        let message = format!(
            "prompt + {side} begins with `{}` twice: the tokenizer adds it, and the text has it, too",
            tokenizer.named_token("bos_token").unwrap_or_default()
        );
        findings.push((LintRule::DoubledBos, message));
    }
    let completion = &branch.ids[branch.prompt_len..];
    if let (Some(eos), true) = (tokenizer.eos_id(), has_eos_rule) {
        let name = tokenizer.named_token("eos_token").unwrap_or_default();
        if !completion.contains(&eos) {
            let message = format!("{side} has no `{name}`: the model does not learn from it where to stop");
            findings.push((LintRule::MissingEos, message));
        }
        if completion.ends_with(&[eos, eos]) {
            let message = format!("{side} ends with `{name}` twice: the tokenizer adds it to text that has it");
            findings.push((LintRule::DoubledEos, message));
        }
    }
    findings.extend(over_long(encoder, branch, side));
    findings
}

fn over_long(encoder: &Encoder, branch: &Branch, side: &str) -> Option<(LintRule, String)> {
    let max_len = encoder.config().max_len?;
    if branch.ids.len() <= max_len {
        return None;
    }
    let kept = encoder.kept(branch, max_len);
    let (place, cut) = if kept.start > 0 {
        ("first", &branch.ids[..kept.start])
    } else {
        ("last", &branch.ids[kept.end..])
    };
    let num_scored = (0..branch.ids.len())
        .filter(|idx| !kept.contains(idx) && branch.weights[*idx] != 0.0)
        .count();
    let message = format!(
        "prompt + {side} has {} tokens, `max_len` is {max_len}: the {place} {} are cut, {num_scored} of them learned: {}",
        branch.ids.len(),
        cut.len(),
        excerpt(encoder.tokenizer(), cut)
    );
    Some((LintRule::OverLong, message))
}

fn excerpt(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    // A character has at most a few tokens; a million of them need not be decoded to show sixty.
    let ids = &ids[..ids.len().min(4 * SHOWN_CHARS)];
    let text = tokenizer.decode(ids, SpecialTokens::Include).unwrap_or_default();
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

fn tokens(encoder: &Encoder, branch: &Branch) -> Vec<ShownToken> {
    let kept = match encoder.config().max_len {
        Some(max_len) if branch.ids.len() > max_len => encoder.kept(branch, max_len),
        _ => 0..branch.ids.len(),
    };
    branch
        .ids
        .iter()
        .zip(&branch.weights)
        .enumerate()
        .map(|(idx, (&id, &weight))| ShownToken {
            id,
            token: encoder.tokenizer().token(id).unwrap_or_default(),
            weight,
            is_cut: !kept.contains(&idx),
        })
        .collect()
}

fn length_ratio(lens: &[(String, usize)], max_ratio: f64) -> Option<(LintRule, String)> {
    let [(chosen, a), (rejected, b)] = lens else {
        return None;
    };
    let (short, long) = ((*a).min(*b).max(1), (*a).max(*b));
    if long as f64 <= max_ratio * short as f64 {
        return None;
    }
    let message = format!("{chosen} has {a} tokens, {rejected} has {b}: one is more than {max_ratio} times as long");
    Some((LintRule::LengthRatio, message))
}
