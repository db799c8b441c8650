"""Loads what this project writes in diffusers, transformers and PEFT, and compares what the networks compute.

Run:  cargo run -p diptych-models --example write_pipeline -- DIR
      python tests/golden/check_interop.py DIR

Needs torch, diffusers, transformers, peft, safetensors; no network. Prints one line for each check and fails at the first difference.
"""

import pathlib
import sys

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file

torch.set_num_threads(1)
TEXTS = ["a red circle", "two blue squares left of a circle", ""]


def check(what, found, expected):
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{what}: {text}")
    print(f"ok  {what}")


def main(directory):
    expected = load_file(directory / "outputs.safetensors")
    inputs = (expected["sample"], expected["timesteps"], expected["encoder_hidden_states"])

    def pipeline():
        pipe = DiffusionPipeline.from_pretrained(directory, local_files_only=True, torch_dtype=torch.float32)
        return pipe.to("cpu")

    def unet(pipe):
        return pipe.unet(*inputs).sample

    def text(pipe):
        return pipe.text_encoder(input_ids=expected["input_ids"].long())

    with torch.no_grad():
        pipe = pipeline()
        ids = pipe.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        check("token ids", ids, expected["input_ids"])
        check("text encoder", text(pipe).last_hidden_state, expected["text"])
        check("pooled text", text(pipe).pooler_output, expected["pooled"])
        posterior = pipe.vae.encode(expected["image"]).latent_dist
        check("latent mean", posterior.mean, expected["latent_mean"])
        check("latent logvar", posterior.logvar, expected["latent_logvar"])
        check("decoded", pipe.vae.decode(expected["latent_mean"]).sample, expected["decoded"])
        check("denoiser", unet(pipe), expected["unet"])
        image = pipe("a red circle", num_inference_steps=2, output_type="pt").images
        assert image.shape == (1, 3, 16, 16), image.shape
        print("ok  the whole pipeline samples")

        wrapped = PeftModel.from_pretrained(pipeline().unet, directory / "adapters/unet")
        check("PEFT adapter of the denoiser", wrapped(*inputs).sample, expected["unet_adapted"])
        wrapped = PeftModel.from_pretrained(pipeline().text_encoder, directory / "adapters/text_encoder")
        states = wrapped(input_ids=expected["input_ids"].long()).last_hidden_state
        check("PEFT adapter of the text encoder", states, expected["text_adapted"])
        for name, options in [("diffusers", {}), ("kohya", {"weight_name": "kohya.safetensors"})]:
            pipe = pipeline()
            pipe.load_lora_weights(directory / "adapters" / name, **options)
            check(f"{name} adapter of the denoiser", unet(pipe), expected["unet_adapted"])
            check(f"{name} adapter of the text encoder", text(pipe).last_hidden_state, expected["text_adapted"])
        merged = UNet2DConditionModel.from_pretrained(directory / "adapters/merged", torch_dtype=torch.float32)
        check("merged denoiser", merged(*inputs).sample, expected["unet_adapted"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
