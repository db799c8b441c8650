//! Backward passes for training: gradients of trainable parameters only, detached, complete.
//!
//! candle's gradient store also holds gradients of frozen tensors, and each gradient keeps the graph alive. Everything
//! leaves that store here, through [`backward`], as detached tensors in the order of the parameters.

mod checkpoint;
mod gradients;
mod policy;

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

pub use checkpoint::checkpoint;
pub use gradients::Gradients;
pub use policy::{BlockCounter, CheckpointPolicy};

use crate::{Params, Result};

/// The parameters of the backward pass that is running on this thread and what recomputed segments found for them.
struct Pass {
    params: Params,
    from_segments: BTreeMap<String, Tensor>,
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
    let outer = PASS.replace(Some(Pass {
        params: params.clone(),
        from_segments: BTreeMap::new(),
    }));
    let store = loss.backward();
    let from_segments = PASS.replace(outer).map(|pass| pass.from_segments).unwrap_or_default();
    let mut gradients = Gradients::new(from_segments);
    let mut store = store?;
    for (name, gradient) in take_parameters(&mut store, params) {
        gradients.add(name, &gradient)?;
    }
    Ok(gradients)
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
