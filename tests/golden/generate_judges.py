"""Golden vectors of the judges: scores and their gradients by the pixels, from transformers' CLIP and BLIP and the published formulas.

Run:  python tests/golden/generate_judges.py     (needs torch, transformers, safetensors, Pillow, numpy; no network)

Everything lands in tests/golden/judges/ and is read by crates/models/tests/vision.rs and crates/eval/tests/judges.rs. A checkpoint
is `tensors.json`, the names and shapes of its tensors under the names of the published files; every value is a function of the
tensor's name and the element's index (`seeded`), which the tests compute too, so that no weights are stored. Networks run in
float64 on weights that are float32.

Made with: Python 3.11.7, torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, Pillow 13.0.0, numpy 2.5.1
"""

import json
import math
import pathlib
import shutil

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent / "judges"
TOKENIZER = pathlib.Path(__file__).parent / "models" / "tokenizer_sd1"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROMPTS = ["a small red circle", "Two blue stars, left of a ring!"]
MASK64 = (1 << 64) - 1


def seeded(name, shape):
    """The tensor of this name: splitmix64 of the FNV-1a hash of the name and the element's index, scaled to the tensor's fan-in."""
    tag = 0xCBF29CE484222325
    for byte in name.encode():
        tag = ((tag ^ byte) * 0x100000001B3) & MASK64
    count = math.prod(shape)
    index = numpy.arange(1, count + 1, dtype=numpy.uint64)
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(tag) + index * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    unit = (z >> numpy.uint64(40)).astype(numpy.float64) / float(1 << 23) - 1.0
    if len(shape) == 0:
        values = 2.0 + 0.5 * unit
    elif len(shape) == 1:
        values = 0.2 * unit + (1.0 if name.endswith("weight") else 0.0)
    else:
        values = unit * math.sqrt(3.0 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(numpy.float32).reshape(shape))


def checkpoint(directory, shapes):
    """Writes `tensors.json` and returns the tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = dict(sorted(shapes.items()))
    lines = [f"{json.dumps(name)}: {json.dumps(list(shape))}" for name, shape in shapes.items()]
    (directory / "tensors.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return {name: seeded(name, shape) for name, shape in shapes.items()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def load(model, state):
    """Every parameter from `state`; buffers stay."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    return model.double().eval().requires_grad_(False)


