//! A run in shadows: what is loaded, a few steps with the largest among them, what is written and sampled.

use std::rc::Rc;

use diptych_models::AdapterConfig;
use diptych_models::lm::LmConfig;
use diptych_tensor::{CheckpointPolicy, DType};
use diptych_train::{Recipe, ReferenceConfig};

use super::heap::{Block, Heap, Peak, Use, Work};
use super::network::{Adapters, Layers, Loading, ShadowLm, WIDE};
use super::shadow::{Gradients, Pull, Shadow, Tape, add_gradient};
use super::sizes::{BatchSizes, ImageSizes, RunSizes};
use super::vision::VisionCounts;
use crate::Result;
use crate::modality::Language;

/// What a run is made of.
pub(super) struct Parts<'a> {
    pub(super) recipe: &'a Recipe<Language>,
    pub(super) config: &'a LmConfig,
    pub(super) adapter: &'a AdapterConfig,
    pub(super) stored_width: usize,
    /// The network of `reference.checkpoint`, where it is another one.
    pub(super) other: Option<(LmConfig, usize)>,
    pub(super) sizes: RunSizes,
    /// Of computing scores before training, where that is done.
    pub(super) cached: Option<BatchSizes>,
    /// Response tokens of the data.
    pub(super) num_scores: usize,
    pub(super) samples: Option<Sampling>,
    pub(super) evaluation: Option<Sampling>,
    /// The policy's answers in every micro batch, where a term needs them.
    pub(super) answers: Option<Sampling>,
    /// What reads images, where anything does.
    pub(super) vision: Option<VisionCounts<'a>>,
    /// Which layers recompute their activations.
    pub(super) checkpointing: CheckpointPolicy,
}

/// How texts are sampled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampling {
    pub(super) batch: usize,
    pub(super) longest: usize,
    pub(super) max_new_tokens: usize,
    /// Prompts in all.
    pub(super) num_prompts: usize,
    /// The images of a prompt.
    pub(super) images: ImageSizes,
    /// Bytes of what is kept of the images of all prompts.
    pub(super) kept_bytes: usize,
}

/// What was counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) peak: Peak,
    /// Of all sampled micro batches.
    pub(super) work: Work,
    pub(super) num_trained: usize,
    /// Bytes of what the optimizer keeps.
    pub(super) state_bytes: usize,
}

/// A run under way.
struct Run<'a> {
    parts: &'a Parts<'a>,
    heap: Heap,
    policy: ShadowLm,
    reference: Reference,
}

enum Reference {
    None,
    AdapterOff,
    Network(Box<ShadowLm>),
    /// Scores that are kept.
    Cached(Rc<Block>),
}

/// Goes through a run and counts.
pub(super) fn count(parts: &Parts<'_>) -> Result<Counted> {
    let heap = Heap::default();
    if let Some(vision) = parts.vision {
        vision.pass(&heap);
    }
    heap.begin("loading");
    let policy = ShadowLm::load(&heap, &parts.loading(Some(parts.adapter), [Use::Frozen, Use::Trained]))?;
    let reference = reference(parts, &heap, &policy)?;
    let images = parts.vision.map(|vision| vision.keep(&heap, &policy));
    let run = Run {
        parts,
        heap,
        policy,
        reference,
    };
    run.sample("sampling");
    let moments = run.moments();
    let average = parts.recipe.train.ema_decay.map(|_| run.copies(Use::Average));
    let before = run.heap.work();
    // Three rounds: kept blocks of all sizes are there as after many steps, samples and checkpoints.
    let mut work = Work::default();
    for round in 0..3 {
        for sizes in &parts.sizes.sampled {
            run.step(*sizes);
        }
        if round == 0 {
            let after = run.heap.work();
            work = Work {
                flop: after.flop - before.flop,
                bytes: after.bytes - before.bytes,
            };
        }
        for sizes in &parts.sizes.largest {
            run.step(*sizes);
        }
        run.after_step(average.as_deref());
        run.sample("sampling");
        run.checkpoint(average.as_deref());
    }
    drop((moments, average, images));
    let num_trained = run.policy.trained.iter().sum();
    let optimizer = &parts.recipe.optimizer;
    let state_bytes = run
        .policy
        .trained
        .iter()
        .map(|len| optimizer.state_bytes(&[*len]) as usize);
    let state_bytes = state_bytes.sum();
    let heap = run.heap.clone();
    run.evaluate()?;
    Ok(Counted {
        peak: heap.peak(),
        work,
        num_trained,
        state_bytes,
    })
}

impl Parts<'_> {
    fn dtype(&self) -> DType {
        self.recipe.run.precision.dtype()
    }

    fn loading<'a>(&'a self, trained: Option<&'a AdapterConfig>, of: [Use; 2]) -> Loading<'a> {
        Loading {
            config: self.config,
            trained,
            dtype: self.dtype(),
            stored_width: self.stored_width,
            quantization: self.recipe.model.quantization,
            of,
            vision: self.vision.map(|vision| vision.loading),
        }
    }
}

