//! Where a network's tensors come from, which of them are trained, and which layers carry an adapter.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use diptych_tensor::{DType, Device, Params, Quantization, QuantizedMatrix, Tensor, Weights};

use crate::adapter::{AdapterSwitch, LayerKind, LoraConfig, LoraInit, Matcher};
use crate::layers::{Lora, row_lengths};
use crate::linear_weight::LinearWeight;
use crate::lora::{LoraAdapter, LoraModule, MAGNITUDE};
use crate::nearest::nearest;
use crate::{Error, Init, Result};

/// What of a network is trained.
#[derive(Debug, Clone, Copy)]
pub enum Trainable<'a> {
    /// Nothing: every tensor is frozen, in the compute type.
    None,
    /// Every parameter, as f32 masters that are cast to the type of the activations in the forward pass.
    All,
    /// Adapters on the layers that the configuration names; the network itself is frozen, in the compute type.
    Lora(&'a LoraConfig),
}

/// How to build a network.
#[derive(Debug, Clone)]
pub struct BuilderConfig<'a> {
    /// The checkpoint; without one, parameters are initialized from `seed`.
    pub weights: Option<&'a Weights>,
    /// Where tensors live.
    pub device: Device,
    /// Type of frozen tensors and of the activations. With f64, trainable masters are f64 too.
    pub dtype: DType,
    /// What is trained.
    pub trainable: Trainable<'a>,
    /// What the weights of a decoder's linear layers, its head excepted, are kept in where they are frozen; other networks and parts
    /// have no such layers. Only on the CPU, and not with [`Trainable::All`].
    pub quantization: Option<Quantization>,
    /// An adapter to attach: the starting point when adapters are trained, frozen otherwise.
    pub adapter: Option<&'a LoraAdapter>,
    /// Seed of every initial value.
    pub seed: u64,
    /// Put before every name in [`Params`], such as `text_encoder.`; it keeps networks trained together apart.
    pub params_prefix: &'a str,
    /// The switch that turns adapters off; networks that share one are switched together.
    pub switch: AdapterSwitch,
}

impl<'a> BuilderConfig<'a> {
    /// A frozen network from `weights`, without an adapter, in f32 on the CPU; change the fields that should differ.
    pub fn new(weights: Option<&'a Weights>) -> Self {
        Self {
            weights,
            device: Device::Cpu,
            dtype: DType::F32,
            trainable: Trainable::None,
            quantization: None,
            adapter: None,
            seed: 0,
            params_prefix: "",
            switch: AdapterSwitch::new(),
        }
    }
}

/// Hands a network its tensors, by name, and notes which of them are trained.
///
/// A builder stands at a place in the tree of modules; [`Builder::child`] goes one step down. After the network is built,
/// [`Builder::finish`] on the root reports what did not fit and returns the trainable parameters.
///
/// ```
/// use diptych_models::{Builder, BuilderConfig, Trainable, layers::{Linear, LinearConfig}};
///
/// let builder = Builder::new(BuilderConfig { trainable: Trainable::All, ..BuilderConfig::new(None) })?;
/// let layer = Linear::load(&builder.child("proj"), LinearConfig::new(4, 2))?;
/// let params = builder.finish()?;
/// assert_eq!(params.names().collect::<Vec<_>>(), ["proj.bias", "proj.weight"]);
/// # Ok::<(), diptych_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Builder<'a> {
    shared: Rc<Shared<'a>>,
    /// Place in the tree of modules: the name that parameters and adapters have.
    path: String,
    /// The same place in the weight file, where old files use other names.
    source: String,
    /// Whether nothing from here on is trained, whatever the rest of the network does.
    is_frozen: bool,
    /// Whether weights of linear layers from here on are kept in [`BuilderConfig::quantization`].
    is_quantized: bool,
}

#[derive(Debug)]
struct Shared<'a> {
    config: BuilderConfig<'a>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    params: Params,
    /// Tensors taken from the weight file.
    used: BTreeSet<String>,
    /// Beginnings of names in the weight file that may stay unused.
    ignored: Vec<String>,
    /// Layers that could carry an adapter.
    layers: BTreeSet<String>,
    /// Layers that do.
    adapted: BTreeSet<String>,
    matcher: Option<Matcher>,
}

