//! The report as text.

use std::fmt;

use super::{Finding, LintReport, LintRule, LintSeverity, ShownRow, ShownSequence, SplitSummary, TokenSummary};

/// Findings of one rule that are written out; the rest is counted.
const MAX_WRITTEN: usize = 5;

impl fmt::Display for LintReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for split in &self.splits {
            writeln!(f, "{split}")?;
        }
        for row in &self.shown {
            writeln!(f, "{row}")?;
        }
        for (rule, count) in &self.counts {
            writeln!(f, "{} {}: {count}", rule.severity().name(), rule.name())?;
            let of_rule = self.findings.iter().filter(|finding| finding.rule == *rule);
            for finding in of_rule.take(MAX_WRITTEN) {
                writeln!(f, "  {finding}")?;
            }
            if *count > MAX_WRITTEN {
                writeln!(f, "  and {} more", count - MAX_WRITTEN)?;
            }
        }
        write!(f, "{} errors, {} warnings", self.num_errors, self.num_warnings)
    }
}

impl fmt::Display for SplitSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {} used", self.name, self.num_rows, self.num_kept)?;
        if let Some(prompt) = &self.prompt_len {
            write!(f, "; prompt {prompt}")?;
        }
        for (side, lengths) in &self.completion_len {
            write!(f, "; {side} {lengths}")?;
        }
        if let Some(rationale) = &self.rationale_len {
            write!(f, "; rationale {rationale}")?;
        }
        match (self.chosen_longer, self.median_length_ratio) {
            (Some(share), Some(ratio)) => write!(
                f,
                "; chosen is longer in {:.0} %, median ratio {ratio:.2}",
                share * 100.0
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TokenSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} tokens (median {})", self.min, self.max, self.median)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.row, &self.id) {
            (Some(row), Some(id)) => write!(f, "{}, row {row}, record `{id}`: {}", self.split, self.message),
            _ => write!(f, "{}: {}", self.split, self.message),
        }
    }
}

impl fmt::Display for ShownRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, row {}, record `{}`", self.split, self.row, self.id)?;
        for sequence in &self.sequences {
            writeln!(f, "{sequence}")?;
        }
        Ok(())
    }
}

/// Tokens with `|` between them; runs that are not learned stand in `[..]`, weights other than 1 before theirs, what is
/// cut off behind `~`.
impl fmt::Display for ShownSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:>10} ", self.side)?;
        for run in self
            .tokens
            .chunk_by(|a, b| (a.weight, a.is_cut) == (b.weight, b.is_cut))
        {
            let tokens: Vec<String> = run.iter().map(|token| token.token.escape_debug().to_string()).collect();
            let tokens = tokens.join("|");
            let (weight, is_cut) = (run[0].weight, run[0].is_cut);
            let cut = if is_cut { "~" } else { "" };
            if weight == 0.0 {
                write!(f, " {cut}[{tokens}]")?;
            } else if weight == 1.0 {
                write!(f, " {cut}{tokens}")?;
            } else {
                write!(f, " {cut}{weight}*({tokens})")?;
            }
        }
        Ok(())
    }
}

impl LintSeverity {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl LintRule {
    /// The word in reports, as it is serialized.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixViolation => "prefix-violation",
            Self::CannotEncode => "cannot-encode",
            Self::DoubledBos => "doubled-bos",
            Self::DoubledEos => "doubled-eos",
            Self::MissingEos => "missing-eos",
            Self::EmptyAnswer => "empty-answer",
            Self::EqualAnswers => "equal-answers",
            Self::Skipped => "skipped",
            Self::OverLong => "over-long",
            Self::LengthRatio => "length-ratio",
            Self::MissingRationale => "missing-rationale",
            Self::LengthBias => "length-bias",
            Self::DuplicateRow => "duplicate-row",
            Self::SharedRow => "shared-row",
            Self::SharedPrompt => "shared-prompt",
            Self::UnreadableRow => "unreadable-row",
            Self::UnreadableImage => "unreadable-image",
            Self::HugeImage => "huge-image",
        }
    }
}
