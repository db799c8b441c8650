"""Golden values of noise schedules and samplers, from diffusers. Layouts: README.md beside this file.

Run:       python tests/golden/generate_schedulers.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, numpy 2.4.6
"""

import json
import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

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


def write(name, value):
    """One line a case: small, and a change of one case is one changed line."""
    cases = value.pop("cases")
    head = "".join(f"{json.dumps(key)}: {json.dumps(item)},\n" for key, item in value.items())
    body = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    OUT.mkdir(exist_ok=True)
    (OUT / name).write_text("{\n" + head + '"cases": [\n' + body + "\n]}\n")


def main():
    write("training.json", {"cases": [training_case(name, config) for name, config in TRAINING.items()]})
    initial = torch.tensor([0.8, -1.3, 0.25, 1.7, -0.6, -0.05], dtype=torch.float64)
    cases = [sampling_case(*arguments, initial) for arguments in sampling_configs()]
    write("sampling.json", {"initial": initial.tolist(), "cases": cases})


if __name__ == "__main__":
    main()
