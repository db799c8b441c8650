//! A thread for training.

use std::cell::Cell;

use crate::{Error, Result};

/// candle walks and drops a graph by recursion; a deep network overflows the eight megabytes of a main thread.
/// The memory is reserved, not used, until the stack grows into it.
const STACK_BYTES: usize = 512 << 20;

thread_local! {
    /// Whether this thread's stack is one of them already.
    static IS_LARGE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread with a stack deep enough for the graph of a large network, and waits for it.
///
/// The thread is one of a pool of its own, with as many threads as the caller's pool has: operations start their parallel part on
/// the thread that trains instead of waking others and waiting for them, which costs small tensors as much as the work itself.
/// On such a thread the work is done where it is.
///
/// # Errors
/// [`Error::Thread`] when the threads cannot be started. A panic inside `work` continues in the caller.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    if IS_LARGE.get() {
        return Ok(work());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(rayon::current_num_threads())
        .thread_name(|index| format!("training-{index}"))
        // Any of them may be the one.
        .stack_size(STACK_BYTES)
        .start_handler(|_| IS_LARGE.set(true))
        .build()
        .map_err(|source| Error::Thread {
            stack_bytes: STACK_BYTES,
            source: std::io::Error::other(source),
        })?;
    Ok(pool.install(work))
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
