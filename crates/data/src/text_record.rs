//! Records of text: pairs, labelled answers, ranked answers, supervised samples and prompts.

use serde_json::{Map, Value};

use crate::{CharSpan, Completion, ImageSource, Prompt, Text, TextKind};

/// One completion preferred over another for the same prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TextPair {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What both completions answer; of the same kind as they are.
    pub prompt: Prompt,
    /// The preferred completion.
    pub chosen: Completion,
    /// The other completion.
    pub rejected: Completion,
    /// The judge's score of the preferred completion, if the data has it.
    pub chosen_score: Option<f64>,
    /// The judge's score of the other completion, if the data has it.
    pub rejected_score: Option<f64>,
    /// Summed log-probability of the preferred completion under the reference (key `ref_chosen_logps`).
    pub reference_chosen_logps: Option<f64>,
    /// Summed log-probability of the other completion under the reference (key `ref_rejected_logps`).
    pub reference_rejected_logps: Option<f64>,
    /// By how much the preferred completion is better, for objectives with a margin.
    pub margin: Option<f64>,
    /// Why the preferred completion is better, in words: something to learn of its own, beside the completions.
    pub rationale: Option<String>,
    /// Weights on parts of the preferred completion.
    pub chosen_spans: Vec<CharSpan>,
    /// Weights on parts of the other completion.
    pub rejected_spans: Vec<CharSpan>,
    /// What the prompt shows, in the order of its image blocks or placeholders; empty for text.
    pub images: Vec<ImageSource>,
    /// As many images that the prompt of the rejected completion, or the other side of a preference between images, has instead;
    /// none where both sides see the same.
    pub rejected_images: Option<Vec<ImageSource>>,
    /// What a preference between images compares the prompt's own images with: under these, in the same places, the preferred completion
    /// should be less likely (Re-Align's retrieved image). Both completions themselves are of the prompt's own images.
    pub other_images: Option<Vec<ImageSource>>,
    /// JSON schemas of the functions that a chat template shows to the model; empty is none.
    pub tools: Vec<Value>,
    /// Further variables of the chat template; empty is none.
    pub chat_template_kwargs: Map<String, Value>,
}

/// One completion with a verdict (KTO).
#[derive(Debug, Clone, PartialEq)]
pub struct UnpairedText {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the completion answers; of the same kind as it is.
    pub prompt: Prompt,
    /// The completion.
    pub completion: Completion,
    /// Whether the completion is desirable.
    pub label: bool,
    /// The judge's score, if the data has it.
    pub score: Option<f64>,
    /// Summed log-probability of the completion under the reference (key `ref_logps`).
    pub reference_logps: Option<f64>,
    /// Weights on parts of the completion.
    pub completion_spans: Vec<CharSpan>,
    /// What the prompt shows, in the order of its image blocks or placeholders; empty for text.
    pub images: Vec<ImageSource>,
    /// JSON schemas of the functions that a chat template shows to the model; empty is none.
    pub tools: Vec<Value>,
    /// Further variables of the chat template; empty is none.
    pub chat_template_kwargs: Map<String, Value>,
}

/// Two or more completions of one prompt with scores.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedText {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the completions answer; of the same kind as they are.
    pub prompt: Prompt,
    /// The completions in the order of the file; at least two.
    pub responses: Vec<ScoredText>,
    /// What the prompt shows, in the order of its image blocks or placeholders; empty for text.
    pub images: Vec<ImageSource>,
    /// JSON schemas of the functions that a chat template shows to the model; empty is none.
    pub tools: Vec<Value>,
    /// Further variables of the chat template; empty is none.
    pub chat_template_kwargs: Map<String, Value>,
}

/// A completion and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredText {
    /// The completion.
    pub completion: Completion,
    /// Larger is better; finite.
    pub score: f64,
}

/// A text to learn by imitation.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSample {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// The text.
    pub body: SampleBody,
    /// Weights on parts of the completion; empty for [`SampleBody::Whole`].
    pub completion_spans: Vec<CharSpan>,
    /// What the text shows, in the order of its image blocks or placeholders; empty for text.
    pub images: Vec<ImageSource>,
    /// JSON schemas of the functions that a chat template shows to the model; empty is none.
    pub tools: Vec<Value>,
    /// Further variables of the chat template; empty is none.
    pub chat_template_kwargs: Map<String, Value>,
}

