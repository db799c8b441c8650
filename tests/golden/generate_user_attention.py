"""Golden values of the attention to users beside that to the text. Layout: README.md beside this file.

diffusers' UNet of `replay/` with its own IP-Adapter attention processors, whose image tokens are vectors of users here; every weight of theirs and
every input is made from its name (`named_values.py`). The numbers in the names of weights follow from diffusers' order of processors.

Run:       python tests/golden/generate_user_attention.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, safetensors 0.8.0
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import save_file

from named_values import direction, named, uniform

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
BATCH, TOKENS, DIM = 2, 3, 6


def inputs():
    of = lambda name, *shape: torch.tensor(uniform(name, int(np.prod(shape))).reshape(shape), dtype=torch.float32)
    return of("sample", BATCH, 4, 8, 8), torch.tensor([10, 700]), of("text", BATCH, 5, 16), of("users", BATCH, TOKENS, DIM), of("weight", BATCH, 4, 8, 8)


def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "replay" / "model" / "unet").requires_grad_(False)
    processors, paths, weights = {}, [], {}
    for name, processor in unet.attn_processors.items():
        path = name.removesuffix(".processor")
        if not path.endswith("attn2"):
            processors[name] = processor
            continue
        attention = unet.get_submodule(path)
        own = IPAdapterAttnProcessor2_0(attention.to_q.out_features, DIM, num_tokens=(TOKENS,), scale=1.0)
        number = 1 + 2 * len(paths)
        for kind, linear in (("to_k_ip", own.to_k_ip[0]), ("to_v_ip", own.to_v_ip[0])):
            file_name = f"ip_adapter.{number}.{kind}.weight"
            linear.weight = torch.nn.Parameter(torch.tensor(named(file_name, tuple(linear.weight.shape))))
            weights[file_name] = linear.weight
        paths.append(path)
        processors[name] = own
    unet.set_attn_processor(processors)
    sample, timesteps, text, users, weight = inputs()
    predict = lambda users: unet(sample, timesteps, encoder_hidden_states=(text, [users])).sample
    output = predict(users)
    nobody = predict(torch.zeros_like(users))
    (output * weight).sum().backward()
    gradients = {}
    for name, tensor in weights.items():
        gradient = tensor.grad.double().numpy()
        unit = direction(name, gradient.shape)
        gradients[name] = [float(f"{np.linalg.norm(gradient):.8g}"), float(f"{(gradient * unit).sum() / np.linalg.norm(unit):.8g}")]
    plain = UNet2DConditionModel.from_pretrained(HERE / "replay" / "model" / "unet")(sample, timesteps, encoder_hidden_states=text).sample
    print(f"{len(paths)} cross attentions; users move the output by {(output - plain).norm() / plain.norm():.3f}; "
          f"users of zeros by {(nobody - plain).abs().max():.1e}")
    assert (output - plain).norm() > 0.05 * plain.norm() and (nobody - plain).abs().max() < 1e-5
    save_file({"output": output.detach()}, HERE / "user_attention.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    text = json.dumps({"paths": paths, "shapes": shapes, "gradients": gradients}, indent=1)
    (HERE / "user_attention.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
