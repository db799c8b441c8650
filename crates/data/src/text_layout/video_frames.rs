//! Videos as the frames they are made of: a row with lists of frames is a row with several images.
//!
//! `videos` is a list of videos, each a list of frames in their order; `video` is one such list. Every `<video>` in the words of a conversation, and
//! every `{"type": "video"}` in its messages, becomes as many places for images as its video has frames; without any, a video's frames are placed
//! as images without a place are. Both conversations of a pair that has no prompt of its own begin with the same places. Of a video with more
//! frames than are wanted, evenly spaced ones are taken, as samplers of frames do: the middles of as many equal parts.

use super::MEDIA;
use crate::Layout;
use crate::error::{Result, RowProblem};
use crate::json::{Object, Value};
use crate::message::IMAGE_PLACEHOLDERS;
use crate::row::Row;

/// What stands in words for a video.
const PLACEHOLDER: &str = "<video>";

/// What is expected of `videos`.
const VIDEOS: &str =
    "a list of videos, each a list of frames: paths of images relative to the file, or {\"bytes\": \"<base64>\"}";

/// Keys that hold no words of a conversation.
const NO_WORDS: [&str; 7] = [
    "id",
    "images",
    "rejected_images",
    "other_images",
    "tools",
    "chat_template_kwargs",
    "videos",
];

/// Keys of the side that may say its prompt again: a pair whose conversations both contain their prompt, and ms-swift's second conversation.
const REPEATING: [&str; 2] = ["rejected", "rejected_messages"];

/// Makes the frames of a row's videos its images. `max_frames` is for each video; none takes all.
pub(crate) fn unfold(row: &mut Row, layout: Layout, max_frames: Option<usize>) -> Result<()> {
    let has_own_videos = matches!(
        layout,
        Layout::Preference
            | Layout::Unpaired
            | Layout::Ranked
            | Layout::Sft
            | Layout::PromptOnly
            | Layout::MsSwift
            | Layout::LlamaFactory
    );
    if !has_own_videos {
        return Ok(());
    }
    let Some(videos) = take_videos(row)? else { return Ok(()) };
    if let Some(key) = ["images", "image", "rejected_images", "other_images"]
        .into_iter()
        .find(|key| says(row, key))
    {
        return Err(row.error(RowProblem::Conflict {
            key: key.to_owned(),
            reason: "stands beside a video; frames and images in one row cannot be told apart".to_owned(),
        }));
    }
    let sampled: Vec<Vec<Value>> = videos.into_iter().map(|frames| sample(frames, max_frames)).collect();
    let counts: Vec<usize> = sampled.iter().map(Vec::len).collect();
    fill_places(row, &counts)?;
    let frames = sampled.into_iter().flatten().collect();
    // Empty columns of images, which tables have of all rows.
    row.fields
        .retain(|(key, _)| !["images", "image", "rejected_images", "other_images"].contains(&key.as_str()));
    row.fields.push(("images".to_owned(), Value::Array(frames)));
    Ok(())
}

/// Makes places for frames of the places for videos in a row's words. A second conversation of the row, which repeats the prompt, has them again.
fn fill_places(row: &mut Row, counts: &[usize]) -> Result<()> {
    let [mut first, mut again] = [Places::of(counts), Places::of(counts)];
    for (key, value) in &mut row.fields {
        if REPEATING.contains(&key.as_str()) {
            again.fill(value);
        } else if !NO_WORDS.contains(&key.as_str()) && !MEDIA.contains(&key.as_str()) {
            first.fill(value);
        }
    }
    let fits = |places: &Places<'_>| [0, counts.len()].contains(&places.num_found);
    match [&first, &again].into_iter().find(|places| !fits(places)) {
        None => Ok(()),
        Some(places) => Err(row.error(RowProblem::Conflict {
            key: "videos".to_owned(),
            reason: format!(
                "has {} videos, but the conversation has {} places for one",
                counts.len(),
                places.num_found
            ),
        })),
    }
}

/// Evenly spaced elements: the middles of `limit` equal parts.
fn sample(frames: Vec<Value>, limit: Option<usize>) -> Vec<Value> {
    let num = frames.len();
    match limit {
        Some(limit) if limit < num => {
            let chosen: Vec<usize> = (0..limit).map(|part| (2 * part + 1) * num / (2 * limit)).collect();
            let mut at = 0;
            let is_chosen = |_: &Value| {
                at += 1;
                chosen.contains(&(at - 1))
            };
            frames.into_iter().filter(is_chosen).collect()
        }
        _ => frames,
    }
}

/// The lists of frames; none where the row has no video. Strings are videos in files, which nothing here reads: they are left for the layout to refuse.
fn take_videos(row: &mut Row) -> Result<Option<Vec<Vec<Value>>>> {
    if says(row, "video") && says(row, "videos") {
        return Err(row.error(RowProblem::Conflict {
            key: "video".to_owned(),
            reason: "stands beside `videos`; keep one of them".to_owned(),
        }));
    }
    let key = if says(row, "video") { "video" } else { "videos" };
    let Some(Value::Array(elements)) = row.peek(key) else {
        return Ok(None);
    };
    let is_list = |element: &Value| matches!(element, Value::Array(_));
    let is_frames = key == "video" || elements.iter().all(is_list);
    if elements.is_empty() || !is_frames {
        return Ok(None);
    }
    let Some(Value::Array(elements)) = row.take_value(key) else {
        return Ok(None);
    };
    let lists = if key == "video" {
        vec![elements]
    } else {
        elements
            .into_iter()
            .filter_map(|element| match element {
                Value::Array(frames) => Some(frames),
                _ => None,
            })
            .collect()
    };
    match lists.iter().position(Vec::is_empty) {
        None => Ok(Some(lists)),
        Some(at) => Err(row.wrong_type(&format!("{key}[{at}]"), &Value::Array(Vec::new()), VIDEOS)),
    }
}

