"""Golden vectors of the networks: tiny random diffusers, transformers and PEFT models with their outputs and gradients.

Run:  python tests/golden/generate_models.py     (needs torch, diffusers, transformers, peft, safetensors; no network)

Everything lands in tests/golden/models/ and is read by crates/models/tests/parity.rs. Weights are rounded to f16, stored as f16
and used as f32, so that files stay small and both sides compute with the same numbers. Every parameter is drawn anew from a fixed
generator, in the order of its name: no value depends on the initialization of the library's version.

Networks of BY_NAME have no weight file: `named_values.py` makes their weights from the names of their parameters, and so does the
reader (crates/models/tests/support/named.rs). Of their gradients two numbers a parameter are kept, in the order of names: the norm, and
the product with a direction that is made from the name too. They compute in float64, so that the numbers carry no rounding of their
own.

Made with torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, tokenizers 0.23.3.

Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, safetensors 0.8.0
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from named_values import direction, fill, named
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent / "models"

UNETS = {
    # The blocks of Stable Diffusion 1.x, at two levels.
    "unet_sd1": dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}
SDXL = dict(
    sample_size=8, block_out_channels=(4, 8, 16), layers_per_block=2, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=(1, 2, 4),
    use_linear_projection=True, transformer_layers_per_block=(1, 2, 3), addition_embed_type="text_time", addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=29, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
BY_NAME = {
    # The options of Stable Diffusion 2.x, heads for each level, an odd size and other numbers wherever there is one.
    "unet_sd2": dict(
        sample_size=7, in_channels=3, out_channels=5, block_out_channels=(8, 16, 8), layers_per_block=(1, 2, 1), norm_num_groups=4,
        cross_attention_dim=10, attention_head_dim=(2, 4, 1), use_linear_projection=True, upcast_attention=True,
        transformer_layers_per_block=(1, 2, 1), flip_sin_to_cos=False, freq_shift=1, center_input_sample=True,
        downsample_padding=0, mid_block_scale_factor=1.5, norm_eps=1e-6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    # The blocks, depths and conditions of SDXL's base, three levels.
    "unet_sdxl": SDXL,
    # Of its refiner: attention in the middle levels only, one depth for all, five numbers instead of six.
    "unet_refiner": dict(
        SDXL, block_out_channels=(4, 8, 8), layers_per_block=1, attention_head_dim=(1, 2, 2), transformer_layers_per_block=2,
        projection_class_embeddings_input_dim=25, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    # Of distilled ones (SSD-1B, Segmind Vega): a depth for each layer, others on the way up, a middle without attention.
    "unet_uneven": dict(
        SDXL, transformer_layers_per_block=[0, [2, 1], [1, 3]], reverse_transformer_layers_per_block=[[1, 2, 3], [3, 1, 2], 0],
        mid_block_type="UNetMidBlock2D",
    ),
    # Stable Diffusion 2.x without a middle.
    "unet_no_middle": dict(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=(1, 2),
        use_linear_projection=True, mid_block_type=None, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}
SDXL_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "add_embedding.linear_1"]
# Linear layers and convolutions of both kernel sizes, one of them strided.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "conv_shortcut", "ff.net.2", "downsamplers.0.conv"]

VAES = {
    "vae": dict(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, latent_channels=3, sample_size=8, scaling_factor=0.5,
    ),
}
VAE = dict(
    block_out_channels=(4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=2, norm_num_groups=2, sample_size=8,
)
VAES_BY_NAME = {
    # None of what can be left out.
    "vae_bare": dict(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2, norm_num_groups=2, latent_channels=2, sample_size=8, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, force_upcast=False,
    ),
    "vae_sdxl": dict(VAE, latent_channels=4, scaling_factor=0.13025, force_upcast=True),
    "vae_sd3": dict(
        VAE, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ),
    "vae_flux": dict(
        VAE, block_out_channels=(4, 4, 8), layers_per_block=1, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    ),
}
TEXT = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=9, vocab_size=30)
TEXTS = {
    "text_quick_gelu": dict(TEXT, hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1),
    "text_gelu": dict(TEXT, hidden_act="gelu", eos_token_id=7, bos_token_id=0, pad_token_id=1, layer_norm_eps=1e-4),
}
TEXTS_BY_NAME = {
    # OpenCLIP bigG of SDXL and SD3, CLIP-L of SD3 (both with a projection), OpenCLIP-H of Stable Diffusion 2.x.
    "text_bigg": dict(TEXT, hidden_act="gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1, num_hidden_layers=4, projection_dim=10),
    "text_clip_l_projection": dict(TEXT, hidden_act="quick_gelu", eos_token_id=7, bos_token_id=0, pad_token_id=1, projection_dim=8),
    "text_openclip_h": dict(TEXT, hidden_act="gelu", eos_token_id=7, bos_token_id=0, pad_token_id=0, num_hidden_layers=3),
}

CORPUS = "a red circle a blue square left of a green triangle the quick brown fox's don't we're can't photo of two cats astronaut riding"
STRINGS = [
    "", " ", "a photo of a cat", "  A  Photo\tof\n\na   CAT ", "don't we're they'll I'm he'd it's", "Don'T 'S", "café naïve Ångström",
    "cafe\u0301 decomposed", "\u2003em\u2003space\u00a0nbsp\u3000ideographic", "日本語のテキスト", "emoji 🙂👩‍👩‍👧 done", "x" * 40,
    "1234 5.67 v2.0 (red:1.3)", "<|startoftext|> a <|endoftext|> b", "<|STARTOFTEXT|>a", "!!! ?!?! --- \"quoted\" 's", "red, blue; green...",
    "İstanbul ẞ ǅ", "a\u200bzero\u200dwidth", "\u0000control\u0007", "the quick brown fox's tail", "don’t curly", "½ ² Ⅷ ٣",
    "a red circle left of a blue square and a green triangle right of two cats riding astronauts in the photo",
]


def refill(model, seed):
    """Draws every parameter anew, rounded to f16, and returns the state dict in f16."""
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


def write(directory, config, state, vectors, weights="diffusion_pytorch_model.safetensors"):
    directory.mkdir(parents=True)
    kept = ("_class_name",)
    config = {key: value for key, value in config.items() if (not key.startswith("_") or key in kept) and key != "transformers_version"}
    (directory / "config.json").write_text(json.dumps(config, indent=1, default=list) + "\n")
    if state is not None:
        save_file(state, directory / weights)
    single = lambda value: value.detach().float() if value.dtype == torch.float64 else value.detach()
    save_file({name: single(value).contiguous() for name, value in vectors.items()}, directory / "vectors.safetensors")


def gradient_norms(model, loss):
    """The norm of every parameter's gradient."""
    model.zero_grad()
    loss.backward()
    return {f"gradnorm.{name}": parameter.grad.norm().reshape(1) for name, parameter in model.named_parameters()}


