//! Text as language models see it: tokenizers, chat templates, encoded rows and what is wrong with them.

mod branch;
mod changed_tokens;
mod chat_template;
mod encoding;
mod encoding_config;
mod encoding_problem;
mod generation_blocks;
mod image_tokens;
mod lint;
mod python_json;
mod rationale;
mod rendering;
mod rows;
mod template_date;
mod template_engine;
mod template_files;
mod token_weights;
mod tokenizer;
mod tokenizer_files;

pub use changed_tokens::{MIN_MATCH_LEN, changed_token_weights, changed_tokens};
pub use chat_template::{ChatEnding, ChatRequest, ChatTemplate, RenderedChat};
pub use encoding::{
    Encoded, EncodedCompletion, EncodedPair, EncodedPrompt, EncodedRanked, EncodedSample, EncodedUnpaired, Encoder,
    SkipReason, SkippedRow,
};
pub use encoding_config::{EncodingConfig, EncodingConvention, EosRule, PrefixRule, Truncation, TurnMask};
pub use encoding_problem::EncodingProblem;
pub use lint::{
    Finding, LintConfig, LintReport, LintRule, LintSeverity, LintSplit, MAX_FINDINGS, ShownRow, ShownSequence,
    ShownToken, SplitSummary, TokenSummary, lint,
};
pub use rationale::RationaleTemplate;
pub use rows::{CompletionPart, RowParts, TextRow};
pub use template_date::TemplateDate;
pub use token_weights::{prefix_spans, step_ranges, step_spans, tokens_in};
pub use tokenizer::{Affix, MAX_TEXT_BYTES, SpecialTokens, TokenizedText, Tokenizer};
