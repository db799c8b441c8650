//! `diptych doctor`: what this program can use here.

use std::fmt::Write as _;

use diptych_tensor::DeviceChoice;

use crate::output::print;

pub(crate) fn run() -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut text = format!("diptych {}\n\ndevices\n", env!("CARGO_PKG_VERSION"));
    writeln!(text, "  cpu      yes, {threads} threads")?;
    for (name, choice, feature) in [
        ("cuda", DeviceChoice::Cuda(0), cfg!(feature = "cuda")),
        ("metal", DeviceChoice::Metal, cfg!(feature = "metal")),
    ] {
        match choice.resolve() {
            Ok(_) => writeln!(text, "  {name:8} yes")?,
            Err(error) if feature => writeln!(text, "  {name:8} built in, but {error}")?,
            Err(_) => writeln!(text, "  {name:8} not built in: cargo build --release --features {name}")?,
        }
    }
    writeln!(text, "  auto     {}", describe(DeviceChoice::Auto))?;
    writeln!(text, "\nembedded default (looked for in the working directory)")?;
    for path in [
        "models/shapes-diffusion/model_index.json",
        "datasets/shapes-pairs",
        "examples/recipes",
    ] {
        let state = if std::path::Path::new(path).exists() {
            "found"
        } else {
            "missing: run inside the repository"
        };
        writeln!(text, "  {path:44} {state}")?;
    }
    print(text.trim_end())
}

fn describe(choice: DeviceChoice) -> String {
    match choice.resolve() {
        Ok(device) if device.is_cuda() => "cuda".into(),
        Ok(device) if device.is_metal() => "metal".into(),
        Ok(_) => "cpu".into(),
        Err(error) => error.to_string(),
    }
}