fn reference(parts: &Parts<'_>, heap: &Heap, policy: &ShadowLm) -> Result<Reference> {
    let of = [Use::Reference; 2];
    let network = |trained, config, stored_width, vision| -> Result<Reference> {
        let loading = Loading {
            config,
            stored_width,
            vision,
            ..parts.loading(trained, of)
        };
        Ok(Reference::Network(Box::new(ShadowLm::load(heap, &loading)?)))
    };
    let own = parts.vision.map(|vision| vision.loading);
    let copy = || network(None, parts.config, parts.stored_width, own);
    let can_switch_off = <Language as diptych_train::Modality>::can_switch_off(&parts.recipe.adapter);
    match &parts.recipe.reference {
        ReferenceConfig::None {} => Ok(Reference::None),
        ReferenceConfig::AdapterOff {} => Ok(Reference::AdapterOff),
        ReferenceConfig::Frozen {} => copy(),
        ReferenceConfig::Ema { .. } => network(Some(parts.adapter), parts.config, parts.stored_width, own),
        ReferenceConfig::Checkpoint { .. } => match &parts.other {
            Some((config, stored_width)) => {
                let vision = parts.vision.and_then(|vision| vision.other);
                network(None, config, *stored_width, vision)
            }
            None => copy(),
        },
        ReferenceConfig::Cached { .. } => {
            let live = if can_switch_off { Reference::AdapterOff } else { copy()? };
            if let Some(sizes) = parts.cached {
                heap.begin("scoring the data under the reference");
                live.pass(heap, policy, sizes);
            }
            Ok(Reference::Cached(heap.take(Use::Scores, parts.num_scores * WIDE)))
        }
    }
}

impl Reference {
    /// A pass over a batch, without a graph.
    fn pass(&self, heap: &Heap, policy: &ShadowLm, sizes: BatchSizes) -> Option<Rc<Block>> {
        let tape = Tape {
            heap: heap.clone(),
            results: Use::ReferencePass,
        };
        match self {
            Self::None => return None,
            Self::AdapterOff => drop(policy.score(&tape, sizes, Adapters::Off, Layers::Detached)),
            Self::Network(network) => drop(network.score(&tape, sizes, Adapters::On, Layers::Detached)),
            Self::Cached(scores) => return Some(scores.clone()),
        }
        Some(heap.take(Use::ReferencePass, sizes.targets * WIDE))
    }
}

