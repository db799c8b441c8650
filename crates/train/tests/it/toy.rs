//! Linear regression with a noisy input, as a [`Method`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use diptych_tensor::optim::{AdamWConfig, LrSchedule, OptimizerConfig};
use diptych_tensor::random::{Stream, generator, normal_vec, uniform_vec};
use diptych_tensor::{DType, Device, OperationError, Params, Tensor, Weights, save_tensors};
use diptych_train::{
    Error, Event, Item, LoopConfig, Method, MicroBatch, Observer, ResumeMode, Silent, StepOutput, Summary, TrainConfig,
    train,
};

pub(crate) const WIDTH: usize = 3;
pub(crate) const NUM_RECORDS: usize = 10;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Poison {
    #[default]
    None,
    /// The loss of this record is NaN from this step on.
    Loss(usize, u64),
    /// A metric of this record is infinite.
    Metric(usize),
    /// The loss of a batch with this record is finite, its gradient is not.
    Gradient(usize),
    /// One loss is missing.
    ShortLosses,
    /// A metric has a name of the loop.
    ReservedMetric,
    /// The bias is not used.
    SilentParameter,
    /// The method fails at this step.
    Failure(u64),
    /// A checkpoint is interrupted by a full disk.
    FullDisk,
    /// The result is interrupted by a full disk.
    FullDiskAtTheEnd,
    /// The sample of a step cannot be made.
    Sample,
    /// Loading a checkpoint forgets the bias.
    Forgets,
}

/// y = w·x + b, learned from x with noise.
#[derive(Debug)]
pub(crate) struct Toy {
    params: Params,
    weight: Tensor,
    bias: Tensor,
    /// A matrix that shrinks, where there is one: large enough for what optimizers do with matrices only.
    table: Option<Tensor>,
    inputs: Vec<Vec<f32>>,
    pub(crate) poison: Poison,
    /// The micro batches that were computed.
    pub(crate) seen: Mutex<Vec<MicroBatch>>,
    /// Where the process waits to be killed while it writes this checkpoint, and the file that says it does.
    pub(crate) hang: Option<(u64, PathBuf)>,
}

#[derive(Debug)]
pub(crate) enum ToyError {
    Tensor(diptych_tensor::Error),
    Failure,
    Io(PathBuf, std::io::Error),
}

impl std::fmt::Display for ToyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tensor(error) => error.fmt(f),
            Self::Failure => f.write_str("the machine is on fire"),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ToyError {}

