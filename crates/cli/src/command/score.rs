//! `diptych score`: log-probabilities and implicit rewards of given answers; images by a judge.

use std::fmt::Write as _;

use diptych_data::{Encoder, TextDataset, Tokenizer};
use diptych_llm::implicit_rewards::{
    RankingAccuracy, RewardConfig, ScoredRecord, ranking_accuracy, score_records, write_scores,
};
use diptych_llm::method::pad_token_id;
use diptych_llm::policy::{NetworkOptions, load_adapter, load_checkpoint, load_frozen};
use diptych_llm::records::encode;
use diptych_llm::reference::Reference;
use diptych_models::lm::{CausalLm, LmDir};
use diptych_train::Reporter;

use crate::arguments::ScoreArguments;
use crate::command::model_kind::ModelKind;
use crate::command::{encoding, score_images};
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{create_parent, ensure_free, print};
use crate::progress::Progress;

/// Factor of the log-ratio where none is given: TRL's default.
const BETA: f64 = 0.1;

pub(crate) fn run(arguments: &ScoreArguments) -> anyhow::Result<()> {
    if let Some(judge) = &arguments.judge {
        return score_images::run(arguments, judge);
    }
    let Some(model) = &arguments.model else {
        return Err(usage("expected --model, or --judge for images"));
    };
    ensure_free(&arguments.out)?;
    ModelKind::ensure_language(model, "score")?;
    let beta = beta_of(arguments)?;
    let directory = LmDir::open(model)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let encoder = Encoder::try_new(&tokenizer, encoding::config(&arguments.encoding)?)?;
    let dataset = TextDataset::load(&arguments.data, arguments.layout)?;
    let records = encode(&dataset, &encoder)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let (model, reference) = networks(arguments, &directory)?;
    if matches!(reference, Reference::None) {
        progress.line("no reference: log-probabilities only; --reference or --adapter adds implicit rewards");
    }
    let config = RewardConfig {
        beta,
        batch_size: arguments.batch_size,
        pad_token_id: pad_token_id(&directory, &tokenizer),
    };
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let total = records.len() as u64;
    let scored = score_records(&model, &reference, &records, config, |done| {
        Ok(reporter.advance("scores", done as u64, total)?)
    })?;
    drop(reporter);
    create_parent(&arguments.out)?;
    write_scores(&arguments.out, &scored)?;
    print(format!(
        "{}wrote {} records to {}",
        summary(&scored)?,
        scored.len(),
        arguments.out.display()
    ))
}

fn beta_of(arguments: &ScoreArguments) -> anyhow::Result<f64> {
    let has_reference = arguments.reference.is_some() || arguments.adapter.is_some();
    if arguments.batch_size == 0 {
        return Err(usage("--batch-size is 0, expected at least 1"));
    }
    match arguments.beta {
        Some(_) if !has_reference => Err(usage("--beta is unused without --reference or --adapter")),
        Some(beta) if !(beta.is_finite() && beta > 0.0) => {
            Err(usage(format!("--beta is {beta}, expected a finite number above 0")))
        }
        given => Ok(given.unwrap_or(BETA)),
    }
}

/// The network that is scored with, and what it is compared with.
fn networks(arguments: &ScoreArguments, directory: &LmDir) -> anyhow::Result<(CausalLm, Reference)> {
    let options = NetworkOptions {
        device: arguments.device.resolve()?,
        dtype: arguments.precision.into(),
        seed: 0,
        quantization: None,
    };
    let adapter = arguments.adapter.as_deref().map(load_adapter).transpose()?;
    let model = load_frozen(directory, adapter.as_ref(), &options)?;
    let Some(path) = &arguments.reference else {
        let reference = adapter.map_or(Reference::None, |_| Reference::AdapterOff);
        return Ok((model, reference));
    };
    let reference = load_checkpoint(path, directory, &options)?;
    let (expected, found) = (model.config().vocab_size, reference.config().vocab_size);
    if found != expected {
        return Err(usage(format!(
            "--reference has a vocabulary of {found}, --model one of {expected}: the same tokens cannot be scored"
        )));
    }
    Ok((model, Reference::Frozen(Box::new(reference.into()))))
}

/// What the scores say about the data, a line each.
fn summary(records: &[ScoredRecord]) -> anyhow::Result<String> {
    let mut text = String::new();
    let num_responses: usize = records.iter().map(|record| record.logps.len()).sum();
    let num_tokens: usize = records.iter().flat_map(|record| &record.num_tokens).sum();
    writeln!(
        text,
        "{num_responses} answers, {:.1} tokens each",
        num_tokens as f64 / num_responses as f64
    )?;
    if let Some(accuracy) = ranking_accuracy(records) {
        let RankingAccuracy { num_pairs, .. } = accuracy;
        writeln!(text, "\nthe better of two answers scored higher, {num_pairs} pairs")?;
        let rows = [
            ("log-probability", Some(accuracy.model)),
            ("log-probability a token", Some(accuracy.model_per_token)),
            ("reference's log-probability", accuracy.reference),
            ("implicit reward", accuracy.rewards),
        ];
        for (name, value) in rows {
            if let Some(value) = value {
                writeln!(text, "  {name:28} {value:.3}")?;
            }
        }
    }
    text.push('\n');
    Ok(text)
}