impl<'a> Builder<'a> {
    /// A builder at the root of a network.
    ///
    /// # Errors
    /// [`Error::AdapterSetting`] or [`Error::TargetPattern`] when the LoRA configuration cannot be used, [`Error::Quantization`] where
    /// nothing can be kept in few bits.
    pub fn new(config: BuilderConfig<'a>) -> Result<Self> {
        check_quantization(&config)?;
        let mut state = State::default();
        if let Trainable::Lora(lora) = config.trainable {
            lora.validate()?;
            state.matcher = Some(Matcher::new(&lora.targets)?);
        }
        let shared = Rc::new(Shared {
            config,
            state: RefCell::new(state),
        });
        Ok(Self {
            shared,
            path: String::new(),
            source: String::new(),
            is_frozen: false,
            is_quantized: false,
        })
    }

    /// The module `name` below this one.
    pub fn child(&self, name: impl AsRef<str>) -> Self {
        self.child_from(name.as_ref(), &[name.as_ref()])
    }

    /// The module `name` below this one, which a weight file may have under any of `sources`: the first that it has is taken.
    pub(crate) fn child_from(&self, name: &str, sources: &[&str]) -> Self {
        let has = |source: &&&str| {
            let prefix = format!("{}.", join(&self.source, source));
            self.shared
                .config
                .weights
                .is_some_and(|weights| weights.names().any(|name| name.starts_with(&prefix)))
        };
        let source = if let [only] = sources {
            only
        } else {
            sources.iter().find(has).copied().unwrap_or(name)
        };
        Self {
            shared: self.shared.clone(),
            path: join(&self.path, name),
            source: join(&self.source, source),
            is_frozen: self.is_frozen,
            is_quantized: self.is_quantized,
        }
    }

    /// The module `name` below this one, whose tensors stand in the weight file without that part of the name.
    pub(crate) fn child_without_source(&self, name: &str) -> Self {
        Self {
            shared: self.shared.clone(),
            path: join(&self.path, name),
            source: self.source.clone(),
            is_frozen: self.is_frozen,
            is_quantized: self.is_quantized,
        }
    }

