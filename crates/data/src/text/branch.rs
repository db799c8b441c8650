//! One row as token sequences: a branch for every completion, in the convention of the configuration.

use std::ops::Range;

use super::chat_template::ChatEnding;
use super::encoding_config::{EncodingConvention, PrefixRule};
use super::encoding_problem::EncodingProblem;
use super::rendering::{Renderer, Whole, common_prefix_bytes, kind, values};
use super::rows::CompletionPart;
use super::token_weights::{content_offsets, token_weight, without_leading_space};
use super::tokenizer::{SpecialTokens, TokenizedText};
use crate::{Text, TextKind};

type Result<T> = std::result::Result<T, EncodingProblem>;

/// Tokens before a boundary that a message shows, and after it.
const SHOWN: usize = 3;

/// Prompt and one completion in tokens, not yet truncated.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Branch {
    pub(crate) ids: Vec<u32>,
    /// 0 for what is not scored, so for the prompt.
    pub(crate) weights: Vec<f32>,
    /// Whether it is a token of an answer, whatever its weight.
    pub(crate) is_answer: Vec<bool>,
    /// Characters of the completion's content.
    pub(crate) content: Vec<Range<usize>>,
    /// Tokens of the prompt, at the beginning.
    pub(crate) prompt_len: usize,
}

impl Branch {
    /// Keeps a range of the tokens.
    pub(crate) fn keep(&mut self, range: Range<usize>) {
        self.prompt_len = self.prompt_len.clamp(range.start, range.end) - range.start;
        self.ids = self.ids[range.clone()].to_vec();
        self.weights = self.weights[range.clone()].to_vec();
        self.is_answer = self.is_answer[range.clone()].to_vec();
        self.content = self.content[range].to_vec();
    }
}

impl Renderer<'_> {
    /// The branches of the row, in the order of its completions.
    pub(crate) fn branches(&self) -> Result<Vec<Branch>> {
        for part in &self.row.completions {
            check_spans(part)?;
        }
        match (kind(self.row), self.config.convention) {
            (TextKind::Tokenized, _) => self.given_ids(),
            (_, EncodingConvention::Dpo) => self.dpo_branches(),
            (_, EncodingConvention::Cpo) => self.cpo_branches(),
        }
    }

    /// Tokens of a prompt alone.
    pub(crate) fn prompt_ids(&self, prompt: &Text) -> Result<Vec<u32>> {
        if let Text::Ids(ids) = prompt {
            self.check_ids("prompt", ids)?;
            return Ok(ids.clone());
        }
        let source = self.prompt(prompt)?;
        Ok(self.tokenizer.encode(&source.text, source.special)?.ids)
    }

    fn given_ids(&self) -> Result<Vec<Branch>> {
        let prompt = self
            .row
            .prompt
            .map_or(Ok(Vec::new()), |prompt| self.prompt_ids(prompt))?;
        let mut branches = Vec::new();
        for part in &self.row.completions {
            let Text::Ids(completion) = part.text else {
                // The two kinds differ, and this says so.
                self.whole(self.row.prompt, part)?;
                continue;
            };
            self.check_ids(&part.side, completion)?;
            let ids = [prompt.as_slice(), completion].concat();
            let is_answer: Vec<bool> = (0..ids.len()).map(|idx| idx >= prompt.len()).collect();
            branches.push(Branch {
                weights: is_answer
                    .iter()
                    .map(|is_answer| f32::from(u8::from(*is_answer)))
                    .collect(),
                is_answer,
                content: vec![0..0; ids.len()],
                prompt_len: prompt.len(),
                ids,
            });
        }
        Ok(branches)
    }

    fn check_ids(&self, side: &str, ids: &[u32]) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(&found) => Err(EncodingProblem::UnknownId {
                side: side.to_owned(),
                found,
                vocab_size,
            }),
        }
    }

    /// The completion is what follows the prompt's tokens in the tokens of the whole.
    fn dpo_branches(&self) -> Result<Vec<Branch>> {
        let prompt = self
            .row
            .prompt
            .map_or(Ok(Vec::new()), |prompt| self.prompt_ids(prompt))?;
        let mut prompt_len = prompt.len();
        let mut wholes = Vec::new();
        for part in &self.row.completions {
            let whole = self.whole(self.row.prompt, part)?;
            let tokens = self.tokenizer.encode(&whole.source.text, whole.source.special)?;
            let common = common_prefix(&prompt, &tokens.ids);
            if common < prompt.len() && self.config.prefix == PrefixRule::Require {
                return Err(self.not_a_prefix(part, &prompt, &tokens.ids, common));
            }
            prompt_len = prompt_len.min(common);
            wholes.push((part, whole, tokens));
        }
        wholes
            .into_iter()
            .map(|(part, whole, tokens)| weighted(part, &whole, tokens, prompt_len))
            .collect()
    }

    fn not_a_prefix(&self, part: &CompletionPart, prompt: &[u32], whole: &[u32], at: usize) -> EncodingProblem {
        let quoted = |ids: &[u32]| {
            let from = at.saturating_sub(SHOWN);
            let shown = &ids[from.min(ids.len())..(at + SHOWN).min(ids.len())];
            let tokens = shown
                .iter()
                .map(|&id| format!("{:?}", self.tokenizer.token(id).unwrap_or_default()));
            tokens.collect::<Vec<_>>().join(" ")
        };
        EncodingProblem::NotAPrefix {
            side: part.side.clone(),
            at,
            prompt_tokens: quoted(prompt),
            whole_tokens: quoted(whole),
        }
    }

    /// `tokenize_row` of TRL's CPO and ORPO trainers.
    fn cpo_branches(&self) -> Result<Vec<Branch>> {
        let mut wholes = Vec::new();
        for part in &self.row.completions {
            // The rule ends answers with the EOS token itself, so none is appended to the text here.
            let mut whole = self.without_appended_eos().whole(self.row.prompt, part)?;
            whole.source.special = SpecialTokens::Omit;
            wholes.push((part, whole));
        }
        let prompt = self.cpo_prompt(&wholes)?;
        let prompt = self.tokenizer.encode(&prompt, SpecialTokens::Omit)?.ids;
        let mut branches: Vec<Branch> = Vec::new();
        for (part, whole) in wholes {
            let tokens = self.tokenizer.encode(&whole.source.text, SpecialTokens::Omit)?;
            let differs = || EncodingProblem::PromptDiffers {
                side: part.side.clone(),
            };
            if tokens.ids.len() < prompt.len() {
                return Err(differs());
            }
            let is_prefix = tokens.ids.starts_with(&prompt);
            let prompt_len = prompt.len() - usize::from(!is_prefix);
            if let Some(first) = branches.first() {
                let (a, b) = (&first.ids[..first.prompt_len], &tokens.ids[..prompt_len]);
                let num_different = a.iter().zip(b).filter(|(a, b)| a != b).count();
                if num_different > 1 || a.len().abs_diff(b.len()) > 1 {
                    return Err(differs());
                }
            }
            branches.push(weighted(part, &whole, tokens, prompt_len)?);
        }
        for (branch, part) in branches.iter_mut().zip(&self.row.completions) {
            self.add_affixes(branch, part)?;
        }
        Ok(branches)
    }

    /// The prompt's text as `maybe_apply_chat_template` cuts it: what all wholes begin with.
    fn cpo_prompt(&self, wholes: &[(&CompletionPart, Whole)]) -> Result<String> {
        let mut text = match self.row.prompt {
            None | Some(Text::Ids(_)) => String::new(),
            Some(Text::Plain(text)) => return Ok(text.clone()),
            Some(Text::Messages(messages)) => {
                let ending = match messages.last().map(|message| message.role.as_str()) {
                    None => return Ok(String::new()),
                    Some("user" | "tool") => ChatEnding::GenerationPrompt,
                    Some("assistant") => ChatEnding::ContinueFinalMessage,
                    Some(role) => return Err(EncodingProblem::LastRole { role: role.to_owned() }),
                };
                self.render(&values(messages), ending)?.text
            }
        };
        for (_, whole) in wholes {
            text.truncate(common_prefix_bytes(&text, &whole.source.text));
        }
        Ok(text)
    }

    fn add_affixes(&self, branch: &mut Branch, part: &CompletionPart) -> Result<()> {
        if let Some(bos) = self.tokenizer.bos_id()
            && (branch.prompt_len == 0 || branch.ids.first() != Some(&bos))
        {
            branch.ids.insert(0, bos);
            branch.weights.insert(0, 0.0);
            branch.is_answer.insert(0, false);
            branch.content.insert(0, 0..0);
            branch.prompt_len += 1;
        }
        let eos = self.tokenizer.eos_id().ok_or_else(|| EncodingProblem::NoEos {
            side: part.side.clone(),
        })?;
        let is_empty = branch.ids.len() == branch.prompt_len;
        if is_empty || branch.ids.last() != Some(&eos) {
            branch.ids.push(eos);
            branch.weights.push(1.0);
            branch.is_answer.push(true);
            branch.content.push(0..0);
        }
        Ok(())
    }
}

