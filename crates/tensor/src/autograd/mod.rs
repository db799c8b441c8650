//! Backward passes for training: gradients of trainable parameters only, detached, complete.
//!
//! candle's gradient store also holds gradients of frozen tensors, and each gradient keeps the graph alive. Everything
//! leaves that store here, through [`backward`], as detached tensors in the order of the parameters.

mod checkpoint;
mod gradients;
mod policy;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Result as CandleResult, Tensor, TensorId};

pub use checkpoint::checkpoint;
pub use gradients::Gradients;
pub use policy::{BlockCounter, CheckpointPolicy};

use crate::{Params, Result};

/// The parameters of the backward pass that is running on this thread and the gradients that do not go through candle's store: those
/// that our operations and recomputed segments found.
struct Pass {
    params: Params,
    names: HashMap<TensorId, String>,
    found: BTreeMap<String, Tensor>,
}

impl Pass {
    fn new(params: &Params) -> Self {
        let names = params.iter().map(|(name, var)| (var.as_tensor().id(), name.to_owned()));
        Self {
            params: params.clone(),
            names: names.collect(),
            found: BTreeMap::new(),
        }
    }

    fn add(&mut self, name: String, gradient: Tensor) -> CandleResult<()> {
        let sum = match self.found.remove(&name) {
            Some(present) => (present + gradient)?.detach(),
            None => gradient,
        };
        self.found.insert(name, sum);
        Ok(())
    }
}

thread_local! {
    static PASS: RefCell<Option<Pass>> = const { RefCell::new(None) };
}

/// Gradients of `loss` (one element) with respect to every parameter that it depends on.
///
/// Parameters that the loss does not reach have no entry: see [`Gradients::ensure_complete`].
///
/// # Errors
/// When an operation of the graph has no backward, or a kernel fails.
///
/// ```
/// use diptych_tensor::{Device, Params, Tensor, backward};
/// let mut params = Params::new();
/// let w = params.insert("w", &Tensor::new(&[2f32, 3.], &Device::Cpu)?)?;
/// let gradients = backward(&w.sqr()?.sum_all()?, &params)?;
/// assert_eq!(gradients.get("w").map(|g| g.to_vec1::<f32>()).transpose()?, Some(vec![4., 6.]));
/// # Ok::<(), diptych_tensor::Error>(())
/// ```
pub fn backward(loss: &Tensor, params: &Params) -> Result<Gradients> {
    let outer = PASS.replace(Some(Pass::new(params)));
    let store = loss.backward();
    let found = PASS.replace(outer).map(|pass| pass.found).unwrap_or_default();
    let mut gradients = Gradients::new(found);
    let mut store = store?;
    for (name, gradient) in take_parameters(&mut store, params) {
        gradients.add(name, &gradient)?;
    }
    Ok(gradients)
}

/// Keeps the gradient that an operation computed, if it is that of a parameter of the running pass; any other is handed back, for
/// candle's store.
///
/// The store adds each gradient to a tensor of zeros, which passes three times more through memory than the gradient itself.
pub(crate) fn deliver(of: &Tensor, gradient: Tensor) -> CandleResult<Option<Tensor>> {
    PASS.with_borrow_mut(|pass| {
        let Some((pass, name)) = pass.as_mut().and_then(|pass| {
            let name = pass.names.get(&of.id())?.clone();
            Some((pass, name))
        }) else {
            return Ok(Some(gradient));
        };
        pass.add(name, gradient)?;
        Ok(None)
    })
}

/// Moves the gradients of `params` out of `store`, detached.
fn take_parameters(store: &mut GradStore, params: &Params) -> Vec<(String, Tensor)> {
    params
        .iter()
        .filter_map(|(name, var)| {
            store
                .remove(var.as_tensor())
                .map(|gradient| (name.to_owned(), gradient.detach()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::Error;

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn only_trainable_parameters_have_gradients_and_they_hold_no_graph() {
        let mut params = Params::new();
        let w = params.insert("w", &tensor(&[1., 2.])).unwrap();
        let frozen = tensor(&[3., 4.]);
        let gradients = backward(&(w * &frozen).unwrap().sum_all().unwrap(), &params).unwrap();
        assert_eq!(gradients.iter().count(), 1);
        let gradient = gradients.get("w").unwrap();
        assert_eq!(gradient.to_vec1::<f64>().unwrap(), [3., 4.]);
        assert!(!gradient.track_op());
    }

    /// Through our operations, through candle's and through both, each as often as it is used.
    #[test]
    fn every_use_of_a_parameter_adds_to_its_gradient() {
        let mut params = Params::new();
        let w = params.insert("w", &tensor(&[2., 3.])).unwrap();
        let x = tensor(&[5., 7.]);
        let ours = |w: &Tensor| crate::ops::linear(&x.unsqueeze(0).unwrap(), &w.unsqueeze(0).unwrap(), None).unwrap();
        let both = crate::ops::swiglu(&w, &x).unwrap();
        let slope = |g: f64| {
            let s = 1.0 / (1.0 + (-g).exp());
            s * (1.0 + g * (1.0 - s))
        };
        let loss = (both.sum_all().unwrap() + crate::ops::swiglu(&w, &w).unwrap().sum_all().unwrap()).unwrap();
        let loss = ((loss + ours(&w).sum_all().unwrap()).unwrap() + w.sqr().unwrap().sum_all().unwrap()).unwrap();
        let gradients = backward(&loss, &params).unwrap();
        let found = gradients.get("w").unwrap();
        assert!(!found.track_op());
        let found = found.to_vec1::<f64>().unwrap();
        for ((found, w), x) in found.into_iter().zip([2f64, 3.]).zip([5., 7.]) {
            let silu = w / (1.0 + (-w).exp());
            let expected = slope(w) * x + slope(w) * w + silu + x + 2.0 * w;
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        // Without a pass of ours, candle's store has it.
        let store = crate::ops::swiglu(&w, &x)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        assert!(store.get(&w).is_some());
    }

    #[test]
    fn a_silent_parameter_is_named() {
        let mut params = Params::new();
        let w = params.insert("used", &tensor(&[1.])).unwrap();
        params.insert("layer.unused", &tensor(&[1.])).unwrap();
        let gradients = backward(&w.sum_all().unwrap(), &params).unwrap();
        let error = gradients.ensure_complete(&params).unwrap_err();
        assert!(
            matches!(&error, Error::SilentParameters { count: 1, total: 2, names } if names == "layer.unused"),
            "{error}"
        );
    }
}
