//! Walks down a sampler with real networks: records, log-probabilities, tails with a graph, inversion and back.

use std::path::Path;
use std::sync::Arc;

use diptych_diffusion::inversion::Inversion;
use diptych_diffusion::pipeline::{Checkpointing, Denoiser, Guided, Pipeline};
use diptych_diffusion::sampler::{History, Sampler, SamplerConfig, SamplerKind, SamplerNoise};
use diptych_diffusion::schedule::NoiseSchedule;
use diptych_diffusion::trajectory::{self, State, Walk};
use diptych_diffusion::{Error, NetworkOptions, SampleConfig, generate, images};
use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{DType, Device, Params, Tensor, backward};

use crate::schedulers::values;
use crate::world::{PROMPTS, World};

const GUIDANCE: f64 = 2.5;
const IMAGES: [u64; 3] = [4, 7, 9];

fn options(dtype: DType) -> NetworkOptions {
    NetworkOptions {
        device: Device::Cpu,
        dtype,
        seed: 0,
    }
}

fn noise(set: u32) -> SamplerNoise {
    SamplerNoise {
        seed: 3,
        stream: Stream::Sampler,
        set,
    }
}

fn ddim(schedule: &NoiseSchedule, num_steps: usize, eta: f64) -> Sampler {
    let config = SamplerConfig {
        eta,
        ..SamplerConfig::new(SamplerKind::Ddim, num_steps)
    };
    config.prepare(schedule).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    values(&tensor.detach().to_dtype(DType::F64).unwrap())
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims());
    for (found, expected) in f64s(found).iter().zip(f64s(expected)) {
        assert!(
            (found - expected).abs() <= tolerance * expected.abs().max(1.0),
            "{found} {expected}"
        );
    }
}

/// A network and what it is told about three prompts, guided.
fn guided<D: std::borrow::Borrow<Denoiser>>(pipeline: &Pipeline, denoiser: D) -> Guided<D> {
    let conditional = pipeline.text.encode(&PROMPTS[..3]).unwrap();
    let unconditional = pipeline.text.encode(&["", "", ""]).unwrap();
    Guided::new(denoiser, &unconditional, &conditional, GUIDANCE).unwrap()
}

#[test]
fn a_trajectory_is_what_a_plain_loop_and_generate_give() {
    let world = World::new();
    let pipeline = Pipeline::load(&world.path("model"), None, &options(DType::F32)).unwrap();
    let denoiser = &pipeline.denoiser;
    let shape = denoiser.latent_shape().unwrap();
    let texts = [[""; 3], [PROMPTS[0], PROMPTS[1], PROMPTS[2]]].map(|texts| pipeline.text.encode(&texts).unwrap());
    // The loop by hand: two calls of the network, no helper of ours for guidance.
    let by_hand = |sampler: &Sampler, noise: SamplerNoise, images: &[u64]| {
        let mut latents = noise.initial(images, &shape, &Device::Cpu).unwrap();
        let mut history = History::default();
        for (step_idx, timestep) in sampler.timesteps().into_iter().enumerate() {
            let [without, with] = [0, 1].map(|side| denoiser.predict(&latents, &[timestep; 3], &texts[side]).unwrap());
            let prediction = ((&without * (1.0 - GUIDANCE)).unwrap() + (with * GUIDANCE).unwrap()).unwrap();
            let fresh = noise.of_step(step_idx, 0, images, &shape, &Device::Cpu).unwrap();
            latents = sampler
                .transition(&prediction, step_idx, &latents, &mut history)
                .unwrap()
                .sample(Some(&fresh))
                .unwrap();
        }
        latents
    };
    let network = guided(&pipeline, denoiser);
    let sampler = ddim(denoiser.schedule(), 4, 1.0);
    let walk = Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(5),
        images: &IMAGES,
        latent_shape: shape,
    };
    let trajectory = walk.trajectory(3).unwrap();
    let expected = by_hand(&sampler, noise(5), &IMAGES);
    // Six rows in one call against three in each of two: rounding, which the first steps amplify.
    assert_close(trajectory.latents().unwrap(), &expected, 1e-4);
    assert_close(&walk.latents().unwrap(), trajectory.latents().unwrap(), 0.0);
    for pair in trajectory.steps.windows(2) {
        assert_close(&pair[0].after, &pair[1].before, 0.0);
    }

    // Images to look at are the walk of set 0 without fresh noise.
    let sampler = ddim(denoiser.schedule(), 4, 0.0);
    let config = SampleConfig {
        steps: 4,
        guidance_scale: GUIDANCE,
        seed: 3,
        ..SampleConfig::default()
    };
    let prompts: Vec<String> = PROMPTS[..3].iter().map(|&prompt| prompt.to_owned()).collect();
    let shown = generate(&pipeline, &prompts, &config).unwrap();
    let latents = by_hand(&sampler, noise(0), &[0, 1, 2]);
    let decoded = pipeline.vae.decode(&pipeline.vae.unscale(&latents).unwrap()).unwrap();
    for (a, b) in shown.iter().zip(images::from_tensor(&decoded).unwrap()) {
        let largest = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(largest <= Some(1), "{largest:?} of 255");
    }
}