/// Length of the longest common beginning.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn check_spans(part: &CompletionPart) -> Result<()> {
    if part.spans.is_empty() {
        return Ok(());
    }
    let num_chars = part.text.num_chars();
    match part.spans.iter().find(|span| span.end > num_chars) {
        None => Ok(()),
        Some(span) => Err(EncodingProblem::SpanOutside {
            side: part.side.clone(),
            start: span.start,
            end: span.end,
            num_chars,
        }),
    }
}

fn weighted(part: &CompletionPart, whole: &Whole, tokens: TokenizedText, prompt_len: usize) -> Result<Branch> {
    if !part.spans.is_empty() && !whole.is_verbatim {
        return Err(EncodingProblem::SpanNotRendered {
            side: part.side.clone(),
        });
    }
    let content = content_offsets(&tokens.offsets, &whole.contents);
    let letters: Vec<char> = if part.spans.is_empty() {
        Vec::new()
    } else {
        part.text.content().chars().collect()
    };
    let is_in_turn = |token: &Range<usize>| match &whole.turns {
        None => true,
        Some(turns) => turns
            .iter()
            .any(|turn| token.start < turn.end && turn.start < token.end),
    };
    let is_answer: Vec<bool> = (0..tokens.ids.len())
        .map(|idx| idx >= prompt_len && is_in_turn(&tokens.offsets[idx]))
        .collect();
    let weight = |(is_answer, content): (&bool, &Range<usize>)| {
        if *is_answer {
            token_weight(&without_leading_space(content, &letters), part.spans)
        } else {
            0.0
        }
    };
    Ok(Branch {
        ids: tokens.ids,
        weights: is_answer.iter().zip(&content).map(weight).collect(),
        is_answer,
        content,
        prompt_len,
    })
}