def unets():
    for number, (name, options) in enumerate(UNETS.items()):
        model = UNet2DConditionModel(**options)
        state = refill(model, 100 + number)
        config = model.config
        size = config.sample_size
        sample = randn(1, 2, config.in_channels, size, size)
        text = randn(2, 2, 3, config.cross_attention_dim)
        timesteps = torch.tensor([3.0, 817.0])
        weight = randn(3, 2, config.out_channels, size, size)
        output = model(sample, timesteps, text).sample
        norms = gradient_norms(model, (output * weight).sum())
        vectors = {"sample": sample, "timesteps": timesteps, "encoder_hidden_states": text, "loss_weight": weight, "output": output}
        write(HERE / name, dict(config), state, vectors | norms)
        if name == "unet_sd1":
            unet_lora(model, (sample, timesteps, text), weight)


def gradients(parameters):
    """Norm and product with a direction of every gradient, (P, 2) in the order of names."""
    rows = []
    for name, parameter in sorted(parameters.items()):
        grad = parameter.grad.double()
        along = torch.from_numpy(direction(name, tuple(grad.shape)))
        rows.append([grad.norm().item(), (grad * along).sum().item() / along.norm().item()])
    return torch.tensor(rows, dtype=torch.float64).float()


def unets_by_name():
    for name, options in BY_NAME.items():
        model = fill(UNet2DConditionModel(**options)).double()
        size = options["sample_size"]
        channels, out_channels = options.get("in_channels", 4), options.get("out_channels", 4)
        sample, text = randn(1, 2, channels, size, size).double(), randn(2, 2, 3, options["cross_attention_dim"]).double()
        timesteps, weight = torch.tensor([3.0, 817.0]), randn(3, 2, out_channels, size, size)
        vectors = {"sample": sample, "timesteps": timesteps, "encoder_hidden_states": text, "loss_weight": weight}
        added = {}
        if "addition_embed_type" in options:
            numbers = [[8.0, 6.0, 0.0, 1.0, 8.0, 8.0], [1024.0, 768.0, 12.0, 0.0, 512.0, 512.0]]
            count = (options["projection_class_embeddings_input_dim"] - 5) // options["addition_time_embed_dim"]
            added = {"text_embeds": randn(9, 2, 5).double(), "time_ids": torch.tensor(numbers)[:, :count].contiguous()}
        conditions = {"added_cond_kwargs": added} if added else {}
        output = model(sample, timesteps, text, **conditions).sample
        (output * weight).sum().backward()
        vectors |= added | {"output": output, "gradients": gradients(dict(model.named_parameters()))}
        if name == "unet_sdxl":
            lora = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=SDXL_LORA_TARGETS))
            own = lambda key: key.removeprefix("base_model.model.").replace(".default", "")
            parameters = {own(key): value for key, value in lora.named_parameters() if "lora_" in key}
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(torch.from_numpy(named(key, tuple(parameter.shape))))
            output = lora(sample, timesteps, text, **conditions).sample
            (output * weight).sum().backward()
            vectors |= {"lora.output": output, "lora.gradients": gradients(parameters)}
        write(HERE / name, dict(model.config), None, vectors)