#[test]
fn trajectories_do_not_depend_on_the_micro_batch_and_their_log_probabilities_come_back() {
    let world = World::new();
    let pipeline = Pipeline::load(&world.path("model"), None, &options(DType::F32)).unwrap();
    let network = guided(&pipeline, &pipeline.denoiser);
    let sampler = ddim(pipeline.denoiser.schedule(), 4, 1.0);
    let walk = |set| Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(set),
        images: &IMAGES,
        latent_shape: pipeline.denoiser.latent_shape().unwrap(),
    };
    let whole = walk(0).trajectory(3).unwrap();
    let parts = walk(0).trajectory(2).unwrap();
    assert_eq!((whole.steps.len(), whole.batch_size()), (4, 3));
    assert_eq!(whole.stochastic_steps(), [0, 1, 2, 3]);
    for (whole, parts) in whole.steps.iter().zip(&parts.steps) {
        assert_close(&whole.after, &parts.after, 1e-4);
        assert_close(
            whole.log_probs.as_ref().unwrap(),
            parts.log_probs.as_ref().unwrap(),
            1e-4,
        );
    }
    let other = walk(1).trajectory(3).unwrap();
    assert_ne!(f64s(&whole.steps[0].before), f64s(&other.steps[0].before));

    // Decisions of different steps and images in one batch.
    let decisions = whole.decisions(&[(2, 1), (0, 3), (1, 0)]).unwrap();
    let own = network.gather(&decisions.rows).unwrap();
    let again = trajectory::log_probs(&sampler, &own, &decisions).unwrap();
    assert_close(&again, &decisions.log_probs, 1e-5);
    assert!(whole.decisions(&[(3, 0)]).is_err());

    // Other prompts are another policy.
    let swapped = network.gather(&[1, 2, 0]).unwrap().gather(&decisions.rows).unwrap();
    let under = f64s(&trajectory::log_probs(&sampler, &swapped, &decisions).unwrap());
    assert!(under.iter().zip(f64s(&again)).any(|(a, b)| (a - b).abs() > 1e-6));

    let deterministic = ddim(pipeline.denoiser.schedule(), 4, 0.0);
    let refused = Walk {
        sampler: &deterministic,
        ..walk(0)
    };
    assert!(matches!(refused.trajectory(3), Err(Error::NoDensity { .. })));
}

#[test]
fn candidates_of_a_step_differ_and_the_first_is_the_walk_itself() {
    let world = World::new();
    let pipeline = Pipeline::load(&world.path("model"), None, &options(DType::F32)).unwrap();
    let network = guided(&pipeline, &pipeline.denoiser);
    let sampler = ddim(pipeline.denoiser.schedule(), 3, 1.0);
    let walk = Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(2),
        images: &IMAGES,
        latent_shape: pipeline.denoiser.latent_shape().unwrap(),
    };
    let mut state = walk.start().unwrap();
    walk.advance(&mut state, 1).unwrap();
    let transition = walk.transition(&mut state).unwrap();
    let candidates = walk.candidates(&transition, 1, 3).unwrap();
    let step = walk.step(&mut state).unwrap();
    assert_close(&candidates[0], &step.after, 0.0);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(f64s(&candidates[a]), f64s(&candidates[b]));
    }
}

/// Pairs of trajectories, as D3PO compares them: one start, other noise in every step.
#[test]
fn trajectories_from_one_start_part_and_a_branch_keeps_what_was_before() {
    let world = World::new();
    let pipeline = Pipeline::load(&world.path("model"), None, &options(DType::F32)).unwrap();
    let network = guided(&pipeline, &pipeline.denoiser);
    let sampler = ddim(pipeline.denoiser.schedule(), 3, 1.0);
    let walk = |set| Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(set),
        images: &IMAGES,
        latent_shape: pipeline.denoiser.latent_shape().unwrap(),
    };
    let start = walk(0).start().unwrap();
    let [first, second] = [0, 1].map(|set| walk(set).trajectory_from(&start, 2).unwrap());
    assert_close(&first.steps[0].before, &second.steps[0].before, 0.0);
    assert_ne!(f64s(&first.steps[0].after), f64s(&second.steps[0].after));
    assert_close(
        first.latents().unwrap(),
        walk(0).trajectory(2).unwrap().latents().unwrap(),
        0.0,
    );
    let branch = State::new(first.steps[0].after.clone(), 1);
    let rest = walk(0).trajectory_from(&branch, 2).unwrap();
    assert_eq!(rest.steps.iter().map(|step| step.step_idx).collect::<Vec<_>>(), [1, 2]);
    assert_close(rest.latents().unwrap(), first.latents().unwrap(), 0.0);
    let too_few = State::new(first.steps[0].after.narrow(0, 0, 2).unwrap(), 1);
    assert!(matches!(walk(0).trajectory_from(&too_few, 2), Err(Error::Shape { .. })));
}

