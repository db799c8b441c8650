"""Golden vectors of the diffusion transformers and of their text encoder: tiny random diffusers, transformers and PEFT models.

Run:  python tests/golden/generate_transformers.py     (needs torch, diffusers, transformers, peft, safetensors, tokenizers; no network)

Everything lands in tests/golden/transformers/ and is read by crates/models/tests/transformers.rs. T5 has weight files; the weights of the
transformers are made from names (`named_values.py`), by this program and by the reader.

Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, safetensors 0.8.0, tokenizers 0.23.3, numpy 2.4.6
"""

import json
import pathlib
import shutil

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from named_values import fill
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent / "transformers"

# The width of a head and of the network are kept apart, and so are all numbers that could be taken for one another.
T5 = dict(
    vocab_size=40, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
    relative_attention_max_distance=9, feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.1,
)
SD3 = dict(
    sample_size=8, patch_size=2, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=10,
    caption_projection_dim=16, pooled_projection_dim=6, pos_embed_max_size=6,
)
SD3S = {
    # Stable Diffusion 3: no norms in attention, and a table of positions in the file.
    "sd3": dict(SD3, in_channels=3, out_channels=5),
    # Stable Diffusion 3.5 medium: norms, and two attentions in the first block. Its table is left to the formula.
    "sd35": dict(SD3, in_channels=4, out_channels=4, qk_norm="rms_norm", dual_attention_layers=(0,), sample_size=10),
}
FLUX = dict(
    num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=7,
    axes_dims_rope=(2, 4, 2),
)
FLUXES = {
    "flux_dev": dict(FLUX, in_channels=8, guidance_embeds=True),
    "flux_schnell": dict(FLUX, in_channels=12, out_channels=8, num_single_layers=1, attention_head_dim=6, axes_dims_rope=(2, 2, 2)),
}
PIXART = dict(num_layers=2, patch_size=2)
PIXARTS = {
    # Resolution and aspect ratio, projected text, a variance beside the noise, and the latents' own size.
    "pixart_alpha": dict(
        PIXART, sample_size=8, num_attention_heads=2, attention_head_dim=6, cross_attention_dim=12, caption_channels=10, in_channels=2,
        out_channels=4, use_additional_conditions=True,
    ),
    # None of these, and positions that are interpolated.
    "pixart_sigma": dict(
        PIXART, sample_size=10, num_attention_heads=2, attention_head_dim=4, cross_attention_dim=8, in_channels=3, out_channels=None,
        interpolation_scale=3, attention_bias=False, use_additional_conditions=False,
    ),
}
LORA = {
    "sd35": ["to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "to_add_out", "ff.net.2", "ff_context.net.0.proj", "norm1.linear", "proj_out"],
    "flux_dev": ["to_k", "to_out.0", "add_v_proj", "ff.net.0.proj", "proj_mlp", "single_transformer_blocks.1.proj_out", "norm.linear", "x_embedder"],
}
PIECES = "▁a ▁red ▁circle ▁blue ▁square ▁left ▁of ▁photo ▁two ▁cat s ed ing ri de ast ro na ut ▁the ▁".split() + list("abcdefghilmnoprstuvw.,'-")
TEXTS = [
    "", "a red circle", "  A red   square ", "a photo of two cats riding the blue astronaut, left of a red circle.", "ﬁne\u00a0wide\u3000space",
    "unknown: 日本 🙂", "a\ta\na", "the </s> cat <pad> <extra_id_0> left", "x" * 12,
]


def refill(model, seed):
    """Draws every parameter anew, in the order of names, rounded to f16, and returns them in f16."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
            else:
                value = draw / parameter[0].numel() ** 0.5
            half = value.to(torch.float16)
            parameter.copy_(half.float())
            state[name] = half.contiguous()
    return state


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.float16).float()


def save(path, tensors):
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, default=list) + "\n")


def write_config(directory, config):
    directory.mkdir(parents=True)
    kept = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    write_json(directory / "config.json", kept)


def gradient_norms(model, loss):
    model.zero_grad()
    loss.backward()
    return {f"gradnorm.{name}": parameter.grad.norm().reshape(1) for name, parameter in model.named_parameters()}


def t5():
    model = T5EncoderModel(T5Config(**T5)).eval()
    state = refill(model, 400)
    ids = torch.tensor([[5, 39, 8, 3, 17, 22, 9, 1, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], list(range(10, 22)) + [1]])
    mask = (ids != 0).long()
    masked, whole = model(ids, attention_mask=mask)[0], model(ids)[0]
    weight = randn(8, *masked.shape)
    norms = gradient_norms(model, (masked * weight).sum() + (whole * weight.flip(0)).sum())
    half = model.to(torch.bfloat16)(ids, attention_mask=mask)[0].float()
    directory = HERE / "t5"
    config = {key: value for key, value in model.config.to_dict().items() if value is not None and key != "transformers_version"}
    config["dtype"] = "float16"
    write_config(directory, config)
    vectors = {"input_ids": ids, "attention_mask": mask, "loss_weight": weight, "masked": masked, "whole": whole, "masked_bf16": half}
    save(directory / "vectors.safetensors", vectors | norms)
    # In two files with an index, as the published ones of this encoder are.
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[: len(names) // 2], "model-00002-of-00002.safetensors": names[len(names) // 2 :]}
    for file, part in shards.items():
        save(directory / file, {name: state[name] for name in part})
    size = sum(value.numel() * 2 for value in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    write_json(directory / "model.safetensors.index.json", index)


def t5_tokenizer():
    """A vocabulary in the form of the published `tokenizer.json`, and what transformers makes of it as the pipelines call it."""
    specials = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{i}>" for i in (1, 0)]
    vocab = [(token, 0.0) for token in specials] + [(piece, -2.0 - 0.1 * i) for i, piece in enumerate(PIECES)] + [(token, 0.0) for token in extra]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(specials + extra)
    directory = HERE / "t5_tokenizer"
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = dict(tokenizer_class="T5Tokenizer", model_max_length=512, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=2)
    write_json(directory / "tokenizer_config.json", config)
    read = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    runs = []
    for length in (9, 40):
        out = read(TEXTS, padding="max_length", max_length=length, truncation=True, add_special_tokens=True)
        runs.append({"max_len": length, "input_ids": out.input_ids, "attention_mask": out.attention_mask})
    (directory / "cases.json").write_text(json.dumps({"texts": TEXTS, "runs": runs}) + "\n")


def sd3():
    for name, options in SD3S.items():
        model = fill(SD3Transformer2DModel(**options))
        more = {}
        if name == "sd3":
            # Not what the formula gives, to tell whose table is read.
            table = randn(9, *model.pos_embed.pos_embed.shape)
            model.pos_embed.pos_embed.copy_(table)
            more["pos_embed.pos_embed"] = table
        inputs = {
            "hidden_states": randn(1, 2, options["in_channels"], 6, 8),
            "timestep": torch.tensor([3.0, 817.5]),
            "encoder_hidden_states": randn(2, 2, 5, options["joint_attention_dim"]),
            "pooled_projections": randn(3, 2, options["pooled_projection_dim"]),
        }
        transformer(name, model, inputs, more)


def flux():
    for name, options in FLUXES.items():
        model = fill(FluxTransformer2DModel(**options))
        latents = randn(1, 2, options["in_channels"] // 4, 4, 6)
        inputs = {
            "hidden_states": FluxPipeline._pack_latents(latents, 2, options["in_channels"] // 4, 4, 6),
            "timestep": torch.tensor([0.003, 0.8175]),
            "encoder_hidden_states": randn(2, 2, 5, options["joint_attention_dim"]),
            "pooled_projections": randn(3, 2, options["pooled_projection_dim"]),
            "txt_ids": torch.zeros(5, 3),
            "img_ids": FluxPipeline._prepare_latent_image_ids(2, 2, 3, "cpu", torch.float32),
        }
        if options.get("guidance_embeds"):
            inputs["guidance"] = torch.tensor([3.5, 1.0])
        else:
            inputs["txt_ids"] = (randn(4, 5, 3) * 3).round()
            inputs["img_ids"] = (randn(5, 6, 3) * 20).round()
        transformer(name, model, inputs, {"latents": latents})


def pixart():
    for name, options in PIXARTS.items():
        model = fill(PixArtTransformer2DModel(**options))
        size = (8, 8) if name == "pixart_alpha" else (6, 8)
        inputs = {
            "hidden_states": randn(1, 2, options["in_channels"], *size),
            "timestep": torch.tensor([3.0, 817.5]),
            "encoder_hidden_states": randn(2, 2, 5, options.get("caption_channels") or options["cross_attention_dim"]),
            "encoder_attention_mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]),
        }
        more = {"resolution": torch.tensor([[64.0, 48.0], [512.0, 1024.0]]), "aspect_ratio": torch.tensor([[1.5], [0.5]])}
        if options["use_additional_conditions"]:
            inputs["added_cond_kwargs"] = more
        transformer(name, model, inputs, more)


def transformer(name, model, inputs, more):
    output = model(**inputs).sample
    weight = randn(6, *output.shape)
    norms = gradient_norms(model, (output * weight).sum())
    directory = HERE / name
    write_config(directory, dict(model.config))
    inputs = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    save(directory / "vectors.safetensors", inputs | more | {"loss_weight": weight, "output": output} | norms)
    if name in LORA:
        lora(name, model, inputs, weight)


def lora(name, model, inputs, weight):
    """The same network with an adapter: PEFT's directory for Stable Diffusion 3, and the file that diffusers writes for Flux."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=LORA[name])
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in key:
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.3).to(torch.float16).float())
    output = wrapped(**inputs).sample
    (output * weight).sum().backward()
    vectors = {"output": output}
    for key, parameter in wrapped.named_parameters():
        if "lora_" in key:
            vectors["grad." + key.removeprefix("base_model.model.").replace(".default", "")] = parameter.grad
    directory = HERE / f"{name}_lora"
    if name == "sd35":
        wrapped.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        config = json.loads((directory / "adapter_config.json").read_text())
        config["auto_mapping"] = config["base_model_name_or_path"] = None
        config["target_modules"] = sorted(config["target_modules"])
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    else:
        layers = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(wrapped).items()}
        metadata = wrapped.peft_config["default"].to_dict()
        metadata["target_modules"] = sorted(metadata["target_modules"])
        FluxPipeline.save_lora_weights(directory, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
        sort_header(directory / "pytorch_lora_weights.safetensors")
    save(directory / "vectors.safetensors", vectors)


def sort_header(path):
    """Orders the metadata of a safetensors file, which the library writes in a random order."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    t5()
    t5_tokenizer()
    sd3()
    flux()
    pixart()
    for path in HERE.rglob("*.*"):
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"{HERE}: {total / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
