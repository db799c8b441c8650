//! Ctrl-C: the first asks the work to stop at a safe point, the second ends the process.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

/// The exit code of a process that was interrupted, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// A flag that is set by Ctrl-C or a request to terminate.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        let _ = writeln!(
            std::io::stderr(),
            "\nstopping after this step; press Ctrl-C again to end at once"
        );
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
