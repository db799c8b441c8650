"""Golden numbers of tiny pipelines of Stable Diffusion 3 and Flux: latents that diffusers samples, and Flow-DPO in a plain PyTorch loop.

Everything lands in tests/golden/flows/ and is read by crates/diffusion/tests/it/flows.rs. The pipeline directories have configurations only:
weights, the adapter to start from and the pairs are made from names (`named_values.py`), by this program and by the reader. Vocabulary and
merges of CLIP's tokenizers are those of models/tokenizer_sd1, T5's tokenizer is transformers/t5_tokenizer. All of it computes in float64.

Run:       python tests/golden/generate_flows.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, numpy 2.4.6
"""

import json
import shutil

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from generate_replay import ADAMW, losses_and_margins
from generate_sdxl import HERE, tokenizer
from named_values import fill, named, uniform
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5Config, T5EncoderModel

torch.set_num_threads(1)
OUT = HERE / "flows"
PROMPTS = ["a red circle left of a blue square", "two cats riding"]
STEPS, PAIRS, TOKENS, TEXT_DIM = 4, 2, 5, 24
SAMPLING = {"steps": 4, "guidance_scale": 4.0}
LORA = {"rank": 2, "alpha": 3.0, "targets": ["to_q", "add_k_proj", "to_out.0", "to_add_out", "proj_out"]}
OBJECTIVE = {"dpo": {"beta": 50.0}}
LATENT = (4, 8, 8)
TEXT = dict(intermediate_size=16, num_attention_heads=2, max_position_embeddings=12, num_hidden_layers=2)
T5 = dict(
    d_model=TEXT_DIM, d_kv=6, d_ff=20, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    relative_attention_num_buckets=8, relative_attention_max_distance=20,
)
VAE = dict(
    block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1, norm_num_groups=2, sample_size=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
    use_post_quant_conv=False,
)
SD3 = dict(
    sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
    joint_attention_dim=TEXT_DIM, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=6, qk_norm="rms_norm",
    dual_attention_layers=(0,),
)
FLUX = dict(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=TEXT_DIM,
    pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 4, 2),
)
DYNAMIC = dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096)
prefixed = lambda key: key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key


def clip(kind, tokens, hidden_size, **options):
    config = CLIPTextConfig(
        **TEXT, hidden_size=hidden_size, vocab_size=tokens.eos_token_id + 1, eos_token_id=tokens.eos_token_id, **options
    )
    return fill(kind(config), prefixed)


def t5(directory):
    directory.mkdir(parents=True)
    source = HERE / "transformers" / "t5_tokenizer"
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return tokens, fill(T5EncoderModel(T5Config(**T5, vocab_size=len(tokens))).eval())


def make_sd3():
    model = OUT / "sd3" / "model"
    first, second = tokenizer(model / "tokenizer", "<|endoftext|>"), tokenizer(model / "tokenizer_2", "!")
    third, t5_encoder = t5(model / "tokenizer_3")
    return StableDiffusion3Pipeline(
        transformer=fill(SD3Transformer2DModel(**SD3)), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=fill(AutoencoderKL(**VAE)), tokenizer=first, tokenizer_2=second, tokenizer_3=third, text_encoder_3=t5_encoder,
        text_encoder=clip(CLIPTextModelWithProjection, first, 8, hidden_act="quick_gelu", projection_dim=6),
        text_encoder_2=clip(CLIPTextModelWithProjection, second, 12, hidden_act="gelu", projection_dim=10),
    )


def make_flux():
    model = OUT / "flux" / "model"
    first = tokenizer(model / "tokenizer", "<|endoftext|>")
    second, t5_encoder = t5(model / "tokenizer_2")
    return FluxPipeline(
        transformer=fill(FluxTransformer2DModel(**FLUX)), scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=fill(AutoencoderKL(**VAE)), tokenizer=first, tokenizer_2=second, text_encoder_2=t5_encoder,
        text_encoder=clip(CLIPTextModel, first, 8, hidden_act="quick_gelu"),
    )


