//! Operations of training, ours and PyTorch's in turn on the same shapes, f32 on the CPU.
//!
//! ```text
//! cargo bench -p diptych-tensor --bench table -- --python path/to/python [--rounds 9] [--threads 2] [--clock cpu] [NAME]...
//! ```
//!
//! Prints a table: milliseconds of both, PyTorch's time over ours (median over rounds), and the share of the machine's limit that ours
//! reaches. The limit is the larger of two times: multiplications and additions at the speed of the fastest product of matrices
//! (ours or PyTorch's), bytes that must be read and written at the speed of copying, both measured in the same run. With Winograd's
//! algorithm a convolution needs fewer multiplications than are counted, so its share may exceed one. Operations whose name holds
//! one of the NAMEs are measured, by default all. PyTorch waits in a process of its own. Its Python needs torch and diffusers.
//!
//! On a machine that others use, times on the wall say more about them. `--clock cpu`, with one thread, prints the processor's time of
//! each process instead. With several threads that time is the sum over them, waiting included, and is refused.

mod blocks;
mod cases;
mod peer;

use std::time::Instant;

use cpu_time::ProcessTime;

use anyhow::{Context as _, bail};

use self::cases::{Case, cases};
use self::peer::Peer;

/// As in the command.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

/// Seconds that each side of a round takes, at least.
const SECONDS: f64 = 0.12;

/// Measured limits of the machine.
struct Limits {
    /// Multiplications and additions a second, as two operations.
    flops: f64,
    /// Bytes a second, read and written.
    bytes: f64,
}

impl Limits {
    /// Milliseconds that the operation takes at least.
    fn ms(&self, case: &Case) -> f64 {
        (case.flops / self.flops).max(case.bytes / self.bytes) * 1e3
    }
}

/// What times are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Wall,
    Cpu,
}

impl Clock {
    fn named(name: &str) -> anyhow::Result<Self> {
        match name {
            "wall" => Ok(Self::Wall),
            "cpu" => Ok(Self::Cpu),
            other => bail!("--clock is {other}, expected wall or cpu"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "cpu",
        }
    }

    /// Since some moment of the past.
    fn seconds(self) -> f64 {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        match self {
            Self::Wall => START.get_or_init(Instant::now).elapsed().as_secs_f64(),
            Self::Cpu => ProcessTime::now().as_duration().as_secs_f64(),
        }
    }
}

/// Medians over rounds.
struct Row {
    ours: f64,
    peer: Option<f64>,
    /// PyTorch's time over ours.
    ratio: Option<f64>,
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn main() -> anyhow::Result<()> {
    // As the command does: candle's own thread pool spins between operations, and takes the cores from ours.
    #[expect(unsafe_code, reason = "candle takes this setting from the environment only")]
    // SAFETY: no other thread exists yet that could read the environment.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let (mut rounds, mut threads, mut python, mut clock, mut names) = (9, 2, None, Clock::Wall, Vec::new());
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => rounds = value()?.parse::<usize>()?.max(1),
            "--threads" => threads = value()?.parse()?,
            "--python" => python = Some(value()?),
            "--clock" => clock = Clock::named(&value()?)?,
            option if option.starts_with("--") => bail!("{option} is not --rounds, --threads, --clock or --python"),
            _ => names.push(argument),
        }
    }
    if clock == Clock::Cpu && threads != 1 {
        bail!("--clock cpu adds up the times of {threads} threads: it needs --threads 1");
    }
    let cases = cases();
    if let Some(name) = names
        .iter()
        .find(|name| !cases.iter().any(|case| case.name.contains(name.as_str())))
    {
        bail!("no operation has {name:?} in its name");
    }
    let pool = rayon_pool(threads)?;
    let mut peer = python.map(|python| Peer::start(&python, threads, clock)).transpose()?;
    let limits = pool.install(|| limits(peer.as_mut(), clock))?;
    println!(
        "{threads} threads, f32, {} clock, medians of {rounds} rounds in turn; products of matrices {:.0} GFLOP/s, copying {:.1} GB/s\n",
        clock.name(),
        limits.flops / 1e9,
        limits.bytes / 1e9
    );
    println!(
        "| operation | diptych, ms | PyTorch, ms | PyTorch / diptych | share of the limit |\n|---|---|---|---|---|"
    );
    for case in cases {
        if !names.is_empty() && !names.iter().any(|name| case.name.contains(name.as_str())) {
            continue;
        }
        let row = pool.install(|| measure(&case, peer.as_mut(), rounds, clock))?;
        let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.2}"));
        println!(
            "| {} | {:.2} | {} | {} | {:.2} |",
            case.name,
            row.ours,
            cell(row.peer),
            cell(row.ratio),
            limits.ms(&case) / row.ours
        );
    }
    Ok(())
}

fn rayon_pool(threads: usize) -> anyhow::Result<rayon::ThreadPool> {
    // Backward passes of deep graphs recurse.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(64 << 20);
    Ok(pool.build()?)
}

fn measure(case: &Case, mut peer: Option<&mut Peer>, rounds: usize, clock: Clock) -> anyhow::Result<Row> {
    let mut run = (case.prepare)()?;
    run()?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ms = time(&mut run, SECONDS, clock)?;
        ours.push(ms);
        if let Some(peer) = &mut peer {
            let peer_ms = peer.ask(&case.job, SECONDS)?;
            theirs.push(peer_ms);
            ratios.push(peer_ms / ms);
        }
    }
    let peered = !theirs.is_empty();
    Ok(Row {
        ours: median(&mut ours),
        peer: peered.then(|| median(&mut theirs)),
        ratio: peered.then(|| median(&mut ratios)),
    })
}

/// Median milliseconds of as many runs as fit into so many seconds, at least three.
fn time(run: &mut dyn FnMut() -> anyhow::Result<()>, seconds: f64, clock: Clock) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        let start = clock.seconds();
        run()?;
        times.push((clock.seconds() - start) * 1e3);
    }
    Ok(median(&mut times))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The best of several products of matrices of 1024 by 1024, on both sides, and of several copies of 128 MiB.
fn limits(mut peer: Option<&mut Peer>, clock: Clock) -> anyhow::Result<Limits> {
    let product = cases::matmul(1024);
    let mut run = (product.prepare)()?;
    let mut ms = f64::INFINITY;
    for _ in 0..5 {
        ms = ms.min(time(&mut run, SECONDS, clock)?);
        if let Some(peer) = &mut peer {
            ms = ms.min(peer.ask(&product.job, SECONDS)?);
        }
    }
    let (from, mut to) = (vec![1.0f32; 32 << 20], vec![0.0f32; 32 << 20]);
    let mut seconds = f64::INFINITY;
    for _ in 0..8 {
        let start = clock.seconds();
        cases::copy(&from, &mut to);
        seconds = seconds.min(clock.seconds() - start);
        anyhow::ensure!(to[to.len() - 1] == 1.0, "a copy that did not copy");
    }
    Ok(Limits {
        flops: product.flops / ms * 1e3,
        bytes: 2.0 * size_of_val(from.as_slice()) as f64 / seconds,
    })
}
