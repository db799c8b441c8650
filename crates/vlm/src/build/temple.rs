//! TEMPLE: what the model says of a video whose frames are dropped, reversed or shuffled is rejected; from coarse disturbances to fine ones.
//!
//! # Paper
//! Li et al., "TEMPLE: Temporal Preference Learning of Video LLMs via Difficulty Scheduling and Pre-SFT Alignment", arXiv:2503.16929. Reference code:
//! lscpku/TEMPLE `inference/generator_base.py`, `convert_to_swift.py`: the n clips of a video are disturbed at a magnitude m: `drop` keeps max(1, n / m) of
//! them, `shuffle` and `reverse` change the order of groups of max(1, n / m). Trained on in stages of m = 16, 8, 4, 2. Of `drop` the chosen answer
//! must be longer than the rejected one; of the others neither is more than 1.5 times as long as the other; a chosen answer that is part of
//! the rejected one is dropped.
//!
//! Differences: the released program gives the model captions of clips, made before, in another order; here it sees the frames themselves. It also samples
//! under a repetition penalty of 1.05.
//!
//! With `other_images = "disturbed"` the disturbed frames come along as the other images of a pair, for a preference between videos under one answer, as PaMi-VDPO
//! (Ding et al., arXiv:2504.05810) learns; frames that are missing are held by the one before. Its choice among disturbances by the prompt is not made.

use diptych_data::{Content, ContentBlock, IMAGE_PLACEHOLDERS, ImageSource, Text, TextPrompt};
use diptych_tensor::random::Generator;
use rand::seq::SliceRandom as _;
use rand::seq::index::sample;
use serde::{Deserialize, Serialize};

use super::checks::{check_count, setting, unused};
use super::skip::Skip;
use super::speaker::{Ask, Seen};
use super::workshop::{MAX_ASKS, OpenRow, Outcome, Purpose, Wanted, Workshop};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Temple {
    /// What is done to the frames; one pair each. Default: all three.
    pub disturbances: Vec<Disturbance>,
    /// Into how many parts the frames are taken apart: one stage each, in this order in the file. Default 16, 8, 4, 2.
    pub magnitudes: Vec<usize>,
    /// Frames that stay together. Default 1; the published clips have 2.
    pub clip_frames: usize,
    /// One answer may be so many times as long as the other. Default 1.5. Only of `reverse` and `shuffle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_ratio: Option<f64>,
    /// The other images of a pair, which the chosen answer can be compared under; both answers are to the video as it is. Default `none`.
    pub other_images: OtherImages,
}

/// How many times as long as the other an answer may be where the settings do not say.
const MAX_LENGTH_RATIO: f64 = 1.5;

/// What is done to frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disturbance {
    /// Most of them are left out.
    Drop,
    /// Their groups come in reverse order.
    Reverse,
    /// Their groups come in a random order.
    Shuffle,
}

/// What comes along with a pair, as its other images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherImages {
    /// Nothing.
    #[default]
    None,
    /// The frames as they were disturbed.
    Disturbed,
}

impl Default for Temple {
    fn default() -> Self {
        Self {
            disturbances: vec![Disturbance::Drop, Disturbance::Reverse, Disturbance::Shuffle],
            magnitudes: vec![16, 8, 4, 2],
            clip_frames: 1,
            max_length_ratio: None,
            other_images: OtherImages::None,
        }
    }
}

impl Disturbance {
    fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reverse => "reverse",
            Self::Shuffle => "shuffle",
        }
    }

    /// The frames that are left, in their new order; none where nothing would change.
    fn order(self, num_frames: usize, clip_frames: usize, magnitude: usize, rng: &mut Generator) -> Option<Vec<usize>> {
        let frames: Vec<usize> = (0..num_frames).collect();
        let clips: Vec<&[usize]> = frames.chunks(clip_frames).collect();
        let part = (clips.len() / magnitude).max(1);
        let order: Vec<usize> = match self {
            Self::Drop => {
                let mut kept = sample(rng, clips.len(), part).into_vec();
                kept.sort_unstable();
                kept.into_iter().flat_map(|clip| clips[clip]).copied().collect()
            }
            Self::Reverse => clips.chunks(part).rev().flatten().copied().flatten().copied().collect(),
            Self::Shuffle => {
                let mut groups: Vec<&[&[usize]]> = clips.chunks(part).collect();
                let is_ordered = |groups: &[&[&[usize]]]| {
                    groups
                        .iter()
                        .flat_map(|group| group.iter())
                        .flat_map(|clip| clip.iter())
                        .is_sorted()
                };
                // A shuffle may leave everything where it was; then it is made again.
                for _ in 0..MAX_SHUFFLES {
                    groups.shuffle(rng);
                    if !is_ordered(&groups) {
                        break;
                    }
                }
                groups.into_iter().flatten().copied().flatten().copied().collect()
            }
        };
        (order != frames).then_some(order)
    }
}