def save_configurations(pipeline, directory):
    for name, component in pipeline.components.items():
        if component is None or name.startswith("tokenizer"):
            continue
        config = component.config if isinstance(component.config, dict) else component.config.to_dict()
        config = {key: value for key, value in dict(config).items() if value is not None and key != "transformers_version"}
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        if name.startswith("text_encoder"):
            config["architectures"] = [type(component).__name__]
        else:
            # As `save_pretrained` does: it is the class that says what a scheduler's numbers mean.
            config = {"_class_name": type(component).__name__} | config
        file = directory / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config, indent=1, default=list) + "\n")
    index = {key: value for key, value in pipeline.config.items() if key in pipeline.components}
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": "0.42.1"} | index
    (directory / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def sampled(name, pipeline):
    """Latents of the prompts from noise that is made from a name."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(uniform("initial", len(PROMPTS) * 4 * 8 * 8)).reshape(len(PROMPTS), *LATENT)
    is_flux = isinstance(pipeline, FluxPipeline)

    def run(dtype):
        start = FluxPipeline._pack_latents(noise, len(PROMPTS), *LATENT) if is_flux else noise
        latents = pipeline.to(dtype)(
            PROMPTS, num_inference_steps=SAMPLING["steps"], guidance_scale=SAMPLING["guidance_scale"], height=16, width=16,
            latents=start.to(dtype), output_type="latent",
        ).images
        return FluxPipeline._unpack_latents(latents, 16, 16, pipeline.vae_scale_factor) if is_flux else latents

    single, latents = run(torch.float32), run(torch.float64)
    worst = ((single - latents).abs().max() / latents.abs().max()).item()
    print(f"{name}: latents to {latents.abs().max():.3g}; float32 differs by {worst:.1e} relative")
    assert worst < 2e-4
    return {"name": name, "latents": [float(f"{value:.7g}") for value in latents.flatten().tolist()]}


def train(name, dtype):
    make, pooled_dim = {"sd3": (lambda: SD3Transformer2DModel(**SD3), 16), "flux": (lambda: FluxTransformer2DModel(**FLUX), 8)}[name]
    lora = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=LORA["targets"])
    policy = get_peft_model(fill(make()), lora)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_" in key:
                key = key.removeprefix("base_model.model.").replace(".default", "")
                parameter.copy_(0.3 * torch.from_numpy(named(key, tuple(parameter.shape))))
    policy = policy.to(dtype)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"])
    rows = STEPS * PAIRS
    drawn = lambda name, *shape: torch.from_numpy(uniform(name, rows * torch.Size(shape).numel())).reshape(rows, *shape).float().to(dtype)
    data = {name: drawn(name, *LATENT) for name in ["latents_chosen", "latents_rejected", "noise"]}
    data |= {"encoder_hidden_states": drawn("encoder_hidden_states", TOKENS, TEXT_DIM), "pooled": drawn("pooled", pooled_dim)}
    data["timesteps"] = torch.tensor([(137 * row + 11) % 1000 for row in range(rows)]).to(dtype)
    records = []
    for step in range(STEPS):
        twice = lambda key: data[key][step * PAIRS : (step + 1) * PAIRS].repeat(2, *[1] * (data[key].dim() - 1))
        latents = torch.cat([data[key][step * PAIRS : (step + 1) * PAIRS] for key in ["latents_chosen", "latents_rejected"]])
        noise, timesteps = twice("noise"), twice("timesteps")
        sigmas = (timesteps / 1000).reshape(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * noise
        text = dict(encoder_hidden_states=twice("encoder_hidden_states"), pooled_projections=twice("pooled"))

        def predict():
            if name == "sd3":
                return policy(hidden_states=noisy, timestep=timesteps, **text).sample
            batch = noisy.shape[0]
            tokens = FluxPipeline._pack_latents(noisy, batch, *LATENT)
            ids = dict(txt_ids=torch.zeros(TOKENS, 3), img_ids=FluxPipeline._prepare_latent_image_ids(batch, 4, 4, "cpu", torch.float32))
            guidance = torch.full((batch,), 3.5, dtype=dtype)
            out = policy(hidden_states=tokens, timestep=timesteps / 1000, guidance=guidance, **text, **ids).sample
            return FluxPipeline._unpack_latents(out, 16, 16, 2)

        errors = lambda: (predict() - (noise - latents)).pow(2).mean(dim=(1, 2, 3))
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


def trained(name):
    records, single = train(name, torch.float64), train(name, torch.float32)
    for key in ("loss", "grad_norm"):
        worst = max(abs(a[key] / b[key] - 1) for a, b in zip(single, records))
        values = [record[key] for record in records]
        print(f"{name} {key}: {min(values):.4g} to {max(values):.4g}; float32 differs by {worst:.1e} relative")
        assert worst < 5e-4
    return [{key: value if key == "step" else float(f"{value:.10g}") for key, value in record.items()} for record in records]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    sd3, flux = make_sd3(), make_flux()
    save_configurations(sd3, OUT / "sd3" / "model")
    save_configurations(flux, OUT / "flux" / "model")
    runs = {"sd3": [sampled("whole", sd3)], "flux": [sampled("dev", flux)]}
    sd3.register_modules(text_encoder_3=None)
    runs["sd3"].append(sampled("without T5", sd3))
    schnell = fill(FluxTransformer2DModel(**FLUX | {"guidance_embeds": False}))
    flux.register_modules(transformer=schnell, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    runs["flux"].append(sampled("schnell", flux))
    head = {"objective": OBJECTIVE, "optimizer": {"adamw": ADAMW}, "lora": LORA, "micro_batch": PAIRS, "steps": STEPS, "tokens": TOKENS}
    for name in ["sd3", "flux"]:
        sampling = {"prompts": PROMPTS} | SAMPLING | {"runs": runs[name]}
        (OUT / name / "sampling.json").write_text(json.dumps(sampling) + "\n")
        (OUT / name / "training.json").write_text(json.dumps(head | {"records": trained(name)}) + "\n")


if __name__ == "__main__":
    main()