/// A trained network in f64 with three steps, of which the last two carry a graph.
struct TailCase {
    pipeline: Pipeline,
    denoiser: Arc<Denoiser>,
    params: Params,
    sampler: Sampler,
}

impl TailCase {
    fn new(model: &Path) -> Self {
        let pipeline = Pipeline::load(model, None, &options(DType::F64)).unwrap();
        let directory = PipelineDir::open(model).unwrap();
        let (denoiser, params) = Denoiser::load(&directory, &options(DType::F64), Trainable::All, None).unwrap();
        let sampler = ddim(denoiser.schedule(), 3, 1.0);
        Self {
            pipeline,
            denoiser: Arc::new(denoiser),
            params,
            sampler,
        }
    }

    /// A smooth function of the latents after the tail and of the clean ones that it predicts.
    fn loss(&self, start: &State, checkpointing: Checkpointing) -> Tensor {
        let network = guided(&self.pipeline, self.denoiser.clone());
        let walk = Walk {
            sampler: &self.sampler,
            network: &network,
            noise: noise(1),
            images: &IMAGES,
            latent_shape: self.denoiser.latent_shape().unwrap(),
        };
        let tail = walk.tail(start.clone(), 3, checkpointing).unwrap().unwrap();
        let weight = random(tail.latents.dims(), 1);
        let linear = (&tail.latents * weight).unwrap().sum_all().unwrap();
        let square = tail.clean.sqr().unwrap().sum_all().unwrap();
        (linear + square).unwrap()
    }

    fn start(&self) -> State {
        let network = guided(&self.pipeline, &*self.denoiser);
        let walk = Walk {
            sampler: &self.sampler,
            network: &network,
            noise: noise(1),
            images: &IMAGES,
            latent_shape: self.denoiser.latent_shape().unwrap(),
        };
        let mut state = walk.start().unwrap();
        walk.advance(&mut state, 1).unwrap();
        State::new(state.latents, 1)
    }
}