def picture(width, height, seed):
    """Gradients, an edge and noise: what a resize can get wrong."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    base = numpy.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 128 + 100 * numpy.sin(x * 0.9 + y * 0.7)], -1)
    base[(x > width // 3) & (y > height // 2)] = [250, 5, 30]
    noisy = base + random.normal(0, 20, base.shape)
    return noisy.clip(0, 255).round().astype(numpy.uint8)


IMAGES = [picture(33, 47, 1), picture(52, 29, 2), picture(13, 9, 3), picture(24, 24, 4)]
# Two, as the differentiable path reads them. None is 0 or 1: an even area there would have its gradient cut off by rounding alone.
PIXELS = torch.stack([torch.from_numpy(picture(26, 21, seed)).permute(2, 0, 1) for seed in (5, 6)]).float() / 255.0
PIXELS = (0.02 + 0.96 * PIXELS).double()


def normalize(x):
    return (x - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(STD).double().view(1, 3, 1, 1)


def cosines(images, texts):
    return (F.normalize(images, dim=-1) * F.normalize(texts, dim=-1)).sum(-1)


def tokenize(texts):
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def vectors(directory, image_scores, score_pixels, extra=()):
    """Scores of the first images, and of the pixels with their gradient."""
    pixels = PIXELS.clone().requires_grad_(True)
    scores = score_pixels(pixels)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    tensors = {"image_scores": image_scores, "scores": scores.detach(), "grad_pixels": gradient} | dict(extra)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, directory / "vectors.safetensors")


def shortest_edge(pixels, size, round_half):
    """Antialiased bicubic, rows then columns, each clamped, and the middle: what PIL would do, without its rounding to 8 bits."""
    height, width = pixels.shape[-2:]
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    target = (longer, size) if width <= height else (size, longer)
    wide = F.interpolate(pixels, size=(height, target[1]), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    x = F.interpolate(wide, size=target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = [round(d / 2) if round_half else d // 2 for d in (x.shape[-2] - size, x.shape[-1] - size)]
    return normalize(x[..., top : top + size, left : left + size])


def torchvision_images(size):
    """Resize and CenterCrop of torchvision on PIL images."""
    out = []
    for image in map(Image.fromarray, IMAGES[:2]):
        width, height = image.size
        short, long = min(height, width), max(height, width)
        longer = int(size * long / short)
        image = image.resize((size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC)
        x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).double() / 255.0
        top, left = round((x.shape[1] - size) / 2), round((x.shape[2] - size) / 2)
        out.append(x[:, top : top + size, left : left + size])
    return normalize(torch.stack(out))


def processors():
    cases = [
        ("clip", 0, dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})),
        ("wide", 1, dict(size=20, crop_size=20)),
        ("enlarged", 2, dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})),
        ("padded", 2, dict(size={"shortest_edge": 10}, crop_size={"height": 21, "width": 12})),
        ("bilinear", 0, dict(size={"shortest_edge": 11}, crop_size={"height": 11, "width": 10}, resample=2)),
        ("lanczos", 1, dict(size={"height": 17, "width": 13}, do_center_crop=False, resample=1)),
        ("as_it_is", 3, dict(do_resize=False, crop_size={"height": 9, "width": 8}, do_normalize=False)),
        ("not_rescaled", 3, dict(do_resize=False, do_center_crop=False, do_rescale=False, image_mean=[1, 2, 3], image_std=[4, 5, 6])),
    ]
    listed, tensors = [], {}
    for name, index, options in cases:
        processor = CLIPImageProcessorPil(**options)
        tensors[name] = processor(IMAGES[index], return_tensors="pt").pixel_values[0].float().contiguous()
        listed.append({"name": name, "image": index, "config": json.loads(processor.to_json_string())})
    for index, image in enumerate(IMAGES):
        tensors[f"image.{index}"] = torch.from_numpy(image)
    tensors["pixels"] = PIXELS.float()
    # PyTorch's resizes of the pixels: enlarged and shrunk, with and without antialiasing.
    for name, antialias in [("antialiased", True), ("aliased", False)]:
        tensors[f"resized.{name}"] = F.interpolate(PIXELS, size=(9, 31), mode="bicubic", antialias=antialias).float()
    write_json(HERE / "processors.json", listed)
    save_file(tensors, HERE / "images.safetensors")


def clip_config(activation, eos):
    vocab = len(CLIPTokenizer.from_pretrained(TOKENIZER))
    shared = dict(num_hidden_layers=2, num_attention_heads=4, hidden_act=activation)
    text = dict(shared, hidden_size=32, intermediate_size=128, vocab_size=vocab, max_position_embeddings=77, eos_token_id=eos)
    vision = dict(shared, hidden_size=64, intermediate_size=256, image_size=24, patch_size=8)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, attn_implementation="eager")


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}


def clip():
    """CLIP score, PickScore and the aesthetic predictor: a transformers directory."""
    directory = HERE / "clip"
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    config = clip_config("quick_gelu", tokenizer.eos_token_id)
    model = CLIPModel(config)
    model = load(model, checkpoint(directory, shapes_of(model)))
    write_json(directory / "config.json", json.loads(config.to_json_string()))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    write_json(directory / "preprocessor_config.json", json.loads(processor.to_json_string()))
    ids = tokenize(PROMPTS)
    texts = model.get_text_features(ids).pooler_output
    of_images = processor([Image.fromarray(image) for image in IMAGES[:2]], return_tensors="pt").pixel_values.double()

    def image_features(values):
        return model.get_image_features(values).pooler_output

    scale = model.logit_scale.exp()
    values = shortest_edge(PIXELS, 24, False)
    states = model.vision_model(values, output_hidden_states=True).hidden_states
    extra = {
        "pixel_values": values,
        "text_features": texts,
        "image_features": image_features(values),
        "logits_per_image": model(input_ids=ids, pixel_values=values).logits_per_image,
        "hidden_state.0": states[0],
        "hidden_state.1": states[-2],
    }
    vectors(
        directory,
        scale * cosines(image_features(of_images), texts),
        lambda pixels: scale * cosines(image_features(shortest_edge(pixels, 24, False)), texts),
        extra,
    )
    # The head of the aesthetic predictor: five linear layers without activations on the normalized feature.
    head = mlp(HERE / "aesthetic", "layers.", 16)
    values = of_images, lambda pixels: head(F.normalize(image_features(shortest_edge(pixels, 24, False)), dim=-1))
    vectors(HERE / "aesthetic", head(F.normalize(image_features(values[0]), dim=-1)), values[1])


def mlp(directory, prefix, width, others=None):
    sizes = [width, 1024, 128, 64, 16, 1]
    shapes = dict(others or {})
    for index, place in enumerate([0, 2, 4, 6, 7]):
        shapes[f"{prefix}{place}.weight"] = (sizes[index + 1], sizes[index])
        shapes[f"{prefix}{place}.bias"] = (sizes[index + 1],)
    tensors = checkpoint(directory, shapes)
    layers = [(tensors[f"{prefix}{place}.weight"].double(), tensors[f"{prefix}{place}.bias"].double()) for place in [0, 2, 4, 6, 7]]

    def run(x):
        for weight, bias in layers:
            x = x @ weight.T + bias
        return x.squeeze(-1)

    run.tensors = tensors
    return run


def open_clip_names(config):
    """Names and shapes of OpenCLIP's state dict."""
    text, vision, joint = config.text_config, config.vision_config, config.projection_dim
    patches = (vision.image_size // vision.patch_size) ** 2
    shapes = {
        "logit_scale": (),
        "positional_embedding": (text.max_position_embeddings, text.hidden_size),
        "token_embedding.weight": (text.vocab_size, text.hidden_size),
        "text_projection": (text.hidden_size, joint),
        "ln_final.weight": (text.hidden_size,),
        "ln_final.bias": (text.hidden_size,),
        "visual.class_embedding": (vision.hidden_size,),
        "visual.positional_embedding": (patches + 1, vision.hidden_size),
        "visual.proj": (vision.hidden_size, joint),
        "visual.conv1.weight": (vision.hidden_size, 3, vision.patch_size, vision.patch_size),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.{end}": (vision.hidden_size,) for end in ("weight", "bias")}
    for half, part in [("", text), ("visual.", vision)]:
        width = part.hidden_size
        for layer in range(part.num_hidden_layers):
            place = f"{half}transformer.resblocks.{layer}."
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{place}{norm}.{end}": (width,) for end in ("weight", "bias")}
            for name, rows, columns in [
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ]:
                shapes |= {f"{place}{name}weight": (rows, columns), f"{place}{name}bias": (rows,)}
    return shapes


def to_transformers(tensors):
    state = {}
    plain = {
        "logit_scale": "logit_scale",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    }
    renamed = [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]
    for name, tensor in tensors.items():
        half = "vision_model" if name.startswith("visual.") else "text_model"
        if name in plain:
            state[plain[name]] = tensor
        elif name == "visual.proj":
            state["visual_projection.weight"] = tensor.T
        elif name == "text_projection":
            state["text_projection.weight"] = tensor.T
        elif "ln_pre" in name or "ln_post" in name or "ln_final" in name:
            end = name.split(".")[-1]
            norm = {"pre": "pre_layrnorm", "post": "post_layernorm", "final": "final_layer_norm"}[name.split("ln_")[1].split(".")[0]]
            state[f"{half}.{norm}.{end}"] = tensor
        else:
            layer, part = name.split("resblocks.")[1].split(".", 1)
            place = f"{half}.encoder.layers.{layer}."
            if "in_proj" in part:
                for letter, third in zip("qkv", tensor.chunk(3)):
                    state[f"{place}self_attn.{letter}_proj.{part.split('_')[-1]}"] = third
            else:
                for old, new in renamed:
                    part = part.replace(old, new)
                state[place + part] = tensor
    return state


def open_clip():
    """HPSv2: an OpenCLIP checkpoint, images resized by their longer side, the plain cosine."""
    directory = HERE / "hps"
    config = clip_config("gelu", 2)
    tensors = checkpoint(directory, open_clip_names(config))
    model = load(CLIPModel(config), to_transformers(tensors))
    text, vision = config.text_config, config.vision_config
    sizes = dict(image_size=24, layers=2, width=vision.hidden_size, head_width=16, patch_size=8)
    words = dict(context_length=77, vocab_size=text.vocab_size, width=text.hidden_size, heads=4, layers=2)
    write_json(directory / "open_clip_config.json", {"model_cfg": {"embed_dim": 16, "vision_cfg": sizes, "text_cfg": words}})
    texts = model.get_text_features(tokenize(PROMPTS)).pooler_output

    def prepared(pixels):
        height, width = pixels.shape[-2:]
        scale = 24 / max(height, width)
        size = tuple(round(side * scale) for side in (height, width))
        x = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        high, wide = 24 - size[0], 24 - size[1]
        return normalize(F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))

    def score(pixels, texts):
        return cosines(model.get_image_features(prepared(pixels)).pooler_output, texts)

    of_images = [torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255.0 for image in IMAGES[:2]]
    vectors(
        directory,
        torch.cat([score(image, text[None]) for image, text in zip(of_images, texts)]),
        lambda pixels: score(pixels, texts),
    )


def step_aware():
    """The step-aware preference model: CLIP whose vision tower is modulated by the time."""
    directory = HERE / "step_aware"
    config = clip_config("gelu", CLIPTokenizer.from_pretrained(TOKENIZER).eos_token_id)
    model = CLIPModel(config)
    width, layers = config.vision_config.hidden_size, config.vision_config.num_hidden_layers
    extra = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width), "vision_model.adaLN_modulation.1": (2 * width, width)}
    extra |= {f"vision_model.encoder.layers.{i}.adaLN_modulation.1": (6 * width, width) for i in range(layers)}
    shapes = shapes_of(model)
    for name, shape in extra.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    # The published checkpoints hold the network as a member.
    tensors = checkpoint(directory, {f"model.{name}": shape for name, shape in shapes.items()})
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    linear = {name: (state.pop(f"{name}.weight").double(), state.pop(f"{name}.bias").double()) for name in extra}
    model = load(model, state)
    write_json(directory / "config.json", json.loads(config.to_json_string()))
    texts = model.get_text_features(tokenize(PROMPTS)).pooler_output
    times = torch.tensor([0.0, 701.0]).double()

    def apply(name, x):
        weight, bias = linear[name]
        return x @ weight.T + bias

    def image_features(values, times):
        tower = model.vision_model
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128).double() / 128)
        angles = times[:, None] * frequencies[None]
        embedded = torch.cat([angles.cos(), angles.sin()], -1)
        condition = F.silu(apply("t_embedder.mlp.2", F.silu(apply("t_embedder.mlp.0", embedded))))
        x = tower.pre_layrnorm(tower.embeddings(values))
        for index, layer in enumerate(tower.encoder.layers):
            parts = apply(f"vision_model.encoder.layers.{index}.adaLN_modulation.1", condition).chunk(6, dim=1)
            shift1, scale1, gate1, shift2, scale2, gate2 = [part[:, None] for part in parts]
            h = layer.layer_norm1(x) * (1 + scale1) + shift1
            x = x + gate1 * layer.self_attn(hidden_states=h, attention_mask=None)[0]
            h = layer.layer_norm2(x) * (1 + scale2) + shift2
            x = x + gate2 * layer.mlp(h)
        shift, scale = apply("vision_model.adaLN_modulation.1", condition).chunk(2, dim=1)
        return model.visual_projection(tower.post_layernorm(x[:, 0]) * (1 + scale) + shift)

    def prepared(pixels):
        height, width = pixels.shape[-2:]
        scale = 24 / min(height, width)
        size = [int(side * scale + 0.5) for side in (height, width)]
        x = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
        top, left = round((size[0] - 24) / 2), round((size[1] - 24) / 2)
        return normalize(x[..., top : top + 24, left : left + 24].clamp(0, 1))

    def score(pixels, times, texts):
        return model.logit_scale.exp() * cosines(image_features(prepared(pixels), times), texts)

    of_images = [torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255.0 for image in IMAGES[:2]]
    vectors(
        directory,
        torch.cat([score(image, times[:1], text[None]) for image, text in zip(of_images, texts)]),
        lambda pixels: score(pixels, times, texts),
        {"timesteps": times},
    )


