"""Golden values of noise schedules and samplers, from diffusers. Layouts: README.md beside this file.

Run:       python tests/golden/generate_schedulers.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, numpy 2.4.6
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import (
    DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, PNDMScheduler,
)
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete, scheduling_lcm

torch.set_num_threads(1)
OUT = Path(__file__).resolve().parent / "schedulers"

SCALED_LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# The scheduler_config.json of Stable Diffusion 1.5.
PNDM_SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}
# The scheduler_config.json of Stable Diffusion 2.1 (v-prediction).
DDIM_SD21 = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}
# The scheduler_config.json of Stable Diffusion XL.
EULER_SDXL = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}

# The scheduler_config.json of Stable Diffusion 3, 3.5, Flux dev and Flux schnell.
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
FLOW_SD3 = {**FLOW, "_diffusers_version": "0.29.0.dev0", "shift": 3.0}
FLOW_SD35 = {**FLOW, **DYNAMIC, "shift": 3.0, "invert_sigmas": False, "shift_terminal": None, "use_dynamic_shifting": False}
FLUX_DEV = {**FLOW, **DYNAMIC, "_diffusers_version": "0.30.0.dev0", "shift": 3.0, "use_dynamic_shifting": True}
FLUX_SCHNELL = {**FLOW, **DYNAMIC, "_diffusers_version": "0.30.0.dev0", "shift": 1.0, "use_dynamic_shifting": False}

TRAINING = {
    "pndm_sd15": PNDM_SD15,
    "ddim_sd21_v_prediction": DDIM_SD21,
    "ddpm_linear": {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
                    "num_train_timesteps": 1000, "prediction_type": "epsilon", "clip_sample": True, "variance_type": "fixed_small"},
    "ddpm_squaredcos": {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001,
                        "beta_end": 0.02, "num_train_timesteps": 1000, "prediction_type": "v_prediction"},
    "ddpm_defaults": {"_class_name": "DDPMScheduler"},
    "ddpm_100_steps_sample": {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                              "beta_end": 0.012, "num_train_timesteps": 100, "prediction_type": "sample"},
    "ddim_trained_betas": {"_class_name": "DDIMScheduler", "num_train_timesteps": 8, "prediction_type": "epsilon",
                           "trained_betas": [0.01, 0.02, 0.04, 0.08, 0.1, 0.15, 0.2, 0.3]},
}
CLASSES = {cls.__name__: cls for cls in (DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler)}


def f32(value):
    """Shortest decimal that reads back as the same float32."""
    return float(str(torch.tensor(value, dtype=torch.float32).numpy()[()]))


def rounded(tensor):
    return [float(f"{value:.9g}") for value in tensor.double().flatten().tolist()]


def training_case(name, config):
    scheduler = CLASSES[config["_class_name"]].from_config(config)
    table = scheduler.alphas_cumprod
    last = len(table) - 1
    indices = sorted({0, 1, 2, 3, last - 1, last} | {round(last * k / 24) for k in range(25)})
    generator = torch.Generator().manual_seed(11)
    timesteps = torch.tensor([0, last // 4, last // 2, last])
    sample = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    # add_noise and get_velocity of the DDPM class: PNDM has no get_velocity, and the formulas are the same.
    full = {key: value for key, value in config.items() if key != "_class_name"}
    forward = DDPMScheduler.from_config(full)
    assert torch.equal(forward.alphas_cumprod, table)
    noisy = forward.add_noise(sample, noise, timesteps)
    velocity = forward.get_velocity(sample, noise, timesteps)
    target = {"epsilon": noise, "v_prediction": velocity, "sample": sample}[config.get("prediction_type", "epsilon")]
    return {
        "name": name, "config": config, "num_train_timesteps": len(table),
        "indices": indices, "alphas_cumprod": [f32(table[i].item()) for i in indices],
        "alphas_cumprod_sum": table.double().sum().item(),
        "timesteps": timesteps.tolist(),
        "sample": [rounded(row) for row in sample], "noise": [rounded(row) for row in noise],
        "noisy": [rounded(row) for row in noisy], "velocity": [rounded(row) for row in velocity],
        "target": [rounded(row) for row in target],
    }


def flow_training_case(name, config):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    generator = torch.Generator().manual_seed(13)
    timesteps = scheduler.timesteps[torch.tensor([0, 250, 700, 999])]
    sample = torch.randn(4, 4, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 4, 1, 1, generator=generator, dtype=torch.float64)
    noisy = torch.cat([scheduler.scale_noise(sample[i:i + 1], timesteps[i:i + 1], noise[i:i + 1]) for i in range(4)])
    return {
        "name": name, "config": config, "timesteps": [f32(t.item()) for t in timesteps],
        "sample": [rounded(row) for row in sample], "noise": [rounded(row) for row in noise],
        "noisy": [rounded(row) for row in noisy], "target": [rounded(row) for row in noise - sample],
    }


def output(x, t):
    """What stands for the network."""
    i = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return 0.1 * x + 0.5 * torch.sin(0.7 * i + float(t) / 250.0)


def sampling_case(name, sampler, config, num_steps, initial):
    cls = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}[sampler]
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(num_steps)
    init_noise_sigma = float(scheduler.init_noise_sigma)
    x = initial * init_noise_sigma
    trajectory = []
    for t in scheduler.timesteps:
        prediction = output(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x).prev_sample.double()
        trajectory.append(rounded(x))
    case = {
        "name": name, "sampler": sampler, "config": config, "num_inference_steps": num_steps,
        "timesteps": [f32(t.item()) if sampler == "euler" else int(t) for t in scheduler.timesteps],
        "init_noise_sigma": init_noise_sigma, "trajectory": trajectory,
    }
    if sampler == "euler":
        case["sigmas"] = [f32(s.item()) for s in scheduler.sigmas]
    assert all(math.isfinite(value) for row in trajectory for value in row)
    return case


def sampling_configs():
    """(name, sampler, config, steps): the published configs as they are, then one key at a time."""
    published = {"pndm_sd15": PNDM_SD15, "ddim_sd21": DDIM_SD21, "euler_sdxl": EULER_SDXL}
    for sampler in ("ddim", "euler"):
        for name, config in published.items():
            yield f"{sampler}_from_{name}", sampler, config, 20
        for spacing in ("leading", "trailing", "linspace"):
            for offset in (0, 1):
                config = {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "clip_sample": False, "set_alpha_to_one": False,
                          "timestep_spacing": spacing, "steps_offset": offset, "prediction_type": "epsilon"}
                yield f"{sampler}_{spacing}_offset{offset}", sampler, config, 10
        for spacing in ("leading", "trailing"):
            config = {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "clip_sample": False, "set_alpha_to_one": False,
                      "timestep_spacing": spacing, "steps_offset": 0, "prediction_type": "v_prediction"}
            yield f"{sampler}_{spacing}_v_prediction", sampler, config, 20
    plain = {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "clip_sample": False, "set_alpha_to_one": True,
             "timestep_spacing": "leading", "steps_offset": 0, "prediction_type": "epsilon"}
    yield "ddim_alpha_to_one", "ddim", plain, 10
    yield "ddim_clip", "ddim", {**plain, "clip_sample": True}, 10
    yield "ddim_clip_range_half", "ddim", {**plain, "clip_sample": True, "clip_sample_range": 0.5}, 10
    yield "ddim_clip_v_prediction", "ddim", {**plain, "clip_sample": True, "prediction_type": "v_prediction"}, 10
    yield "ddim_sample_prediction", "ddim", {**plain, "prediction_type": "sample"}, 10
    yield "ddim_squaredcos", "ddim", {**plain, "beta_schedule": "squaredcos_cap_v2"}, 10
    yield "ddim_linear", "ddim", {**plain, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, 10
    yield "ddim_defaults", "ddim", {"_class_name": "DDIMScheduler"}, 10
    yield "euler_defaults", "euler", {"_class_name": "EulerDiscreteScheduler"}, 10
    yield "euler_squaredcos", "euler", {**plain, "beta_schedule": "squaredcos_cap_v2"}, 10


# The scheduler_config.json of LCM_Dreamshaper_v7.
LCM_DREAMSHAPER = {
    "_class_name": "LCMScheduler", "_diffusers_version": "0.22.0.dev0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000, "original_inference_steps": 50, "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 1,
    "thresholding": False, "timestep_scaling": 10.0, "timestep_spacing": "leading", "trained_betas": None,
}
SAMPLERS = {
    "ddpm": DDPMScheduler, "ddim": DDIMScheduler, "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm_solver_pp_2m": DPMSolverMultistepScheduler, "flow_euler": FlowMatchEulerDiscreteScheduler, "lcm": LCMScheduler,
}


def step_noise(shape, step):
    """What stands for the fresh noise of a step."""
    i = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    return 1.2 * torch.cos(1.3 * i + 2.1 * step)


def more_sampling_case(name, sampler, config, num_steps, initial, eta=0.0, image_tokens=None, spacing="table"):
    scheduler = SAMPLERS[sampler].from_config(config)
    if sampler == "flow_euler":
        # The pipelines' calculate_shift.
        get = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, **config}.get
        slope = (get("max_shift") - get("base_shift")) / (get("max_image_seq_len") - get("base_image_seq_len"))
        mu = image_tokens and slope * image_tokens + get("base_shift") - slope * get("base_image_seq_len")
        sigmas = [1.0 - i * (1.0 - 1.0 / num_steps) / (num_steps - 1) for i in range(num_steps)] if spacing == "unit" else None
        scheduler.set_timesteps(None if sigmas else num_steps, sigmas=sigmas, mu=mu)
    else:
        scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, "set_begin_index"):
        # Else the step is looked up by its timestep, and the second one taken where two steps round to the same.
        scheduler.set_begin_index(0)
    init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
    x = (initial * init_noise_sigma).reshape(1, -1, 1, 1)
    trajectory = []
    for step, t in enumerate(scheduler.timesteps):
        noise = step_noise(x.shape, step)
        for module in (scheduling_ddpm, scheduling_euler_ancestral_discrete, scheduling_lcm):
            module.randn_tensor = lambda *_, noise=noise, **__: noise
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        more = {"eta": eta, "variance_noise": noise if eta else None} if sampler == "ddim" else {}
        x = scheduler.step(output(scaled, t), t, x, **more).prev_sample.double()
        trajectory.append(rounded(x))
    assert all(math.isfinite(value) for row in trajectory for value in row)
    case = {
        "name": name, "sampler": sampler, "config": config, "num_inference_steps": num_steps,
        "timesteps": [f32(t.item()) for t in scheduler.timesteps], "init_noise_sigma": init_noise_sigma,
        "trajectory": trajectory,
    }
    if eta:
        case["eta"] = eta
    if sampler == "flow_euler":
        case |= {"image_tokens": image_tokens or 1, "spacing": spacing}
    return case


def more_sampling_configs():
    """(name, sampler, config, steps, further arguments)."""
    plain = {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "clip_sample": False, "set_alpha_to_one": False,
             "steps_offset": 1, "prediction_type": "epsilon"}
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        yield f"ddpm_{variance}", "ddpm", {**plain, "variance_type": variance}, 10, {}
    yield "ddpm_from_pndm_sd15", "ddpm", PNDM_SD15, 10, {}
    yield "ddpm_defaults", "ddpm", {"_class_name": "DDPMScheduler"}, 10, {}
    yield "ddpm_trailing_v_prediction", "ddpm", {**plain, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 7, {}
    yield "ddpm_linspace_sample", "ddpm", {**plain, "timestep_spacing": "linspace", "prediction_type": "sample"}, 6, {}
    yield "ddim_eta_1", "ddim", PNDM_SD15, 20, {"eta": 1.0}
    yield "ddim_eta_half_v_prediction", "ddim", DDIM_SD21, 10, {"eta": 0.5}
    yield "ddim_eta_defaults", "ddim", {"_class_name": "DDIMScheduler"}, 10, {"eta": 0.8}
    yield "ddim_eta_trailing_sample", "ddim", {**plain, "timestep_spacing": "trailing", "prediction_type": "sample"}, 7, {"eta": 1.0}
    yield "euler_ancestral_from_euler_sdxl", "euler_ancestral", EULER_SDXL, 10, {}
    yield "euler_ancestral_from_pndm_sd15", "euler_ancestral", PNDM_SD15, 10, {}
    # Not with zero terminal signal: float32 loses the lower level next to a sigma of 4096.
    yield "euler_ancestral_trailing_v_prediction", "euler_ancestral", {
        **plain, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 7, {}
    dpm = {"_class_name": "DPMSolverMultistepScheduler", **SCALED_LINEAR, "prediction_type": "epsilon"}
    yield "dpm_from_pndm_sd15", "dpm_solver_pp_2m", PNDM_SD15, 10, {}
    yield "dpm_many_steps", "dpm_solver_pp_2m", PNDM_SD15, 20, {}
    yield "dpm_from_euler_sdxl", "dpm_solver_pp_2m", EULER_SDXL, 10, {}
    yield "dpm_heun", "dpm_solver_pp_2m", {**dpm, "solver_type": "heun"}, 8, {}
    yield "dpm_order_1", "dpm_solver_pp_2m", {**dpm, "solver_order": 1, "timestep_spacing": "trailing"}, 8, {}
    yield "dpm_karras", "dpm_solver_pp_2m", {**dpm, "use_karras_sigmas": True}, 8, {}
    yield "dpm_karras_heun_v_squaredcos", "dpm_solver_pp_2m", {
        **dpm, "use_karras_sigmas": True, "solver_type": "heun", "prediction_type": "v_prediction",
        "beta_schedule": "squaredcos_cap_v2"}, 8, {}
    yield "dpm_sigma_min_keeps_order", "dpm_solver_pp_2m", {
        **dpm, "final_sigmas_type": "sigma_min", "lower_order_final": False, "timestep_spacing": "leading", "steps_offset": 1}, 8, {}
    yield "dpm_sigma_min_lowers_few", "dpm_solver_pp_2m", {**dpm, "final_sigmas_type": "sigma_min"}, 8, {}
    yield "dpm_sigma_min_many", "dpm_solver_pp_2m", {**dpm, "final_sigmas_type": "sigma_min"}, 16, {}
    yield "dpm_sigma_min_euler_at_final", "dpm_solver_pp_2m", {
        **dpm, "final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True}, 8, {}
    yield "dpm_sample", "dpm_solver_pp_2m", {**dpm, "prediction_type": "sample", "timestep_spacing": "trailing"}, 7, {}
    yield "lcm_dreamshaper_4", "lcm", LCM_DREAMSHAPER, 4, {}
    yield "lcm_dreamshaper_7", "lcm", LCM_DREAMSHAPER, 7, {}
    yield "lcm_defaults", "lcm", {"_class_name": "LCMScheduler"}, 3, {}
    yield "lcm_scaling_v_clip", "lcm", {**LCM_DREAMSHAPER, "original_inference_steps": 30, "timestep_scaling": 0.1,
                                        "prediction_type": "v_prediction", "clip_sample": True}, 8, {}
    yield "flow_sd3", "flow_euler", FLOW_SD3, 10, {}
    yield "flow_sd35", "flow_euler", FLOW_SD35, 7, {}
    yield "flow_one_step", "flow_euler", FLUX_SCHNELL, 1, {}
    yield "flow_flux_schnell", "flow_euler", FLUX_SCHNELL, 4, {"spacing": "unit"}
    yield "flow_flux_dev", "flow_euler", FLUX_DEV, 10, {"spacing": "unit", "image_tokens": 4096}
    yield "flow_dynamic_table", "flow_euler", FLUX_DEV, 6, {"image_tokens": 1024}
    yield "flow_dynamic_linear", "flow_euler", {**FLUX_DEV, "time_shift_type": "linear"}, 6, {"image_tokens": 1024}


def ddim_distribution(config, num_steps, eta, step, prediction, latents):
    """DDPO's ddim_step_with_logprob: the next timestep is clamped at 0, so that the last level is that of timestep 0."""
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(num_steps)
    table = scheduler.alphas_cumprod.double()
    t = int(scheduler.timesteps[step])
    now, then = table[t], table[max(t - len(table) // num_steps, 0)]
    kind = config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        clean, noise = (latents - (1 - now).sqrt() * prediction) / now.sqrt(), prediction
    elif kind == "v_prediction":
        clean = now.sqrt() * latents - (1 - now).sqrt() * prediction
        noise = now.sqrt() * prediction + (1 - now).sqrt() * latents
    else:
        clean, noise = prediction, (latents - now.sqrt() * prediction) / (1 - now).sqrt()
    if config.get("clip_sample", True):
        clean = clean.clamp(-config.get("clip_sample_range", 1.0), config.get("clip_sample_range", 1.0))
    std = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
    return then.sqrt() * clean + (1 - then - std**2).sqrt() * noise, std, clean


def flow_distribution(config, num_steps, eta, step, prediction, latents):
    """The stochastic step of flow-GRPO, its noise level called eta."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double()
    now, then = sigmas[step], sigmas[step + 1]
    dt = then - now
    g = (now / (1 - (sigmas[1] if now == 1 else now))).sqrt() * eta
    mean = latents * (1 + g**2 / (2 * now) * dt) + prediction * (1 + g**2 * (1 - now) / (2 * now)) * dt
    return mean, g * (-dt).sqrt(), latents - now * prediction


def transition_case(name, sampler, config, num_steps, eta, steps):
    generator = torch.Generator().manual_seed(17)
    shape = (len(steps), 6, 1, 1)
    prediction = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    latents = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    distribution = {"ddim": ddim_distribution, "flow_euler": flow_distribution}[sampler]
    parts = [distribution(config, num_steps, eta, step, prediction[i], latents[i]) for i, step in enumerate(steps)]
    means, stds, cleans = (torch.stack(list(part)) for part in zip(*parts))
    deviation = stds.reshape(-1, 1, 1, 1)
    following = (means + deviation * step_noise(shape, 0)).detach()
    log_probs = -((following - means) ** 2) / (2 * deviation**2) - deviation.log() - math.log(math.sqrt(2 * math.pi))
    log_probs = log_probs.mean(dim=(1, 2, 3))
    weights = torch.linspace(-1.0, 2.0, len(steps), dtype=torch.float64)
    (weights * log_probs).sum().backward()
    rows = lambda tensor: [rounded(row) for row in tensor]
    return {
        "name": name, "sampler": sampler, "config": config, "num_inference_steps": num_steps, "eta": eta, "steps": steps,
        "prediction": rows(prediction), "latents": rows(latents), "next": rows(following), "mean": rows(means),
        "std": rounded(stds), "clean": rows(cleans), "log_probs": rounded(log_probs), "weights": rounded(weights),
        "grad_prediction": rows(prediction.grad), "grad_latents": rows(latents.grad),
    }


def transition_configs():
    yield "ddim_sd15", "ddim", PNDM_SD15, 20, 1.0, [0, 7, 19]
    yield "ddim_sd15_one_step", "ddim", PNDM_SD15, 50, 1.0, [3, 3]
    yield "ddim_sd21_v_prediction", "ddim", DDIM_SD21, 10, 0.5, [9, 1, 4]
    yield "ddim_alpha_to_one_clip", "ddim", {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "steps_offset": 1}, 10, 1.0, [2, 9]
    yield "ddim_sample", "ddim", {**PNDM_SD15, "prediction_type": "sample"}, 10, 1.0, [5, 8]
    yield "flow_sd3", "flow_euler", FLOW_SD3, 10, 0.7, [0, 4, 9]
    yield "flow_schnell", "flow_euler", FLUX_SCHNELL, 4, 1.2, [0, 3]


class FlowInverse:
    """Euler's method backwards on the sigmas of diffusers' flow scheduler."""

    def __init__(self, config, num_steps):
        forward = FlowMatchEulerDiscreteScheduler.from_config(config)
        forward.set_timesteps(num_steps)
        self.timesteps, self.sigmas = forward.timesteps.flip(0), forward.sigmas.double().flip(0)

    def step(self, prediction, t, x):
        place = self.timesteps.tolist().index(float(t))
        return SimpleNamespace(prev_sample=x + (self.sigmas[place + 1] - self.sigmas[place]) * prediction)


def inversion_case(name, config, num_steps, until, num_renoise, initial):
    if config["_class_name"] == FLOW["_class_name"]:
        scheduler = FlowInverse(config, num_steps)
    else:
        scheduler = DDIMInverseScheduler.from_config(config)
        scheduler.set_timesteps(num_steps)
    trajectories = []
    for bound in until:
        x, trajectory = initial, []
        for t in scheduler.timesteps:
            if t >= bound:
                break
            step = lambda prediction: scheduler.step(prediction, t, x).prev_sample.double()
            predictions = [output(x, t)]
            for _ in range(num_renoise):
                predictions.append(output(step(predictions[-1]), t))
            x = step(sum(predictions) / len(predictions))
            trajectory.append(rounded(x))
        trajectories.append(trajectory)
    return {
        "name": name, "config": config, "num_inference_steps": num_steps, "until": until, "num_renoise": num_renoise,
        "timesteps": [f32(t.item()) for t in scheduler.timesteps], "trajectories": trajectories,
    }


def inversion_configs():
    trailing = {**DDIM_SD21, "timestep_spacing": "trailing"}
    yield "plain_sd15", PNDM_SD15, 10, [1000], 0
    yield "smpo_sd15", PNDM_SD15, 5, [650, 1, 201, 1000], 1
    yield "renoise_v_prediction", trailing, 6, [1000, 400], 3
    yield "alpha_to_one_clip", {"_class_name": "DDIMScheduler", **SCALED_LINEAR}, 10, [700], 0
    yield "flow_sd3", FLOW_SD3, 5, [1001, 800], 1


def write(name, value):
    """One line a case: small, and a change of one case is one changed line."""
    cases = value.pop("cases")
    head = "".join(f"{json.dumps(key)}: {json.dumps(item)},\n" for key, item in value.items())
    body = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    OUT.mkdir(exist_ok=True)
    (OUT / name).write_text("{\n" + head + '"cases": [\n' + body + "\n]}\n")


def main():
    write("training.json", {"cases": [training_case(name, config) for name, config in TRAINING.items()]})
    flows = {"sd3": FLOW_SD3, "flux_dev": FLUX_DEV}
    write("flow_training.json", {"cases": [flow_training_case(name, config) for name, config in flows.items()]})
    initial = torch.tensor([0.8, -1.3, 0.25, 1.7, -0.6, -0.05], dtype=torch.float64)
    cases = [sampling_case(*arguments, initial) for arguments in sampling_configs()]
    write("sampling.json", {"initial": initial.tolist(), "cases": cases})
    cases = [more_sampling_case(*arguments, initial, **more) for *arguments, more in more_sampling_configs()]
    write("more_sampling.json", {"initial": initial.tolist(), "cases": cases})
    write("transitions.json", {"cases": [transition_case(*arguments) for arguments in transition_configs()]})
    cases = [inversion_case(*arguments, initial) for arguments in inversion_configs()]
    write("inversion.json", {"initial": initial.tolist(), "cases": cases})


if __name__ == "__main__":
    main()
