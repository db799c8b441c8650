"""Golden updates of the methods that sample what they learn from, on stored transitions. Layout: README.md beside this file.

A plain PyTorch loop on diffusers' UNet and autoencoder and peft's LoRA (the model and the adapter of `replay/`): guided
predictions, the stochastic DDIM transition with its log-density as the published code of DDPO, D3PO and SPO writes it, their losses,
`clip_grad_norm_`, `torch.optim.AdamW`; and rewards differentiated through the sampler's last steps and the autoencoder. It runs in
float64; the same loop in float32 must agree before anything is written.

Run:       python tests/golden/generate_online_replay.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, safetensors 0.8.0
"""

import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
OUT = HERE / "online"
STEPS, NUM_UPDATES, GUIDANCE, ETA = 10, 20, 3.0, 1.0
TAIL_STEPS = 5
ADAMW = {"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
                 set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading", prediction_type="epsilon")
VAE = dict(in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
           block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=8, scaling_factor=0.7)
ALPHAS = DDIMScheduler(**SCHEDULER).alphas_cumprod.double()


def timesteps(num_steps):
    return [int(t) for t in (torch.arange(num_steps) * (1000 // num_steps)).flip(0) + 1]


class Network:
    """Guided predictions of the policy and, with its adapter switched off, of the reference."""

    def __init__(self, dtype):
        base = UNet2DConditionModel.from_pretrained(HERE / "replay" / "model" / "unet").to(dtype)
        self.unet = PeftModel.from_pretrained(base, HERE / "replay" / "adapter", is_trainable=True).to(dtype)
        self.text = load_file(OUT / "embeddings.safetensors")["encoder_hidden_states"].to(dtype)
        self.parameters = {name: parameter for name, parameter in self.unet.named_parameters() if parameter.requires_grad}

    def predict(self, latents, t, prompts):
        t = torch.as_tensor(t).expand(len(latents)) if not torch.is_tensor(t) else t
        text = torch.cat([self.text[-1:].expand(len(latents), -1, -1), self.text[prompts]])
        unconditional, conditional = self.unet(torch.cat([latents, latents]), torch.cat([t, t]), text).sample.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    def reference(self, *arguments):
        with torch.no_grad(), self.unet.disable_adapter():
            return self.predict(*arguments)


def transition(prediction, t, latents, num_steps, eta):
    """Mean and deviation of the latents after a step, and the clean latents, as ddim_with_logprob has them."""
    before = torch.clamp(t - 1000 // num_steps, 0, 999)
    shape = lambda values: values.to(latents.dtype).reshape(-1, 1, 1, 1)
    a, b = shape(ALPHAS[t]), shape(ALPHAS[before])
    variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
    clean = (latents - (1 - a).sqrt() * prediction) / a.sqrt()
    return b.sqrt() * clean + (1 - b - variance).clamp(min=0).sqrt() * prediction, variance.sqrt(), clean


def log_density(after, mean, deviation):
    each = -((after.detach() - mean) ** 2) / (2 * deviation**2) - torch.log(deviation) - math.log(math.sqrt(2 * math.pi))
    return each.mean(dim=(1, 2, 3))


def make_inputs():
    torch.manual_seed(11)
    save_file({"encoder_hidden_states": torch.randn(3, 5, 16)}, OUT / "embeddings.safetensors")
    vae = AutoencoderKL(**VAE)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    vae.half().save_pretrained(OUT / "model" / "vae", safe_serialization=True)
    DDIMScheduler(**SCHEDULER).save_config(OUT / "model" / "scheduler")


@torch.no_grad()
def walk(network, prompts, latents, generator, sides):
    """A trajectory of every row; returns latents before, between and behind the steps."""
    seen = [latents]
    for t in timesteps(STEPS):
        mean, deviation, _ = transition(network.predict(latents, t, prompts), torch.tensor([t] * len(prompts)), latents, STEPS, ETA)
        latents = mean + deviation * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        seen.append(latents)
    return seen


def state(name, table, latents, rows):
    tensors = {"rollout.batch": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), "rollout.latents": latents.half(),
               f"rollout.{table}": torch.tensor(rows, dtype=torch.float64)}
    save_file(tensors, OUT / f"{name}.safetensors")


def make_transitions():
    network, generator = Network(torch.float64), torch.Generator().manual_seed(12)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    # Two trajectories a prompt from one initial noise: rows are prompt 0 twice, then prompt 1 twice.
    start = normal(2, 4, 8, 8).repeat_interleave(2, dim=0)
    seen = walk(network, [0, 0, 1, 1], start, generator, 2)
    place = lambda step, row: 4 * step + row
    rows = []
    for position, chosen in enumerate([1, 0]):
        for step in range(STEPS):
            sides = [2 * position + chosen, 2 * position + 1 - chosen]
            moves = [place(step + offset, side) for side in sides for offset in (0, 1)]
            rows.append([position, step, *moves, 0.75, 0.25])
    state("trajectory_pairs", "pairs", torch.cat(seen), rows)

    # Rewarded trajectories, one a prompt, sampled by a policy that is not quite this one.
    latents = torch.cat([seen[step][row : row + 1] for row in (0, 2) for step in range(STEPS + 1)]).half()
    rows = []
    with torch.no_grad():
        for position, advantage in enumerate([1.3, -0.7]):
            for step, t in enumerate(timesteps(STEPS)):
                at = position * (STEPS + 1) + step
                before, after = latents[at : at + 1].double(), latents[at + 1 : at + 2].double()
                mean, deviation, _ = transition(network.predict(before, t, [position]), torch.tensor([t]), before, STEPS, ETA)
                offset = 0.004 * normal(1).item()
                rows.append([position, step, at, at + 1, log_density(after, mean, deviation).item() + offset, advantage])
    state("policy_gradient", "actions", latents, rows)

    # Candidates of single steps from shared latents, and of two steps in a row.
    pool, rows = [], []
    for position, steps in enumerate([[1, 4, 9], [2, 6]]):
        for step in steps:
            for offset in range(2 if (position, step) == (0, 4) else 1):
                t = timesteps(STEPS)[step + offset]
                if offset == 0:
                    before = seen[step][2 * position : 2 * position + 1].expand(2, -1, -1, -1)
                    origin = [len(pool), len(pool)]
                    pool.append(before[:1])
                with torch.no_grad():
                    prediction = network.predict(before, t, [position] * 2)
                    mean, deviation, _ = transition(prediction, torch.tensor([t] * 2), before, STEPS, ETA)
                before = mean + deviation * normal(2, 4, 8, 8)
                ends = [len(pool), len(pool) + 1]
                pool += [before[:1], before[1:]]
                rows.append([position, step + offset, origin[0], ends[0], origin[1], ends[1], 21.0, 19.5])
                origin = ends
    state("step_aware", "pairs", torch.cat(pool), rows)
    save_file({"latents": normal(2, 4, 8, 8).half()}, OUT / "direct_reward.safetensors")


RUNS = [
    {"name": "trajectory_pairs", "objective": {"dpo": {"beta": 0.1}}, "clip_range": 0.1},
    {"name": "step_aware", "objective": {"dpo": {"beta": 10.0}}, "clip_range": 0.1},
    {"name": "policy_gradient", "clip_range": 0.01},
]


def pair_loss(network, run, data, dtype):
    latents, pairs = data["rollout.latents"].to(dtype), data["rollout.pairs"]
    prompts, steps = pairs[:, 0].long().tolist(), pairs[:, 1].long()
    t = torch.tensor(timesteps(STEPS))[steps]
    ratios = []
    for side in (2, 4):
        before, after = latents[pairs[:, side].long()], latents[pairs[:, side + 1].long()]
        policy, reference = (
            log_density(after, *transition(predict(before, t, prompts), t, before, STEPS, ETA)[:2])
            for predict in (network.predict, network.reference)
        )
        ratios.append(torch.clamp(torch.exp(policy - reference), 1 - run["clip_range"], 1 + run["clip_range"]))
    beta = run["objective"]["dpo"]["beta"]
    margins = beta * torch.log(ratios[0]) - beta * torch.log(ratios[1])
    clipped = torch.cat(ratios)
    share = ((clipped - 1).abs() > run["clip_range"] * 0.999999).double().mean().item()
    return -F.logsigmoid(margins).mean(), {"rewards/margins": margins.mean().item(), "clip_ratio": share}


def gradient_loss(network, run, data, dtype):
    latents, actions = data["rollout.latents"].to(dtype), data["rollout.actions"]
    prompts, steps = actions[:, 0].long().tolist(), actions[:, 1].long()
    t = torch.tensor(timesteps(STEPS))[steps]
    before, after = latents[actions[:, 2].long()], latents[actions[:, 3].long()]
    density = log_density(after, *transition(network.predict(before, t, prompts), t, before, STEPS, ETA)[:2])
    ratio, advantages = torch.exp(density - actions[:, 4].to(dtype)), actions[:, 5].to(dtype)
    unclipped = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1 - run["clip_range"], 1 + run["clip_range"])
    share = ((ratio - 1).abs() > run["clip_range"]).double().mean().item()
    kl = 0.5 * ((density - actions[:, 4].to(dtype)) ** 2).mean().item()
    return torch.maximum(unclipped, clipped).mean(), {"clip_ratio": share, "kl": kl}


def summary(parameters, gradients):
    """Of every gradient its length and its product with cosines: enough to tell any other gradient from it."""
    named = {}
    for (name, _), gradient in zip(parameters.items(), gradients):
        flat = gradient.flatten().double()
        cosines = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        short = name.removeprefix("base_model.model.").replace(".default.", ".")
        named[short] = [flat.norm().item(), flat.dot(cosines).item()]
    return named


def train(run, dtype):
    network, data = Network(dtype), load_file(OUT / f"{run['name']}.safetensors")
    parameters = list(network.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"])
    records, first = [], None
    for step in range(NUM_UPDATES):
        loss, metrics = (gradient_loss if run["name"] == "policy_gradient" else pair_loss)(network, run, data, dtype)
        optimizer.zero_grad()
        loss.backward()
        if first is None:
            first = summary(network.parameters, [parameter.grad for parameter in parameters])
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, ADAMW["max_grad_norm"])
        optimizer.step()
        records.append({"step": step + 1, "loss": loss.item(), "grad_norm": grad_norm.item()} | metrics)
    return records, first


REWARDS = [
    {"name": "last_two", "first": 3, "end": 5, "what": "finished", "loss": {"maximize": {"weight": 1.0}}, "regularization": 0.0},
    {"name": "all", "first": 0, "end": 5, "what": "finished", "loss": {"distance": {"target": 10.0, "weight": 0.01}}, "regularization": 0.0},
    {"name": "single", "first": 2, "end": 3, "what": "promised", "loss": {"hinge": {"target": 2.0, "weight": 0.5}}, "regularization": 0.0},
    {"name": "regularized", "first": 2, "end": 5, "what": "finished", "loss": {"maximize": {"weight": 1.0}}, "regularization": 0.3},
]


def tint(pixels):
    """A reward with a gradient: how red the image is and how little it shines."""
    weights = torch.tensor([1.0, -0.5, 0.25], dtype=pixels.dtype).reshape(1, 3, 1, 1)
    return (weights * pixels).mean(dim=(1, 2, 3)) - 0.1 * (pixels**2).mean(dim=(1, 2, 3))


def rewarded(case, dtype):
    network = Network(dtype)
    vae = AutoencoderKL.from_pretrained(OUT / "model" / "vae").to(dtype).requires_grad_(False)
    start = load_file(OUT / "direct_reward.safetensors")["latents"].to(dtype)

    def tail(predict):
        latents = start
        for t in timesteps(TAIL_STEPS)[case["first"] : case["end"]]:
            latents, _, clean = transition(predict(latents, t, [0, 1]), torch.tensor([t] * 2), latents, TAIL_STEPS, 0.0)
        return latents if case["what"] == "finished" else clean

    latents = tail(network.predict)
    rewards = tint(vae.decode(latents / VAE["scaling_factor"]).sample.clamp(-1, 1))
    (kind, p), = case["loss"].items()
    losses = {"maximize": lambda: -p["weight"] * rewards, "distance": lambda: p["weight"] * (rewards - p["target"]).abs(),
              "hinge": lambda: p["weight"] * F.relu(p["target"] - rewards)}[kind]()
    penalties = ((latents - tail(network.reference)) ** 2).mean(dim=(1, 2, 3))
    losses = losses + case["regularization"] * penalties
    gradients = torch.autograd.grad(losses.mean(), list(network.parameters.values()))
    return {"rewards": rewards.tolist(), "losses": losses.tolist(), "gradients": summary(network.parameters, gradients)}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "model").mkdir(parents=True)
    make_inputs()
    make_transitions()
    runs, rewards = [], []
    for run in RUNS:
        (records, first), (single, _) = (train(run, dtype) for dtype in (torch.float64, torch.float32))
        for key in ("loss", "grad_norm"):
            worst = max(abs(a[key] / b[key] - 1) for a, b in zip(single, records))
            values = [record[key] for record in records]
            print(f"{run['name']} {key}: {min(values):.4g} to {max(values):.4g}; float32 differs by {worst:.1e} relative")
            assert worst < 4e-4
        shares = [record["clip_ratio"] for record in records]
        print(f"{run['name']} clipped: {min(shares):.2f} to {max(shares):.2f}")
        assert 0 < max(shares) and min(shares) < 1
        runs.append(run | {"optimizer": {"adamw": ADAMW}, "gradients": first, "records": records})
    for case in REWARDS:
        exact, single = (rewarded(case, dtype) for dtype in (torch.float64, torch.float32))
        worst = max(abs(a / b - 1) for a, b in zip(single["losses"], exact["losses"]))
        print(f"{case['name']}: losses {exact['losses']}, float32 differs by {worst:.1e} relative")
        assert worst < 1e-4
        rewards.append(case | exact)
    lines = [json.dumps(rounded(entry)) for entry in runs], [json.dumps(rounded(entry)) for entry in rewards]
    text = '{"runs": [\n' + ",\n".join(lines[0]) + '\n], "rewards": [\n' + ",\n".join(lines[1]) + "\n]}\n"
    (OUT / "expected.json").write_text(text)


if __name__ == "__main__":
    main()