    /// The same place, from which on nothing is trained: parameters are frozen, targets name no layer, and what an adapter has for
    /// layers here is attached as it is.
    pub(crate) fn frozen(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            path: self.path.clone(),
            source: self.source.clone(),
            is_frozen: true,
            is_quantized: self.is_quantized,
        }
    }

    /// The same place, from which on the weights of linear layers are kept in [`BuilderConfig::quantization`], where there is one.
    pub(crate) fn quantized(&self) -> Self {
        Self {
            is_quantized: true,
            ..self.child("")
        }
    }

    /// Name of the module this builder stands at.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the weight file has any tensor below the module `name`.
    pub(crate) fn source_has(&self, name: &str) -> bool {
        let prefix = format!("{}.", join(&self.source, name));
        self.shared
            .config
            .weights
            .is_some_and(|weights| weights.names().any(|name| name.starts_with(&prefix)))
    }

    /// Lets tensors of the weight file stay unused when their names begin with `prefix`.
    pub fn ignore_unused(&self, prefix: impl Into<String>) {
        self.shared.state.borrow_mut().ignored.push(prefix.into());
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.shared.config.dtype
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.shared.config.device
    }

    /// The switch of the network's adapters.
    pub fn switch(&self) -> AdapterSwitch {
        self.shared.config.switch.clone()
    }

    /// The parameter `name` of this module: from the weight file, or as `init` says.
    ///
    /// # Errors
    /// When the weight file has no such tensor or one of another shape.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let config = &self.shared.config;
        let path = join(&self.path, name);
        let trainable = matches!(config.trainable, Trainable::All) && !self.is_frozen;
        let dtype = if trainable { self.master_dtype() } else { config.dtype };
        let tensor = if let Some(weights) = config.weights {
            let source = join(&self.source, name);
            let tensor = weights.get(&source, shape, dtype, &config.device)?;
            self.shared.state.borrow_mut().used.insert(source);
            tensor
        } else {
            init.tensor(shape, dtype, &config.device, (config.seed, &path))?
        };
        if trainable {
            self.insert(&path, &tensor)
        } else {
            Ok(tensor)
        }
    }

    /// The weight of this linear layer, (out, in): a tensor as [`get`](Self::get) has it, or in few bits where this place is quantized. Then
    /// no more than this one is held in the type that it is stored in.
    ///
    /// # Errors
    /// As [`get`](Self::get); for a number that is not finite where it is quantized.
    pub(crate) fn linear_weight(&self, shape: [usize; 2], init: Init) -> Result<LinearWeight> {
        let config = &self.shared.config;
        let Some(quantization) = config.quantization.filter(|_| self.is_quantized) else {
            return Ok(LinearWeight::Dense(self.get("weight", &shape, init)?));
        };
        let tensor = if let Some(weights) = config.weights {
            let source = join(&self.source, "weight");
            let stored = weights.dtype(&source).unwrap_or(DType::F32);
            let tensor = weights.get(&source, &shape, stored, &config.device)?;
            self.shared.state.borrow_mut().used.insert(source);
            tensor
        } else {
            let path = join(&self.path, "weight");
            init.tensor(&shape, DType::F32, &config.device, (config.seed, &path))?
        };
        let matrix = QuantizedMatrix::quantize(&tensor, quantization)?;
        Ok(LinearWeight::Quantized(Arc::new(matrix)))
    }

    /// A tensor of the weight file that is never trained, such as a table of positions; nothing if the file does not have it.
    ///
    /// # Errors
    /// When the weight file has it in another shape.
    pub(crate) fn buffer(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let config = &self.shared.config;
        let source = join(&self.source, name);
        let Some(weights) = config.weights.filter(|weights| weights.contains(&source)) else {
            return Ok(None);
        };
        let tensor = weights.get(&source, shape, config.dtype, &config.device)?;
        self.shared.state.borrow_mut().used.insert(source);
        Ok(Some(tensor))
    }

    /// The adapter of this linear layer, whose weight is (out, in), if it is a target of training or part of the adapter that is attached.
    pub(crate) fn linear_lora(&self, weight: &LinearWeight) -> Result<Option<Lora>> {
        let (to, from) = weight.dims()?;
        self.lora((&[0, from], &[to, 0]), Some(weight))
    }

    /// The same of a convolution with a weight of this shape.
    pub(crate) fn conv2d_lora(&self, [to, from, height, width]: [usize; 4]) -> Result<Option<Lora>> {
        self.lora((&[0, from, height, width], &[to, 0, 1, 1]), None)
    }

    /// `down` and `up` are the shapes of `A` and `B` with the rank left as 0: `(0, in, ...)` and `(out, 0, ...)`. `weight` is that of a
    /// linear layer, whose rows may have magnitudes.
    fn lora(&self, (down, up): (&[usize], &[usize]), weight: Option<&LinearWeight>) -> Result<Option<Lora>> {
        let config = &self.shared.config;
        if !self.is_frozen {
            self.shared.state.borrow_mut().layers.insert(self.path.clone());
        }
        let start = config.adapter.and_then(|adapter| adapter.modules.get(&self.path));
        let trained = match config.trainable {
            Trainable::Lora(lora) if !self.is_frozen => Some(lora),
            _ => None,
        };
        let Some(lora) = trained else {
            return start.map(|start| self.attach(start, (down, up), weight)).transpose();
        };
        let kind = LayerKind::of_shape(down);
        let is_target = self
            .shared
            .state
            .borrow_mut()
            .matcher
            .as_mut()
            .is_some_and(|m| m.matches(&self.path, kind));
        match (is_target, config.adapter, start) {
            (false, ..) => Ok(None),
            (true, Some(_), None) => Err(Error::MissingModule {
                module: self.path.clone(),
            }),
            (true, _, Some(start)) => {
                self.check_start(start, lora, (down, up))?;
                let start = LoraModule {
                    scale: lora.scale(),
                    ..start.clone()
                };
                self.attach(&start, (down, up), weight).map(Some)
            }
            (true, None, None) => {
                let fresh = self.fresh(lora, (down, up), weight)?;
                self.attach(&fresh, (down, up), weight).map(Some)
            }
        }
    }

    /// An update that is 0: `A` random, `B` zero, and the lengths of the weight's own rows where they are trained by themselves.
    fn fresh(
        &self,
        lora: &LoraConfig,
        (down, up): (&[usize], &[usize]),
        weight: Option<&LinearWeight>,
    ) -> Result<LoraModule> {
        let config = &self.shared.config;
        let (a, b) = (with_rank(down, 0, lora.rank), with_rank(up, 1, lora.rank));
        let init = match lora.init_weights {
            LoraInit::Kaiming => Init::kaiming_uniform(a[1..].iter().product()),
            LoraInit::Gaussian => Init::Normal {
                std: 1.0 / lora.rank as f64,
            },
        };
        let name = join(&self.path, "lora_A.weight");
        let down = init.tensor(&a, self.master_dtype(), &config.device, (config.seed, &name))?;
        let up = Init::Zeros.tensor(&b, self.master_dtype(), &config.device, (config.seed, ""))?;
        let scale = lora.scale();
        let magnitude = match weight {
            Some(weight) if lora.use_dora => Some(row_lengths(&weight.dense()?, (&down, &up), scale)?),
            None if lora.use_dora => return Err(self.no_magnitude()),
            _ => None,
        };
        Ok(LoraModule {
            down,
            up,
            scale,
            magnitude,
        })
    }

    fn no_magnitude(&self) -> Error {
        Error::AdapterSetting {
            key: "use_dora",
            found: format!("true, and `{}` is a convolution", self.path),
            expected: "linear layers alone",
        }
    }

    /// Checks that the adapter to start from has the rank and the strength that training goes on with.
    fn check_start(&self, start: &LoraModule, lora: &LoraConfig, (down, up): (&[usize], &[usize])) -> Result<()> {
        self.check_shape("A", &start.down, &with_rank(down, 0, lora.rank))?;
        self.check_shape("B", &start.up, &with_rank(up, 1, lora.rank))?;
        if start.magnitude.is_some() != lora.use_dora {
            let found = format!(
                "{}, but {} in the adapter to start from",
                lora.use_dora,
                start.magnitude.is_some()
            );
            return Err(Error::AdapterSetting {
                key: "use_dora",
                found,
                expected: "the same value",
            });
        }
        if (start.scale - lora.scale()).abs() > 1e-6 * lora.scale() {
            let found = format!("{}, but {} in the adapter to start from", lora.alpha, start.alpha());
            return Err(Error::AdapterSetting {
                key: "alpha",
                found,
                expected: "the same value",
            });
        }
        Ok(())
    }

    /// Puts the parts of an update on this layer: trained or frozen.
    fn attach(
        &self,
        module: &LoraModule,
        (down, up): (&[usize], &[usize]),
        weight: Option<&LinearWeight>,
    ) -> Result<Lora> {
        let config = &self.shared.config;
        let rank = module.rank();
        self.check_shape("A", &module.down, &with_rank(down, 0, rank))?;
        self.check_shape("B", &module.up, &with_rank(up, 1, rank))?;
        if let Some(magnitude) = &module.magnitude {
            weight.ok_or_else(|| self.no_magnitude())?;
            self.check_shape("magnitude", magnitude, &up[..1])?;
        }
        self.shared.state.borrow_mut().adapted.insert(self.path.clone());
        let trainable = matches!(config.trainable, Trainable::Lora(_)) && !self.is_frozen;
        // The length of a row in half precision would move the whole row.
        let dtype = if trainable || module.magnitude.is_some() {
            self.master_dtype()
        } else {
            config.dtype
        };
        let place = |name: &str, tensor: &Tensor| -> Result<Tensor> {
            let placed = || -> diptych_tensor::Result<Tensor> {
                Ok(tensor.to_dtype(dtype)?.to_device(&config.device)?.contiguous()?)
            };
            if trainable {
                self.insert(&join(&self.path, name), &placed()?)
            } else {
                Ok(placed()?)
            }
        };
        Ok(Lora {
            a: place("lora_A.weight", &module.down)?,
            b: place("lora_B.weight", &module.up)?,
            magnitude: module
                .magnitude
                .as_ref()
                .map(|magnitude| place(MAGNITUDE, magnitude))
                .transpose()?,
            scale: module.scale,
            switch: self.switch(),
        })
    }

    /// Checks what was built against what was asked for, and hands over the trainable parameters.
    ///
    /// # Errors
    /// [`Error::UnmatchedTarget`] for a target that named no layer, [`Error::UnknownModule`] for a part of the adapter that no
    /// layer took, [`Error::UnusedTensors`] when the weight file has more than the network, [`Error::AdapterBase`] for an
    /// adapter of another network.
    pub fn finish(self) -> Result<Params> {
        let state = self.shared.state.take();
        if let Some(target) = state.matcher.as_ref().and_then(Matcher::unmatched) {
            let last_parts = state.layers.iter().filter_map(|name| name.rsplit('.').next());
            let names = state.layers.iter().map(String::as_str).chain(last_parts);
            return Err(Error::UnmatchedTarget {
                target: target.to_owned(),
                nearest: nearest(target, names),
            });
        }
        let mut attached = self
            .shared
            .config
            .adapter
            .into_iter()
            .flat_map(|adapter| adapter.modules.keys());
        if let Some(module) = attached.find(|module| !state.adapted.contains(*module)) {
            let nearest = nearest(module, state.layers.iter().map(String::as_str));
            return Err(Error::UnknownModule {
                module: module.clone(),
                nearest,
            });
        }
        if let Some(weights) = self.shared.config.weights {
            self.shared
                .config
                .adapter
                .map_or(Ok(()), |adapter| adapter.check_base(weights))?;
            let unused = |name: &&str| {
                !state.used.contains(*name) && !state.ignored.iter().any(|prefix| name.starts_with(prefix.as_str()))
            };
            let names: Vec<String> = weights.names().filter(unused).map(str::to_owned).collect();
            if !names.is_empty() {
                return Err(Error::UnusedTensors { names });
            }
        }
        Ok(state.params)
    }

    fn insert(&self, path: &str, tensor: &Tensor) -> Result<Tensor> {
        let name = format!("{}{path}", self.shared.config.params_prefix);
        Ok(self.shared.state.borrow_mut().params.insert(name, tensor)?)
    }

    fn master_dtype(&self) -> DType {
        if self.dtype() == DType::F64 {
            DType::F64
        } else {
            DType::F32
        }
    }

    fn check_shape(&self, what: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
        if tensor.dims() == expected {
            return Ok(());
        }
        let module = self.path.clone();
        Err(Error::AdapterShape {
            module,
            what,
            found: tensor.dims().to_vec(),
            expected: expected.to_vec(),
        })
    }
}

/// The tensors whose names begin with `prefix`, without it: one network's part of a snapshot of parameters that are trained together
/// (see [`BuilderConfig::params_prefix`]), under the names that its weight file has.
pub fn without_prefix(tensors: BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)))
        .collect()
}

/// Refuses to keep in few bits what is trained, or what no kernel reads.
fn check_quantization(config: &BuilderConfig<'_>) -> Result<()> {
    let refuse = |found: &str, expected| {
        Err(Error::Quantization {
            found: found.to_owned(),
            expected,
        })
    };
    if config.quantization.is_none() {
        return Ok(());
    }
    match config.trainable {
        Trainable::All => refuse("every parameter trained", "an adapter beside frozen weights"),
        Trainable::None | Trainable::Lora(_) if !config.device.is_cpu() => refuse("a GPU", "the CPU"),
        Trainable::None | Trainable::Lora(_) => Ok(()),
    }
}

fn with_rank(shape: &[usize], axis: usize, rank: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[axis] = rank;
    shape
}

fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => path.to_owned(),
        (false, false) => format!("{path}.{name}"),
    }
}
