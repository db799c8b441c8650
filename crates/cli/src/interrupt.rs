//! Ctrl-C: the first asks the work to stop at a safe point, the second ends the process.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;

/// The exit code of a process that was interrupted, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// The flag of this process, which can listen once.
static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A flag that is set by Ctrl-C or a request to terminate; the same one for all that is done by a command.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    if let Some(flag) = FLAG.get() {
        return Ok(Arc::clone(flag));
    }
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
    Ok(Arc::clone(FLAG.get_or_init(|| flag)))
}
