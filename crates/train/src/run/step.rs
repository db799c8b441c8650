//! One optimizer step: forward and backward passes over the effective batch, guards, one update.

use std::collections::BTreeSet;

use diptych_tensor::optim::{Optimizer, clip_by_global_norm};
use diptych_tensor::{DType, Gradients, Tensor, backward};

use super::config::LoopConfig;
use super::window::{Mean, Window};
use crate::method::{Method, MicroBatch, StepOutput};
use crate::{Error, Result};

/// Keys of a logged row that are the loop's own.
const RESERVED: [&str; 5] = ["step", "epoch", "loss", "grad_norm", "learning_rate"];

/// The numbers of one optimizer step.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepNumbers {
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    /// Whether there was anything to learn from; otherwise no parameter has changed.
    pub(super) is_update: bool,
}

impl StepNumbers {
    /// Of a step whose records teach nothing.
    const NOTHING: Self = Self {
        loss: 0.0,
        grad_norm: 0.0,
        is_update: false,
    };
}

/// Takes one optimizer step. On any error no parameter has changed.
pub(super) fn optimizer_step<M: Method>(
    method: &M,
    config: &LoopConfig,
    batches: &[MicroBatch],
    optimizer: &mut Optimizer,
    learning_rate: f64,
    window: &mut Window,
    check_completeness: Completeness,
) -> Result<StepNumbers> {
    let params = method.params();
    let mut total: Option<Gradients> = None;
    let mut loss = Mean::default();
    for batch in batches {
        let gradients = forward_backward(method, batch, |losses, output| {
            loss.add(losses);
            window.add(losses, output);
        })?;
        match (&mut total, gradients) {
            (_, None) => {}
            (None, Some(gradients)) => total = Some(gradients),
            (Some(total), Some(gradients)) => total.add_assign(&gradients)?,
        }
    }
    let Some(mut gradients) = total else {
        return Ok(StepNumbers::NOTHING);
    };
    if check_completeness == Completeness::Check {
        gradients.ensure_complete(params)?;
    }
    let grad_norm = clip_by_global_norm(&mut gradients, config.optimizer.max_grad_norm())?;
    if !grad_norm.is_finite() {
        return Err(blame_gradient(method, batches));
    }
    optimizer.step(params, &gradients, learning_rate)?;
    Ok(StepNumbers {
        loss: loss.value(),
        grad_norm,
        is_update: true,
    })
}

/// Whether to look for parameters that got no gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completeness {
    /// Until the first update of a process.
    Check,
    /// Afterwards.
    Assume,
}

/// Gradients of one micro batch's share of the mean loss of the effective batch; none where it teaches nothing.
fn forward_backward<M: Method>(
    method: &M,
    batch: &MicroBatch,
    mut read: impl FnMut(&[f64], &StepOutput),
) -> Result<Option<Gradients>> {
    let output = method
        .step(batch)
        .map_err(Error::method(format!("step {}", batch.step)))?;
    let losses = checked_losses(method, batch, &output)?;
    if output.is_empty {
        read(&[], &output);
        return Ok(None);
    }
    read(&losses, &output);
    // The one reduction: the mean over the effective batch, whatever micro batches it is cut into.
    let share = 1.0 / batch.step_items.len() as f64;
    let loss =
        (output.losses.sum_all().map_err(diptych_tensor::Error::from)? * share).map_err(diptych_tensor::Error::from)?;
    drop(output);
    Ok(Some(backward(&loss, method.params())?))
}

