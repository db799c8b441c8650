"""Golden training runs: LoRA preference alignment of a tiny denoiser in a plain PyTorch loop. Layout: README.md beside this file.

The loop is nothing but PyTorch on top of diffusers' UNet and peft's LoRA: shared timestep and noise in a pair, per-image mean
squared error, the loss as published code writes it, `clip_grad_norm_`, `torch.optim.AdamW`. It runs in float64, so that the
expected numbers carry no rounding of their own; the same loop in float32 must agree before anything is written.

Run:       python tests/golden/generate_replay.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, safetensors 0.8.0
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
OUT = Path(__file__).resolve().parent / "replay"
STEPS, PAIRS = 20, 2
UNET = dict(
    sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16, attention_head_dim=2,
)
LORA = dict(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian")
ADAMW = {"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}
PICK_SCORE = {"min_score": 0.11543526500463486, "max_score": 0.28201571106910706}
# What a recipe says; `published` is what the published code is given for it, where that differs.
RUNS = [
    {"name": "dpo", "objective": {"dpo": {"beta": 500.0}}},
    {"name": "mapo", "objective": {"mapo": {}}},
    {"name": "dpo_v_prediction", "prediction_type": "v_prediction", "objective": {"dpo": {"beta": 1000.0, "label_smoothing": 0.1}}},
    {"name": "dpo_research_script", "objective": {"dpo": {"beta": 800.0}}, "published": {"beta_dpo": 400.0}},
    {"name": "dpo_moving_reference", "objective": {"dpo": {"beta": 500.0}}, "reference": {"ema": {"mixup_alpha": 0.6, "sync_steps": 4}}},
    {"name": "smpo", "objective": {"smpo": {"beta": 500.0, **PICK_SCORE}}},
    {"name": "kto", "method": {"unpaired": {}}, "objective": {"kto": {"beta": 1000.0, "undesirable_weight": 0.5}}, "published": {"beta_dpo": 500.0}},
    {"name": "kto_mismatched", "method": {"unpaired": {"baseline": "mismatched"}}, "objective": {"kto": {"beta": 1000.0, "utility": "loss_averse"}},
     "published": {"beta_dpo": 500.0}},
    {"name": "rank_dpo", "method": {"ranked": {"noise": "shared", "scores": "given"}}, "objective": {"rank_dpo": {"beta": 2000.0}}},
]


def make_model():
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET)
    with torch.no_grad():
        for parameter in unet.parameters():
            # Nothing stays at 0 or 1: a bias or a norm's weight that is left out must show.
            parameter.add_(0.05 * torch.randn_like(parameter))
    unet.save_pretrained(OUT / "model" / "unet", safe_serialization=True)
    for directory, prediction_type in [("model/scheduler", "epsilon"), ("scheduler_v_prediction", "v_prediction")]:
        scheduler(prediction_type).save_config(OUT / directory)
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"]}
    (OUT / "model" / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def scheduler(prediction_type):
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                         clip_sample=False, prediction_type=prediction_type)


def make_adapter():
    torch.manual_seed(2)
    policy = get_peft_model(UNet2DConditionModel.from_pretrained(OUT / "model" / "unet"), LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    policy.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink()
    # peft writes where the base model was on its maker's disk, and keys of its own version.
    path = OUT / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    keep = ["peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "use_rslora", "use_dora", "fan_in_fan_out",
            "init_lora_weights", "modules_to_save", "rank_pattern", "alpha_pattern", "inference_mode"]
    config = {"base_model_name_or_path": None, **{key: config[key] for key in keep}}
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_data():
    generator = torch.Generator().manual_seed(3)
    rows, half = STEPS * PAIRS, torch.float16
    normal = lambda *shape: torch.randn(rows, *shape, generator=generator)
    chosen = normal(4, 8, 8)
    tensors = {
        "latents_chosen": chosen.to(half),
        "latents_rejected": (0.6 * chosen + 0.8 * normal(4, 8, 8)).to(half),
        "noise": normal(4, 8, 8).to(half),
        "encoder_hidden_states": normal(5, 16).to(half),
        "timesteps": torch.randint(0, 1000, (rows,), generator=generator),
    }
    # Cosines as PickScore gives them; in every fourth pair the judge prefers the rejected image.
    spread = 0.04 * torch.rand(rows, generator=generator)
    tensors["rejected_score"] = 0.2 + 0.02 * torch.randn(rows, generator=generator)
    tensors["chosen_score"] = tensors["rejected_score"] + torch.where(torch.arange(rows) % 4 == 1, -spread, spread)
    (OUT / "data").mkdir()
    save_file(tensors, OUT / "data" / "pairs-00000.safetensors")


def link(x):
    return x / torch.expm1(x)


def smpo_certainty(p, scores):
    """JaydenLyh/SmPO: softmax of min-max normalized scores, (2 p - 1) times 10; here for each pair."""
    normal = (scores - p["min_score"]) / (p["max_score"] - p["min_score"])
    return (2 * torch.softmax(normal, 0)[0] - 1) * 10


def losses_and_margins(run, mse, reference_mse, scores):
    """Published formulas in their own variable, the per-image mean squared error; chosen images first."""
    (name, p), = run["objective"].items()
    chosen, rejected = mse.chunk(2)
    if name == "mapo":
        # mapo-t2i/mapo utils.py: mw - 0.1 logsigmoid(1000 (g(0.5 mw) - g(0.5 ml)))
        inside = 1000.0 * (link(0.5 * chosen) - link(0.5 * rejected))
        return chosen - 0.1 * F.logsigmoid(inside), inside
    reference_chosen, reference_rejected = reference_mse.chunk(2)
    difference = (chosen - rejected) - (reference_chosen - reference_rejected)
    if run["name"] == "dpo_research_script":
        # diffusers examples/research_projects/diffusion_dpo/train_diffusion_dpo.py: no one half
        inside = run["published"]["beta_dpo"] * -difference
        return -F.logsigmoid(inside), inside
    inside = -0.5 * p["beta"] * difference
    if name == "dpo":
        # SalesforceAIResearch/DiffusionDPO train.py: -logsigmoid(-0.5 beta ((mw - ml) - (rw - rl)))
        smoothing = p.get("label_smoothing", 0.0)
        return -(1 - smoothing) * F.logsigmoid(inside) - smoothing * F.logsigmoid(-inside), inside
    if name == "smpo":
        return -F.logsigmoid(smpo_certainty(p, scores) * inside), inside
    if name == "rank_dpo":
        # arXiv:2410.18013, two images a list, ranked by their scores: the better one is the first
        better = torch.where(scores[0] > scores[1], 1.0, -1.0)
        gain = (2 ** scores[0] - 2 ** scores[1]).abs() * (1 / np.log(2) - 1 / np.log(3))
        return gain * -F.logsigmoid(better * inside), better * inside
    raise ValueError(name)


def kto(run, mse, reference_mse, mismatched, labels):
    """jacklishufan/diffusion-kto train_kto_sd_v1.5.py with bce_offset none (the mean) or original (mismatched prompts, clamped as in KTO)."""
    (_, p), = run["objective"].items()
    g = reference_mse - mse
    kl = (g if mismatched is None else mismatched).mean().clamp(min=0).detach()
    sign = 2.0 * labels - 1.0
    scaled = sign * run["published"]["beta_dpo"] * (g - kl)
    h = F.logsigmoid(scaled) if p.get("utility") == "loss_averse" else torch.sigmoid(scaled)
    weight = torch.where(labels, 1.0, p.get("undesirable_weight", 1.0))
    rewards = run["published"]["beta_dpo"] * g.detach()
    return weight * (1 - h), rewards[labels].mean() - rewards[~labels].mean()


def shifted_prompts(prompts):
    """For each image the one before it, the last before the first, that has another prompt."""
    count = len(prompts)
    return [next(at - step for step in range(1, count + 1) if prompts[at - step] != prompts[at]) % count for at in range(count)]


def reference_errors(run, policy, moving, errors):
    """Without the adapter, or with the one that follows the policy."""
    if moving is None:
        with torch.no_grad(), policy.disable_adapter():
            return errors()
    own = {name: parameter.detach().clone() for name, parameter in policy.named_parameters() if parameter.requires_grad}
    lend(policy, moving)
    with torch.no_grad():
        found = errors()
    lend(policy, own)
    return found


def lend(policy, values):
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])


def follow(moving, policy, alpha):
    """TR-DPO, arXiv:2404.09656, Eq. 7."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            moving[name] = alpha * parameter.detach() + (1 - alpha) * moving[name]