fn random(shape: &[usize], tag: u64) -> Tensor {
    let len = shape.iter().product();
    let values = normal_vec(&mut generator(0, Stream::Init, 99, tag), len);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn gradients_of_a_tail_equal_differences_with_and_without_recomputation() {
    let world = World::new();
    let case = TailCase::new(&world.path("model"));
    let start = case.start();
    let [recomputed, kept] = [Checkpointing::On, Checkpointing::Off].map(|checkpointing| {
        let gradients = backward(&case.loss(&start, checkpointing), &case.params).unwrap();
        gradients.ensure_complete(&case.params).unwrap();
        gradients
    });
    let mut along = 0.0;
    let mut directions = Vec::new();
    for (tag, (name, var)) in case.params.iter().enumerate() {
        let (a, b) = (recomputed.get(name).unwrap(), kept.get(name).unwrap());
        let largest = f64s(b).iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        for (a, b) in f64s(a).iter().zip(f64s(b)) {
            // A bias before a normalization has no gradient but rounding.
            assert!((a - b).abs() <= 1e-9 * largest.max(1e-3), "{name}: {a} {b}");
        }
        let direction = random(var.dims(), tag as u64);
        along += values(&(a * &direction).unwrap()).iter().sum::<f64>();
        directions.push(direction);
    }
    let before: Vec<Tensor> = case
        .params
        .iter()
        .map(|(_, var)| var.as_detached_tensor().copy().unwrap())
        .collect();
    let epsilon = 1e-6;
    let [above, below] = [epsilon, -epsilon].map(|scale| {
        for (((_, var), before), direction) in case.params.iter().zip(&before).zip(&directions) {
            var.set(&(before + (direction * scale).unwrap()).unwrap()).unwrap();
        }
        values(&case.loss(&start, Checkpointing::Off))[0]
    });
    let difference = (above - below) / (2.0 * epsilon);
    assert!(
        (along - difference).abs() < 1e-5 * difference.abs(),
        "{along} {difference}"
    );
}

#[test]
fn a_tail_ends_where_the_walk_does() {
    let world = World::new();
    let case = TailCase::new(&world.path("model"));
    let network = guided(&case.pipeline, case.denoiser.clone());
    let walk = Walk {
        sampler: &case.sampler,
        network: &network,
        noise: noise(1),
        images: &IMAGES,
        latent_shape: case.denoiser.latent_shape().unwrap(),
    };
    let tail = walk.tail(case.start(), 3, Checkpointing::On).unwrap().unwrap();
    assert_close(&tail.latents, &walk.latents().unwrap(), 1e-12);
    assert!(walk.tail(case.start(), 1, Checkpointing::On).unwrap().is_none());
}

#[test]
fn scores_of_decisions_train_the_network_with_guidance() {
    let world = World::new();
    let case = TailCase::new(&world.path("model"));
    let network = guided(&case.pipeline, case.denoiser.clone());
    let walk = Walk {
        sampler: &case.sampler,
        network: &network,
        noise: noise(1),
        images: &IMAGES,
        latent_shape: case.denoiser.latent_shape().unwrap(),
    };
    let trajectory = walk.trajectory(3).unwrap();
    let decisions = trajectory.decisions(&[(0, 2), (1, 0)]).unwrap();
    assert!(!decisions.log_probs.track_op());
    let own = network.gather(&decisions.rows).unwrap();
    let log_probs = trajectory::log_probs(&case.sampler, &own, &decisions).unwrap();
    assert_close(&log_probs, &decisions.log_probs, 1e-12);
    let gradients = backward(&log_probs.sum_all().unwrap(), &case.params).unwrap();
    gradients.ensure_complete(&case.params).unwrap();
}

/// The committed model of the embedded world: a DDIM image goes back to noise and returns.
#[test]
fn inverted_latents_return_to_the_image() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-diffusion");
    let pipeline = Pipeline::load(&model, None, &options(DType::F32)).unwrap();
    let denoiser = &pipeline.denoiser;
    let conditioning = pipeline.text.encode(&["a red circle"]).unwrap();
    let network = Guided::unguided(denoiser, conditioning);
    let sampler = ddim(denoiser.schedule(), 25, 0.0);
    let walk = Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(0),
        images: &[0],
        latent_shape: denoiser.latent_shape().unwrap(),
    };
    let image = walk.latents().unwrap();
    let inversion = Inversion::new(denoiser.schedule(), 25).unwrap();
    let errors = [0, 2].map(|num_renoise| {
        let inverted = inversion
            .invert(&image, &[1000.0], num_renoise, |latents, timestep, _| {
                network.predict(latents, &[timestep])
            })
            .unwrap();
        let mut state = State::new(inverted.latents, 0);
        walk.advance(&mut state, 25).unwrap();
        let [difference, size] = [&(&state.latents - &image).unwrap(), &image]
            .map(|tensor| f64s(tensor).iter().map(|value| value * value).sum::<f64>().sqrt());
        difference / size
    });
    println!("relative error of plain and averaged inversion: {errors:?}");
    assert!(errors[0] < 0.2, "{errors:?}");
    assert!(errors[1] < 0.6 * errors[0], "{errors:?}");
}

/// A UNet whose scheduler says that it is a flow: trained, sampled and walked without a word about it in the recipe.
#[test]
fn a_flow_trains_and_samples_like_any_other_model() {
    let world = World::new();
    let scheduler = world.path("model").join("scheduler/scheduler_config.json");
    std::fs::write(
        &scheduler,
        r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#,
    )
    .unwrap();
    let recipe = "data.path = \"captions.jsonl\"\nobjective.sft = {}\n[method.sft.timesteps.density.logit_normal]\nmean = 0.5\n\
                  [train]\nsteps = 2\nmicro_batch = 2\nsample_every = 2\n[samples]\nsteps = 3\n";
    let outcome = world.run("flow", recipe);
    assert!(outcome.output.join("final").is_dir());
    let discrete_only = recipe
        .replace("density.logit_normal]\nmean = 0.5", "]")
        .replace("timesteps.]", "timesteps]\nmax = 500");
    let error = diptych_diffusion::prepare(
        &world.recipe("refused", &discrete_only),
        &mut diptych_train::Reporter::silent(),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("method.sft.timesteps.max"), "{error}");

    let pipeline = Pipeline::load(&world.path("model"), None, &options(DType::F32)).unwrap();
    let network = guided(&pipeline, &pipeline.denoiser);
    let config = SamplerConfig {
        eta: 0.7,
        ..SamplerConfig::new(SamplerKind::Auto, 4)
    };
    let sampler = config.prepare(pipeline.denoiser.schedule()).unwrap();
    let walk = Walk {
        sampler: &sampler,
        network: &network,
        noise: noise(0),
        images: &IMAGES,
        latent_shape: pipeline.denoiser.latent_shape().unwrap(),
    };
    let trajectory = walk.trajectory(2).unwrap();
    let decisions = trajectory.decisions(&[(0, 0), (2, 3), (1, 1)]).unwrap();
    let own = network.gather(&decisions.rows).unwrap();
    let again = trajectory::log_probs(&sampler, &own, &decisions).unwrap();
    assert_close(&again, &decisions.log_probs, 1e-4);
}