/// What of a sample is learned.
#[derive(Debug, Clone, PartialEq)]
pub enum SampleBody {
    /// All of it (`text`, `messages`, `input_ids`); with messages a trainer may keep to the assistant's.
    Whole(Text),
    /// The completion, after the prompt.
    Completed {
        /// Not learned.
        prompt: Prompt,
        /// Learned; of the same kind as the prompt.
        completion: Completion,
    },
}

/// A prompt to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TextPrompt {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// The prompt.
    pub prompt: Prompt,
    /// What the prompt shows, in the order of its image blocks or placeholders; empty for text.
    pub images: Vec<ImageSource>,
    /// JSON schemas of the functions that a chat template shows to the model; empty is none.
    pub tools: Vec<Value>,
    /// Further variables of the chat template; empty is none.
    pub chat_template_kwargs: Map<String, Value>,
}

impl TextPair {
    /// A pair with nothing but its texts.
    pub fn new(
        id: impl Into<String>,
        prompt: impl Into<Prompt>,
        chosen: impl Into<Completion>,
        rejected: impl Into<Completion>,
    ) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            chosen: chosen.into(),
            rejected: rejected.into(),
            chosen_score: None,
            rejected_score: None,
            reference_chosen_logps: None,
            reference_rejected_logps: None,
            margin: None,
            rationale: None,
            chosen_spans: Vec::new(),
            rejected_spans: Vec::new(),
            images: Vec::new(),
            rejected_images: None,
            other_images: None,
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }
    }

    /// What its sides are.
    pub fn kind(&self) -> TextKind {
        self.chosen.kind()
    }

    /// The pair as two labelled completions, chosen first, as TRL's `unpair_preference_dataset` makes them for KTO. Ids
    /// get `/chosen` and `/rejected` appended. Margin, rationale and other images belong to the pair and are dropped;
    /// a rejected completion with images of its own keeps these.
    pub fn unpair(self) -> [UnpairedText; 2] {
        let rejected = UnpairedText {
            id: format!("{}/rejected", self.id),
            prompt: self.prompt.clone(),
            completion: self.rejected,
            label: false,
            score: self.rejected_score,
            reference_logps: self.reference_rejected_logps,
            completion_spans: self.rejected_spans,
            images: self.rejected_images.unwrap_or_else(|| self.images.clone()),
            tools: self.tools.clone(),
            chat_template_kwargs: self.chat_template_kwargs.clone(),
        };
        let chosen = UnpairedText {
            id: format!("{}/chosen", self.id),
            prompt: self.prompt,
            completion: self.chosen,
            label: true,
            score: self.chosen_score,
            reference_logps: self.reference_chosen_logps,
            completion_spans: self.chosen_spans,
            images: self.images,
            tools: self.tools,
            chat_template_kwargs: self.chat_template_kwargs,
        };
        [chosen, rejected]
    }
}

impl UnpairedText {
    /// A labelled completion with nothing but its texts.
    pub fn new(
        id: impl Into<String>,
        prompt: impl Into<Prompt>,
        completion: impl Into<Completion>,
        label: bool,
    ) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            completion: completion.into(),
            label,
            score: None,
            reference_logps: None,
            completion_spans: Vec::new(),
            images: Vec::new(),
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }
    }

    /// What its sides are.
    pub fn kind(&self) -> TextKind {
        self.completion.kind()
    }
}

impl RankedText {
    /// Ranked completions with nothing but their texts and scores.
    pub fn new(id: impl Into<String>, prompt: impl Into<Prompt>, responses: Vec<ScoredText>) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            responses,
            images: Vec::new(),
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }
    }

    /// What its sides are.
    pub fn kind(&self) -> TextKind {
        self.prompt.kind()
    }
}

impl TextSample {
    /// A sample with nothing but its text.
    pub fn new(id: impl Into<String>, body: SampleBody) -> Self {
        Self {
            id: id.into(),
            body,
            completion_spans: Vec::new(),
            images: Vec::new(),
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }
    }

    /// What its text is.
    pub fn kind(&self) -> TextKind {
        match &self.body {
            SampleBody::Whole(text) => text.kind(),
            SampleBody::Completed { completion, .. } => completion.kind(),
        }
    }
}

impl TextPrompt {
    /// A prompt with nothing but its text.
    pub fn new(id: impl Into<String>, prompt: impl Into<Prompt>) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            images: Vec::new(),
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }
    }

    /// What the prompt is.
    pub fn kind(&self) -> TextKind {
        self.prompt.kind()
    }
}