def train(run, dtype):
    prediction_type = run.get("prediction_type", "epsilon")
    schedule = scheduler(prediction_type)
    base = UNet2DConditionModel.from_pretrained(OUT / "model" / "unet").to(dtype)
    policy = PeftModel.from_pretrained(base, OUT / "adapter", is_trainable=True).to(dtype)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"],
                                  weight_decay=ADAMW["weight_decay"])
    data = load_file(OUT / "data" / "pairs-00000.safetensors")
    ema = run.get("reference", {}).get("ema")
    moving = {name: parameter.detach().clone() for name, parameter in policy.named_parameters() if parameter.requires_grad} if ema else None
    records = []
    for step in range(STEPS):
        rows = slice(step * PAIRS, (step + 1) * PAIRS)
        twice = lambda key: data[key][rows].repeat(2, *[1] * (data[key].dim() - 1))
        latents = torch.cat([data["latents_chosen"][rows], data["latents_rejected"][rows]]).to(dtype)
        noise, timesteps = twice("noise").to(dtype), twice("timesteps")
        prompts = twice("encoder_hidden_states").to(dtype)
        noisy = schedule.add_noise(latents, noise, timesteps)
        target = schedule.get_velocity(latents, noise, timesteps) if prediction_type == "v_prediction" else noise
        errors = lambda prompts=prompts: (policy(noisy, timesteps, prompts).sample - target).pow(2).mean(dim=(1, 2, 3))

        reference_mse = reference_errors(run, policy, moving, errors)
        mse = errors()
        if "kto" in run["objective"]:
            labels, mismatched = torch.arange(2 * PAIRS) < PAIRS, None
            if run["method"]["unpaired"].get("baseline") == "mismatched":
                # Pairs are taken apart in turn: chosen, rejected, chosen, rejected.
                turns = [side * PAIRS + pair for pair in range(PAIRS) for side in range(2)]
                of = dict(zip(turns, (turns[at] for at in shifted_prompts([turn % PAIRS for turn in turns]))))
                others = prompts[[of[row] for row in range(2 * PAIRS)]]
                with torch.no_grad():
                    mismatched = reference_errors(run, policy, moving, lambda: errors(others)) - errors(others)
            losses, margins = kto(run, mse, reference_mse, mismatched, labels)
        else:
            scores = torch.stack([data["chosen_score"][rows], data["rejected_score"][rows]]).to(dtype)
            losses, margins = losses_and_margins(run, mse, reference_mse, scores)
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, ADAMW["max_grad_norm"])
        optimizer.step()
        if ema and (step + 1) % ema["sync_steps"] == 0:
            follow(moving, policy, ema["mixup_alpha"])

        sides = lambda mse: [side.mean().item() for side in mse.detach().chunk(2)]
        record = {"step": step + 1, "loss": loss.item(), "grad_norm": grad_norm.item()}
        if "rank_dpo" not in run["objective"]:
            record |= zip(["mse/chosen", "mse/rejected"], sides(mse))
        if "mapo" not in run["objective"] and "rank_dpo" not in run["objective"]:
            record |= zip(["mse/reference_chosen", "mse/reference_rejected"], sides(reference_mse))
        records.append(record | {"rewards/margins": margins.mean().item()})
    return records


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_model()
    make_adapter()
    make_data()
    lines = []
    for run in RUNS:
        records, single = (train(run, dtype) for dtype in (torch.float64, torch.float32))
        for key in ("loss", "grad_norm"):
            worst = max(abs(a[key] / b[key] - 1) for a, b in zip(single, records))
            values = [record[key] for record in records]
            print(f"{run['name']} {key}: {min(values):.4g} to {max(values):.4g}; float32 differs by {worst:.1e} relative")
            assert worst < 2e-4
        rounded = [{key: value if key == "step" else float(f"{value:.10g}") for key, value in record.items()} for record in records]
        head = {"prediction_type": "epsilon"} | copy.deepcopy(run) | {"optimizer": {"adamw": ADAMW}, "micro_batch": PAIRS, "steps": STEPS}
        body = ",\n".join(json.dumps(record) for record in rounded)
        lines.append(json.dumps(head)[:-1] + ', "records": [\n' + body + "\n]}")
    (OUT / "expected.json").write_text('{"runs": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
