"""Golden values of steps that a reward and a reference judge together. Layout: README.md beside this file.

Three things. Divergences of two normal distributions with one deviation, by integrating their densities, with slopes from differences.
The loss of ROCM on a consistency model's sampler (and on DDIM with noise): rewards through all steps, less a divergence of every
step with noise from the reference's, on the networks of `replay/` and `online/`; the noise of the steps is stored. Latents that are pushed along
the gradient of the reward of what they promise, as TailorPO-G does. float64; the same in float32 must agree before anything is written.

Run:       python tests/golden/generate_reward_steps.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, safetensors 0.8.0
"""

import json
import math

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

import generate_online_replay as online

KINDS = ["reverse_kl", "forward_kl", "js", {"alpha": 0.5}, {"alpha": 0.2}, {"alpha": 0.9}]
SHIFTS = [-4.0, -1.7, -0.3, 0.01, 0.2, 0.9, 1.5, 2.6, 5.0, 9.0]
CASES = [
    {"name": "lcm_kl", "sampler": "lcm", "steps": 4, "first": 0, "beta": 0.02, "kind": "reverse_kl"},
    {"name": "lcm_js", "sampler": "lcm", "steps": 4, "first": 1, "beta": 2.0, "kind": "js"},
    {"name": "ddim_alpha", "sampler": "ddim", "steps": 5, "first": 2, "beta": 0.5, "kind": {"alpha": 0.3}},
]
PUSHES = [
    {"name": "gradient", "step": 3, "guidance": {"gradient": {"strength": 50.0}}},
    {"name": "normalized", "step": 7, "guidance": {"normalized": {"strength": 0.5}}},
    {"name": "finished", "step": 9, "guidance": {"gradient": {"strength": 20.0}}},
]


def density(kind, p, q):
    """q f(p / q), with f of each divergence."""
    ratio = p / q
    if kind == "reverse_kl":
        return p * np.log(ratio)
    if kind == "forward_kl":
        return -q * np.log(ratio)
    if kind == "js":
        return 0.5 * p * np.log(2 * p / (p + q)) + 0.5 * q * np.log(2 * q / (p + q))
    alpha = kind["alpha"]
    return (alpha * p + (1 - alpha) * q - p**alpha * q ** (1 - alpha)) / (alpha * (1 - alpha))


def divergence(kind, shift):
    x = np.linspace(-16 + min(shift, 0), 16 + max(shift, 0), 200001)
    normal = lambda x: np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return np.trapezoid(density(kind, normal(x - shift), normal(x)), x)


def divergences():
    step = 1e-3
    found = []
    for kind in KINDS:
        values = [divergence(kind, shift) for shift in SHIFTS]
        # Differences of fifth order.
        slope = lambda s: (8 * (divergence(kind, s + step) - divergence(kind, s - step)) - divergence(kind, s + 2 * step) + divergence(kind, s - 2 * step)) / (12 * step)
        found.append({"kind": kind, "shifts": SHIFTS, "values": values, "slopes": [slope(s) for s in SHIFTS]})
    return found


def of_components(kind, shifts):
    """The same of tensors: closed forms but for Jensen-Shannon's, which is integrated on a fine grid."""
    if kind in ("reverse_kl", "forward_kl"):
        return shifts**2 / 2
    if kind != "js":
        product = kind["alpha"] * (1 - kind["alpha"])
        return (1 - torch.exp(-product * shifts**2 / 2)) / product
    x = torch.linspace(-12, 12, 1201, dtype=shifts.dtype)
    s = shifts.unsqueeze(-1)
    log_p, log_q = -0.5 * (x - s / 2) ** 2, -0.5 * (x + s / 2) ** 2
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    each = 0.5 * log_p.exp() * (log_p - middle) + 0.5 * log_q.exp() * (log_q - middle)
    return torch.trapezoid(each, x) / math.sqrt(2 * math.pi)


def lcm_step(prediction, t, before, latents):
    """Mean and deviation of the latents after a step; `before` is the timestep that comes next, if any."""
    a = online.ALPHAS[t].to(latents.dtype)
    scaled = t * 10.0
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
    clean = out * (latents - (1 - a).sqrt() * prediction) / a.sqrt() + skip * latents
    if before is None:
        return clean, None
    b = online.ALPHAS[before].to(latents.dtype)
    return b.sqrt() * clean, (1 - b).sqrt()