/// After so many shuffles that change nothing there is nothing to change.
const MAX_SHUFFLES: usize = 16;

impl Temple {
    pub(super) fn validate(&self) -> Result<()> {
        if self.disturbances.is_empty() {
            return Err(setting("disturbances", "[]", "one or more of drop, reverse, shuffle"));
        }
        if self.magnitudes.is_empty() || self.magnitudes.iter().any(|magnitude| *magnitude < 2) {
            let found = format!("{:?}", self.magnitudes);
            return Err(setting("magnitudes", found, "one or more numbers from 2 on"));
        }
        check_count("clip_frames", self.clip_frames, 1)?;
        let is_used = self
            .disturbances
            .iter()
            .any(|disturbance| *disturbance != Disturbance::Drop);
        match self.max_length_ratio {
            Some(_) if !is_used => Err(unused(
                "max_length_ratio",
                "of frames that are left out the answer need only be shorter",
            )),
            Some(ratio) if ratio < 1.0 || ratio.is_nan() => {
                Err(setting("max_length_ratio", ratio, "a number from 1 on"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
        let Some(open) = shop.open(index, Wanted::Several)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let seen = shop.speaker.look_at_all(&open.images)?;
        let (views, mut outcome) = self.views(shop, &open);
        let asks: Vec<Ask<'_>> = std::iter::once(Workshop::ask(index, 0, &open.row.prompt, &seen))
            .chain(
                views
                    .iter()
                    .enumerate()
                    .map(|(number, view)| view.ask(index, number as u64 + 1, &seen)),
            )
            .collect();
        let mut said = shop.speaker.answers(&asks)?.into_iter();
        let Some(chosen) = said.next() else { return Ok(outcome) };
        for (view, rejected) in views.iter().zip(said) {
            let id = format!(
                "{}-{}-{}",
                open.row.id(),
                view.disturbance.name(),
                self.magnitudes[view.stage]
            );
            let made = shop.pair(&id, &open.row.prompt, [&chosen, &rejected])?;
            let made = made.and_then(|mut pair| {
                self.filter(view.disturbance, &chosen.text, &rejected.text)?;
                if self.other_images == OtherImages::Disturbed {
                    pair.other_images = Some(view.held(open.row.images()));
                }
                Ok(pair)
            });
            outcome.add_staged(view.stage, made);
        }
        Ok(outcome)
    }

    /// The disturbed videos of a row, and which of them there are not.
    fn views(&self, shop: &Workshop<'_>, open: &OpenRow<'_>) -> (Vec<View>, Outcome) {
        let mut rng = shop.random(Purpose::Frames, open.index);
        let (mut views, mut outcome) = (Vec::new(), Outcome::default());
        for (stage, magnitude) in self.magnitudes.iter().enumerate() {
            for disturbance in &self.disturbances {
                let Some(order) = disturbance.order(open.images.len(), self.clip_frames, *magnitude, &mut rng) else {
                    outcome.skipped.push(Skip::TooFewFrames);
                    continue;
                };
                views.push(View {
                    prompt: with_places(&open.row.prompt, order.len()),
                    disturbance: *disturbance,
                    stage,
                    order,
                });
            }
        }
        (views, outcome)
    }

    fn filter(&self, disturbance: Disturbance, chosen: &str, rejected: &str) -> Result<(), Skip> {
        let [long, short] = [chosen, rejected].map(|text| text.chars().count());
        if rejected.contains(chosen) {
            return Err(Skip::Contained);
        }
        match disturbance {
            Disturbance::Drop if long <= short => Err(Skip::NotShorter),
            Disturbance::Drop => Ok(()),
            Disturbance::Reverse | Disturbance::Shuffle => {
                let ratio = long.max(short) as f64 / long.min(short).max(1) as f64;
                if ratio > self.max_length_ratio.unwrap_or(MAX_LENGTH_RATIO) {
                    Err(Skip::LengthRatio)
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// A disturbed video.
struct View {
    prompt: TextPrompt,
    disturbance: Disturbance,
    stage: usize,
    order: Vec<usize>,
}

impl View {
    fn ask<'a>(&'a self, index: usize, number: u64, seen: &'a [Seen]) -> Ask<'a> {
        Ask {
            prompt: &self.prompt,
            images: self.order.iter().map(|frame| &seen[*frame]).collect(),
            begun: &[],
            key: index as u64 * MAX_ASKS + number,
        }
    }

    /// The disturbed frames, as many as there were: a frame that is missing is the one before it.
    fn held(&self, frames: &[ImageSource]) -> Vec<ImageSource> {
        let held = |at: usize| frames[self.order[at * self.order.len() / frames.len()]].clone();
        (0..frames.len()).map(held).collect()
    }
}

/// The prompt with the first of its places for images only; its images are as many.
fn with_places(prompt: &TextPrompt, num: usize) -> TextPrompt {
    let mut prompt = prompt.clone();
    prompt.images.truncate(num);
    let mut left = num;
    match &mut prompt.prompt {
        Text::Plain(text) => {
            let Some(place) = IMAGE_PLACEHOLDERS.into_iter().find(|place| text.contains(place)) else {
                return prompt;
            };
            let mut parts = text.split(place);
            let mut kept = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                if left > 0 {
                    kept.push_str(place);
                    left -= 1;
                }
                kept.push_str(part);
            }
            *text = kept;
        }
        Text::Messages(messages) => {
            for message in messages {
                if let Some(Content::Blocks(blocks)) = &mut message.content {
                    blocks.retain(|block| {
                        let is_place = *block == ContentBlock::Image;
                        let is_kept = !is_place || left > 0;
                        left -= usize::from(is_place && is_kept);
                        is_kept
                    });
                }
            }
        }
        Text::Ids(_) => {}
    }
    prompt
}

#[cfg(test)]
mod tests {
    use diptych_data::conversation;
    use diptych_tensor::random::{Stream, generator};

    use super::*;

    fn order(disturbance: Disturbance, num: usize, clip: usize, magnitude: usize) -> Option<Vec<usize>> {
        let mut rng = generator(1, Stream::Records, 5, 0);
        disturbance.order(num, clip, magnitude, &mut rng)
    }

    #[test]
    fn frames_are_disturbed_in_groups() {
        use Disturbance::{Drop, Reverse, Shuffle};
        assert_eq!(order(Reverse, 8, 1, 2), Some(vec![4, 5, 6, 7, 0, 1, 2, 3]));
        assert_eq!(order(Reverse, 8, 1, 16), Some(vec![7, 6, 5, 4, 3, 2, 1, 0]));
        assert_eq!(order(Reverse, 8, 2, 4), Some(vec![6, 7, 4, 5, 2, 3, 0, 1]));
        // Groups of n / m, the last one shorter.
        assert_eq!(order(Reverse, 7, 1, 3), Some(vec![6, 4, 5, 2, 3, 0, 1]));
        let kept = order(Drop, 16, 1, 4).unwrap();
        assert!(kept.len() == 4 && kept.is_sorted());
        assert_eq!(order(Drop, 3, 1, 16).unwrap().len(), 1);
        let shuffled = order(Shuffle, 8, 1, 2).unwrap();
        assert_eq!(shuffled, [4, 5, 6, 7, 0, 1, 2, 3], "two groups have one other order");
        let mut fine = order(Shuffle, 8, 1, 8).unwrap();
        fine.sort_unstable();
        assert_eq!(fine, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            (order(Reverse, 2, 2, 2), order(Shuffle, 1, 1, 4), order(Drop, 1, 1, 4)),
            (None, None, None)
        );
    }

    #[test]
    fn fewer_frames_have_fewer_places() {
        let image = ImageSource::Bytes(std::sync::Arc::from([]));
        let plain = TextPrompt {
            images: vec![image.clone(); 3],
            ..TextPrompt::new("0", "<image><image> <image> what")
        };
        let fewer = with_places(&plain, 2);
        assert_eq!((fewer.prompt, fewer.images.len()), ("<image><image>  what".into(), 2));
        let chat = TextPrompt {
            images: vec![image; 3],
            ..TextPrompt::new("0", conversation(None, "what", 3))
        };
        assert_eq!(with_places(&chat, 1).prompt, conversation(None, "what", 1));
    }
}