fn says(row: &Row, key: &str) -> bool {
    match row.peek(key) {
        None | Some(Value::Null) => false,
        Some(Value::Array(elements)) => !elements.is_empty(),
        Some(_) => true,
    }
}

/// Places for videos that become places for their frames.
struct Places<'a> {
    counts: std::slice::Iter<'a, usize>,
    num_found: usize,
}

impl<'a> Places<'a> {
    fn of(counts: &'a [usize]) -> Self {
        Self {
            counts: counts.iter(),
            num_found: 0,
        }
    }

    /// How many frames the next place is for; one for a place too many, which is refused afterwards.
    fn next(&mut self) -> usize {
        self.num_found += 1;
        self.counts.next().copied().unwrap_or(1)
    }

    fn fill(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                while let Some(at) = text.find(PLACEHOLDER) {
                    let images = IMAGE_PLACEHOLDERS[0].repeat(self.next());
                    text.replace_range(at..at + PLACEHOLDER.len(), &images);
                }
            }
            Value::Array(elements) => {
                let mut filled = Vec::with_capacity(elements.len());
                for mut element in std::mem::take(elements) {
                    if is_video_block(&element) {
                        filled.extend(std::iter::repeat_n(image_block(), self.next()));
                    } else {
                        self.fill(&mut element);
                        filled.push(element);
                    }
                }
                *elements = filled;
            }
            Value::Object(Object(fields)) => fields.iter_mut().for_each(|(_, value)| self.fill(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Cell(_) => {}
        }
    }
}

fn is_video_block(value: &Value) -> bool {
    let is_type = |(key, value): &(String, Value)| key == "type" && *value == Value::String("video".to_owned());
    matches!(value, Value::Object(Object(fields)) if fields.iter().any(is_type))
}

fn image_block() -> Value {
    Value::Object(Object(vec![("type".to_owned(), Value::String("image".to_owned()))]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn unfolded(json: &str, max_frames: Option<usize>) -> std::result::Result<serde_json::Value, String> {
        let Object(fields) = serde_json::from_str(json).unwrap();
        let mut row = Row {
            path: Arc::from(Path::new("rows.jsonl")),
            number: 3,
            fields,
        };
        unfold(&mut row, Layout::Preference, max_frames).map_err(|error| error.to_string())?;
        Ok(Value::Object(Object(row.fields)).into())
    }

    fn parsed(json: &str) -> serde_json::Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn frames_become_images_at_the_places_of_their_videos() {
        let json = r#"{"prompt": "<video>one <video> two", "videos": [["a", "b"], ["c"]]}"#;
        let expected = r#"{"images":["a","b","c"],"prompt":"<image><image>one <image> two"}"#;
        assert_eq!(unfolded(json, None).unwrap(), parsed(expected));
        // Both sides contain their prompt.
        let json = r#"{"chosen": "<video>what? a", "rejected": "<video>what? b", "videos": [["a", "b"]]}"#;
        let expected = r#"{"chosen":"<image><image>what? a","images":["a","b"],"rejected":"<image><image>what? b"}"#;
        assert_eq!(unfolded(json, None).unwrap(), parsed(expected));
        let json = r#"{"prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what"}]}], "video": ["a", "b"]}"#;
        let expected = r#"{"images":["a","b"],"prompt":[{"content":[{"type":"image"},{"type":"image"},{"text":"what","type":"text"}],"role":"user"}]}"#;
        assert_eq!(unfolded(json, None).unwrap(), parsed(expected));
        // Files of videos are nobody's here, and rows without any stay as they are.
        for json in [
            r#"{"prompt":"a","videos":["a.mp4"]}"#,
            r#"{"prompt":"<video>","videos":[]}"#,
        ] {
            assert_eq!(unfolded(json, None).unwrap(), parsed(json));
        }
    }

    #[test]
    fn frames_are_taken_evenly() {
        let frames: Vec<Value> = (0..8).map(|at| Value::String(at.to_string())).collect();
        let taken = |limit| {
            let taken = sample(frames.clone(), limit);
            let texts = taken.into_iter().map(|value| match value {
                Value::String(text) => text,
                _ => String::new(),
            });
            texts.collect::<String>()
        };
        assert_eq!(taken(None), "01234567");
        assert_eq!(taken(Some(8)), "01234567");
        assert_eq!(taken(Some(4)), "1357");
        assert_eq!(taken(Some(3)), "146");
        assert_eq!(taken(Some(1)), "4");
        let limited = unfolded(r#"{"prompt": "<video>", "videos": [["a", "b", "c", "d"]]}"#, Some(2)).unwrap();
        assert_eq!(limited, parsed(r#"{"images":["b","d"],"prompt":"<image><image>"}"#));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            (r#"{"prompt": "<video>", "videos": [["a"], ["b"]]}"#, "2 videos"),
            (
                r#"{"chosen": "<video> a", "rejected": "<video><video> b", "videos": [["a"]]}"#,
                "2 places",
            ),
            (r#"{"prompt": "a", "videos": [["a"]], "images": ["b"]}"#, "`images`"),
            (r#"{"prompt": "a", "videos": [["a"]], "video": ["b"]}"#, "`video`"),
            (r#"{"prompt": "a", "videos": [["a"], []]}"#, "`videos[1]`"),
        ];
        for (json, said) in cases {
            let error = unfolded(json, None).unwrap_err();
            assert!(error.contains(said) && error.contains("row 3"), "{error}");
        }
    }
}
