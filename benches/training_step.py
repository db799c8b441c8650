"""PyTorch's side of training_step.rs: the same LoRA Diffusion-DPO step with diffusers and peft.

Run by the benchmark: training_step.py WORK_JSON STEPS. Prints one JSON line with seconds a step and peak memory.
Uses as many threads as the machine has cores, as ours does. Needs torch, diffusers, peft.
"""

import json
import os
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig

work, steps = json.loads(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(os.cpu_count())
torch.manual_seed(0)
unet = UNet2DConditionModel.from_config(work["config"])
unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=work["rank"], lora_alpha=work["rank"], target_modules=work["targets"]))
trained = [p for p in unet.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5)

pairs, size = work["pairs"], work["latent_size"]
noisy = torch.randn(2 * pairs, unet.config.in_channels, size, size)
noise = torch.randn_like(noisy)
text = torch.randn(2 * pairs, work["tokens"], work["config"]["cross_attention_dim"])
timesteps = torch.full((2 * pairs,), 500)


def scores():
    errors = F.mse_loss(unet(noisy, timesteps, text).sample, noise, reduction="none").mean((1, 2, 3))
    return (-0.5 * errors).chunk(2)


times = []
for _ in range(steps + 1):
    start = time.perf_counter()
    with torch.no_grad():
        unet.disable_adapters()
        reference = scores()
        unet.enable_adapters()
    policy = scores()
    logits = (policy[0] - reference[0]) - (policy[1] - reference[1])
    loss = -F.logsigmoid(5000.0 * logits).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)

peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": statistics.median(times[1:]), "peak_gib": peak}))
