//! How true generated captions of the embedded world are, before and after alignment.
//!
//! Prompts are scenes in words that were in no training data; the answer is a caption, and whether it is true of the scene is
//! known.

use std::fmt;
use std::path::PathBuf;

use diptych_data::{SpecialTokens, Tokenizer};
use diptych_eval::{Estimate, WinRate, held_out_scene_prompts, scene_truth};
use diptych_models::lm::{CausalLm, GenerateConfig, LmDir, Sampling};
use diptych_shapes::SceneConfig;
use diptych_tensor::files::write_file;
use diptych_train::{EvaluationTable, Recipe, Reporter, RunDirectory, Summary, write_evaluation, write_report};
use serde::{Deserialize, Serialize};

use crate::answers::end_tokens;
use crate::method::{LanguageMethod, network_options};
use crate::modality::{Language, TRUTH_PROMPTS, adapter_of};
use crate::policy::{load_frozen, start_adapter};
use crate::samples::{AnswerConfig, TokenizedPrompt, answers};
use crate::{Error, Result};

/// Scenes where no number is asked for.
const NUM_SCENES: usize = 512;

/// `[eval]`: what is measured after training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextEvaluationConfig {
    /// The truth of generated captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truth: Option<TruthConfig>,
}

/// `[eval.truth]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TruthConfig {
    /// File of prompts, `.jsonl` rows with `prompt`. Without it, held-out scenes of the embedded world.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<PathBuf>,
    /// The scenes that held-out prompts list; all of the world if absent. Contradicts `prompts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes: Option<SceneConfig>,
    /// How many prompts: the first of `prompts`, by default all of them; without `prompts` 512 scenes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_prompts: Option<usize>,
    /// Source of the held-out scenes, of the choices of tokens, and of the resampling.
    pub seed: u64,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Answers computed together.
    pub batch_size: usize,
    /// Resamples of the prompts behind the intervals.
    pub bootstrap_samples: usize,
}

impl Default for TruthConfig {
    fn default() -> Self {
        Self {
            prompts: None,
            scenes: None,
            num_prompts: None,
            seed: 0,
            max_new_tokens: 40,
            sampling: Sampling::default(),
            batch_size: 64,
            bootstrap_samples: 10_000,
        }
    }
}

impl TextEvaluationConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(String, String, String)> {
        let config = self.truth.as_ref()?;
        if config.prompts.is_some() && config.scenes.is_some() {
            return Some((
                "truth.scenes".into(),
                "both `prompts` and `scenes`".into(),
                "one of them".into(),
            ));
        }
        let counts = [
            ("num_prompts", config.num_prompts.unwrap_or(NUM_SCENES)),
            ("max_new_tokens", config.max_new_tokens),
            ("batch_size", config.batch_size),
            ("bootstrap_samples", config.bootstrap_samples),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Some((format!("truth.{key}"), "0".into(), "a number, at least 1".into()));
        }
        if let Some(Err(error)) = config.scenes.as_ref().map(SceneConfig::validate) {
            return Some((
                "truth.scenes".into(),
                error.to_string(),
                "scenes of the embedded world".into(),
            ));
        }
        match config.sampling.validate() {
            Err(diptych_models::Error::GenerationSetting { key, found, expected }) => {
                Some((format!("truth.sampling.{key}"), found, expected.into()))
            }
            Err(_) | Ok(()) => None,
        }
    }
}

/// How true the answers of base and aligned model are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Truth {
    /// Share of answers that are entirely true.
    pub truthful: WinRate,
    /// Mean share of true claims.
    pub score: WinRate,
    /// Claims an answer: a model can become truthful by saying less, and this shows it.
    pub num_claims: WinRate,
}

