//! What an objective must be given, so that a recipe can be refused before anything is loaded.

/// What an objective compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: it looks at desirable responses alone.
    Chosen,
    /// A chosen response with a rejected one.
    Pairs,
    /// Desirable responses with undesirable ones, of any prompts.
    Unpaired,
    /// The responses of a ranked list.
    Lists,
}

impl Kind {
    /// The word in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Pairs => "pairs",
            Self::Unpaired => "unpaired",
            Self::Lists => "lists",
        }
    }
}

/// What kind of number the scores must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreKind {
    /// Any: only differences of scores count, or any log-density serves.
    Any,
    /// Log-probabilities of discrete responses: at most 0.
    LogProbability,
    /// Minus one half of a mean squared denoising error.
    DenoisingError,
}

impl ScoreKind {
    /// What the scores are, in words.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Any => "any scores",
            Self::LogProbability => "log-probabilities of texts",
            Self::DenoisingError => "denoising errors of images",
        }
    }
}

/// What an objective must be given besides the policy's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a need of its own; any of them may come together"
)]
pub struct Requirements {
    /// What it compares.
    pub kind: Kind,
    /// What kind of scores.
    pub score: ScoreKind,
    /// Scores of a reference network.
    pub reference: bool,
    /// The number of tokens of each response.
    pub lengths: bool,
    /// Scores token by token.
    pub tokens: bool,
    /// Of the reference too, beside the token scores.
    pub reference_tokens: bool,
    /// What the log-probability of each token is on average, beside the token scores.
    pub collisions: bool,
    /// Scores of each chosen prompt and response together.
    pub whole_texts: bool,
    /// A judge's score of each response.
    pub judge_scores: bool,
    /// Whether only the differences of a judge's scores count, so that by how much the chosen response is better says as much.
    pub judge_margins: bool,
    /// Scores of responses to other prompts.
    pub mismatched: bool,
    /// How far apart the prompts of a micro batch are.
    pub prompt_distances: bool,
    /// The running mean of the rewards, a [`RunningShift`](crate::RunningShift).
    pub reward_shift: bool,
    /// Whether the responses must be samples of the policy as it is now: no stored data has them.
    pub own_samples: bool,
    /// Whether the loss of an example depends on the others of its micro batch, so that cutting an effective batch into
    /// micro batches changes the result.
    pub couples_examples: bool,
}

