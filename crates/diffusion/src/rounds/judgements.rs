//! What judges said, kept: an image is judged once for a prompt, whoever asks and however often a run is interrupted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use diptych_eval::{Judge, JudgeOptions, LoadedJudge};
use diptych_tensor::files::write_file;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::place::{hex, io};
use crate::Result;

/// Images judged together. A batch of which any score is missing is judged as a whole: judges that are networks round by the company
/// an image is in, and an interrupted run must not.
const BATCH: usize = 16;

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// SHA-256 of judge, prompt and pixels.
    key: String,
    score: f64,
}

/// The scores so far.
#[derive(Debug)]
pub(super) struct Judgements {
    path: PathBuf,
    file: File,
    scores: BTreeMap<String, f64>,
}

impl Judgements {
    /// Opens the file, or begins it. A line that an ended process left unfinished is dropped.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(io("read", path)(source)),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut scores = BTreeMap::new();
        for line in text[..whole].lines() {
            let line: Line = serde_json::from_str(line).map_err(|source| crate::Error::Json {
                path: path.to_owned(),
                source,
            })?;
            scores.insert(line.key, line.score);
        }
        write_file(path, &text.as_bytes()[..whole])?;
        let file = OpenOptions::new().append(true).open(path).map_err(io("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            scores,
        })
    }

    fn keep(&mut self, key: String, score: f64) -> Result<f64> {
        if let Some(&known) = self.scores.get(&key) {
            return Ok(known);
        }
        let line = Line { key, score };
        let text = serde_json::to_string(&line).map_err(|source| crate::Error::Json {
            path: self.path.clone(),
            source,
        })?;
        self.file
            .write_all(format!("{text}\n").as_bytes())
            .map_err(io("write", &self.path))?;
        self.scores.insert(line.key, score);
        Ok(score)
    }
}

/// A judge that is loaded when it is first asked something new.
#[derive(Debug)]
pub(super) struct Court<'a> {
    judge: &'a Judge,
    hash: String,
    options: JudgeOptions,
    loaded: Option<LoadedJudge>,
    /// Images judged in this process.
    pub(super) num_judged: usize,
}

impl<'a> Court<'a> {
    pub(super) fn new(judge: &'a Judge, options: JudgeOptions) -> Result<Self> {
        Ok(Self {
            judge,
            hash: judge.content_hash()?,
            options,
            loaded: None,
            num_judged: 0,
        })
    }

    /// One score for each image, given the prompt at the same place.
    pub(super) fn scores(
        &mut self,
        kept: &mut Judgements,
        prompts: &[String],
        images: &[RgbImage],
    ) -> Result<Vec<f64>> {
        let mut scores = Vec::with_capacity(images.len());
        for (prompts, images) in prompts.chunks(BATCH).zip(images.chunks(BATCH)) {
            let keys: Vec<String> = prompts
                .iter()
                .zip(images)
                .map(|(prompt, image)| self.key(prompt, image))
                .collect();
            let known: Option<Vec<f64>> = keys.iter().map(|key| kept.scores.get(key).copied()).collect();
            if let Some(known) = known {
                scores.extend(known);
                continue;
            }
            let judged = self.loaded()?.score_images(prompts, images)?;
            self.num_judged += judged.len();
            for (key, score) in keys.into_iter().zip(judged) {
                scores.push(kept.keep(key, score)?);
            }
        }
        Ok(scores)
    }

    fn loaded(&mut self) -> Result<&LoadedJudge> {
        if self.loaded.is_none() {
            self.loaded = Some(self.judge.load(&self.options)?);
        }
        // Set just now, if it was not before.
        self.loaded.as_ref().ok_or(crate::Error::MissingComponent {
            action: "judging",
            component: "judge",
        })
    }

    fn key(&self, prompt: &str, image: &RgbImage) -> String {
        let mut hasher = Sha256::new();
        // Lengths, so that no two questions run together to the same bytes.
        for part in [self.hash.as_bytes(), prompt.as_bytes()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(image.width().to_le_bytes());
        hasher.update(image.as_raw());
        hex(&hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_judged_twice_and_a_cut_line_is_judged_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("judgements.jsonl");
        let prompts = ["a red circle".to_owned(), "a blue star".to_owned()];
        let images = [
            image::RgbImage::new(16, 16),
            RgbImage::from_pixel(16, 16, image::Rgb([255, 0, 0])),
        ];
        let judge = Judge::Verifier;
        let ask = || {
            let mut kept = Judgements::open(&path).unwrap();
            let mut court = Court::new(&judge, JudgeOptions::default()).unwrap();
            let scores = court.scores(&mut kept, &prompts, &images).unwrap();
            (scores, court.num_judged, kept.scores.len())
        };
        let (scores, num_judged, len) = ask();
        assert_eq!((num_judged, len), (2, 2));
        assert_eq!(scores, judge.score(&prompts, &images).unwrap());
        assert_eq!(ask(), (scores.clone(), 0, 2));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert_eq!(ask(), (scores.clone(), 2, 2));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        // The same image for another prompt is another question.
        let mut kept = Judgements::open(&path).unwrap();
        let mut court = Court::new(&judge, JudgeOptions::default()).unwrap();
        court.scores(&mut kept, &[prompts[1].clone()], &images[..1]).unwrap();
        assert_eq!((court.num_judged, kept.scores.len()), (1, 3));
    }
}