impl fmt::Display for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |name: &str, of: &WinRate| {
            let difference: &Estimate = &of.difference;
            format!(
                "{name:22} {:.3}   {:.3}   {:+.3}  [{:+.3}, {:+.3}]",
                of.base.mean, of.aligned.mean, difference.mean, difference.low, difference.high
            )
        };
        writeln!(
            f,
            "{} prompts              base    aligned difference, 95 % interval",
            self.score.n
        )?;
        writeln!(f, "{}", row("entirely true", &self.truthful))?;
        writeln!(f, "{}", row("claims that are true", &self.score))?;
        write!(f, "{}", row("claims an answer", &self.num_claims))
    }
}

/// Prompts, answers and what they got.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Judged<'a> {
    prompt: &'a str,
    base: &'a str,
    base_score: f64,
    aligned: &'a str,
    aligned_score: f64,
}

/// Samples the model of a run and its base on the recipe's prompts and compares how true their answers are.
///
/// # Errors
/// Prompts that cannot be read or are no scenes; networks that cannot be loaded; [`Error::Stopped`].
pub fn evaluate(
    recipe: &Recipe<Language>,
    method: &LanguageMethod,
    output: &RunDirectory,
    summary: &mut Summary,
    reporter: &mut Reporter<'_>,
) -> Result<Option<Truth>> {
    let Some(config) = recipe
        .evaluation
        .as_ref()
        .and_then(|evaluation| evaluation.truth.as_ref())
    else {
        return Ok(None);
    };
    let directory = LmDir::open(recipe.model_path()?)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let prompts = prompts(recipe, config)?;
    let adapter = adapter_of(recipe)?;
    let base = load_frozen(&directory, start_adapter(&adapter)?.as_ref(), &network_options(recipe)?)?;
    let (truth, rows) = compare(
        &base,
        method.policy().model.language_model(),
        &tokenizer,
        &prompts,
        config,
        reporter,
    )?;
    write_file(&output.path().join("answers.jsonl"), rows.as_bytes())?;
    write_evaluation(output.path(), &table(&truth, config))?;
    if let Some(row) = &mut summary.metrics {
        row.metrics.extend(metrics(&truth));
    }
    let path = output.summary();
    let text = serde_json::to_string_pretty(summary).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    write_file(&path, format!("{text}\n").as_bytes())?;
    write_report(output.path())?;
    Ok(Some(truth))
}

/// Refuses prompts that an evaluation could not judge after training.
///
/// # Errors
/// A file that cannot be read; a prompt that is no scene.
pub fn check_evaluation(recipe: &Recipe<Language>) -> Result<()> {
    let truth = recipe
        .evaluation
        .as_ref()
        .and_then(|evaluation| evaluation.truth.as_ref());
    truth.map_or(Ok(()), |config| prompts(recipe, config).map(drop))
}

/// The recipe's prompts, each a scene in words.
///
/// # Errors
/// A file that cannot be read; a prompt that is no scene.
pub(crate) fn prompts(recipe: &Recipe<Language>, config: &TruthConfig) -> Result<Vec<String>> {
    let Some(path) = &config.prompts else {
        let scenes = config.scenes.clone().unwrap_or_default();
        let num = config.num_prompts.unwrap_or(NUM_SCENES);
        return Ok(held_out_scene_prompts(config.seed, num, &scenes)?);
    };
    let path = recipe.resolve_path(TRUTH_PROMPTS, path)?;
    let prompts = diptych_eval::read_first_prompts(&path, config.num_prompts)?;
    for (number, prompt) in (1..).zip(&prompts) {
        // What no answer could be judged against is refused before training.
        scene_truth(prompt, "").map_err(|source| Error::NoScene {
            path: path.clone(),
            number,
            source: Box::new(source),
        })?;
    }
    Ok(prompts)
}