/// The losses on the host; shapes, names and finiteness are checked.
fn checked_losses<M: Method>(method: &M, batch: &MicroBatch, output: &StepOutput) -> Result<Vec<f64>> {
    check_shapes(batch, output)?;
    let len = batch.items.len();
    let losses = host_values(&output.losses)?;
    let mut names = Vec::new();
    let mut culprits: Vec<usize> = Vec::new();
    let mut note = |name: &str, values: &[f64]| {
        let bad: Vec<usize> = (0..values.len()).filter(|&at| !values[at].is_finite()).collect();
        if !bad.is_empty() {
            names.push(name.to_owned());
            culprits.extend(if values.len() == len { bad } else { (0..len).collect() });
        }
    };
    note("loss", &losses);
    for (name, values) in &output.metrics {
        note(name, values);
    }
    let sums = output.weighted.iter().map(|(name, values)| (name, values.sum));
    for (name, value) in sums.chain(output.totals.iter().map(|(name, value)| (name, *value))) {
        note(name, &[value]);
    }
    if names.is_empty() {
        return Ok(losses);
    }
    culprits.sort_unstable();
    culprits.dedup();
    let record_ids = culprits
        .iter()
        .map(|&at| method.record_id(batch.items[at].index))
        .collect();
    Err(Error::NonFinite {
        step: batch.step,
        names,
        record_ids,
        hint: String::new(),
    })
}

/// What a method returned must be one loss an example, and metrics under names of their own.
fn check_shapes(batch: &MicroBatch, output: &StepOutput) -> Result<()> {
    let wrong = |what: String, found: String, expected: String| {
        Err(Error::StepOutput {
            step: batch.step,
            what,
            found,
            expected,
        })
    };
    let len = batch.items.len();
    if output.losses.dims() != [len] {
        let found = format!("shape {:?}", output.losses.dims());
        return wrong("losses".into(), found, format!("shape [{len}]"));
    }
    if let Some((name, values)) = output.metrics.iter().find(|(_, values)| values.len() > len) {
        let found = format!("{} values", values.len());
        return wrong(format!("`{name}`"), found, format!("at most {len}"));
    }
    let mut taken: BTreeSet<&str> = RESERVED.into();
    let names = output
        .metrics
        .keys()
        .chain(output.weighted.keys())
        .chain(output.totals.keys());
    for name in names {
        if !taken.insert(name) {
            let found = "a name of the loop's own, or of another metric";
            return wrong(format!("the metric `{name}`"), found.into(), "another name".into());
        }
    }
    Ok(())
}

fn host_values(losses: &Tensor) -> Result<Vec<f64>> {
    let read = || -> diptych_tensor::Result<Vec<f64>> {
        let losses = losses.detach();
        if losses.dtype() == DType::F64 {
            return Ok(losses.to_vec1()?);
        }
        let values: Vec<f32> = losses.to_dtype(DType::F32)?.to_vec1()?;
        Ok(values.into_iter().map(f64::from).collect())
    };
    Ok(read()?)
}

/// Finds the micro batch whose gradient is not finite by going through them once more: a step is a function of
/// parameters and batch, and the parameters have not changed.
fn blame_gradient<M: Method>(method: &M, batches: &[MicroBatch]) -> Error {
    let step = batches.first().map_or(0, |batch| batch.step);
    let ids = |batch: &MicroBatch| {
        batch
            .items
            .iter()
            .map(|item| method.record_id(item.index))
            .collect::<Vec<_>>()
    };
    let named = |gradients: &Gradients| -> Result<Vec<String>> {
        Ok(gradients
            .non_finite()?
            .into_iter()
            .map(|name| format!("gradient of {name}"))
            .collect())
    };
    for batch in batches {
        let names = forward_backward(method, batch, |_, _| {})
            .and_then(|gradients| gradients.as_ref().map_or(Ok(Vec::new()), named));
        match names {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                return Error::NonFinite {
                    step,
                    names,
                    record_ids: ids(batch),
                    hint: String::new(),
                };
            }
            Err(error) => return error,
        }
    }
    // Each is finite and their sum or norm is not: an overflow of the step as a whole.
    let names = vec!["the norm of all gradients".into()];
    Error::NonFinite {
        step,
        names,
        record_ids: batches.iter().flat_map(ids).collect(),
        hint: String::new(),
    }
}