impl Requirements {
    /// The scores of desirable responses.
    pub const CHOSEN: Self = Self::of(Kind::Chosen);
    /// The scores of chosen and rejected responses.
    pub const PAIRS: Self = Self::of(Kind::Pairs);
    /// The scores of responses labeled good or bad.
    pub const UNPAIRED: Self = Self::of(Kind::Unpaired);
    /// The scores of ranked responses.
    pub const LISTS: Self = Self::of(Kind::Lists);

    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            score: ScoreKind::Any,
            reference: false,
            lengths: false,
            tokens: false,
            reference_tokens: false,
            collisions: false,
            whole_texts: false,
            judge_scores: false,
            judge_margins: false,
            mismatched: false,
            prompt_distances: false,
            reward_shift: false,
            own_samples: false,
            couples_examples: false,
        }
    }

    /// And those of a reference network.
    pub const fn with_reference(self) -> Self {
        Self {
            reference: true,
            ..self
        }
    }

    /// And the numbers of tokens: the responses are text.
    pub const fn with_lengths(self) -> Self {
        Self {
            lengths: true,
            score: ScoreKind::LogProbability,
            ..self
        }
    }

    /// And scores token by token, those of a reference too: the responses are text.
    pub const fn with_tokens(self) -> Self {
        Self {
            tokens: true,
            reference_tokens: true,
            score: ScoreKind::LogProbability,
            ..self
        }
    }

    /// And scores of the policy alone token by token: the responses are text.
    pub const fn with_policy_tokens(self) -> Self {
        Self {
            tokens: true,
            ..self.of_log_probabilities()
        }
    }

    /// And the policy's scores token by token with what they are on average.
    pub const fn with_collisions(self) -> Self {
        Self {
            collisions: true,
            ..self.with_policy_tokens()
        }
    }

    /// And scores of prompts and responses together: these are text.
    pub const fn with_whole_texts(self) -> Self {
        Self {
            whole_texts: true,
            ..self.of_log_probabilities()
        }
    }

    /// And a judge's scores.
    pub const fn with_judge_scores(self) -> Self {
        Self {
            judge_scores: true,
            ..self
        }
    }

    /// And by how much a judge finds the chosen response better: its scores, of which only the difference counts.
    pub const fn with_judge_margins(self) -> Self {
        Self {
            judge_margins: true,
            ..self.with_judge_scores()
        }
    }

    /// And scores of responses to other prompts.
    pub const fn with_mismatched(self) -> Self {
        Self {
            mismatched: true,
            ..self
        }
    }

    /// And how far apart the prompts of a micro batch are.
    pub const fn with_prompt_distances(self) -> Self {
        Self {
            prompt_distances: true,
            ..self
        }
    }

    /// And the running mean of the rewards.
    pub const fn with_reward_shift(self) -> Self {
        Self {
            reward_shift: true,
            ..self
        }
    }

    /// The responses must be samples of the policy as it is now.
    pub const fn of_own_samples(self) -> Self {
        Self {
            own_samples: true,
            ..self
        }
    }

    /// The scores must be log-probabilities.
    pub const fn of_log_probabilities(self) -> Self {
        Self {
            score: ScoreKind::LogProbability,
            ..self
        }
    }

    /// The scores must be denoising errors.
    pub const fn of_denoising_errors(self) -> Self {
        Self {
            score: ScoreKind::DenoisingError,
            ..self
        }
    }

    /// Examples of a micro batch are compared with each other.
    pub const fn coupling_examples(self) -> Self {
        Self {
            couples_examples: true,
            ..self
        }
    }

    /// Everything that either needs; `kind` is that of `self`.
    pub const fn and(self, other: Self) -> Self {
        Self {
            kind: self.kind,
            score: match self.score {
                ScoreKind::Any => other.score,
                ScoreKind::LogProbability | ScoreKind::DenoisingError => self.score,
            },
            reference: self.reference || other.reference,
            lengths: self.lengths || other.lengths,
            tokens: self.tokens || other.tokens,
            reference_tokens: self.reference_tokens || other.reference_tokens,
            collisions: self.collisions || other.collisions,
            whole_texts: self.whole_texts || other.whole_texts,
            judge_scores: self.judge_scores || other.judge_scores,
            judge_margins: match (self.judge_scores, other.judge_scores) {
                (true, true) => self.judge_margins && other.judge_margins,
                (true, false) => self.judge_margins,
                (false, _) => other.judge_margins,
            },
            mismatched: self.mismatched || other.mismatched,
            prompt_distances: self.prompt_distances || other.prompt_distances,
            reward_shift: self.reward_shift || other.reward_shift,
            own_samples: self.own_samples || other.own_samples,
            couples_examples: self.couples_examples || other.couples_examples,
        }
    }

    /// The needs in words, for listings: `reference, lengths`; empty when the policy's scores are enough.
    pub fn needs(&self) -> String {
        let score = match self.score {
            ScoreKind::Any => None,
            ScoreKind::LogProbability => Some("log-probabilities"),
            ScoreKind::DenoisingError => Some("denoising errors"),
        };
        let named = [
            self.reference.then_some("reference"),
            // Lengths and token scores say by themselves that the scores are log-probabilities.
            score.filter(|_| !self.lengths && !self.tokens),
            self.lengths.then_some("lengths"),
            self.tokens.then_some("token scores"),
            self.collisions.then_some("collision probabilities"),
            self.whole_texts.then_some("scores of whole texts"),
            self.judge_scores.then_some("judge scores"),
            self.mismatched.then_some("mismatched responses"),
            self.prompt_distances.then_some("distances of prompts"),
            self.reward_shift.then_some("running mean of rewards"),
            self.own_samples.then_some("the policy's own samples"),
        ];
        named.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