impl Run<'_> {
    fn layers(&self) -> Layers {
        Layers::Kept(self.parts.checkpointing)
    }

    /// Both moments of every trained parameter; factored ones as if nothing were a matrix.
    fn moments(&self) -> Vec<Rc<Block>> {
        let mut moments = Vec::new();
        for elements in &self.policy.trained {
            let zeros = self.heap.take(Use::Loading, elements * WIDE);
            let bytes = self.parts.recipe.optimizer.state_bytes(&[*elements]) as usize;
            moments.extend([0, 1].map(|_| self.heap.take(Use::Moments, bytes / 2)));
            drop(zeros);
        }
        moments
    }

    /// A copy of every trained parameter.
    fn copies(&self, of: Use) -> Vec<Rc<Block>> {
        let copy = |elements: &usize| self.heap.take(of, elements * WIDE);
        self.policy.trained.iter().map(copy).collect()
    }

    /// An optimizer step whose micro batches all have this size.
    fn step(&self, sizes: BatchSizes) {
        self.heap.begin("training");
        let needs = self.parts.recipe.objective.requirements();
        let mut total: Option<Gradients> = None;
        // From the second micro batch on, what is held does not change.
        for _ in 0..self.parts.recipe.train.accumulation.min(2) {
            if needs.mismatched {
                self.mismatched(sizes);
            }
            if let Some(answers) = self.parts.answers {
                answers.run(&self.heap, &self.policy);
            }
            let gradients = self.forward_backward(sizes);
            match &mut total {
                None => total = Some(gradients),
                Some(total) => {
                    for (variable, (bytes, block)) in &gradients {
                        add_gradient(&self.heap, total, *variable, (*bytes, block.clone()));
                    }
                }
            }
        }
        let Some(mut gradients) = total else { return };
        for (bytes, _) in gradients.values() {
            drop(self.heap.take(Use::Update, *bytes));
        }
        if self.parts.recipe.optimizer.max_grad_norm() > 0.0 {
            for (bytes, block) in gradients.values_mut() {
                *block = self.heap.take(Use::Gradients, *bytes);
            }
        }
    }

    fn forward_backward(&self, sizes: BatchSizes) -> Gradients {
        let tape = Tape {
            heap: self.heap.clone(),
            results: Use::Activations,
        };
        let needs_reference = <Language as diptych_train::Modality>::needs_reference(self.parts.recipe);
        let _input = self.heap.take(Use::Activations, 32 * sizes.tokens());
        let reference = if needs_reference.is_some() {
            self.reference.pass(&self.heap, &self.policy, sizes)
        } else {
            None
        };
        let logps = self.policy.score(&tape, sizes, Adapters::On, self.layers());
        // Which token belongs to which response.
        let sums = tape.leaf(Use::Activations, sizes.responses * sizes.targets, WIDE);
        let scores = tape.candle(Pull::Fresh, sizes.responses, &[&sums, &logps]);
        let own = self.parts.sizes.read.map(|read| self.own_tokens(&tape, read));
        let loss = match &own {
            Some(own) => tape.candle(Pull::View, 1, &[&scores, own]),
            None => tape.candle(Pull::View, 1, &[&scores]),
        };
        drop((reference, logps, sums, scores, own));
        tape.backward(&loss)
    }

    /// Chosen answers are read without a backward pass, and the tokens found there are scored in the places of their own.
    fn own_tokens(&self, tape: &Tape, sizes: BatchSizes) -> Shadow {
        drop(self.policy.score(tape, sizes, Adapters::On, Layers::Detached));
        self.policy.score_others(tape, sizes)
    }

    /// Prompts with the responses of other records, under both networks and without a backward pass.
    fn mismatched(&self, sizes: BatchSizes) {
        let tape = Tape {
            heap: self.heap.clone(),
            results: Use::Activations,
        };
        let reference = self.reference.pass(&self.heap, &self.policy, sizes);
        let logps = self.policy.score(&tape, sizes, Adapters::On, Layers::Detached);
        drop((reference, logps));
    }

    /// Averages and references that follow the policy.
    fn after_step(&self, average: Option<&[Rc<Block>]>) {
        if let (Reference::Network(network), ReferenceConfig::Ema { .. }) =
            (&self.reference, &self.parts.recipe.reference)
        {
            self.heap.begin("moving the reference");
            let _copies = [self.copies(Use::Update), self.copies(Use::Update)];
            let largest = network.trained.iter().max().copied().unwrap_or(0);
            let _mix = [0, 1, 2].map(|_| self.heap.take(Use::Update, largest * WIDE));
        }
        if average.is_some() {
            self.heap.begin("moving the averages");
            let largest = self.policy.trained.iter().max().copied().unwrap_or(0);
            let _mix = [0, 1, 2].map(|_| self.heap.take(Use::Update, largest * WIDE));
        }
    }

    /// Parameters, then moments, then averages: each is copied, and the file is made in memory.
    fn checkpoint(&self, average: Option<&[Rc<Block>]>) {
        self.heap.begin("writing a checkpoint");
        let file = |copies: usize| {
            let total: usize = self.policy.trained.iter().sum();
            let held: Vec<_> = (0..copies).map(|_| self.copies(Use::Saving)).collect();
            let bytes = self.heap.take(Use::Saving, copies * total * WIDE);
            // One tensor at a time is copied on its way.
            let largest = self.policy.trained.iter().max().copied().unwrap_or(0);
            drop(self.heap.take(Use::Saving, largest * WIDE));
            (held, bytes)
        };
        let (held, bytes) = file(1);
        // That of the weights has metadata put into it, for which it moves.
        let moved = self
            .heap
            .take(Use::Saving, self.policy.trained.iter().sum::<usize>() * WIDE);
        drop((held, bytes, moved));
        if self.parts.recipe.train.checkpoint_every > 0 {
            drop(file(2));
            if average.is_some() {
                drop(file(1));
            }
        }
    }

    fn sample(&self, moment: &'static str) {
        if let Some(sampling) = self.parts.samples {
            self.heap.begin(moment);
            sampling.run(&self.heap, &self.policy);
        }
    }

    /// The base is loaded beside the policy, and both are sampled. Of networks that read images, one after the other is loaded, each behind
    /// the training.
    fn evaluate(self) -> Result<()> {
        let Self {
            parts,
            heap,
            policy,
            reference,
        } = self;
        let Some(sampling) = parts.evaluation else {
            return Ok(());
        };
        heap.begin("evaluating");
        let load = || ShadowLm::load(&heap, &parts.loading(None, [Use::Sampling; 2]));
        if let Some(vision) = parts.vision {
            drop((policy, reference));
            let _kept = heap.take(Use::Images, sampling.kept_bytes);
            for _ in 0..2 {
                let network = load()?;
                network.encode(&heap, vision.largest);
                sampling.run(&heap, &network);
            }
            return Ok(());
        }
        sampling.run(&heap, &load()?);
        sampling.run(&heap, &policy);
        Ok(())
    }
}

impl Sampling {
    fn run(self, heap: &Heap, network: &ShadowLm) {
        let batch = self.batch.min(self.num_prompts);
        network.sample(heap, self.images, (batch, self.longest), self.max_new_tokens);
    }
}
