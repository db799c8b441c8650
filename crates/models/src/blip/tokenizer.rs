//! BERT's tokenizer: lower case without accents, words and punctuation, word pieces.

use std::path::{Path, PathBuf};

use diptych_tensor::{Device, Tensor};
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use crate::{Error, Result};

const FIRST: &str = "[CLS]";
const LAST: &str = "[SEP]";
const PADDING: &str = "[PAD]";

/// Turns texts into ids of one length, as `bert-base-uncased` does.
#[derive(Debug, Clone)]
pub struct BertTokenizer {
    tokenizer: Tokenizer,
    origin: PathBuf,
}

impl BertTokenizer {
    /// Reads `vocab.txt`, or else the vocabulary of `tokenizer.json`, for texts of `max_len` tokens: longer ones are cut, shorter ones
    /// filled.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without a vocabulary, [`Error::Tokenizer`] for one that is damaged or lacks a special token.
    pub fn from_dir(dir: impl AsRef<Path>, max_len: usize) -> Result<Self> {
        let dir = dir.as_ref();
        let (lines, whole) = (dir.join("vocab.txt"), dir.join("tokenizer.json"));
        let (origin, tokenizer) = if lines.is_file() {
            let text = std::fs::read_to_string(&lines).map_err(Error::io(&lines))?;
            let tokenizer = from_lines(&text).map_err(|source| error(&lines, &source))?;
            (lines, tokenizer)
        } else if whole.is_file() {
            let tokenizer = Tokenizer::from_file(&whole).map_err(|source| error(&whole, &source))?;
            (whole, tokenizer)
        } else {
            return Err(Error::MissingFile {
                path: dir.to_owned(),
                expected: vec!["vocab.txt".to_owned(), "tokenizer.json".to_owned()],
            });
        };
        Self::fixed_len(tokenizer, origin, max_len)
    }

    fn fixed_len(mut tokenizer: Tokenizer, origin: PathBuf, max_len: usize) -> Result<Self> {
        let Some(pad_id) = tokenizer.token_to_id(PADDING) else {
            return Err(error(&origin, &format!("the vocabulary has no `{PADDING}`").into()));
        };
        let truncation = TruncationParams {
            max_length: max_len,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(|source| error(&origin, &source))?;
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(max_len),
            pad_id,
            pad_token: PADDING.to_owned(),
            ..PaddingParams::default()
        }));
        Ok(Self { tokenizer, origin })
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Ids of texts, and which of them are no filling.
    ///
    /// # Shape
    /// Both (B, `max_len`) in u32.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_batch<T: AsRef<str>>(&self, texts: &[T], device: &Device) -> Result<(Tensor, Tensor)> {
        let (mut ids, mut mask, mut len) = (Vec::new(), Vec::new(), 0);
        for text in texts {
            let encoding = self
                .tokenizer
                .encode(text.as_ref(), true)
                .map_err(|source| error(&self.origin, &source))?;
            ids.extend_from_slice(encoding.get_ids());
            mask.extend_from_slice(encoding.get_attention_mask());
            len = encoding.len();
        }
        let stack = |values: Vec<u32>| -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::from_vec(values, (texts.len(), len), device)?)
        };
        Ok((stack(ids)?, stack(mask)?))
    }
}

fn from_lines(text: &str) -> tokenizers::Result<Tokenizer> {
    let vocab: Vocab = text
        .lines()
        .zip(0_u32..)
        .map(|(token, id)| (token.trim_end().to_owned(), id))
        .collect();
    let model = WordPiece::builder().vocab(vocab).build()?;
    let mut tokenizer = Tokenizer::new(model);
    let id = |token: &str| {
        let id = tokenizer.token_to_id(token);
        id.map(|id| (token.to_owned(), id))
            .ok_or_else(|| format!("the vocabulary has no `{token}`"))
    };
    let processor = BertProcessing::new(id(LAST)?, id(FIRST)?);
    let special = ["[UNK]", LAST, PADDING, FIRST, "[MASK]"];
    let special = special.iter().filter(|token| tokenizer.token_to_id(token).is_some());
    let special: Vec<AddedToken> = special.map(|token| AddedToken::from(*token, true)).collect();
    tokenizer.with_normalizer(Some(BertNormalizer::default()))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(processor));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

fn error(path: &Path, source: &tokenizers::Error) -> Error {
    Error::Tokenizer {
        path: path.to_owned(),
        message: source.to_string(),
    }
}
