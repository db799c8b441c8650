//! The `diptych` command: arguments, terminal and exit codes. What it does is in the libraries.

mod arguments;
mod command;
mod failure;
mod interrupt;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::arguments::Arguments;

/// Each step of a training run allocates what the last one freed; see the type.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own thread pool spins between operations; ours run on rayon's.
        #[expect(unsafe_code, reason = "candle takes this setting from the environment only")]
        // SAFETY: no other thread exists yet that could read the environment.
        unsafe {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        };
    }
    let filter = EnvFilter::try_from_env("DIPTYCH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // clap itself ends the process with code 2 when the usage is wrong.
    let arguments = Arguments::parse();
    match command::run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