/// Answers of both models to the same prompts with the same choices, and the rows of a file that shows them.
fn compare(
    base: &CausalLm,
    aligned: &CausalLm,
    tokenizer: &Tokenizer,
    prompts: &[String],
    config: &TruthConfig,
    reporter: &mut Reporter<'_>,
) -> Result<(Truth, String)> {
    let tokenized = prompts
        .iter()
        .map(|text| {
            Ok(TokenizedPrompt {
                ids: tokenizer.encode(text, SpecialTokens::Include)?.ids,
                text: text.clone(),
                images: Vec::new(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let settings = AnswerConfig {
        generate: GenerateConfig {
            max_new_tokens: config.max_new_tokens,
            sampling: config.sampling,
            eos_token_ids: end_tokens(aligned, tokenizer),
            seed: config.seed,
        },
        batch_size: config.batch_size,
    };
    let total = prompts.len() as u64;
    let mut sample = |model: &CausalLm, stage: &'static str| {
        answers(model, tokenizer, &tokenized, &settings, |done| {
            Ok(reporter.advance(stage, done as u64, total)?)
        })
    };
    let base = sample(base, "answers of the base model")?;
    let aligned = sample(aligned, "answers of the aligned model")?;
    let (base_columns, aligned_columns) = (judge(prompts, &base)?, judge(prompts, &aligned)?);
    let mut rows = String::new();
    for at in 0..prompts.len() {
        let row = Judged {
            prompt: &prompts[at],
            base: &base[at],
            base_score: base_columns[1][at],
            aligned: &aligned[at],
            aligned_score: aligned_columns[1][at],
        };
        let line = serde_json::to_string(&row).map_err(|source| Error::Json {
            path: "answers.jsonl".into(),
            source,
        })?;
        rows.push_str(&line);
        rows.push('\n');
    }
    let contest = |column: usize| -> Result<WinRate> {
        let (base, aligned) = (&base_columns[column], &aligned_columns[column]);
        let compared = WinRate::compare(base, aligned, config.seed, config.bootstrap_samples);
        compared.map_err(Error::from)
    };
    let truth = Truth {
        truthful: contest(0)?,
        score: contest(1)?,
        num_claims: contest(2)?,
    };
    Ok((truth, rows))
}

/// Of each answer: whether it is entirely true, the share of its claims that hold, and how many there are.
fn judge(prompts: &[String], answers: &[String]) -> Result<[Vec<f64>; 3]> {
    let mut columns = [const { Vec::new() }; 3];
    for (prompt, answer) in prompts.iter().zip(answers) {
        let truth = scene_truth(prompt, answer)?;
        let values = [f64::from(u8::from(truth.is_true)), truth.score, truth.num_claims as f64];
        for (column, value) in columns.iter_mut().zip(values) {
            column.push(value);
        }
    }
    Ok(columns)
}

fn table(truth: &Truth, config: &TruthConfig) -> EvaluationTable {
    let row = |name: &str, of: &WinRate| {
        vec![
            name.to_owned(),
            format!("{:.4}", of.base.mean),
            format!("{:.4}", of.aligned.mean),
            format!("{:+.4}", of.difference.mean),
            format!("{:+.4} to {:+.4}", of.difference.low, of.difference.high),
        ]
    };
    EvaluationTable {
        title: format!("truth of captions of {} scenes", truth.score.n),
        columns: ["", "base", "aligned", "difference", "95 % interval"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row("entirely true", &truth.truthful),
            row("claims that are true", &truth.score),
            row("claims an answer", &truth.num_claims),
        ],
        note: format!(
            "The same scenes and the same choices of tokens (seed {}) for both; paired bootstrap.",
            config.seed
        ),
    }
}

fn metrics(truth: &Truth) -> impl Iterator<Item = (String, f64)> {
    [
        ("eval_truthful/base", truth.truthful.base.mean),
        ("eval_truthful/aligned", truth.truthful.aligned.mean),
        ("eval_truthful/difference", truth.truthful.difference.mean),
        ("eval_truthful/difference_low", truth.truthful.difference.low),
        ("eval_truthful/difference_high", truth.truthful.difference.high),
        ("eval_score/base", truth.score.base.mean),
        ("eval_score/aligned", truth.score.aligned.mean),
        ("eval_score/difference", truth.score.difference.mean),
        ("eval_num_claims/base", truth.num_claims.base.mean),
        ("eval_num_claims/aligned", truth.num_claims.aligned.mean),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
}
