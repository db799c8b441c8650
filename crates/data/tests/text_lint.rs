//! Lint of text data, with one row for every rule.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

use std::collections::BTreeMap;
use std::path::Path;

use diptych_data::{
    Affix, EncodingConfig, EosRule, LintConfig, LintReport, LintRule, LintSeverity, LintSplit, MAX_FINDINGS, Text,
    TextPair, TextPrompt, Tokenizer, lint,
};

fn load(name: &str) -> Tokenizer {
    Tokenizer::from_dir(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/text/tokenizers")
            .join(name),
    )
    .unwrap()
}

fn check(tokenizer: &Tokenizer, encoding: EncodingConfig, pairs: &[TextPair]) -> LintReport {
    let config = LintConfig {
        encoding,
        ..LintConfig::default()
    };
    let splits = [LintSplit {
        name: "train",
        records: pairs,
    }];
    lint(tokenizer, &config, &splits).unwrap()
}

fn counts(report: &LintReport) -> BTreeMap<&'static str, usize> {
    report
        .counts
        .iter()
        .map(|(rule, count)| (rule.name(), *count))
        .collect()
}

#[test]
fn clean_rows_have_no_findings() {
    let pairs = [
        TextPair::new("a", "Which?", " one", " two"),
        TextPair::new("b", "Which?", " three", " four"),
    ];
    let report = check(&load("byte_level"), EncodingConfig::default(), &pairs);
    assert_eq!(report.counts, BTreeMap::new());
    let summary = &report.splits[0];
    assert_eq!((summary.num_rows, summary.num_kept), (2, 2));
    assert_eq!(report.shown.len(), 2);
    assert!(report.to_string().ends_with("0 errors, 0 warnings"));
}

/// Rows that break the rules, and rows of another split that repeat them.
fn broken_rows() -> (Vec<TextPair>, Vec<TextPair>) {
    let train = vec![
        TextPair::new("fine", "Which?", " one", " two"),
        TextPair::new("merge", "Hello wor", "ld", "d"),
        TextPair::new("empty", "Say:", "", " x"),
        TextPair::new("equal", "Same:", " y", " y"),
        TextPair::new("long", "Count:", " 1 2 3 4 5 6 7 8 9 10 11 12", " 1"),
        TextPair::new("full", "1 2 3 4 5 6 7 8 9 10 11 12 13", " 14", " 15"),
        TextPair::new("again", "Which?", " one", " two"),
        TextPair::new("given", Text::Ids(vec![900]), Text::Ids(vec![1]), Text::Ids(vec![2])),
    ];
    let eval = vec![
        TextPair::new("leak", "Same:", " y", " y"),
        TextPair::new("prompt", "Which?", " other", " pairs"),
    ];
    (train, eval)
}

fn lint_broken_rows() -> LintReport {
    let encoding = EncodingConfig {
        max_len: Some(16),
        ..EncodingConfig::default()
    };
    let (train, eval) = broken_rows();
    let config = LintConfig {
        encoding,
        ..LintConfig::default()
    };
    let splits = [
        LintSplit {
            name: "train",
            records: &train[..],
        },
        LintSplit {
            name: "eval",
            records: &eval[..],
        },
    ];
    lint(&load("byte_level"), &config, &splits).unwrap()
}

#[test]
fn every_rule_finds_its_row() {
    let report = lint_broken_rows();
    let found: Vec<(LintRule, &str)> = report
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.id.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(
        found,
        [
            (LintRule::PrefixViolation, "merge"),
            (LintRule::EmptyAnswer, "empty"),
            (LintRule::EqualAnswers, "equal"),
            (LintRule::OverLong, "long"),
            (LintRule::LengthRatio, "long"),
            (LintRule::OverLong, "full"),
            (LintRule::OverLong, "full"),
            (LintRule::Skipped, "full"),
            (LintRule::DuplicateRow, "again"),
            (LintRule::CannotEncode, "given"),
            (LintRule::EqualAnswers, "leak"),
            (LintRule::SharedRow, "leak"),
            (LintRule::SharedPrompt, "prompt"),
        ]
    );
    assert_eq!((report.num_errors, report.num_warnings), (6, 7));
}

#[test]
fn findings_say_what_and_where() {
    let report = lint_broken_rows();
    let message = |rule| {
        &report
            .findings
            .iter()
            .find(|finding| finding.rule == rule)
            .unwrap()
            .message
    };
    assert!(message(LintRule::OverLong).contains("`max_len` is 16: the last"));
    assert!(message(LintRule::SharedRow).contains("record `equal` (row 3 of train)"));
    assert!(message(LintRule::Skipped).contains("fills `max_len` = 16"));
    assert_eq!(report.splits[0].num_kept, 5);
    let text = report.to_string();
    assert!(
        text.contains("error shared-row: 1\n  eval, row 0, record `leak`: the same as record `equal`"),
        "{text}"
    );
}