impl From<diptych_tensor::Error> for ToyError {
    fn from(error: diptych_tensor::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<OperationError> for ToyError {
    fn from(error: OperationError) -> Self {
        Self::Tensor(error.into())
    }
}

impl Toy {
    pub(crate) fn new(dtype: DType) -> Self {
        let mut params = Params::new();
        let weight = Tensor::new(&[0.5_f64, -0.25, 0.125], &Device::Cpu)
            .unwrap()
            .to_dtype(dtype)
            .unwrap();
        let weight = params.insert("layer.weight", &weight).unwrap();
        let bias = Tensor::new(&[0.0_f64], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let bias = params.insert("layer.bias", &bias).unwrap();
        let inputs = (0..NUM_RECORDS as u64)
            .map(|index| uniform_vec(&mut generator(7, Stream::Posterior, 0, index), -1.0, 1.0, WIDTH))
            .collect();
        Self {
            params,
            weight,
            bias,
            table: None,
            inputs,
            poison: Poison::None,
            seen: Mutex::default(),
            hang: None,
        }
    }

    pub(crate) fn f32() -> Self {
        Self::new(DType::F32)
    }

    /// With a matrix of 5120 numbers beside the weights.
    pub(crate) fn large() -> Self {
        let mut toy = Self::f32();
        let numbers: Vec<f32> = (0..64 * 80).map(|i| (i as f32 * 0.37).sin()).collect();
        let table = Tensor::from_vec(numbers, (64, 80), &Device::Cpu).unwrap();
        toy.table = Some(toy.params.insert("layer.table", &table).unwrap());
        toy
    }

    pub(crate) fn with(poison: Poison) -> Self {
        Self { poison, ..Self::f32() }
    }

    /// Every parameter, bit for bit.
    pub(crate) fn values(&self) -> Vec<(String, Vec<u64>)> {
        let bits = |tensor: &Tensor| -> Vec<u64> {
            let values: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            values.into_iter().map(f64::to_bits).collect()
        };
        self.params
            .snapshot()
            .unwrap()
            .iter()
            .map(|(name, tensor)| (name.clone(), bits(tensor)))
            .collect()
    }

    pub(crate) fn weight(&self) -> Vec<f64> {
        self.weight.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    /// Loss and its gradient by `[w, b]` at an item, from the formulas.
    pub(crate) fn by_hand(&self, weight: &[f64], batch: &MicroBatch, item: &Item) -> (f64, [f64; WIDTH + 1]) {
        let noise = normal_vec(&mut generator(batch.seed, Stream::Noise, batch.step, item.position), 1)[0];
        let input = &self.inputs[item.index];
        let noisy: Vec<f64> = input.iter().map(|value| f64::from(value + 0.05 * noise)).collect();
        let prediction: f64 = noisy.iter().zip(weight).map(|(x, w)| x * w).sum();
        let residual = prediction - Self::target(input);
        let slope = |at: usize| 2.0 * residual * noisy.get(at).copied().unwrap_or(1.0);
        (residual * residual, std::array::from_fn(slope))
    }

    fn target(input: &[f32]) -> f64 {
        2.0 * f64::from(input[0]) - f64::from(input[1]) + 0.5 * f64::from(input[2]) + 0.75
    }
}

impl Method for Toy {
    type Error = ToyError;

    fn params(&self) -> &Params {
        &self.params
    }

    fn num_records(&self) -> usize {
        self.inputs.len()
    }

    fn record_id(&self, index: usize) -> String {
        format!("row-{index}")
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput, ToyError> {
        if self.poison == Poison::Failure(batch.step) {
            return Err(ToyError::Failure);
        }
        self.seen.lock().unwrap().push(batch.clone());
        let dtype = self.weight.dtype();
        let len = batch.items.len();
        let (mut inputs, mut targets, mut noises) = (Vec::new(), Vec::new(), Vec::new());
        for item in &batch.items {
            let noise = normal_vec(&mut generator(batch.seed, Stream::Noise, batch.step, item.position), 1)[0];
            inputs.extend(self.inputs[item.index].iter().map(|value| value + 0.05 * noise));
            targets.push(Self::target(&self.inputs[item.index]));
            noises.push(f64::from(noise));
        }
        let inputs = Tensor::from_vec(inputs, (len, WIDTH), &Device::Cpu)?.to_dtype(dtype)?;
        let targets = Tensor::from_vec(targets, len, &Device::Cpu)?.to_dtype(dtype)?;
        let mut predictions = inputs.matmul(&self.weight.unsqueeze(1)?)?.squeeze(1)?;
        if self.poison != Poison::SilentParameter {
            predictions = predictions.broadcast_add(&self.bias)?;
        }
        let mut losses = (&predictions - targets)?.sqr()?;
        if let Some(table) = &self.table {
            losses = losses.broadcast_add(&(table.sqr()?.mean_all()? * 10.0)?)?;
        }
        let place = |record| batch.items.iter().position(|item| item.index == record);
        let mut metrics = BTreeMap::from([("noise/mean", noises)]);
        match self.poison {
            Poison::Loss(record, step) if batch.step >= step && place(record).is_some() => {
                let factors = (0..len).map(|at| if Some(at) == place(record) { f64::NAN } else { 1.0 });
                let factors = Tensor::from_vec(factors.collect::<Vec<_>>(), len, &Device::Cpu)?.to_dtype(dtype)?;
                losses = (losses * factors)?;
            }
            Poison::Metric(record) if place(record).is_some() => {
                let value = |at| if Some(at) == place(record) { f64::INFINITY } else { 1.0 };
                metrics.insert("rewards/chosen", (0..len).map(value).collect());
            }
            // The root has an infinite slope at 0, and infinity minus infinity is not a number.
            Poison::Gradient(record) if place(record).is_some() => {
                let zeros = (&predictions - predictions.copy()?)?;
                losses = (losses + zeros.sqrt()?)?;
            }
            Poison::ShortLosses => losses = losses.narrow(0, 0, len - 1)?,
            Poison::ReservedMetric => {
                metrics.insert("epoch", vec![1.0]);
            }
            _ => {}
        }
        Ok(StepOutput::new(losses, metrics))
    }

    fn save(&self, directory: &Path) -> Result<(), ToyError> {
        let path = directory.join("adapter.safetensors");
        let is_checkpoint = directory.parent().is_some_and(|parent| parent.ends_with("checkpoints"));
        if self.poison == Poison::FullDisk && is_checkpoint {
            std::fs::write(&path, b"half of it").unwrap();
            return Err(ToyError::Io(path, std::io::ErrorKind::StorageFull.into()));
        }
        if let Some((step, marker)) = &self.hang
            && directory.to_string_lossy().contains(&format!("step-{step:06}"))
        {
            std::fs::write(&path, b"half of it").unwrap();
            std::fs::write(marker, b"waiting").unwrap();
            std::thread::sleep(std::time::Duration::from_mins(5));
        }
        Ok(save_tensors(&path, &self.params.snapshot()?, &BTreeMap::new())?)
    }

    fn save_final(&self, directory: &Path) -> Result<(), ToyError> {
        self.save(directory)?;
        let path = directory.join("README");
        if self.poison == Poison::FullDiskAtTheEnd {
            return Err(ToyError::Io(path, std::io::ErrorKind::StorageFull.into()));
        }
        std::fs::write(&path, format!("{:?}\n", self.weight())).map_err(|error| ToyError::Io(path, error))
    }

    fn load(&self, directory: &Path) -> Result<(), ToyError> {
        let weights = Weights::open(&directory.join("adapter.safetensors"))?;
        let tensors: Result<BTreeMap<_, _>, ToyError> = self
            .params
            .iter()
            .map(|(name, var)| {
                Ok((
                    name.to_owned(),
                    weights.get(name, var.dims(), var.dtype(), &Device::Cpu)?,
                ))
            })
            .collect();
        let mut tensors = tensors?;
        if self.poison == Poison::Forgets {
            tensors.insert("layer.bias".into(), self.bias.zeros_like()?);
        }
        Ok(self.params.load(&tensors)?)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>, ToyError> {
        let path = stem.with_extension("png");
        if self.poison == Poison::Sample {
            return Err(ToyError::Io(path, std::io::Error::other("the picture is not finite")));
        }
        let shade = (self.weight()[0] * 100.0) as u8;
        let picture = image::RgbImage::from_pixel(4, 4, image::Rgb([shade, 0, 0]));
        picture
            .save(&path)
            .map_err(|error| ToyError::Io(path.clone(), std::io::Error::other(error)))?;
        Ok(Some(path))
    }
}

/// Five logged rows in twenty steps of four records each, in micro batches of two.
pub(crate) fn config(output: impl Into<PathBuf>) -> LoopConfig {
    let train = TrainConfig {
        steps: Some(20),
        micro_batch: 2,
        accumulation: 2,
        log_every: 4,
        checkpoint_every: 5,
        keep_checkpoints: 2,
        sample_every: 10,
        ..TrainConfig::default()
    };
    let mut config = LoopConfig::new(output, train);
    config.seed = 3;
    config.optimizer = OptimizerConfig::Adamw(AdamWConfig {
        lr: 0.05,
        ..AdamWConfig::default()
    });
    config.schedule = LrSchedule::Linear { warmup_steps: 4 };
    config
}

pub(crate) fn run(method: &Toy, config: &LoopConfig, resume: ResumeMode) -> Result<Summary, Error> {
    train(method, config, &mut Silent, &AtomicBool::new(false), resume)
}

/// Runs until after `step`, as if the user then asked to stop.
pub(crate) fn run_until(step: u64, method: &Toy, config: &LoopConfig, resume: ResumeMode) -> Result<Summary, Error> {
    let stop = AtomicBool::new(false);
    let mut observer = |event: &Event<'_>| {
        if matches!(event, Event::Step { step: done, .. } if *done == step) {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    train(method, config, &mut observer as &mut dyn Observer, &stop, resume)
}

/// Names in a directory, hidden ones included.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
