//! The process that runs PyTorch's side.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::Clock;
use crate::cases::Job;

/// A Python process that answers jobs, one line each, and ends with the benchmark.
pub(crate) struct Peer {
    process: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(python: &str, threads: usize, clock: Clock) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/peer_ops.py");
        let mut process = Command::new(python)
            .args([script, &threads.to_string(), clock.name()])
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {python}"))?;
        let jobs = process.stdin.take();
        let answers = process.stdout.take().context("no output of the peer")?;
        Ok(Self {
            process,
            jobs,
            answers: BufReader::new(answers),
        })
    }

    /// Median milliseconds of the job over so many seconds.
    pub(crate) fn ask(&mut self, job: &Job, seconds: f64) -> anyhow::Result<f64> {
        let line = json!({ "op": job.op, "shape": job.shape, "backward": job.backward, "seconds": seconds });
        writeln!(self.jobs.as_mut().context("the peer was closed")?, "{line}")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            bail!("the peer ended at {line}");
        }
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("not JSON: {answer}"))?;
        answer["ms"].as_f64().with_context(|| format!("no time: {answer}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.jobs.take());
        // There is nobody to tell how it ended.
        let _ = self.process.wait();
    }
}