def unet_lora(model, inputs, weight):
    """The same network with a PEFT adapter, as PEFT and as diffusers save it."""
    lora = LoraConfig(r=2, lora_alpha=3, target_modules=LORA_TARGETS, rank_pattern={"proj_in": 3}, alpha_pattern={"conv1": 5})
    wrapped = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name:
                draw = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(draw.to(torch.float16).float())
    output = wrapped(*inputs).sample
    (output * weight).sum().backward()
    vectors = {"output": output}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            vectors["grad." + name.removeprefix("base_model.model.").replace(".default", "")] = parameter.grad
    directory = HERE / "unet_sd1_lora"
    wrapped.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    config = json.loads((directory / "adapter_config.json").read_text())
    config["auto_mapping"] = config["base_model_name_or_path"] = None
    config["target_modules"] = sorted(config["target_modules"])
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({name: value.detach().contiguous() for name, value in vectors.items()}, directory / "vectors.safetensors")
    # The same adapter as diffusers writes it, from a network without PEFT's wrapper.
    plain = UNet2DConditionModel.from_pretrained(HERE / "unet_sd1", torch_dtype=torch.float32)
    plain.add_adapter(lora, adapter_name="default")
    tensors = load_file(directory / "adapter_model.safetensors")
    set_peft_model_state_dict(plain, {name.removeprefix("base_model.model."): value for name, value in tensors.items()}, adapter_name="default")
    torch.testing.assert_close(plain(*inputs).sample, output, rtol=1e-5, atol=1e-5)
    metadata = plain.peft_config["default"].to_dict()
    metadata["target_modules"] = sorted(metadata["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        HERE / "unet_sd1_lora_diffusers", unet_lora_layers=get_peft_model_state_dict(plain), unet_lora_adapter_metadata=metadata
    )
    sort_header(HERE / "unet_sd1_lora_diffusers" / "pytorch_lora_weights.safetensors")


def sort_header(path):
    """Orders the metadata of a safetensors file, which the library writes in a random order."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def vaes():
    for number, (name, options) in enumerate(VAES.items()):
        model = AutoencoderKL(**options)
        state = refill(model, 200 + number)
        image = randn(4, 2, 3, 8, 12).clamp(-1, 1)
        posterior = model.encode(image).latent_dist
        noise = randn(5, *posterior.mean.shape)
        latents = posterior.mean + posterior.std * noise
        decoded = model.decode(latents).sample
        weight = randn(6, *decoded.shape)
        kl = posterior.kl()
        norms = gradient_norms(model, (decoded * weight).sum() + kl.sum())
        vectors = {"sample": image, "noise": noise, "loss_weight": weight, "latent_mean": posterior.mean}
        vectors |= {"latent_logvar": posterior.logvar, "latents": latents, "decoded": decoded, "kl": kl}
        write(HERE / name, dict(model.config), state, vectors | norms)


def vaes_by_name():
    for name, options in VAES_BY_NAME.items():
        model = fill(AutoencoderKL(**options)).double()
        image = randn(4, 2, 3, 8, 12).clamp(-1, 1).double()
        posterior = model.encode(image).latent_dist
        noise = randn(5, *posterior.mean.shape)
        latents = posterior.mean + posterior.std * noise
        decoded = model.decode(latents).sample
        weight = randn(6, *decoded.shape)
        kl = posterior.kl()
        ((decoded * weight).sum() + kl.sum()).backward()
        shift = options.get("shift_factor") or 0.0
        vectors = {"sample": image, "noise": noise, "loss_weight": weight, "latent_mean": posterior.mean, "kl": kl}
        vectors |= {"latent_logvar": posterior.logvar, "latents": latents, "decoded": decoded}
        # As the pipelines do before they hand latents to the denoiser.
        vectors |= {"scaled": (latents - shift) * options["scaling_factor"], "gradients": gradients(dict(model.named_parameters()))}
        write(HERE / name, dict(model.config), None, vectors)


IDS = [[0, 5, 29, 3, 7, 1, 1, 1], [0, 9, 7, 8, 7, 7, 7, 29], [0, 4, 4, 4, 4, 4, 4, 4]]


def texts_by_name():
    prefixed = lambda key: key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key
    for name, options in TEXTS_BY_NAME.items():
        kind = CLIPTextModelWithProjection if "projection_dim" in options else CLIPTextModel
        model = fill(kind(CLIPTextConfig(**options)), prefixed).double()
        ids = torch.tensor(IDS)
        output = model(input_ids=ids, output_hidden_states=True)
        states = output.hidden_states
        vectors = {"input_ids": ids, "last_hidden_state": output.last_hidden_state, "hidden_states": torch.stack(states)}
        # diffusers' clip_skip = 1 of Stable Diffusion.
        inner = getattr(model, "text_model", model)
        vectors["clip_skip_1"] = inner.final_layer_norm(states[-2])
        weight = randn(8, *output.last_hidden_state.shape)
        loss = (output.last_hidden_state * weight).sum() + (states[-2] * weight).sum()
        if kind is CLIPTextModelWithProjection:
            vectors["text_embeds"] = output.text_embeds
            loss = loss + output.text_embeds.sum()
        else:
            vectors["pooler_output"] = output.pooler_output
            loss = loss + output.pooler_output.sum()
        loss.backward()
        vectors |= {"loss_weight": weight, "gradients": gradients({prefixed(key): value for key, value in model.named_parameters()})}
        config = {key: value for key, value in model.config.to_dict().items() if value is not None}
        write(HERE / name, config | {"architectures": [kind.__name__]}, None, vectors)


def texts():
    for number, (name, options) in enumerate(TEXTS.items()):
        model = CLIPTextModel(CLIPTextConfig(**options))
        state = refill(model, 300 + number)
        # One file as transformers 4 names it, one without the prefix.
        if name == "text_quick_gelu":
            state = {(key if key.startswith("text_model.") else "text_model." + key): value for key, value in state.items()}
        else:
            state = {key.removeprefix("text_model."): value for key, value in state.items()}
        ids = torch.tensor([[0, 5, 29, 3, 7, 1, 1, 1], [0, 9, 7, 8, 7, 7, 7, 29], [0, 4, 4, 4, 4, 4, 4, 4]])
        output = model(input_ids=ids)
        weight = randn(8, *output.last_hidden_state.shape)
        norms = gradient_norms(model, (output.last_hidden_state * weight).sum() + output.pooler_output.sum())
        norms = {("gradnorm.text_model." + key.removeprefix("gradnorm.").removeprefix("text_model.")): value for key, value in norms.items()}
        vectors = {"input_ids": ids.to(torch.int64), "last_hidden_state": output.last_hidden_state}
        vectors |= {"pooler_output": output.pooler_output, "loss_weight": weight}
        config = {key: value for key, value in model.config.to_dict().items() if value is not None}
        write(HERE / name, config, state, vectors | norms, "model.safetensors")


def byte_characters():
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def tokenizers():
    """A small vocabulary in CLIP's form, written by hand, and what transformers makes of it with three configurations."""
    merges = []
    for word in CORPUS.split():
        for part in (word.split("'") if "'" in word else [word]):
            symbols = [*part[:-1], part[-1] + "</w>"]
            # Every word is built from the left.
            while len(symbols) > 1:
                pair = (symbols[0], symbols[1])
                if pair not in merges:
                    merges.append(pair)
                symbols = [symbols[0] + symbols[1], *symbols[2:]]
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    added = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    configs = {
        # As Stable Diffusion 1.5's file: tokens looked for in the normalized text.
        "tokenizer_sd1": dict(
            model_max_length=77, pad_token="<|endoftext|>", bos_token=dict(added, content="<|startoftext|>"),
            eos_token=dict(added, content="<|endoftext|>"), unk_token=dict(added, content="<|endoftext|>"),
        ),
        # As Stable Diffusion 2.1's: another token fills, and the length is short.
        "tokenizer_sd2": dict(
            model_max_length=16, pad_token="!", bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
        ),
    }
    for name, config in configs.items():
        directory = HERE / name
        directory.mkdir(parents=True)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n")
        (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        config = dict(config, tokenizer_class="CLIPTokenizer", add_prefix_space=False, do_lower_case=True, errors="replace")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        encode(CLIPTokenizer.from_pretrained(directory), directory)
    # What transformers 5 saves: tokenizer.json and its own configuration.
    directory = HERE / "tokenizer_json"
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "tokenizer_sd2")
    tokenizer.save_pretrained(directory)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).unlink(missing_ok=True)
    encode(tokenizer, directory)


def encode(tokenizer, directory):
    ids = tokenizer(STRINGS, padding="max_length", truncation=True, max_length=tokenizer.model_max_length).input_ids
    # Fill is left out to keep the file small: the reader fills.
    pad = tokenizer.pad_token_id
    cases = []
    for text, row in zip(STRINGS, ids, strict=True):
        assert len(row) == tokenizer.model_max_length
        while len(row) > 1 and row[-1] == row[-2] == pad:
            row = row[:-1]
        cases.append({"text": text, "ids": row})
    (directory / "cases.json").write_text(json.dumps({"pad": pad, "length": tokenizer.model_max_length, "cases": cases}) + "\n")


def main():
    for directory in HERE.glob("*"):
        # Those are of generate_lm.py.
        if not directory.name.startswith("lm_"):
            shutil.rmtree(directory)
    unets()
    vaes()
    texts()
    unets_by_name()
    vaes_by_name()
    texts_by_name()
    tokenizers()
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"{HERE}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
