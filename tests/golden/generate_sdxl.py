"""Golden numbers of a tiny SDXL: latents that diffusers' pipeline samples, and a Diffusion-DPO run in a plain PyTorch loop.

Everything lands in tests/golden/sdxl/ and is read by crates/diffusion/tests/it/sdxl.rs. The pipeline directory has configurations only:
weights, the adapter to start from and the pairs are made from names (`named_values.py`), by this program and by the reader. Vocabulary and
merges of both tokenizers are those of models/tokenizer_sd1. Both parts compute in float64; the loop is that of generate_replay.py with
SDXL's added conditions.

Run:       python tests/golden/generate_sdxl.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, numpy 2.4.6
"""

import json
import pathlib
import shutil
import tempfile

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from generate_replay import ADAMW, losses_and_margins
from named_values import fill, named, uniform
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "sdxl"
VOCABULARY = HERE / "models" / "tokenizer_sd1"
PROMPTS = ["a red circle left of a blue square", "two cats riding"]
SAMPLING = {"steps": 6, "guidance_scale": 4.0}
STEPS, PAIRS, TOKENS = 10, 2, 5
LORA = {"rank": 2, "alpha": 3.0, "targets": ["to_q", "to_k", "to_v", "to_out.0"]}
OBJECTIVE = {"dpo": {"beta": 500.0}}
UNET = dict(
    sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=20, attention_head_dim=(1, 2),
    use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=34, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
VAE = dict(
    block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1, norm_num_groups=2, sample_size=16, scaling_factor=0.13025,
)
TEXT = dict(intermediate_size=16, num_attention_heads=2, max_position_embeddings=12, num_hidden_layers=2)
SCHEDULER = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    timestep_spacing="leading",
)
# Original size, corner of the crop, target size.
SIZES = [[16, 16, 0, 0, 16, 16], [512, 768, 0, 4, 16, 16], [1024, 512, 8, 0, 16, 16]]


def tokenizer(directory, pad):
    directory.mkdir(parents=True)
    config = dict(model_max_length=12, pad_token=pad, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                  tokenizer_class="CLIPTokenizer")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as whole:
        for path in [directory / "tokenizer_config.json", VOCABULARY / "vocab.json", VOCABULARY / "merges.txt"]:
            shutil.copy(path, whole)
        return CLIPTokenizer.from_pretrained(whole)


def make_pipeline():
    tokenizers = [tokenizer(OUT / "model" / "tokenizer", "<|endoftext|>"), tokenizer(OUT / "model" / "tokenizer_2", "!")]
    end = tokenizers[0].eos_token_id
    vocab_size = end + 1
    prefixed = lambda key: key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key
    first = CLIPTextConfig(**TEXT, hidden_size=8, hidden_act="quick_gelu", vocab_size=vocab_size, eos_token_id=end)
    second = CLIPTextConfig(**TEXT, hidden_size=12, hidden_act="gelu", vocab_size=vocab_size, projection_dim=10, eos_token_id=2)
    parts = dict(
        text_encoder=fill(CLIPTextModel(first), prefixed), text_encoder_2=fill(CLIPTextModelWithProjection(second), prefixed),
        unet=fill(UNet2DConditionModel(**UNET)), vae=fill(AutoencoderKL(**VAE)), scheduler=DDIMScheduler(**SCHEDULER),
    )
    return StableDiffusionXLPipeline(**parts, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], add_watermarker=False)


