//! A thread for training.

use crate::{Error, Result};

/// candle walks and drops a graph by recursion; a deep network overflows the eight megabytes of a main thread.
/// The memory is reserved, not used, until the stack grows into it.
const STACK_BYTES: usize = 512 << 20;

/// Runs `work` on a thread with a stack deep enough for the graph of a large network, and waits for it.
///
/// # Errors
/// [`Error::Thread`] when the thread cannot be started. A panic inside `work` continues in the caller.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("training".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Thread {
                stack_bytes: STACK_BYTES,
                source,
            })?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    /// 60 000 chained operations overflow a default thread's stack.
    #[test]
    fn a_deep_graph_is_walked_and_dropped() {
        let slope = on_large_stack(|| {
            let x = Var::from_tensor(&Tensor::new(1f32, &Device::Cpu).unwrap()).unwrap();
            let mut y = x.as_tensor().clone();
            for _ in 0..60_000 {
                y = (y + 1.0).unwrap();
            }
            let grads = y.backward().unwrap();
            grads.get(&x).unwrap().to_scalar::<f32>().unwrap()
        })
        .unwrap();
        assert_eq!(slope, 1.0);
    }
}
