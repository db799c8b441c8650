//! Rows of images in our own layouts.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::{ImageCaption, ImageLabel, ImagePair, ImagePrompt, ImageSource, Layout, RankedImages, ScoredImage};

/// What stands in a row for an image.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum WrittenImage {
    /// The image itself.
    Embedded {
        /// Base64.
        bytes: String,
    },
    /// Its path from the folder of the file.
    File(String),
}

/// A row of any of the layouts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ImageRecordRow<'a> {
    Pair {
        id: &'a str,
        prompt: &'a str,
        chosen_image: WrittenImage,
        rejected_image: WrittenImage,
        #[serde(skip_serializing_if = "Option::is_none")]
        chosen_score: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rejected_score: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<&'a str>,
    },
    Caption {
        id: &'a str,
        prompt: &'a str,
        image: WrittenImage,
    },
    Label {
        id: &'a str,
        prompt: &'a str,
        image: WrittenImage,
        label: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        score: Option<f64>,
    },
    Ranked {
        id: &'a str,
        prompt: &'a str,
        responses: Vec<RankedResponse>,
    },
    Prompt {
        id: &'a str,
        prompt: &'a str,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct RankedResponse {
    image: WrittenImage,
    score: f64,
}

/// A record of images that has a row in one of our own layouts.
#[cfg_attr(
    not(feature = "parquet"),
    expect(dead_code, reason = "some of it is only for tables, and this build writes none")
)]
pub(crate) trait ImageRecord: Sync {
    /// The layout that such rows are of.
    const LAYOUT: Layout;

    fn id(&self) -> &str;

    fn prompt(&self) -> &str;

    /// Its images and what the row calls them.
    fn images(&self) -> Vec<(&'static str, &ImageSource)>;

    /// Its scores and what the row calls them.
    fn scores(&self) -> Vec<(&'static str, Option<f64>)>;

    /// Whether it is desirable, where it says so.
    fn label(&self) -> Option<bool> {
        None
    }

    /// Who preferred, where it says so.
    fn user(&self) -> Option<&str> {
        None
    }

    /// The row, with as many images as [`ImageRecord::images`] has, in that order.
    fn row(&self, images: Vec<WrittenImage>) -> ImageRecordRow<'_>;

    /// Refuses what could not be read back.
    fn check(&self) -> Result<()> {
        let invalid = |reason: String| Error::InvalidRecord {
            id: self.id().to_owned(),
            reason,
        };
        if self.id().is_empty() {
            return Err(invalid("its id is empty".to_owned()));
        }
        let is_infinite = |score: &Option<f64>| score.is_some_and(|score| !score.is_finite());
        match self.scores().iter().find(|(_, score)| is_infinite(score)) {
            Some((key, _)) => Err(invalid(format!(
                "`{key}` is not a finite number, which JSON cannot hold"
            ))),
            None => Ok(()),
        }
    }
}

impl ImageRecord for ImagePair {
    const LAYOUT: Layout = Layout::Preference;

    fn id(&self) -> &str {
        &self.id
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn images(&self) -> Vec<(&'static str, &ImageSource)> {
        vec![("chosen_image", &self.chosen), ("rejected_image", &self.rejected)]
    }

    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        vec![
            ("chosen_score", self.chosen_score),
            ("rejected_score", self.rejected_score),
        ]
    }

    fn user(&self) -> Option<&str> {
        self.user_id.as_deref()
    }

    fn row(&self, images: Vec<WrittenImage>) -> ImageRecordRow<'_> {
        let [chosen_image, rejected_image] = all(images);
        ImageRecordRow::Pair {
            id: &self.id,
            prompt: &self.prompt,
            chosen_image,
            rejected_image,
            chosen_score: self.chosen_score,
            rejected_score: self.rejected_score,
            user_id: self.user_id.as_deref(),
        }
    }
}

impl ImageRecord for ImageCaption {
    const LAYOUT: Layout = Layout::ImageCaption;

    fn id(&self) -> &str {
        &self.id
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn images(&self) -> Vec<(&'static str, &ImageSource)> {
        vec![("image", &self.image)]
    }

    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        vec![]
    }

    fn row(&self, images: Vec<WrittenImage>) -> ImageRecordRow<'_> {
        let [image] = all(images);
        ImageRecordRow::Caption {
            id: &self.id,
            prompt: &self.prompt,
            image,
        }
    }
}

impl ImageRecord for ImageLabel {
    const LAYOUT: Layout = Layout::Unpaired;

    fn id(&self) -> &str {
        &self.id
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn images(&self) -> Vec<(&'static str, &ImageSource)> {
        vec![("image", &self.image)]
    }

    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        vec![("score", self.score)]
    }

    fn label(&self) -> Option<bool> {
        Some(self.label)
    }

    fn row(&self, images: Vec<WrittenImage>) -> ImageRecordRow<'_> {
        let [image] = all(images);
        ImageRecordRow::Label {
            id: &self.id,
            prompt: &self.prompt,
            image,
            label: self.label,
            score: self.score,
        }
    }
}

impl ImageRecord for RankedImages {
    const LAYOUT: Layout = Layout::Ranked;

    fn id(&self) -> &str {
        &self.id
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn images(&self) -> Vec<(&'static str, &ImageSource)> {
        let responses = self.responses.iter();
        responses.map(|response| ("responses", &response.image)).collect()
    }

    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        let score = |response: &ScoredImage| ("responses.score", Some(response.score));
        self.responses.iter().map(score).collect()
    }

    fn row(&self, images: Vec<WrittenImage>) -> ImageRecordRow<'_> {
        let scores = self.responses.iter().map(|response| response.score);
        let responses = images.into_iter().zip(scores);
        ImageRecordRow::Ranked {
            id: &self.id,
            prompt: &self.prompt,
            responses: responses
                .map(|(image, score)| RankedResponse { image, score })
                .collect(),
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |reason: &str| {
            Err(Error::InvalidRecord {
                id: self.id.clone(),
                reason: reason.to_owned(),
            })
        };
        match () {
            () if self.id.is_empty() => invalid("its id is empty"),
            () if self.responses.len() < 2 => invalid("it has fewer than two images"),
            () if self.responses.iter().any(|response| !response.score.is_finite()) => {
                invalid("a score is not a finite number, which JSON cannot hold")
            }
            () => Ok(()),
        }
    }
}

impl ImageRecord for ImagePrompt {
    const LAYOUT: Layout = Layout::PromptOnly;

    fn id(&self) -> &str {
        &self.id
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn images(&self) -> Vec<(&'static str, &ImageSource)> {
        vec![]
    }

    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        vec![]
    }

    fn row(&self, _: Vec<WrittenImage>) -> ImageRecordRow<'_> {
        ImageRecordRow::Prompt {
            id: &self.id,
            prompt: &self.prompt,
        }
    }
}

/// As many images as a record says that it has.
fn all<const N: usize>(images: Vec<WrittenImage>) -> [WrittenImage; N] {
    images
        .try_into()
        .expect("a row is given one image for each of its record")
}