def save_configurations(pipeline):
    for name in ["text_encoder", "text_encoder_2", "unet", "vae", "scheduler"]:
        component = getattr(pipeline, name)
        config = component.config if isinstance(component.config, dict) else component.config.to_dict()
        config = {key: value for key, value in dict(config).items() if value is not None and key != "transformers_version"}
        config = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
        if name.startswith("text_encoder"):
            config["architectures"] = [type(component).__name__]
        file = OUT / "model" / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config, indent=1, default=list) + "\n")
    index = {key: value for key, value in pipeline.config.items() if key in pipeline.components or key == "force_zeros_for_empty_prompt"}
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1"} | index
    (OUT / "model" / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def sampled(pipeline):
    """Latents of the prompts, with the empty prompt as zeros and as text; the initial noise is made from a name."""
    noise = torch.from_numpy(uniform("initial", len(PROMPTS) * 4 * 8 * 8)).reshape(len(PROMPTS), 4, 8, 8)
    runs = []
    for has_zeros in [True, False]:
        pipeline.register_to_config(force_zeros_for_empty_prompt=has_zeros)
        run = lambda dtype: pipeline.to(dtype)(
            PROMPTS, num_inference_steps=SAMPLING["steps"], guidance_scale=SAMPLING["guidance_scale"], height=16, width=16,
            latents=noise.to(dtype), output_type="latent",
        ).images
        single, latents = run(torch.float32), run(torch.float64)
        worst = ((single - latents).abs().max() / latents.abs().max()).item()
        print(f"sampling: latents to {latents.abs().max():.3g}; float32 differs by {worst:.1e} relative")
        assert worst < 2e-4
        rounded = [float(f"{value:.8g}") for value in latents.flatten().tolist()]
        runs.append({"force_zeros_for_empty_prompt": has_zeros, "latents": rounded})
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    return {"prompts": PROMPTS} | SAMPLING | {"runs": runs}


def train(dtype):
    unet = fill(UNet2DConditionModel(**UNET))
    policy = get_peft_model(unet, LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=LORA["targets"]))
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_" in key:
                name = key.removeprefix("base_model.model.").replace(".default", "")
                parameter.copy_(0.3 * torch.from_numpy(named(name, tuple(parameter.shape))))
    policy = policy.to(dtype)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"])
    schedule = DDPMScheduler.from_config(SCHEDULER | {"num_train_timesteps": 1000, "prediction_type": "epsilon"})
    rows = STEPS * PAIRS
    drawn = lambda name, *shape: torch.from_numpy(uniform(name, rows * torch.Size(shape).numel())).reshape(rows, *shape).float().to(dtype)
    data = {name: drawn(name, 4, 8, 8) for name in ["latents_chosen", "latents_rejected", "noise"]}
    data |= {"encoder_hidden_states": drawn("encoder_hidden_states", TOKENS, 20), "pooled": drawn("pooled", 10)}
    data["time_ids"] = torch.tensor([SIZES[row % len(SIZES)] for row in range(rows)]).to(dtype)
    data["timesteps"] = torch.tensor([(37 * row + 11) % 1000 for row in range(rows)])
    records = []
    for step in range(STEPS):
        twice = lambda key: data[key][step * PAIRS : (step + 1) * PAIRS].repeat(2, *[1] * (data[key].dim() - 1))
        latents = torch.cat([data[key][step * PAIRS : (step + 1) * PAIRS] for key in ["latents_chosen", "latents_rejected"]])
        noise, timesteps = twice("noise"), twice("timesteps")
        noisy = schedule.add_noise(latents, noise, timesteps)
        conditions = {"text_embeds": twice("pooled"), "time_ids": twice("time_ids")}
        predict = lambda: policy(noisy, timesteps, twice("encoder_hidden_states"), added_cond_kwargs=conditions).sample
        errors = lambda: (predict() - noise).pow(2).mean(dim=(1, 2, 3))
        mse = errors()
        with torch.no_grad(), policy.disable_adapter():
            reference_mse = errors()
        losses, margins = losses_and_margins({"name": "dpo", "objective": OBJECTIVE}, mse, reference_mse, None)
        optimizer.zero_grad()
        losses.mean().backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, ADAMW["max_grad_norm"])
        optimizer.step()
        sides = lambda mse: [side.mean().item() for side in mse.detach().chunk(2)]
        record = {"step": step + 1, "loss": losses.mean().item(), "grad_norm": grad_norm.item()}
        record |= zip(["mse/chosen", "mse/rejected"], sides(mse))
        record |= zip(["mse/reference_chosen", "mse/reference_rejected"], sides(reference_mse))
        records.append(record | {"rewards/margins": margins.mean().item()})
    return records


def trained():
    records, single = train(torch.float64), train(torch.float32)
    for key in ("loss", "grad_norm"):
        worst = max(abs(a[key] / b[key] - 1) for a, b in zip(single, records))
        values = [record[key] for record in records]
        print(f"training {key}: {min(values):.4g} to {max(values):.4g}; float32 differs by {worst:.1e} relative")
        assert worst < 2e-4
    rounded = [{key: value if key == "step" else float(f"{value:.10g}") for key, value in record.items()} for record in records]
    head = {"objective": OBJECTIVE, "optimizer": {"adamw": ADAMW}, "lora": LORA, "micro_batch": PAIRS, "steps": STEPS, "tokens": TOKENS}
    return head | {"sizes": SIZES, "records": rounded}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    save_configurations(pipeline)
    for name, numbers in [("sampling.json", sampled(pipeline)), ("training.json", trained())]:
        (OUT / name).write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
