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
RUNS = [
    {"name": "dpo", "prediction_type": "epsilon", "objective": {"dpo": {"beta": 500.0}}},
    {"name": "mapo", "prediction_type": "epsilon", "objective": {"mapo": {}}},
    {"name": "dpo_v_prediction", "prediction_type": "v_prediction", "objective": {"dpo": {"beta": 1000.0, "label_smoothing": 0.1}}},
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
    (OUT / "data").mkdir()
    save_file(tensors, OUT / "data" / "pairs-00000.safetensors")


def link(x):
    return x / torch.expm1(x)


def losses_and_margins(objective, mse, reference_mse):
    """Published formulas in their own variable, the per-image mean squared error; chosen images first."""
    (name, p), = objective.items()
    chosen, rejected = mse.chunk(2)
    if name == "dpo":
        # SalesforceAIResearch/DiffusionDPO train.py: -logsigmoid(-0.5 beta ((mw - ml) - (rw - rl)))
        reference_chosen, reference_rejected = reference_mse.chunk(2)
        inside = -0.5 * p["beta"] * ((chosen - rejected) - (reference_chosen - reference_rejected))
        smoothing = p.get("label_smoothing", 0.0)
        return -(1 - smoothing) * F.logsigmoid(inside) - smoothing * F.logsigmoid(-inside), inside
    if name == "mapo":
        # mapo-t2i/mapo utils.py: mw - 0.1 logsigmoid(1000 (g(0.5 mw) - g(0.5 ml)))
        inside = 1000.0 * (link(0.5 * chosen) - link(0.5 * rejected))
        return chosen - 0.1 * F.logsigmoid(inside), inside
    raise ValueError(name)


def train(run, dtype):
    schedule = scheduler(run["prediction_type"])
    base = UNet2DConditionModel.from_pretrained(OUT / "model" / "unet").to(dtype)
    policy = PeftModel.from_pretrained(base, OUT / "adapter", is_trainable=True).to(dtype)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"],
                                  weight_decay=ADAMW["weight_decay"])
    data = load_file(OUT / "data" / "pairs-00000.safetensors")
    records = []
    for step in range(STEPS):
        rows = slice(step * PAIRS, (step + 1) * PAIRS)
        twice = lambda key: data[key][rows].repeat(2, *[1] * (data[key].dim() - 1))
        latents = torch.cat([data["latents_chosen"][rows], data["latents_rejected"][rows]]).to(dtype)
        noise, timesteps = twice("noise").to(dtype), twice("timesteps")
        encoder_hidden_states = twice("encoder_hidden_states").to(dtype)
        noisy = schedule.add_noise(latents, noise, timesteps)
        is_v = run["prediction_type"] == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if is_v else noise
        errors = lambda: (policy(noisy, timesteps, encoder_hidden_states).sample - target).pow(2).mean(dim=(1, 2, 3))

        mse = errors()
        with torch.no_grad(), policy.disable_adapter():
            reference_mse = errors()
        losses, margins = losses_and_margins(run["objective"], mse, reference_mse)
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, ADAMW["max_grad_norm"])
        optimizer.step()

        sides = lambda mse: [side.mean().item() for side in mse.detach().chunk(2)]
        record = {"step": step + 1, "loss": loss.item(), "grad_norm": grad_norm.item()}
        record |= zip(["mse/chosen", "mse/rejected"], sides(mse))
        if "dpo" in run["objective"]:
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
        head = copy.deepcopy(run) | {"optimizer": {"adamw": ADAMW}, "micro_batch": PAIRS, "steps": STEPS}
        body = ",\n".join(json.dumps(record) for record in rounded)
        lines.append(json.dumps(head)[:-1] + ', "records": [\n' + body + "\n]}")
    (OUT / "expected.json").write_text('{"runs": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