def image_reward():
    """ImageReward: BLIP under the names of its programs, five linear layers, and the published mean and deviation."""
    directory = HERE / "image_reward"
    directory.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "red", "circle", "two", "blue", "star", "##s", "left", "of", "ring", ",", "!"]
    words += [letter for letter in "bcdefghij"] + ["##" + letter for letter in "aeiou"]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    vision = BlipVisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8, hidden_act="gelu", layer_norm_eps=1e-6, attn_implementation="eager")
    text = BlipTextConfig(vocab_size=len(words) + 2, hidden_size=32, encoder_hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40, hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True, attn_implementation="eager")
    med = dict(architectures=["BertModel"], attention_probs_dropout_prob=0.1, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=32, initializer_range=0.02, intermediate_size=64, layer_norm_eps=1e-12, max_position_embeddings=40, model_type="bert", num_attention_heads=4, num_hidden_layers=2, pad_token_id=0, type_vocab_size=2, vocab_size=len(words) + 2, encoder_width=768, add_cross_attention=True)
    write_json(directory / "med_config.json", med)
    seer, reader = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
    seen = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.qkv": "attn.qkv",
        "self_attn.projection": "attn.proj",
        "post_layernorm": "norm",
    }

    def published(name):
        for ours, theirs in seen.items():
            name = name.replace(ours, theirs)
        return f"blip.visual_encoder.{name}"

    names = {published(name): name for name in shapes_of(seer)}
    shapes = {published(name): shape for name, shape in shapes_of(seer).items()}
    shapes |= {f"blip.text_encoder.{name}": shape for name, shape in shapes_of(reader).items()}
    head = mlp(directory, "mlp.layers.", 32, shapes)
    load(seer, {names[name]: tensor for name, tensor in head.tensors.items() if name in names})
    prefix = "blip.text_encoder."
    load(reader, {name.removeprefix(prefix): tensor for name, tensor in head.tensors.items() if name.startswith(prefix)})
    tokenizer = BertTokenizer(str(directory / "vocab.txt"))
    # The second is longer than what is read.
    prompts = [PROMPTS[0], PROMPTS[1] * 5]
    encoded = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")

    def score(values):
        image = seer(values).last_hidden_state
        mask = torch.ones(image.shape[:-1], dtype=torch.long)
        out = reader(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=mask,
            is_decoder=False,
        )
        return (head(out.last_hidden_state[:, 0]) - 0.16717362830052426) / 1.0333394966054072

    vectors(
        directory,
        score(torchvision_images(24)),
        lambda pixels: score(shortest_edge(pixels, 24, True)),
        {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask},
    )


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    processors()
    clip()
    open_clip()
    step_aware()
    image_reward()
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"{total / 1024:.0f} KiB in {HERE}")


if __name__ == "__main__":
    main()
