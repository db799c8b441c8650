//! T5's tokenizer: texts to token ids of a fixed length, from a `tokenizer.json`.

use std::path::{Path, PathBuf};

use diptych_tensor::{Device, Result as TensorResult, Tensor};
use serde_json::Value;
use tokenizers::{
    PaddingDirection, PaddingParams, PaddingStrategy, Tokenizer, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use crate::config_json::read_json;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";
const SENTENCE_PIECE: &str = "spiece.model";

/// Token ids of texts of one length.
#[derive(Debug, Clone)]
pub struct T5Tokens {
    /// (B, T) in u32.
    pub input_ids: Tensor,
    /// 1 for tokens of the text, 0 for the filling: (B, T) in f32.
    pub attention_mask: Tensor,
}

/// transformers' `T5TokenizerFast`: texts end with `</s>` and are filled with `<pad>`.
#[derive(Debug, Clone)]
pub struct T5Tokenizer {
    tokenizer: Tokenizer,
    pad_token: String,
    pad_id: u32,
    origin: PathBuf,
}

impl T5Tokenizer {
    /// Reads `tokenizer.json`, and the filling token of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a directory with a `SentencePiece` model only, saying how to convert it, for a damaged file, and for a filling token
    /// that is not in the vocabulary; [`Error::MissingFile`] without any.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(FILE);
        let error = |message: String| Error::Tokenizer {
            path: dir.to_owned(),
            message,
        };
        if !path.is_file() && dir.join(SENTENCE_PIECE).is_file() {
            return Err(error(format!(
                "there is a {SENTENCE_PIECE} but no {FILE}, which is what is read; write one with transformers: \
                 T5TokenizerFast.from_pretrained(directory).save_pretrained(directory)"
            )));
        }
        if !path.is_file() {
            return Err(Error::MissingFile {
                path: dir.to_owned(),
                expected: vec![FILE.to_owned()],
            });
        }
        let tokenizer = Tokenizer::from_file(&path).map_err(|source| error(format!("{FILE}: {source}")))?;
        let pad_token = pad_token(dir)?;
        let pad_id = tokenizer
            .token_to_id(&pad_token)
            .ok_or_else(|| error(format!("the filling token `{pad_token}` is not in the vocabulary")))?;
        Ok(Self {
            tokenizer,
            pad_token,
            pad_id,
            origin: dir.to_owned(),
        })
    }

    /// Number of tokens in the vocabulary, added ones among them.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Ids and masks of texts, cut and filled to `max_len` as diffusers' pipelines do (`padding="max_length"`): 256 tokens by default for
    /// Stable Diffusion 3, 512 for Flux, 120 or 300 for `PixArt`.
    ///
    /// # Shape
    /// (B, `max_len`).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when `max_len` leaves no place for the token that ends a text.
    pub fn encode_batch<T: AsRef<str>>(&self, texts: &[T], max_len: usize, device: &Device) -> Result<T5Tokens> {
        let error = |source: tokenizers::Error| Error::Tokenizer {
            path: self.origin.clone(),
            message: source.to_string(),
        };
        if max_len == 0 {
            return Err(error("texts of no tokens".into()));
        }
        let mut tokenizer = self.tokenizer.clone();
        tokenizer
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: max_len,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(error)?;
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(max_len),
            direction: PaddingDirection::Right,
            pad_to_multiple_of: None,
            pad_id: self.pad_id,
            pad_type_id: 0,
            pad_token: self.pad_token.clone(),
        }));
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let encoding = tokenizer.encode(text.as_ref(), true).map_err(error)?;
            ids.extend_from_slice(encoding.get_ids());
            mask.extend(encoding.get_attention_mask().iter().map(|&bit| bit as f32));
        }
        let shape = (texts.len(), max_len);
        let stack = || -> TensorResult<T5Tokens> {
            Ok(T5Tokens {
                input_ids: Tensor::from_vec(ids, shape, device)?,
                attention_mask: Tensor::from_vec(mask, shape, device)?,
            })
        };
        Ok(stack()?)
    }
}

/// The token that `tokenizer_config.json` or else `special_tokens_map.json` names, or T5's.
fn pad_token(dir: &Path) -> Result<String> {
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let file = read_json(&path)?;
        let token = file.get("pad_token");
        let content = token.and_then(|token| token.as_str().or_else(|| token.get("content").and_then(Value::as_str)));
        if let Some(content) = content {
            return Ok(content.to_owned());
        }
    }
    Ok("<pad>".to_owned())
}