def rewarded(case, noise, dtype):
    network = online.Network(dtype)
    vae = AutoencoderKL.from_pretrained(online.OUT / "model" / "vae").to(dtype).requires_grad_(False)
    latents = load_file(online.OUT / "direct_reward.safetensors")["latents"].to(dtype)
    steps = case["steps"]
    if case["sampler"] == "lcm":
        visited = [(50 - math.floor(i * 50 / steps)) * 20 - 1 for i in range(steps)]
    else:
        visited = online.timesteps(steps)

    def distribution(predict, place, latents):
        t = visited[place]
        prediction = predict(latents, t, [0, 1])
        if case["sampler"] == "lcm":
            return lcm_step(prediction, t, visited[place + 1] if place + 1 < steps else None, latents)
        mean, deviation, _ = online.transition(prediction, torch.tensor([t] * 2), latents, steps, 1.0)
        return mean, deviation

    def reference(latents, t, prompts):
        with network.unet.disable_adapter():
            return network.predict(latents, t, prompts)

    total = torch.zeros(2, dtype=dtype)
    for place in range(case["first"], steps):
        mean, deviation = distribution(network.predict, place, latents)
        if deviation is not None:
            other, _ = distribution(reference, place, latents)
            total = total + of_components(case["kind"], (mean - other) / deviation).mean(dim=(1, 2, 3))
            latents = mean + deviation * noise[place].to(dtype)
        else:
            latents = mean
    rewards = online.tint(vae.decode(latents / online.VAE["scaling_factor"]).sample.clamp(-1, 1))
    losses = -rewards + case["beta"] * total
    gradients = torch.autograd.grad(losses.mean(), list(network.parameters.values()))
    return {"rewards": rewards.tolist(), "divergences": total.tolist(), "losses": losses.tolist(),
            "gradients": online.summary(network.parameters, gradients)}


def pushed(case, dtype):
    network = online.Network(dtype)
    vae = AutoencoderKL.from_pretrained(online.OUT / "model" / "vae").to(dtype).requires_grad_(False)
    latents = load_file(online.OUT / "direct_reward.safetensors")["latents"].to(dtype).requires_grad_(True)
    visited, after = online.timesteps(online.STEPS), case["step"] + 1
    clean = latents
    if after < online.STEPS:
        t = visited[after]
        _, _, clean = online.transition(network.predict(latents, t, [0, 1]), torch.tensor([t] * 2), latents, online.STEPS, online.ETA)
    rewards = online.tint(vae.decode(clean / online.VAE["scaling_factor"]).sample.clamp(-1, 1))
    (gradient,) = torch.autograd.grad(rewards.sum(), [latents])
    with torch.no_grad():
        t = torch.tensor([visited[case["step"]]] * 2)
        _, deviation, _ = online.transition(torch.zeros_like(latents), t, latents, online.STEPS, online.ETA)
        deviation = deviation.flatten()[0]
        (kind, section), = case["guidance"].items()
        length = (gradient**2).mean(dim=(1, 2, 3)).sqrt()
        factor = section["strength"] * (torch.ones(2, dtype=dtype) if kind == "gradient" else deviation / length)
        move = factor.reshape(-1, 1, 1, 1) * gradient
    cosines = torch.cos(torch.arange(256, dtype=torch.float64))
    moves = move.flatten(1).double()
    return {"moves": ((move**2).mean(dim=(1, 2, 3)).sqrt() / deviation).tolist(), "lengths": moves.norm(dim=1).tolist(),
            "products": (moves @ cosines).tolist()}


def main():
    generator = torch.Generator().manual_seed(21)
    noise = torch.randn(5, 2, 4, 8, 8, generator=generator).half()
    save_file({"noise": noise}, online.HERE / "reward_steps.safetensors")
    cases, pushes = [], []
    for case in CASES:
        exact, single = (rewarded(case, noise, dtype) for dtype in (torch.float64, torch.float32))
        worst = max(abs(a - b) / abs(b) for key in ("losses", "divergences") for a, b in zip(single[key], exact[key]))
        print(f"{case['name']}: rewards {exact['rewards']}, divergences {exact['divergences']}; float32 differs by {worst:.1e} relative")
        assert worst < 2e-4
        cases.append(case | exact)
    for case in PUSHES:
        exact, single = (pushed(case, dtype) for dtype in (torch.float64, torch.float32))
        worst = max(abs(a - b) / abs(b) for a, b in zip(single["lengths"], exact["lengths"]))
        print(f"{case['name']}: moves {exact['moves']}; float32 differs by {worst:.1e} relative")
        assert worst < 1e-4
        pushes.append(case | exact)
    entries = lambda items: ",\n".join(json.dumps(online.rounded(item)) for item in items)
    parts = {"divergences": divergences(), "cases": cases, "pushes": pushes}
    text = ",\n".join(f'"{name}": [\n{entries(items)}\n]' for name, items in parts.items())
    (online.HERE / "reward_steps.json").write_text("{" + text + "}\n")


if __name__ == "__main__":
    main()
