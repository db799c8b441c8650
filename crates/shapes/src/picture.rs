//! What is asked and said about a picture, for vision-language models.
//!
//! ```text
//! prompt = "<image>" request ":"         request = CAPTION_REQUEST, or the text of a Question
//! ```

use crate::claims::vocabulary;

/// What stands for a picture in a prompt.
pub const PICTURE_TOKEN: &str = "<image>";

/// What asks for a caption.
pub const CAPTION_REQUEST: &str = "describe the picture";

/// The prompt of a request about a picture: `<image> is there a red circle:`. Answers begin with
/// [`COMPLETION_START`](crate::COMPLETION_START).
pub fn picture_prompt(request: &str) -> String {
    format!("{PICTURE_TOKEN} {request}:")
}

/// Every word and punctuation mark of captions, questions, answers and prompts, sorted, each once.
pub fn picture_vocabulary() -> Vec<&'static str> {
    let mut words = vocabulary();
    words.extend(CAPTION_REQUEST.split(' '));
    words.extend([
        "is", "there", "how", "many", "are", "what", "color", "shape", "size", "the",
    ]);
    words.extend(["yes", "no", "zero", ":"]);
    words.sort_unstable();
    words.dedup();
    words
}
