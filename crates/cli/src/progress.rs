//! What a run shows while it works: a bar with rate and time left on a terminal, plain lines when piped.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use diptych_train::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Shows long work on standard error.
pub(crate) struct Progress {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
            last_line: None,
        }
    }

    /// `done` of `total` parts of `what` are complete; `detail` is shown behind them.
    pub(crate) fn advance(&mut self, what: &str, done: u64, total: u64, detail: &str) {
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(|| bar(total));
            if bar.message() != what || bar.length() != Some(total) {
                bar.reset();
                bar.set_length(total);
                bar.set_message(what.to_owned());
            }
            bar.set_prefix(detail.to_owned());
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
                self.bar = None;
            }
        } else if done == total || self.last_line.is_none_or(|last| last.elapsed() >= QUIET) {
            self.last_line = Some(Instant::now());
            self.line(&format!("{what} {done}/{total} {detail}"));
        }
    }

    /// What a run does.
    pub(crate) fn show(&mut self, progress: &diptych_train::Progress<'_>) {
        match progress {
            diptych_train::Progress::Training(event) => self.event(event),
            diptych_train::Progress::Stage { stage, done, total } => self.advance(stage, *done, *total, ""),
            diptych_train::Progress::Note(line) => self.line(line),
            _ => {}
        }
    }

    /// One line that stays.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Nothing can be done when standard error is closed.
            None => drop(writeln!(std::io::stderr(), "{}", text.trim_end())),
        }
    }
}

fn bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} {per_sec} {eta} left  {prefix}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Observer for Progress {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started {
                done,
                num_steps,
                num_records,
                num_elements,
                checkpoint,
                ..
            } => {
                self.line(&format!(
                    "{num_records} records, {num_elements} trainable values, {num_steps} steps"
                ));
                if let Some(path) = checkpoint {
                    self.line(&format!("continuing after step {done} from {}", path.display()));
                }
            }
            Event::Step {
                step,
                num_steps,
                loss,
                grad_norm,
                ..
            } => {
                self.advance(
                    "training",
                    *step,
                    *num_steps,
                    &format!("loss {loss:.4} grad_norm {grad_norm:.3}"),
                );
            }
            Event::Sampled { path, .. } => self.line(&format!("samples: {}", path.display())),
            Event::Finished(summary) if summary.stopped => {
                self.line(&format!("stopped after step {}; continue with --resume", summary.step));
            }
            _ => {}
        }
    }
}
