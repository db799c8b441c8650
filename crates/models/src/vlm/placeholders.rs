//! From one image token an image to as many as it has features.

use std::ops::Range;

use crate::{Error, Result};

/// A text in which every image has as many image tokens as features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The ids, T of them.
    pub input_ids: Vec<u32>,
    /// For each of them the token of the original text that it came from.
    pub sources: Vec<u32>,
    /// Where each image's tokens are.
    pub images: Vec<Range<usize>>,
}

impl Expanded {
    /// Expands what belongs to the tokens of the original text (a mask, labels, weights) in the same way; image tokens get
    /// `of_image`.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer values than the original text has tokens.
    pub fn expand<T: Clone>(&self, values: &[T], of_image: &T) -> Result<Vec<T>> {
        let expected = self.sources.last().map_or(0, |last| *last as usize + 1);
        if values.len() != expected {
            return Err(Error::Shape {
                what: "values of a text's tokens",
                found: vec![values.len()],
                expected: format!("({expected})"),
            });
        }
        let mut expanded: Vec<T> = self
            .sources
            .iter()
            .map(|source| values[*source as usize].clone())
            .collect();
        for image in &self.images {
            expanded[image.clone()].fill(of_image.clone());
        }
        Ok(expanded)
    }

    /// The image that would be cut if the text ended, or began, before token `at`.
    pub fn image_across(&self, at: usize) -> Option<usize> {
        self.images.iter().position(|image| image.start < at && at < image.end)
    }
}

/// Repeats each image token as often as `counts` says.
pub(super) fn expand(input_ids: &[u32], image_token_id: u32, counts: &[usize]) -> Result<Expanded> {
    let found = input_ids.iter().filter(|id| **id == image_token_id).count();
    if found != counts.len() {
        return Err(Error::Placeholders {
            found,
            images: counts.len(),
        });
    }
    let len = input_ids.len() - found + counts.iter().sum::<usize>();
    let mut expanded = Expanded {
        input_ids: Vec::with_capacity(len),
        sources: Vec::with_capacity(len),
        images: Vec::with_capacity(found),
    };
    let mut counts = counts.iter();
    for (source, id) in (0..).zip(input_ids) {
        let start = expanded.input_ids.len();
        let is_image = *id == image_token_id;
        let repeats = if is_image {
            counts.next().copied().unwrap_or(1)
        } else {
            1
        };
        expanded.input_ids.extend(std::iter::repeat_n(*id, repeats));
        expanded.sources.extend(std::iter::repeat_n(source, repeats));
        if is_image {
            expanded.images.push(start..start + repeats);
        }
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_their_tokens() {
        let text = expand(&[1, 9, 9, 5, 9], 9, &[2, 1, 3]).unwrap();
        assert_eq!(text.input_ids, [1, 9, 9, 9, 5, 9, 9, 9]);
        assert_eq!(text.sources, [0, 1, 1, 2, 3, 4, 4, 4]);
        assert_eq!(text.images, [1..3, 3..4, 5..8]);
        assert_eq!(
            text.expand(&[10, 11, 12, 13, 14], &-100).unwrap(),
            [10, -100, -100, -100, 13, -100, -100, -100]
        );
        assert!(text.expand(&[1, 2, 3, 4], &0).is_err());
        let across: Vec<_> = (0..=8).map(|at| text.image_across(at)).collect();
        assert_eq!(across, [None, None, Some(0), None, None, None, Some(2), Some(2), None]);
    }

    #[test]
    fn another_number_of_placeholders_is_refused_with_both_numbers() {
        let error = expand(&[1, 9, 5], 9, &[2, 2]).unwrap_err();
        assert!(matches!(error, Error::Placeholders { found: 1, images: 2 }), "{error}");
        let error = expand(&[1, 9, 5, 9], 9, &[]).unwrap_err();
        assert!(matches!(error, Error::Placeholders { found: 2, images: 0 }), "{error}");
    }
}