#[test]
fn affixes_that_double_or_miss_are_found() {
    let tokenizer = load("llama_bos");
    let pairs = [TextPair::new("bos", "<s>Hello\n", "x", "y")];
    let report = check(&tokenizer, EncodingConfig::default(), &pairs);
    assert_eq!(counts(&report), BTreeMap::from([("doubled-bos", 2)]));
    assert_eq!(report.findings[0].severity, LintSeverity::Error);

    let both = tokenizer.clone().with_affixes(&[Affix::Bos, Affix::Eos]).unwrap();
    let common = EncodingConfig {
        prefix: diptych_data::PrefixRule::Common,
        ..EncodingConfig::default()
    };
    let pairs = [TextPair::new("eos", "Hello\n", "x", "y")];
    let report = check(&both, common, &pairs);
    assert_eq!(counts(&report), BTreeMap::from([("doubled-eos", 2)]));
    // A prompt that the tokenizer ends with EOS begins nothing.
    let report = check(&both, EncodingConfig::default(), &pairs);
    assert_eq!(counts(&report), BTreeMap::from([("prefix-violation", 1)]));

    let open = EncodingConfig {
        eos: EosRule::AsWritten,
        ..EncodingConfig::default()
    };
    let report = check(&tokenizer, open, &pairs);
    assert_eq!(counts(&report), BTreeMap::from([("missing-eos", 2)]));
}

#[test]
fn lengths_are_compared_row_by_row_and_over_the_split() {
    let tokenizer = load("byte_level");
    let pairs: Vec<TextPair> = (0..30)
        .map(|idx| TextPair::new(format!("{idx}"), format!("Question {idx}?\n"), "a long answer", "no"))
        .collect();
    let config = LintConfig {
        max_length_ratio: 2.0,
        ..LintConfig::default()
    };
    let splits = [LintSplit {
        name: "train",
        records: &pairs[..],
    }];
    let report = lint(&tokenizer, &config, &splits).unwrap();
    assert_eq!(
        counts(&report),
        BTreeMap::from([("length-bias", 1), ("length-ratio", 30)])
    );
    let summary = &report.splits[0];
    assert_eq!(summary.chosen_longer, Some(1.0));
    let lengths = (
        summary.completion_len["chosen"].median,
        summary.completion_len["rejected"].median,
    );
    assert_eq!(summary.median_length_ratio, Some(lengths.0 as f64 / lengths.1 as f64));
}

#[test]
fn shown_rows_have_boundaries_and_masks() {
    let pairs = [TextPair::new("a", "Which one?", " the first", " it")];
    let encoding = EncodingConfig {
        max_len: Some(12),
        ..EncodingConfig::default()
    };
    let report = check(&load("byte_level"), encoding, &pairs);
    let sequence = &report.shown[0].sequences[0];
    let text: String = sequence.tokens.iter().map(|token| token.token.as_str()).collect();
    assert_eq!(text, "WhichĠone?ĠtheĠfirst<|im_end|>");
    let prompt: String = sequence
        .tokens
        .iter()
        .filter(|token| token.weight == 0.0)
        .map(|token| token.token.as_str())
        .collect();
    assert_eq!(prompt, "WhichĠone?");
    let shown = sequence.to_string();
    assert!(
        shown.starts_with("      chosen  [") && shown.contains("] Ġthe"),
        "{shown}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["shown"][0]["sequences"][1]["side"], "rejected");
}

#[test]
fn many_findings_are_counted_but_not_kept() {
    let pairs: Vec<TextPair> = (0..MAX_FINDINGS + 50)
        .map(|idx| TextPair::new(format!("{idx}"), format!("{idx}?\n"), "same", "same"))
        .collect();
    let report = check(&load("byte_level"), EncodingConfig::default(), &pairs);
    assert_eq!(report.counts[&LintRule::EqualAnswers], MAX_FINDINGS + 50);
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    assert_eq!(report.num_errors, MAX_FINDINGS + 50);
    assert!(report.to_string().contains("and 145 more"));
}

#[test]
fn prompts_alone_are_checked_too() {
    let prompts = [
        TextPrompt::new("a", "Which?"),
        TextPrompt::new("b", Text::Ids(vec![100_000])),
    ];
    let splits = [LintSplit {
        name: "prompts",
        records: &prompts[..],
    }];
    let report = lint(&load("byte_level"), &LintConfig::default(), &splits).unwrap();
    assert_eq!(counts(&report), BTreeMap::from([("cannot-encode", 1)]));
    assert_eq!(report.splits[0].prompt_len.unwrap().max, 3);
}

#[test]
fn rationales_are_measured_and_missing_or_empty_ones_found() {
    let pair = |id: &str, rationale: Option<&str>| TextPair {
        rationale: rationale.map(str::to_owned),
        ..TextPair::new(id, "Which?", " one", " two")
    };
    let tokenizer = load("byte_level");
    let said = " It counts.";
    let pairs = [
        pair("a", Some(said)),
        pair("b", None),
        pair("c", Some(" ")),
        pair("d", Some(said)),
    ];
    let report = check(&tokenizer, EncodingConfig::default(), &pairs);
    let found: Vec<(LintRule, &str)> = report
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.id.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(
        found,
        [
            (LintRule::EmptyAnswer, "c"),
            // The others differ from it by what they give as a reason.
            (LintRule::DuplicateRow, "d"),
            (LintRule::MissingRationale, "b"),
        ]
    );
    let len = tokenizer
        .encode(said, diptych_data::SpecialTokens::Omit)
        .unwrap()
        .ids
        .len();
    let summary = report.splits[0].rationale_len.unwrap();
    assert_eq!((summary.max, summary.median), (len, len));
    assert!(report.to_string().contains(&format!("rationale {summary}")), "{report}");
    let without = check(&tokenizer, EncodingConfig::default(), &[pair("a", None)]);
    assert_eq!((without.splits[0].rationale_len, without.findings.len()), (None, 0));
}
